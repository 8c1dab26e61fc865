"""FUSE on the wire (linux/fuse.h): which record belongs to which request, reply and notification, and the flags.

A body is a record of fixed size (or none) and then, for some, bytes of any length: names, data, more records.
Bytes of any kind give that or `Invalid`, never another exception.
"""

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, Final

from py4fs.errors import Invalid
from py4fs.ext4.layout.codec import Codec
from py4fs.fuse.direct import structs
from py4fs.iomap import protocol as iomap

if TYPE_CHECKING:
    from typing_extensions import Buffer

KERNEL_MAJOR: Final = 7
KERNEL_MINOR: Final = 45
"""The protocol that is spoken here; a kernel with a lower minor number is answered in its own."""
OLDEST_MINOR: Final = 31
"""Linux 5.4: older kernels have smaller records than these."""


class Opcode(IntEnum):
    """Requests of unpatched kernels."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """Notifications of unpatched kernels: `error` of an out header whose `unique` is 0."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


class InitFlags(IntFlag):
    """FUSE_* of INIT, `flags` below bit 32 and `flags2` from there on."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42
    IOMAP = 1 << 43


class SetattrValid(IntFlag):
    """FATTR_*: what of a SETATTR counts."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5
OPEN_KILL_SUIDGID: Final = 1 << 0
GETATTR_FH: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
EXPIRE_ONLY: Final = 1 << 0
EXT_GROUPS: Final = 32
MAX_NR_SECCTX: Final = 31


