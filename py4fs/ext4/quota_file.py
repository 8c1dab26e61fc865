"""One quota file: finding, adding and walking entries. Its blocks are metadata, changed in transactions.

The format is described in :mod:`py4fs.ext4.layout.quota`. Entries that are no longer needed stay, with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from py4fs.errors import Corrupt
from py4fs.ext4.buffers import BufferCache, RawBlock
from py4fs.ext4.file import FileMap
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.quota import (
    QUOTA_BLOCK_HEADER,
    QUOTA_BLOCK_SIZE,
    QUOTA_DEPTH,
    QUOTA_ENTRY,
    QUOTA_HEADER,
    QUOTA_INFO,
    QUOTA_MAGIC,
    QUOTA_VERSION,
)
from py4fs.ext4.transaction import Operation

_INFO_AT: Final = QUOTA_HEADER.size
_ROOT: Final = 1
_SLOTS: Final = (QUOTA_BLOCK_SIZE - QUOTA_BLOCK_HEADER.size) // QUOTA_ENTRY.size
_UNUSED: Final = bytes(QUOTA_ENTRY.size)
#: places of entries that are remembered
_PLACES: Final = 1 << 16

#: metadata objects that adding an entry touches at most: three tree blocks and one of entries, each of them maybe in a
#: block that has to be allocated (bitmap, descriptor, inode); the info and the neighbours in the list of free entries
ADD_CREDITS: Final = 4 * 3 + 6


class QuotaFile:
    """The usage and limits of all users, groups or projects."""

    def __init__(self, inode: Inode, kind: int, files: FileMap, buffers: BufferCache) -> None:
        """`kind`: 0 users, 1 groups, 2 projects. Raises Corrupt for another format, DeviceError."""
        self.inode = inode
        self._files = files
        self._buffers = buffers
        self._block_size = files.block_size
        #: where entries are: (block in the file, byte in it)
        self._places: dict[int, tuple[int, int]] = {}
        self._where = f"quota file, inode {inode.ino}"
        if not inode.is_reg or inode.size < 2 * QUOTA_BLOCK_SIZE:
            raise Corrupt("quota file", f"inode {inode.ino}", f"{inode.size} bytes", "a file of two blocks at least")
        block, at = self._block(0)
        header = QUOTA_HEADER.unpack_from(block.data, at)
        if header.dqh_magic != QUOTA_MAGIC[kind]:
            raise Corrupt("dqh_magic", self._where, f"{header.dqh_magic:#x}", f"{QUOTA_MAGIC[kind]:#x}")
        if header.dqh_version != QUOTA_VERSION:
            raise Corrupt("dqh_version", self._where, header.dqh_version, QUOTA_VERSION)
        blocks = self.info.dqi_blocks
        if not 2 <= blocks <= inode.size // QUOTA_BLOCK_SIZE:
            raise Corrupt("dqi_blocks", self._where, blocks, f"2..{inode.size // QUOTA_BLOCK_SIZE}")

    @property
    def info(self) -> Any:
        """Grace times and free lists. Raises Corrupt, DeviceError."""
        block, at = self._block(0)
        return QUOTA_INFO.unpack_from(block.data, at + _INFO_AT)

    # -- blocks --------------------------------------------------------------------------------------------

    def _block(self, number: int) -> tuple[RawBlock, int]:
        """The file system block with a block of the file, and where in it that is."""
        lblk, at = divmod(number * QUOTA_BLOCK_SIZE, self._block_size)
        if number and number >= self.inode.size // QUOTA_BLOCK_SIZE:
            raise Corrupt("quota block number", self._where, number, f"below {self.inode.size // QUOTA_BLOCK_SIZE}")
        return self._buffers.get(self._files.block_of(self.inode, lblk), RawBlock, RawBlock), at

    def _put_info(self, tx: Operation, **fields: int) -> None:
        block, at = self._block(0)
        tx.touch(block)
        QUOTA_INFO.put(block.data, at + _INFO_AT, **fields)

    def _change(self, tx: Operation, number: int) -> tuple[RawBlock, int]:
        block, at = self._block(number)
        tx.touch(block)
        return block, at

    def _new_block(self, tx: Operation) -> int:
        """A block of zeros: a free one, or one more at the end. Raises NoSpace, Corrupt, DeviceError."""
        info = self.info
        if info.dqi_free_blk:
            number: int = info.dqi_free_blk
            block, at = self._change(tx, number)
            self._put_info(tx, dqi_free_blk=QUOTA_BLOCK_HEADER.get(block.data, at, "dqdh_next_free"))
        else:
            number = info.dqi_blocks
            self._extend(tx, number)
            block, at = self._change(tx, number)
            self._put_info(tx, dqi_blocks=number + 1)
        block.data[at : at + QUOTA_BLOCK_SIZE] = bytes(QUOTA_BLOCK_SIZE)
        return number

    def _extend(self, tx: Operation, number: int) -> None:
        """Make the file long enough for a block."""
        end = (number + 1) * QUOTA_BLOCK_SIZE
        tx.touch(self.inode)
        had = self.inode.size
        if -(-had // self._block_size) * self._block_size < end:
            _, pblk = self._files.append_block(tx, self.inode)
            self._buffers.create(tx, RawBlock(pblk, bytes(self._block_size)))
        self.inode.size = max(had, end)

    # -- entries -------------------------------------------------------------------------------------------

    def get(self, number: int) -> Any | None:
        """The entry of an id, or None. Raises Corrupt, DeviceError."""
        place = self._find(number)
        if place is None:
            return None
        block, at = self._block(place[0])
        return QUOTA_ENTRY.unpack_from(block.data, at + place[1])

    def put(self, tx: Operation, number: int, **fields: int) -> None:
        """Change fields of an entry, which is made if there is none. Raises NoSpace, Corrupt, DeviceError."""
        place = self._find(number) or self._add(tx, number)
        block, at = self._change(tx, place[0])
        at += place[1]
        if not number and QUOTA_ENTRY.get(block.data, at, "dqb_itime") == 1:
            QUOTA_ENTRY.put(block.data, at, dqb_itime=0)
        QUOTA_ENTRY.put(block.data, at, **fields)
        if block.data[at : at + QUOTA_ENTRY.size] == _UNUSED:
            QUOTA_ENTRY.put(block.data, at, dqb_itime=1)  # that of id 0 without anything would look unused

    def _find(self, number: int) -> tuple[int, int] | None:
        place = self._places.get(number)
        if place is not None:
            return place
        node = _ROOT
        for depth in range(QUOTA_DEPTH):
            node = self._pointer(node, number, depth)
            if not node:
                return None
        block, at = self._block(node)
        for offset in _slot_offsets():
            entry = at + offset
            if QUOTA_ENTRY.get(block.data, entry, "dqb_id") == number and not _is_unused(block, entry):
                return self._remember(number, node, offset)
        raise Corrupt("quota entry", f"{self._where}, block {node}", "none", f"one of id {number}")

    def _remember(self, number: int, node: int, offset: int) -> tuple[int, int]:
        if len(self._places) >= _PLACES:
            self._places.clear()
        self._places[number] = node, offset
        return node, offset

    def _pointer(self, node: int, number: int, depth: int) -> int:
        block, at = self._block(node)
        at += 4 * _index(number, depth)
        child = int.from_bytes(block.data[at : at + 4], "little")
        if child == _ROOT or child >= self.info.dqi_blocks:
            raise Corrupt("quota tree", f"{self._where}, block {node}", child, f"2..{self.info.dqi_blocks - 1}")
        return child

    def _add(self, tx: Operation, number: int) -> tuple[int, int]:
        """An entry of zeros for an id that has none."""
        node = _ROOT
        for depth in range(QUOTA_DEPTH):
            child = self._pointer(node, number, depth)
            if depth == QUOTA_DEPTH - 1:
                if child:
                    raise Corrupt("quota tree", f"{self._where}, block {node}", child, f"nothing for id {number}")
                child = self._block_with_room(tx)
            elif not child:
                child = self._new_block(tx)
            else:
                node = child
                continue
            block, at = self._change(tx, node)
            at += 4 * _index(number, depth)
            block.data[at : at + 4] = child.to_bytes(4, "little")
            node = child
        offset = self._take_slot(tx, node, number)
        tx.on_abort(lambda: self._forget(number))
        return self._remember(number, node, offset)

    def _forget(self, number: int) -> None:
        self._places.pop(number, None)

    def _block_with_room(self, tx: Operation) -> int:
        first: int = self.info.dqi_free_entry
        if first:
            return first
        number = self._new_block(tx)
        self._put_info(tx, dqi_free_entry=number)
        return number

    def _take_slot(self, tx: Operation, node: int, number: int) -> int:
        """A free slot of the first block of the list; a block that is full then leaves the list."""
        block, at = self._change(tx, node)
        header = QUOTA_BLOCK_HEADER.unpack_from(block.data, at)
        if header.dqdh_entries + 1 >= _SLOTS:
            if header.dqdh_next_free:
                following, place = self._change(tx, header.dqdh_next_free)
                QUOTA_BLOCK_HEADER.put(following.data, place, dqdh_prev_free=0)
            self._put_info(tx, dqi_free_entry=header.dqdh_next_free)
            QUOTA_BLOCK_HEADER.put(block.data, at, dqdh_next_free=0, dqdh_prev_free=0)
        QUOTA_BLOCK_HEADER.put(block.data, at, dqdh_entries=min(header.dqdh_entries + 1, _SLOTS))
        for offset in _slot_offsets():
            if _is_unused(block, at + offset):
                QUOTA_ENTRY.put(block.data, at + offset, dqb_id=number, dqb_itime=0 if number else 1)
                return offset
        raise Corrupt("dqdh_entries", f"{self._where}, block {node}", header.dqdh_entries, "that of a full block")

    def entries(self) -> Iterator[Any]:
        """All entries, by ascending id. Raises Corrupt, DeviceError."""
        met: set[int] = set()
        pending = [(_ROOT, 0, 0)]
        while pending:
            node, depth, prefix = pending.pop()
            if depth == QUOTA_DEPTH:
                entry = self.get(prefix)
                if entry is not None:
                    yield entry
                continue
            if node in met:
                raise Corrupt("quota tree", f"{self._where}, block {node}", "met twice", "a tree")
            met.add(node)
            block, at = self._block(node)
            for index in reversed(range(256)):
                if any(block.data[at + 4 * index : at + 4 * index + 4]):
                    number = prefix | index << 8 * (QUOTA_DEPTH - 1 - depth)
                    pending.append((self._pointer(node, number, depth), depth + 1, number))


def _index(number: int, depth: int) -> int:
    return number >> 8 * (QUOTA_DEPTH - 1 - depth) & 0xFF


def _slot_offsets() -> range:
    return range(QUOTA_BLOCK_HEADER.size, QUOTA_BLOCK_HEADER.size + _SLOTS * QUOTA_ENTRY.size, QUOTA_ENTRY.size)


def _is_unused(block: RawBlock, at: int) -> bool:
    return block.data[at : at + QUOTA_ENTRY.size] == _UNUSED
