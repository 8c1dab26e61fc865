"""The public Python API: open an image and use it by path.

    import py4fs

    with py4fs.open_image("disk.img") as fs:
        fs.mkdir("/etc")
        fs.write_bytes("/etc/hostname", b"box\\n")
        for path, dirs, files in fs.walk("/"):
            ...

Paths are str or bytes, from the root whether or not they begin with a slash. Everything that can go wrong raises
:class:`py4fs.errors.FsError`, which is an ``OSError`` (``FileNotFoundError`` and the like where those fit).
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any

from py4fs.device.base import Device
from py4fs.device.file import FileDevice
from py4fs.device.image import open_storage
from py4fs.errors import Corrupt, FsError, Invalid, IsADirectory, NotADirectory, NotFound, SymlinkLoop
from py4fs.ext4.layout.dirent import ft_to_mode
from py4fs.ext4.quota import QuotaKind
from py4fs.ext4.volume import StatFs, Volume, VolumeOptions
from py4fs.iomap.records import Mapping
from py4fs.vfs import NOW, ROOT, ROOT_INO, Attr, Caller, Vfs, check_rename_flags, in_any_group

if TYPE_CHECKING:
    from typing_extensions import Buffer

Path = str | bytes

#: symbolic links followed in one path, as on Linux
MAX_SYMLINKS = 40


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open an image; what ``-o`` of ``py4fs mount`` sets."""

    readonly: bool = False
    #: byte offset of the file system in the image
    offset: int = 0
    #: number of the partition it is in; None: the image is no disk, or a disk with one ext4 partition
    partition: int | None = None
    #: serve the image as it is, without replaying its journal: read-only, and maybe inconsistent
    norecovery: bool = False
    #: the file or device that holds the journal, if that is not inside
    journal_path: str | None = None
    minixdf: bool = False
    #: what to do when damage is found: continue, remount-ro or panic; None: what the superblock says
    errors: str | None = None
    #: flush the device at commits
    barrier: bool = True
    atime: str = "relatime"
    #: compare files that have a Merkle tree (fs-verity) with it when they are read
    verify_data: bool = True
    #: False: attributes that begin with user. are not supported
    user_xattr: bool = True
    #: kinds of quota whose limits are kept: user, group, project (usage is always counted)
    quota_limits: frozenset[str] = frozenset()
    #: every change of a directory is durable before its call returns
    dirsync: bool = False
    #: written to s_last_mounted
    mounted_on: bytes = b""
    #: the rest; what has a field above is taken from there
    volume: VolumeOptions = field(default_factory=VolumeOptions)


def open_image(
    path: str | bytes | os.PathLike[str],
    *,
    readonly: bool = False,
    offset: int = 0,
    partition: int | None = None,
    clock: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], None] = time.sleep,
    rng: Random | None = None,
    options: OpenOptions | None = None,
) -> Filesystem:
    """Open the ext4 file system in a file or block device; it is locked against every other writer.

    ``offset`` is in bytes; ``partition`` is the number of one in a disk image, found by itself when only one has ext4.
    Android sparse and gzip, xz or zstd-compressed images are read-only. ``clock`` returns ns since the epoch,
    ``sleep`` waits some seconds (where mmp says that another host may have the image), ``rng`` makes random numbers.
    Raises NotFound, AccessDenied, Busy (somebody has it open), Corrupt, UnsupportedFeature
    (also: not ext4), NeedsRecovery, Invalid (several partitions to choose from).
    """
    if options is None:
        options = OpenOptions(readonly=readonly, offset=offset, partition=partition)
    readonly = options.readonly or options.norecovery
    image = open_storage(path, readonly=readonly, offset=options.offset, partition=options.partition)
    devices: list[Device] = [image]
    try:
        if options.journal_path is not None and not options.norecovery:
            devices.append(FileDevice.open(options.journal_path, readonly=readonly))
        return open_device(*devices, clock=clock, sleep=sleep, rng=rng, options=options)
    except BaseException:
        for device in devices:
            device.close()
        raise


