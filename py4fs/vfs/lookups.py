"""How often the kernel has looked up each inode: as many references as it will drop one day (FORGET)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

_BITS: Final = 5
_PAGE: Final = 1 << _BITS
_MASK: Final = _PAGE - 1
_EMPTY: Final = bytes(8 * _PAGE)


class LookupCounts:
    """Counts by inode number, of those that have any.

    A kernel that has walked a tree holds every inode of it, and no cache limit of ours can make it drop one: what an
    inode costs here is not bounded by anything else. Neighbours are looked up together (a directory's files lie
    together), so counts are kept in pages: some 15 bytes each, where a dictionary of numbers takes 110.
    """

    __slots__ = ("_count", "_pages")

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, ino: int) -> bool:
        page = self._pages.get(ino >> _BITS)
        return page is not None and page[ino & _MASK] != 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(inode, count) of all."""
        for number, page in self._pages.items():
            for at, count in enumerate(page):
                if count:
                    yield number << _BITS | at, count

    def add(self, ino: int, count: int) -> None:
        """``count`` > 0 references more."""
        page = self._pages.get(ino >> _BITS)
        if page is None:
            page = self._pages[ino >> _BITS] = array("Q", _EMPTY)
        at = ino & _MASK
        if not page[at]:
            self._count += 1
        page[at] += count

    def drop(self, ino: int, count: int) -> bool:
        """``count`` references less, or all that there are; whether none is left."""
        page = self._pages.get(ino >> _BITS)
        at = ino & _MASK
        if page is None or not page[at]:
            return True
        if page[at] > count:
            page[at] -= count
            return False
        page[at] = 0
        self._count -= 1
        if page.tobytes() == _EMPTY:
            del self._pages[ino >> _BITS]
        return True

    def clear(self) -> None:
        """The kernel is gone."""
        self._pages.clear()
        self._count = 0
