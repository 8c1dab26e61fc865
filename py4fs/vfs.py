"""Inode-level operations with POSIX semantics: what FUSE sessions, the Python API and the command line call.

Everything is synchronous and raises :class:`py4fs.errors.FsError` only. Inode numbers are ext4's (the root is 2).
Permission bits are not checked here: the kernel does that for a mount (``default_permissions``, ACLs), and whoever
opens an image as a library owns it. What only the server can know is checked: immutable, append-only, read-only.

File data goes through the iomap client, in three steps: *plan*, device I/O, *finish* (DESIGN: "File data").
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from py4fs.errors import (
    AccessDenied,
    BadHandle,
    Busy,
    FileTooBig,
    FsError,
    Invalid,
    IsADirectory,
    NoSpace,
    NoSuchAddress,
    NotFound,
    NotPermitted,
    NotSupported,
    ReadOnly,
)
from py4fs.ext4 import acl
from py4fs.ext4.dirread import ReaderState
from py4fs.ext4.inode import NS, Inode
from py4fs.ext4.layout.inode import (
    EXT4_APPEND_FL,
    EXT4_IMMUTABLE_FL,
    EXT4_NOATIME_FL,
    EXT4_ROOT_INO,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
)
from py4fs.ext4.namespace import Owner
from py4fs.ext4.reclaim import REMOVE_CREDITS
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.ext4.volume import StatFs, Volume
from py4fs.iomap.client import IomapClient, IomapFile
from py4fs.iomap.records import INVAL_TO_EOF, Mapping, OpFlags
from py4fs.iomap.server import Ext4Iomap

T = TypeVar("T")
log = logging.getLogger(__name__)

ROOT_INO = EXT4_ROOT_INO
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
XATTR_CREATE = 1
XATTR_REPLACE = 2
DAY = 86400 * NS
PAGE = 4096
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20
FALLOC_MODES = frozenset(
    (
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_INSERT_RANGE,
    )
)

#: metadata objects that one namespace operation touches at most: a directory split at every level of a three-level
#: index, allocation of an inode and of its blocks, xattr blocks
NAMESPACE_CREDITS = 64
ATTR_CREDITS = 16


class _Now:
    """The type of :data:`NOW`."""

    def __repr__(self) -> str:
        return "NOW"


#: a time that :meth:`Vfs.setattr` replaces by its clock's
NOW = _Now()


class Attr(NamedTuple):
    """stat(2) of an inode. Times in ns since the epoch, ``blocks`` in 512-byte units, ``flags`` as chattr(1)'s."""

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime: int
    mtime: int
    ctime: int
    crtime: int | None
    flags: int


class Caller(NamedTuple):
    """Who asks. ``umask`` only where the kernel has not applied it already."""

    uid: int
    gid: int
    umask: int = 0


ROOT = Caller(0, 0)


class DirEntry(NamedTuple):
    """A name in a directory; ``cookie`` continues after it, ``ftype`` is the on-disk type (0 if unknown)."""

    name: bytes
    ino: int
    ftype: int
    cookie: int


class OpenFile:
    """A handle of a regular file."""

    __slots__ = ("file", "inode", "reserve", "writable")

    def __init__(self, inode: Inode, file: IomapFile, writable: bool, reserve: Reserve) -> None:
        self.inode = inode
        self.file = file
        self.writable = writable
        #: writes come later and as somebody else (writeback), so the opener's right to reserved blocks counts
        self.reserve = reserve


class OpenDir:
    """A handle of a directory."""

    __slots__ = ("inode", "reader")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.reader = ReaderState()


