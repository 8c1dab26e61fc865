"""The rest of the simulated kernel's files: direct I/O, sizes, ranges, reports, and the mount as a whole (6.5-6.8)."""

from __future__ import annotations

import errno
import os

from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import Opcode, SetattrValid
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import INVAL_TO_EOF, IoendFlags, Mapping, MapType, OpFlags
from tests.support.simkernel import ROOT, KernelError, Node
from tests.support.simpages import EMPTY, PAGE, Completion, SimPages

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_DIRECT, _UNWRITTEN = IoendFlags.DIRECT, IoendFlags.UNWRITTEN


class SimFiles(SimPages):
    """A kernel whose files can be read and written."""

    # --- direct I/O -----------------------------------------------------------------------------------------

    def direct_read(self, node: Node, pos: int, count: int) -> bytes:
        """Whole sectors. Raises KernelError."""
        self._clean(node, pos, count)
        parts = []
        end = min(pos + count, -(-node.size // 512) * 512)
        at = pos
        while at < end:
            found = self.begin(node, at, end - at, OpFlags.DIRECT).map
            stop = min(found.end, end)
            if found.type in EMPTY:
                parts.append(bytes(stop - at))
            elif found.type == MapType.INLINE:
                parts.append(self._read_inline(node, at, stop - at))
            else:
                parts.append(self.device.bio_read(found.addr + at - found.offset, stop - at))
            at = stop
        return b"".join(parts)[: max(node.size - pos, 0)]

    def direct_write(self, node: Node, pos: int, data: bytes) -> int:
        """Whole sectors; what fails always ends in an IOEND (9.5). Raises KernelError."""
        assert pos % 512 == 0 and len(data) % 512 == 0
        if not node.knows_caps:
            node.knows_caps = True
            self._ask_for_capabilities(node)
        if pos > node.size:
            self.zero(node, node.size, pos - node.size)
        self._clean(node, pos, len(data))
        node.new_times = True
        at, end, flags, code = pos, pos + len(data), int(_DIRECT), 0
        while at < end and not code:
            try:
                mapping = self.begin(node, at, end - at, OpFlags.WRITE | OpFlags.DIRECT).map
                if mapping.type == MapType.INLINE:
                    self._write_inline(node, at, data[at - pos :])
                    return len(data)
                stop = min(mapping.end, end)
                flags |= _UNWRITTEN if mapping.type == MapType.UNWRITTEN else 0
                self._direct_piece(mapping, at, data[at - pos : stop - pos])
                at = stop
            except OSError as exc:
                code = exc.errno or errno.EIO
        code = self.ioend(Completion(node, pos, at - pos, flags, -code, dev=0)) or code
        if code:
            raise KernelError(code)
        self._forget_pages(node, pos, len(data))
        return at - pos

    def _direct_piece(self, mapping: Mapping, at: int, data: bytes) -> None:
        """Where a block was unwritten the rest of it is zeroed: it counts as written from then on."""
        assert mapping.type in (MapType.MAPPED, MapType.UNWRITTEN), mapping
        head = tail = 0
        if mapping.type == MapType.UNWRITTEN:
            head, tail = at % self.block, -(at + len(data)) % self.block
        self.device.bio_write(mapping.addr + at - head - mapping.offset, bytes(head) + data + bytes(tail))

    def _clean(self, node: Node, pos: int, count: int) -> None:
        first, end = pos // self.block, -(-(pos + count) // self.block)
        self.writeback(node, first, end)
        self._forget_pages(node, pos, count)

    def _forget_pages(self, node: Node, pos: int, count: int) -> None:
        for number in range(pos // self.block, -(-(pos + count) // self.block)):
            if number not in node.dirty:
                node.pages.pop(number, None)

    # --- sizes and ranges (6.6) -------------------------------------------------------------------------------

    def truncate(self, node: Node, size: int) -> None:
        old = node.size
        if size > old:
            self.zero(node, old, size - old)
        elif size % self.block:
            self.zero(node, size, self.block - size % self.block)
        node.size = size
        for number in [n for n in node.pages if n * self.block >= size]:
            del node.pages[number]
            node.dirty.discard(number)
        self.writeback(node)
        valid = int(SetattrValid.SIZE | SetattrValid.MTIME | SetattrValid.CTIME)
        node.disk_size = self.setattr(node, valid, size)
        self.drop_mappings(node, size - size % self.block, INVAL_TO_EOF)

    def fallocate(self, fh: int, mode: int, pos: int, count: int) -> None:
        node = self.handles[fh]
        end = pos + count
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self._clean(node, pos - pos % PAGE, -(-end // PAGE) * PAGE - (pos - pos % PAGE))
        body = structs.FALLOCATE_IN.pack(fh, pos, count, mode, 0)
        self.call(Opcode.FALLOCATE, node.nodeid, body)
        self.drop_mappings(node, pos, count)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            for lo, hi in self._edges(pos, min(end, node.size)):
                self.zero(node, lo, hi - lo)
        if not mode & KEEP_SIZE and end > node.size:
            self.zero(node, node.size, end - node.size)
            node.size = node.disk_size = end
        self.sync_times(node)

    def _edges(self, pos: int, end: int) -> list[tuple[int, int]]:
        first, stop = -(-pos // self.block) * self.block, end // self.block * self.block
        parts = [(pos, end)] if first > stop else [(pos, first), (stop, end)]
        return [(lo, hi) for lo, hi in parts if lo < hi]

    # --- reports (6.8) ------------------------------------------------------------------------------------------

    def fiemap(self, node: Node) -> list[Mapping]:
        """Extents as the server shows them, untrimmed (9.6), up to the largest file (9.7)."""
        found, pos = [], 0
        while pos < self.max_bytes:
            mapping = self.begin(node, pos, self.max_bytes - pos, OpFlags.REPORT).map
            if mapping.type != MapType.HOLE:
                found.append(mapping)
            assert mapping.end > pos
            pos = mapping.end
        return found

    def seek(self, node: Node, pos: int, whence: int) -> int:
        """lseek(2); unwritten blocks are data where pages are. Raises KernelError (ENXIO)."""
        if not 0 <= pos < node.size:
            raise KernelError(errno.ENXIO)
        while pos < node.size:
            mapping = self.begin(node, pos, node.size - pos, OpFlags.REPORT).map
            stop = min(mapping.end, node.size)
            while pos < stop:
                data = mapping.type in (MapType.MAPPED, MapType.INLINE)
                if mapping.type == MapType.UNWRITTEN:
                    data = pos // self.block in node.pages
                if data == (whence == os.SEEK_DATA):
                    return pos
                pos += self.block - pos % self.block
            pos = stop
        if whence == os.SEEK_DATA:
            raise KernelError(errno.ENXIO)
        return node.size

    # --- the file system as a whole --------------------------------------------------------------------------------

    def syncfs(self) -> None:
        """Does not wait for completions as coded (9.14)."""
        self.finish(Opcode.SYNCFS, self.start_syncfs())

    def start_syncfs(self) -> int:
        for node in list(self.nodes.values()):
            self.writeback(node)
            self.sync_times(node)
        if not self.as_coded:
            self.release_ioends()
        return self.submit(Opcode.SYNCFS, ROOT, structs.SYNCFS_IN.pack(0))

    def start_freeze(self) -> int:
        self.syncfs()
        return self.submit(iomap.Opcode.FREEZE_FS, ROOT, iomap.FREEZEFS_IN.pack(0))

    def freeze(self) -> None:
        self.finish(iomap.Opcode.FREEZE_FS, self.start_freeze())

    def unfreeze(self) -> None:
        self.call(iomap.Opcode.UNFREEZE_FS, ROOT)

    def umount(self) -> None:
        """Everything closed, DESTROY (no SYNCFS: 9.10), the device away."""
        for fh in list(self.handles):
            self.close(fh)
        self.operations.on_destroy = self.vfs.close
        self.call(Opcode.DESTROY, 0)
        self.link.close()
        self.device.save()
