"""The inode table: inodes by number, cached, read from and stored to their blocks."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import partial
from typing import Final

from py4fs.errors import Corrupt, Stale
from py4fs.ext4 import checksum
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import RANK_INODE, BufferCache, RawBlock
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import Groups
from py4fs.ext4.inode import Inode, decode_inode, encode_inode, set_blocks_flags
from py4fs.ext4.layout.inode import EXT4_ROOT_INO, INODE, S_IFMT
from py4fs.ext4.transaction import Operation, Transactions

_KNOWN_TYPES: Final = frozenset((0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000, 0xC000))
_LINKS: Final = INODE.field("i_links_count")
_MODE: Final = INODE.field("i_mode")
_DTIME: Final = INODE.field("i_dtime")


class InodeTable:
    """Inodes of a volume; clean ones beyond ``limit`` are dropped, unless one of ``holders`` has their number."""

    def __init__(
        self,
        geometry: Geometry,
        groups: Groups,
        buffers: BufferCache,
        alloc: Allocator,
        transactions: Transactions,
        fs_seed: int | None,
        limit: int,
    ) -> None:
        self._geometry = geometry
        self._groups = groups
        self._buffers = buffers
        self._alloc = alloc
        self._transactions = transactions
        #: None without metadata_csum
        self._metadata_csum = fs_seed is not None
        self._seed = fs_seed or 0
        self._limit = limit
        #: how many there may be before it is worth looking again for some to drop
        self._trim_at = limit
        self._inodes: dict[int, Inode] = {}
        #: inodes that were freed, while the table still has what they were before
        self._freed: set[int] = set()
        alloc.is_file = self._is_file
        #: containers of inode numbers that must stay in memory: open files, orphans
        self.holders: list[Container[int]] = []
        #: inodes of the file system's own beyond the reserved ones: nothing may reach them by a name
        self.special: set[int] = set()

    @property
    def count(self) -> int:
        """Inodes of the file system, in use or not."""
        return self._geometry.inodes_count

    def get(self, ino: int, *, reserved: bool = False) -> Inode:
        """The inode. Raises Corrupt (no such number), Stale (not in use), BadChecksum, Corrupt, DeviceError."""
        inode = self._get(ino, reserved=reserved)
        if inode.is_value:
            raise Corrupt("inode", f"inode {ino}", "the value of an attribute", "a file")
        return inode

    def get_value(self, ino: int) -> Inode:
        """The inode of an attribute's value (ea_inode). Raises as :meth:`get`."""
        inode = self._get(ino, reserved=False)
        if not inode.is_value or not inode.is_reg or inode.file_acl:
            raise Corrupt("attribute's inode", f"inode {ino}", f"mode {inode.mode:#o}, flags {inode.flags:#x}")
        return inode

    def _get(self, ino: int, *, reserved: bool) -> Inode:
        if ((ino < self._geometry.first_ino and ino != EXT4_ROOT_INO) or ino in self.special) and not reserved:
            raise Corrupt("inode number", "inode table", ino, "not a reserved inode")
        inode = self._inodes.get(ino)
        if inode is not None:
            if inode.nlink == 0:
                raise Stale(f"inode {ino} has been removed")
            inode.recent = True
            return inode
        inode = self._load(ino)
        if inode.nlink == 0:
            raise Stale(f"inode {ino} is not in use")
        if inode.mode & S_IFMT not in _KNOWN_TYPES:
            raise Corrupt("file type", f"inode {ino}", oct(inode.mode))
        self._inodes[ino] = inode
        return inode

    def get_orphan(self, ino: int) -> Inode:
        """An orphan, which may have no links. Raises as :meth:`get`."""
        inode = self._inodes[ino] = self.look_at_orphan(ino)
        return inode

    def look_at_orphan(self, ino: int) -> Inode:
        """The same, not to be changed: it is not kept in memory."""
        inode = self._inodes.get(ino)
        if inode is None:
            if ino < self._geometry.first_ino or ino in self.special:
                raise Corrupt("inode number", "orphan list", ino, "not a reserved inode")
            inode = self._load(ino)
        return inode

    def peek(self, ino: int) -> Inode | None:
        return self._inodes.get(ino)

    def _load(self, ino: int) -> Inode:
        geo = self._geometry
        if not 0 < ino <= geo.inodes_count:
            raise Corrupt("inode number", "inode table", ino, f"1..{geo.inodes_count}")
        if ino in self._freed:
            raise Stale(f"inode {ino} is not in use")
        pblk, offset = self._locate(ino)
        block = self._buffers.get(pblk, RawBlock, _table_block)
        return self._decode(ino, bytes(block.data[offset : offset + geo.inode_size]), pblk, offset)

    def _decode(self, ino: int, raw: bytes, pblk: int, offset: int) -> Inode:
        inode = decode_inode(ino, raw, self._geometry.block_size)
        if self._metadata_csum:
            self._set_seed(inode)
            if not checksum.inode_matches(raw, inode.seed):
                checksum.verify_inode(raw, inode.seed, f"inode {ino} (block {pblk}, byte {offset})")
        return inode

    def _set_seed(self, inode: Inode) -> None:
        if self._metadata_csum:
            inode.seed = checksum.inode_seed(self._seed, inode.ino, inode.generation)

    def preload(self, ino: int) -> None:
        """Have the block of the table in memory that an inode belongs to. Raises Corrupt, DeviceError."""
        self._buffers.get(self._locate(ino)[0], RawBlock, _table_block)

    def _locate(self, ino: int) -> tuple[int, int]:
        geo = self._geometry
        group, index = geo.inode_location(ino)
        block, offset = geo.inode_block(index)
        return self._groups.desc(group).inode_table + block, offset

    def new(self, tx: Operation, ino: int, generation: int) -> Inode:
        """A fresh inode for a number just allocated; its old contents are not looked at. Raises DeviceError."""
        geo = self._geometry
        inode = Inode(ino, generation)
        inode.fresh = True
        self._set_seed(inode)
        if geo.inode_size > 128:
            inode.extra_isize = geo.want_extra_isize
            inode.ibody = bytes(geo.inode_size - 128 - inode.extra_isize)
            if inode.extra_isize >= 24:
                inode.crtime = tx.now
        pblk, _ = self._locate(ino)
        if self._buffers.peek(pblk) is None:
            # read errors belong here, not into the commit
            self._buffers.get(pblk, RawBlock, self._fresh_block if self._neighbours_free(ino) else _table_block)
        old = self._inodes.pop(ino, None)
        tx.on_abort(partial(self._put_back, ino, old))
        tx.touch(inode)
        self._inodes[ino] = inode
        return inode

    def _is_file(self, ino: int) -> bool:
        if ino in self._freed:
            return False
        pblk, offset = self._locate(ino)
        block = self._buffers.get(pblk, RawBlock, _table_block)
        data = block.data
        in_use = _LINKS.get(data, offset) and _MODE.get(data, offset)
        return bool(in_use and not _DTIME.get(data, offset))

    def _neighbours_free(self, ino: int) -> bool:
        """Whether no other inode of the table block is in use: then its bytes on disk mean nothing."""
        geo = self._geometry
        group, index = geo.inode_location(ino)
        per_block = geo.inodes_per_block
        first = index - index % per_block
        last = min(first + per_block, geo.inodes_per_group)
        bits = self._groups.inode_bitmap(group).bits
        return bits.count(True, first, last) == int(bits[index])

    def _fresh_block(self, pblk: int, _data: bytes) -> RawBlock:
        return RawBlock(pblk, bytes(self._geometry.block_size), None, RANK_INODE)

    def _put_back(self, ino: int, old: Inode | None) -> None:
        if old is None:
            self._inodes.pop(ino, None)
        else:
            self._inodes[ino] = old

    def drop(self, tx: Operation, inode: Inode) -> None:
        """The inode was freed: after this operation its number may become another file."""
        ino = inode.ino
        del self._inodes[ino]
        tx.on_abort(partial(self._inodes.__setitem__, ino, inode))
        if ino not in self._freed:
            self._freed.add(ino)
            tx.on_abort(partial(self._freed.discard, ino))

    def store(self, inode: Inode) -> RawBlock:
        """Encode a dirty inode into its table block, which is returned (used by the commit)."""
        geo = self._geometry
        pblk, offset = self._locate(inode.ino)
        block = self._buffers.get(pblk, RawBlock, _table_block)
        set_blocks_flags(inode)
        if not inode.is_value:
            inode.version = inode.version + 1 & 0xFFFFFFFFFFFFFFFF
        encode_inode(inode, block.data, offset, geo.inode_size, geo.block_size)
        inode.fresh = False
        self._freed.discard(inode.ino)
        if self._metadata_csum:
            checksum.stamp_inode(block.data, offset, geo.inode_size, inode.seed)
        return block

    def in_use(self) -> Iterator[Inode]:
        """Every inode that the bitmaps say is in use, not kept in memory. Raises Corrupt, BadChecksum, DeviceError."""
        geo = self._geometry
        for group in range(geo.groups):
            if self._groups.desc(group).free_inodes == geo.inodes_per_group:
                continue
            bits = self._groups.inode_bits(group)
            for index in bits[: geo.inodes_per_group].search(1):
                ino = group * geo.inodes_per_group + index + 1
                inode = self._inodes.get(ino)
                if inode is None:
                    pblk, offset = self._locate(ino)
                    block = self._buffers.peek(pblk)
                    raw = block.data if isinstance(block, RawBlock) else self._buffers.read(pblk)
                    inode = self._decode(ino, bytes(raw[offset : offset + geo.inode_size]), pblk, offset)
                yield inode

    def trim(self) -> None:
        """Drop clean inodes that nobody uses until an eighth of the limit is free again. Only between operations."""
        if len(self._inodes) > self._trim_at:
            self._drop_down_to(self._limit - self._limit // 8)
            self._trim_at = max(self._limit, len(self._inodes) + self._limit // 8)

    def shrink(self, part: float) -> None:
        """Drop clean inodes that nobody uses until ``part`` of all is left (0 to 1). Only between operations."""
        target = int(len(self._inodes) * part)
        self._drop_down_to(target)
        self._drop_down_to(target)  # those that were in use lately have had their second chance

    def _drop_down_to(self, target: int) -> None:
        dirty = self._transactions.running.dirty
        for ino in list(self._inodes):
            if len(self._inodes) <= target:
                break
            inode = self._inodes[ino]
            if inode in dirty or any(ino in holder for holder in self.holders):
                continue
            if inode.recent:
                inode.recent = False
                self._inodes[ino] = self._inodes.pop(ino)
            else:
                del self._inodes[ino]

    def __len__(self) -> int:
        return len(self._inodes)


def _table_block(pblk: int, data: bytes) -> RawBlock:
    return RawBlock(pblk, data, None, RANK_INODE)


