"""Image files and block devices.

One owner: an image opened for writing is locked against any other py4fs, and refused while the kernel has it
(mounted, or attached to a loop device, whose page cache would not see our writes). A reader shares the file
with other readers only; it accepts a loop device on its file when that is read-only too, since anything else
could change the bytes under it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from py4fs.device import loop, passed
from py4fs.device.base import check_range, check_writable
from py4fs.errors import (
    AccessDenied,
    Busy,
    DeviceError,
    FsError,
    Invalid,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    ReadOnly,
    SymlinkLoop,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_IOV_MAX = 1024
# linux/fs.h, linux/falloc.h
_BLKROGET = 0x125E
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_BLKBSZSET = 0x40081271
_SECTOR = 512
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
#: a read of so many bytes that continues the one before is taken for a stream: what follows is fetched meanwhile
_STREAM_BYTES = 128 << 10
_SYS_BLOCK = Path("/sys/block")
_OPEN_ERRORS: dict[int, type[FsError]] = {
    errno.ENOENT: NotFound,
    errno.ENXIO: NotFound,
    errno.ENODEV: NotFound,
    errno.ENOMEDIUM: NotFound,
    errno.EACCES: AccessDenied,
    errno.EPERM: NotPermitted,
    errno.EISDIR: IsADirectory,
    errno.ENOTDIR: NotADirectory,
    errno.ELOOP: SymlinkLoop,
    errno.ENAMETOOLONG: NameTooLong,
    errno.EROFS: ReadOnly,
    errno.EBUSY: Busy,
    errno.ETXTBSY: Busy,
    errno.EOPNOTSUPP: NotSupported,
}


class FileDevice:
    """A regular file or block device, from byte `offset` on to its end. Never grows the file."""

    def __init__(self, fd: int, name: str, *, readonly: bool, offset: int = 0) -> None:
        """Takes over an open descriptor as it is: no lock is taken and no other user looked for.

        Raises Invalid for what is neither a file nor a block device, or when `offset` is behind the end.
        The descriptor belongs to the device only once this has returned.
        """
        self.name = name
        self.readonly = readonly
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectory(f"{name}: is a directory, not an image")
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise Invalid(f"{name}: neither a regular file nor a block device")
        self.is_block_device = stat.S_ISBLK(info.st_mode)
        try:
            total = os.lseek(fd, 0, os.SEEK_END) if self.is_block_device else info.st_size
        except OSError as exc:
            raise DeviceError(f"{name}: cannot tell the size: {exc.strerror}") from exc
        if not 0 <= offset <= total:
            raise Invalid(f"{name}: offset {offset} is behind the end at byte {total}")
        self.offset = offset
        self.size = total - offset
        self._fd = fd
        self._next_read = -1
        self._locked_fd = -1  # of the image file, when all I/O goes through a loop device

    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str],
        *,
        readonly: bool = False,
        offset: int = 0,
        lock: bool = True,
    ) -> FileDevice:
        """Open an image; `offset` in bytes.

        A path `/dev/fd/N` means a descriptor that somebody else has opened: it is used as it is.
        `lock=False` skips locks and the look for other users, and is for read-only inspection.
        Raises FsError subclasses: NotFound, AccessDenied, ReadOnly, Busy, Invalid, ...
        """
        assert lock or readonly, "a writer always locks"
        name = os.fsdecode(path)
        number = passed.descriptor(name)
        if number is not None:
            fd = passed.take(number, name, readonly=readonly)
            return cls._claimed(fd, name, readonly=readonly, offset=offset, lock=lock)
        # O_NONBLOCK: a FIFO must not make us wait for a writer before we can refuse it.
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            fd = os.open(path, flags)
            if lock and stat.S_ISBLK(os.fstat(fd).st_mode):
                # On a block device O_EXCL fails when it is mounted or claimed otherwise.
                os.close(fd)
                fd = os.open(path, flags | os.O_EXCL)
        except ValueError as exc:
            raise Invalid(f"{name!r}: not a path: {exc}") from exc
        except OSError as exc:
            raise _open_error(name, exc) from exc
        return cls._claimed(fd, name, readonly=readonly, offset=offset, lock=lock)

    @classmethod
    def _claimed(cls, fd: int, name: str, *, readonly: bool, offset: int, lock: bool) -> FileDevice:
        """The device of a descriptor, which is closed when it cannot be had alone."""
        try:
            device = cls(fd, name, readonly=readonly, offset=offset)
            if lock:
                _lock(fd, name, readonly)
                if device.is_block_device:
                    _refuse_readonly_block_device(fd, name, readonly)
                else:
                    _refuse_loop_devices(fd, name, readonly, offset)
        except BaseException:
            os.close(fd)
            raise
        return device

    def fileno(self) -> int:
        """The descriptor (-1 when closed)."""
        return self._fd

    def share(self) -> None:
        """Give up the claim (O_EXCL) on a block device, which the kernel's fuseblk mount is about to make itself.

        The lock (flock) stays, but for a moment. Raises FsError.
        """
        flags = (os.O_RDONLY if self.readonly else os.O_RDWR) | os.O_CLOEXEC
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as exc:
            raise _open_error(self.name, exc) from exc
        old, self._fd = self._fd, fd
        os.close(old)
        _lock(fd, self.name, self.readonly)

    def use_loop_device(self) -> None:
        """From now on all I/O on an image file goes through a block device of its own, to be shared with the kernel.

        The file stays open and locked. No I/O may be under way. Raises DeviceError; then nothing has changed.
        """
        assert not self.is_block_device, "is one"
        self.flush()
        fd = loop.attach(self._fd, self.name, offset=self.offset, readonly=self.readonly)
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < self.size - self.size % _SECTOR:
            os.close(fd)
            raise DeviceError(f"{self.name}: its loop device has {size} bytes of {self.size}")
        self._locked_fd, self._fd = self._fd, fd
        self.is_block_device = True
        self.offset, self.size = 0, size

    def sector_size(self) -> int:
        """Bytes of a sector of a block device. Raises DeviceError."""
        size = bytearray(4)
        try:
            fcntl.ioctl(self._fd, _BLKSSZGET, size)
        except OSError as exc:
            raise DeviceError(f"{self.name}: cannot tell the sector size: {exc.strerror}") from exc
        return int.from_bytes(size, sys.byteorder)

    def set_block_size(self, size: int) -> None:
        """Let the page cache of a block device write blocks of `size` bytes, never their neighbours in a page.

        Somebody else may write those past this cache. Raises DeviceError.
        """
        try:
            fcntl.ioctl(self._fd, _BLKBSZSET, struct.pack("=i4x", min(size, os.sysconf("SC_PAGE_SIZE"))))
        except OSError as exc:
            raise DeviceError(f"{self.name}: block size {size}: {exc.strerror}") from exc

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        at = self.offset + offset
        try:
            if length >= _STREAM_BYTES:
                self._expect(at, length)
            data = os.pread(self._fd, length, at)
            if len(data) == length:
                return data
            parts = [data]
            done = len(data)
            while data and done < length:
                data = os.pread(self._fd, length - done, at + done)
                parts.append(data)
                done += len(data)
        except OSError as exc:
            raise self._failed("read", offset, length, exc) from exc
        if done < length:
            raise DeviceError(f"{self.name}: read of {length} bytes at byte {offset}: only {done} are there")
        return b"".join(parts)

    def readinto(self, offset: int, view: memoryview) -> None:
        """As `read`, into a writable view of bytes that is filled whole."""
        length = view.nbytes
        if offset < 0 or offset + length > self.size:
            check_range(self, "read", offset, length)
        at = self.offset + offset
        try:
            done = os.preadv(self._fd, (view,), at)
            if length >= _STREAM_BYTES:
                self._expect(at, length)
            while done < length:
                got = os.preadv(self._fd, (view[done:],), at + done)
                if not got:
                    raise DeviceError(f"{self.name}: read of {length} bytes at byte {offset}: only {done} are there")
                done += got
        except FsError:
            raise
        except OSError as exc:
            raise self._failed("read", offset, length, exc) from exc

    def splice(self, offset: int, length: int, pipe: int) -> int:
        """Part of what :class:`~py4fs.device.base.Spliced` devices do; what fails is for a `read` to tell."""
        check_range(self, "read", offset, length)
        at, done = self.offset + offset, 0
        if length >= _STREAM_BYTES:
            self._expect(at, length)
        while done < length:
            moved = os.splice(self._fd, pipe, length - done, offset_src=at + done, flags=os.SPLICE_F_NONBLOCK)
            if not moved:
                break
            done += moved
        return done

    def _expect(self, at: int, length: int) -> None:
        """The kernel's own read-ahead is an eighth of such a read: let it fetch the next one while this is used."""
        if at == self._next_read:
            os.posix_fadvise(self._fd, at + length, length, os.POSIX_FADV_WILLNEED)
        self._next_read = at + length

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        length = view.nbytes
        if self.readonly or offset < 0 or offset + length > self.size:
            check_writable(self)
            check_range(self, "write", offset, length)
        at = self.offset + offset
        try:
            done = os.pwrite(self._fd, view, at)
            if done < length:
                view = view.cast("B")
                while done < length:
                    done += self._progress(os.pwrite(self._fd, view[done:], at + done))
        except OSError as exc:
            raise self._failed("write", offset, length, exc) from exc

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        check_writable(self)
        views: list[memoryview] = []
        length = 0
        for part in parts:
            view = memoryview(part)
            if view.nbytes:
                views.append(view)
                length += view.nbytes
        check_range(self, "write", offset, length)
        at = self.offset + offset
        first = 0
        try:
            while first < len(views):
                done = self._progress(os.pwritev(self._fd, views[first : first + _IOV_MAX], at))
                if done == length:
                    return
                at += done
                while first < len(views) and done >= views[first].nbytes:
                    done -= views[first].nbytes
                    first += 1
                if done:
                    views[first] = views[first].cast("B")[done:]
        except OSError as exc:
            raise self._failed("write", offset, length, exc) from exc

    def read_uncached(self, offset: int, length: int) -> bytes:
        """Read past the page cache, as far as its pages can be dropped: dirty ones cannot."""
        check_range(self, "read", offset, length)
        try:
            os.posix_fadvise(self._fd, self.offset + offset, length, os.POSIX_FADV_DONTNEED)
        except OSError as exc:
            raise self._failed("uncached read", offset, length, exc) from exc
        return self.read(offset, length)

    def write_through(self, offset: int, data: Buffer) -> None:
        """Write, and wait until this (and nothing else) is durable."""
        check_writable(self)
        view = memoryview(data).cast("B")
        check_range(self, "write", offset, view.nbytes)
        done = 0
        try:
            while done < view.nbytes:
                done += self._progress(os.pwritev(self._fd, [view[done:]], self.offset + offset + done, os.RWF_DSYNC))
        except OSError as exc:
            raise self._failed("write", offset, view.nbytes, exc) from exc

    def discard(self, offset: int, length: int) -> None:
        """A hole in the file; on a block device what the device makes of it."""
        check_writable(self)
        check_range(self, "discard", offset, length)
        at = self.offset + offset
        try:
            if self.is_block_device:
                fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("=QQ", at, length))
            else:
                _punch_hole(self._fd, at, length)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise NotSupported(f"{self.name}: cannot discard") from exc
            raise self._failed("discard", offset, length, exc) from exc

    def flush(self) -> None:
        if self.readonly:
            return
        if self._fd < 0:
            raise DeviceError(f"{self.name}: flush: closed")
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            raise DeviceError(f"{self.name}: flush: {exc.strerror}") from exc

    def close(self) -> None:
        fds = (self._fd, self._locked_fd)
        self._fd = self._locked_fd = -1
        for fd in fds:
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError as exc:
                    raise DeviceError(f"{self.name}: close: {exc.strerror}") from exc

    @staticmethod
    def _progress(done: int) -> int:
        if done == 0:
            raise OSError(errno.EIO, "nothing was written")
        return done

    def _failed(self, what: str, offset: int, length: int, exc: OSError) -> DeviceError:
        return DeviceError(f"{self.name}: {what} of {length} bytes at byte {offset}: {exc.strerror}")


