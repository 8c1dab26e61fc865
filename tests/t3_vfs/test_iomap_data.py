"""File data through the iomap client on real ext4: random I/O with plans in flight, full devices, fragments."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from py4fs.api import open_image
from py4fs.errors import Busy, FileTooBig, NoSpace
from py4fs.ext4.transaction import Reserve
from py4fs.iomap.client import IomapFile, ReadPlan, WritePlan, run_read, run_write
from py4fs.vfs import ROOT_INO, Vfs
from tests.support.image import ImageMaker, debugfs
from tests.support.volumes import open_volume

KernelMount = Callable[..., AbstractContextManager[Path]]


@dataclass
class Flying:
    """A write whose I/O may be done before or after anything else."""

    plan: WritePlan
    data: bytes
    done: bool = False


@dataclass
class Driver:
    """Random reads, writes and truncates of one file, against a bytearray."""

    vfs: Vfs
    fh: int
    ino: int
    file: IomapFile
    rng: random.Random
    data: bytearray = field(default_factory=bytearray)
    writes: list[Flying] = field(default_factory=list)
    reads: list[tuple[ReadPlan, bytes]] = field(default_factory=list)
    void: int = 0

    def place(self, span: int) -> tuple[int, int]:
        rng = self.rng
        pos = rng.randrange(span)
        length = rng.choice([1, 100, 1024, 4096, 5000, rng.randrange(1, 40000)])
        if rng.random() < 0.5:
            pos -= pos % 4096
        return pos, length

    def free(self, pos: int, length: int) -> bool:
        """Whether no write in flight overlaps: what overlapping writes leave is anyone's guess."""
        return all(w.plan.pos >= pos + length or w.plan.pos + len(w.data) <= pos for w in self.writes)

    def put(self, pos: int, data: bytes) -> None:
        self.data.extend(bytes(max(0, pos + len(data) - len(self.data))))
        self.data[pos : pos + len(data)] = data

    def write(self, pos: int, length: int) -> None:
        data = self.rng.randbytes(length)
        try:
            assert self.vfs.write(self.fh, pos, data) == length
        except Busy:
            assert self.writes
        else:
            self.put(pos, data)

    def plan_write(self, pos: int, length: int) -> None:
        data = self.rng.randbytes(length)
        plan = self.vfs.client.plan_write(self.file, pos, length)
        self.writes.append(Flying(plan, data[: plan.count]))

    def finish_write(self) -> None:
        flying = self.writes.pop(self.rng.randrange(len(self.writes)))
        client, plan = self.vfs.client, flying.plan
        if not flying.done:
            run_write(plan, self.vfs.volume.device, flying.data)
        with self.vfs.volume.operation(client.finish_credits(plan), Reserve.ALL) as tx:
            good = client.finish_write(plan, tx)
        if good:
            self.put(plan.pos, flying.data)
        else:
            # what a void write did to blocks that stayed in the file stands
            self.void += 1
            count = min(len(flying.data), len(self.data) - plan.pos)
            if count > 0:
                self.data[plan.pos : plan.pos + count] = self.vfs.read(self.fh, plan.pos, count)

    def finish_read(self) -> None:
        plan, want = self.reads.pop()
        got = run_read(plan, self.vfs.volume.device)
        if self.vfs.client.finish_read(plan) and not self.writes:
            now = self.data[plan.pos : plan.pos + plan.count]
            assert all(g in (a, b) for g, a, b in zip(got, want, now, strict=True))

    def step(self, span: int) -> None:
        rng, client = self.rng, self.vfs.client
        pos, length = self.place(span)
        what = rng.randrange(16)
        if what < 4 and self.free(pos, length):
            self.write(pos, length)
        elif what < 8 and self.free(pos, length) and len(self.writes) < 5:
            self.plan_write(pos, length)
        elif what == 8 and self.writes:
            flying = rng.choice(self.writes)
            if not flying.done:
                flying.done = True
                run_write(flying.plan, self.vfs.volume.device, flying.data)
        elif what < 12 and self.writes:
            self.finish_write()
        elif what == 12 and not self.writes:
            assert self.vfs.read(self.fh, pos, length) == self.data[pos : pos + length]
        elif what == 13 and not self.reads and not self.writes:
            plan = client.plan_read(self.file, pos, length, self.file.inode.size)
            self.reads.append((plan, bytes(self.data[pos : pos + plan.count])))
        elif what == 14 and self.reads:
            self.finish_read()
        elif what == 15 and rng.random() < 0.3:
            size = rng.randrange(span)
            self.vfs.setattr(self.ino, size=size)
            del self.data[size:]
            self.data.extend(bytes(size - len(self.data)))
        elif rng.random() < 0.05:
            self.vfs.commit()
        elif rng.random() < 0.05:
            self.file.cache.clear()


