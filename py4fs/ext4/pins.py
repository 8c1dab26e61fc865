"""Pins: which plans of unlocked device I/O are in flight.

A plan names device blocks and then reads or writes them without a lock.  Blocks that are freed meanwhile must
not be given to someone else before every plan that may name them has finished.  Tokens are ordered by age, so
it is enough to note the youngest token when blocks are freed and to wait until the oldest alive is younger.
"""

from collections.abc import Callable


class PlanPins:
    """Tokens of the plans in flight, in order of age."""

    __slots__ = ("_last", "_live", "_watchers")

    def __init__(self) -> None:
        self._last = 0
        # insertion order is age: a plan's token is never given out again
        self._live: dict[int, None] = {}
        self._watchers: list[Callable[[], None]] = []

    def acquire(self) -> int:
        """Pin for a plan that starts now; larger than every earlier token."""
        self._last = token = self._last + 1
        self._live[token] = None
        return token

    def release(self, token: int) -> None:
        """End of the plan that holds `token`; calls the watchers when it was the oldest one."""
        live = self._live
        assert token in live, f"pin {token} is not held"
        was_oldest = next(iter(live)) == token
        del live[token]
        if was_oldest:
            for watcher in self._watchers:
                watcher()

    def oldest(self) -> int | None:
        """The oldest token held, or None."""
        return next(iter(self._live), None)

    def youngest(self) -> int | None:
        """The youngest token held, or None: blocks freed now may be named by this plan and all older ones."""
        return next(reversed(self._live), None)

    def on_advance(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` (no arguments) whenever the oldest plan has ended."""
        self._watchers.append(watcher)

    def __len__(self) -> int:
        return len(self._live)
