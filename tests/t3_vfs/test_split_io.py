"""Reads and writes in three steps, with other requests between them, as a session with worker threads makes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from py4fs.api import Filesystem, OpenOptions, open_image
from py4fs.device.faulty import FaultyDevice
from py4fs.errors import BadHandle, Busy, CommitPending, DeviceError, FileTooBig, NoSpace, NoSuchAddress
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.plans import WritePlan, run_read, run_write
from py4fs.vfs import Vfs
from tests.support.image import ImageMaker
from tests.support.volumes import Clock

BLOCK = 4096


def open_fs(image: Path) -> Filesystem:
    options = OpenOptions(atime="strictatime", volume=VolumeOptions(strict=True))
    return open_image(image, clock=Clock(), options=options)


@pytest.fixture(params=["extents", "map"])
def fs(request: pytest.FixtureRequest, make_image: ImageMaker) -> Iterator[Filesystem]:
    args = () if request.param == "extents" else ("-O", "^extent,^64bit,^flex_bg")
    fs = open_fs(make_image("16M", "-b", str(BLOCK), *args))
    yield fs
    fs.close()


def new_file(fs: Filesystem, data: bytes = b"") -> tuple[Vfs, int]:
    fh, _ = fs.vfs.create(2, b"f", 0o644, os.O_RDWR)
    if data:
        assert fs.vfs.write(fh, 0, data) == len(data)
    return fs.vfs, fh


def finish(vfs: Vfs, fh: int, plan: WritePlan, data: bytes) -> int:
    run_write(plan, vfs.volume.device, data[: plan.count])
    return vfs.finish_write(fh, plan)


def test_write_and_read(fs: Filesystem) -> None:
    vfs, fh = new_file(fs)
    before = fs.stat("/f")
    data = os.urandom(3 * BLOCK + 5)
    plan = vfs.plan_write(fh, 100, len(data))
    assert plan.count == len(data) and not plan.blocked
    assert fs.stat("/f").size == 0, "nothing counts before the end"
    assert finish(vfs, fh, plan, data) == len(data)
    after = fs.stat("/f")
    assert after.size == 100 + len(data) and after.mtime == after.ctime > before.mtime
    reading = vfs.plan_read(fh, 50, 10 * BLOCK)
    assert reading.count == len(data) + 50
    assert run_read(reading, vfs.volume.device) == bytes(50) + data
    assert fs.stat("/f").atime == before.atime
    assert vfs.finish_read(fh, reading)
    assert fs.stat("/f").atime > before.atime
    behind = vfs.plan_read(fh, 10 * BLOCK, 5)
    assert behind.count == 0 and run_read(behind, vfs.volume.device) == b""
    before = fs.stat("/f")
    assert vfs.finish_read(fh, behind)
    assert fs.stat("/f").atime > before.atime, "as in the kernel, at the end of the file too"
    before = fs.stat("/f")
    assert vfs.read(fh, 0, 0) == b"" and fs.stat("/f").atime == before.atime
    vfs.release(fh)


def test_truncated_meanwhile(fs: Filesystem) -> None:
    """What was taken away under a plan makes it worthless; planned again, it works."""
    data = os.urandom(4 * BLOCK)
    vfs, fh = new_file(fs, data)
    ino = fs.stat("/f").ino
    reading = vfs.plan_read(fh, 0, len(data))
    writing = vfs.plan_write(fh, 2 * BLOCK, BLOCK)
    vfs.setattr(ino, size=BLOCK)
    assert not vfs.finish_read(fh, reading)
    assert finish(vfs, fh, writing, b"x" * BLOCK) == 0
    assert fs.stat("/f").size == BLOCK
    assert finish(vfs, fh, vfs.plan_write(fh, 2 * BLOCK, BLOCK), b"x" * BLOCK) == BLOCK
    assert vfs.read(fh, 0, 9 * BLOCK) == data[:BLOCK] + bytes(BLOCK) + b"x" * BLOCK
    vfs.release(fh)


def test_blocked_by_another(make_image: ImageMaker) -> None:
    """Two writes into one new block: the second one waits, and aborting it takes nothing from the first."""
    fs = open_fs(make_image("16M", "-b", str(BLOCK)))
    vfs, fh = new_file(fs)
    first = vfs.plan_write(fh, 0, 100)
    second = vfs.plan_write(fh, 100, 100)
    assert not first.blocked and second.blocked
    with pytest.raises(Busy):
        vfs.write(fh, 100, b"2" * 100)
    vfs.abort_write(fh, second)
    assert finish(vfs, fh, first, b"1" * 100) == 100
    second = vfs.plan_write(fh, 100, 100)
    assert not second.blocked
    assert finish(vfs, fh, second, b"2" * 100) == 100
    assert vfs.read(fh, 0, 300) == b"1" * 100 + b"2" * 100
    vfs.release(fh)
    fs.close()


def test_aborted_writes_give_back(fs: Filesystem) -> None:
    vfs, fh = new_file(fs)
    fs.sync()
    before = fs.statvfs().bfree, fs.stat("/f").blocks
    plan = vfs.plan_write(fh, 0, 5 * BLOCK)
    assert fs.statvfs().bfree < before[0]
    vfs.abort_write(fh, plan)
    assert (fs.statvfs().bfree, fs.stat("/f").blocks, fs.stat("/f").size) == (*before, 0)
    vfs.cancel(vfs.plan_read(fh, 0, 5))
    assert not len(vfs.volume.pins)
    vfs.release(fh)


def test_the_device_fails(make_image: ImageMaker) -> None:
    image = make_image("16M", "-b", str(BLOCK))
    fs = open_fs(image)
    vfs, fh = new_file(fs)
    fs.sync()
    before = fs.statvfs().bfree
    device = FaultyDevice(vfs.volume.device)
    device.arm("write", 1)
    plan = vfs.plan_write(fh, 0, BLOCK)
    with pytest.raises(DeviceError):
        run_write(plan, device, b"x" * BLOCK)
    vfs.abort_write(fh, plan)
    assert fs.statvfs().bfree == before and fs.stat("/f").size == 0
    vfs.release(fh)
    fs.close()


def test_handles_closed_meanwhile(fs: Filesystem) -> None:
    """A plan whose handle is gone ends all the same: nothing stays pinned."""
    vfs, fh = new_file(fs, b"x" * BLOCK)
    reading, writing = vfs.plan_read(fh, 0, 5), vfs.plan_write(fh, BLOCK, 5)
    vfs.release(fh)
    with pytest.raises(BadHandle):
        vfs.finish_read(fh, reading)
    with pytest.raises(BadHandle):
        vfs.finish_write(fh, writing)
    assert not len(vfs.volume.pins)


def test_refused(fs: Filesystem) -> None:
    vfs, fh = new_file(fs)
    reader = vfs.open(fs.stat("/f").ino, os.O_RDONLY)
    with pytest.raises(BadHandle):
        vfs.plan_write(reader, 0, 1)
    with pytest.raises(BadHandle):
        vfs.write(reader, 0, b"")
    with pytest.raises(BadHandle):
        vfs.plan_read(999, 0, 1)
    with pytest.raises(FileTooBig):
        vfs.plan_write(fh, 1 << 50, 1)
    assert not len(vfs.volume.pins)
    vfs.release(fh)
    vfs.release(reader)


def fill(vfs: Vfs, fh: int) -> int:
    """Write until nothing is left; returns the bytes."""
    done = 0
    while True:
        try:
            done += vfs.write(fh, done, b"f" * (1 << 20))
        except NoSpace:
            return done


def test_freed_space_comes_with_a_commit(fs: Filesystem) -> None:
    """Blocks freed before are had by committing, between the plans of one write too."""
    vfs, fh = new_file(fs)
    other, _ = vfs.create(2, b"other", 0o644, os.O_RDWR)
    size = fill(vfs, fh)
    with pytest.raises(NoSpace):
        vfs.plan_write(other, 0, BLOCK)
    vfs.setattr(fs.stat("/f").ino, size=BLOCK)
    assert vfs.volume.transactions.running.freed
    plan = vfs.plan_write(other, 0, 1 << 20)
    assert finish(vfs, other, plan, b"o" * (1 << 20)) == plan.count > 0
    vfs.setattr(fs.stat("/other").ino, size=0)
    assert vfs.write(other, 0, b"o" * (size - 10 * BLOCK)) == size - 10 * BLOCK
    vfs.release(fh)
    vfs.release(other)


def test_seek_while_data_may_be_elsewhere(fs: Filesystem) -> None:
    """Holes are only told when nobody can have bytes for them: no kernel with dirty pages, no write in flight."""
    vfs, writer = new_file(fs)
    ino = fs.stat("/f").ino
    vfs.setattr(ino, size=10 * BLOCK)
    vfs.write(writer, 4 * BLOCK, b"x" * BLOCK)
    reader = vfs.open(ino, os.O_RDONLY)

    def seeks() -> tuple[int, int]:
        return vfs.seek(reader, 100, os.SEEK_DATA), vfs.seek(reader, 100, os.SEEK_HOLE)

    exact, all_data = (4 * BLOCK, 100), (100, 10 * BLOCK)
    assert seeks() == exact
    vfs.kernel_owns_times = True
    assert seeks() == all_data
    # the kernel may have made the file longer already
    assert vfs.seek(reader, 11 * BLOCK, os.SEEK_DATA) == 11 * BLOCK
    with pytest.raises(NoSuchAddress):
        vfs.seek(reader, 10 * BLOCK, os.SEEK_HOLE)
    second = vfs.open(ino, os.O_RDWR)
    vfs.release(writer)
    assert seeks() == all_data
    vfs.release(second)
    assert seeks() == exact
    vfs.kernel_owns_times = False
    writer = vfs.open(ino, os.O_WRONLY)
    assert seeks() == exact
    plan = vfs.plan_write(writer, 0, BLOCK)
    assert seeks() == all_data
    assert finish(vfs, writer, plan, b"y" * BLOCK) == BLOCK
    assert seeks() == (100, BLOCK)
    vfs.release(writer)
    vfs.release(reader)


def test_blocks_that_io_still_covers_are_waited_for(fs: Filesystem) -> None:
    """A full disk, a file unlinked: another write must not fail only because a third one is in flight just then."""
    vfs, writer = new_file(fs, b"w" * BLOCK)
    fs.write_bytes("/large", b"l" * (4 << 20))
    filler, _ = vfs.create(2, b"filler", 0o644, os.O_RDWR)
    with pytest.raises(NoSpace):
        for number in range(16 << 20):
            vfs.write(filler, number * BLOCK, b"f" * BLOCK)
    in_flight = vfs.plan_write(writer, 0, BLOCK)
    fs.unlink("/large")
    with pytest.raises(CommitPending, match="I/O under way"):
        for number in range(1, 1024):  # a little room is there at once
            finish(vfs, writer, vfs.plan_write(writer, number * BLOCK, BLOCK), b"y" * BLOCK)
    finish(vfs, writer, in_flight, b"x" * BLOCK)
    assert vfs.write(writer, BLOCK, b"y" * (1 << 20)) == 1 << 20
    vfs.release(filler)
    vfs.release(writer)
