"""What the two ways of mapping a file's blocks have in common: their interface, and giving blocks out and back."""

from __future__ import annotations

from abc import abstractmethod

from py4fs.ext4 import windows
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.groups import Groups
from py4fs.ext4.inode import Inode
from py4fs.ext4.runs import Run
from py4fs.ext4.transaction import Operation


class Mapper:
    """Logical to physical blocks of one inode; kept in ``inode.mapper``, dropped when the inode is put back."""

    __slots__ = ()

    @property
    @abstractmethod
    def has_unwritten(self) -> bool:
        """Whether blocks can be allocated and still read as zeros."""

    @property
    @abstractmethod
    def max_blocks(self) -> int:
        """The first logical block that cannot be mapped."""

    @abstractmethod
    def run_at(self, lblk: int) -> Run:
        """The whole run around ``lblk``."""

    @abstractmethod
    def window(self, lblk: int, limit: int) -> list[Run]:
        """Consecutive runs from the one around ``lblk`` on, as far as one node of the map shows them."""

    @abstractmethod
    def allocate(self, tx: Operation, lblk: int, count: int, *, unwritten: bool) -> list[tuple[int, int]]:
        """Fill the holes; returns the new physical runs."""

    @abstractmethod
    def convert(self, tx: Operation, lblk: int, count: int) -> None:
        """Unwritten becomes written."""

    @abstractmethod
    def remove(self, tx: Operation, start: int, end: int, budget: int) -> bool:
        """Unmap from the end, at most ``budget`` runs; True when all is gone."""


class MapContext:
    """What every mapper of a volume needs."""

    __slots__ = ("alloc", "block_size", "buffers", "groups", "metadata_csum", "ratio")

    def __init__(
        self,
        block_size: int,
        metadata_csum: bool,
        buffers: BufferCache,
        alloc: Allocator,
        groups: Groups,
        ratio: int = 1,
    ) -> None:
        """``ratio``: blocks of a cluster."""
        self.block_size = block_size
        self.metadata_csum = metadata_csum
        self.buffers = buffers
        self.alloc = alloc
        self.groups = groups
        self.ratio = ratio

    def new_blocks(
        self, tx: Operation, inode: Inode, goal: int, want: int, limit: int, ahead: int | None = None
    ) -> tuple[int, int]:
        """Up to ``want`` contiguous blocks below block ``limit``, counted in i_blocks. Raises NoSpace.

        With bigalloc these are whole clusters, at least one.
        ``ahead``: blocks to keep behind them for this file, if there is room (:mod:`py4fs.ext4.windows`); None for
        blocks of the map, which stay out of the way.
        """
        owner = 0 if ahead is None else inode.ino
        pblk, got = self.alloc.new_blocks(tx, goal, want, limit, owner=owner, ahead=ahead or 0)
        tx.touch(inode)
        inode.count_blocks(got * (self.block_size // 512))
        return pblk, got

    def lookahead(self, inode: Inode, lblk: int, continues: bool, want: int, room: int) -> int:
        """How many blocks to keep behind an allocation of ``want`` blocks at ``lblk``.

        ``continues``: the block before is mapped; ``room``: length of the hole. Nothing is kept for files that are
        filled in no order, nor for directories.
        """
        if not inode.is_reg or not (continues or lblk * self.block_size >= inode.size):
            return 0
        ahead = windows.lookahead(inode.blocks // (self.block_size // 512), want, self.block_size)
        return min(ahead, max(room - want, 0))

    def free_node(self, tx: Operation, inode: Inode, pblk: int) -> None:
        """Free a block of the map itself. Raises Corrupt, DeviceError."""
        self.buffers.forget(tx, pblk)
        self.alloc.free_blocks(tx, pblk, 1)
        tx.touch(inode)
        inode.count_blocks(-self.ratio * (self.block_size // 512))

    def free_file_blocks(
        self, tx: Operation, inode: Inode, pblk: int, count: int, *, keep_first: bool = False, keep_last: bool = False
    ) -> None:
        """Free blocks of the file, but for the first or the last cluster where others of its blocks are in use.

        Raises Corrupt, DeviceError.
        """
        if not inode.is_reg or inode.is_value:
            # blocks of directories, symlinks and attributes' values are metadata, cached by number
            for block in range(pblk, pblk + count):
                self.buffers.forget(tx, block)
        mask = self.ratio - 1
        end = pblk + count + mask & ~mask
        pblk &= ~mask
        if keep_first:
            pblk += self.ratio
        if keep_last:
            end -= self.ratio
        if pblk < end:
            self.alloc.free_blocks(tx, pblk, end - pblk)
            tx.touch(inode)
            inode.count_blocks(-(end - pblk) * (self.block_size // 512))
