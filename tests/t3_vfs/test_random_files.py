"""The write path under random I/O: several files at once, each beside a plain file on the host, byte for byte."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from py4fs.errors import NotSupported
from py4fs.ext4.features import Incompat
from py4fs.iomap.records import MapType
from py4fs.vfs import ROOT_INO, Vfs
from py4fs.vfs.ranges import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.volumes import open_volume

SPAN = 600_000
FILES = 3


class Twin:
    """A file in the image and a plain one, changed alike."""

    def __init__(self, vfs: Vfs, name: str, plain: Path, rng: random.Random) -> None:
        self.vfs = vfs
        self.plain = plain
        self.rng = rng
        self.fh, attr = vfs.create(ROOT_INO, name.encode(), 0o644, os.O_RDWR)
        self.ino = attr.ino
        self.fd = os.open(plain, os.O_RDWR | os.O_CREAT, 0o644)
        self.block = vfs.volume.geometry.block_size
        self.extents = bool(vfs.volume.features.incompat & Incompat.EXTENTS)
        self.refused = 0

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def place(self) -> tuple[int, int]:
        rng = self.rng
        pos = rng.choice([rng.randrange(SPAN), min(self.size, SPAN), rng.randrange(SPAN) // 4096 * 4096])
        return pos, rng.choice([1, 17, 1024, 4096, 5000, 65536, rng.randrange(1, 100_000)])

    def write(self, pos: int, length: int) -> None:
        data = self.rng.randbytes(length)
        assert self.vfs.write(self.fh, pos, data) == length
        os.pwrite(self.fd, data, pos)

    def read(self, pos: int, length: int) -> None:
        assert self.vfs.read(self.fh, pos, length) == os.pread(self.fd, length, pos)

    def truncate(self, size: int) -> None:
        self.vfs.setattr(self.ino, size=size)
        os.ftruncate(self.fd, size)

    def fallocate(self, mode: int, pos: int, length: int) -> None:
        """What the mode does to the bytes of a plain file, done by hand."""
        moves = mode in (FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE)
        if moves:
            pos, length = pos - pos % self.block, self.block * self.rng.randrange(1, 9)
            last = pos + length if mode == FALLOC_FL_COLLAPSE_RANGE else pos
            if last >= self.size:
                return
        try:
            self.vfs.fallocate(self.fh, mode, pos, length)
        except NotSupported:
            assert not self.extents, "only a block map cannot do that"
            self.refused += 1
            return
        data = bytearray(os.pread(self.fd, self.size, 0))
        if mode == FALLOC_FL_COLLAPSE_RANGE:
            del data[pos : pos + length]
        elif mode == FALLOC_FL_INSERT_RANGE:
            data[pos:pos] = bytes(length)
        else:
            if mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
                inside = max(min(pos + length, len(data)) - pos, 0)
                data[pos : pos + inside] = bytes(inside)
            if not mode & FALLOC_FL_KEEP_SIZE:
                data.extend(bytes(max(pos + length - len(data), 0)))
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)

    def seek(self) -> None:
        """Holes read as zeros; SEEK_DATA and SEEK_HOLE go by the mappings."""
        size = self.size
        for mapping in self.vfs.mappings(self.ino):
            start, end = mapping.offset, min(mapping.end, size)
            if start >= end:
                continue
            if mapping.type == MapType.MAPPED:
                assert self.vfs.seek(self.fh, start, os.SEEK_DATA) == start
                assert self.vfs.seek(self.fh, start, os.SEEK_HOLE) >= end
            else:
                assert self.vfs.seek(self.fh, start, os.SEEK_HOLE) == start
                assert not any(os.pread(self.fd, end - start, start)), "what reads as zeros is zero"

    def reopen(self) -> None:
        self.vfs.release(self.fh)
        if self.rng.random() < 0.5:
            self.vfs.client.forget(self.ino)
        self.fh = self.vfs.open(self.ino, os.O_RDWR)

    def step(self) -> None:
        rng = self.rng
        pos, length = self.place()
        what = rng.randrange(20)
        if what < 9:
            self.write(pos, length)
        elif what < 12:
            self.read(pos, length)
        elif what == 12:
            self.truncate(rng.choice([pos, pos, 0, self.size]) if rng.random() < 0.5 else self.size // 2)
        elif what < 17:
            keep, punch, zero = FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
            modes = (0, keep, punch | keep, punch | keep, zero, zero | keep,
                     FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE)  # fmt: skip
            self.fallocate(rng.choice(modes), pos, length)
        elif what == 17:
            self.seek()
        elif what == 18:
            self.reopen()
        else:
            self.vfs.commit()

    def check(self) -> None:
        assert self.vfs.getattr(self.ino).size == self.size
        assert self.vfs.read(self.fh, 0, self.size + 10) == self.plain.read_bytes()


@pytest.mark.parametrize(
    "args",
    [("-b", "4096"), ("-b", "1024"), ("-b", "1024", "-O", "^extents,^64bit"), ("-b", "4096", "-t", "ext3"),
     ("-b", "1024", "-t", "ext2")],
    ids=["ext4-4k", "ext4-1k", "ext4-1k-block-map", "ext3-4k", "ext2-1k"],
)  # fmt: skip
def test_random_io_beside_plain_files(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, tmp_path: Path, args: tuple[str, ...]
) -> None:
    image = make_image("48M", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        twins = [Twin(vfs, f"f{number}", tmp_path / f"plain{number}", rng) for number in range(FILES)]
        for number in range(900):
            rng.choice(twins).step()
            if number % 100 == 99:
                for twin in twins:
                    twin.check()
        assert twins[0].extents == (not any(twin.refused for twin in twins))
        for twin in twins:
            twin.check()
            vfs.release(twin.fh)
    with kernel_mount(image, "ro") as top:
        for number, twin in enumerate(twins):
            assert (top / f"f{number}").read_bytes() == twin.plain.read_bytes()
            os.close(twin.fd)


def test_a_truncate_between_lookup_and_use_is_caught(make_image: ImageMaker) -> None:
    """The plan's blocks go to another file while its read is under way: the cookie says that it is void."""
    image = make_image("16M", "-O", "^has_journal")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        block = volume.geometry.block_size
        fh, attr = vfs.create(ROOT_INO, b"victim", 0o644, os.O_RDWR)
        vfs.write(fh, 0, b"v" * (64 * block))
        file = vfs.client.file(volume.inodes.get(attr.ino))
        reading = vfs.client.plan_read(file, 0, 64 * block, 64 * block)
        writing = vfs.client.plan_write(file, 32 * block, block)
        cookie = file.cache.seq
        vfs.setattr(attr.ino, size=block)
        volume.commit()
        assert file.cache.seq != cookie
        # everything that is free goes to somebody else: not one block that the plans name
        named = {offset + at for offset, length in reading.runs for at in range(0, length, block)}
        other, other_attr = vfs.create(ROOT_INO, b"other", 0o644, os.O_RDWR)
        free = volume.superblock.free_blocks - volume.alloc.conversion_reserve - 80
        vfs.write(other, 0, b"o" * (free * block))
        taken = {m.addr + at for m in vfs.mappings(other_attr.ino) for at in range(0, m.length, block)}
        assert not taken & named
        assert not vfs.client.finish_read(reading), "what was read is worth nothing"
        with volume.operation(vfs.client.finish_credits(writing)) as tx:
            assert not vfs.client.finish_write(writing, tx), "nor may the write count"
        assert vfs.read(fh, 0, 64 * block) == b"v" * block
        assert vfs.write(other, free * block, b"o" * (40 * block)) == 40 * block, "now they can be had"