def open_device(
    device: Device,
    journal_device: Device | None = None,
    *,
    clock: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], None] = time.sleep,
    rng: Random | None = None,
    options: OpenOptions | None = None,
) -> Filesystem:
    """Open the file system on a device object (py4fs.device); ``journal_device`` holds its journal, if outside.

    Raises as :func:`open_image`.
    """
    options = options or OpenOptions()
    volume_options = replace(
        options.volume,
        readonly=options.readonly,
        norecovery=options.norecovery,
        minixdf=options.minixdf,
        errors=options.errors,
        barrier=options.barrier,
        verify_data=options.verify_data,
        user_xattr=options.user_xattr,
        quota_limits=frozenset(QuotaKind[kind.upper()] for kind in options.quota_limits),
        nodename=os.fsencode(os.uname().nodename),
        mounted_on=options.mounted_on,
    )
    volume = Volume.open(device, volume_options, clock, rng, journal_device=journal_device, sleep=sleep)
    return Filesystem(Vfs(volume, atime=options.atime, dirsync=options.dirsync))


def _parts(path: Path) -> list[bytes]:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise Invalid(f"path with a NUL byte: {path!r}")
    return [part for part in raw.split(b"/") if part and part != b"."]


class Filesystem:
    """An open image. A context manager; :meth:`close` writes everything and marks the image clean."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs

    @property
    def volume(self) -> Volume:
        return self.vfs.volume

    @property
    def notices(self) -> list[str]:
        """Lines about the image that its user should see."""
        return self.vfs.volume.notices

    def __enter__(self) -> Filesystem:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write everything, free unlinked files, mark the image clean. Raises DeviceError. Twice is fine."""
        self.vfs.close()

    def sync(self) -> None:
        """Return when everything written so far is durable. Raises DeviceError."""
        self.vfs.sync()

    # -- paths ---------------------------------------------------------------------------------------------

    def _walk(self, parts: list[bytes], follow: bool, start: int = ROOT_INO) -> Attr:
        """Follow ``parts`` from the directory ``start``. ``..`` is the parent on disk, as for a kernel."""
        todo = parts[::-1]
        links = 0
        here = self.vfs.getattr(start)
        while todo:
            name = todo.pop()
            attr = self.vfs.lookup(here.ino, name)
            if stat_bits.S_ISLNK(attr.mode) and (todo or follow):
                links += 1
                if links > MAX_SYMLINKS:
                    raise SymlinkLoop(f"too many symbolic links at {name!r}")
                target = self.vfs.readlink(attr.ino)
                if target.startswith(b"/"):
                    here = self.vfs.getattr(ROOT_INO)
                todo.extend(reversed(_parts(target)))
            else:
                here = attr
        return here

    def _resolve(self, path: Path, follow: bool = True) -> Attr:
        parts = _parts(path)
        try:
            attr = self._walk(parts, follow)
            if os.fsencode(path).endswith(b"/") and parts and not stat_bits.S_ISDIR(attr.mode):
                raise NotADirectory("not a directory")
        except FsError as exc:
            self.volume.note_error(exc)
            exc.filename = os.fsdecode(path)
            raise
        return attr

    def _parent(self, path: Path) -> tuple[int, bytes]:
        """The directory and the name that a path ends in."""
        parts = _parts(path)
        last = os.fsencode(path).rstrip(b"/").rpartition(b"/")[2]
        if last in (b"", b".", b".."):
            raise Invalid(f"{os.fsdecode(path)}: no name in it")
        try:
            attr = self._walk(parts[:-1], True)
            if not stat_bits.S_ISDIR(attr.mode):
                raise NotADirectory("a part of the path is not a directory")
            if os.fsencode(path).endswith(b"/"):
                self._check_directory(attr.ino, last)
            return attr.ino, last
        except FsError as exc:
            self.volume.note_error(exc)
            exc.filename = os.fsdecode(path)
            raise

    def _check_directory(self, parent: int, name: bytes) -> None:
        """A slash behind a name says that it is a directory, if there is one."""
        try:
            attr = self.vfs.lookup(parent, name)
        except NotFound:
            return
        if not stat_bits.S_ISDIR(attr.mode):
            raise NotADirectory(f"{name!r} is not a directory")

    def _place_for_new(self, path: Path) -> tuple[int, bytes]:
        """Where open(2) with O_CREAT makes a missing file: symbolic links that lead nowhere yet are followed."""
        if os.fsencode(path).endswith(b"/"):
            raise IsADirectory(f"{os.fsdecode(path)}: the name of a file cannot end in a slash")
        parent, name = self._parent(path)
        for _ in range(MAX_SYMLINKS):
            try:
                attr = self.vfs.lookup(parent, name)
            except NotFound:
                return parent, name
            if not stat_bits.S_ISLNK(attr.mode):
                return parent, name
            target = self.vfs.readlink(attr.ino)
            parts = _parts(target)
            if not parts or parts[-1] == b".." or target.endswith(b"/"):
                raise IsADirectory(f"symbolic link to {target!r}")
            start = ROOT_INO if target.startswith(b"/") else parent
            parent, name = self._walk(parts[:-1], True, start).ino, parts[-1]
        raise SymlinkLoop(f"too many symbolic links at {name!r}")

    def _do(self, path: Path, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except FsError as exc:
            self.volume.note_error(exc)
            if exc.filename is None:
                exc.filename = os.fsdecode(path)
            raise

    # -- looking -------------------------------------------------------------------------------------------

    def stat(self, path: Path) -> Attr:
        """Attributes of what ``path`` leads to; symbolic links are followed."""
        return self._resolve(path)

    def lstat(self, path: Path) -> Attr:
        """Attributes of ``path`` itself."""
        return self._resolve(path, follow=False)

    def exists(self, path: Path) -> bool:
        """Whether ``path`` leads to something."""
        try:
            self._resolve(path)
        except (NotFound, NotADirectory):
            return False
        return True

    def scandir(self, path: Path = "/") -> Iterator[tuple[bytes, int, int]]:
        """(name, inode number, type bits of the mode or 0) of a directory's entries, without ``.`` and ``..``."""
        fh = self._do(path, self.vfs.opendir, self._resolve(path).ino)
        try:
            for entry in self.vfs.readdir(fh):
                if entry.name not in (b".", b".."):
                    yield entry.name, entry.ino, ft_to_mode(entry.ftype)
        finally:
            self.vfs.releasedir(fh)

    def listdir(self, path: Path = "/") -> list[str]:
        """The names in a directory, decoded as by :func:`os.fsdecode`."""
        return [os.fsdecode(name) for name, _, _ in self.scandir(path)]

    def walk(self, top: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """As :func:`os.walk` from the top down; symbolic links are not followed.

        Raises Corrupt for a directory that is met twice: a damaged image could go in circles.
        """
        pending = [os.fsdecode(top)]
        seen: set[int] = set()
        while pending:
            here = pending.pop()
            number = self._resolve(here).ino
            if number in seen:
                raise Corrupt("directory with two names", f"inode {number}", here)
            seen.add(number)
            dirs: list[str] = []
            files: list[str] = []
            for name, ino, kind in self.scandir(here):
                kind = kind or stat_bits.S_IFMT(self.vfs.getattr(ino).mode)
                (dirs if stat_bits.S_ISDIR(kind) else files).append(os.fsdecode(name))
            yield here, dirs, files
            pending.extend(here.rstrip("/") + "/" + name for name in reversed(dirs))

    def readlink(self, path: Path) -> bytes:
        """The target of a symbolic link."""
        result: bytes = self._do(path, self.vfs.readlink, self.lstat(path).ino)
        return result

    def statvfs(self) -> StatFs:
        """Sizes and free space of the file system."""
        return self.vfs.statfs()

    def mappings(self, path: Path) -> list[Mapping]:
        """Where a file's data lies: iomap records, holes included, up to its end."""
        return self._mappings(path, self._resolve(path).ino)

    def _mappings(self, path: Path, ino: int) -> list[Mapping]:
        result: list[Mapping] = self._do(path, self.vfs.mappings, ino)
        return result

    # -- files ---------------------------------------------------------------------------------------------

    def open(self, path: Path, mode: str = "rb", *, permissions: int = 0o644, caller: Caller = ROOT) -> File:
        """A raw binary file; ``mode`` as :func:`open`'s (``rb``, ``r+b``, ``wb``, ``w+b``, ``ab``, ``xb``, …).

        Wrap it in :class:`io.BufferedReader` and the like where small reads and writes are many.
        """
        flags = _open_flags(mode)
        try:
            ino = self._resolve(path).ino
        except NotFound:
            if not flags & os.O_CREAT:
                raise
            place = self._parent(path) if flags & os.O_EXCL else self._do(path, self._place_for_new, path)
            fh, attr = self._do(path, self.vfs.create, *place, permissions, flags, caller)
            return File(self.vfs, fh, attr.ino, flags, os.fsdecode(path))
        if flags & os.O_EXCL:
            self._do(path, self.vfs.create, *self._parent(path), permissions, flags, caller)
        fh = self._do(path, self.vfs.open, ino, flags, caller)
        return File(self.vfs, fh, ino, flags, os.fsdecode(path))

    def tmpfile(self, directory: Path = "/", *, permissions: int = 0o644, caller: Caller = ROOT) -> File:
        """A new file without a name, open for reading and writing; :meth:`link` can give it one, else it goes away."""
        fh, attr = self._do(
            directory, self.vfs.tmpfile, self._resolve(directory).ino, permissions, os.O_RDWR, caller
        )
        return File(self.vfs, fh, attr.ino, os.O_RDWR, f"{os.fsdecode(directory)} (no name)")

    def copy(self, source: Path, target: Path) -> None:
        """Make or replace a file by another one's contents; holes stay holes. Nothing else is copied."""
        with self.open(source) as origin, self.open(target, "wb") as copy:
            copy.copy_range(origin, 0, 0, origin.stat().size)

    def read_bytes(self, path: Path) -> bytes:
        """The whole contents of a file."""
        with self.open(path) as file:
            return file.readall()

    def write_bytes(self, path: Path, data: Buffer) -> None:
        """Make or replace a file's contents."""
        with self.open(path, "wb") as file:
            file.write(data)

    # -- changing the tree ---------------------------------------------------------------------------------

    def mkdir(self, path: Path, mode: int = 0o755, caller: Caller = ROOT) -> None:
        """Make a directory."""
        self._do(path, self.vfs.mkdir, *self._parent(path), mode, caller)

    def makedirs(self, path: Path, mode: int = 0o755) -> None:
        """Make a directory and those above it that are missing."""
        parts = _parts(path)
        for count in range(1, len(parts) + 1):
            here = b"/" + b"/".join(parts[:count])
            if not self.exists(here):
                self.mkdir(here, mode)

    def mknod(self, path: Path, mode: int, rdev: int = 0, caller: Caller = ROOT) -> None:
        """Make a file, device, FIFO or socket."""
        self._do(path, self.vfs.mknod, *self._parent(path), mode, rdev, caller)

    def symlink(self, target: Path, path: Path, caller: Caller = ROOT) -> None:
        """Make ``path`` a symbolic link to ``target``."""
        self._do(path, self.vfs.symlink, *self._parent(path), os.fsencode(target), caller)

    def link(self, existing: Path | File, path: Path) -> None:
        """Make ``path`` a further name of the file ``existing``, or the first one of an open :meth:`tmpfile`."""
        ino = existing.stat().ino if isinstance(existing, File) else self.lstat(existing).ino
        self._do(path, self.vfs.link, ino, *self._parent(path))

    def unlink(self, path: Path) -> None:
        """Remove a name that is not a directory."""
        self._do(path, self.vfs.unlink, *self._parent(path))

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        self._do(path, self.vfs.rmdir, *self._parent(path))

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        """Move a name; ``flags`` are renameat2(2)'s NOREPLACE, EXCHANGE and WHITEOUT."""
        check_rename_flags(flags)
        self._do(old, self.vfs.rename, *self._parent(old), *self._parent(new), flags)

    def set_casefold(self, path: Path, on: bool = True) -> None:
        """Whether names in an empty directory, and those made in it, have to differ in more than case (`chattr +F`)."""
        self._do(path, self.vfs.set_casefold, self._resolve(path).ino, on)

    def truncate(self, path: Path, size: int) -> None:
        """Make a file ``size`` bytes long."""
        self._do(path, self.vfs.setattr, self._resolve(path).ino, size=size)

    def chmod(self, path: Path, mode: int) -> None:
        """Set the permission bits."""
        self._do(path, self.vfs.setattr, self._resolve(path).ino, mode=mode)

    def chown(self, path: Path, uid: int | None = None, gid: int | None = None, *, follow: bool = True) -> None:
        """Set the owner; as on Linux a file that is not a directory loses set-user-ID and set-group-ID."""
        self._do(path, self.vfs.setattr, self._resolve(path, follow).ino, uid=uid, gid=gid, kill_priv=in_any_group)

    def utime(
        self, path: Path, *, atime: int | None = None, mtime: int | None = None, follow: bool = True
    ) -> None:
        """Set times in ns; both missing: now."""
        ino = self._resolve(path, follow).ino
        if atime is None and mtime is None:
            self._do(path, self.vfs.setattr, ino, atime=NOW, mtime=NOW)
        else:
            self._do(path, self.vfs.setattr, ino, atime=atime, mtime=mtime)

    # -- extended attributes -------------------------------------------------------------------------------

    def getxattr(self, path: Path, name: Path, *, follow: bool = True) -> bytes:
        """The value of an extended attribute (``user.x``, ``system.posix_acl_access``, …)."""
        result: bytes = self._do(path, self.vfs.getxattr, self._resolve(path, follow).ino, os.fsencode(name))
        return result

    def setxattr(self, path: Path, name: Path, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        """Set an extended attribute; ``flags`` are setxattr(2)'s XATTR_CREATE and XATTR_REPLACE."""
        self._do(path, self.vfs.setxattr, self._resolve(path, follow).ino, os.fsencode(name), value, flags)

    def listxattr(self, path: Path, *, follow: bool = True) -> list[str]:
        """The names of all extended attributes."""
        names: list[bytes] = self._do(path, self.vfs.listxattr, self._resolve(path, follow).ino)
        return [os.fsdecode(name) for name in names]

    def removexattr(self, path: Path, name: Path, *, follow: bool = True) -> None:
        """Remove an extended attribute."""
        self._do(path, self.vfs.removexattr, self._resolve(path, follow).ino, os.fsencode(name))


_FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


def _open_flags(mode: str) -> int:
    letters = mode.replace("b", "", 1)
    plus = "+" in letters
    kind = letters.replace("+", "", 1)
    if kind not in _FLAGS or "t" in mode:
        raise Invalid(f"open mode {mode!r}: expected r, w, a or x, with b and + if need be")
    flags = _FLAGS[kind]
    return flags & ~os.O_ACCMODE | os.O_RDWR if plus else flags


class File(io.RawIOBase):
    """An open file of an image; made by :meth:`Filesystem.open`."""

    def __init__(self, vfs: Vfs, fh: int, ino: int, flags: int, name: str) -> None:
        self._vfs = vfs
        self._fh = fh
        self._ino = ino
        self._flags = flags
        self._pos = 0
        self.name = name

    def readable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_WRONLY

    def writable(self) -> bool:
        return self._flags & os.O_ACCMODE != os.O_RDONLY

    def seekable(self) -> bool:
        return True

    def _check(self, allowed: bool, what: str) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not allowed:
            raise io.UnsupportedOperation(f"file not open for {what}")

    def read(self, size: int | None = -1, /) -> bytes:
        self._check(self.readable(), "reading")
        if size is None or size < 0:
            return self.readall()
        data = self._vfs.read(self._fh, self._pos, size)
        self._pos += len(data)
        return data

    def readall(self) -> bytes:
        self._check(self.readable(), "reading")
        data = self._vfs.read(self._fh, self._pos, max(self._vfs.getattr(self._ino).size - self._pos, 0))
        self._pos += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: Buffer, /) -> int:
        self._check(self.writable(), "writing")
        if self._flags & os.O_APPEND:
            self._pos = self._vfs.getattr(self._ino).size
        count = self._vfs.write(self._fh, self._pos, memoryview(data).cast("B"))
        self._pos += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            self._pos = self._vfs.seek(self._fh, offset, whence)
            return self._pos
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._pos, os.SEEK_END: self._vfs.getattr(self._ino).size}.get(whence)
        if base is None or base + offset < 0:
            raise Invalid(f"seek to {offset} from {whence}")
        self._pos = base + offset
        return self._pos

    def tell(self) -> int:
        return self._pos

    def truncate(self, size: int | None = None, /) -> int:
        self._check(self.writable(), "writing")
        size = self._pos if size is None else size
        self._vfs.setattr(self._ino, size=size)
        return size

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2): ``mode`` is 0 or FALLOC_FL_* flags, the range in bytes."""
        self._check(self.writable(), "writing")
        self._vfs.fallocate(self._fh, mode, offset, length)

    def copy_range(self, source: File, source_offset: int, offset: int, length: int) -> int:
        """copy_file_range(2) from another file to this one; returns the bytes copied."""
        self._check(self.writable(), "writing")
        return self._vfs.copy_file_range(source._fh, source_offset, self._fh, offset, length)

    def stat(self) -> Attr:
        """Attributes of the open file."""
        return self._vfs.getattr(self._ino)

    def fsync(self) -> None:
        """Return when the file's contents are durable."""
        self._vfs.fsync(self._fh)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._vfs.release(self._fh)


__all__ = ["File", "Filesystem", "OpenOptions", "open_device", "open_image"]
