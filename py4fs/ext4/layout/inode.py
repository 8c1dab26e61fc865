"""Inodes: 128 bytes that all have, and the extra fields behind them (ext4 docs: Index Nodes)."""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

Inode = Struct(
    "i_mode" / Int16ul,
    "i_uid" / Int16ul,
    "i_size_lo" / Int32ul,
    "i_atime" / Int32ul,
    "i_ctime" / Int32ul,
    "i_mtime" / Int32ul,
    "i_dtime" / Int32ul,
    "i_gid" / Int16ul,
    "i_links_count" / Int16ul,
    "i_blocks_lo" / Int32ul,
    "i_flags" / Int32ul,
    "l_i_version" / Int32ul,  # osd1 of Linux
    "i_block" / Bytes(60),
    "i_generation" / Int32ul,
    "i_file_acl_lo" / Int32ul,
    "i_size_high" / Int32ul,
    "i_obso_faddr" / Int32ul,
    "l_i_blocks_high" / Int16ul,  # osd2 of Linux from here
    "l_i_file_acl_high" / Int16ul,
    "l_i_uid_high" / Int16ul,
    "l_i_gid_high" / Int16ul,
    "l_i_checksum_lo" / Int16ul,
    "l_i_reserved" / Int16ul,
)
INODE: Final = derive(Inode, "Inode")

# At byte 128 of inodes larger than that. Only the fields inside i_extra_isize bytes are there.
InodeExtra = Struct(
    "i_extra_isize" / Int16ul,
    "i_checksum_hi" / Int16ul,
    "i_ctime_extra" / Int32ul,
    "i_mtime_extra" / Int32ul,
    "i_atime_extra" / Int32ul,
    "i_crtime" / Int32ul,
    "i_crtime_extra" / Int32ul,
    "i_version_hi" / Int32ul,
    "i_projid" / Int32ul,
)
INODE_EXTRA: Final = derive(InodeExtra, "InodeExtra")

# Reserved inode numbers
EXT4_BAD_INO: Final = 1
EXT4_ROOT_INO: Final = 2
EXT4_USR_QUOTA_INO: Final = 3
EXT4_GRP_QUOTA_INO: Final = 4
EXT4_BOOT_LOADER_INO: Final = 5
EXT4_UNDEL_DIR_INO: Final = 6
EXT4_RESIZE_INO: Final = 7
EXT4_JOURNAL_INO: Final = 8

# i_mode, the type bits
S_IFMT: Final = 0xF000
S_IFIFO: Final = 0x1000
S_IFCHR: Final = 0x2000
S_IFDIR: Final = 0x4000
S_IFBLK: Final = 0x6000
S_IFREG: Final = 0x8000
S_IFLNK: Final = 0xA000
S_IFSOCK: Final = 0xC000

# i_flags
EXT4_SECRM_FL: Final = 0x00000001
EXT4_UNRM_FL: Final = 0x00000002
EXT4_COMPR_FL: Final = 0x00000004
EXT4_SYNC_FL: Final = 0x00000008
EXT4_IMMUTABLE_FL: Final = 0x00000010
EXT4_APPEND_FL: Final = 0x00000020
EXT4_NODUMP_FL: Final = 0x00000040
EXT4_NOATIME_FL: Final = 0x00000080
EXT4_DIRTY_FL: Final = 0x00000100
EXT4_COMPRBLK_FL: Final = 0x00000200
EXT4_NOCOMPR_FL: Final = 0x00000400
EXT4_ENCRYPT_FL: Final = 0x00000800
EXT4_INDEX_FL: Final = 0x00001000
EXT4_IMAGIC_FL: Final = 0x00002000
EXT4_JOURNAL_DATA_FL: Final = 0x00004000
EXT4_NOTAIL_FL: Final = 0x00008000
EXT4_DIRSYNC_FL: Final = 0x00010000
EXT4_TOPDIR_FL: Final = 0x00020000
EXT4_HUGE_FILE_FL: Final = 0x00040000
EXT4_EXTENTS_FL: Final = 0x00080000
EXT4_VERITY_FL: Final = 0x00100000
EXT4_EA_INODE_FL: Final = 0x00200000
EXT4_EOFBLOCKS_FL: Final = 0x00400000
EXT4_SNAPFILE_FL: Final = 0x01000000
EXT4_DAX_FL: Final = 0x02000000
EXT4_SNAPFILE_DELETED_FL: Final = 0x04000000
EXT4_SNAPFILE_SHRUNK_FL: Final = 0x08000000
EXT4_INLINE_DATA_FL: Final = 0x10000000
EXT4_PROJINHERIT_FL: Final = 0x20000000
EXT4_CASEFOLD_FL: Final = 0x40000000
EXT4_RESERVED_FL: Final = 0x80000000

EXT4_FL_USER_VISIBLE: Final = 0x725BDFFF
EXT4_FL_USER_MODIFIABLE: Final = 0x624BC0FF
EXT4_FL_INHERITED: Final = (
    (EXT4_SECRM_FL | EXT4_UNRM_FL | EXT4_COMPR_FL | EXT4_SYNC_FL | EXT4_NODUMP_FL | EXT4_NOATIME_FL)
    | (EXT4_NOCOMPR_FL | EXT4_JOURNAL_DATA_FL | EXT4_NOTAIL_FL | EXT4_DIRSYNC_FL)
    | (EXT4_PROJINHERIT_FL | EXT4_CASEFOLD_FL | EXT4_DAX_FL)
)
"""What a new inode takes from its directory (before masking by its type)."""
EXT4_REG_FLMASK: Final = 0xFFFFFFFF & ~(EXT4_DIRSYNC_FL | EXT4_TOPDIR_FL | EXT4_CASEFOLD_FL | EXT4_PROJINHERIT_FL)
"""Flags that make sense for a regular file."""
EXT4_OTHER_FLMASK: Final = EXT4_NODUMP_FL | EXT4_NOATIME_FL
"""Flags that make sense for what is neither a regular file nor a directory."""

EXT4_EPOCH_BITS: Final = 2
EXT4_EPOCH_MASK: Final = (1 << EXT4_EPOCH_BITS) - 1
"""The low bits of the `_extra` times extend the seconds; the rest are nanoseconds."""

EXT4_LINK_MAX: Final = 65000
