"""The clock of a mount: the one that the kernel stamps files with.

The server stamps some changes (mkdir, unlink, ...) and the kernel others (writes, under the writeback cache), and
times must not run backwards from one to the other. The kernel's clock advances by ticks of some ms; since
Linux 6.13 it may also be ahead of the tick, when another file system has asked for an exact time.
"""

from __future__ import annotations

import sys
import time

_COARSE = 5 if sys.platform == "linux" else time.CLOCK_REALTIME  # CLOCK_REALTIME_COARSE, not in Python's time
_TICK = 20_000_000  # ns; the longest tick is 10 ms


class KernelClock:
    """Gives ns since the epoch when called."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self) -> int:
        return max(time.clock_gettime_ns(_COARSE), self._seen)

    def saw(self, ns: int) -> None:
        """The kernel has stamped something with `ns`: what comes next is not earlier."""
        if self._seen < ns < time.clock_gettime_ns(_COARSE) + _TICK:
            self._seen = ns
