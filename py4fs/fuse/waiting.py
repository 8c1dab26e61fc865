"""A cheaper way for pyfuse3's loop to wait for requests.

Between two requests pyfuse3 takes a trio lock and waits with `trio.lowlevel.wait_readable`: two turns of trio's
scheduler and four system calls, which cost more than most requests themselves. While requests keep coming, one
poll(2) that waits a moment does the same. The other tasks (commit, signals, announcing) get their turn after
`TURN` at the latest, and an idle mount waits in trio as before.

pyfuse3 looks up `trio` in its own namespace, and its asyncio support puts a replacement there; so does this.
The lock keeps several reading tasks apart; this server has one (`main(max_tasks=1)`), which is checked.
"""

from __future__ import annotations

import select
import time
from typing import Any

import pyfuse3
import trio

TURN = 0.02  # seconds that requests are served before the other tasks get a turn
_MOMENT = 1  # milliseconds to wait for the next request before going to sleep in trio


class OneReader:
    """Stands in for the lock that nobody else wants."""

    def __init__(self) -> None:
        self._held = False

    async def __aenter__(self) -> None:
        assert not self._held, "pyfuse3 reads with several tasks"
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False


class Lowlevel:
    """trio.lowlevel with another wait_readable."""

    def __init__(self) -> None:
        self._poll: select.poll | None = None
        self._turn_ends = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        if time.monotonic() < self._turn_ends and self._poll.poll(_MOMENT):
            return
        await trio.lowlevel.wait_readable(fd)
        self._turn_ends = time.monotonic() + TURN


class _Trio:
    """trio as pyfuse3 gets to see it."""

    Lock = OneReader

    def __init__(self) -> None:
        self.lowlevel = Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> None:
    """Give pyfuse3 the cheaper waiting; before `pyfuse3.main`."""
    vars(pyfuse3)["trio"] = _Trio()