def _punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2), which Python does not have with its modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    if fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _open_error(name: str, exc: OSError) -> FsError:
    code = exc.errno or errno.EIO
    known: type[FsError] | None = _OPEN_ERRORS.get(code)
    if known is Busy:
        return Busy(f"{name}: in use (mounted, or claimed by another program)")
    if known is None:
        return FsError(code, f"{name}: {exc.strerror}")
    return known(f"{name}: {exc.strerror}")  # type: ignore[call-arg,arg-type]


def _lock(fd: int, name: str, readonly: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        who = "for writing" if readonly else "already"
        raise Busy(f"{name}: in use {who} by another program (the file is locked)") from None
    except OSError as exc:
        raise DeviceError(f"{name}: cannot be locked: {exc.strerror}") from exc


def _refuse_readonly_block_device(fd: int, name: str, readonly: bool) -> None:
    """ReadOnly for a writer: a read-only block device can be opened for writing, and only its writes fail."""
    if readonly:
        return
    state = bytearray(4)
    try:
        fcntl.ioctl(fd, _BLKROGET, state)
    except OSError as exc:
        raise DeviceError(f"{name}: cannot tell whether it is read-only: {exc.strerror}") from exc
    if any(state):
        raise ReadOnly(f"{name}: the block device is read-only")


def _refuse_loop_devices(fd: int, name: str, readonly: bool, offset: int) -> None:
    """Busy when a loop device is attached to the file and reaches bytes from `offset` on."""
    for device, loop_readonly, end in _loop_devices(fd):
        if end is not None and end <= offset:
            continue
        if readonly and loop_readonly:
            continue
        raise Busy(f"{name}: attached to /dev/{device}; unmount it and run `losetup -d /dev/{device}` first")


def _loop_devices(fd: int) -> Iterator[tuple[str, bool, int | None]]:
    """(name, read-only, end byte or None) of every loop device whose backing file is the open file."""
    image = os.fstat(fd)
    for entry in sorted(_SYS_BLOCK.glob("loop*")):
        # Devices come and go, and the path may be of another mount namespace: then it cannot be compared.
        try:
            backing = (entry / "loop/backing_file").read_bytes().rstrip(b"\n")
            info = os.stat(backing)  # noqa: PTH116 - bytes
            if (info.st_dev, info.st_ino) != (image.st_dev, image.st_ino):
                continue
            readonly = (entry / "ro").read_text().strip() == "1"
            start = int((entry / "loop/offset").read_text())
            limit = int((entry / "loop/sizelimit").read_text())
        except (OSError, ValueError):
            continue
        yield entry.name, readonly, start + limit if limit else None
