"""Sets of block ranges: which blocks a write got and has not used yet."""

from collections.abc import Iterator

Range = tuple[int, int]
"""First block and the one behind the last."""


class Ranges:
    """Sorted, disjoint, never touching ranges [first, end)."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, first: int, end: int) -> None:
        """Add [first, end)."""
        if first >= end:
            return
        kept = []
        for low, high in self._ranges:
            if high < first or low > end:
                kept.append((low, high))
            else:
                first, end = min(first, low), max(end, high)
        kept.append((first, end))
        kept.sort()
        self._ranges = kept

    def discard(self, first: int, end: int) -> None:
        """Take out [first, end)."""
        if first >= end:
            return
        kept = []
        for low, high in self._ranges:
            if low < first:
                kept.append((low, min(high, first)))
            if high > end:
                kept.append((max(low, end), high))
            # a range around [first, end) has left both its ends
        self._ranges = [(low, high) for low, high in kept if low < high]

    def within(self, first: int, end: int) -> list[Range]:
        """The parts inside [first, end)."""
        parts = ((max(low, first), min(high, end)) for low, high in self._ranges)
        return [(low, high) for low, high in parts if low < high]
