"""INIT: what this server and the kernel agree on.

Taken when the kernel offers it, and why:

* WRITEBACK_CACHE, MAX_PAGES, BIG_WRITES, ASYNC_READ: few and large data requests;
* PARALLEL_DIROPS, DO_READDIRPLUS with READDIRPLUS_AUTO, CACHE_SYMLINKS: fewer requests for names;
* POSIX_ACL with DONT_MASK: the kernel enforces ACLs, the vfs inherits them by the kernel's own rules;
* HANDLE_KILLPRIV_V2: set-id bits and capabilities go without being asked for before every write;
* ATOMIC_O_TRUNC, SETXATTR_EXT, HAS_IOCTL_DIR, EXPORT_SUPPORT (NFS, open_by_handle_at), HAS_EXPIRE_ONLY;
* SECURITY_CTX, CREATE_SUPP_GROUP: what comes with a create is parsed;
* SPLICE_WRITE: the data of large READs goes into the kernel by splice(2) (see `pipes`).

Left out on purpose: POSIX_LOCKS and FLOCK_LOCKS (the kernel's own are right, since there is one server),
AUTO_INVAL_DATA and EXPLICIT_INVAL_DATA (nobody else writes), NO_OPEN_SUPPORT (an open checks immutable and
append-only, and counts writers), PASSTHROUGH (file data lies at other offsets in the image), ALLOW_IDMAP (the kernel
then hides who asks, but root's reserve, trim, shutdown and our own ioctls need that), OVER_IO_URING (it wants a queue
per core with threads of its own, which Python's lock would only serialise again, and a ring that Python cannot map),
HAS_RESEND (a server that dies is not replaced), ASYNC_DIO (the kernel can leave stale pages in its cache behind
asynchronous direct writes, xfstests generic/451), REQUEST_TIMEOUT (a slow disk is no reason to abort), SPLICE_MOVE
(it takes pages out of the image's page cache, which is slower than copying them), SPLICE_READ (WRITEs go to the image
by pwrite(2) from where they were read to).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from py4fs.errors import NotSupported
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import KERNEL_MAJOR, KERNEL_MINOR, OLDEST_MINOR, InitFlags
from py4fs.iomap import protocol as iomap

MAX_WRITE: Final = 1 << 20
"""Bytes of the largest WRITE and READ."""
_PAGE: Final = 4096
_MAX_BACKGROUND: Final = 128
_WANTED: Final = (
    InitFlags.ASYNC_READ
    | InitFlags.ATOMIC_O_TRUNC
    | InitFlags.EXPORT_SUPPORT
    | InitFlags.BIG_WRITES
    | InitFlags.DONT_MASK
    | InitFlags.SPLICE_WRITE
    | InitFlags.HAS_IOCTL_DIR
    | InitFlags.DO_READDIRPLUS
    | InitFlags.READDIRPLUS_AUTO
    | InitFlags.WRITEBACK_CACHE
    | InitFlags.PARALLEL_DIROPS
    | InitFlags.POSIX_ACL
    | InitFlags.MAX_PAGES
    | InitFlags.CACHE_SYMLINKS
    | InitFlags.HANDLE_KILLPRIV_V2
    | InitFlags.SETXATTR_EXT
    | InitFlags.INIT_EXT
    | InitFlags.SECURITY_CTX
    | InitFlags.CREATE_SUPP_GROUP
    | InitFlags.HAS_EXPIRE_ONLY
)
_NEEDED: Final = InitFlags.BIG_WRITES | InitFlags.MAX_PAGES


@dataclass(frozen=True, slots=True)
class Agreed:
    """The outcome: `flags` are InitFlags, `max_write` bytes."""

    minor: int
    flags: int
    max_write: int

    @property
    def iomap(self) -> bool:
        """Whether the kernel does file I/O by itself."""
        return bool(self.flags & InitFlags.IOMAP)

    @property
    def writeback(self) -> bool:
        """Whether the kernel owns size and times of regular files."""
        return bool(self.flags & InitFlags.WRITEBACK_CACHE)


def offered(init: Any) -> int:
    """All flags of a fuse_init_in."""
    flags: int = init.flags
    return flags | init.flags2 << 32 if flags & InitFlags.INIT_EXT else flags


def answer(init: Any, *, time_gran: int, want_iomap: bool, acl: bool = True) -> tuple[bytes | None, Agreed | None]:
    """The body of the reply to INIT, and what is agreed on; (reply, None): the kernel has to ask again.

    `time_gran`: how exact inode times are, in ns. `want_iomap`: take FUSE_IOMAP if it is offered.
    `acl`: the kernel is to look at ACLs.
    Raises NotSupported for a kernel that is too old.
    """
    if init.major > KERNEL_MAJOR:
        return _pack(0, 0, 0, time_gran), None
    if init.major < KERNEL_MAJOR or init.minor < OLDEST_MINOR:
        raise NotSupported(
            f"FUSE protocol {init.major}.{init.minor} of the kernel: at least {KERNEL_MAJOR}.{OLDEST_MINOR} is needed"
        )
    have = offered(init)
    if _NEEDED & ~have:
        raise NotSupported(f"the kernel's FUSE lacks {InitFlags(_NEEDED & ~have)!r}")
    flags = have & (_WANTED if acl else _WANTED & ~InitFlags.POSIX_ACL)
    minor = min(init.minor, KERNEL_MINOR)
    if want_iomap and have & InitFlags.IOMAP:
        flags |= InitFlags.IOMAP
        minor = max(minor, iomap.KERNEL_MINOR)
        # set-id bits and capabilities go before a write, which this kernel does without us
        flags &= ~InitFlags.HANDLE_KILLPRIV_V2
    return _pack(minor, init.max_readahead, flags, time_gran), Agreed(minor, flags, MAX_WRITE)


def _pack(minor: int, readahead: int, flags: int, time_gran: int) -> bytes:
    return structs.INIT_OUT.pack(
        KERNEL_MAJOR,
        minor,
        readahead,
        flags & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _MAX_BACKGROUND * 3 // 4,
        MAX_WRITE,
        time_gran,
        MAX_WRITE // _PAGE,
        0,
        flags >> 32,
        0,
        0,
        bytes(22),
    )
