"""Block maps of ext2 and ext3: direct pointers in the inode, then one to three levels of pointer blocks.

(ext4 docs: Direct/Indirect Block Addressing.) There is no unwritten state: the caller of :meth:`allocate` brings
zeros to the device before anything shows the new blocks.
"""

from __future__ import annotations

import struct
from array import array
from functools import partial
from sys import byteorder
from typing import Final, NamedTuple

from py4fs.errors import Corrupt, FileTooBig
from py4fs.ext4.blockmap import MapContext, Mapper
from py4fs.ext4.buffers import MetaBlock
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.extent import EXT_MAX_BLOCKS
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation

#: pointers have 32 bits
MAX_PBLK: Final = 1 << 32
DIRECT: Final = 12
#: objects that removing one run may touch, and the end of a removal besides
RUN_CREDITS: Final = 30
LEVELS: Final = 3
_IBLOCK: Final = struct.Struct("<15I")


class PointerBlock(MetaBlock):
    """A block of 32-bit block numbers, 0 for a hole. ``place``: inode, first logical block, blocks that it maps."""

    __slots__ = ("place", "ptrs")

    def __init__(self, pblk: int, ptrs: array[int], place: tuple[int, int, int]) -> None:
        super().__init__(pblk)
        self.ptrs = ptrs
        self.place = place

    @classmethod
    def parse(cls, place: tuple[int, int, int], pblk: int, raw: bytes) -> PointerBlock:
        ptrs = array("I", raw)
        if byteorder == "big":
            ptrs.byteswap()
        return cls(pblk, ptrs, place)

    def encode(self) -> bytes:
        ptrs = self.ptrs
        if byteorder == "big":
            ptrs = ptrs[:]
            ptrs.byteswap()
        return ptrs.tobytes()

    def save(self) -> array[int]:
        return self.ptrs[:]

    def restore(self, state: array[int]) -> None:
        self.ptrs = state


class _Slot(NamedTuple):
    """A pointer: in the inode (``block`` None) or in a pointer block, and the logical blocks that it stands for."""

    block: PointerBlock | None
    at: int
    first: int
    span: int


