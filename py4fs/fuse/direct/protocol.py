"""FUSE on the wire (linux/fuse.h): structs declared once, with a derived codec each.

Little endian, sizes of the 64-bit ABI.  What the iomap patches add, and the headers, are in `py4fs.iomap.protocol`.
A body is a record of fixed size (or none) and then, for some, bytes of any length: names, data, more records.
Bytes of any kind give that or `Invalid`, never another exception.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from construct import Bytes, Int16ul, Int32sl, Int32ul, Int64ul, Struct

from py4fs.errors import Invalid
from py4fs.ext4.layout.codec import Codec, derive
from py4fs.iomap import protocol as iomap

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Opcode(IntEnum):
    """Requests of unpatched kernels."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    UNLINK = 10
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    GETXATTR = 22
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    CREATE = 35
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    SYNCFS = 50
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """Notifications of unpatched kernels."""

    STORE = 4
    RETRIEVE = 5


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

ATTR = derive(Attr, "fuse_attr")
ENTRY_OUT = derive(EntryOut, "fuse_entry_out")
ATTR_OUT = derive(AttrOut, "fuse_attr_out")
FORGET_IN = derive(ForgetIn, "fuse_forget_in")
FORGET_ONE = derive(ForgetOne, "fuse_forget_one")
BATCH_FORGET_IN = derive(BatchForgetIn, "fuse_batch_forget_in")
GETATTR_IN = derive(GetattrIn, "fuse_getattr_in")
SETATTR_IN = derive(SetattrIn, "fuse_setattr_in")
OPEN_IN = derive(OpenIn, "fuse_open_in")
OPEN_OUT = derive(OpenOut, "fuse_open_out")
CREATE_IN = derive(CreateIn, "fuse_create_in")
CREATE_OUT = derive(CreateOut, "fuse_create_out")
RELEASE_IN = derive(ReleaseIn, "fuse_release_in")
FLUSH_IN = derive(FlushIn, "fuse_flush_in")
FSYNC_IN = derive(FsyncIn, "fuse_fsync_in")
READ_IN = derive(ReadIn, "fuse_read_in")
WRITE_IN = derive(WriteIn, "fuse_write_in")
WRITE_OUT = derive(WriteOut, "fuse_write_out")
GETXATTR_IN = derive(GetxattrIn, "fuse_getxattr_in")
INIT_IN = derive(InitIn, "fuse_init_in")
INIT_OUT = derive(InitOut, "fuse_init_out")
STATFS_OUT = derive(StatfsOut, "fuse_statfs_out")
FALLOCATE_IN = derive(FallocateIn, "fuse_fallocate_in")
SYNCFS_IN = derive(SyncfsIn, "fuse_syncfs_in")
COPY_FILE_RANGE_IN = derive(CopyFileRangeIn, "fuse_copy_file_range_in")
COPY_FILE_RANGE_OUT = derive(CopyFileRangeOut, "fuse_copy_file_range_out")
NOTIFY_STORE_OUT = derive(NotifyStoreOut, "fuse_notify_store_out")
NOTIFY_RETRIEVE_OUT = derive(NotifyRetrieveOut, "fuse_notify_retrieve_out")