REQUESTS: Final[dict[int, Codec | None]] = {
    Opcode.LOOKUP: None,
    Opcode.FORGET: structs.FORGET_IN,
    Opcode.GETATTR: structs.GETATTR_IN,
    Opcode.SETATTR: structs.SETATTR_IN,
    Opcode.READLINK: None,
    Opcode.SYMLINK: None,
    Opcode.MKNOD: structs.MKNOD_IN,
    Opcode.MKDIR: structs.MKDIR_IN,
    Opcode.UNLINK: None,
    Opcode.RMDIR: None,
    Opcode.RENAME: structs.RENAME_IN,
    Opcode.LINK: structs.LINK_IN,
    Opcode.OPEN: structs.OPEN_IN,
    Opcode.READ: structs.READ_IN,
    Opcode.WRITE: structs.WRITE_IN,
    Opcode.STATFS: None,
    Opcode.RELEASE: structs.RELEASE_IN,
    Opcode.FSYNC: structs.FSYNC_IN,
    Opcode.SETXATTR: structs.SETXATTR_IN,
    Opcode.GETXATTR: structs.GETXATTR_IN,
    Opcode.LISTXATTR: structs.GETXATTR_IN,
    Opcode.REMOVEXATTR: None,
    Opcode.FLUSH: structs.FLUSH_IN,
    Opcode.INIT: structs.INIT_IN,
    Opcode.OPENDIR: structs.OPEN_IN,
    Opcode.READDIR: structs.READ_IN,
    Opcode.RELEASEDIR: structs.RELEASE_IN,
    Opcode.FSYNCDIR: structs.FSYNC_IN,
    Opcode.GETLK: structs.LK_IN,
    Opcode.SETLK: structs.LK_IN,
    Opcode.SETLKW: structs.LK_IN,
    Opcode.ACCESS: structs.ACCESS_IN,
    Opcode.CREATE: structs.CREATE_IN,
    Opcode.INTERRUPT: structs.INTERRUPT_IN,
    Opcode.BMAP: structs.BMAP_IN,
    Opcode.DESTROY: None,
    Opcode.IOCTL: structs.IOCTL_IN,
    Opcode.POLL: structs.POLL_IN,
    Opcode.BATCH_FORGET: structs.BATCH_FORGET_IN,
    Opcode.FALLOCATE: structs.FALLOCATE_IN,
    Opcode.READDIRPLUS: structs.READ_IN,
    Opcode.RENAME2: structs.RENAME2_IN,
    Opcode.LSEEK: structs.LSEEK_IN,
    Opcode.COPY_FILE_RANGE: structs.COPY_FILE_RANGE_IN,
    Opcode.SYNCFS: structs.SYNCFS_IN,
    Opcode.TMPFILE: structs.CREATE_IN,
    Opcode.STATX: structs.STATX_IN,
    Opcode.COPY_FILE_RANGE_64: structs.COPY_FILE_RANGE_IN,
}
"""The record behind the header of a request; None: there is none."""
REPLIES: Final[dict[int, Codec | None]] = {
    Opcode.LOOKUP: structs.ENTRY_OUT,
    Opcode.GETATTR: structs.ATTR_OUT,
    Opcode.SETATTR: structs.ATTR_OUT,
    Opcode.READLINK: None,
    Opcode.SYMLINK: structs.ENTRY_OUT,
    Opcode.MKNOD: structs.ENTRY_OUT,
    Opcode.MKDIR: structs.ENTRY_OUT,
    Opcode.UNLINK: None,
    Opcode.RMDIR: None,
    Opcode.RENAME: None,
    Opcode.LINK: structs.ENTRY_OUT,
    Opcode.OPEN: structs.OPEN_OUT,
    Opcode.READ: None,
    Opcode.WRITE: structs.WRITE_OUT,
    Opcode.STATFS: structs.STATFS_OUT,
    Opcode.RELEASE: None,
    Opcode.FSYNC: None,
    Opcode.SETXATTR: None,
    Opcode.GETXATTR: None,
    Opcode.LISTXATTR: None,
    Opcode.REMOVEXATTR: None,
    Opcode.FLUSH: None,
    Opcode.INIT: structs.INIT_OUT,
    Opcode.OPENDIR: structs.OPEN_OUT,
    Opcode.READDIR: None,
    Opcode.RELEASEDIR: None,
    Opcode.FSYNCDIR: None,
    Opcode.ACCESS: None,
    Opcode.CREATE: structs.CREATE_OUT,
    Opcode.BMAP: structs.BMAP_OUT,
    Opcode.DESTROY: None,
    Opcode.IOCTL: structs.IOCTL_OUT,
    Opcode.FALLOCATE: None,
    Opcode.READDIRPLUS: None,
    Opcode.RENAME2: None,
    Opcode.LSEEK: structs.LSEEK_OUT,
    Opcode.COPY_FILE_RANGE: structs.WRITE_OUT,
    Opcode.SYNCFS: None,
    Opcode.TMPFILE: structs.CREATE_OUT,
    Opcode.STATX: structs.STATX_OUT,
    Opcode.COPY_FILE_RANGE_64: structs.COPY_FILE_RANGE_OUT,
}
"""The record behind the header of a successful reply; None: there is none (but maybe data)."""
NOTIFICATIONS: Final[dict[int, Codec | None]] = {
    Notify.POLL: structs.NOTIFY_POLL_OUT,
    Notify.INVAL_INODE: structs.NOTIFY_INVAL_INODE_OUT,
    Notify.INVAL_ENTRY: structs.NOTIFY_INVAL_ENTRY_OUT,
    Notify.STORE: structs.NOTIFY_STORE_OUT,
    Notify.RETRIEVE: structs.NOTIFY_RETRIEVE_OUT,
    Notify.DELETE: structs.NOTIFY_DELETE_OUT,
    Notify.RESEND: None,
    Notify.INC_EPOCH: None,
    Notify.PRUNE: structs.NOTIFY_PRUNE_OUT,
}
"""The record of a notification; None: there is none."""
TAILS: Final = frozenset(
    {
        *(Opcode.LOOKUP, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
        *(Opcode.RENAME2, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE, Opcode.WRITE, Opcode.IOCTL),
        *(Opcode.SETXATTR, Opcode.GETXATTR, Opcode.REMOVEXATTR, Opcode.BATCH_FORGET),
    }
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
