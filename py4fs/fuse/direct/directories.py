"""Requests about open directories."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from py4fs.errors import FsError
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.attributes import Attributes
from py4fs.fuse.direct.core import Header, Reply, Worker
from py4fs.fuse.direct.protocol import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from py4fs.vfs import DirEntry

_NAME_AT: Final = structs.DIRENT.size
_PLUS_NAME_AT: Final = structs.DIRENTPLUS.size
_MODE_AT: Final = structs.ENTRY_OUT.fields.index("attr_mode")
#: on-disk types (EXT4_FT_*) as the types of a mode, 0 where there is none
_TYPES: Final = (
    0,
    stat.S_IFREG >> 12,
    stat.S_IFDIR >> 12,
    stat.S_IFCHR >> 12,
    stat.S_IFBLK >> 12,
    stat.S_IFIFO >> 12,
    stat.S_IFSOCK >> 12,
    stat.S_IFLNK >> 12,
)
_NO_ENTRY: Final = (0,) * len(structs.ENTRY_OUT.fields)


def _type(entry: DirEntry) -> int:
    return _TYPES[entry.ftype] if entry.ftype < len(_TYPES) else 0


class Directories(Attributes):
    """Handlers of requests on handles of directories."""

    def opendir(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        fh = self.vfs.opendir(self.ino(header.nodeid))
        cached = 0 if self.vfs.counts_every_read else FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR
        return structs.OPEN_OUT.pack(fh, cached, 0)

    def readdir(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        return self._list(body, _NAME_AT, self._dirent)

    def readdirplus(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        return self._list(body, _PLUS_NAME_AT, self._direntplus)

    def _list(self, body: memoryview, name_at: int, pack: Callable[[DirEntry], bytes]) -> bytes:
        """As many entries as there is room for: `pack`'s record of `name_at` bytes, the name, zeros up to 8 bytes."""
        record = structs.READ_IN.unpack_from(body)
        parts: list[bytes] = []
        room = record.size
        for entry in self.vfs.readdir(record.fh, record.offset):
            if not self._can_be_told(entry):
                continue
            size = -(-(name_at + len(entry.name)) // 8) * 8
            if size > room:
                break
            room -= size
            parts += (pack(entry), entry.name.ljust(size - name_at, b"\0"))
        return b"".join(parts)

    def _dirent(self, entry: DirEntry) -> bytes:
        return structs.DIRENT.pack(entry.ino, entry.cookie, len(entry.name), _type(entry))

    def _direntplus(self, entry: DirEntry) -> bytes:
        values = self._listed(entry)
        kind = values[_MODE_AT] >> 12 or _type(entry)
        return structs.DIRENTPLUS.pack(*values, entry.ino, entry.cookie, len(entry.name), kind)

    def _can_be_told(self, entry: DirEntry) -> bool:
        """The kernel would end the whole listing with EIO over a name that no path can have."""
        if b"/" in entry.name or b"\0" in entry.name:
            self.failures.complain("readdir: inode %d has the impossible name %r", entry.ino, entry.name)
            return False
        return True

    def _listed(self, entry: DirEntry) -> tuple[int, ...]:
        """The fields of a fuse_entry_out for a listing, all zero where the kernel shall learn the name only.

        So it is for `.` and `..`, of which it takes no reference, and for damaged inodes, which must not hide the
        other names: using them gives the error.
        """
        if entry.name in (b".", b".."):
            return _NO_ENTRY
        try:
            return self.entry_values(self.vfs.getattr(entry.ino))
        except FsError as exc:
            self.failures.errno_of("readdirplus", exc)
            return _NO_ENTRY

    def releasedir(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self.vfs.releasedir(structs.RELEASE_IN.unpack_from(body).fh)
        return b""
