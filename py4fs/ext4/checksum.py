"""All metadata checksums: compute, verify, set (ext4 docs: Checksums).

metadata_csum is crc32c without the usual inversions, gdt_csum a crc16 over group descriptors only. `verify_*`
raises BadChecksum naming `where`; `set_*` stamps a bytearray in place. Every structure is passed as exactly
its own bytes (a block, an inode of s_inode_size bytes, a descriptor of s_desc_size bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import google_crc32c

from py4fs.errors import BadChecksum, Corrupt
from py4fs.ext4.features import Features, Incompat
from py4fs.ext4.layout.dirent import DIR_ENTRY_TAIL, EXT4_FT_DIR_CSUM
from py4fs.ext4.layout.extent import EXTENT, EXTENT_HEADER, EXTENT_TAIL
from py4fs.ext4.layout.group_desc import GROUP_DESC_32, GROUP_DESC_64
from py4fs.ext4.layout.htree import DX_ENTRY, DX_TAIL
from py4fs.ext4.layout.inode import INODE, INODE_EXTRA
from py4fs.ext4.layout.mmp import MMP_BLOCK
from py4fs.ext4.layout.orphan import ORPHAN_BLOCK_TAIL
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.ext4.layout.xattr import XATTR_HEADER

if TYPE_CHECKING:
    from typing_extensions import Buffer

_M: Final = 0xFFFFFFFF
_U16: Final = Struct("<H")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_extend: Final = google_crc32c.extend

_SB_CSUM: Final = SUPERBLOCK.offsets["s_checksum"]
_GD_CSUM: Final = GROUP_DESC_32.offsets["bg_checksum"]
_BLOCK_CSUM_HI_END: Final = GROUP_DESC_64.offsets["bg_block_bitmap_csum_hi"] + 2
_INODE_CSUM_HI_END: Final = GROUP_DESC_64.offsets["bg_inode_bitmap_csum_hi"] + 2
_I_LO: Final = INODE.offsets["l_i_checksum_lo"]
_I_HI: Final = INODE.size + INODE_EXTRA.offsets["i_checksum_hi"]
_CHECKSUM_LO: Final = INODE.field("l_i_checksum_lo")
_CHECKSUM_HI: Final = INODE_EXTRA.field("i_checksum_hi")
_I_HI_END_EXTRA: Final = INODE_EXTRA.offsets["i_checksum_hi"] + 2
_EXTRA_ISIZE: Final = INODE_EXTRA.field("i_extra_isize")
_ET_CSUM: Final = EXTENT_TAIL.offsets["et_checksum"]
_DET_CSUM: Final = DIR_ENTRY_TAIL.offsets["det_checksum"]
_DT_CSUM: Final = DX_TAIL.offsets["dt_checksum"]
_XA_CSUM: Final = XATTR_HEADER.offsets["h_checksum"]
_MMP_CSUM: Final = MMP_BLOCK.offsets["mmp_checksum"]
_OB_CSUM: Final = ORPHAN_BLOCK_TAIL.offsets["ob_checksum"]
_EH_MAX: Final = EXTENT_HEADER.offsets["eh_max"]


def crc32c(seed: int, *parts: bytes) -> int:
    """ext4's crc32c: continues from `seed` (~0 to begin), no final inversion."""
    crc = seed ^ _M
    for part in parts:
        crc = _extend(crc, part)
    return int(crc) ^ _M


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


_CRC16: Final = _crc16_table()


def crc16(seed: int, *parts: bytes) -> int:
    """CRC-16 (polynomial 0x8005, reflected), continuing from `seed` (0xFFFF to begin)."""
    table = _CRC16
    for part in parts:
        for byte in part:
            seed = seed >> 8 ^ table[(seed ^ byte) & 0xFF]
    return seed


def _need(raw: Buffer, length: int, kind: str, where: str) -> None:
    have = memoryview(raw).nbytes
    if have < length:
        raise Corrupt(kind, where, f"{have} bytes", f"{length} bytes")


