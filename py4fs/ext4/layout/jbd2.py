"""The journal: superblock, block header, descriptor tags, tails, commit and revoke blocks (ext4 docs: Journal).

jbd2 is big-endian throughout.
"""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from py4fs.ext4.layout.codec import derive

BlockHeader = Struct(
    "h_magic" / Int32ub,
    "h_blocktype" / Int32ub,
    "h_sequence" / Int32ub,
)
JournalSuperblock = Struct(
    *BlockHeader.subcons,
    "s_blocksize" / Int32ub,
    "s_maxlen" / Int32ub,
    "s_first" / Int32ub,
    "s_sequence" / Int32ub,
    "s_start" / Int32ub,
    "s_errno" / Int32ub,
    # Only in a version 2 superblock from here on.
    "s_feature_compat" / Int32ub,
    "s_feature_incompat" / Int32ub,
    "s_feature_ro_compat" / Int32ub,
    "s_uuid" / Bytes(16),
    "s_nr_users" / Int32ub,
    "s_dynsuper" / Int32ub,
    "s_max_transaction" / Int32ub,
    "s_max_trans_data" / Int32ub,
    "s_checksum_type" / Int8ub,
    "s_padding2" / Bytes(3),
    "s_num_fc_blks" / Int32ub,
    "s_head" / Int32ub,
    "s_padding" / Bytes(160),
    "s_checksum" / Int32ub,
    "s_users" / Bytes(768),
)
# A descriptor block is a header, then tags. Without checksum v3 a tag has t_blocknr_high only in a 64-bit journal,
# and 2 bytes of padding behind it with checksum v2.
BlockTag = Struct(
    "t_blocknr" / Int32ub,
    "t_checksum" / Int16ub,
    "t_flags" / Int16ub,
    "t_blocknr_high" / Int32ub,
)
# With checksum v3 all fields are there in any journal.
BlockTag3 = Struct(
    "t_blocknr" / Int32ub,
    "t_flags" / Int32ub,
    "t_blocknr_high" / Int32ub,
    "t_checksum" / Int32ub,
)
# The last bytes of descriptor and revoke blocks with checksum v2 and v3.
BlockTail = Struct("t_checksum" / Int32ub)
CommitHeader = Struct(
    *BlockHeader.subcons,
    "h_chksum_type" / Int8ub,
    "h_chksum_size" / Int8ub,
    "h_padding" / Bytes(2),
    "h_chksum" / Int32ub,  # h_chksum[0]; the other seven are unused
    "h_chksum_rest" / Bytes(28),
    "h_commit_sec" / Int64ub,
    "h_commit_nsec" / Int32ub,
)
# r_count: bytes used in the block, this header included. Then block numbers of 4 bytes, 8 in a 64-bit journal.
RevokeHeader = Struct(
    *BlockHeader.subcons,
    "r_count" / Int32ub,
)

BLOCK_HEADER: Final = derive(BlockHeader, "BlockHeader")
BLOCK_TAG: Final = derive(BlockTag, "BlockTag")
BLOCK_TAG_3: Final = derive(BlockTag3, "BlockTag3")
BLOCK_TAIL: Final = derive(BlockTail, "BlockTail")
COMMIT_HEADER: Final = derive(CommitHeader, "CommitHeader")
REVOKE_HEADER: Final = derive(RevokeHeader, "RevokeHeader")
JOURNAL_SUPERBLOCK: Final = derive(JournalSuperblock, "JournalSuperblock")

JBD2_MAGIC_NUMBER: Final = 0xC03B3998

# h_blocktype
JBD2_DESCRIPTOR_BLOCK: Final = 1
JBD2_COMMIT_BLOCK: Final = 2
JBD2_SUPERBLOCK_V1: Final = 3
JBD2_SUPERBLOCK_V2: Final = 4
JBD2_REVOKE_BLOCK: Final = 5

# t_flags
JBD2_FLAG_ESCAPE: Final = 1
"""The block began with the journal's magic number, which is zeroed in the log."""
JBD2_FLAG_SAME_UUID: Final = 2
"""No 16 bytes of UUID follow the tag."""
JBD2_FLAG_DELETED: Final = 4
JBD2_FLAG_LAST_TAG: Final = 8

# s_feature_compat
JBD2_FEATURE_COMPAT_CHECKSUM: Final = 0x00000001
# s_feature_incompat
JBD2_FEATURE_INCOMPAT_REVOKE: Final = 0x00000001
JBD2_FEATURE_INCOMPAT_64BIT: Final = 0x00000002
JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT: Final = 0x00000004
JBD2_FEATURE_INCOMPAT_CSUM_V2: Final = 0x00000008
JBD2_FEATURE_INCOMPAT_CSUM_V3: Final = 0x00000010
JBD2_FEATURE_INCOMPAT_FAST_COMMIT: Final = 0x00000020

# s_checksum_type
JBD2_CRC32_CHKSUM: Final = 1
JBD2_MD5_CHKSUM: Final = 2
JBD2_SHA1_CHKSUM: Final = 3
JBD2_CRC32C_CHKSUM: Final = 4
JBD2_CRC32_CHKSUM_SIZE: Final = 4

JBD2_MIN_JOURNAL_BLOCKS: Final = 1024
JBD2_DEFAULT_FAST_COMMIT_BLOCKS: Final = 256
"""What s_num_fc_blks 0 means."""
