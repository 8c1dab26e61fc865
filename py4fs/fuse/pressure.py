"""When memory is short: the kernel's pressure stall information tells, of the machine and of our control group.

Documentation/accounting/psi.rst. The file is read now and then: a trigger written into it would save the waking up, but
to close one the kernel waits for an RCU grace period, 10 to 20 ms at the end of each mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

SHORT: Final = 0.1
"""Part of the time in which some process waited for memory that is called a shortage."""
KEPT: Final = 0.25
"""Part of the caches that stays."""
_PAUSE: Final = 2.0  # seconds: the kernel itself counts that often
_REST: Final = 300.0  # seconds after which unused memory goes back to the kernel anyway
_SYSTEM: Final = Path("/proc/pressure/memory")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_SOME: Final = re.compile(rb"^some .*\btotal=(\d+)$", re.MULTILINE)
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
    """Watches for pressure. Files that are not there, or not ours to read, or say something else are left out."""

    def __init__(self, files: Iterable[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """The files stay open: later they may be out of reach. `clock`: seconds."""
        self._clock = clock
        self._asked = clock()
        #: descriptor -> microseconds in which some process has waited so far
        self._waited: dict[int, int] = {}
        for path in files:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as exc:
                log.debug("%s: %s", path, exc.strerror)
                continue
            waited = _waited(fd)
            if waited is None:
                os.close(fd)
            else:
                self._waited[fd] = waited

    @property
    def works(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self._waited)

    def is_short(self) -> bool:
        """Whether memory has been short since this was asked before."""
        now = self._clock()
        limit = (now - self._asked) * SHORT * 1e6
        self._asked = now
        return max(map(self._waited_since, list(self._waited)), default=0) > limit

    def _waited_since(self, fd: int) -> int:
        """Microseconds, since this was asked before."""
        now = _waited(fd)
        if now is None:  # the control group has gone
            del self._waited[fd]
            os.close(fd)
            return 0
        before, self._waited[fd] = self._waited[fd], now
        return now - before

    def close(self) -> None:
        """Let go of the files."""
        for fd in self._waited:
            os.close(fd)
        self._waited.clear()


def _waited(fd: int) -> int | None:
    """The total of a file, None if it has none."""
    try:
        found = _SOME.search(os.pread(fd, 4096, 0))
    except OSError as exc:
        log.debug("memory pressure: %s", exc.strerror)
        return None
    return int(found[1]) if found else None


async def watch(monitor: Monitor, shrink: Callable[[float], Awaitable[None]]) -> None:
    """Keep only a part of the caches whenever memory is short; without a monitor their limits have to do."""
    rested = 0.0
    while True:
        pause = _PAUSE if monitor.works else _REST
        await trio.sleep(pause)
        rested += pause
        short = monitor.is_short()
        if short:
            log.info("memory is short: the caches keep %d %%", KEPT * 100)
            await shrink(KEPT)
        if short or rested >= _REST:
            rested = 0.0
            _give_back()


def _give_back() -> None:
    """Let the C library return what it does not use (malloc_trim(3), where there is one)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
