"""Room kept behind files that grow: the blocks that a growing file would take next, which other files avoid.

Several files that are appended to in turns would otherwise take each other's next blocks. A window is nothing but
a note in memory (kernel: the preallocation space of mballoc, and ext3's reservation windows before it): the blocks in
it are free in every bitmap and count as free, and when there is no other space they are given to whoever asks. So
nothing is left over on the device, whatever happens.

Windows are bounded, so long files side by side meet in the end, each time one's window is used up. Therefore those
whose windows are long by now keep apart by whole groups (:meth:`Windows.apart`), as far as there are such.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bitarray import bitarray

#: windows kept at most; the one unused for longest goes first
MAX_WINDOWS: Final = 256
#: bytes: the smallest and the largest window; between them it is twice of what the file has already
MIN_BYTES: Final = 256 << 10
MAX_BYTES: Final = 32 << 20
#: a file whose very first write is that long is taken for one that goes on growing
STREAM_BYTES: Final = 64 << 10
#: bytes: a window of that size is behind a long file, which other long ones give a wide berth
LONG_BYTES: Final = 1 << 20


def lookahead(have: int, want: int, block_size: int) -> int:
    """Blocks to keep behind an allocation of ``want`` blocks that continues a file of ``have`` blocks."""
    if not have and want * block_size < STREAM_BYTES:
        # most files are written at once and stay small: those are packed
        return 0
    return min(max(2 * have, want, MIN_BYTES // block_size), MAX_BYTES // block_size)


class Windows:
    """One window per inode: bits [start, end) of a group's block bitmap."""

    __slots__ = ("_groups", "_places")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._groups: dict[int, dict[int, tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, ino: int, group: int, start: int, end: int) -> None:
        """The inode's window is now [start, end) of ``group``; an empty one removes it."""
        self.drop(ino)
        if start >= end:
            return
        while len(self._places) >= MAX_WINDOWS:
            self.drop(next(iter(self._places)))
        self._places[ino] = group
        self._groups.setdefault(group, {})[ino] = (start, end)

    def drop(self, ino: int) -> None:
        """Nobody writes the file any more."""
        group = self._places.pop(ino, None)
        if group is not None:
            windows = self._groups[group]
            del windows[ino]
            if not windows:
                del self._groups[group]

    def clear(self) -> None:
        """Space is short: nobody's."""
        self._places.clear()
        self._groups.clear()

    def crowded(self, group: int, ino: int, least: int) -> bool:
        """Whether others than ``ino`` have a window of ``least`` bits or more in ``group``."""
        windows = self._groups.get(group)
        return windows is not None and any(
            end - start >= least and owner != ino for owner, (start, end) in windows.items()
        )

    def apart(self, groups: Iterable[int], ino: int, least: int) -> int | None:
        """The first of these groups where ``ino`` is not in the way of others with long windows, and they not in its.

        Best where the group before is nobody's either: its owner would go on here. None when all are crowded.
        """
        behind = None
        for group in groups:
            if not self.crowded(group, ino, least):
                if not self.crowded(group - 1, ino, least):
                    return group
                if behind is None:
                    behind = group
        return behind

    def mask(self, group: int, bits: bitarray, ino: int) -> bitarray:
        """``bits`` with the windows of everybody but ``ino`` marked as in use; ``bits`` itself if there are none."""
        windows = self._groups.get(group)
        if windows is None or (len(windows) == 1 and ino in windows):
            return bits
        masked = bits.copy()
        for owner, (start, end) in windows.items():
            if owner != ino:
                masked[start:end] = True
        return masked
