"""The journal's superblock and block header (ext4 docs: Journal). jbd2 is big-endian throughout."""

from __future__ import annotations

from construct import Bytes, Int8ub, Int32ub, Struct

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

BLOCK_HEADER = derive(BlockHeader, "BlockHeader")
JOURNAL_SUPERBLOCK = derive(JournalSuperblock, "JournalSuperblock")

JBD2_MAGIC_NUMBER = 0xC03B3998

# h_blocktype
JBD2_DESCRIPTOR_BLOCK = 1
JBD2_COMMIT_BLOCK = 2
JBD2_SUPERBLOCK_V1 = 3
JBD2_SUPERBLOCK_V2 = 4
JBD2_REVOKE_BLOCK = 5

# s_feature_compat
JBD2_FEATURE_COMPAT_CHECKSUM = 0x00000001
# s_feature_incompat
JBD2_FEATURE_INCOMPAT_REVOKE = 0x00000001
JBD2_FEATURE_INCOMPAT_64BIT = 0x00000002
JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT = 0x00000004
JBD2_FEATURE_INCOMPAT_CSUM_V2 = 0x00000008
JBD2_FEATURE_INCOMPAT_CSUM_V3 = 0x00000010
JBD2_FEATURE_INCOMPAT_FAST_COMMIT = 0x00000020

# s_checksum_type
JBD2_CRC32_CHKSUM = 1
JBD2_MD5_CHKSUM = 2
JBD2_SHA1_CHKSUM = 3
JBD2_CRC32C_CHKSUM = 4
