"""Requests about attributes: stat, chmod and its like, extended attributes, the file system as a whole."""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

from py4fs.errors import OutOfRange
from py4fs.ext4.layout import inode as flags
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.core import Header, Reply, Worker
from py4fs.fuse.direct.names import Names
from py4fs.fuse.direct.protocol import GETATTR_FH, SETXATTR_ACL_KILL_SGID, SetattrValid
from py4fs.vfs import NOW, Attr

_NS: Final = 1_000_000_000
_BASIC_STATS: Final = 0x7FF
_BTIME: Final = 0x800
_DIRECT: Final = 0x2000 | 0x20000
"""STATX_DIOALIGN and STATX_DIO_READ_ALIGN."""
_ATTRIBUTES: Final = (
    (flags.EXT4_COMPR_FL, 0x4),
    (flags.EXT4_IMMUTABLE_FL, 0x10),
    (flags.EXT4_APPEND_FL, 0x20),
    (flags.EXT4_NODUMP_FL, 0x40),
    (flags.EXT4_ENCRYPT_FL, 0x800),
    (flags.EXT4_VERITY_FL, 0x100000),
)
"""Inode flags and their STATX_ATTR_* bits."""
_ATTRIBUTES_MASK: Final = sum(bit for _, bit in _ATTRIBUTES)
_SIGN: Final = 1 << 63
_ACL_ACCESS: Final = b"system.posix_acl_access"

# plain numbers: the enum's own operators cost a call each
_MODE: Final = int(SetattrValid.MODE)
_UID: Final = int(SetattrValid.UID)
_GID: Final = int(SetattrValid.GID)
_SIZE: Final = int(SetattrValid.SIZE)
_ATIME: Final = int(SetattrValid.ATIME)
_MTIME: Final = int(SetattrValid.MTIME)
_CTIME: Final = int(SetattrValid.CTIME)
_ATIME_NOW: Final = int(SetattrValid.ATIME_NOW)
_MTIME_NOW: Final = int(SetattrValid.MTIME_NOW)
_VALID: Final = structs.SETATTR_IN.field("valid")
_FH: Final = int(SetattrValid.FH)
_KILL: Final = int(SetattrValid.KILL_SUIDGID)


def _time(seconds: int, ns: int) -> int:
    """ns since the epoch; the seconds are signed, though the record's field is not."""
    return ((seconds ^ _SIGN) - _SIGN) * _NS + ns


