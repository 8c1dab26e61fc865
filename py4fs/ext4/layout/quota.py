"""Quota files (quota-tools' vfsv1 format; the kernel's fs/quota/quotaio_v2.h and quota_tree.h). All little-endian.

Their blocks are 1 KiB whatever the file system's are. Block 0 has header and info, block 1 is the root of a tree that
takes an id byte by byte, the most significant first, to a block of entries.
"""

from __future__ import annotations

from typing import Final

from construct import Int16ul, Int32ul, Int64ul, Struct

from py4fs.ext4.layout.codec import derive

QuotaHeader = Struct(
    "dqh_magic" / Int32ul,
    "dqh_version" / Int32ul,
)

QuotaInfo = Struct(
    "dqi_bgrace" / Int32ul,  # seconds
    "dqi_igrace" / Int32ul,  # seconds
    "dqi_flags" / Int32ul,
    "dqi_blocks" / Int32ul,
    "dqi_free_blk" / Int32ul,
    "dqi_free_entry" / Int32ul,
)

QuotaBlockHeader = Struct(
    "dqdh_next_free" / Int32ul,
    "dqdh_prev_free" / Int32ul,
    "dqdh_entries" / Int16ul,
    "dqdh_pad1" / Int16ul,
    "dqdh_pad2" / Int32ul,
)

QuotaEntry = Struct(
    "dqb_id" / Int32ul,
    "dqb_pad" / Int32ul,
    "dqb_ihardlimit" / Int64ul,
    "dqb_isoftlimit" / Int64ul,
    "dqb_curinodes" / Int64ul,
    "dqb_bhardlimit" / Int64ul,  # units of 1 KiB
    "dqb_bsoftlimit" / Int64ul,  # units of 1 KiB
    "dqb_curspace" / Int64ul,  # bytes
    "dqb_btime" / Int64ul,  # seconds since the epoch: when the grace for space ends
    "dqb_itime" / Int64ul,
)

QUOTA_HEADER: Final = derive(QuotaHeader, "QuotaHeader")
QUOTA_INFO: Final = derive(QuotaInfo, "QuotaInfo")
QUOTA_BLOCK_HEADER: Final = derive(QuotaBlockHeader, "QuotaBlockHeader")
QUOTA_ENTRY: Final = derive(QuotaEntry, "QuotaEntry")

QUOTA_MAGIC: Final = (0xD9C01F11, 0xD9C01927, 0xD9C03F14)  # user, group, project
QUOTA_VERSION: Final = 1
QUOTA_BLOCK_SIZE: Final = 1024
QUOTA_DEPTH: Final = 4
