"""Blocks of files: one interface over the mappers, and the growing and shrinking of one inode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from py4fs.errors import Corrupt, FileTooBig, NotSupported
from py4fs.ext4 import inline
from py4fs.ext4.blockmap import MapContext, Mapper
from py4fs.ext4.extents import ExtentTree
from py4fs.ext4.indirect import IndirectMap, init_root, most_blocks
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.extent import EXT_MAX_BLOCKS
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation

__all__ = ["REMOVE_BUDGET", "FileMap", "Run", "RunState"]

#: extents that one operation removes at most; a longer truncate is several operations
REMOVE_BUDGET: Final = 64


class Guard(Protocol):
    """Inodes that are truncated to their size after a crash: the volume's orphans."""

    def __contains__(self, ino: object) -> bool: ...
    def add(self, tx: Operation, inode: Inode) -> None: ...
    def remove(self, tx: Operation, inode: Inode) -> None: ...


class FileMap:
    """Maps, allocates and frees blocks of any inode of a volume. Logical and physical blocks throughout."""

    def __init__(
        self,
        ctx: MapContext,
        fill: Callable[[int, int, bytes], None],
        orphans: Guard,
        *,
        huge_file: bool,
        extents: bool,
        inline_data: bool = False,
    ) -> None:
        """``fill(first, count, data)`` writes data and zeros behind it to blocks.

        ``extents``: whether new files get extent trees; ``inline_data``: whether small ones stay in the inode.
        """
        self._ctx = ctx
        self._fill = fill
        #: told the number of an inode whose contents moved into it or out of it
        self.inline_changed: list[Callable[[int], None]] = []
        self.inline_data = inline_data
        self._orphans = orphans
        self._extents = extents
        #: largest i_blocks, in units of 512 bytes
        self._max_blocks = 0xFFFFFFFFFFFF * (ctx.block_size // 512) if huge_file else 0xFFFFFFFF
        self.block_size = ctx.block_size
        #: largest size of a file in bytes
        self.max_size = EXT_MAX_BLOCKS * ctx.block_size

    def mapper(self, inode: Inode) -> Mapper:
        """The inode's mapper, kept in the inode. Raises Corrupt."""
        mapper: Mapper | None = inode.mapper
        if mapper is None:
            if inode.is_inline:
                raise Corrupt("inline data", f"inode {inode.ino}", "contents in the inode", "blocks")
            extents = inode.flags & EXT4_EXTENTS_FL
            mapper = inode.mapper = (ExtentTree if extents else IndirectMap)(self._ctx, inode)
        return mapper

    def largest(self, inode: Inode) -> int:
        """The largest size in bytes that this file can have. Raises Corrupt."""
        return self.max_blocks(inode) * self.block_size

    def extent_tree(self, inode: Inode) -> ExtentTree:
        """The mapper of a file with extents. Raises NotSupported for a block map."""
        mapper = self.mapper(inode)
        if not isinstance(mapper, ExtentTree):
            raise NotSupported(f"inode {inode.ino} has a block map, this needs extents")
        return mapper

    def init(self, inode: Inode) -> None:
        """Give a new inode an empty mapping."""
        if self._extents:
            inode.flags |= EXT4_EXTENTS_FL
            ExtentTree.init_root(inode)
        else:
            init_root(inode)
        inode.mapper = None

    # -- inline data ---------------------------------------------------------------------------------------

    def prepare_inline(self, tx: Operation, inode: Inode, size: int) -> bool:
        """For a write that ends at byte ``size``: have it fit the inode, or have the contents leave the inode.

        To be called where the file is inline or may become it; False when it is not inline afterwards.
        Raises NoSpace, Corrupt, DeviceError.
        """
        was = inode.is_inline
        if inline.prepare(tx, inode, size):
            if not was:
                self._tell_inline(tx, inode)
            return True
        self.leave_inline(tx, inode)
        return False

    def leave_inline(self, tx: Operation, inode: Inode) -> None:
        """A file's contents move to a block of their own, for good, and a new file will have blocks.

        Raises NoSpace, Corrupt, DeviceError.
        """
        tx.touch(inode)
        inode.may_inline = False
        if not inode.is_inline:
            return
        data = inline.take_out(tx, inode)
        self.init(inode)
        (run,) = self.allocate(tx, inode, 0, 1, unwritten=False)
        # nothing refers to the block before this operation is committed, and the commit waits for what it shows
        self._fill(run.pblk, 1, data)
        self._tell_inline(tx, inode)

    def grow(self, tx: Operation, inode: Inode, size: int) -> None:
        """Set a larger size without writing (kernel: ext4_setattr). Raises NoSpace, Corrupt, DeviceError."""
        if inode.is_inline and size > inline.stored_size(inode):
            self.leave_inline(tx, inode)
        tx.touch(inode)
        inode.size = size

    def _tell_inline(self, tx: Operation, inode: Inode) -> None:
        for listener in self.inline_changed:
            listener(inode.ino)
            tx.on_abort(partial(listener, inode.ino))

    def max_blocks(self, inode: Inode) -> int:
        """The first logical block that this file's map cannot hold. Raises Corrupt."""
        if inode.is_inline:
            return EXT_MAX_BLOCKS if self._extents else most_blocks(self.block_size)
        return self.mapper(inode).max_blocks

    def settle(self, ino: int) -> None:
        """The file does not grow for now: others may have the blocks behind it."""
        self._ctx.alloc.windows.drop(ino)

    def hold_tail(self, tx: Operation, inode: Inode) -> None:
        """Blocks were allocated behind the end, for a write that has yet to raise the size.

        Where they cannot be unwritten, a crash must take them back: e2fsck would raise the size over them.
        Raises Corrupt, DeviceError.
        """
        if not self.mapper(inode).has_unwritten:
            self._orphans.add(tx, inode)

    def release_tail(self, tx: Operation, inode: Inode) -> None:
        """The size was raised, or blocks behind it were freed: an orphan of :meth:`hold_tail` may be none any more.

        Raises Corrupt, DeviceError.
        """
        mapper = self.mapper(inode)
        if not isinstance(mapper, IndirectMap) or not inode.nlink or inode.ino not in self._orphans:
            return
        if not self.has_tail(inode):
            self._orphans.remove(tx, inode)

    def has_tail(self, inode: Inode) -> bool:
        """Whether blocks with contents are mapped behind the end: those are never left in a file that has a name.

        Raises Corrupt, DeviceError.
        """
        mapper = self.mapper(inode)
        lblk = -(-inode.size // self.block_size)
        if isinstance(mapper, IndirectMap):
            return mapper.maps_from(lblk)
        while lblk < mapper.max_blocks:
            run = mapper.run_at(lblk)
            if run.state is RunState.MAPPED:
                return True
            lblk = run.end
        return False

    def run_at(self, inode: Inode, lblk: int) -> Run:
        """The whole run that ``lblk`` lies in. Raises Corrupt, DeviceError."""
        return self.mapper(inode).run_at(lblk)

    def window(self, inode: Inode, lblk: int, limit: int) -> list[Run]:
        """Consecutive whole runs from the one at ``lblk`` on, at most ``limit``, not beyond one leaf and its hole."""
        return self.mapper(inode).window(lblk, limit)

    def allocate(self, tx: Operation, inode: Inode, lblk: int, count: int, *, unwritten: bool = True) -> list[Run]:
        """Fill the holes of [lblk, lblk+count); returns the whole runs that cover it now.

        With ``unwritten`` new blocks read as zeros, by their state or, in a block map, by what is on the device.

        Raises FileTooBig, NoSpace (nothing is kept: the operation is undone), Corrupt, DeviceError.
        """
        tree = self._mapper_with_room(inode, lblk, count)
        new = tree.allocate(tx, lblk, count, unwritten=unwritten and tree.has_unwritten)
        if unwritten and not tree.has_unwritten:
            # what cannot be marked unwritten must be zeros before anybody can see it
            for first, length in new:
                self._fill(first, length, b"")
        runs: list[Run] = []
        end = lblk + count
        while lblk < end:
            runs.append(tree.run_at(lblk))
            lblk = runs[-1].end
        return runs

    def fill(self, tx: Operation, inode: Inode, lblk: int, count: int) -> list[tuple[int, int]]:
        """Blocks for the holes of [lblk, lblk+count) that count as written, which the caller sees to.

        Returns the runs (first block, count), in the order of the holes. Raises as :meth:`allocate`.
        """
        return self._mapper_with_room(inode, lblk, count).allocate(tx, lblk, count, unwritten=False)

    def _mapper_with_room(self, inode: Inode, lblk: int, count: int) -> Mapper:
        """The mapper, if the file may have [lblk, lblk+count). Raises FileTooBig, Corrupt."""
        mapper = self.mapper(inode)
        if lblk + count > mapper.max_blocks:
            raise FileTooBig(f"inode {inode.ino}: block {lblk + count - 1}: at most {mapper.max_blocks - 1}")
        if inode.blocks + (count + 1) * (self.block_size // 512) > self._max_blocks:
            raise FileTooBig(f"inode {inode.ino}: more than {self._max_blocks} sectors")
        return mapper

    def convert(self, tx: Operation, inode: Inode, lblk: int, count: int) -> None:
        """Unwritten blocks of the range become written. Raises Corrupt, NoSpace, DeviceError."""
        self.mapper(inode).convert(tx, lblk, count)

    def remove(self, tx: Operation, inode: Inode, lblk: int, end: int) -> bool:
        """Unmap [lblk, end) from its end, a bounded part of it; True when all of it is gone."""
        return self.mapper(inode).remove(tx, lblk, end, REMOVE_BUDGET)

    # -- directories and other metadata in file blocks -----------------------------------------------------

    def block_of(self, inode: Inode, lblk: int) -> int:
        """The physical block of a written block. Raises Corrupt for a hole or an unwritten block."""
        run = self.run_at(inode, lblk)
        if run.state is not RunState.MAPPED:
            raise Corrupt("hole", f"inode {inode.ino} block {lblk}", run.state.name.lower(), "a mapped block")
        return run.pblk + lblk - run.lblk

    def append_block(self, tx: Operation, inode: Inode) -> tuple[int, int]:
        """Add one written block behind the end; returns (logical, physical). The caller initialises it.

        Raises NoSpace, FileTooBig, Corrupt, DeviceError.
        """
        lblk = -(-inode.size // self.block_size)
        runs = self.allocate(tx, inode, lblk, 1, unwritten=False)
        tx.touch(inode)
        inode.size = (lblk + 1) * self.block_size
        return lblk, runs[0].pblk + lblk - runs[0].lblk
