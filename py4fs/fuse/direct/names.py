"""Requests about names: lookup, create, link, unlink, rename."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

from py4fs.errors import Stale
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.core import FUSE_ROOT, Header, Reply, Worker
from py4fs.fuse.direct.iomap import Iomap
from py4fs.vfs import ROOT_INO, Attr

_NOTHING: Final = Struct(f"<16xQ{structs.ENTRY_OUT.size - 24}x")
"""An entry that says that there is none, for so many seconds."""


class Names(Iomap):
    """Handlers of requests whose body ends in names."""

    def entry_out(self, attr: Attr) -> bytes:
        return structs.ENTRY_OUT.pack(*self.entry_values(attr))

    def lookup(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        name = bytes(body[:-1])  # the kernel's names end in one zero byte and hold none
        if name == b".":
            return self.entry_out(self._by_handle(ROOT_INO if header.nodeid == FUSE_ROOT else header.nodeid))
        found = self.vfs.find(self.ino(header.nodeid), name)
        return _NOTHING.pack(self.name_timeout) if found is None else self.entry_out(found)

    def _by_handle(self, ino: int) -> Attr:
        """A file handle (NFS, open_by_handle_at) of an inode that the kernel does not have in memory.

        So nobody has it open: without a name it is on its way out, even if we have not been told yet. Raises Stale.
        """
        attr = self.vfs.by_handle(ino, None)
        if not attr.nlink:
            raise Stale(f"inode {ino} has no name any more")
        return attr

    def forget(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        (count,) = structs.FORGET_IN.values_from(body)
        self._forget([(header.nodeid, count)])
        return None

    def batch_forget(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        count, _ = structs.BATCH_FORGET_IN.values_from(body)
        count = min(count, (body.nbytes - structs.BATCH_FORGET_IN.size) // structs.FORGET_ONE.size)
        items = structs.FORGET_ONE.iter_unpack(body, structs.BATCH_FORGET_IN.size, count)
        self._forget(items)
        return None

    def _forget(self, items: Iterable[tuple[int, int]]) -> None:
        for nodeid, count in items:
            self.vfs.forget([(nodeid, count)])
            if not self.vfs.known(nodeid):
                self.forgotten(nodeid)

    def _labelled(self, header: Header, body: memoryview, attr: Attr) -> Attr:
        """Give a new inode the security attributes that came with the request."""
        for name, value in self.label(header, body):
            self.vfs.setxattr(attr.ino, name, value, 0)
        return attr

    def mknod(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        mode, rdev, umask, _ = structs.MKNOD_IN.values_from(body)
        name = self.name(body, structs.MKNOD_IN.size)
        attr = self.vfs.mknod(self.ino(header.nodeid), name, mode, rdev, self.caller(header, umask))
        return self.entry_out(self._labelled(header, body, attr))

    def mkdir(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        mode, umask = structs.MKDIR_IN.values_from(body)
        name = self.name(body, structs.MKDIR_IN.size)
        attr = self.vfs.mkdir(self.ino(header.nodeid), name, mode, self.caller(header, umask))
        return self.entry_out(self._labelled(header, body, attr))

    def symlink(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        name, target = self.two_names(body)
        attr = self.vfs.symlink(self.ino(header.nodeid), name, target, self.caller(header))
        return self.entry_out(self._labelled(header, body, attr))

    def link(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        (old,) = structs.LINK_IN.values_from(body)
        name = self.name(body, structs.LINK_IN.size)
        return self.entry_out(self.vfs.link(self.ino(old), self.ino(header.nodeid), name, self.caller(header)))

    def unlink(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self.vfs.unlink(self.ino(header.nodeid), self.name(body), self.caller(header))
        return b""

    def rmdir(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self.vfs.rmdir(self.ino(header.nodeid), self.name(body), self.caller(header))
        return b""

    def rename(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        (newdir,) = structs.RENAME_IN.values_from(body)
        return self._rename(header, newdir, 0, *self.two_names(body, structs.RENAME_IN.size))

    def rename2(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        newdir, flags, _ = structs.RENAME2_IN.values_from(body)
        return self._rename(header, newdir, flags, *self.two_names(body, structs.RENAME2_IN.size))

    def _rename(self, header: Header, newdir: int, flags: int, old: bytes, new: bytes) -> Reply:
        caller = self.caller(header)
        self.vfs.rename(self.ino(header.nodeid), old, self.ino(newdir), new, flags, caller)
        return b""

    def readlink(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        return self.vfs.readlink(self.ino(header.nodeid))
