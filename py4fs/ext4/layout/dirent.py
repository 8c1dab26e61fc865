"""Linear directory entries and the checksum tail of a leaf (ext4 docs: Directory Entries)."""

from __future__ import annotations

from typing import Final

from construct import Int8ul, Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

# With INCOMPAT_FILETYPE.
DirEntry2 = Struct(
    "inode" / Int32ul,
    "rec_len" / Int16ul,
    "name_len" / Int8ul,
    "file_type" / Int8ul,
)
# Without it.
DirEntry = Struct(
    "inode" / Int32ul,
    "rec_len" / Int16ul,
    "name_len" / Int16ul,
)
# The last 12 bytes of every leaf with metadata_csum; looks like an unused entry.
DirEntryTail = Struct(
    "det_reserved_zero1" / Int32ul,
    "det_rec_len" / Int16ul,
    "det_reserved_zero2" / Int8ul,
    "det_reserved_ft" / Int8ul,
    "det_checksum" / Int32ul,
)

DIR_ENTRY_2: Final = derive(DirEntry2, "DirEntry2")
DIR_ENTRY: Final = derive(DirEntry, "DirEntry")
DIR_ENTRY_TAIL: Final = derive(DirEntryTail, "DirEntryTail")

EXT4_NAME_LEN: Final = 255
EXT4_DIR_ROUND: Final = 3
EXT4_FT_DIR_CSUM: Final = 0xDE

EXT4_FT_UNKNOWN: Final = 0
EXT4_FT_REG_FILE: Final = 1
EXT4_FT_DIR: Final = 2
EXT4_FT_CHRDEV: Final = 3
EXT4_FT_BLKDEV: Final = 4
EXT4_FT_FIFO: Final = 5
EXT4_FT_SOCK: Final = 6
EXT4_FT_SYMLINK: Final = 7
EXT4_FT_MAX: Final = 8

_MODE_TO_FT: Final = {
    0x8000: EXT4_FT_REG_FILE,
    0x4000: EXT4_FT_DIR,
    0x2000: EXT4_FT_CHRDEV,
    0x6000: EXT4_FT_BLKDEV,
    0x1000: EXT4_FT_FIFO,
    0xC000: EXT4_FT_SOCK,
    0xA000: EXT4_FT_SYMLINK,
}
_FT_TO_MODE: Final = {ft: mode for mode, ft in _MODE_TO_FT.items()}

_MAX_REC_LEN: Final = 65535


def dirent_size(name_len: int) -> int:
    """Bytes that an entry with a name of `name_len` bytes needs (a multiple of 4)."""
    return (8 + name_len + EXT4_DIR_ROUND) & ~EXT4_DIR_ROUND


def mode_to_ft(mode: int) -> int:
    """The file_type of an i_mode; EXT4_FT_UNKNOWN for no known type."""
    return _MODE_TO_FT.get(mode & 0xF000, EXT4_FT_UNKNOWN)


def ft_to_mode(ft: int) -> int:
    """The type bits of i_mode for a file_type; 0 for an unknown one."""
    return _FT_TO_MODE.get(ft, 0)


def rec_len_from_disk(raw: int, block_size: int) -> int:
    """Bytes of an entry from its rec_len field: 64 KiB blocks need 17 bits, kept in the two low bits."""
    if block_size < 65536:
        return raw
    if raw in (_MAX_REC_LEN, 0):
        return block_size
    return (raw & 65532) | ((raw & 3) << 16)


def rec_len_to_disk(length: int, block_size: int) -> int:
    """The rec_len field for an entry of `length` bytes, a multiple of 4 up to `block_size`."""
    assert 0 < length <= block_size <= 1 << 18 and not length & 3, length
    if length < 65536:
        return length
    if length == block_size:
        return _MAX_REC_LEN if block_size == 65536 else 0
    return (length & 65532) | ((length >> 16) & 3)
