"""What a mapper answers: runs of blocks. Plain values, so that nothing in ext4/ needs to know iomap."""

from __future__ import annotations

from enum import IntEnum


class RunState(IntEnum):
    """What a run of a file's blocks is."""

    HOLE = 0
    MAPPED = 1
    #: allocated, reads as zeros
    UNWRITTEN = 2


class Run:
    """``count`` file system blocks of a file from logical block ``lblk`` on; ``pblk`` is 0 for a hole."""

    __slots__ = ("count", "lblk", "pblk", "state")

    def __init__(self, lblk: int, count: int, pblk: int, state: RunState) -> None:
        self.lblk = lblk
        self.count = count
        self.pblk = pblk
        self.state = state

    def __repr__(self) -> str:
        return f"Run({self.lblk}, {self.count}, {self.pblk}, {self.state!r})"

    @property
    def end(self) -> int:
        return self.lblk + self.count
