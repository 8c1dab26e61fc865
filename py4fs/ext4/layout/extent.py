"""Extent trees (ext4 docs: Extent Tree)."""

from __future__ import annotations

from typing import Final

from construct import Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

ExtentHeader = Struct(
    "eh_magic" / Int16ul,
    "eh_entries" / Int16ul,
    "eh_max" / Int16ul,
    "eh_depth" / Int16ul,
    "eh_generation" / Int32ul,
)
ExtentIndex = Struct(
    "ei_block" / Int32ul,
    "ei_leaf_lo" / Int32ul,
    "ei_leaf_hi" / Int16ul,
    "ei_unused" / Int16ul,
)
Extent = Struct(
    "ee_block" / Int32ul,
    "ee_len" / Int16ul,
    "ee_start_hi" / Int16ul,
    "ee_start_lo" / Int32ul,
)
# Behind the last possible entry of a node that is a block: at 12 + 12 * eh_max.
ExtentTail = Struct("et_checksum" / Int32ul)

EXTENT_HEADER: Final = derive(ExtentHeader, "ExtentHeader")
EXTENT_INDEX: Final = derive(ExtentIndex, "ExtentIndex")
EXTENT: Final = derive(Extent, "Extent")
EXTENT_TAIL: Final = derive(ExtentTail, "ExtentTail")

EXTENT_MAGIC: Final = 0xF30A
EXT_MAX_DEPTH: Final = 5
"""The deepest tree that can be needed (EXT4_MAX_EXTENT_DEPTH)."""

EXT_INIT_MAX_LEN: Final = 32768
"""ee_len up to this is a written extent of that many blocks; 0x8000 itself is written."""
EXT_UNWRITTEN_MAX_LEN: Final = 32767
"""ee_len above EXT_INIT_MAX_LEN is an unwritten extent of ee_len - 32768 blocks, at most this."""

EXT_MAX_BLOCKS: Final = 0xFFFFFFFF
"""The first logical block that cannot be mapped."""
