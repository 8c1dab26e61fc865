"""A cheaper way for pyfuse3's loop to wait for requests.

Between two requests pyfuse3 takes a trio lock and waits with `trio.lowlevel.wait_readable`: two turns of trio's
scheduler and four system calls, which cost more than most requests themselves. While requests keep coming, one
poll(2) that waits a moment does the same. The other tasks (commit, signals, announcing) get their turn after
`TURN` at the latest, at once while `Waiting.busy` says that one of them has work, and an idle mount waits in trio as
before.

pyfuse3 looks up `trio` in its own namespace, and its asyncio support puts a replacement there; so does this. The lock
keeps several reading tasks apart. Unlike trio's it is not fair: whoever reads goes on reading, without a turn of the
scheduler, until its handler has to wait and calls `Waiting.hand_over`.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any

import pyfuse3
import trio

TURN = 0.02  # seconds that requests are served before the other tasks get a turn
_MOMENT = 1  # milliseconds to wait for the next request before going to sleep in trio


class Reader:
    """Stands in for pyfuse3's lock: one task at a time waits for requests, the others are parked."""

    def __init__(self) -> None:
        self._held = False
        self._closing = False
        self._parked: deque[trio.Event] = deque()

    async def __aenter__(self) -> None:
        while self._held and not self._closing:
            event = trio.Event()
            self._parked.append(event)
            await event.wait()
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False

    def hand_over(self) -> None:
        """The task that reads is about to wait for something else."""
        if not self._held and self._parked:
            self._parked.popleft().set()

    def close(self) -> None:
        """There will be no more requests: all tasks see for themselves."""
        self._closing = True
        while self._parked:
            self._parked.popleft().set()


class Waiting:
    """pyfuse3's trio.lowlevel, with another wait_readable."""

    def __init__(self) -> None:
        self.reader = Reader()
        #: how many tasks besides the readers have work to do
        self.busy = 0
        self._poll: select.poll | None = None
        self._turn_ends = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        if not self.busy and time.monotonic() < self._turn_ends:
            found = self._poll.poll(_MOMENT)
            if found:
                self._look(found)
                return
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            self.reader.close()
            raise
        self._look(self._poll.poll(0))
        self._turn_ends = time.monotonic() + TURN

    def _look(self, found: list[tuple[int, int]]) -> None:
        """An unmounted connection polls as an error."""
        if any(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, events in found):
            self.reader.close()

    def hand_over(self) -> None:
        """To be called by a handler before it waits."""
        self.reader.hand_over()


class _Trio:
    """trio as pyfuse3 gets to see it."""

    def __init__(self, waiting: Waiting) -> None:
        self.lowlevel = waiting

    def Lock(self) -> Reader:
        return self.lowlevel.reader

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> Waiting:
    """Give pyfuse3 the cheaper waiting; before `pyfuse3.main`."""
    waiting = Waiting()
    vars(pyfuse3)["trio"] = _Trio(waiting)
    return waiting