class Attributes(Names):
    """Handlers of requests that read or change an inode's attributes."""

    def getattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """With a handle the kernel asks on behalf of read(2), write(2) and lseek(2), but never of stat(2)."""
        ino = self.ino(header.nodeid)
        asked, _, fh = structs.GETATTR_IN.values_from(body)
        if asked & GETATTR_FH:
            self.check_room(ino, fh)
        return self.attr_out(self.vfs.getattr(ino))

    def statx(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Stock kernels take what stat(2) has and the birth time of it, nothing else (fuse_do_statx)."""
        attr = self.vfs.getattr(self.ino(header.nodeid))
        align = self.direct_alignment(attr)
        times: list[int] = []
        for value in (attr.atime, attr.crtime or 0, attr.ctime, attr.mtime):
            times += (*divmod(value, _NS), 0)
        return structs.STATX_OUT.pack(
            self.attr_timeout(attr.ino),
            0,
            0,
            bytes(16),
            _BASIC_STATS | (_BTIME if attr.crtime is not None else 0) | (_DIRECT if align else 0),
            attr.blksize,
            _statx_attributes(attr),
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.mode,
            0,
            attr.ino,
            attr.size,
            attr.blocks,
            _ATTRIBUTES_MASK,
            *times,
            attr.rdev >> 8 & 0xFFF,
            attr.rdev & 0xFF | attr.rdev >> 12 & 0xFFF00,
            0,
            0,
            0,
            align,
            align,
            0,
            0,
            0,
            0,
            align,
            0,
            bytes(68),
        )

    def setattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        valid = _VALID.get(body, 0)
        if valid & ~_FH == _MTIME | _CTIME and self.vfs.kernel_owns_times:
            return self._note_times(header, body)
        given = structs.SETATTR_IN.unpack_from(body)
        changes: dict[str, Any] = {}
        if valid & _MODE:
            changes["mode"] = stat.S_IMODE(given.mode)
        if valid & _UID:
            changes["uid"] = given.uid
        if valid & _GID:
            changes["gid"] = given.gid
        if valid & _SIZE:
            changes["size"] = given.size
        if valid & _ATIME:
            changes["atime"] = NOW if valid & _ATIME_NOW else _time(given.atime, given.atimensec)
        if valid & _MTIME:
            changes["mtime"] = NOW if valid & _MTIME_NOW else _time(given.mtime, given.mtimensec)
        if valid & _CTIME:
            changes["ctime"] = self._ctime(given.ctime, given.ctimensec)
        if valid & _ATIME and not valid & _ATIME_NOW:
            changes["timed"] = True  # the kernel's own times come without an access time
        if valid & _KILL:
            changes["kill_priv"] = self.kill_priv(header)
        fh = given.fh if valid & _FH else None
        return self.attr_out(self.vfs.setattr(self.ino(header.nodeid), caller=self.caller(header), fh=fh, **changes))

    def _note_times(self, header: Header, body: memoryview) -> Reply:
        _, _, _, _, _, _, mtime, ctime, _, mtimensec, ctimensec, _, _, _, _, _ = structs.SETATTR_IN.values_from(body)
        times = _time(mtime, mtimensec), self._ctime(ctime, ctimensec)
        return self.attr_out(self.vfs.note_times(self.ino(header.nodeid), *times))

    def _ctime(self, seconds: int, ns: int) -> int:
        ctime = _time(seconds, ns)
        if self._clock is not None:  # only the kernel sets ctime, so this is its clock
            self._clock.saw(ctime)
        return ctime

    def statfs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        found = self.vfs.statfs()
        return structs.STATFS_OUT.pack(
            found.blocks,
            found.bfree,
            found.bavail,
            found.files,
            found.ffree,
            found.bsize,
            found.namemax,
            found.bsize,
            0,
            bytes(24),
        )

    # --- extended attributes -------------------------------------------------------------------

    def getxattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        size, _ = structs.GETXATTR_IN.values_from(body)
        found = self.vfs.find_xattr(self.ino(header.nodeid), self.name(body, structs.GETXATTR_IN.size))
        return errno.ENODATA if found is None else self._sized(found, size)

    def listxattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        size, _ = structs.GETXATTR_IN.values_from(body)
        names = self.vfs.listxattr(self.ino(header.nodeid), self.caller(header))
        return self._sized(b"".join(name + b"\0" for name in names), size)

    @staticmethod
    def _sized(value: bytes, size: int) -> Reply:
        """The value if there is room for it; its length if only that was asked for. Raises OutOfRange."""
        if size == 0:
            return structs.GETXATTR_OUT.pack(len(value), 0)
        if len(value) > size:
            raise OutOfRange(f"{len(value)} bytes do not fit {size}")
        return value

    def setxattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        size, how, more, _ = structs.SETXATTR_IN.values_from(body)
        name = self.name(body, structs.SETXATTR_IN.size)
        start = structs.SETXATTR_IN.size + len(name) + 1
        ino, value = self.ino(header.nodeid), bytes(body[start : start + size])
        self.vfs.setxattr(ino, name, value, how, self.caller(header))
        if more & SETXATTR_ACL_KILL_SGID and name == _ACL_ACCESS:
            mode = self.vfs.getattr(ino).mode
            if mode & stat.S_ISGID:
                self.vfs.setattr(ino, mode=stat.S_IMODE(mode) & ~stat.S_ISGID)
        return b""

    def removexattr(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self.vfs.removexattr(self.ino(header.nodeid), self.name(body), self.caller(header))
        return b""


def _statx_attributes(attr: Attr) -> int:
    return sum(bit for flag, bit in _ATTRIBUTES if attr.flags & flag)
