"""Which inodes are open for writing, for both sessions.

The kernel may have dirty pages of them: their st_blocks may only be cached shortly, and not all their data is here.
"""

from __future__ import annotations

import os


class Writers:
    """Counts handles; `ino in writers` says whether an inode has one for writing."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._handles: dict[int, int] = {}

    def __contains__(self, ino: object) -> bool:
        return ino in self._counts

    def opened(self, fh: int, ino: int, flags: int) -> None:
        """A handle was opened with open(2)'s `flags`."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._handles[fh] = ino
            self._counts[ino] = self._counts.get(ino, 0) + 1

    def inode_of(self, fh: int) -> int | None:
        """The inode of a handle that was opened for writing; None for others."""
        return self._handles.get(fh)

    def closed(self, fh: int) -> int | None:
        """The last descriptor of a handle is gone; returns its inode if it was for writing."""
        ino = self._handles.pop(fh, None)
        if ino is None:
            return None
        left = self._counts[ino] - 1
        if left:
            self._counts[ino] = left
        else:
            del self._counts[ino]
        return ino