class IndirectMap(Mapper):
    """Kept in ``inode.mapper``; the inode's own pointers are read from i_block each time, so undo needs no care."""

    __slots__ = ("_ctx", "_inode", "_per")

    @property
    def has_unwritten(self) -> bool:
        return False

    def __init__(self, ctx: MapContext, inode: Inode) -> None:
        self._ctx = ctx
        self._inode = inode
        self._per = ctx.block_size // 4
        if ctx.ratio > 1:
            raise Corrupt("block map", f"inode {inode.ino}", "a block map with bigalloc", "extents")

    @property
    def max_blocks(self) -> int:
        """Logical blocks that can be mapped."""
        return most_blocks(self._ctx.block_size)

    # -- pointers ------------------------------------------------------------------------------------------

    def _root(self) -> list[int]:
        return list(_IBLOCK.unpack_from(self._inode.iblock))

    def _top(self, lblk: int) -> tuple[_Slot, int]:
        """The inode's pointer for a block, and how many levels of pointer blocks hang on it."""
        if lblk < DIRECT:
            return _Slot(None, lblk, lblk, 1), 0
        first, span = DIRECT, self._per
        for level in range(1, LEVELS + 1):
            if lblk < first + span:
                return _Slot(None, DIRECT + level - 1, first, span), level
            first += span
            span *= self._per
        raise FileTooBig(f"inode {self._inode.ino}: block {lblk}: at most {self.max_blocks - 1}")

    def _get(self, slot: _Slot) -> int:
        return self._root()[slot.at] if slot.block is None else slot.block.ptrs[slot.at]

    def _set(self, tx: Operation, slot: _Slot, pblk: int) -> None:
        if slot.block is None:
            tx.touch(self._inode)
            struct.pack_into("<I", self._inode.iblock, 4 * slot.at, pblk)
        else:
            tx.touch(slot.block)
            slot.block.ptrs[slot.at] = pblk

    def _load(self, pblk: int, slot: _Slot) -> PointerBlock:
        """The block of pointers that ``slot`` names. On a damaged image it may be named twice: Corrupt."""
        where = f"inode {self._inode.ino} pointer block {pblk}"
        self._ctx.groups.check_data_run(pblk, 1, where)
        place = (self._inode.ino, slot.first, slot.span)
        block = self._ctx.buffers.get(pblk, PointerBlock, partial(PointerBlock.parse, place))
        if block.place != place:
            raise Corrupt("pointer block", where, f"in use for inode {block.place[0]}, block {block.place[1]}")
        return block

    def _below(self, slot: _Slot, block: PointerBlock, lblk: int) -> _Slot:
        span = slot.span // self._per
        index = (lblk - slot.first) // span
        return _Slot(block, index, slot.first + index * span, span)

    def _path(self, lblk: int) -> list[_Slot]:
        """From the inode's pointer down to the one of the block itself, or to the first that is 0."""
        slot, level = self._top(lblk)
        path = [slot]
        while level and (pblk := self._get(slot)):
            slot = self._below(slot, self._load(pblk, slot), lblk)
            path.append(slot)
            level -= 1
        return path

    # -- reading -------------------------------------------------------------------------------------------

    def run_at(self, lblk: int) -> Run:
        """The run of contiguous blocks, or of holes, around ``lblk``, as far as one array of pointers shows it.

        A missing pointer block is a hole, together with those missing beside it.

        Raises Corrupt, FileTooBig, DeviceError.
        """
        if lblk >= self.max_blocks:
            return Run(self.max_blocks, EXT_MAX_BLOCKS - self.max_blocks, 0, RunState.HOLE)
        slot = self._path(lblk)[-1]
        if slot.block is not None:
            ptrs = slot.block.ptrs
        elif slot.at < DIRECT:
            ptrs = array("I", self._root()[:DIRECT])
        else:
            return Run(slot.first, slot.span, 0, RunState.HOLE)
        here = ptrs[slot.at]
        low, high = _stretch(ptrs, slot.at)
        if slot.span > 1:
            # a hole as wide as a whole array of pointers, or several of them
            first = slot.first - (slot.at - low) * slot.span
            return Run(first, (high + 1 - low) * slot.span, 0, RunState.HOLE)
        run = Run(slot.first - slot.at + low, high + 1 - low, here and ptrs[low], RunState(bool(here)))
        if here:
            where = f"inode {self._inode.ino} block {run.lblk}"
            self._ctx.groups.check_data_run(run.pblk, run.count, where)
        return run

    def window(self, lblk: int, limit: int) -> list[Run]:
        """Up to ``limit`` consecutive runs from the one at ``lblk`` on, as far as one pointer block reaches."""
        runs = [self.run_at(lblk)]
        stop = self._array_end(lblk)
        while len(runs) < limit and runs[-1].end < stop:
            runs.append(self.run_at(runs[-1].end))
        return runs

    def _array_end(self, lblk: int) -> int:
        if lblk < DIRECT:
            return DIRECT
        return min(DIRECT + ((lblk - DIRECT) // self._per + 1) * self._per, self.max_blocks)

    def maps_from(self, lblk: int) -> bool:
        """Whether any block from ``lblk`` on is mapped. Raises Corrupt, DeviceError."""
        if lblk >= self.max_blocks:
            return False
        path = self._path(lblk)
        for slot in path:
            ptrs = self._root() if slot.block is None else slot.block.ptrs
            if any(ptrs[slot.at + 1 :]):
                return True
        return path[-1].span == 1 and self._get(path[-1]) != 0

    # -- changing ------------------------------------------------------------------------------------------

    def allocate(self, tx: Operation, lblk: int, count: int, *, unwritten: bool) -> list[tuple[int, int]]:
        """Map every hole of [lblk, lblk+count); returns the new runs (first physical block, count).

        Raises NoSpace, FileTooBig, Corrupt, DeviceError.
        """
        assert not unwritten, "block maps know no unwritten blocks"
        new: list[tuple[int, int]] = []
        end = lblk + count
        if end > self.max_blocks:
            raise FileTooBig(f"inode {self._inode.ino}: block {end - 1}: at most {self.max_blocks - 1}")
        goal = self._goal(lblk)
        while lblk < end:
            run = self.run_at(lblk)
            if run.state is not RunState.HOLE:
                lblk = min(run.end, end)
                goal = run.pblk + lblk - run.lblk
                continue
            slot = self._grow_path(tx, lblk, goal)
            ptrs = self._root()[:DIRECT] if slot.block is None else slot.block.ptrs
            room = 1
            while room < end - lblk and slot.at + room < len(ptrs) and not ptrs[slot.at + room]:
                room += 1
            continues = lblk > 0 and self.run_at(lblk - 1).state is RunState.MAPPED
            open_end = run.end >= self._array_end(lblk)  # the hole may go on in the next array
            hole = self.max_blocks - lblk if open_end else run.end - lblk
            ahead = self._ctx.lookahead(self._inode, lblk, continues, room, hole)
            pblk, got = self._ctx.new_blocks(tx, self._inode, goal, room, MAX_PBLK, ahead)
            for step in range(got):
                self._set(tx, slot._replace(at=slot.at + step), pblk + step)
            new.append((pblk, got))
            lblk += got
            goal = pblk + got
        return new

    def _goal(self, lblk: int) -> int:
        """Behind the block before, else near the pointer block, else where the inode's data starts."""
        if lblk:
            before = self.run_at(lblk - 1)
            if before.state is RunState.MAPPED:
                return before.pblk + lblk - before.lblk
        slot = self._path(lblk)[-1]
        if slot.block is not None:
            return slot.block.pblk + 1
        return self._ctx.alloc.data_goal(self._inode.ino, self._inode.is_reg)

    def _grow_path(self, tx: Operation, lblk: int, goal: int) -> _Slot:
        """The pointer of ``lblk``, with the pointer blocks above it made where they are missing."""
        while True:
            slot = self._path(lblk)[-1]
            if slot.span == 1:
                return slot
            pblk, _ = self._ctx.new_blocks(tx, self._inode, goal, 1, MAX_PBLK)
            place = (self._inode.ino, slot.first, slot.span)
            self._ctx.buffers.create(tx, PointerBlock(pblk, array("I", bytes(self._ctx.block_size)), place))
            self._set(tx, slot, pblk)

    def convert(self, tx: Operation, lblk: int, count: int) -> None:
        """Nothing is unwritten here."""

    def remove(self, tx: Operation, start: int, end: int, budget: int) -> bool:
        """Unmap [start, end) from its end backwards, at most ``budget`` runs; True when nothing is left there.

        Pointer blocks that become empty are freed. Raises Corrupt, DeviceError.
        """
        end = min(end, self.max_blocks)
        most = budget
        while end > start:
            run = self.run_at(end - 1)
            low = max(run.lblk, start)
            if run.state is RunState.MAPPED:
                if not budget or (budget < most and tx.touched_count + RUN_CREDITS > tx.credits):
                    return False
                budget -= 1
                self._unmap(tx, low, end, run.pblk + low - run.lblk)
            end = low
        return True

    def _unmap(self, tx: Operation, low: int, end: int, pblk: int) -> None:
        path = self._path(low)
        slot = path[-1]
        for step in range(end - low):
            self._set(tx, slot._replace(at=slot.at + step), 0)
        self._ctx.free_file_blocks(tx, self._inode, pblk, end - low)
        for block_slot, owner in zip(reversed(path), reversed(path[:-1]), strict=False):
            block = block_slot.block
            if block is None or any(block.ptrs):
                break
            self._set(tx, owner, 0)
            self._ctx.free_node(tx, self._inode, block.pblk)


def _stretch(ptrs: array[int], at: int) -> tuple[int, int]:
    """The first and the last index of the pointers around ``at`` that are all 0, or that count up by one."""
    here = ptrs[at]
    size = ptrs.itemsize
    if not here:
        raw = ptrs.tobytes()
        before, after = raw[: at * size], raw[(at + 1) * size :]
        zeros_before = (len(before) - len(before.rstrip(b"\0"))) // size
        zeros_after = (len(after) - len(after.lstrip(b"\0"))) // size
        return at - zeros_before, at + zeros_after
    low = high = at
    step = 1
    while step:  # twice as far each time that it holds, half as far when it does not
        part = ptrs[high + 1 : high + 1 + step]
        if part and part == _counting(ptrs[high] + 1, len(part)):
            high += len(part)
            step *= 2
        else:
            step //= 2
    step = 1
    while step:
        start = max(low - step, 0)
        if start < low and ptrs[low] - low + start > 0 and ptrs[start:low] == _counting(
            ptrs[low] - low + start, low - start
        ):
            low = start
            step *= 2
        else:
            step //= 2
    return low, high


def _counting(first: int, count: int) -> array[int]:
    return array("I", range(first, first + count)) if first + count <= MAX_PBLK else array("I")


def init_root(inode: Inode) -> None:
    """Give a new inode an empty block map."""
    inode.iblock[:] = bytes(len(inode.iblock))


def most_blocks(block_size: int) -> int:
    """Logical blocks that a block map can have."""
    per = block_size // 4
    return min(DIRECT + per + per**2 + per**3, EXT_MAX_BLOCKS)