class Vfs:
    """The operations on one volume. ``atime`` is ``relatime``, ``strictatime`` or ``noatime``."""

    def __init__(self, volume: Volume, *, atime: str = "relatime") -> None:
        if atime not in ("relatime", "strictatime", "noatime"):
            raise Invalid(f"atime mode {atime!r}: expected relatime, strictatime or noatime")
        self.volume = volume
        server = Ext4Iomap(volume.files, volume.operation, groups=volume.geometry.groups)
        self.client = IomapClient(volume, server)
        #: set by a session whose kernel keeps size and times of regular files (writeback cache)
        self.kernel_owns_times = False
        self._atime = "noatime" if volume.readonly else atime
        self._namespace = volume.namespace
        self._inodes = volume.inodes
        record = volume.superblock.record
        self._resuid: int = record.s_def_resuid
        self._resgid: int = record.s_def_resgid
        #: lookup counts of the kernel
        self._refs: dict[int, int] = {}
        #: open handles per inode
        self._opens: dict[int, int] = {}
        volume.inodes.holders.append(self._opens)
        self._files: dict[int, OpenFile] = {}
        self._dirs: dict[int, OpenDir] = {}
        self._next_fh = 1

    # -- helpers -------------------------------------------------------------------------------------------

    def _attr(self, inode: Inode) -> Attr:
        return Attr(
            inode.ino,
            inode.generation,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            inode.size,
            inode.blocks,
            self.volume.geometry.block_size,
            inode.atime,
            inode.mtime,
            inode.ctime,
            inode.crtime,
            inode.flags,
        )

    def _get(self, ino: int) -> Inode:
        """An inode that may be open although its last name is gone."""
        if ino in self.volume.orphans:
            return self._inodes.get_orphan(ino)
        return self._inodes.get(ino)

    def _first(self, ino: int) -> Inode:
        """As :meth:`_get`, at the start of a request, when nobody holds an object of the caches."""
        self.volume.trim()
        return self._get(ino)

    def _reserve(self, caller: Caller) -> Reserve:
        root = caller.uid in (0, self._resuid) or (self._resgid != 0 and caller.gid == self._resgid)
        return Reserve.ROOT if root else Reserve.NONE

    def _change(self, step: Callable[[Operation], T], credits: int, reserve: Reserve) -> T:
        """Run ``step`` in an operation; when blocks freed before only await a commit to be had, commit and retry."""
        volume = self.volume
        try:
            with volume.operation(credits, reserve) as tx:
                return step(tx)
        except NoSpace:
            if not volume.transactions.running.freed:
                raise
            volume.commit()
            with volume.operation(credits, reserve) as tx:
                return step(tx)

    def _check_writable(self) -> None:
        if self.volume.readonly:
            raise ReadOnly(f"file system is read-only: {self.volume.readonly_reason or 'after an error'}")

    def _held(self, ino: int) -> bool:
        return ino in self._refs or ino in self._opens

    def _evict_if_unused(self, inode: Inode) -> None:
        """Free an inode that nobody can reach any more.

        What fails here fails nobody's request: the name is gone already. The inode stays on the orphan list, and is
        tried again at the end, or freed when the image is opened the next time.
        """
        if inode.nlink or self._held(inode.ino) or self.volume.readonly:
            return
        self.client.forget(inode.ino)
        try:
            self.volume.reclaim.evict(inode)
        except FsError as exc:
            log.error("inode %d could not be freed and stays on the orphan list: %s", inode.ino, exc)

    # -- lookup and lifetime -------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Raises NotFound, NotADirectory, NameTooLong, Corrupt, DeviceError."""
        directory = self._first(parent)
        if name in (b".", b".."):
            if not directory.is_dir:
                self._namespace.directory(directory)
            if name == b".":
                return self._attr(directory)
            return self._attr(self._get(self._namespace.directory(directory).parent()))
        return self._attr(self._namespace.get(directory, name))

    def ref(self, ino: int, count: int = 1) -> None:
        """The kernel has learned of an inode ``count`` times more."""
        self._refs[ino] = self._refs.get(ino, 0) + count

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """The kernel has dropped (inode, count) references. An inode without names, holders and references is freed."""
        for ino, count in forgotten:
            left = self._refs.get(ino, 0) - count
            if left > 0:
                self._refs[ino] = left
                continue
            self._refs.pop(ino, None)
            if ino in self.volume.orphans and ino not in self._opens:
                self._evict_if_unused(self._inodes.get_orphan(ino))

    def getattr(self, ino: int) -> Attr:
        """Raises Stale, Corrupt, DeviceError."""
        return self._attr(self._first(ino))

    # -- attributes ----------------------------------------------------------------------------------------

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | _Now | None = None,
        mtime: int | _Now | None = None,
        ctime: int | _Now | None = None,
        caller: Caller = ROOT,
        fh: int | None = None,
    ) -> Attr:
        """Change what is given. ``mode`` is the permission bits, times are ns or NOW, ``size`` bytes.

        Raises NotPermitted (immutable, append-only), IsADirectory, Invalid, FileTooBig, NoSpace, ReadOnly, Corrupt.
        """
        self._check_writable()
        inode = self._first(ino)
        if inode.flags & EXT4_IMMUTABLE_FL:
            raise NotPermitted(f"inode {ino} is immutable")
        if inode.flags & EXT4_APPEND_FL and (mode, uid, gid, size) != (None, None, None, None):
            raise NotPermitted(f"inode {ino} is append-only")
        for owner in (uid, gid):
            if owner is not None and not 0 <= owner <= 0xFFFFFFFF:
                raise Invalid(f"id {owner}: expected 0..4294967295")
        if size is not None:
            self._set_size(inode, size, caller)

        def step(tx: Operation) -> None:
            tx.touch(inode)
            if uid is not None:
                inode.uid = uid
            if gid is not None:
                inode.gid = gid
            if mode is not None:
                inode.mode = inode.mode & S_IFMT | mode & 0o7777
                self._chmod_acl(tx, inode)
            if atime is not None:
                inode.atime = self._time(tx, atime)
            if mtime is not None:
                inode.mtime = self._time(tx, mtime)
            inode.ctime = self._time(tx, NOW if ctime is None else ctime)

        if (mode, uid, gid, atime, mtime, ctime) != (None,) * 6:
            self._change(step, ATTR_CREDITS, Reserve.ROOT)
        return self._attr(inode)

    def _time(self, tx: Operation, value: int | _Now) -> int:
        return tx.now if isinstance(value, _Now) else self.volume.clamp_time(value)

    def _chmod_acl(self, tx: Operation, inode: Inode) -> None:
        """Kernel: posix_acl_chmod; the group bits of the mode are the ACL's mask."""
        if inode.is_symlink:
            return
        old = self.volume.xattrs.get_acl(inode, default=False)
        if old is not None:
            self.volume.xattrs.set_acl(tx, inode, acl.chmod(old, inode.mode), default=False)

    def _set_size(self, inode: Inode, size: int, caller: Caller) -> None:
        if inode.is_dir:
            raise IsADirectory(f"inode {inode.ino} is a directory")
        if not inode.is_reg or size < 0:
            raise Invalid(f"inode {inode.ino} cannot be truncated to {size} bytes")
        if size > self.volume.files.max_size:
            raise FileTooBig(f"{size} bytes: at most {self.volume.files.max_size}")
        self.volume.start_writing()
        file = self._file(inode)
        old = inode.size
        tail = -size % self.volume.geometry.block_size
        if size > old:
            # what lies behind the old end in its block must read as zeros from now on
            self.client.zero_range(file, old, size - old)
        elif tail and size < old:
            # zeroed below; what has to be read for that must not fail when the size has changed
            self.client.mapping(file, size, tail, int(OpFlags.ZERO))
        done = self._change(lambda tx: self._start_size(tx, inode, size), REMOVE_CREDITS, self._reserve(caller))
        if size > old:
            return
        self.client.truncated(file, size)
        try:
            if size < old:
                self.client.zero_range(file, size, tail)
            if not done:
                self.volume.reclaim.finish_shrink(inode)
        finally:
            # what was looked up meanwhile may have been freed
            self.client.truncated(file, size)

    def _start_size(self, tx: Operation, inode: Inode, size: int) -> bool:
        done = True
        if size > inode.size:
            tx.touch(inode)
            inode.size = size
        else:
            done = self.volume.reclaim.start_shrink(tx, inode, size)
        inode.mtime = inode.ctime = tx.now
        return done

    def readlink(self, ino: int) -> bytes:
        """Raises Invalid (not a symlink), Corrupt, DeviceError."""
        inode = self._first(ino)
        if not inode.is_symlink:
            raise Invalid(f"inode {ino} is not a symbolic link")
        target = self._namespace.target(inode)
        self._touch_atime(inode)
        return target

    # -- names ---------------------------------------------------------------------------------------------

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0, caller: Caller = ROOT) -> Attr:
        """A file, device, FIFO or socket; ``mode`` with its type bits."""
        if mode & S_IFMT in (S_IFDIR, S_IFLNK):
            raise NotPermitted("mknod makes no directories and symbolic links")
        return self._attr(self._make(parent, name, mode if mode & S_IFMT else mode | 0x8000, caller, rdev=rdev))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o777, caller: Caller = ROOT) -> Attr:
        """Raises Exists, NotFound, NotADirectory, TooManyLinks, NoSpace, ReadOnly, …"""
        # set-group-ID comes from the parent only
        return self._attr(self._make(parent, name, S_IFDIR | mode & 0o1777, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller = ROOT) -> Attr:
        """Raises NameTooLong for a target that does not fit a block."""
        return self._attr(self._make(parent, name, S_IFLNK | 0o777, caller, target=target))

    def _make(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        self._check_writable()
        directory = self._first(parent)
        owner = Owner(*caller)

        def step(tx: Operation) -> Inode:
            return self._namespace.create(tx, directory, name, mode, owner, rdev=rdev, target=target)

        return self._change(step, NAMESPACE_CREDITS, self._reserve(caller))

    def link(self, ino: int, parent: int, name: bytes, caller: Caller = ROOT) -> Attr:
        """A further name for a file that is not a directory."""
        self._check_writable()
        inode, directory = self._first(ino), self._get(parent)
        self._change(
            lambda tx: self._namespace.link(tx, inode, directory, name), NAMESPACE_CREDITS, self._reserve(caller)
        )
        return self._attr(inode)

    def unlink(self, parent: int, name: bytes, caller: Caller = ROOT) -> None:
        """Remove a name; the inode lives on while it is open or known to the kernel."""
        self._check_writable()
        directory = self._first(parent)
        self._evict_if_unused(
            self._change(
                lambda tx: self._namespace.unlink(tx, directory, name), NAMESPACE_CREDITS, self._reserve(caller)
            )
        )

    def rmdir(self, parent: int, name: bytes, caller: Caller = ROOT) -> None:
        """Remove an empty directory."""
        self._check_writable()
        directory = self._first(parent)
        inode = self._namespace.get(directory, name) if name != b"." else None
        if inode is not None and inode.ino == ROOT_INO:
            raise Busy("the root directory cannot be removed")
        self._evict_if_unused(
            self._change(
                lambda tx: self._namespace.rmdir(tx, directory, name), NAMESPACE_CREDITS, self._reserve(caller)
            )
        )

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0, caller: Caller = ROOT
    ) -> None:
        """renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE. Raises Invalid for other flags."""
        self._check_writable()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise Invalid(f"rename flags {flags:#x}")
        old_dir, new_dir = self._first(old_parent), self._get(new_parent)
        namespace = self._namespace

        def step(tx: Operation) -> Inode | None:
            if flags & RENAME_EXCHANGE:
                namespace.exchange(tx, old_dir, old_name, new_dir, new_name)
                return None
            noreplace = bool(flags & RENAME_NOREPLACE)
            return namespace.rename(tx, old_dir, old_name, new_dir, new_name, noreplace=noreplace)

        victim = self._change(step, NAMESPACE_CREDITS, self._reserve(caller))
        if victim is not None:
            self._evict_if_unused(victim)

    # -- files ---------------------------------------------------------------------------------------------

    def _file(self, inode: Inode) -> IomapFile:
        return self.client.file(inode)

    def open(self, ino: int, flags: int, caller: Caller = ROOT) -> int:
        """A handle for a regular file; ``flags`` as open(2)'s (access mode, O_TRUNC, O_APPEND).

        Raises IsADirectory, Invalid, NotPermitted, ReadOnly, Corrupt, DeviceError.
        """
        inode = self._first(ino)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if inode.is_dir:
            raise IsADirectory(f"inode {ino} is a directory")
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        if writable or flags & os.O_TRUNC:
            self._check_writable()
            if inode.flags & EXT4_IMMUTABLE_FL:
                raise NotPermitted(f"inode {ino} is immutable")
            if inode.flags & EXT4_APPEND_FL and (not flags & os.O_APPEND or flags & os.O_TRUNC):
                raise NotPermitted(f"inode {ino} is append-only")
        if flags & os.O_TRUNC:
            self._set_size(inode, 0, caller)
        return self._open(inode, writable, caller)

    def _open(self, inode: Inode, writable: bool, caller: Caller) -> int:
        file = self._file(inode)
        self.client.opened(file)
        fh = self._new_handle(inode.ino)
        self._files[fh] = OpenFile(inode, file, writable, self._reserve(caller))
        return fh

    def _new_handle(self, ino: int) -> int:
        fh = self._next_fh
        self._next_fh += 1
        self._opens[ino] = self._opens.get(ino, 0) + 1
        return fh

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller = ROOT) -> tuple[int, Attr]:
        """Make a regular file and open it; returns (handle, attributes). Raises Exists and as :meth:`mkdir`."""
        inode = self._make(parent, name, 0x8000 | mode & 0o7777, caller)
        return self._open(inode, flags & os.O_ACCMODE != os.O_RDONLY, caller), self._attr(inode)

    def _handle(self, fh: int) -> OpenFile:
        handle = self._files.get(fh)
        if handle is None:
            raise BadHandle(f"file handle {fh} is not open")
        self.volume.trim()
        return handle

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from byte ``offset`` on; fewer at the end of the file. Raises Corrupt, DeviceError."""
        handle = self._handle(fh)
        inode = handle.inode
        size = min(size, inode.size - offset)
        if size <= 0:
            return b""
        data = self.client.read(handle.file, offset, size)
        if self._atime != "noatime":
            self._touch_atime(inode)
        return data

    def write(self, fh: int, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write ``data`` at byte ``offset``; returns how much of it, which is less than all only for want of space.

        Raises BadHandle, FileTooBig, NoSpace (nothing was written), ReadOnly, Corrupt, DeviceError.
        """
        handle = self._handle(fh)
        if not handle.writable:
            raise BadHandle(f"file handle {fh} is not open for writing")
        if not data:
            return 0
        end = offset + len(data)
        if end > self.volume.files.max_size:
            raise FileTooBig(f"write to byte {end}: at most {self.volume.files.max_size}")
        self.volume.start_writing()
        stamp = not self.kernel_owns_times
        try:
            done = self.client.write(handle.file, offset, data, reserve=handle.reserve, stamp=stamp)
        except NoSpace:
            if not self.volume.transactions.running.freed:
                raise
            done = 0
        if done < len(data) and self.volume.transactions.running.freed:
            # what freed blocks there are can be had after a commit
            self.volume.commit()
            rest = memoryview(data)[done:]
            try:
                done += self.client.write(handle.file, offset + done, rest, reserve=handle.reserve, stamp=stamp)
            except NoSpace:
                if not done:
                    raise
        return done

    def mappings(self, ino: int) -> list[Mapping]:
        """Where the data of a regular file lies, holes included. Raises Invalid, Corrupt, DeviceError."""
        inode = self._first(ino)
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        return list(self.client.report(self._file(inode)))

    def flush(self, fh: int) -> None:
        """close(2) was called on a descriptor. Everything is in memory or on the device already."""
        self._handle(fh)

    def release(self, fh: int) -> None:
        """The last descriptor of a handle is gone; an unlinked file is freed. Raises BadHandle."""
        handle = self._files.pop(fh, None)
        if handle is None:
            raise BadHandle(f"file handle {fh} is not open")
        self._close(handle.inode)

    def _close(self, inode: Inode) -> None:
        left = self._opens[inode.ino] - 1
        if left:
            self._opens[inode.ino] = left
            return
        del self._opens[inode.ino]
        self.client.closed(inode.ino)
        self._evict_if_unused(inode)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """Return when the file's data and all metadata are durable. Raises DeviceError."""
        self._handle(fh)
        self.volume.commit(durable=True)

    def seek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE: the next byte of that kind from ``offset`` on.

        Blocks that are allocated but not written count as a hole. Raises NoSuchAddress, Invalid, Corrupt, DeviceError.
        """
        handle = self._handle(fh)
        size = handle.inode.size
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Invalid(f"seek whence {whence}")
        if not 0 <= offset < size:
            raise NoSuchAddress(f"byte {offset} of {size}")
        if whence == os.SEEK_HOLE:
            return self.client.seek_hole(handle.file, offset, size)
        found = self.client.seek_data(handle.file, offset, size)
        if found is None:
            raise NoSuchAddress(f"no data from byte {offset} on")
        return found

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): allocate, and with FALLOC_FL_* punch a hole, zero, collapse or insert a range (bytes).

        Raises BadHandle, Invalid, NotPermitted, NotSupported, FileTooBig, NoSpace, Corrupt, DeviceError.
        """
        handle = self._handle(fh)
        if not handle.writable:
            raise BadHandle(f"file handle {fh} is not open for writing")
        self._check_writable()
        inode = handle.inode
        if offset < 0 or length <= 0:
            raise Invalid(f"range of {length} bytes at {offset}")
        if mode not in FALLOC_MODES:
            raise NotSupported(f"fallocate mode {mode:#x}")
        kind = mode & ~FALLOC_FL_KEEP_SIZE
        if offset + length > self.volume.files.max_size:
            raise FileTooBig(f"range up to byte {offset + length}: at most {self.volume.files.max_size}")
        if inode.flags & EXT4_IMMUTABLE_FL or (inode.flags & EXT4_APPEND_FL and kind):
            raise NotPermitted(f"inode {inode.ino} is immutable or append-only")
        self._stamp(inode)  # before what only ext4 can refuse (kernel: file_modified)
        self._fallocate(handle, mode, offset, length)

    def _fallocate(self, handle: OpenFile, mode: int, offset: int, length: int) -> None:
        inode, end = handle.inode, offset + length
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch(handle, offset, end)
        elif mode & FALLOC_FL_ZERO_RANGE:
            self._zero_range(handle, offset, end, None if mode & FALLOC_FL_KEEP_SIZE else end)
        elif mode == FALLOC_FL_COLLAPSE_RANGE:
            self._check_blocks(offset, length)
            if end >= inode.size:
                raise Invalid(f"range up to byte {end} of {inode.size}: truncate instead")
            block = self.volume.geometry.block_size
            self.volume.files.extent_tree(inode)
            try:
                self.volume.fallocator.collapse(inode, offset // block, end // block)
            finally:
                self.client.invalidate(handle.file, offset, INVAL_TO_EOF)
        elif mode == FALLOC_FL_INSERT_RANGE:
            self._check_blocks(offset, length)
            if offset >= inode.size:
                raise Invalid(f"byte {offset} of {inode.size}: extend instead")
            if inode.size + length > self.volume.files.max_size:
                raise FileTooBig(f"{inode.size + length} bytes: at most {self.volume.files.max_size}")
            block = self.volume.geometry.block_size
            try:
                self.volume.fallocator.insert(inode, offset // block, length // block)
            finally:
                self.client.invalidate(handle.file, offset, INVAL_TO_EOF)
        else:
            self._preallocate(handle, offset, end, None if mode & FALLOC_FL_KEEP_SIZE else end)

    def _check_blocks(self, offset: int, length: int) -> None:
        block = self.volume.geometry.block_size
        if offset % block or length % block:
            raise Invalid(f"range of {length} bytes at {offset}: whole blocks of {block} bytes only")

    def _preallocate(self, handle: OpenFile, offset: int, end: int, size: int | None) -> None:
        block = self.volume.geometry.block_size
        inode = handle.inode
        if size is not None and size > inode.size:
            self.volume.files.extent_tree(inode)
            # what lies behind the old end in its block must read as zeros from now on
            self.client.zero_range(handle.file, inode.size, -inode.size % block)
        try:
            self._in_pieces(lambda: self.volume.fallocator.allocate(
                inode, offset // block, -(-end // block), size, handle.reserve
            ))
        finally:
            self.client.invalidate(handle.file, offset, end - offset)

    def _in_pieces(self, step: Callable[[], None]) -> None:
        """Run something made of several operations; once more after a commit when only that can give space."""
        try:
            step()
        except NoSpace:
            if not self.volume.transactions.running.freed:
                raise
            self.volume.commit()
            step()

    def _punch(self, handle: OpenFile, offset: int, end: int) -> None:
        """Kernel: ext4_punch_hole. Nothing to do behind the end of the file, but for the rest of its last page."""
        block = self.volume.geometry.block_size
        inode, file = handle.inode, handle.file
        if offset >= inode.size:
            return
        if end >= inode.size:
            end = max(-(-inode.size // PAGE) * PAGE, -(-inode.size // block) * block)
        self._zero_edges(file, offset, end)
        first, stop = -(-offset // block), end // block
        try:
            if first < stop:
                self.volume.fallocator.punch(inode, first, stop)
        finally:
            self.client.invalidate(file, offset, end - offset)

    def _zero_range(self, handle: OpenFile, offset: int, end: int, size: int | None) -> None:
        """Kernel: ext4_zero_range: the whole range is allocated, and reads as zeros."""
        block = self.volume.geometry.block_size
        inode, file = handle.inode, handle.file
        self.volume.files.extent_tree(inode)
        self._zero_edges(file, offset, end)
        first, stop = -(-offset // block), end // block
        try:
            if first < stop:
                self._in_pieces(lambda: self.volume.fallocator.zero(inode, first, stop))
        finally:
            self.client.invalidate(file, offset, end - offset)
        self._preallocate(handle, offset, end, size)

    def _zero_edges(self, file: IomapFile, offset: int, end: int) -> None:
        """Zeros for the parts of blocks at both ends of a range."""
        block = self.volume.geometry.block_size
        first, stop = -(-offset // block) * block, end // block * block
        if first > stop:
            self.client.zero_range(file, offset, end - offset)
        else:
            self.client.zero_range(file, offset, first - offset)
            self.client.zero_range(file, stop, end - stop)

    def _stamp(self, inode: Inode) -> None:
        with self.volume.operation(1) as tx:
            tx.touch(inode)
            inode.mtime = inode.ctime = tx.now

    # -- directories ---------------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        """A handle for reading a directory. Raises NotADirectory, Corrupt."""
        inode = self._first(ino)
        self._namespace.directory(inode)
        fh = self._new_handle(ino)
        self._dirs[fh] = OpenDir(inode)
        return fh

    def _dir_handle(self, fh: int) -> OpenDir:
        handle = self._dirs.get(fh)
        if handle is None:
            raise BadHandle(f"directory handle {fh} is not open")
        return handle

    def readdir(self, fh: int, cookie: int = 0) -> Iterator[DirEntry]:
        """Entries from ``cookie`` (0: the start, or an entry's cookie: behind it) on, ``.`` and ``..`` included.

        What is there during the whole pass comes exactly once, whatever is added and removed meanwhile.
        """
        handle = self._dir_handle(fh)
        if handle.inode.nlink == 0:
            raise NotFound(f"directory inode {handle.inode.ino} was removed")
        self._touch_atime(handle.inode)
        for entry in self._namespace.directory(handle.inode).entries(cookie, handle.reader):
            yield DirEntry(*entry)

    def releasedir(self, fh: int) -> None:
        """As :meth:`release`."""
        handle = self._dirs.pop(fh, None)
        if handle is None:
            raise BadHandle(f"directory handle {fh} is not open")
        self._close(handle.inode)

    def fsyncdir(self, fh: int, datasync: bool = False) -> None:
        """As :meth:`fsync`, for the entries of a directory."""
        self._dir_handle(fh)
        self.volume.commit(durable=True)

    def _touch_atime(self, inode: Inode) -> None:
        """relatime: only when the old one is not newer than the last change, or is a day old."""
        if self._atime == "noatime" or inode.flags & EXT4_NOATIME_FL or self.volume.readonly:
            return
        now = self.volume.now()
        if self._atime == "relatime" and inode.atime > max(inode.mtime, inode.ctime) and now - inode.atime < DAY:
            return
        if inode.atime != now:
            with self.volume.operation(1) as tx:
                tx.touch(inode)
                inode.atime = now

    # -- extended attributes -------------------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes, caller: Caller = ROOT) -> bytes:
        """The value of ``name`` (``b"user.x"``). Raises NoData, NotSupported, Corrupt, DeviceError."""
        inode = self._first(ino)
        default = acl.xattr_kind(name)
        if default is not None:
            return self.volume.xattrs.get_acl_xattr(inode, default=default)
        return self.volume.xattrs.get(inode, name)

    def listxattr(self, ino: int, caller: Caller = ROOT) -> list[bytes]:
        """All names; those of ``trusted.`` for root only."""
        names = self.volume.xattrs.list(self._first(ino))
        return names if caller.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, caller: Caller = ROOT) -> None:
        """Set, with XATTR_CREATE or XATTR_REPLACE. Raises Exists, NoData, NoSpace, NotSupported, NotPermitted."""
        self._check_writable()
        inode = self._first(ino)
        self._check_xattr_change(inode, name)
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise Invalid(f"setxattr flags {flags:#x}")
        default = acl.xattr_kind(name)

        def step(tx: Operation) -> None:
            if default is None:
                changed = self.volume.xattrs.set(
                    tx, inode, name, value, create=bool(flags & XATTR_CREATE), replace=bool(flags & XATTR_REPLACE)
                )
            else:
                changed = self._set_acl(tx, inode, value, default)
            if changed:
                tx.touch(inode)
                inode.ctime = tx.now

        self._change(step, ATTR_CREDITS, self._reserve(caller))

    def _set_acl(self, tx: Operation, inode: Inode, value: bytes, default: bool) -> bool:
        """Kernel: ext4_set_acl. An access ACL sets the mode, and one that says no more than a mode is not kept.

        Returns whether anything changed.
        """
        if inode.is_symlink:
            raise NotSupported("symbolic links have no ACLs")
        if default and not inode.is_dir:
            raise AccessDenied(f"inode {inode.ino} is not a directory: it has no default ACL")
        entries = acl.from_xattr(value)
        if entries is not None and not default:
            mode, entries = acl.update_mode(entries, inode.mode)
            changed = self.volume.xattrs.set_acl(tx, inode, entries, default=default)
            if mode != inode.mode:
                tx.touch(inode)
                inode.mode = mode
                changed = True
            return changed
        return self.volume.xattrs.set_acl(tx, inode, entries, default=default)

    def removexattr(self, ino: int, name: bytes, caller: Caller = ROOT) -> None:
        """Raises NoData, NotSupported, NotPermitted, Corrupt."""
        self._check_writable()
        inode = self._first(ino)
        self._check_xattr_change(inode, name)
        default = acl.xattr_kind(name)

        def step(tx: Operation) -> None:
            if default is None:
                self.volume.xattrs.remove(tx, inode, name)
            elif not self.volume.xattrs.set_acl(tx, inode, None, default=default):
                return
            tx.touch(inode)
            inode.ctime = tx.now

        self._change(step, ATTR_CREDITS, self._reserve(caller))

    @staticmethod
    def _check_xattr_change(inode: Inode, name: bytes) -> None:
        if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"inode {inode.ino} is immutable or append-only")
        if name.startswith(b"user.") and not (inode.is_reg or inode.is_dir):
            raise NotPermitted(f"inode {inode.ino}: user attributes only on files and directories")

    # -- whole file system ---------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """statvfs(3) of the volume."""
        return self.volume.statfs()

    def commit(self) -> None:
        """Bring changes to the device; the periodic task calls this. Raises DeviceError."""
        self.volume.commit()

    def sync(self) -> None:
        """Return when everything is durable. Raises DeviceError."""
        self.volume.commit(durable=True)

    def close(self) -> None:
        """Everything on the device, unlinked files freed, the volume clean. Raises DeviceError."""
        self._files.clear()
        self._dirs.clear()
        self._opens.clear()
        self._refs.clear()
        try:
            for ino in list(self.volume.orphans):
                inode = self._inodes.get_orphan(ino)
                self._evict_if_unused(inode)
                if inode.nlink and not self.volume.readonly:
                    self._finish_shrink(inode)
        finally:
            self.volume.close()

    def _finish_shrink(self, inode: Inode) -> None:
        """A truncation that failed half-way; what fails again is left to the next one who opens the image."""
        try:
            self.volume.reclaim.finish_shrink(inode)
        except FsError as exc:
            log.error("inode %d could not be truncated and stays on the orphan list: %s", inode.ino, exc)
