"""What a kernel with FUSE_IOMAP asks: where ranges of files are, and what became of them.

Such a kernel does file I/O by itself (``kernel_owns_data``).  It names inodes, not handles: pages are written back
when nobody has the file open any more.  Contents that are in the inode (inline data) still come through here.
"""

from __future__ import annotations

from py4fs.errors import BadHandle, Invalid, NoSpace, NotSupported
from py4fs.ext4.inode import Inode
from py4fs.iomap.backing import INLINE_CREDITS
from py4fs.iomap.records import ALLOCATING, HOLE_IS_FINE, Mapping
from py4fs.iomap.server import Push
from py4fs.vfs.files import Files
from py4fs.vfs.types import ROOT, Caller


class Mappings(Files):
    """Operations by inode number for an asker outside of this process. Positions and counts in bytes."""

    def map_begin(
        self, ino: int, pos: int, count: int, opflags: int, push: Push | None = None, caller: Caller = ROOT
    ) -> tuple[Mapping, Mapping]:
        """The (read, write) mappings at ``pos``, blocks allocated for writes; see :meth:`Ext4Iomap.begin`.

        Raises Invalid, FileTooBig, NoSpace, NotSupported, ReadOnly, Frozen, CommitPending, Corrupt, DeviceError.
        """
        inode = self._regular(ino)
        if opflags & ALLOCATING and not opflags & HOLE_IS_FINE:
            self.volume.start_writing()
        reserve = self._reserve(caller)
        try:
            return self.server.begin(inode, pos, count, opflags, push, reserve)
        except NoSpace:
            if not self._freed_for_use():
                raise
        return self.server.begin(inode, pos, count, opflags, push, reserve)

    def map_open(self, ino: int, push: Push) -> None:
        """A file was opened: bring its first mappings to the asker. Raises Corrupt, DeviceError."""
        inode = self._regular(ino)
        if inode.size:
            self.server.open_push(inode, push)

    def map_end(self, ino: int, pos: int, count: int, written: int, opflags: int, map_flags: int) -> None:
        """A write into a mapping got ``written`` of ``count`` bytes done. Raises Corrupt, Frozen, DeviceError."""
        self.server.end(self._regular(ino), pos, count, written, opflags, map_flags)

    def map_ioend(self, ino: int, pos: int, written: int, flags: int, error: int = 0) -> int:
        """Data went to the device, or failed to: returns the size on disk. Raises Corrupt, NoSpace, DeviceError."""
        inode = self._regular(ino)
        self.volume.note_data_written()
        return self.server.complete(inode, pos, written, flags, error)

    def data_is_down(self, fh: int) -> None:
        """At FLUSH and FSYNC the data is on the device, and so the size in core is the one on disk (IOMAP.md 9.1).

        What was overwritten in place nobody told us about, but durable it has to become.
        Raises BadHandle, DeviceError.
        """
        self.volume.note_data_written()
        if fh in self._files:
            self.flush(fh)
        elif fh not in self._dirs:
            raise BadHandle(f"handle {fh} is not open")

    def read_inline(self, ino: int, pos: int, count: int) -> bytes:
        """``count`` bytes of contents that are in the inode, zeros behind their end (IOMAP.md 6.7).

        Raises NotSupported (they are in blocks), Corrupt.
        """
        return self.server.inline_data(self._inline(ino), pos, count)

    def write_inline(self, ino: int, pos: int, data: bytes, caller: Caller = ROOT) -> None:
        """Change contents that are in the inode.

        Before a SETATTR of the size come zeros: to the end of the block, when it shrinks, where those behind the file's
        end do not count; behind its end, when it grows, where they need not fit.
        Raises NotSupported (the contents are in blocks, or what is written does not fit), ReadOnly, Frozen, Corrupt.
        """
        inode = self._inline(ino)
        self.volume.start_writing()
        zeros = not any(data)
        if zeros and pos < inode.size and (pos + len(data)) % self.server.block_size == 0:
            data = data[: inode.size - pos]
        with self.volume.operation(INLINE_CREDITS, self._reserve(caller)) as tx:
            done = self.server.write_inline(tx, inode, pos, data)
        if not done and not (zeros and pos >= inode.size):
            raise NotSupported(f"inode {ino}: {len(data)} bytes at {pos} do not fit into it")

    def _regular(self, ino: int) -> Inode:
        inode = self._first(ino)
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        return inode

    def _inline(self, ino: int) -> Inode:
        """Raises NotSupported for contents in blocks, which only the kernel may read and write: it does not look at
        the page cache of the device that we would go through."""
        inode = self._regular(ino)
        if not inode.is_inline:
            raise NotSupported(f"inode {ino}: its contents are in blocks")
        return inode
