"""FUSE's records (linux/fuse.h up to protocol 7.45), declared once with construct, with a derived codec each.

Little endian, sizes of the 64-bit ABI, field names of the kernel's header. What the iomap patches add, and the two
headers, are in `py4fs.iomap.protocol`; which record belongs to which request is in `protocol`.
"""

from typing import Final

from construct import Bytes, Int16ul, Int32sl, Int32ul, Int64sl, Int64ul, Struct

from py4fs.ext4.layout.codec import derive
from py4fs.iomap import protocol as iomap

Attr = Struct(
    "ino" / Int64ul,
    "size" / Int64ul,
    "blocks" / Int64ul,
    "atime" / Int64ul,
    "mtime" / Int64ul,
    "ctime" / Int64ul,
    "atimensec" / Int32ul,
    "mtimensec" / Int32ul,
    "ctimensec" / Int32ul,
    "mode" / Int32ul,
    "nlink" / Int32ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "rdev" / Int32ul,
    "blksize" / Int32ul,
    "flags" / Int32ul,
)
EntryOut = Struct(
    "nodeid" / Int64ul,
    "generation" / Int64ul,
    "entry_valid" / Int64ul,
    "attr_valid" / Int64ul,
    "entry_valid_nsec" / Int32ul,
    "attr_valid_nsec" / Int32ul,
    *iomap.prefixed("attr_", Attr),
)
AttrOut = Struct(
    "attr_valid" / Int64ul,
    "attr_valid_nsec" / Int32ul,
    "dummy" / Int32ul,
    *iomap.prefixed("attr_", Attr),
)
ForgetIn = Struct("nlookup" / Int64ul)
ForgetOne = Struct("nodeid" / Int64ul, "nlookup" / Int64ul)
BatchForgetIn = Struct("count" / Int32ul, "dummy" / Int32ul)
GetattrIn = Struct("flags" / Int32ul, "dummy" / Int32ul, "fh" / Int64ul)
SetattrIn = Struct(
    "valid" / Int32ul,
    "padding" / Int32ul,
    "fh" / Int64ul,
    "size" / Int64ul,
    "lock_owner" / Int64ul,
    "atime" / Int64ul,
    "mtime" / Int64ul,
    "ctime" / Int64ul,
    "atimensec" / Int32ul,
    "mtimensec" / Int32ul,
    "ctimensec" / Int32ul,
    "mode" / Int32ul,
    "unused4" / Int32ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "unused5" / Int32ul,
)
OpenIn = Struct("flags" / Int32ul, "open_flags" / Int32ul)
OpenOut = Struct("fh" / Int64ul, "open_flags" / Int32ul, "backing_id" / Int32sl)
CreateIn = Struct("flags" / Int32ul, "mode" / Int32ul, "umask" / Int32ul, "open_flags" / Int32ul)
CreateOut = Struct(*EntryOut.subcons, *OpenOut.subcons)
ReleaseIn = Struct("fh" / Int64ul, "flags" / Int32ul, "release_flags" / Int32ul, "lock_owner" / Int64ul)
FlushIn = Struct("fh" / Int64ul, "unused" / Int32ul, "padding" / Int32ul, "lock_owner" / Int64ul)
FsyncIn = Struct("fh" / Int64ul, "fsync_flags" / Int32ul, "padding" / Int32ul)
ReadIn = Struct(
    "fh" / Int64ul,
    "offset" / Int64ul,
    "size" / Int32ul,
    "read_flags" / Int32ul,
    "lock_owner" / Int64ul,
    "flags" / Int32ul,
    "padding" / Int32ul,
)
WriteIn = Struct(
    "fh" / Int64ul,
    "offset" / Int64ul,
    "size" / Int32ul,
    "write_flags" / Int32ul,
    "lock_owner" / Int64ul,
    "flags" / Int32ul,
    "padding" / Int32ul,
)
WriteOut = Struct("size" / Int32ul, "padding" / Int32ul)
GetxattrIn = Struct("size" / Int32ul, "padding" / Int32ul)
InitIn = Struct(
    "major" / Int32ul,
    "minor" / Int32ul,
    "max_readahead" / Int32ul,
    "flags" / Int32ul,
    "flags2" / Int32ul,
    "unused" / Bytes(44),
)
InitOut = Struct(
    "major" / Int32ul,
    "minor" / Int32ul,
    "max_readahead" / Int32ul,
    "flags" / Int32ul,
    "max_background" / Int16ul,
    "congestion_threshold" / Int16ul,
    "max_write" / Int32ul,
    "time_gran" / Int32ul,
    "max_pages" / Int16ul,
    "map_alignment" / Int16ul,
    "flags2" / Int32ul,
    "max_stack_depth" / Int32ul,
    "request_timeout" / Int16ul,
    "unused" / Bytes(22),
)
StatfsOut = Struct(
    "blocks" / Int64ul,
    "bfree" / Int64ul,
    "bavail" / Int64ul,
    "files" / Int64ul,
    "ffree" / Int64ul,
    "bsize" / Int32ul,
    "namelen" / Int32ul,
    "frsize" / Int32ul,
    "padding" / Int32ul,
    "spare" / Bytes(24),
)
FallocateIn = Struct("fh" / Int64ul, "offset" / Int64ul, "length" / Int64ul, "mode" / Int32ul, "padding" / Int32ul)
SyncfsIn = Struct("padding" / Int64ul)
CopyFileRangeIn = Struct(
    "fh_in" / Int64ul,
    "off_in" / Int64ul,
    "nodeid_out" / Int64ul,
    "fh_out" / Int64ul,
    "off_out" / Int64ul,
    "len" / Int64ul,
    "flags" / Int64ul,
)
CopyFileRangeOut = Struct("bytes_copied" / Int64ul)
NotifyStoreOut = Struct("nodeid" / Int64ul, "offset" / Int64ul, "size" / Int32ul, "padding" / Int32ul)
NotifyRetrieveOut = Struct(
    "notify_unique" / Int64ul,
    "nodeid" / Int64ul,
    "offset" / Int64ul,
    "size" / Int32ul,
    "padding" / Int32ul,
)
MknodIn = Struct("mode" / Int32ul, "rdev" / Int32ul, "umask" / Int32ul, "padding" / Int32ul)
MkdirIn = Struct("mode" / Int32ul, "umask" / Int32ul)
RenameIn = Struct("newdir" / Int64ul)
Rename2In = Struct("newdir" / Int64ul, "flags" / Int32ul, "padding" / Int32ul)
LinkIn = Struct("oldnodeid" / Int64ul)
SetxattrIn = Struct("size" / Int32ul, "flags" / Int32ul, "setxattr_flags" / Int32ul, "padding" / Int32ul)
GetxattrOut = Struct("size" / Int32ul, "padding" / Int32ul)
AccessIn = Struct("mask" / Int32ul, "padding" / Int32ul)
InterruptIn = Struct("unique" / Int64ul)
BmapIn = Struct("block" / Int64ul, "blocksize" / Int32ul, "padding" / Int32ul)
BmapOut = Struct("block" / Int64ul)
IoctlIn = Struct(
    "fh" / Int64ul,
    "flags" / Int32ul,
    "cmd" / Int32ul,
    "arg" / Int64ul,
    "in_size" / Int32ul,
    "out_size" / Int32ul,
)
IoctlOut = Struct("result" / Int32sl, "flags" / Int32ul, "in_iovs" / Int32ul, "out_iovs" / Int32ul)
LseekIn = Struct("fh" / Int64ul, "offset" / Int64ul, "whence" / Int32ul, "padding" / Int32ul)
LseekOut = Struct("offset" / Int64ul)
PollIn = Struct("fh" / Int64ul, "kh" / Int64ul, "flags" / Int32ul, "events" / Int32ul)
LkIn = Struct(
    "fh" / Int64ul,
    "owner" / Int64ul,
    "start" / Int64ul,
    "end" / Int64ul,
    "type" / Int32ul,
    "pid" / Int32ul,
    "lk_flags" / Int32ul,
    "padding" / Int32ul,
)
Dirent = Struct("ino" / Int64ul, "off" / Int64ul, "namelen" / Int32ul, "type" / Int32ul)
Direntplus = Struct(*EntryOut.subcons, *iomap.prefixed("dirent_", Dirent))
StatxIn = Struct(
    "getattr_flags" / Int32ul,
    "reserved" / Int32ul,
    "fh" / Int64ul,
    "sx_flags" / Int32ul,
    "sx_mask" / Int32ul,
)
SxTime = Struct("sec" / Int64sl, "nsec" / Int32ul, "reserved" / Int32sl)
StatxOut = Struct(
    "attr_valid" / Int64ul,
    "attr_valid_nsec" / Int32ul,
    "flags" / Int32ul,
    "spare" / Bytes(16),
    "mask" / Int32ul,
    "blksize" / Int32ul,
    "attributes" / Int64ul,
    "nlink" / Int32ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "mode" / Int16ul,
    "spare0" / Int16ul,
    "ino" / Int64ul,
    "size" / Int64ul,
    "blocks" / Int64ul,
    "attributes_mask" / Int64ul,
    *iomap.prefixed("atime_", SxTime),
    *iomap.prefixed("btime_", SxTime),
    *iomap.prefixed("ctime_", SxTime),
    *iomap.prefixed("mtime_", SxTime),
    "rdev_major" / Int32ul,
    "rdev_minor" / Int32ul,
    "dev_major" / Int32ul,
    "dev_minor" / Int32ul,
    # from here on for kernels with iomap (IOMAP.md section 2); spare for all others
    "mnt_id" / Int64ul,
    "dio_mem_align" / Int32ul,
    "dio_offset_align" / Int32ul,
    "subvol" / Int64ul,
    "atomic_write_unit_min" / Int32ul,
    "atomic_write_unit_max" / Int32ul,
    "atomic_write_segments_max" / Int32ul,
    "dio_read_offset_align" / Int32ul,
    "atomic_write_unit_max_opt" / Int32ul,
    "spare2" / Bytes(68),
)
ExtHeader = Struct("size" / Int32ul, "type" / Int32ul)
Secctx = Struct("size" / Int32ul, "padding" / Int32ul)
SuppGroups = Struct("nr_groups" / Int32ul)
NotifyInvalInodeOut = Struct("ino" / Int64ul, "off" / Int64sl, "len" / Int64sl)
NotifyInvalEntryOut = Struct("parent" / Int64ul, "namelen" / Int32ul, "flags" / Int32ul)
NotifyDeleteOut = Struct("parent" / Int64ul, "child" / Int64ul, "namelen" / Int32ul, "padding" / Int32ul)
NotifyPollOut = Struct("kh" / Int64ul)
NotifyPruneOut = Struct("count" / Int32ul, "padding" / Int32ul, "spare" / Int64ul)
PruneOne = Struct("nodeid" / Int64ul)

