"""copy_file_range(2): data goes from file to file here, without passing through whoever asked."""

from __future__ import annotations

from typing import Final

from py4fs.errors import BadHandle, FileTooBig, FsError, Invalid, NotPermitted, Overflow
from py4fs.ext4.layout.inode import EXT4_IMMUTABLE_FL
from py4fs.iomap.records import MapType
from py4fs.vfs.ranges import Ranges
from py4fs.vfs.types import ROOT, InGroup, OpenFile

#: bytes in memory at a time
PIECE: Final = 1 << 20
COUNT_MAX: Final = (1 << 64) - 1


class Copying(Ranges):
    """Copies between handles."""

    def copy_file_range(
        self, fh_in: int, off_in: int, fh_out: int, off_out: int, length: int, *, kill_priv: InGroup | None = None
    ) -> int:
        """Copy up to ``length`` bytes; returns how many: fewer at the end of the source, or when something fails then.

        Holes of the source are holes in the copy. ``kill_priv`` as for :meth:`fallocate`.
        Raises BadHandle (also: opened with O_APPEND), Invalid (negative, or
        the ranges overlap), NotPermitted, Overflow, FileTooBig, NoSpace, Busy (another write in flight), ReadOnly,
        Corrupt, DeviceError.
        """
        source, target = self._handle(fh_in), self._handle(fh_out)
        length = self._clip(source, off_in, target, off_out, length)
        if not length:
            return 0
        self.volume.start_writing()
        self._drop_privileges(target.inode, kill_priv)
        done = 0
        try:
            while done < length:
                done += self._copy_piece(fh_in, off_in + done, fh_out, off_out + done, length - done)
        except FsError:
            if not done:
                raise
        if off_out + done > target.inode.size:
            self._set_size(target.inode, off_out + done, ROOT)
        self._stamp(target.inode)
        return done

    def _clip(self, source: OpenFile, off_in: int, target: OpenFile, off_out: int, length: int) -> int:
        """What can be copied, if it may be (kernel: generic_copy_file_checks)."""
        if not source.readable or not target.writable or target.append:
            raise BadHandle("copying takes a handle for reading and one for writing, not for appending")
        if min(off_in, off_out, length) < 0:
            raise Invalid(f"copy of {length} bytes from {off_in} to {off_out}")
        self._check_writable()
        if target.inode.flags & EXT4_IMMUTABLE_FL:
            raise NotPermitted(f"inode {target.inode.ino} is immutable")
        if max(off_in, off_out) + length > COUNT_MAX:
            raise Overflow(f"copy of {length} bytes from {off_in} to {off_out}: the ends take more than 64 bits")
        length = min(length, max(source.inode.size - off_in, 0))
        if not length:
            return 0
        largest = self.volume.files.largest(target.inode)
        if off_out >= largest:
            raise FileTooBig(f"copy to byte {off_out}: at most {largest}")
        length = min(length, largest - off_out)
        if source.inode is target.inode and off_out < off_in + length and off_in < off_out + length:
            raise Invalid(f"copy of {length} bytes from {off_in} to {off_out} of the same file: they overlap")
        return length

    def _copy_piece(self, fh_in: int, off_in: int, fh_out: int, off_out: int, length: int) -> int:
        """Copy the data, or the hole, that the source has at a place; returns the bytes, at least one."""
        source, target = self._handle(fh_in), self._handle(fh_out)
        mapping = self.client.mapping(source.file, off_in, length, 0)
        length = min(length, mapping.end - off_in)
        if mapping.type not in (MapType.HOLE, MapType.UNWRITTEN) or source.file.writes:
            data = self.read(fh_in, off_in, min(length, PIECE))
            return self.write(fh_out, off_out, data, cached=True)
        # what is behind the end of the target becomes a hole by the size it gets
        end = min(off_out + length, target.inode.size)
        if off_out < end:
            self._punch(target, off_out, end)
        return length
