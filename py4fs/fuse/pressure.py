"""When memory is short: the kernel's pressure stall information tells, of the machine and of our control group.

Documentation/accounting/psi.rst: a trigger is written into the file, and poll(2) says POLLPRI when it fires. The
threshold is one that processes without privileges may set.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

TRIGGER: Final = b"some 202000 2000000"
"""us in which some process waited for memory, us of the window."""
KEPT: Final = 0.25
"""Part of the caches that stays."""
_REST: Final = 300.0  # seconds after which unused memory goes back to the kernel anyway
_PAUSE: Final = 2.0  # seconds: one window
_SYSTEM: Final = Path("/proc/pressure/memory")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_libc = ctypes.CDLL(None)


def pressure_files() -> Iterator[Path]:
    """The files of this machine and of this process' control group (version 2).

    A service manager may name the group's (systemd's MemoryPressureWatch=), where the process cannot see it otherwise.
    """
    yield _SYSTEM
    named = os.environ.get("MEMORY_PRESSURE_WATCH", "")
    if named.startswith("/") and named != os.devnull:
        yield Path(named)
        return
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                yield _CGROUPS / line.removeprefix("0::").strip("/") / "memory.pressure"


class Monitor:
    """Waits for pressure. Files that are not there or not ours to watch are left out."""

    def __init__(self, files: Iterable[Path], events: int = select.POLLPRI) -> None:
        self._fds: list[int] = []
        self._poll = select.poll()
        for path in files:
            self._watch(path, events)

    def _watch(self, path: Path, events: int) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            log.debug("%s: %s", path, exc.strerror)
            return
        try:
            os.write(fd, TRIGGER + b"\0")
        except OSError as exc:
            log.debug("%s: %s", path, exc.strerror)
            os.close(fd)
            return
        self._fds.append(fd)
        self._poll.register(fd, events)

    @property
    def works(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._fds)

    def wait(self, seconds: float) -> bool:
        """Whether there was pressure within so many seconds. Blocks."""
        found = self._poll.poll(seconds * 1000)
        for fd, events in found:
            if events & (select.POLLERR | select.POLLNVAL):  # the control group has gone
                self._poll.unregister(fd)
                self._fds.remove(fd)
                os.close(fd)
        return any(not events & (select.POLLERR | select.POLLNVAL) for _, events in found)


async def watch(monitor: Monitor, shrink: Callable[[float], Awaitable[None]]) -> None:
    """Keep only a part of the caches whenever memory is short; without a monitor their limits have to do."""
    while True:
        if not monitor.works:
            await trio.sleep(_REST)
        elif await trio.to_thread.run_sync(monitor.wait, _REST, abandon_on_cancel=True):
            log.info("memory is short: the caches keep %d %%", KEPT * 100)
            await shrink(KEPT)
            _give_back()
            await trio.sleep(_PAUSE)
            continue
        _give_back()


def _give_back() -> None:
    """Let the C library return what it does not use (malloc_trim(3), where there is one)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
