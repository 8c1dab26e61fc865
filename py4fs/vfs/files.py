"""Open regular files: opening and closing them, seeking, syncing."""

from __future__ import annotations

import os

from py4fs.errors import Corrupt, Frozen, Invalid, IsADirectory, NoKey, NoSuchAddress, NotPermitted
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_APPEND_FL, EXT4_ENCRYPT_FL, EXT4_IMMUTABLE_FL, EXT4_VERITY_FL, S_IFREG
from py4fs.iomap.records import IoDir, Mapping, MapType
from py4fs.vfs.data import Data
from py4fs.vfs.names import NAMESPACE_CREDITS
from py4fs.vfs.types import ROOT, Attr, Caller, InGroup, OpenFile


class Files(Data):
    """Operations on handles of regular files."""

    def open(self, ino: int, flags: int, caller: Caller = ROOT, kill_priv: InGroup | None = None) -> int:
        """A handle for a regular file; ``flags`` as open(2)'s (access mode, O_TRUNC, O_APPEND).

        O_TRUNC takes the file's capabilities away, and with ``kill_priv`` set-user-ID and set-group-ID (see
        :meth:`setattr`).
        Raises IsADirectory, Invalid, NoKey, NotPermitted, ReadOnly, Corrupt, DeviceError.
        """
        inode = self._first(ino)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if inode.is_dir:
            raise IsADirectory(f"inode {ino} is a directory")
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        if inode.flags & EXT4_ENCRYPT_FL:
            raise NoKey(f"inode {ino} is encrypted and its key is not here")
        if writable or flags & os.O_TRUNC:
            self._check_writable()
            if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_VERITY_FL):
                raise NotPermitted(f"inode {ino} is immutable")
            if inode.flags & EXT4_APPEND_FL and (not flags & os.O_APPEND or flags & os.O_TRUNC):
                raise NotPermitted(f"inode {ino} is append-only")
        if flags & os.O_TRUNC:
            self._drop_privileges(inode, kill_priv)
            self._set_size(inode, 0, caller)
        return self._open(inode, flags, caller)

    def _open(self, inode: Inode, flags: int, caller: Caller) -> int:
        file = self._file(inode)
        if not self.kernel_owns_data:
            self.client.opened(file)
        fh = self._new_handle(inode.ino)
        handle = self._files[fh] = OpenFile(inode, file, flags, self._reserve(caller))
        if handle.writable:
            self._writers[inode.ino] = self._writers.get(inode.ino, 0) + 1
        return fh

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller = ROOT) -> tuple[int, Attr]:
        """O_TMPFILE: make a regular file without a name and open it; returns (handle, attributes).

        It takes after ``parent`` as a named file would, and is freed like an unlinked one unless :meth:`link` names it
        (with O_EXCL nothing can). Raises NotADirectory, NotPermitted, NoSpace, ReadOnly, Corrupt, DeviceError.
        """
        self._check_writable()
        directory = self._first(parent)
        inode = self._change(
            lambda tx: self._namespace.tmpfile(tx, directory, S_IFREG | mode & 0o7777, caller),
            NAMESPACE_CREDITS,
            self._reserve(caller),
        )
        if not flags & os.O_EXCL:
            self._linkable.add(inode.ino)
        return self._open(inode, flags, caller), self._attr(inode)

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller = ROOT) -> tuple[int, Attr]:
        """Make a regular file and open it; returns (handle, attributes). Raises Exists and as :meth:`mkdir`."""
        inode = self._make(parent, name, S_IFREG | mode & 0o7777, caller)
        return self._open(inode, flags, caller), self._attr(inode)

    def mappings(self, ino: int) -> list[Mapping]:
        """Where the data of a regular file lies, holes included. Raises Invalid, Corrupt, DeviceError."""
        inode = self._first(ino)
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        found = []
        allocated = 0
        for mapping in self.client.report(self._file(inode)):
            if mapping.type != MapType.HOLE:
                allocated += mapping.length
                if allocated > self.volume.device.size:
                    raise Corrupt("blocks", f"inode {ino}", "more than the device has")
            found.append(mapping)
        return found

    def forks(self, ino: int) -> tuple[list[Mapping], list[Mapping] | None]:
        """The read and write fork of a regular file's mapping cache, after everything was brought into it.

        The write fork is None while writes go where reads come from. Raises Invalid, Corrupt, DeviceError.
        """
        inode = self._first(ino)
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        file = self._file(inode)
        self.client.load(file)
        return file.cache.mappings(IoDir.READ) or [], file.cache.mappings(IoDir.WRITE)

    def flush(self, fh: int) -> None:
        """close(2) was called on a descriptor: its data is on the device. Raises BadHandle, DeviceError."""
        self._commit_size(self._handle(fh).inode)

    def release(self, fh: int) -> None:
        """The last descriptor of a handle is gone; an unlinked file is freed. Raises BadHandle, Frozen."""
        handle = self._open_file(fh)
        if self.volume.pauses.frozen and self.server.size(handle.inode) > handle.inode.size:
            raise Frozen(f"handle {fh}: the size of its file changes")
        del self._files[fh]
        if handle.writable:
            self._writers[handle.inode.ino] -= 1
            if not self._writers[handle.inode.ino]:
                del self._writers[handle.inode.ino]
        try:
            if not self.volume.pauses.shut:
                self._commit_size(handle.inode)
        finally:
            self._close(handle.inode)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """Return when the file's data and all metadata are durable. Raises DeviceError."""
        self._commit_size(self._handle(fh).inode)
        self.volume.commit(durable=True)

    def _may_be_dirty(self, handle: OpenFile, *, clean: bool) -> bool:
        """Whether there may be data that no mapping shows. The last handle for writing takes a page cache's along."""
        return bool(handle.file.writes) or (self.kernel_owns_times and not clean and handle.inode.ino in self._writers)

    def seek(self, fh: int, offset: int, whence: int, *, clean: bool = False) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE: the next byte of that kind from ``offset`` on.

        Blocks that are allocated but not written count as a hole. While a kernel may have bytes that were not written
        here yet, or a write is in flight, all of the file is data, even behind the end that is known here: a hole
        would lose those bytes in a copy. With ``clean`` the kernel has just been made to write them.
        Raises NoSuchAddress, Invalid, Corrupt, DeviceError.
        """
        handle = self._handle(fh)
        size = handle.inode.size
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Invalid(f"seek whence {whence}")
        dirty = self._may_be_dirty(handle, clean=clean)
        if dirty and whence == os.SEEK_DATA and offset >= 0:
            return offset
        if not 0 <= offset < size:
            raise NoSuchAddress(f"byte {offset} of {size}")
        if whence == os.SEEK_HOLE:
            return size if dirty else self.client.seek_hole(handle.file, offset, size)
        found = self.client.seek_data(handle.file, offset, size)
        if found is None:
            raise NoSuchAddress(f"no data from byte {offset} on")
        return found
