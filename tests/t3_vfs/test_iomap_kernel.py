"""The server on real ext4 with an asker that does as a patched kernel: its own cache, data straight to the device.

What it leaves out, and when, is what IOMAP.md section 9 saw: IOENDs without APPEND or none at all, whole-block sizes,
failed direct writes without END.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from py4fs.ext4.inode import Inode
from py4fs.iomap.cache import IomapCache
from py4fs.iomap.client import IomapClient
from py4fs.iomap.records import IoDir, IoendFlags, MapFlags, Mapping, MapType, OpFlags
from py4fs.iomap.validate import validate_begin
from py4fs.vfs import ROOT_INO, Vfs
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs
from tests.support.volumes import open_volume

DIRECT, UNWRITTEN, WRITEBACK = IoendFlags.DIRECT, IoendFlags.UNWRITTEN, IoendFlags.WRITEBACK


class Kernel:
    """One open file: the mapping cache, dirty pages as a list of ranges, the size in core."""

    def __init__(self, vfs: Vfs, name: bytes) -> None:
        self.vfs = vfs
        self.server = vfs.server
        self.device = vfs.volume.device
        self.fh, attr = vfs.create(ROOT_INO, name, 0o644, os.O_RDWR)
        self.ino = attr.ino
        self.block = self.server.block_size
        self.cache = IomapCache(self.block, self.server.max_file_bytes, 0)
        self.server.subscribe(self.invalidated)
        self.pages = bytearray()
        self.dirty: list[tuple[int, int]] = []
        self.upcalls = 0

    @property
    def inode(self) -> Inode:
        return self.vfs.volume.inodes.get(self.ino)

    def invalidated(self, ino: int, pos: int, length: int) -> None:
        if ino == self.ino:
            self.cache.invalidate(pos, length)

    def push(self, mappings: Sequence[Mapping]) -> bool:
        for mapping in mappings:
            self.cache.upsert(IoDir.READ, mapping)
        return True

    def mapping(self, pos: int, count: int, op: int) -> Mapping:
        """iomap_begin (6.2)."""
        for _ in range(3):
            found = self.cache.lookup(IoDir.READ, pos).mapping
            if found and not (found.type == MapType.HOLE and op & (OpFlags.WRITE | OpFlags.WRITEBACK)):
                return found
            read, write = self.server.begin(self.inode, pos, count, op, self.push)
            self.upcalls += 1
            validate_begin(
                read, write, pos, block_size=self.block, max_file_bytes=self.server.max_file_bytes, strict=True
            )
            assert write.type == MapType.PURE_OVERWRITE
            if read.type != MapType.RETRY_CACHE:
                return read
        raise AssertionError("the server pushed and does not stand by it")

    def buffered_write(self, pos: int, data: bytes) -> None:
        """6.5: the gap and the copy; each mapping that grows the file ends in END with SIZE_CHANGED."""
        size = len(self.pages)
        if pos > size:
            self.pages.extend(bytes(pos - size))
            self.dirty.append((size, min(pos, -(-size // self.block) * self.block)))
        at, end = pos, pos + len(data)
        while at < end:
            mapping = self.mapping(at, end - at, int(OpFlags.WRITE))
            stop = min(mapping.end, end)
            grows = stop > len(self.pages)
            self.pages.extend(bytes(max(stop - len(self.pages), 0)))
            self.pages[at:stop] = data[at - pos : stop - pos]
            if grows:
                flags = int(MapFlags.SIZE_CHANGED)
                self.server.end(self.inode, at, stop - at, stop - at, int(OpFlags.WRITE), flags)
            at = stop
        self.dirty.append((pos, end))

    def writeback(self, *, tell: bool = True) -> None:
        """Dirty pages go to the device, block by block of each mapping, then an IOEND for what was unwritten."""
        for start, end in self.dirty:
            pos = start - start % self.block
            end = min(end, len(self.pages))
            while pos < end:
                mapping = self.mapping(pos, self.block, int(OpFlags.WRITEBACK))
                stop = min(mapping.end, -(-end // self.block) * self.block)
                data = self.pages[pos:stop].ljust(stop - pos, b"\0")
                self.device.write(mapping.addr + pos - mapping.offset, bytes(data))
                if mapping.type == MapType.UNWRITTEN and tell:
                    # as the kernel does when it forgot APPEND: only because the blocks are unwritten
                    written = min(stop, len(self.pages)) - pos
                    self.server.complete(self.inode, pos, written, WRITEBACK | UNWRITTEN)
                    self.cache.invalidate(pos, written)
                pos = stop
        self.dirty.clear()
        self.vfs.volume.note_data_written()

    def truncate(self, size: int) -> None:
        """6.6: zero the tail, write everything back, then SETATTR."""
        old = len(self.pages)
        del self.pages[size:]
        self.pages.extend(bytes(size - len(self.pages)))
        low = min(old, size)
        self.dirty.append((low, min(-(-low // self.block) * self.block, len(self.pages))))
        self.dirty = [(a, min(b, size)) for a, b in self.dirty if a < size]
        self.writeback()
        self.vfs.setattr(self.ino, size=size)

    def read_back(self) -> bytes:
        """Everything once more, by an in-process client that knows nothing yet."""
        client = IomapClient(self.vfs.volume, self.server)
        return client.read(client.file(self.inode), 0, len(self.pages) + self.block)


@pytest.mark.parametrize(
    "args", [("-b", "4096"), ("-b", "1024"), ("-b", "1024", "-t", "ext2")], ids=["4k", "1k", "ext2"]
)
def test_random_io_of_a_patched_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    image = make_image("32M", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        kernel, other = Kernel(vfs, b"f"), Kernel(vfs, b"other")
        for number in range(400):
            what = rng.randrange(12)
            if what < 7:
                pos = rng.choice([rng.randrange(300_000), len(kernel.pages)])
                kernel.buffered_write(pos, rng.randbytes(rng.choice([1, 100, 4096, 20_000])))
                other.buffered_write(len(other.pages), b"o" * 1000)
            elif what < 9:
                kernel.writeback()
            elif what == 9:
                kernel.truncate(rng.randrange(300_000))
            elif what == 10:
                kernel.writeback()
                vfs.fsync(kernel.fh)
                assert kernel.inode.size == len(kernel.pages)
            else:
                vfs.commit()
            assert vfs.server.size(kernel.inode) == max(len(kernel.pages), kernel.inode.size)
            if number % 80 == 79:
                kernel.writeback()
                vfs.flush(kernel.fh)
                assert kernel.read_back() == kernel.pages
        for file in (kernel, other):
            file.writeback()
            vfs.release(file.fh)
        assert len(volume.alloc.windows) == 0
    with kernel_mount(image, "ro") as top:
        assert (top / "f").read_bytes() == kernel.pages
        assert (top / "other").read_bytes() == other.pages


@pytest.mark.parametrize("how", ["flush", "fsync", "release"])
def test_9_1_the_size_reaches_the_disk_without_any_ioend(make_image: ImageMaker, how: str) -> None:
    """Append within a written block, stat, fsync: the kernel sends nothing at all, fsync and close succeed."""
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        kernel = Kernel(vfs, b"f")
        kernel.buffered_write(0, b"a" * 100)
        kernel.writeback()
        assert kernel.inode.size == 100
        kernel.buffered_write(100, b"b" * 500)
        kernel.writeback()
        assert kernel.inode.size == 100, "nobody told"
        getattr(vfs, how)(kernel.fh)
        assert kernel.inode.size == 600
    assert "Size: 600" in debugfs(image, "stat f")


def test_9_1_d_setattr_wins_over_the_size_in_core(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        kernel = Kernel(vfs, b"f")
        for size in (300, 50):
            kernel.buffered_write(0, b"a" * 1000)
            vfs.setattr(kernel.ino, size=size)
            vfs.flush(kernel.fh)
            assert kernel.inode.size == size


def test_9_5_failed_direct_writes_leave_no_blocks(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        kernel = Kernel(vfs, b"f")
        kernel.buffered_write(0, b"a" * 4096)
        kernel.writeback()
        blocks = kernel.inode.blocks
        for written in (0, 4096, 40960):
            kernel.mapping(8192, 40960, int(OpFlags.WRITE | OpFlags.DIRECT))
            assert kernel.inode.blocks > blocks
            assert vfs.server.complete(kernel.inode, 8192, written, DIRECT | UNWRITTEN, -5) == 4096
            assert kernel.inode.blocks == blocks
            assert kernel.cache.lookup(IoDir.READ, 8192).mapping is None, "and the kernel was told"


def test_atomic_writes_and_swap_files(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        inode = volume.inodes.get(attr.ino)
        op = int(OpFlags.WRITE | OpFlags.DIRECT | OpFlags.ATOMIC)
        read, _ = vfs.server.begin(inode, 8192, volume.geometry.block_size, op, lambda mappings: True)
        assert (read.type, read.flags) == (MapType.UNWRITTEN, MapFlags.ATOMIC_BIO)
        vfs.fallocate(fh, 0, 0, 1 << 20)
        swap = int(OpFlags.REPORT | OpFlags.SWAPFILE)
        pos = 0
        while pos < 1 << 20:
            mapping, _ = vfs.server.begin(inode, pos, (1 << 20) - pos, swap)
            assert mapping.offset == pos
            pos = mapping.end
        vfs.release(fh)