def _compare(kind: str, where: str, got: int, want: int, digits: int = 8) -> None:
    if got != want:
        raise BadChecksum(f"{kind} checksum", where, f"{got:#0{digits + 2}x}", f"{want:#0{digits + 2}x}")


# Superblock


def superblock_csum(raw: Buffer) -> int:
    """s_checksum of a superblock (1024 bytes)."""
    _need(raw, SUPERBLOCK.size, "superblock", "byte 1024")
    return crc32c(_M, bytes(memoryview(raw)[:_SB_CSUM]))


def verify_superblock(raw: Buffer, where: str = "byte 1024") -> None:
    """Check s_checksum; only for file systems with metadata_csum."""
    want = superblock_csum(raw)
    _compare("superblock", where, SUPERBLOCK.get(raw, 0, "s_checksum"), want)


def set_superblock(raw: bytearray) -> None:
    """Stamp s_checksum."""
    _U32.pack_into(raw, _SB_CSUM, superblock_csum(raw))


def fs_seed(uuid: bytes, checksum_seed: int | None = None) -> int:
    """What the file system's checksums start from: s_checksum_seed if stored, else the UUID's crc32c."""
    return crc32c(_M, uuid) if checksum_seed is None else checksum_seed


def superblock_seed(sb: Any) -> int:
    """`fs_seed` of a superblock record."""
    stored = sb.s_feature_incompat & Incompat.CSUM_SEED
    return fs_seed(sb.s_uuid, sb.s_checksum_seed if stored else None)


# Group descriptors


def group_desc_csum(raw: Buffer, group: int, seed: int) -> int:
    """bg_checksum with metadata_csum of one descriptor (all s_desc_size bytes); `seed`: the file system's."""
    data = bytes(raw)
    _need(data, GROUP_DESC_32.size, "group descriptor", f"group {group}")
    return crc32c(seed, _U32.pack(group), data[:_GD_CSUM], b"\0\0", data[_GD_CSUM + 2 :]) & 0xFFFF


def group_desc_crc16(raw: Buffer, group: int, seed: int) -> int:
    """bg_checksum with gdt_csum of one descriptor (all its s_desc_size bytes); `seed`: crc16 of the UUID."""
    data = bytes(raw)
    _need(data, GROUP_DESC_32.size, "group descriptor", f"group {group}")
    return crc16(seed, _U32.pack(group), data[:_GD_CSUM], data[_GD_CSUM + 2 :])


@dataclass(frozen=True, slots=True)
class GroupDescChecksum:
    """The kind of descriptor checksum that a file system has; with neither kind, both methods do nothing."""

    compute: Any  # (raw, group, seed) -> int, or None
    seed: int

    @classmethod
    def of(cls, sb: Any) -> GroupDescChecksum:
        """From a superblock record."""
        features = Features.of(sb)
        if features.metadata_csum:
            return cls(group_desc_csum, superblock_seed(sb))
        if features.gdt_csum:
            return cls(group_desc_crc16, crc16(0xFFFF, sb.s_uuid))
        return cls(None, 0)

    def verify(self, raw: Buffer, group: int) -> None:
        """Check bg_checksum of one descriptor (exactly s_desc_size bytes)."""
        if self.compute is not None:
            want = self.compute(raw, group, self.seed)
            got = GROUP_DESC_32.get(raw, 0, "bg_checksum")
            _compare("group descriptor", f"group {group}", got, want, 4)

    def set(self, raw: bytearray | memoryview, group: int) -> None:
        """Stamp bg_checksum of one descriptor (exactly s_desc_size bytes) in place."""
        if self.compute is not None:
            _U16.pack_into(raw, _GD_CSUM, self.compute(raw, group, self.seed))


# Bitmaps: the checksum is in the group descriptor


def bitmap_csum(raw: bytes, seed: int) -> tuple[int, int]:
    """(lo, hi) of a bitmap's checksum; `raw` is exactly blocks (or inodes) per group / 8 bytes."""
    crc = crc32c(seed, raw)
    return crc & 0xFFFF, crc >> 16


def has_block_bitmap_csum_hi(desc_size: int) -> bool:
    """Whether descriptors are large enough for bg_block_bitmap_csum_hi."""
    return desc_size >= _BLOCK_CSUM_HI_END


