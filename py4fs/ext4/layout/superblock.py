"""The superblock: 1024 bytes at byte 1024 of the device (ext4 docs: Super Block)."""

from __future__ import annotations

import errno
from typing import Any, Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from py4fs.ext4.layout.codec import derive

SUPERBLOCK_OFFSET: Final = 1024
"""Byte offset of the primary superblock, whatever the block size."""

Superblock = Struct(
    "s_inodes_count" / Int32ul,
    "s_blocks_count_lo" / Int32ul,
    "s_r_blocks_count_lo" / Int32ul,
    "s_free_blocks_count_lo" / Int32ul,
    "s_free_inodes_count" / Int32ul,
    "s_first_data_block" / Int32ul,
    "s_log_block_size" / Int32ul,
    "s_log_cluster_size" / Int32ul,
    "s_blocks_per_group" / Int32ul,
    "s_clusters_per_group" / Int32ul,
    "s_inodes_per_group" / Int32ul,
    "s_mtime" / Int32ul,
    "s_wtime" / Int32ul,
    "s_mnt_count" / Int16ul,
    "s_max_mnt_count" / Int16ul,
    "s_magic" / Int16ul,
    "s_state" / Int16ul,
    "s_errors" / Int16ul,
    "s_minor_rev_level" / Int16ul,
    "s_lastcheck" / Int32ul,
    "s_checkinterval" / Int32ul,
    "s_creator_os" / Int32ul,
    "s_rev_level" / Int32ul,
    "s_def_resuid" / Int16ul,
    "s_def_resgid" / Int16ul,
    # Fields from here on mean something only with s_rev_level >= EXT4_DYNAMIC_REV.
    "s_first_ino" / Int32ul,
    "s_inode_size" / Int16ul,
    "s_block_group_nr" / Int16ul,
    "s_feature_compat" / Int32ul,
    "s_feature_incompat" / Int32ul,
    "s_feature_ro_compat" / Int32ul,
    "s_uuid" / Bytes(16),
    "s_volume_name" / Bytes(16),
    "s_last_mounted" / Bytes(64),
    "s_algorithm_usage_bitmap" / Int32ul,
    "s_prealloc_blocks" / Int8ul,
    "s_prealloc_dir_blocks" / Int8ul,
    "s_reserved_gdt_blocks" / Int16ul,
    "s_journal_uuid" / Bytes(16),
    "s_journal_inum" / Int32ul,
    "s_journal_dev" / Int32ul,
    "s_last_orphan" / Int32ul,
    "s_hash_seed" / Bytes(16),  # __le32[4]
    "s_def_hash_version" / Int8ul,
    "s_jnl_backup_type" / Int8ul,
    "s_desc_size" / Int16ul,
    "s_default_mount_opts" / Int32ul,
    "s_first_meta_bg" / Int32ul,
    "s_mkfs_time" / Int32ul,
    "s_jnl_blocks" / Bytes(68),  # __le32[17]: the journal inode's i_block, i_size_high, i_size
    "s_blocks_count_hi" / Int32ul,
    "s_r_blocks_count_hi" / Int32ul,
    "s_free_blocks_count_hi" / Int32ul,
    "s_min_extra_isize" / Int16ul,
    "s_want_extra_isize" / Int16ul,
    "s_flags" / Int32ul,
    "s_raid_stride" / Int16ul,
    "s_mmp_update_interval" / Int16ul,
    "s_mmp_block" / Int64ul,
    "s_raid_stripe_width" / Int32ul,
    "s_log_groups_per_flex" / Int8ul,
    "s_checksum_type" / Int8ul,
    "s_encryption_level" / Int8ul,
    "s_reserved_pad" / Int8ul,
    "s_kbytes_written" / Int64ul,
    "s_snapshot_inum" / Int32ul,
    "s_snapshot_id" / Int32ul,
    "s_snapshot_r_blocks_count" / Int64ul,
    "s_snapshot_list" / Int32ul,
    "s_error_count" / Int32ul,
    "s_first_error_time" / Int32ul,
    "s_first_error_ino" / Int32ul,
    "s_first_error_block" / Int64ul,
    "s_first_error_func" / Bytes(32),
    "s_first_error_line" / Int32ul,
    "s_last_error_time" / Int32ul,
    "s_last_error_ino" / Int32ul,
    "s_last_error_line" / Int32ul,
    "s_last_error_block" / Int64ul,
    "s_last_error_func" / Bytes(32),
    "s_mount_opts" / Bytes(64),
    "s_usr_quota_inum" / Int32ul,
    "s_grp_quota_inum" / Int32ul,
    "s_overhead_clusters" / Int32ul,
    "s_backup_bgs" / Bytes(8),  # __le32[2]
    "s_encrypt_algos" / Bytes(4),
    "s_encrypt_pw_salt" / Bytes(16),
    "s_lpf_ino" / Int32ul,
    "s_prj_quota_inum" / Int32ul,
    "s_checksum_seed" / Int32ul,
    "s_wtime_hi" / Int8ul,
    "s_mtime_hi" / Int8ul,
    "s_mkfs_time_hi" / Int8ul,
    "s_lastcheck_hi" / Int8ul,
    "s_first_error_time_hi" / Int8ul,
    "s_last_error_time_hi" / Int8ul,
    "s_first_error_errcode" / Int8ul,
    "s_last_error_errcode" / Int8ul,
    "s_encoding" / Int16ul,
    "s_encoding_flags" / Int16ul,
    "s_orphan_file_inum" / Int32ul,
    "s_def_resuid_hi" / Int16ul,
    "s_def_resgid_hi" / Int16ul,
    "s_reserved" / Bytes(372),
    "s_checksum" / Int32ul,
)
SUPERBLOCK: Final = derive(Superblock, "Superblock")

