"""Clusters of a file (bigalloc): its logical blocks in one cluster have one cluster of the device, each in its place.

So a block may be mapped without allocating anything, and a cluster is free only when none of its blocks is mapped.
Numbers are blocks; ``ratio`` of them make a cluster.
"""

from __future__ import annotations

from collections.abc import Callable

from py4fs.errors import Corrupt
from py4fs.ext4.runs import Run, RunState


def cluster_of(run_at: Callable[[int], Run], ratio: int, lblk: int, ino: int) -> int | None:
    """First physical block of the cluster that ``lblk`` belongs to; None when no block of it is mapped.

    ``run_at`` gives the run around a logical block. Raises Corrupt when blocks are not where they belong.
    """
    at = first = lblk - lblk % ratio
    while at < first + ratio:
        run = run_at(at)
        if run.state is not RunState.HOLE:
            _check_aligned(ratio, run, ino)
            return run.pblk + first - run.lblk
        at = run.end
    return None


def still_used(run_at: Callable[[int], Run], ratio: int, gone: Run, ino: int) -> tuple[bool, bool]:
    """Whether the first, and the last cluster if that is another one, of blocks no longer mapped must stay allocated.

    Raises Corrupt when blocks are not where they belong.
    """
    _check_aligned(ratio, gone, ino)
    last = gone.end - 1
    partly = gone.lblk % ratio or gone.count < ratio
    first_stays = bool(partly) and cluster_of(run_at, ratio, gone.lblk, ino) is not None
    another = last // ratio != gone.lblk // ratio and gone.end % ratio
    last_stays = bool(another) and cluster_of(run_at, ratio, last, ino) is not None
    return first_stays, last_stays


def _check_aligned(ratio: int, run: Run, ino: int) -> None:
    if (run.lblk - run.pblk) % ratio:
        where = f"inode {ino}"
        raise Corrupt("extent", where, f"block {run.lblk} at {run.pblk}", "the same place in a cluster")