def has_inode_bitmap_csum_hi(desc_size: int) -> bool:
    """Whether descriptors are large enough for bg_inode_bitmap_csum_hi."""
    return desc_size >= _INODE_CSUM_HI_END


def verify_bitmap(raw: bytes, seed: int, lo: int, hi: int | None, where: str) -> None:
    """Check a bitmap (as for `bitmap_csum`) against its descriptor; `hi` is None in small descriptors."""
    want_lo, want_hi = bitmap_csum(raw, seed)
    if hi is None:
        _compare("bitmap", where, lo, want_lo, 4)
    else:
        _compare("bitmap", where, lo | hi << 16, want_lo | want_hi << 16)


# Inodes


def inode_seed(seed: int, ino: int, generation: int) -> int:
    """What checksums of this inode, its extents and its directory blocks start from."""
    return crc32c(seed, _U32.pack(ino) + _U32.pack(generation))


def _has_checksum_hi(block: bytes | bytearray, off: int, size: int) -> bool:
    """Whether i_checksum_hi is inside the i_extra_isize of the inode of ``size`` bytes at byte ``off``."""
    return size > INODE.size and bool(_EXTRA_ISIZE.get(block, off + INODE.size) >= _I_HI_END_EXTRA)


def inode_csum(raw: Buffer, seed: int) -> int:
    """The checksum of a whole inode (`s_inode_size` bytes); `seed` is the inode's.

    It has only 16 bits when the inode has no i_checksum_hi.
    """
    return _inode_csums(bytes(raw), seed)[1]


def verify_inode(raw: Buffer, seed: int, where: str) -> None:
    """Check an inode's checksum, of 16 or 32 bits as its size and i_extra_isize say."""
    data = bytes(raw)
    got, want = _inode_csums(data, seed)
    _compare("inode", where, got, want, 8 if _has_checksum_hi(data, 0, len(data)) else 4)


def inode_matches(raw: bytes, seed: int) -> bool:
    """Whether an inode's checksum is right: what `verify_inode` asks, without words for the answer."""
    got, want = _inode_csums(raw, seed)
    return got == want


def _inode_csums(data: bytes, seed: int) -> tuple[int, int]:
    """(stored, computed)"""
    _need(data, INODE.size if len(data) <= INODE.size else _I_HI + 2, "inode", "")
    got = _CHECKSUM_LO.get(data, 0)
    if _has_checksum_hi(data, 0, len(data)):
        got |= _CHECKSUM_HI.get(data, INODE.size) << 16
        return got, crc32c(seed, b"\0\0".join((data[:_I_LO], data[_I_LO + 2 : _I_HI], data[_I_HI + 2 :])))
    return got, crc32c(seed, data[:_I_LO] + b"\0\0" + data[_I_LO + 2 :]) & 0xFFFF


def set_inode(raw: bytearray, seed: int) -> None:
    """Stamp an inode's checksum."""
    _CHECKSUM_LO.put(raw, 0, 0)
    if _has_checksum_hi(raw, 0, len(raw)):
        _CHECKSUM_HI.put(raw, INODE.size, 0)
    stamp_inode(raw, 0, len(raw), seed)


def stamp_inode(block: bytearray, off: int, size: int, seed: int) -> None:
    """Stamp the checksum of the inode of ``size`` bytes at byte ``off``, where the fields for it are zero now."""
    crc = crc32c(seed, bytes(block[off : off + size]))
    _CHECKSUM_LO.put(block, off, crc & 0xFFFF)
    if _has_checksum_hi(block, off, size):
        _CHECKSUM_HI.put(block, off + INODE.size, crc >> 16)


# Extent tree nodes in blocks of their own


def _extent_tail(raw: Buffer, where: str) -> int:
    """Byte offset of the tail: behind the last possible entry."""
    tail: int = EXTENT_HEADER.size + EXTENT.size * EXTENT_HEADER.get(raw, 0, "eh_max")
    if tail + EXTENT_TAIL.size > memoryview(raw).nbytes:
        most = (memoryview(raw).nbytes - EXTENT_HEADER.size - EXTENT_TAIL.size) // EXTENT.size
        raise Corrupt("eh_max", where, EXTENT_HEADER.get(raw, 0, "eh_max"), f"at most {most}")
    return tail


