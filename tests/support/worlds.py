"""The same operations on a kernel mount and on py4fs' Python API, so that a test can drive both and compare."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import py4fs
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL
from py4fs.vfs import Caller

UMASK = 0o022
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


def outcome(step: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """ "ok", or the name of the errno that ``step`` raises."""
    try:
        step(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))
    return "ok"


class KernelWorld:
    """System calls below a directory. ``spans`` are the wall-clock intervals of the operations, in ns."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.spans: list[tuple[int, int]] = []

    def begin(self) -> None:
        # the kernel's clock for files is coarse: wait for a tick that the operation before did not see
        before = self.spans[-1][1] if self.spans else 0
        while (now := time.clock_gettime_ns(COARSE_CLOCK)) <= before:
            time.sleep(0.001)
        self._start = now

    def finish(self) -> None:
        self.spans.append((self._start, time.time_ns()))

    def settle(self) -> None:
        """Everything on the device, the block device's own cache included."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            if libc.syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)

    def step_of(self, ns: int) -> int | None:
        """Which operation's time this is."""
        for index, (start, end) in enumerate(self.spans):
            if start <= ns <= end:
                return index
        return None

    def at(self, path: str) -> bytes:
        return self.root + b"/" + os.fsencode(path)

    def only_files(self, path: str) -> None:
        """Opening a FIFO would block and a device is somebody else's: py4fs' vfs says EINVAL to both."""
        mode = os.stat(self.at(path)).st_mode if os.path.exists(self.at(path)) else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "not a regular file")

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self.only_files(path)
        fd = os.open(self.at(path), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        self.only_files(path)
        fd = os.open(self.at(path), os.O_WRONLY)
        try:
            if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
                raise OSError(ctypes.get_errno(), "fallocate")
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.at(path))

    def link(self, old: str, new: str) -> None:
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def tmpfile(self, directory: str, mode: int, data: bytes, path: str) -> None:
        """A file without a name, written, then named."""
        fd = os.open(self.at(directory), os.O_TMPFILE | os.O_RDWR, mode)
        try:
            os.write(fd, data)
            os.link(f"/proc/self/fd/{fd}", self.at(path), src_dir_fd=fd, follow_symlinks=True)
        finally:
            os.close(fd)

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        os.mknod(self.at(path), mode, rdev)

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def rename(self, old: str, new: str, flags: int) -> None:
        if libc.renameat2(AT_FDCWD, self.at(old), AT_FDCWD, self.at(new), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: str, atime: int, mtime: int) -> None:
        os.utime(self.at(path), ns=(atime, mtime), follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.at(path), name, value, flags)

    def copyrange(self, source: str, data: bytes, offset: int, length: int, target: str, at: int) -> None:
        """Write a file, and copy a part of what was written, which has no holes."""
        self.write(source, 0, data)
        self.only_files(target)
        fds: list[int] = []
        try:
            fds.append(os.open(self.at(source), os.O_RDONLY))
            fds.append(os.open(self.at(target), os.O_RDWR))
            assert os.copy_file_range(fds[0], fds[1], length, offset, at) == min(length, len(data) - offset)
        finally:
            for fd in fds:
                os.close(fd)

    def setflags(self, path: str, flags: int) -> None:
        """chattr(1): these flags, and extents as before."""
        self.only_files(path)
        fd = os.open(self.at(path), os.O_RDONLY)
        try:
            old = struct.unpack("<Q", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("<Q", old & EXT4_EXTENTS_FL | flags))
        finally:
            os.close(fd)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.at(path), name)

    def read(self, path: str) -> None:
        self.only_files(path)
        fd = os.open(self.at(path), os.O_RDONLY)
        try:
            os.read(fd, 10)
        finally:
            os.close(fd)

    def listdir(self, path: str) -> None:
        os.listdir(self.at(path))


class ApiWorld:
    """py4fs on an image; the clock shows the number of the operation in seconds."""

    def __init__(self, image: Path, strict: bool = True) -> None:
        from py4fs.ext4.volume import VolumeOptions

        self.step = -1
        options = py4fs.OpenOptions(volume=VolumeOptions(strict=strict))
        self.fs = py4fs.open_image(image, clock=self.clock, options=options)
        self.caller = Caller(0, 0, UMASK)

    BASE = 2_000_000_000

    def clock(self) -> int:
        return (self.BASE + self.step) * 10**9

    def begin(self) -> None:
        self.step += 1

    def finish(self) -> None:
        pass

    def step_of(self, ns: int) -> int | None:
        index = ns // 10**9 - self.BASE
        return index if 0 <= index <= self.step else None

    def mkdir(self, path: str, mode: int) -> None:
        self.fs.mkdir(path, mode, self.caller)

    def write(self, path: str, offset: int, data: bytes) -> None:
        fs = self.fs
        if fs.exists(path):
            file = fs.open(path, "r+b")
        else:
            file = fs.open(path, "wb", permissions=0o644, caller=self.caller)
        with file:
            file.seek(offset)
            file.write(data)

    def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        with self.fs.open(path, "r+b") as file:
            file.fallocate(mode, offset, length)

    def truncate(self, path: str, size: int) -> None:
        self.fs.truncate(path, size)

    def symlink(self, target: str, path: str) -> None:
        self.fs.symlink(target, path, self.caller)

    def link(self, old: str, new: str) -> None:
        self.fs.link(old, new)

    def tmpfile(self, directory: str, mode: int, data: bytes, path: str) -> None:
        with self.fs.tmpfile(directory, permissions=mode, caller=self.caller) as file:
            file.write(data)
            self.fs.link(file, path)

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        self.fs.mknod(path, mode, rdev, self.caller)

    def unlink(self, path: str) -> None:
        self.fs.unlink(path)

    def rmdir(self, path: str) -> None:
        self.fs.rmdir(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        self.fs.rename(old, new, flags)

    def chmod(self, path: str, mode: int) -> None:
        self.fs.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self.fs.chown(path, uid, gid, follow=False)

    def utime(self, path: str, atime: int, mtime: int) -> None:
        self.fs.utime(path, atime=atime, mtime=mtime, follow=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self.fs.setxattr(path, name, value, flags)

    def copyrange(self, source: str, data: bytes, offset: int, length: int, target: str, at: int) -> None:
        self.write(source, 0, data)
        with self.fs.open(source) as origin, self.fs.open(target, "r+b") as copy:
            assert copy.copy_range(origin, offset, at, length) == min(length, len(data) - offset)

    def setflags(self, path: str, flags: int) -> None:
        attr = self.fs.stat(path)
        if not stat.S_ISREG(attr.mode) and not stat.S_ISDIR(attr.mode):
            raise OSError(errno.EINVAL, "not a regular file")
        self.fs.vfs.set_flags(attr.ino, attr.flags & EXT4_EXTENTS_FL | flags, self.caller)

    def removexattr(self, path: str, name: str) -> None:
        self.fs.removexattr(path, name)

    def read(self, path: str) -> None:
        with self.fs.open(path) as file:
            file.read(10)

    def listdir(self, path: str) -> None:
        self.fs.listdir(path)
