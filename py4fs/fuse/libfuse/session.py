"""pyfuse3 session: every request of the kernel becomes one vfs call, every failure an errno.

What pyfuse3 cannot do, said once: no fallocate, lseek, ioctl, copy_file_range, statx, syncfs, tmpfile, bmap;
no DONT_MASK, so `mode` arrives with the umask applied already (also below a default ACL); no KILLPRIV, so a
GETXATTR of security.capability precedes every write(2); XATTR_CREATE and XATTR_REPLACE become a getxattr and
a setxattr; readdirplus always; UTIME_NOW arrives as an explicit time; O_TRUNC arrives in open().

Who owns what under the writeback cache: the kernel owns size, mtime and ctime of regular files and pushes
them by SETATTR; READ comes on write-only handles; WRITE comes late, on any writable handle. This server is
the only writer, so names and attributes are cached for long. The exceptions are attributes that change
without the kernel's doing: st_blocks when dirty pages arrive (attributes of files open for writing are cached
shortly; after close the kernel asks again by itself), and atime on READ (which the kernel marks stale by itself).
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from py4fs.errors import CommitPending, Corrupt, FsError, NotFound, Stale
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.failures import Failures
from py4fs.fuse.libfuse.syncer import Syncer
from py4fs.fuse.writers import Writers
from py4fs.vfs import ROOT_INO, Attr, Caller, Vfs

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LONG = 24 * 3600.0  # seconds that the kernel may cache what only the kernel's own requests can change
# The same for attributes of files open for writing, whose st_blocks grows when dirty pages arrive. The kernel also
# looks at it before every write(2), so 0 would double the requests of small writes.
SHORT = 1.0
FUSE_ROOT = pyfuse3.ROOT_INODE


def handler(
    method: Callable[Concatenate[Session, P], T],
) -> Callable[Concatenate[Session, P], Coroutine[Any, Any, T]]:
    """Make a request handler of a plain method. Whatever it raises becomes a FUSEError: anything else would
    leave pyfuse3's loop and end the mount."""
    name = method.__name__

    async def call(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests += 1
        try:
            while True:
                try:
                    result = method(self, *args, **kwargs)
                    break
                except CommitPending:
                    # others may begin the next commit before this request gets its turn: then it waits for that, too
                    await self.durable()
            if self.vfs.sync_due:
                self.vfs.sync_due = False
                await self.durable()
        except Exception as exc:  # noqa: BLE001  (mapped and logged by errno_of)
            code = self.errno_of(name, exc)
            if self.trace:
                log.debug("%s%s: %s", name, _shown(args), errno.errorcode.get(code, code))
            raise FUSEError(code) from None
        if self.trace:
            log.debug("%s%s", name, _shown(args))
        return result

    functools.update_wrapper(call, method)
    return call


class Session(pyfuse3.Operations):
    """Operations of pyfuse3 on a vfs. Real inode numbers in the vfs; the kernel calls the root 1."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, vfs: Vfs, clock: KernelClock | None = None) -> None:
        super().__init__()
        self.vfs = vfs
        self._clock = clock
        vfs.kernel_owns_times = True
        vfs.defers_sync = True
        vfs.frees_later = True
        #: set by the mount's life cycle; without it durability is waited for in place
        self.syncer: Syncer | None = None
        self.requests = 0  # served so far: lets the shutdown see whether the kernel still sends any
        self.trace = log.isEnabledFor(logging.DEBUG)
        self._name_timeout = 0.0 if vfs.names_fold else LONG
        self._writers = Writers()
        self._failures = Failures(vfs)

    async def durable(self) -> None:
        """Return when everything so far is durable, other requests being served meanwhile. Raises FsError."""
        if self.syncer is None:
            self.vfs.sync()
        else:
            await self.syncer.sync()

    # --- translation ---------------------------------------------------------------------------

    def errno_of(self, request: str, exc: Exception) -> int:
        """The errno to answer with; damage, device failures and bugs are logged (each text once)."""
        if isinstance(exc, FUSEError):
            return exc.errno
        return self._failures.errno_of(request, exc)

    def _entry(self, attr: Attr) -> EntryAttributes:
        """Reply with attributes; cached for long unless dirty pages may still change st_blocks."""
        entry = EntryAttributes()
        ino = attr.ino
        if ino == ROOT_INO:
            entry.st_ino = FUSE_ROOT
        elif ino == FUSE_ROOT:
            raise Corrupt("directory entry", f"inode {ino}", "a name for the bad blocks inode", "no name")
        else:
            entry.st_ino = ino
        entry.generation = attr.generation
        entry.entry_timeout = self._name_timeout
        entry.attr_timeout = SHORT if ino in self._writers else LONG
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blksize = attr.blksize
        entry.st_blocks = attr.blocks
        entry.st_atime_ns = attr.atime
        entry.st_mtime_ns = attr.mtime
        entry.st_ctime_ns = attr.ctime
        return entry

    def _new_entry(self, attr: Attr) -> EntryAttributes:
        """Reply that gives the kernel one more reference to the inode."""
        entry = self._entry(attr)
        self.vfs.ref(attr.ino)
        return entry

    def _opened(self, ino: int, fh: int, flags: int) -> FileInfo:
        self._writers.opened(fh, ino, flags)
        return FileInfo(fh=fh, keep_cache=True)

    # --- names ---------------------------------------------------------------------------------

    @handler
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        parent = _ino(parent_inode)
        if name == b".":  # a file handle (NFS, open_by_handle_at) of an inode the kernel has forgotten
            return self._new_entry(self._by_handle(parent))
        try:
            return self._new_entry(self.vfs.lookup(parent, name))
        except NotFound:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = self._name_timeout
            return absent

    def _by_handle(self, ino: int) -> Attr:
        """An inode number that comes from outside: whatever is wrong with it, the handle is stale."""
        try:
            attr = self.vfs.getattr(ino)
        except FsError as exc:
            raise Stale(f"inode {ino}: {exc}") from exc
        if attr.nlink == 0:
            raise Stale(f"inode {ino}: not in use")
        return attr

    # pyfuse3 awaits forget() like the others, but it must not raise anything at all
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.requests += 1
        try:
            self.vfs.forget([(_ino(ino), count) for ino, count in inode_list])
        except Exception as exc:  # noqa: BLE001
            self.errno_of("forget", exc)

    @handler
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._new_entry(self.vfs.mknod(_ino(parent_inode), name, mode, rdev, _caller(ctx)))

    @handler
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._new_entry(self.vfs.mkdir(_ino(parent_inode), name, mode, _caller(ctx)))

    @handler
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._new_entry(self.vfs.symlink(_ino(parent_inode), name, target, _caller(ctx)))

    @handler
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._new_entry(self.vfs.link(_ino(inode), _ino(new_parent_inode), new_name, _caller(ctx)))

    @handler
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.vfs.unlink(_ino(parent_inode), name, _caller(ctx))

    @handler
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.vfs.rmdir(_ino(parent_inode), name, _caller(ctx))

    @handler
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.vfs.rename(_ino(parent_inode_old), name_old, _ino(parent_inode_new), name_new, flags, _caller(ctx))

    @handler
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.vfs.readlink(_ino(inode))

    # --- attributes ----------------------------------------------------------------------------

    @handler
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.vfs.getattr(_ino(inode)))

    @handler
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes: dict[str, Any] = {}
        if fields.update_mode:
            changes["mode"] = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            changes["uid"] = attr.st_uid
        if fields.update_gid:
            changes["gid"] = attr.st_gid
        if fields.update_size:
            changes["size"] = attr.st_size
        if fields.update_atime:
            changes["atime"] = attr.st_atime_ns
        if fields.update_mtime:
            changes["mtime"] = attr.st_mtime_ns
        if fields.update_ctime:
            changes["ctime"] = attr.st_ctime_ns
            if self._clock is not None:  # only the kernel sets ctime, so this is its clock
                self._clock.saw(attr.st_ctime_ns)
        return self._entry(self.vfs.setattr(_ino(inode), caller=_caller(ctx), fh=fh, **changes))

    @handler
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        found = self.vfs.statfs()
        reply = StatvfsData()
        reply.f_bsize = found.bsize
        reply.f_frsize = found.bsize
        reply.f_blocks = found.blocks
        reply.f_bfree = found.bfree
        reply.f_bavail = found.bavail
        reply.f_files = found.files
        reply.f_ffree = found.ffree
        reply.f_favail = found.ffree
        reply.f_namemax = found.namemax
        return reply

    @handler
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.vfs.getxattr(_ino(inode), name, _caller(ctx))

    @handler
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self.vfs.setxattr(_ino(inode), name, value, 0, _caller(ctx))

    @handler
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self.vfs.listxattr(_ino(inode), _caller(ctx))

    @handler
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.vfs.removexattr(_ino(inode), name, _caller(ctx))

    # --- files ---------------------------------------------------------------------------------

    @handler
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        ino = _ino(inode)
        return self._opened(ino, self.vfs.open(ino, flags, _caller(ctx)), flags)

    @handler
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        fh, attr = self.vfs.create(_ino(parent_inode), name, mode, flags, _caller(ctx))
        return self._opened(attr.ino, fh, flags), self._new_entry(attr)

    @handler
    def read(self, fh: int, off: int, size: int) -> bytes:
        return self.vfs.read(fh, off, size)

    @handler
    def write(self, fh: int, off: int, buf: bytes) -> int:
        done = self.vfs.write(fh, off, buf)
        while done < len(buf):
            # what is left of dirty pages after a short write the kernel forgets: only an error reaches fsync and close
            done += self.vfs.write(fh, off + done, memoryview(buf)[done:])
        return done

    @handler
    def flush(self, fh: int) -> None:
        """Nothing is left to do at close(2): the kernel writes dirty pages before it asks. ENOSYS: do not ask again."""
        raise FUSEError(errno.ENOSYS)

    @handler
    def release(self, fh: int) -> None:
        self._writers.closed(fh)
        self.vfs.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._sync("fsync", fh)

    async def _sync(self, request: str, fh: int) -> None:
        """Durability is waited for outside the vfs, so this handler really is asynchronous."""
        self.requests += 1
        try:
            self.vfs.check_open(fh)
            await self.durable()
        except Exception as exc:  # noqa: BLE001  (mapped and logged by errno_of)
            raise FUSEError(self.errno_of(request, exc)) from None

    # --- directories ---------------------------------------------------------------------------

    @handler
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self.vfs.opendir(_ino(inode))

    @handler
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        vfs = self.vfs
        for item in vfs.readdir(fh, start_id):
            name = item.name
            if b"/" in name or b"\0" in name:  # the kernel would end the whole listing with EIO
                self._failures.complain("readdir: inode %d has the impossible name %r", item.ino, name)
                continue
            if not pyfuse3.readdir_reply(token, name, self._listed(item.ino, item.ftype), item.cookie):
                return
            if name not in (b".", b".."):  # for these two the kernel takes no reference
                vfs.ref(item.ino)

    def _listed(self, ino: int, ftype: int) -> EntryAttributes:
        """Attributes for a listing. A damaged inode must not hide the other names: it is listed by its
        type, and nothing of it is cached, so using it gives the error."""
        try:
            return self._entry(self.vfs.getattr(ino))
        except FsError as exc:
            self.errno_of("readdir", exc)
            entry = EntryAttributes()
            entry.st_ino = ino if ino != ROOT_INO else FUSE_ROOT
            entry.st_mode = _FTYPE_MODES.get(ftype, stat.S_IFREG)
            entry.entry_timeout = entry.attr_timeout = 0.0
            return entry

    @handler
    def releasedir(self, fh: int) -> None:
        self.vfs.releasedir(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync("fsyncdir", fh)


_FTYPE_MODES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


def _ino(nodeid: int) -> int:
    """The kernel's node id as an inode number: only the root has another one."""
    return ROOT_INO if nodeid == FUSE_ROOT else nodeid


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid)  # no umask: the kernel has applied it


def _shown(args: Sequence[object]) -> str:
    """Arguments of a request for the debug log: numbers and names, data by its length."""
    parts = []
    for arg in args:
        if isinstance(arg, bytes) and len(arg) > 64:
            parts.append(f"<{len(arg)} bytes>")
        elif isinstance(arg, (int, bytes, type(None))):
            parts.append(repr(arg))
        elif isinstance(arg, RequestContext):
            parts.append(f"uid={arg.uid}")
    return f"({', '.join(parts)})"