ATTR: Final = derive(Attr, "fuse_attr")
ENTRY_OUT: Final = derive(EntryOut, "fuse_entry_out")
ATTR_OUT: Final = derive(AttrOut, "fuse_attr_out")
FORGET_IN: Final = derive(ForgetIn, "fuse_forget_in")
FORGET_ONE: Final = derive(ForgetOne, "fuse_forget_one")
BATCH_FORGET_IN: Final = derive(BatchForgetIn, "fuse_batch_forget_in")
GETATTR_IN: Final = derive(GetattrIn, "fuse_getattr_in")
SETATTR_IN: Final = derive(SetattrIn, "fuse_setattr_in")
OPEN_IN: Final = derive(OpenIn, "fuse_open_in")
OPEN_OUT: Final = derive(OpenOut, "fuse_open_out")
CREATE_IN: Final = derive(CreateIn, "fuse_create_in")
CREATE_OUT: Final = derive(CreateOut, "fuse_create_out")
RELEASE_IN: Final = derive(ReleaseIn, "fuse_release_in")
FLUSH_IN: Final = derive(FlushIn, "fuse_flush_in")
FSYNC_IN: Final = derive(FsyncIn, "fuse_fsync_in")
READ_IN: Final = derive(ReadIn, "fuse_read_in")
WRITE_IN: Final = derive(WriteIn, "fuse_write_in")
WRITE_OUT: Final = derive(WriteOut, "fuse_write_out")
GETXATTR_IN: Final = derive(GetxattrIn, "fuse_getxattr_in")
INIT_IN: Final = derive(InitIn, "fuse_init_in")
INIT_OUT: Final = derive(InitOut, "fuse_init_out")
STATFS_OUT: Final = derive(StatfsOut, "fuse_statfs_out")
FALLOCATE_IN: Final = derive(FallocateIn, "fuse_fallocate_in")
SYNCFS_IN: Final = derive(SyncfsIn, "fuse_syncfs_in")
COPY_FILE_RANGE_IN: Final = derive(CopyFileRangeIn, "fuse_copy_file_range_in")
COPY_FILE_RANGE_OUT: Final = derive(CopyFileRangeOut, "fuse_copy_file_range_out")
NOTIFY_STORE_OUT: Final = derive(NotifyStoreOut, "fuse_notify_store_out")
NOTIFY_RETRIEVE_OUT: Final = derive(NotifyRetrieveOut, "fuse_notify_retrieve_out")
MKNOD_IN: Final = derive(MknodIn, "fuse_mknod_in")
MKDIR_IN: Final = derive(MkdirIn, "fuse_mkdir_in")
RENAME_IN: Final = derive(RenameIn, "fuse_rename_in")
RENAME2_IN: Final = derive(Rename2In, "fuse_rename2_in")
LINK_IN: Final = derive(LinkIn, "fuse_link_in")
SETXATTR_IN: Final = derive(SetxattrIn, "fuse_setxattr_in")
GETXATTR_OUT: Final = derive(GetxattrOut, "fuse_getxattr_out")
ACCESS_IN: Final = derive(AccessIn, "fuse_access_in")
INTERRUPT_IN: Final = derive(InterruptIn, "fuse_interrupt_in")
BMAP_IN: Final = derive(BmapIn, "fuse_bmap_in")
BMAP_OUT: Final = derive(BmapOut, "fuse_bmap_out")
IOCTL_IN: Final = derive(IoctlIn, "fuse_ioctl_in")
IOCTL_OUT: Final = derive(IoctlOut, "fuse_ioctl_out")
LSEEK_IN: Final = derive(LseekIn, "fuse_lseek_in")
LSEEK_OUT: Final = derive(LseekOut, "fuse_lseek_out")
POLL_IN: Final = derive(PollIn, "fuse_poll_in")
LK_IN: Final = derive(LkIn, "fuse_lk_in")
DIRENT: Final = derive(Dirent, "fuse_dirent")
DIRENTPLUS: Final = derive(Direntplus, "fuse_direntplus")
STATX_IN: Final = derive(StatxIn, "fuse_statx_in")
STATX_OUT: Final = derive(StatxOut, "fuse_statx_out")
EXT_HEADER: Final = derive(ExtHeader, "fuse_ext_header")
SECCTX: Final = derive(Secctx, "fuse_secctx")
SUPP_GROUPS: Final = derive(SuppGroups, "fuse_supp_groups")
NOTIFY_INVAL_INODE_OUT: Final = derive(NotifyInvalInodeOut, "fuse_notify_inval_inode_out")
NOTIFY_INVAL_ENTRY_OUT: Final = derive(NotifyInvalEntryOut, "fuse_notify_inval_entry_out")
NOTIFY_DELETE_OUT: Final = derive(NotifyDeleteOut, "fuse_notify_delete_out")
NOTIFY_POLL_OUT: Final = derive(NotifyPollOut, "fuse_notify_poll_wakeup_out")
NOTIFY_PRUNE_OUT: Final = derive(NotifyPruneOut, "fuse_notify_prune_out")
PRUNE_ONE: Final = derive(PruneOne, "u64")