EXT4_MAGIC: Final = 0xEF53

EXT4_GOOD_OLD_REV: Final = 0
EXT4_DYNAMIC_REV: Final = 1
EXT4_GOOD_OLD_INODE_SIZE: Final = 128
EXT4_GOOD_OLD_FIRST_INO: Final = 11

# s_state
EXT4_VALID_FS: Final = 0x0001
EXT4_ERROR_FS: Final = 0x0002
EXT4_ORPHAN_FS: Final = 0x0004
EXT4_FC_REPLAY: Final = 0x0020

# s_first_error_errcode, s_last_error_errcode
EXT4_ERR_UNKNOWN: Final = 1
ERROR_CODES: Final = {
    errno.EIO: 2,
    errno.ENOMEM: 3,
    errno.EBADMSG: 4,
    errno.EUCLEAN: 5,
    errno.ENOSPC: 6,
    errno.EROFS: 8,
    errno.EFBIG: 9,
}

# s_errors
EXT4_ERRORS_CONTINUE: Final = 1
EXT4_ERRORS_RO: Final = 2
EXT4_ERRORS_PANIC: Final = 3

# s_creator_os
EXT4_OS_LINUX: Final = 0
EXT4_OS_HURD: Final = 1

# s_flags
EXT2_FLAGS_SIGNED_HASH: Final = 0x0001
EXT2_FLAGS_UNSIGNED_HASH: Final = 0x0002
EXT2_FLAGS_TEST_FILESYS: Final = 0x0004

# s_checksum_type
EXT4_CRC32C_CHKSUM: Final = 1

# s_default_mount_opts
EXT4_DEFM_DEBUG: Final = 0x0001
EXT4_DEFM_BSDGROUPS: Final = 0x0002
EXT4_DEFM_XATTR_USER: Final = 0x0004
EXT4_DEFM_ACL: Final = 0x0008
EXT4_DEFM_UID16: Final = 0x0010
EXT4_DEFM_JMODE: Final = 0x0060
EXT4_DEFM_NOBARRIER: Final = 0x0100
EXT4_DEFM_BLOCK_VALIDITY: Final = 0x0200
EXT4_DEFM_DISCARD: Final = 0x0400
EXT4_DEFM_NODELALLOC: Final = 0x0800

EXT4_MIN_BLOCK_LOG_SIZE: Final = 10
EXT4_MAX_BLOCK_LOG_SIZE: Final = 16
EXT4_MAX_CLUSTER_LOG_SIZE: Final = 30


def wide(sb: Any, field: str) -> int:
    """A 64-bit block count of a superblock record from its `_lo` and `_hi` halves.

    The high half counts only with INCOMPAT_64BIT, which the caller knows; without it this must not be used.
    """
    return int(getattr(sb, field + "_lo") | getattr(sb, field + "_hi") << 32)


def wide_time(sb: Any, field: str) -> int:
    """Seconds since the epoch of a 40-bit superblock time (`s_mtime` and its `_hi` byte)."""
    return int(getattr(sb, field) | getattr(sb, field + "_hi") << 32)

# s_encoding, s_encoding_flags
EXT4_ENC_UTF8_12_1: Final = 1
EXT4_ENC_STRICT_MODE_FL: Final = 0x0001