REQUESTS: Final[dict[int, Codec | None]] = {
    Opcode.LOOKUP: None,
    Opcode.FORGET: FORGET_IN,
    Opcode.GETATTR: GETATTR_IN,
    Opcode.SETATTR: SETATTR_IN,
    Opcode.UNLINK: None,
    Opcode.OPEN: OPEN_IN,
    Opcode.READ: READ_IN,
    Opcode.WRITE: WRITE_IN,
    Opcode.STATFS: None,
    Opcode.RELEASE: RELEASE_IN,
    Opcode.FSYNC: FSYNC_IN,
    Opcode.GETXATTR: GETXATTR_IN,
    Opcode.FLUSH: FLUSH_IN,
    Opcode.INIT: INIT_IN,
    Opcode.OPENDIR: OPEN_IN,
    Opcode.RELEASEDIR: RELEASE_IN,
    Opcode.CREATE: CREATE_IN,
    Opcode.DESTROY: None,
    Opcode.BATCH_FORGET: BATCH_FORGET_IN,
    Opcode.FALLOCATE: FALLOCATE_IN,
    Opcode.SYNCFS: SYNCFS_IN,
    Opcode.COPY_FILE_RANGE_64: COPY_FILE_RANGE_IN,
}
"""The record behind the header of a request; None: there is none."""
REPLIES: Final[dict[int, Codec | None]] = {
    Opcode.LOOKUP: ENTRY_OUT,
    Opcode.GETATTR: ATTR_OUT,
    Opcode.SETATTR: ATTR_OUT,
    Opcode.UNLINK: None,
    Opcode.OPEN: OPEN_OUT,
    Opcode.READ: None,
    Opcode.WRITE: WRITE_OUT,
    Opcode.STATFS: STATFS_OUT,
    Opcode.RELEASE: None,
    Opcode.FSYNC: None,
    Opcode.GETXATTR: None,
    Opcode.FLUSH: None,
    Opcode.INIT: INIT_OUT,
    Opcode.OPENDIR: OPEN_OUT,
    Opcode.RELEASEDIR: None,
    Opcode.CREATE: CREATE_OUT,
    Opcode.DESTROY: None,
    Opcode.FALLOCATE: None,
    Opcode.SYNCFS: None,
    Opcode.COPY_FILE_RANGE_64: COPY_FILE_RANGE_OUT,
}
"""The record behind the header of a successful reply; None: there is none (but maybe data)."""
NOTIFICATIONS: Final[dict[int, Codec]] = {
    Notify.STORE: NOTIFY_STORE_OUT,
    Notify.RETRIEVE: NOTIFY_RETRIEVE_OUT,
}
TAILS: Final = frozenset(
    {Opcode.LOOKUP, Opcode.UNLINK, Opcode.WRITE, Opcode.GETXATTR, Opcode.CREATE, Opcode.BATCH_FORGET}
)
"""Requests whose record is followed by names, data or more records."""


def decode_request(opcode: int, body: "Buffer") -> tuple[Any, memoryview]:
    """The record behind a request's header (None: it has none) and what follows that.  Raises Invalid."""
    if opcode in iomap.REQUESTS:
        return iomap.decode_request(opcode, body), memoryview(b"")
    if opcode not in REQUESTS:
        raise Invalid(f"opcode {opcode}: unknown")
    record, rest = _head(REQUESTS[opcode], body, Opcode(opcode).name)
    if rest.nbytes and opcode not in TAILS:
        raise Invalid(f"{Opcode(opcode).name}: {rest.nbytes} bytes too many")
    return record, rest


def decode_reply(opcode: int, body: "Buffer") -> tuple[Any, memoryview]:
    """The record behind a successful reply's header (None: it has none) and the data after it.  Raises Invalid."""
    if opcode in iomap.REPLIES:
        return iomap.decode_reply(opcode, body), memoryview(b"")
    if opcode not in REPLIES:
        raise Invalid(f"opcode {opcode}: unknown, or has no reply")
    return _head(REPLIES[opcode], body, Opcode(opcode).name)


def decode_notification(code: int, body: "Buffer") -> tuple[Any, memoryview]:
    """The record of a notification and the data after it.  Raises Invalid."""
    if code in iomap.NOTIFICATIONS:
        return iomap.decode_notification(code, body), memoryview(b"")
    if code not in NOTIFICATIONS:
        raise Invalid(f"notification {code}: unknown")
    return _head(NOTIFICATIONS[code], body, Notify(code).name)


def _head(codec: Codec | None, body: "Buffer", what: str) -> tuple[Any, memoryview]:
    view = memoryview(body).cast("B")
    if codec is None:
        return None, view
    if view.nbytes < codec.size:
        raise Invalid(f"{what}: {view.nbytes} bytes, expected {codec.size}")
    return codec.unpack_from(view), view[codec.size :]
