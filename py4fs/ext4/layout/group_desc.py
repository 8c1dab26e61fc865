"""Block group descriptors, 32 or 64 bytes (ext4 docs: Block Group Descriptors)."""

from __future__ import annotations

from typing import Final

from construct import Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

GroupDesc32 = Struct(
    "bg_block_bitmap_lo" / Int32ul,
    "bg_inode_bitmap_lo" / Int32ul,
    "bg_inode_table_lo" / Int32ul,
    "bg_free_blocks_count_lo" / Int16ul,
    "bg_free_inodes_count_lo" / Int16ul,
    "bg_used_dirs_count_lo" / Int16ul,
    "bg_flags" / Int16ul,
    "bg_exclude_bitmap_lo" / Int32ul,
    "bg_block_bitmap_csum_lo" / Int16ul,
    "bg_inode_bitmap_csum_lo" / Int16ul,
    "bg_itable_unused_lo" / Int16ul,
    "bg_checksum" / Int16ul,
)

GroupDesc64 = Struct(
    *GroupDesc32.subcons,
    "bg_block_bitmap_hi" / Int32ul,
    "bg_inode_bitmap_hi" / Int32ul,
    "bg_inode_table_hi" / Int32ul,
    "bg_free_blocks_count_hi" / Int16ul,
    "bg_free_inodes_count_hi" / Int16ul,
    "bg_used_dirs_count_hi" / Int16ul,
    "bg_itable_unused_hi" / Int16ul,
    "bg_exclude_bitmap_hi" / Int32ul,
    "bg_block_bitmap_csum_hi" / Int16ul,
    "bg_inode_bitmap_csum_hi" / Int16ul,
    "bg_reserved" / Int32ul,
)

GROUP_DESC_32: Final = derive(GroupDesc32, "GroupDesc32")
GROUP_DESC_64: Final = derive(GroupDesc64, "GroupDesc64")

EXT4_MIN_DESC_SIZE: Final = 32
EXT4_MIN_DESC_SIZE_64BIT: Final = 64

# bg_flags
BG_INODE_UNINIT: Final = 0x0001
"""The inode bitmap and table are not in use."""
BG_BLOCK_UNINIT: Final = 0x0002
"""The block bitmap is not initialised."""
BG_INODE_ZEROED: Final = 0x0004
"""The inode table is zeroed on disk."""
