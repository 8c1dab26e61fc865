"""The end of a block of the orphan file (ext4 docs: Orphan file). Before it: inode numbers, 32 bits each, 0 is free."""

from __future__ import annotations

from typing import Final

from construct import Int32ul, Struct

from py4fs.ext4.layout.codec import derive

OrphanBlockTail = Struct(
    "ob_magic" / Int32ul,
    "ob_checksum" / Int32ul,
)

ORPHAN_BLOCK_TAIL: Final = derive(OrphanBlockTail, "OrphanBlockTail")

EXT4_ORPHAN_BLOCK_MAGIC: Final = 0x0B10CA04