def extent_block_csum(raw: Buffer, seed: int, where: str = "") -> int:
    """et_checksum of an extent tree block; `seed` is the inode's. Corrupt when eh_max is too large."""
    return crc32c(seed, bytes(memoryview(raw)[: _extent_tail(raw, where)]))


def verify_extent_block(raw: Buffer, seed: int, where: str) -> None:
    """Check et_checksum of an extent tree block."""
    want = extent_block_csum(raw, seed, where)
    got = EXTENT_TAIL.get(raw, _extent_tail(raw, where), "et_checksum")
    _compare("extent block", where, got, want)


def set_extent_block(raw: bytearray, seed: int) -> None:
    """Stamp et_checksum of an extent tree block."""
    _U32.pack_into(raw, _extent_tail(raw, "") + _ET_CSUM, extent_block_csum(raw, seed))


# Directory leaves


def dir_leaf_csum(raw: Buffer, seed: int) -> int:
    """det_checksum of a directory leaf (or linear block); `seed` is the inode's."""
    _need(raw, DIR_ENTRY_TAIL.size, "directory block", "")
    return crc32c(seed, bytes(memoryview(raw)[: -DIR_ENTRY_TAIL.size]))


def has_dir_tail(raw: Buffer) -> bool:
    """Whether the block ends in a checksum tail."""
    size = memoryview(raw).nbytes
    if size < DIR_ENTRY_TAIL.size:
        return False
    tail = DIR_ENTRY_TAIL.unpack_from(raw, size - DIR_ENTRY_TAIL.size)
    return bool(tail[:4] == (0, DIR_ENTRY_TAIL.size, 0, EXT4_FT_DIR_CSUM))


def init_dir_tail(raw: bytearray) -> None:
    """Write the tail of a new directory block (checksum still to be set)."""
    DIR_ENTRY_TAIL.pack_into(
        raw, len(raw) - DIR_ENTRY_TAIL.size, 0, DIR_ENTRY_TAIL.size, 0, EXT4_FT_DIR_CSUM, 0
    )


def verify_dir_leaf(raw: Buffer, seed: int, where: str) -> None:
    """Check the tail and det_checksum of a directory leaf; a missing tail is Corrupt."""
    if not has_dir_tail(raw):
        raise Corrupt("directory block tail", where, "no checksum tail", "one in the last 12 bytes")
    at = memoryview(raw).nbytes - DIR_ENTRY_TAIL.size
    _compare("directory block", where, DIR_ENTRY_TAIL.get(raw, at, "det_checksum"), dir_leaf_csum(raw, seed))


def set_dir_leaf(raw: bytearray, seed: int) -> None:
    """Stamp det_checksum of a directory leaf that has a tail."""
    assert has_dir_tail(raw), "directory block without a checksum tail"
    _U32.pack_into(raw, len(raw) - DIR_ENTRY_TAIL.size + _DET_CSUM, dir_leaf_csum(raw, seed))


# Hash tree nodes


def _dx_tail(raw: Buffer, count_offset: int, count: int, limit: int, where: str) -> int:
    """Byte offset of the tail: behind the last possible entry."""
    tail = count_offset + limit * DX_ENTRY.size
    if tail + DX_TAIL.size > memoryview(raw).nbytes or count > limit:
        room = (memoryview(raw).nbytes - count_offset - DX_TAIL.size) // DX_ENTRY.size
        raise Corrupt("htree node limit/count", where, f"{limit}/{count}", f"count <= limit <= {room}")
    return tail


def dx_node_csum(raw: Buffer, seed: int, count_offset: int, count: int, limit: int, where: str = "") -> int:
    """dt_checksum of a hash tree root or node; `count_offset` is the byte offset of DxCountLimit."""
    tail = _dx_tail(raw, count_offset, count, limit, where)
    used = count_offset + count * DX_ENTRY.size
    view = memoryview(raw)
    return crc32c(seed, bytes(view[:used]), bytes(view[tail : tail + _DT_CSUM]), b"\0\0\0\0")