@pytest.mark.parametrize("args", [("-b", "1024"), ("-b", "4096"), ("-b", "2048", "-I", "128")], ids=str)
def test_random_io_with_plans_in_flight(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    image = make_image("32M", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        other, _ = vfs.create(ROOT_INO, b"other", 0o644, os.O_RDWR)
        driver = Driver(vfs, fh, attr.ino, vfs.client.file(volume.inodes.get(attr.ino)), rng)
        for number in range(3000):
            driver.step(400_000)
            if number % 7 == 0:
                # somebody else's blocks between ours
                vfs.write(other, number * 4096, b"o")
        while driver.writes:
            driver.finish_write()
        while driver.reads:
            driver.finish_read()
        assert vfs.read(fh, 0, 1 << 20) == driver.data
        assert driver.void, "some truncate met a write in flight"
        assert len(volume.pins) == 0
        counters = vfs.client.counters()
        assert min(counters.hits, counters.upcalls, counters.ioends, counters.retries) > 0
    with kernel_mount(image, "ro") as top:
        assert (top / "f").read_bytes() == driver.data


def test_full_device(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("8M", "-b", "1024", "-O", "^has_journal")
    chunk = bytes(range(256)) * 1024
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        for round_ in range(3):
            fh, attr = vfs.create(ROOT_INO, b"f%d" % round_, 0o644, os.O_RDWR)
            size = 0
            with pytest.raises(NoSpace):
                while True:
                    size += vfs.write(fh, size, chunk[: len(chunk) - 300 * round_])
            assert vfs.getattr(attr.ino).size == size > 6 << 20
            assert vfs.read(fh, size - 1000, 2000) == (chunk[: len(chunk) - 300 * round_] * 40)[size - 1000 : size]
            if round_ < 2:
                vfs.setattr(attr.ino, size=0)
            vfs.release(fh)
        # all but what is kept for converting what was written
        assert volume.statfs().bfree <= volume.alloc.kept_back(Reserve.ROOT) + 8
    with kernel_mount(image, "ro") as top:
        assert (top / "f2").stat().st_size == size


def test_cold_sequential_reads_ask_once_for_each_window(make_image: ImageMaker, rng: random.Random) -> None:
    """Each question brings all runs of a node of the extent tree, at most 512; the first window comes at open."""
    block, pieces = 4096, 2 * 340 + 5
    size = 2 * pieces * block
    with open_volume(make_image("64M", "-b", "4096")) as volume:
        vfs = Vfs(volume)
        writer, attr = vfs.create(ROOT_INO, b"holes", 0o644, os.O_RDWR)
        for number in range(pieces):
            vfs.write(writer, 2 * number * block, bytes([number % 251 + 1]) * block)
        vfs.setattr(attr.ino, size=size)
        vfs.client.forget(attr.ino)
        vfs.release(writer)
        before = vfs.client.counters().upcalls
        fh = vfs.open(attr.ino, os.O_RDONLY)
        for at in range(0, size, block):
            number, hole = divmod(at // block, 2)
            assert vfs.read(fh, at, block) == bytes([0 if hole else number % 251 + 1]) * block
        inode, windows, lblk = volume.inodes.get(attr.ino), 0, 0
        while lblk * block < size:
            lblk = volume.files.window(inode, lblk, 512)[-1].end
            windows += 1
        assert windows == 5, "two of each full node of 340 extents, one of the rest"
        assert vfs.client.counters().upcalls - before == windows - 1
        for _ in range(500):
            vfs.read(fh, rng.randrange(size // block) * block, block)
        assert vfs.client.counters().upcalls - before == windows - 1, "warm reads ask nothing"


def test_fragments_warm_io_makes_no_upcall(make_image: ImageMaker, rng: random.Random) -> None:
    """Thousands of extents, several leaves: after one pass everything is in the cache."""
    image = make_image("64M", "-b", "4096")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        left, left_attr = vfs.create(ROOT_INO, b"left", 0o644, os.O_RDWR)
        for block in range(1499, -1, -1):
            # from its end, every block comes to lie behind the one that follows it
            vfs.write(left, block * 4096, bytes([block % 251]) * 4096)
        vfs.client.forget(left_attr.ino)
        vfs.release(left)
        left = vfs.open(left_attr.ino, os.O_RDWR)
        opened = vfs.client.counters()
        assert vfs.read(left, 0, 4096) == bytes(4096)
        assert vfs.client.counters().upcalls == opened.upcalls, "open pushes the first mappings"
        assert vfs.read(left, 0, 1500 * 4096) == b"".join(bytes([b % 251]) * 4096 for b in range(1500))
        first_pass = vfs.client.counters().upcalls - opened.upcalls
        assert 1 <= first_pass <= 20, "a miss brings a leaf"
        warm = vfs.client.counters()
        for _ in range(500):
            block = rng.randrange(1500)
            assert vfs.read(left, block * 4096 + 5, 100) == bytes([block % 251]) * 100
            vfs.write(left, block * 4096 + 5, bytes([block % 251]) * 7)
        after = vfs.client.counters()
        assert (after.upcalls, after.misses, after.ioends) == (warm.upcalls, warm.misses, warm.ioends)
        assert len(vfs.mappings(left_attr.ino)) > 1000


@pytest.mark.parametrize("args", [("-b", "1024"), ("-b", "1024", "-t", "ext2")], ids=["ext4", "ext2"])
@pytest.mark.parametrize("how", ["release", "close"])
def test_nothing_stays_past_the_end(make_image: ImageMaker, args: tuple[str, ...], how: str) -> None:
    """Blocks of writes that were planned and never done go back with the last handle, those of fallocate stay."""
    image = make_image("16M", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        vfs.write(fh, 0, b"d" * 3000)
        volume.commit()
        inode = volume.inodes.get(attr.ino)
        free, blocks = volume.superblock.free_blocks, inode.blocks
        kept = 0
        if "ext2" not in args:
            vfs.fallocate(fh, 1, 100 << 10, 10 << 10)
            kept = 10
        file = vfs.client.file(inode)
        for pos in (5000, 30000, 108 << 10):
            vfs.client.cancel(vfs.client.plan_write(file, pos, 4000))
        assert inode.blocks > blocks + 2 * kept
        if how == "release":
            vfs.release(fh)
            volume.commit()
            assert (volume.superblock.free_blocks, inode.blocks) == (free - kept, blocks + 2 * kept)
        else:
            vfs.close()
    if how == "close":
        assert "Size: 3000" in debugfs(image, "stat f")
        assert f"Blockcount: {blocks + 2 * kept}" in debugfs(image, "stat f")


def test_a_failed_device_gives_blocks_back_on_ext2_too(make_image: ImageMaker) -> None:
    image = make_image("16M", "-b", "1024", "-t", "ext2")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        vfs.write(fh, 0, b"d" * 3000)
        inode = volume.inodes.get(attr.ino)
        blocks = inode.blocks
        plan = vfs.client.plan_write(vfs.client.file(inode), 20000, 9000)
        assert inode.blocks > blocks
        vfs.client.abort_write(plan)
        assert (inode.blocks, inode.size) == (blocks, 3000)
        assert vfs.read(fh, 0, 10000) == b"d" * 3000


@pytest.mark.parametrize("features", ["extent", "^extent,^64bit,^metadata_csum"])
def test_writes_up_to_the_largest_size(features: str, make_image: ImageMaker) -> None:
    """As in the kernel: what fits is written, and there is no byte behind it. Written-back pages go whole or not."""
    with open_image(make_image("16M", "-b", "1024", "-O", features)) as fs:
        file = fs.open("/far", "w+b")
        largest = fs.volume.files.largest(fs.volume.inodes.get(file.stat().ino))
        file.seek(largest - 10)
        assert file.write(b"0123456789 and more") == 10
        assert file.stat().size == largest
        with pytest.raises(FileTooBig):
            file.write(b"x")
        fs.vfs.kernel_owns_times = True
        file.seek(largest - 5)
        with pytest.raises(FileTooBig):
            file.write(b"56789 and more")
        file.seek(largest - 10)
        assert file.read() == b"0123456789"
        file.close()
