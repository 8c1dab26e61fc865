"""fallocate(2): ranges of a file allocated, punched, zeroed, taken out, made room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from py4fs.errors import BadHandle, FileTooBig, Invalid, NoSpace, NotPermitted, NotSupported
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL
from py4fs.iomap.backing import INLINE_CREDITS
from py4fs.iomap.client import IomapFile
from py4fs.iomap.records import INVAL_TO_EOF
from py4fs.vfs.mapping import Mappings
from py4fs.vfs.types import InGroup, OpenFile

PAGE: Final = 4096
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
FALLOC_MODES: Final = frozenset(
    (
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_INSERT_RANGE,
    )
)


class Ranges(Mappings):
    """fallocate and its parts."""

    def fallocate(self, fh: int, mode: int, offset: int, length: int, *, kill_priv: InGroup | None = None) -> None:
        """fallocate(2): allocate, and with FALLOC_FL_* punch a hole, zero, collapse or insert a range (bytes).

        Takes the file's capabilities away, and with ``kill_priv`` set-user-ID and set-group-ID (see
        :meth:`setattr`).
        Raises BadHandle, Invalid, NotPermitted, NotSupported, FileTooBig, NoSpace, Corrupt, DeviceError.
        """
        handle = self._handle(fh)
        if not handle.writable:
            raise BadHandle(f"file handle {fh} is not open for writing")
        self._check_writable()
        inode = handle.inode
        if offset < 0 or length <= 0:
            raise Invalid(f"range of {length} bytes at {offset}")
        if mode not in FALLOC_MODES:
            raise NotSupported(f"fallocate mode {mode:#x}")
        kind = mode & ~FALLOC_FL_KEEP_SIZE
        if offset + length > self.volume.files.max_size:
            raise FileTooBig(f"range up to byte {offset + length}: at most {self.volume.files.max_size}")
        if inode.flags & EXT4_IMMUTABLE_FL or (inode.flags & EXT4_APPEND_FL and kind):
            raise NotPermitted(f"inode {inode.ino} is immutable or append-only")
        self._drop_privileges(inode, kill_priv)
        if inode.is_inline or inode.may_inline:
            self._change(lambda tx: self.volume.files.leave_inline(tx, inode), INLINE_CREDITS, handle.reserve)
        self._stamp(inode)  # before what only ext4 can refuse (kernel: file_modified)
        self._fallocate(handle, mode, offset, length)
        self._settle(inode)

    def _fallocate(self, handle: OpenFile, mode: int, offset: int, length: int) -> None:
        inode, end = handle.inode, offset + length
        if mode & FALLOC_FL_PUNCH_HOLE:
            self._punch(handle, offset, end)
        elif mode & FALLOC_FL_ZERO_RANGE:
            self._zero_range(handle, offset, end, None if mode & FALLOC_FL_KEEP_SIZE else end)
        elif mode == FALLOC_FL_COLLAPSE_RANGE:
            self.volume.files.extent_tree(inode)
            self._check_blocks(offset, length)
            if end >= inode.size:
                raise Invalid(f"range up to byte {end} of {inode.size}: truncate instead")
            block = self.volume.geometry.block_size
            try:
                self.volume.fallocator.collapse(inode, offset // block, end // block)
            finally:
                self.client.invalidate(handle.file, offset, INVAL_TO_EOF)
        elif mode == FALLOC_FL_INSERT_RANGE:
            self.volume.files.extent_tree(inode)
            self._check_blocks(offset, length)
            if offset >= inode.size:
                raise Invalid(f"byte {offset} of {inode.size}: extend instead")
            if inode.size + length > self.volume.files.max_size:
                raise FileTooBig(f"{inode.size + length} bytes: at most {self.volume.files.max_size}")
            block = self.volume.geometry.block_size
            try:
                self.volume.fallocator.insert(inode, offset // block, length // block)
            finally:
                self.client.invalidate(handle.file, offset, INVAL_TO_EOF)
        else:
            self._preallocate(handle, offset, end, None if mode & FALLOC_FL_KEEP_SIZE else end)

    def _check_blocks(self, offset: int, length: int) -> None:
        unit = self.volume.geometry.block_size << self.volume.geometry.cluster_bits
        if offset % unit or length % unit:
            raise Invalid(f"range of {length} bytes at {offset}: whole pieces of {unit} bytes only")

    def _preallocate(self, handle: OpenFile, offset: int, end: int, size: int | None) -> None:
        block = self.volume.geometry.block_size
        inode = handle.inode
        if size is not None and size > inode.size:
            self.volume.files.extent_tree(inode)
            # what lies behind the old end in its block must read as zeros from now on
            self._zero(handle.file, inode.size, -inode.size % block)
        try:
            self._in_pieces(lambda: self.volume.fallocator.allocate(
                inode, offset // block, -(-end // block), size, handle.reserve
            ))
        finally:
            self.client.invalidate(handle.file, offset, end - offset)

    def _in_pieces(self, step: Callable[[], None]) -> None:
        """Run something made of several operations; once more after a commit when only that can give space."""
        try:
            step()
        except NoSpace:
            if not self._freed_for_use():
                raise
            step()

    def _punch(self, handle: OpenFile, offset: int, end: int) -> None:
        """Kernel: ext4_punch_hole. Nothing to do behind the end of the file, but for the rest of its last page."""
        block = self.volume.geometry.block_size
        inode, file = handle.inode, handle.file
        size = self.server.size(inode)
        if offset >= size:
            return
        if end >= size:
            end = max(-(-size // PAGE) * PAGE, -(-size // block) * block)
        self._zero_edges(file, offset, end)
        first, stop = -(-offset // block), end // block
        try:
            if first < stop:
                self.volume.fallocator.punch(inode, first, stop)
        finally:
            self.client.invalidate(file, offset, end - offset)

    def _zero_range(self, handle: OpenFile, offset: int, end: int, size: int | None) -> None:
        """Kernel: ext4_zero_range: the whole range is allocated, and reads as zeros."""
        block = self.volume.geometry.block_size
        inode, file = handle.inode, handle.file
        self.volume.files.extent_tree(inode)
        self._zero_edges(file, offset, end)
        first, stop = -(-offset // block), end // block
        try:
            if first < stop:
                self._in_pieces(lambda: self.volume.fallocator.zero(inode, first, stop))
        finally:
            self.client.invalidate(file, offset, end - offset)
        self._preallocate(handle, offset, end, size)

    def _zero_edges(self, file: IomapFile, offset: int, end: int) -> None:
        """Zeros for the parts of blocks at both ends of a range."""
        block = self.volume.geometry.block_size
        first, stop = -(-offset // block) * block, end // block * block
        if first > stop:
            self._zero(file, offset, end - offset)
        else:
            self._zero(file, offset, first - offset)
            self._zero(file, stop, end - stop)

    def _stamp(self, inode: Inode) -> None:
        with self.volume.operation(1) as tx:
            tx.touch(inode)
            inode.mtime = inode.ctime = tx.now
