"""The page cache of the simulated kernel: buffered I/O, writeback and what follows (IOMAP.md 6.3-6.5, 6.7).

Pages are of the file system's block size. Everything happens when it is asked for: there is no background writeback,
so that a test says when the server hears of what.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import Opcode, SetattrValid
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import NULL_ADDR, WRITE_LIKE, IoendFlags, MapFlags, Mapping, MapType, OpFlags
from tests.support.simkernel import Found, KernelError, Node, SimKernel

PAGE = 4096
_TIMES = SetattrValid.ATIME | SetattrValid.MTIME | SetattrValid.CTIME
_SHARED, _UNWRITTEN, _DIRECT = IoendFlags.SHARED, IoendFlags.UNWRITTEN, IoendFlags.DIRECT
_APPEND, _WRITEBACK = IoendFlags.APPEND, IoendFlags.WRITEBACK
EMPTY = (MapType.HOLE, MapType.UNWRITTEN, MapType.DELALLOC)


class Completion(NamedTuple):
    """Bytes of a file whose I/O is over."""

    node: Node
    pos: int
    length: int
    flags: int
    error: int = 0
    addr: int = NULL_ADDR
    dev: int = 0


class SimPages(SimKernel):
    """A kernel with a page cache."""

    hold_ioends = False
    """Keep completions back, as a slow worker would; :meth:`release_ioends` lets them go."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.held: list[Completion] = []
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    # --- buffered ---------------------------------------------------------------------------------------

    def read(self, node: Node, pos: int, count: int) -> bytes:
        end = min(pos + count, node.size)
        if pos >= end:
            return b""
        first, stop = pos // self.block, -(-end // self.block)
        number = first
        while number < stop:
            if number in node.pages:
                number += 1
                continue
            # readahead: the whole rest is asked for, and what one mapping gives is filled
            found = self.begin(node, number * self.block, (stop - number) * self.block, 0)
            while number < stop and number * self.block < found.map.end:
                if number not in node.pages:
                    node.pages[number] = bytearray(self._from_device(node, found.map, number))
                number += 1
        node.new_times = True
        data = b"".join(node.pages[number] for number in range(first, stop))
        return data[pos - first * self.block :][: end - pos]

    def _from_device(self, node: Node, mapping: Mapping, number: int) -> bytes:
        if mapping.type in EMPTY:
            return bytes(self.block)
        if mapping.type == MapType.INLINE:
            return self._read_inline(node, number * self.block, self.block)
        assert mapping.type == MapType.MAPPED, mapping
        return self.device.bio_read(mapping.addr + number * self.block - mapping.offset, self.block)

    def write(self, node: Node, pos: int, data: bytes) -> int:
        """write(2); short when something fails after a part. Raises KernelError."""
        if not node.knows_caps:
            node.knows_caps = True
            self._ask_for_capabilities(node)
        if pos > node.size:
            self.zero(node, node.size, pos - node.size)
        node.new_times = True
        at, end = pos, pos + len(data)
        while at < end:
            try:
                at += self._write_some(node, at, data[at - pos :], OpFlags.WRITE)
            except KernelError:
                if at == pos:
                    raise
                break
        return at - pos

    def _ask_for_capabilities(self, node: Node) -> None:
        body = structs.GETXATTR_IN.pack(0, 0) + b"security.capability\0"
        try:
            self.call(Opcode.GETXATTR, node.nodeid, body)
        except KernelError as exc:
            if exc.errno not in (errno.ENODATA, errno.ENOSYS):
                raise

    def _write_some(self, node: Node, at: int, data: bytes, op: int) -> int:
        """As much as one mapping has; 0: it went stale before anything was done."""
        found = self.begin(node, at, len(data), op)
        count = min(found.map.end - at, len(data))
        if found.map.type == MapType.INLINE:
            return self._write_inline(node, at, data[:count])
        done, grown, stale = 0, False, False
        while done < count:
            number, skip = divmod(at + done, self.block)
            step = min(self.block - skip, count - done)
            if not self._still_true(node, found):
                stale = True
                break
            page = self._page_for(node, found, number, whole=step == self.block)
            page[skip : skip + step] = data[done : done + step]
            node.dirty.add(number)
            done += step
            if at + done > node.size:
                node.size, grown = at + done, True
        flags = (MapFlags.SIZE_CHANGED if grown else 0) | (MapFlags.STALE if stale else 0)
        self.end(node, at, count, done, op, found.map, int(flags))
        return done

    def _still_true(self, node: Node, found: Found) -> bool:
        return not found.cookie or (node.cache is not None and node.cache.seq == found.cookie)

    def _page_for(self, node: Node, found: Found, number: int, *, whole: bool) -> bytearray:
        page = node.pages.get(number)
        if page is None:
            start = number * self.block
            source = found.source if found.source.type != MapType.HOLE else found.map
            fresh = whole or start >= node.size
            page = bytearray(self.block) if fresh else bytearray(self._from_device(node, source, number))
            node.pages[number] = page
        return page

    def end(self, node: Node, pos: int, count: int, written: int, op: int, mapping: Mapping, flags: int) -> None:
        """iomap_end, with the bit mix-up of WANT_IOMAP_END as coded (6.4)."""
        asked = mapping.flags & (MapFlags.ANON_WRITE if self.as_coded else MapFlags.WANT_IOMAP_END)
        changed = op & WRITE_LIKE and (flags & MapFlags.SIZE_CHANGED or written < count)
        if self.no_end or not (asked or changed):
            return
        told = mapping._replace(flags=mapping.flags | flags)
        body = iomap.IOMAP_END_IN.pack(op, 0, node.ino, pos, count, written, *told)
        try:
            self.call(iomap.Opcode.IOMAP_END, node.nodeid, body)
        except KernelError as exc:
            assert exc.errno != errno.ENOSYS, "ENOSYS to END: sizes would be lost from now on"
            if not written:
                raise

    def zero(self, node: Node, pos: int, count: int) -> None:
        """ZERO operations: what is on the device, or in pages, of a range becomes zeros."""
        end = pos + count
        while pos < end:
            found = self.begin(node, pos, end - pos, OpFlags.ZERO)
            stop = min(found.map.end, end)
            if found.map.type == MapType.INLINE:
                size = node.size
                self._write_inline(node, pos, bytes(stop - pos))
                node.size, pos = size, stop
                continue
            empty = found.map.type in EMPTY
            for number in range(pos // self.block, -(-stop // self.block)):
                if empty and number not in node.pages:
                    continue
                start = number * self.block
                lo, hi = max(pos, start) - start, min(stop, start + self.block) - start
                page = node.pages.get(number)
                if page is None:
                    page = node.pages[number] = bytearray(self._from_device(node, found.map, number))
                page[lo:hi] = bytes(hi - lo)
                if not empty or number in node.dirty:
                    node.dirty.add(number)
            pos = stop

    def mmap_write(self, node: Node, pos: int, data: bytes) -> None:
        """Bytes changed through a memory map; inside of the file only. Raises KernelError (a SIGBUS)."""
        assert pos + len(data) <= node.size
        for start in range(pos - pos % PAGE, pos + len(data), PAGE):
            self.read(node, start, PAGE)
            at, end = start, min(start + PAGE, node.size)
            while at < end:
                at = min(self.begin(node, at, PAGE - at % PAGE, OpFlags.WRITE | OpFlags.FAULT).map.end, end)
            node.dirty.update(range(start // self.block, -(-end // self.block)))
        for at, byte in enumerate(data, pos):
            node.pages[at // self.block][at % self.block] = byte
        node.new_times = True

    # --- contents in the inode (6.7) ----------------------------------------------------------------------

    def _read_inline(self, node: Node, pos: int, count: int) -> bytes:
        """FUSE_READ without a handle; an empty answer is an error."""
        body = structs.READ_IN.pack(0, pos, count, 0, 0, 0, 0)
        _, data = self.call(Opcode.READ, node.nodeid, body)
        if not data:
            raise KernelError(errno.EIO)
        return data.ljust(count, b"\0")

    def _write_inline(self, node: Node, pos: int, data: bytes) -> int:
        """Reads first, then writes through; no END and no dirty page."""
        self._read_inline(node, pos, len(data))
        number = pos // self.block
        if number not in node.pages:
            node.pages[number] = bytearray(self._read_inline(node, number * self.block, self.block))
        skip = pos % self.block
        node.pages[number][skip : skip + len(data)] = data
        body = structs.WRITE_IN.pack(0, pos, len(data), 0, 0, 0, 0) + data
        assert self.call(Opcode.WRITE, node.nodeid, body)[0].size == len(data)
        node.size = max(node.size, pos + len(data))
        node.disk_size = max(node.disk_size, node.size)
        self.drop_mappings(node, pos, len(data))
        return len(data)

    # --- writeback and what follows (6.5) ------------------------------------------------------------------

    def writeback(self, node: Node, first: int = 0, end: int = 1 << 62) -> None:
        """Write dirty blocks [first, end) to the device, and tell the server what it has to know."""
        current: Found | None = None
        done: list[Completion] = []
        for number in sorted(n for n in node.dirty if first <= n < end):
            node.dirty.discard(number)
            start = number * self.block
            if start >= node.size:
                continue
            if current is None or start >= current.map.end or not self._still_true(node, current):
                try:
                    current = self.begin(node, start, self.block, int(OpFlags.WRITEBACK))
                except KernelError as exc:
                    current = None
                    node.error = exc.code
                    node.pages.pop(number, None)
                    done.append(Completion(node, start, self.block, 0, -exc.code))
                    continue
            done += self._write_block(node, current.map, number)
        self._complete(done)

    def _write_block(self, node: Node, mapping: Mapping, number: int) -> list[Completion]:
        start = number * self.block
        assert mapping.type != MapType.INLINE, "inline data must never be written back"
        if mapping.type == MapType.HOLE or mapping.offset > start:
            return []  # the data is dropped without a word (section 10)
        page, count = node.pages[number], min(self.block, node.size - start)
        page[count:] = bytes(self.block - count)
        addr = mapping.addr + start - mapping.offset
        flags = _WRITEBACK | (_UNWRITTEN if mapping.type == MapType.UNWRITTEN else 0)
        try:
            self.device.bio_write(addr, bytes(page))
        except OSError as exc:
            node.error = exc.errno or errno.EIO
            return [Completion(node, start, count, flags, -node.error, addr, mapping.dev)]
        return [Completion(node, start, count, flags, 0, addr, mapping.dev)]

    def _complete(self, done: list[Completion]) -> None:
        if self.hold_ioends:
            self.held += done
            return
        for completion in self._merged(done):
            self.ioend(completion)

    def _merged(self, done: list[Completion]) -> Iterator[Completion]:
        """Neighbours in the file and on the device become one."""
        current: Completion | None = None
        for item in done:
            if (
                current is not None
                and item.node is current.node
                and (item.flags, item.error, item.dev) == (current.flags, current.error, current.dev)
                and item.pos == current.pos + current.length
                and (item.flags == 0 or item.addr == current.addr + current.length)
            ):
                current = current._replace(length=current.length + item.length)
                continue
            if current is not None:
                yield current
            current = item
        if current is not None:
            yield current

    def release_ioends(self) -> None:
        self.hold_ioends = False
        held, self.held = self.held, []
        self._complete(held)

    def ioend(self, done: Completion) -> int:
        """The algorithm of 6.5; returns the errno that the write fails with, 0 for none."""
        node, flags, end = done.node, done.flags, done.pos + done.length
        if end > node.disk_size:
            flags |= _APPEND
        newsize = max(node.disk_size, end)
        code = -done.error
        if done.error or (done.length > 0 and flags & (_SHARED | _UNWRITTEN | _APPEND)):
            # bytes according to the header, sectors as coded
            addr = done.addr // 512 if self.as_coded and done.dev else done.addr
            body = iomap.IOMAP_IOEND_IN.pack(
                int(flags), done.error, node.ino, done.pos, addr, done.length, done.dev, 0
            )
            try:
                newsize = self.call(iomap.Opcode.IOMAP_IOEND, node.nodeid, body)[0].newsize
            except KernelError as exc:
                assert exc.errno != errno.ENOSYS, "ENOSYS to IOEND: nothing would be converted from now on"
                code = code or exc.code
        if code:
            return code
        node.disk_size = newsize if self.as_coded else max(node.disk_size, newsize)
        node.size = max(node.size, end)
        self.drop_mappings(node, done.pos, done.length)
        return 0

    def sync_times(self, node: Node) -> None:
        """write_inode: times that the kernel has (6.9)."""
        if node.new_times:
            node.new_times = False
            self.setattr(node, int(_TIMES))

    def setattr(self, node: Node, valid: int, size: int = 0) -> int:
        now = 1_700_000_000
        body = structs.SETATTR_IN.pack(valid, 0, 0, size, 0, now, now, now, 5, 6, 7, 0, 0, 0, 0, 0)
        return int(self.call(Opcode.SETATTR, node.nodeid, body)[0].attr_size)

    def fsync(self, fh: int, *, datasync: bool = False) -> None:
        node = self.handles[fh]
        self.writeback(node)
        assert not self.held or self.hold_ioends
        self.release_ioends()
        if not datasync:
            self.sync_times(node)
        self.call(Opcode.FSYNC, node.nodeid, structs.FSYNC_IN.pack(fh, int(datasync), 0))
        code, node.error = node.error, 0
        if code:
            raise KernelError(code)

    def close(self, fh: int) -> None:
        node = self.handles.pop(fh)
        self.writeback(node)
        self.release_ioends()
        self.sync_times(node)
        self.call(Opcode.FLUSH, node.nodeid, structs.FLUSH_IN.pack(fh, 0, 0, 0))
        self.call(Opcode.RELEASE, node.nodeid, structs.RELEASE_IN.pack(fh, 0, 0, 0))
