"""Hash trees of directories: root, inner node, tail (ext4 docs: Hash Tree Directories).

A dx block is a sequence of `DxEntry`; the first entry's hash is overlaid by `DxCountLimit`
(its block is the one for all hashes below the second entry's). The tail lies right behind the
`limit`-th entry.
"""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

DxRootInfo = Struct(
    "reserved_zero" / Int32ul,
    "hash_version" / Int8ul,
    "info_length" / Int8ul,
    "indirect_levels" / Int8ul,
    "unused_flags" / Int8ul,
)
DxRoot = Struct(
    "dot_inode" / Int32ul,
    "dot_rec_len" / Int16ul,
    "dot_name_len" / Int8ul,
    "dot_file_type" / Int8ul,
    "dot_name" / Bytes(4),
    "dotdot_inode" / Int32ul,
    "dotdot_rec_len" / Int16ul,
    "dotdot_name_len" / Int8ul,
    "dotdot_file_type" / Int8ul,
    "dotdot_name" / Bytes(4),
    *DxRootInfo.subcons,
)
# The head of an inner node: one unused directory entry over the whole block.
DxNode = Struct(
    "fake_inode" / Int32ul,
    "fake_rec_len" / Int16ul,
    "fake_name_len" / Int8ul,
    "fake_file_type" / Int8ul,
)
DxEntry = Struct("hash" / Int32ul, "block" / Int32ul)
DxCountLimit = Struct("limit" / Int16ul, "count" / Int16ul)
DxTail = Struct("dt_reserved" / Int32ul, "dt_checksum" / Int32ul)

DX_ROOT_INFO: Final = derive(DxRootInfo, "DxRootInfo")
DX_ROOT: Final = derive(DxRoot, "DxRoot")
DX_NODE: Final = derive(DxNode, "DxNode")
DX_ENTRY: Final = derive(DxEntry, "DxEntry")
DX_COUNT_LIMIT: Final = derive(DxCountLimit, "DxCountLimit")
DX_TAIL: Final = derive(DxTail, "DxTail")

DX_ROOT_INFO_OFFSET: Final = 24
"""Byte offset of DxRootInfo in the root block."""
DX_ROOT_ENTRIES_OFFSET: Final = 32
"""Byte offset of the entries (and DxCountLimit) in the root block, when info_length is 8."""
DX_NODE_ENTRIES_OFFSET: Final = 8
"""Byte offset of the entries (and DxCountLimit) in an inner node."""

# hash_version on disk; unsigned variants are in-memory only on what mke2fs makes, but allowed on disk
DX_HASH_LEGACY: Final = 0
DX_HASH_HALF_MD4: Final = 1
DX_HASH_TEA: Final = 2
DX_HASH_LEGACY_UNSIGNED: Final = 3
DX_HASH_HALF_MD4_UNSIGNED: Final = 4
DX_HASH_TEA_UNSIGNED: Final = 5
DX_HASH_SIPHASH: Final = 6

DX_MAX_LEVELS: Final = 2
"""indirect_levels is below this (3 with INCOMPAT_LARGEDIR)."""
DX_BLOCK_MASK: Final = 0x0FFFFFFF
"""The part of DxEntry.block that is the logical block."""
