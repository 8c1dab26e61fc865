"""The multiple mount protection block (ext4 docs: Multiple Mount Protection)."""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int16ul, Int32ul, Int64ul, Struct

from py4fs.ext4.layout.codec import derive

MmpBlock = Struct(
    "mmp_magic" / Int32ul,
    "mmp_seq" / Int32ul,
    "mmp_time" / Int64ul,  # seconds since the epoch
    "mmp_nodename" / Bytes(64),
    "mmp_bdevname" / Bytes(32),
    "mmp_check_interval" / Int16ul,  # seconds
    "mmp_pad1" / Int16ul,
    "mmp_pad2" / Bytes(226 * 4),
    "mmp_checksum" / Int32ul,
)

MMP_BLOCK: Final = derive(MmpBlock, "MmpBlock")

EXT4_MMP_MAGIC: Final = 0x004D4D50
EXT4_MMP_SEQ_CLEAN: Final = 0xFF4D4D50  # nobody has it
EXT4_MMP_SEQ_FSCK: Final = 0xE24D4D50  # e2fsck is at work
EXT4_MMP_SEQ_MAX: Final = 0xE24D4D4F  # the largest number of somebody who has it

EXT4_MMP_UPDATE_INTERVAL: Final = 5  # seconds
EXT4_MMP_MIN_CHECK_INTERVAL: Final = 5
EXT4_MMP_MAX_CHECK_INTERVAL: Final = 300
EXT4_MMP_CHECK_MULT: Final = 2
