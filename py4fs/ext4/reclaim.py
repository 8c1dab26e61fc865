"""Giving blocks and inodes back: truncation and deletion, in bounded steps held together by the orphans."""

from __future__ import annotations

from enum import Enum
from typing import Final

from py4fs.errors import Corrupt
from py4fs.ext4 import inline
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.file import REMOVE_BUDGET, FileMap
from py4fs.ext4.inode import NS, Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.layout.extent import EXT_MAX_BLOCKS
from py4fs.ext4.orphan import Orphans, check_orphan
from py4fs.ext4.transaction import Operation, Reserve, Transactions
from py4fs.ext4.xattr import XattrStore

#: each removed extent may touch a bitmap, its descriptor, and a node, which may go too; splits and orphans some more
REMOVE_CREDITS: Final = 6 * REMOVE_BUDGET + 32


class OrphanEnd(Enum):
    """What became of an orphan."""

    DELETED = "deleted"
    TRUNCATED = "truncated"
    #: it was free already
    STALE = "stale"


class Reclaimer:
    """Truncate and delete for one volume."""

    def __init__(
        self,
        block_size: int,
        transactions: Transactions,
        files: FileMap,
        inodes: InodeTable,
        alloc: Allocator,
        orphans: Orphans,
        xattrs: XattrStore,
    ) -> None:
        self._block_size = block_size
        self._transactions = transactions
        self._files = files
        self._inodes = inodes
        self._alloc = alloc
        self._orphans = orphans
        self._xattrs = xattrs

    def start_shrink(self, tx: Operation, inode: Inode, size: int) -> bool:
        """Set a smaller size and free what one operation can; False: :meth:`finish_shrink` must follow.

        ``size`` in bytes. Raises Corrupt, NoSpace, DeviceError.
        """
        tx.touch(inode)
        inode.size = size
        done = self._cut(tx, inode, size)
        if not done:
            self._orphans.add(tx, inode)
        return done

    def finish_shrink(self, inode: Inode) -> None:
        """Free the rest of a truncated file, one operation after the other. Raises Corrupt, NoSpace, DeviceError."""
        done = False
        while not done:
            with self._transactions.operation(REMOVE_CREDITS, Reserve.ALL) as tx:
                done = self._cut(tx, inode, inode.size)
                if done and inode.nlink:
                    self._orphans.remove(tx, inode)
            self._transactions.breathe()

    def _cut(self, tx: Operation, inode: Inode, size: int) -> bool:
        """Free blocks wholly behind byte ``size``, as many as one operation can; True when none is left."""
        if inode.is_inline and inode.nlink:
            inline.truncate(tx, inode, size)
        if not inode.has_blocks or not inode.blocks:
            return True
        return self._files.remove(tx, inode, -(-size // self._block_size), EXT_MAX_BLOCKS)

    def evict(self, inode: Inode) -> None:
        """Free an inode without links that nobody holds. Raises Corrupt, DeviceError."""
        done = False
        while not done:
            with self._transactions.operation(REMOVE_CREDITS, Reserve.ALL) as tx:
                tx.touch(inode)
                done = self._cut(tx, inode, 0) and self._release_attributes(tx, inode)
                if done:
                    # not before: its size tells a short symlink from one with a block
                    inode.size = 0
                    self._orphans.remove(tx, inode)
                    inode.dtime = tx.now // NS & 0xFFFFFFFF
                    self._alloc.free_inode(tx, inode.ino, inode.is_dir)
                    self._inodes.drop(tx, inode)
            self._transactions.breathe()

    def _release_attributes(self, tx: Operation, inode: Inode) -> bool:
        """Give up attributes and their values, which has to wait for another operation if this one did much."""
        if self._xattrs.count_values(inode) and tx.touched_count > REMOVE_CREDITS // 2:
            return False
        return self._xattrs.release(tx, inode)

    def process_orphan(self, ino: int) -> OrphanEnd:
        """Finish what an orphan found on the image was left with. Raises Corrupt, NoSpace, DeviceError.

        Corrupt also when it cannot be an orphan. A free inode in the orphan file is none, but does no harm: e2fsck 1.47
        leaves such entries when it frees orphans without checking everything.
        """
        if not self._alloc.inode_in_use(ino):
            with self._transactions.operation(1, Reserve.ALL) as tx:
                if self._orphans.drop_slot(tx, ino):
                    return OrphanEnd.STALE
            raise Corrupt("orphan list", f"inode {ino}", "an inode that is free", "one that is in use")
        inode = self._inodes.get_orphan(ino)
        check_orphan(inode)
        if inode.nlink:
            self.finish_shrink(inode)
            return OrphanEnd.TRUNCATED
        self.evict(inode)
        return OrphanEnd.DELETED
