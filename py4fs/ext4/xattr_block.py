"""Blocks of extended attributes: one in memory, and which ones may be shared (ext4 docs: Extended Attributes)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import MetaBlock
from py4fs.ext4.layout.xattr import EXT4_XATTR_MAGIC, EXT4_XATTR_REFCOUNT_MAX, XATTR_HEADER
from py4fs.ext4.xattr_region import Xattrs, block_hash, build, parse

KNOWN_HASHES: Final = 4096
BLOCKS_PER_HASH: Final = 8


class XattrBlock(MetaBlock):
    """An attribute block, shared by `refcount` inodes."""

    __slots__ = ("attrs", "refcount", "seed", "size")

    def __init__(self, pblk: int, size: int, seed: int | None, refcount: int, attrs: Xattrs) -> None:
        super().__init__(pblk)
        self.size = size
        self.seed = seed
        self.refcount = refcount
        self.attrs = attrs

    @classmethod
    def load(cls, pblk: int, raw: bytes, seed: int | None) -> XattrBlock:
        """Raises BadChecksum, Corrupt, UnsupportedFeature."""
        where = f"block {pblk}"
        head = XATTR_HEADER.unpack_from(raw)
        if head.h_magic != EXT4_XATTR_MAGIC:
            raise Corrupt("xattr block magic", where, f"{head.h_magic:#x}", f"{EXT4_XATTR_MAGIC:#x}")
        if seed is not None:
            checksum.verify_xattr_block(raw, seed, pblk)
        if head.h_blocks != 1:
            raise Corrupt("xattr block h_blocks", where, head.h_blocks, 1)
        if not 0 < head.h_refcount <= EXT4_XATTR_REFCOUNT_MAX:
            raise Corrupt("xattr block h_refcount", where, head.h_refcount, f"1..{EXT4_XATTR_REFCOUNT_MAX}")
        return cls(pblk, len(raw), seed, head.h_refcount, parse(raw, XATTR_HEADER.size, 0, f"xattr {where}"))

    def encode(self) -> bytearray:
        head = XATTR_HEADER.pack(EXT4_XATTR_MAGIC, self.refcount, 1, block_hash(self.attrs), 0, bytes(12))
        raw = bytearray(build(self.attrs, head, self.size, 0))
        if self.seed is not None:
            checksum.set_xattr_block(raw, self.seed, self.pblk)
        return raw

    def save(self) -> tuple[int, Xattrs]:
        return self.refcount, self.attrs

    def restore(self, state: tuple[int, Xattrs]) -> None:
        self.refcount, self.attrs = state


class SharedBlocks:
    """Blocks seen, by h_hash: hints where one with the same attributes may be. Every hit is checked by the user."""

    def __init__(self) -> None:
        self._by_hash: OrderedDict[int, list[int]] = OrderedDict()

    def add(self, key: int, pblk: int) -> None:
        """Note a block; `key`: its hash."""
        if not key:
            return
        pblks = self._by_hash.setdefault(key, [])
        self._by_hash.move_to_end(key)
        if pblk not in pblks:
            pblks.append(pblk)
            del pblks[:-BLOCKS_PER_HASH]
        if len(self._by_hash) > KNOWN_HASHES:
            self._by_hash.popitem(last=False)

    def discard(self, key: int, pblk: int) -> None:
        pblks = self._by_hash.get(key)
        if pblks is not None and pblk in pblks:
            pblks.remove(pblk)
            if not pblks:
                del self._by_hash[key]

    def candidates(self, attrs: Xattrs) -> list[int]:
        """Newest first."""
        key = block_hash(attrs)
        return self._by_hash.get(key, [])[::-1] if key else []
