"""Waiting for the next request without a turn of trio's loop for each.

pyfuse3 waits for every request by `trio.lowlevel.wait_readable`, which costs more than most requests: an epoll
registration, a turn of the scheduler and a lock that only matters to several readers. Requests mostly come one
right after the other, so here the one reader blocks in poll(2) for a moment first and goes to trio only when
none comes, or when trio's other tasks (commits, signals, unmounting) have waited long enough for their turn.

pyfuse3 looks trio up as a global of its module so that its asyncio mode can replace it; this uses the same door.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator
from types import SimpleNamespace, TracebackType

import pyfuse3
import trio

PATIENCE_MS = 2  # how long the thread may block in poll(2), milliseconds
TURN = 0.010  # seconds after which trio's other tasks get their turn


class _NoLock:
    """pyfuse3 keeps its readers apart by a lock; there is one reader."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None


class Waiter:
    """`wait_readable` for one descriptor."""

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        self._turn = 0.0  # when trio has to have a turn, in time.monotonic()

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read. trio's other tasks run at least every TURN + PATIENCE_MS."""
        if fd != self._fd:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
        if time.monotonic() >= self._turn:
            await trio.lowlevel.checkpoint()
            self._turn = time.monotonic() + TURN
        if self._poll.poll(PATIENCE_MS):
            return
        await trio.lowlevel.wait_readable(fd)
        self._turn = time.monotonic() + TURN


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """pyfuse3.main() run inside waits in this way; only for max_tasks=1."""
    lowlevel = SimpleNamespace(
        wait_readable=Waiter().wait_readable,
        notify_closing=trio.lowlevel.notify_closing,
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
    )
    stand_in = SimpleNamespace(
        Lock=_NoLock,
        lowlevel=lowlevel,
        open_nursery=trio.open_nursery,
        ClosedResourceError=trio.ClosedResourceError,
    )
    vars(pyfuse3)["trio"] = stand_in
    try:
        yield
    finally:
        vars(pyfuse3)["trio"] = trio
