"""Open directories: reading them while they change."""

from __future__ import annotations

from collections.abc import Iterator

from py4fs.errors import BadHandle, NotFound
from py4fs.vfs.copying import Copying
from py4fs.vfs.types import DirEntry, OpenDir


class Directories(Copying):
    """Operations on handles of directories."""

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
        self.volume.pauses.check_alive()
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
