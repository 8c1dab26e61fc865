"""ioctl(2) on files and directories: chattr and its like, trim, label, shutdown, and our own.

The kernel passes what the number says (its direction and size), never more, so ioctls with pointers inside cannot
come this far.  Flags and versions are numbered as a `long`, but callers have room for an `int` only.  Numbers are those
of linux/fs.h and ext4; ours have the letter `4`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, Final

from construct import Bytes, Int8ul, Int32ul, Int64ul, Struct

from py4fs.errors import FsError, Invalid, NotPermitted
from py4fs.ext4.layout.codec import Codec, derive
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.core import Header, Reply, Worker
from py4fs.fuse.direct.directories import Directories
from py4fs.iomap import protocol as iomap
from py4fs.vfs import FsXattr

_NONE, _WRITE, _READ = 0, 1, 2

FSXATTR: Final = derive(
    Struct(
        "xflags" / Int32ul,
        "extsize" / Int32ul,
        "nextents" / Int32ul,
        "projid" / Int32ul,
        "cowextsize" / Int32ul,
        "pad" / Bytes(8),
    ),
    "fsxattr",
)
FSTRIM_RANGE: Final = derive(Struct("start" / Int64ul, "len" / Int64ul, "minlen" / Int64ul), "fstrim_range")
FSUUID2: Final = derive(Struct("len" / Int8ul, "uuid" / Bytes(16)), "fsuuid2")
U32: Final = derive(Struct("value" / Int32ul), "u32")
MAPPINGS_IN: Final = derive(Struct("offset" / Int64ul), "py4fs_mappings_in")
MAPPINGS_OUT: Final = derive(Struct("count" / Int32ul, "more" / Int32ul), "py4fs_mappings_out")

MAPPINGS_BYTES: Final = 8192
"""Size of the buffer of PY4FS_IOC_MAPPINGS."""
_LABEL_BYTES: Final = 256


def _number(direction: int, letter: int | str, number: int, size: int) -> int:
    """An ioctl number as asm-generic/ioctl.h puts it together."""
    kind = ord(letter) if isinstance(letter, str) else letter
    return direction << 30 | size << 16 | kind << 8 | number


FS_IOC_GETFLAGS: Final = _number(_READ, "f", 1, 8)
FS_IOC_SETFLAGS: Final = _number(_WRITE, "f", 2, 8)
FS_IOC32_GETFLAGS: Final = _number(_READ, "f", 1, 4)
FS_IOC32_SETFLAGS: Final = _number(_WRITE, "f", 2, 4)
FS_IOC_GETVERSION: Final = _number(_READ, "v", 1, 8)
FS_IOC_SETVERSION: Final = _number(_WRITE, "v", 2, 8)
EXT4_IOC_GETVERSION: Final = _number(_READ, "f", 3, 8)
EXT4_IOC_SETVERSION: Final = _number(_WRITE, "f", 4, 8)
FS_IOC_FSGETXATTR: Final = _number(_READ, "X", 31, FSXATTR.size)
FS_IOC_FSSETXATTR: Final = _number(_WRITE, "X", 32, FSXATTR.size)
FITRIM: Final = _number(_READ | _WRITE, "X", 121, FSTRIM_RANGE.size)
EXT4_IOC_SHUTDOWN: Final = _number(_READ, "X", 125, 4)
FS_IOC_GETFSUUID: Final = _number(_READ, 0x15, 0, FSUUID2.size)
FS_IOC_GETFSLABEL: Final = _number(_READ, 0x94, 49, _LABEL_BYTES)
FS_IOC_SETFSLABEL: Final = _number(_WRITE, 0x94, 50, _LABEL_BYTES)
PY4FS_IOC_MAPPINGS: Final = _number(_READ | _WRITE, "4", 1, MAPPINGS_BYTES)
"""In: a file offset. Out: how many mappings follow, whether there are more, and fuse_iomap_io records."""
PY4FS_IOC_CONTROL: Final = _number(_WRITE, "4", 2, 4)
"""In: one of CONTROLS; on the root directory, for root and whoever mounted."""

CONTROLS: Final = ("sync", "freeze", "thaw", "ro", "rw")


class Ioctls(Directories):
    """The IOCTL handler and what it leads to."""

    def ioctl(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = structs.IOCTL_IN.unpack_from(body)
        start = structs.IOCTL_IN.size
        run = _IOCTLS.get(record.cmd)
        if run is None:
            raise FsError(errno.ENOTTY, f"ioctl {record.cmd:#x}")
        given = body[start : start + record.in_size]
        out = run(self, header, record, given)
        if len(out) > record.out_size:
            out = out[: record.out_size]
        return structs.IOCTL_OUT.pack(0, 0, 0, 0) + out

    def _changed(self, ino: int) -> None:
        self.attributes_changed(ino)
        if self.vfs.kernel_owns_times and stat.S_ISREG(self.vfs.getattr(ino).mode):
            self.pruning.add(ino)

    def _get_flags(self, header: Header, record: Any, given: memoryview) -> bytes:
        return U32.pack(self.vfs.get_flags(self.ino(header.nodeid)))

    def _set_flags(self, header: Header, record: Any, given: memoryview) -> bytes:
        ino = self.ino(header.nodeid)
        (flags,) = _unpack(U32, given)
        self.vfs.set_flags(ino, flags, self.actor(header))
        self._changed(ino)
        return b""

    def _get_fsx(self, header: Header, record: Any, given: memoryview) -> bytes:
        found = self.vfs.get_fsx(self.ino(header.nodeid))
        return FSXATTR.pack(*found, bytes(8))

    def _set_fsx(self, header: Header, record: Any, given: memoryview) -> bytes:
        ino = self.ino(header.nodeid)
        *values, _pad = _unpack(FSXATTR, given)
        self.vfs.set_fsx(ino, FsXattr(*values), self.actor(header))
        self._changed(ino)
        return b""

    def _get_version(self, header: Header, record: Any, given: memoryview) -> bytes:
        return U32.pack(self.vfs.get_version(self.ino(header.nodeid)))

    def _set_version(self, header: Header, record: Any, given: memoryview) -> bytes:
        ino = self.ino(header.nodeid)
        (version,) = _unpack(U32, given)
        self.vfs.set_version(ino, version, self.actor(header))
        self._changed(ino)
        return b""

    def _trim(self, header: Header, record: Any, given: memoryview) -> bytes:
        start, length, minlen = _unpack(FSTRIM_RANGE, given)
        return FSTRIM_RANGE.pack(start, self.vfs.trim(start, length, minlen, self.actor(header)), minlen)

    def _uuid(self, header: Header, record: Any, given: memoryview) -> bytes:
        return FSUUID2.pack(16, self.vfs.fs_uuid())

    def _get_label(self, header: Header, record: Any, given: memoryview) -> bytes:
        return self.vfs.get_label().ljust(_LABEL_BYTES, b"\0")

    def _set_label(self, header: Header, record: Any, given: memoryview) -> bytes:
        self.vfs.set_label(bytes(given).partition(b"\0")[0], self.actor(header))
        return b""

    def _shutdown(self, header: Header, record: Any, given: memoryview) -> bytes:
        self.vfs.shutdown(self._shutdown_flags(header, record, given), self.actor(header))
        return b""

    def _shutdown_flags(self, header: Header, record: Any, given: memoryview) -> int:
        """The number of EXT4_IOC_SHUTDOWN says "read", so the kernel does not pass its flags: look for them there.

        The caller waits in its ioctl(2), so its memory stays as it is. Where it must not be looked at, the flags count
        as 0: write everything, then stop.
        """
        if given.nbytes >= U32.size:
            return int(U32.unpack_from(given)[0])
        return self.peek(header.pid, record.cmd, record.arg) or 0

    def _mappings(self, header: Header, record: Any, given: memoryview) -> bytes:
        (offset,) = _unpack(MAPPINGS_IN, given)
        room = (MAPPINGS_BYTES - MAPPINGS_OUT.size) // iomap.IOMAP_IO.size
        found = [m for m in self.vfs.mappings(self.ino(header.nodeid)) if m.end > offset]
        told = found[:room]
        return MAPPINGS_OUT.pack(len(told), len(found) > room) + b"".join(iomap.IOMAP_IO.pack(*m) for m in told)

    def _control(self, header: Header, record: Any, given: memoryview) -> bytes:
        if self.actor(header).uid not in (0, os.geteuid()):
            raise NotPermitted("only root and who mounted may control a mount")
        (number,) = _unpack(U32, given)
        if number >= len(CONTROLS):
            raise Invalid(f"control {number}")
        self.control(CONTROLS[number])
        return b""

    def control(self, what: str) -> None:
        """Do what `py4fs control` asks for. Raises FsError."""
        vfs = self.vfs
        steps: dict[str, Callable[[], None]] = {
            "sync": vfs.sync,
            "freeze": vfs.freeze,
            "thaw": vfs.thaw,
            "ro": lambda: vfs.remount(readonly=True),
            "rw": lambda: vfs.remount(readonly=False),
        }
        steps[what]()


def _unpack(codec: Codec, given: memoryview) -> Any:
    if given.nbytes < codec.size:
        raise Invalid(f"ioctl argument of {given.nbytes} bytes, expected {codec.size}")
    return codec.unpack_from(given)


_Run = Callable[[Ioctls, Any, Any, memoryview], bytes]
_IOCTLS: Final[dict[int, _Run]] = {
    FS_IOC_GETFLAGS: Ioctls._get_flags,
    FS_IOC_SETFLAGS: Ioctls._set_flags,
    FS_IOC32_GETFLAGS: Ioctls._get_flags,
    FS_IOC32_SETFLAGS: Ioctls._set_flags,
    FS_IOC_GETVERSION: Ioctls._get_version,
    FS_IOC_SETVERSION: Ioctls._set_version,
    EXT4_IOC_GETVERSION: Ioctls._get_version,
    EXT4_IOC_SETVERSION: Ioctls._set_version,
    FS_IOC_FSGETXATTR: Ioctls._get_fsx,
    FS_IOC_FSSETXATTR: Ioctls._set_fsx,
    FITRIM: Ioctls._trim,
    EXT4_IOC_SHUTDOWN: Ioctls._shutdown,
    FS_IOC_GETFSUUID: Ioctls._uuid,
    FS_IOC_GETFSLABEL: Ioctls._get_label,
    FS_IOC_SETFSLABEL: Ioctls._set_label,
    PY4FS_IOC_MAPPINGS: Ioctls._mappings,
    PY4FS_IOC_CONTROL: Ioctls._control,
}
