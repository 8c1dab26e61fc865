"""What a mapper answers: runs of blocks. Plain values, so that nothing in ext4/ needs to know iomap."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class RunState(IntEnum):
    """What a run of a file's blocks is."""

    HOLE = 0
    MAPPED = 1
    #: allocated, reads as zeros
    UNWRITTEN = 2


class Run(NamedTuple):
    """``count`` file system blocks of a file from logical block ``lblk`` on; ``pblk`` is 0 for a hole."""

    lblk: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    pblk: int
    state: RunState

    @property
    def end(self) -> int:
        return self.lblk + self.count
