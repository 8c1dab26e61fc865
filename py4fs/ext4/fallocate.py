"""fallocate(2) on the blocks of one file: allocate, unmap, zero, collapse, insert (kernel: ext4_fallocate).

Everything here works on whole blocks; what is left of a range at its edges is zeroed by the caller. Long ranges are
taken in bounded operations, so they may stop half way with NoSpace, as in the kernel.
"""

from __future__ import annotations

from typing import Final

from py4fs.errors import FileTooBig
from py4fs.ext4.file import FileMap
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.extent import EXT_MAX_BLOCKS
from py4fs.ext4.reclaim import REMOVE_CREDITS
from py4fs.ext4.runs import RunState
from py4fs.ext4.transaction import Operation, Reserve, Transactions

#: blocks that one operation allocates at most
ALLOCATE_BLOCKS: Final = 32768
#: extents that one operation allocates or changes the state of
STATE_BUDGET: Final = 64
#: a fragmented file system answers with as many runs: each has a bitmap and its descriptor, and may split a leaf, whose
#: new half has a bitmap and its descriptor
ALLOCATE_CREDITS: Final = 8 * STATE_BUDGET + 32


class Fallocator:
    """The block side of fallocate for one volume. Ranges are logical blocks, first and end (exclusive)."""

    def __init__(self, transactions: Transactions, files: FileMap) -> None:
        self._transactions = transactions
        self._files = files

    def allocate(self, inode: Inode, first: int, end: int, size: int | None, reserve: Reserve) -> None:
        """Give unwritten blocks to the holes of a range and let the file grow to ``size`` bytes (None: as it is).

        Raises NotSupported (block map), NoSpace (what was allocated so far stays), FileTooBig, Corrupt, DeviceError.
        """
        self._files.extent_tree(inode)
        block_size = self._files.block_size
        while first < end:
            with self._transactions.operation(ALLOCATE_CREDITS, reserve) as tx:
                stop = self._allocate_step(tx, inode, first, min(end, first + ALLOCATE_BLOCKS))
                if size is not None and (reached := min(stop * block_size, size)) > inode.size:
                    tx.touch(inode)
                    inode.size = reached
                    inode.mtime = inode.ctime = tx.now
            first = stop
            self._transactions.breathe()

    def _allocate_step(self, tx: Operation, inode: Inode, first: int, end: int) -> int:
        """Up to STATE_BUDGET new runs; returns where it stopped."""
        for _ in range(STATE_BUDGET):
            run = self._files.run_at(inode, first)
            stop = min(run.end, end)
            if run.state is RunState.HOLE:
                # as much as one run of free blocks gives
                self._files.extent_tree(inode).allocate_run(tx, first, stop - first)
                stop = self._files.run_at(inode, first).end
            first = min(stop, end)
            if first == end:
                break
        return first

    def punch(self, inode: Inode, first: int, end: int) -> None:
        """Unmap a range. Raises NoSpace (an extent had to be split), Corrupt, DeviceError."""
        done = first >= end
        while not done:
            with self._transactions.operation(REMOVE_CREDITS, Reserve.ALL) as tx:
                done = self._files.remove(tx, inode, first, end)
            self._transactions.breathe()

    def zero(self, inode: Inode, first: int, end: int) -> None:
        """What is written in a range becomes unwritten. Raises NotSupported, NoSpace, Corrupt, DeviceError."""
        tree = self._files.extent_tree(inode)
        while first < end:
            with self._transactions.operation(8 * STATE_BUDGET, Reserve.ALL) as tx:
                first = tree.mark_unwritten(tx, first, end, STATE_BUDGET)
            self._transactions.breathe()

    def collapse(self, inode: Inode, first: int, end: int) -> None:
        """Take a range out: what follows moves to its place. Raises NotSupported, Corrupt, DeviceError."""
        tree = self._files.extent_tree(inode)
        self.punch(inode, first, end)
        with self._transactions.operation(tree.node_count() + 16, Reserve.ALL) as tx:
            tree.shift_left(tx, first, end - first)
            tx.touch(inode)
            inode.size -= (end - first) * self._files.block_size
            inode.mtime = inode.ctime = tx.now

    def insert(self, inode: Inode, first: int, count: int) -> None:
        """Make room for ``count`` blocks at ``first``: a hole. Raises NotSupported, FileTooBig, NoSpace, Corrupt."""
        tree = self._files.extent_tree(inode)
        if tree.last_block() + count > EXT_MAX_BLOCKS:
            raise FileTooBig(f"inode {inode.ino}: block {tree.last_block() + count - 1}: at most {EXT_MAX_BLOCKS - 1}")
        with self._transactions.operation(tree.node_count() + 32, Reserve.ALL) as tx:
            tree.shift_right(tx, first, count)
            tx.touch(inode)
            inode.size += count * self._files.block_size
            inode.mtime = inode.ctime = tx.now
