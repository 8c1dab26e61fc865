"""Before and after serving: checks of the mount point, options for libfuse, unmounting."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from py4fs.errors import Busy, FsError, NotADirectory, NotFound
from py4fs.fuse import mountinfo, record

MOUNT_FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
"""mount(2)'s flags by the words of /proc/mounts."""
UMOUNT_NOFOLLOW = 8
MNT_DETACH = 2
_DEV_FD = "/dev/fd/"
_FUSE_DEVICE = os.makedev(10, 229)

_libc = ctypes.CDLL(None, use_errno=True)


class MountError(FsError):
    """Mounting or unmounting failed for a reason outside the image; `exit_code` is mount(8)'s."""

    def __init__(self, code: int, message: str, exit_code: int = 32) -> None:
        super().__init__(code, message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class FuseOptions:
    """What the kernel's side of the mount is told. Safe by default: no set-id programs, no device files."""

    readonly: bool = False
    allow_other: bool = False
    #: the kernel checks permissions; without it nobody does
    default_permissions: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    sync: bool = False
    dirsync: bool = False
    noatime: bool = False
    lazytime: bool = False  # these two root only, in the direct session
    symfollow: bool = True
    fsname: str | None = None  # default: the image's absolute path
    subtype: str = "py4fs"
    max_read: int | None = None  # bytes
    block_size: int | None = None  # bytes; given: the image is a block device, and the mount is a fuseblk one
    extra: tuple[str, ...] = field(default=())

    def for_libfuse(self, image: str) -> set[str]:
        """The `-o` words of libfuse and fusermount3."""
        found = {f"subtype={self.subtype}", f"fsname={_escape(self.fsname or image)}"}
        found.add("ro" if self.readonly else "rw")
        found.add("suid" if self.suid else "nosuid")
        found.add("dev" if self.dev else "nodev")
        found.add("exec" if self.exec else "noexec")
        for name in ("default_permissions", "allow_other", "sync", "dirsync", "noatime"):
            if getattr(self, name):
                found.add(name)
        if self.max_read is not None:
            found.add(f"max_read={self.max_read}")
        found.update(self.extra)
        return {_LibfuseOption(option) for option in found}


class _LibfuseOption(str):
    """pyfuse3 encodes options as ASCII, but a path may hold any bytes."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return os.fsencode(str(self))


def _escape(value: str) -> str:
    """libfuse splits at commas and takes a backslash for an escape."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def check_fuse() -> None:
    """MountError unless this machine and this user can mount with FUSE."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        hint = "; try: modprobe fuse" if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else ""
        raise MountError(exc.errno or errno.EIO, f"/dev/fuse: {exc.strerror}{hint}", 2) from exc
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError(errno.ENOENT, "fusermount3 is not installed (package fuse3), and only root can do without", 2)


class MountPoint(NamedTuple):
    """A directory to mount on, opened once: what is checked is what is mounted on, even if the path changes."""

    path: str  # absolute, resolved
    fd: int  # O_PATH; of /dev/fuse where somebody else mounts

    @property
    def passed(self) -> bool:
        """Whether `fd` is a connection that somebody else has mounted, or will."""
        return passed_descriptor(self.path) is not None

    def for_libfuse(self) -> str:
        """The name to mount on: root mounts on the descriptor; fusermount3 takes a path and checks it itself."""
        return f"/proc/self/fd/{self.fd}" if os.geteuid() == 0 else self.path


def passed_descriptor(directory: str) -> int | None:
    """The number N of a mount point `/dev/fd/N`: a /dev/fuse that somebody else has mounted, or will."""
    number = directory.removeprefix(_DEV_FD)
    return int(number) if directory.startswith(_DEV_FD) and number.isdecimal() else None


def take_descriptor(fd: int) -> MountPoint:
    """A descriptor that was handed over. Raises MountError unless it is of /dev/fuse."""
    try:
        info = os.fstat(fd)
    except OSError as exc:
        raise MountError(exc.errno or errno.EBADF, f"{exc.strerror}", 1) from exc
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != _FUSE_DEVICE:
        raise MountError(errno.EINVAL, "not an open /dev/fuse", 1)
    os.set_inheritable(fd, False)
    return MountPoint(f"{_DEV_FD}{fd}", fd)


def open_mountpoint(directory: str) -> MountPoint:
    """Open a directory that can be mounted on. NotFound, NotADirectory, Busy or MountError say why it cannot."""
    passed = passed_descriptor(directory)
    if passed is not None:
        return take_descriptor(passed)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound("mount point does not exist") from None
    except NotADirectoryError:
        raise NotADirectory("mount point is not a directory") from None
    except OSError as exc:
        raise _unusable(exc) from exc
    try:
        os.fstat(fd)
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        here = mountinfo.at(path)
        if here is not None and here.is_py4fs:
            raise Busy(f"mount point is in use: {here.source} is mounted there")
        if os.geteuid() != 0 and not os.access(path, os.W_OK):
            raise MountError(errno.EACCES, "mount point: no permission to write there, and so none to mount", 1)
    except FsError:
        os.close(fd)
        raise
    except OSError as exc:
        os.close(fd)
        raise _unusable(exc) from exc
    return MountPoint(path, fd)


def _unusable(exc: OSError) -> MountError:
    if exc.errno == errno.ENOTCONN:
        return MountError(
            errno.ENOTCONN, "mount point holds a mount whose server has died; unmount it first (py4fs umount)"
        )
    return MountError(exc.errno or errno.EIO, f"mount point: {exc.strerror}")


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at a resolved path. MountError with EBUSY when files in it are in use."""
    if os.geteuid() == 0:
        _umount2(directory, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
        return
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError(errno.ENOENT, "fusermount3 is not installed (package fuse3)", 2)
    done = subprocess.run(
        [program, "-u", *(["-z"] if lazy else []), "--", directory],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode != 0:
        text = " ".join(done.stderr.split()).removeprefix("fusermount3: ") or f"exit {done.returncode}"
        code = errno.EBUSY if "busy" in text.lower() else errno.EPERM
        raise MountError(code, "cannot unmount: target is busy" if code == errno.EBUSY else f"cannot unmount: {text}")


def _umount2(directory: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(directory), flags) != 0:
        code = ctypes.get_errno()
        text = {errno.EBUSY: "target is busy", errno.EINVAL: "not mounted"}.get(code, os.strerror(code))
        raise MountError(code, f"cannot unmount: {text}")


def syncfs(fd: int) -> None:
    """Make the kernel write the dirty pages of a file system. Lets other threads run, unlike pyfuse3's."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_block_device(path: str) -> bool:
    return stat.S_ISBLK(Path(path).stat().st_mode)


def watchers_for(mount: mountinfo.Mount) -> list[record.Watcher]:
    """Records of the server behind a mount (normally one)."""
    return record.find(device=mount.device, uid=mount.uid)