def verify_dx_node(raw: Buffer, seed: int, count_offset: int, count: int, limit: int, where: str) -> None:
    """Check dt_checksum of a hash tree root or node; Corrupt when limit and count leave no room for it."""
    want = dx_node_csum(raw, seed, count_offset, count, limit, where)
    got = DX_TAIL.get(raw, count_offset + limit * DX_ENTRY.size, "dt_checksum")
    _compare("htree node", where, got, want)


def set_dx_node(raw: bytearray, seed: int, count_offset: int, count: int, limit: int) -> None:
    """Stamp dt_checksum of a hash tree root or node."""
    tail = _dx_tail(raw, count_offset, count, limit, "")
    _U32.pack_into(raw, tail + _DT_CSUM, dx_node_csum(raw, seed, count_offset, count, limit))


# Extended attribute blocks


def xattr_block_csum(raw: Buffer, seed: int, pblk: int) -> int:
    """h_checksum of an attribute block at physical block `pblk`; `seed` is the file system's."""
    _need(raw, XATTR_HEADER.size, "xattr block", f"block {pblk}")
    view = memoryview(raw)
    return crc32c(seed, _U64.pack(pblk), bytes(view[:_XA_CSUM]), b"\0\0\0\0", bytes(view[_XA_CSUM + 4 :]))


def verify_xattr_block(raw: Buffer, seed: int, pblk: int) -> None:
    """Check h_checksum of an attribute block."""
    want = xattr_block_csum(raw, seed, pblk)
    _compare("xattr block", f"block {pblk}", XATTR_HEADER.get(raw, 0, "h_checksum"), want)


def set_xattr_block(raw: bytearray, seed: int, pblk: int) -> None:
    """Stamp h_checksum of an attribute block."""
    _U32.pack_into(raw, _XA_CSUM, xattr_block_csum(raw, seed, pblk))


# Blocks of the orphan file


def orphan_block_csum(raw: Buffer, seed: int, pblk: int) -> int:
    """ob_checksum of a block of the orphan file at physical block `pblk`; `seed` is the orphan file's inode's."""
    _need(raw, ORPHAN_BLOCK_TAIL.size, "orphan file block", f"block {pblk}")
    return crc32c(seed, _U64.pack(pblk), bytes(memoryview(raw)[: -ORPHAN_BLOCK_TAIL.size]))


def verify_orphan_block(raw: Buffer, seed: int, pblk: int, where: str) -> None:
    """Check ob_checksum of a block of the orphan file."""
    want = orphan_block_csum(raw, seed, pblk)
    at = memoryview(raw).nbytes - ORPHAN_BLOCK_TAIL.size
    _compare("orphan file block", where, ORPHAN_BLOCK_TAIL.get(raw, at, "ob_checksum"), want)


def set_orphan_block(raw: bytearray, seed: int, pblk: int) -> None:
    """Stamp ob_checksum of a block of the orphan file."""
    _U32.pack_into(raw, len(raw) - ORPHAN_BLOCK_TAIL.size + _OB_CSUM, orphan_block_csum(raw, seed, pblk))


# The multiple mount protection block


def mmp_csum(raw: Buffer, seed: int) -> int:
    """mmp_checksum of the block's structure; `seed` is the file system's."""
    _need(raw, MMP_BLOCK.size, "mmp block", "")
    return crc32c(seed, bytes(memoryview(raw)[:_MMP_CSUM]))


def verify_mmp(raw: Buffer, seed: int, where: str) -> None:
    """Check mmp_checksum."""
    _compare("mmp block", where, MMP_BLOCK.get(raw, 0, "mmp_checksum"), mmp_csum(raw, seed))


def set_mmp(raw: bytearray, seed: int) -> None:
    """Stamp mmp_checksum."""
    _U32.pack_into(raw, _MMP_CSUM, mmp_csum(raw, seed))
