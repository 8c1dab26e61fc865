"""Caches keep to their limits, however much is changed between two commits and however little can be dropped."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from py4fs.api import Filesystem, OpenOptions, open_device, open_image
from py4fs.device.faulty import FaultyDevice
from py4fs.device.file import FileDevice
from py4fs.errors import DeviceError, ReadOnly
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.mapper import IDLE_FILES
from py4fs.vfs import ROOT_INO
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard

LIMIT = 256


def small(image: os.PathLike[str]) -> Filesystem:
    limits = VolumeOptions(buffer_limit=LIMIT, inode_limit=LIMIT, strict=True)
    return open_image(image, options=OpenOptions(volume=limits))


def test_what_is_dirty_is_committed_before_it_fills_the_caches(make_image: ImageMaker) -> None:
    image = make_image("32M", "-N", "4000")
    with small(image) as fs:
        fs.mkdir("/d")
        parent = fs.stat("/d").ino
        most = 0
        for number in range(3000):
            fs.vfs.mknod(parent, b"file %d" % number, 0o100644)
            most = max(most, len(fs.volume.transactions.running.dirty))
        assert most < LIMIT
        assert len(fs.volume.inodes) < 1.5 * LIMIT
        assert len(fs.volume.buffers) < 1.5 * LIMIT
    with small(image) as fs:
        assert len(fs.listdir("/d")) == 3000


def test_one_long_request_keeps_to_the_limits(make_image: ImageMaker) -> None:
    """Allocating, and giving back, all of an image of 2,000 groups does not hold 2,000 bitmaps in memory."""
    image = make_image("2G", "-b", "1024", "-g", "1024", "-N", "32000", "-J", "size=4")
    with small(image) as fs:
        fs.write_bytes("/file", b"")
        handle = fs.vfs.open(fs.stat("/file").ino, os.O_RDWR)
        sizes: list[int] = []
        breathe = fs.volume.transactions.breathe

        def watch() -> None:
            breathe()
            sizes.append(len(fs.volume.transactions.running.dirty))

        fs.volume.transactions.breathe = watch
        free = fs.statvfs().bavail
        steps: list[Callable[[], object]] = [
            lambda: fs.vfs.fallocate(handle, 0, 0, 1500 << 20),
            lambda: fs.vfs.fallocate(handle, 0x03, 0, 700 << 20),
            lambda: fs.truncate("/file", 0),
        ]
        for step in steps:
            sizes.clear()
            step()
            assert len(sizes) > 3
            assert max(sizes) < 2 * LIMIT
        fs.vfs.release(handle)
        fs.sync()
        assert fs.statvfs().bavail == free


class Asked:
    """Stands among the holders of inodes, holds none, and counts the questions."""

    def __init__(self) -> None:
        self.count = 0

    def __contains__(self, ino: object) -> bool:
        self.count += 1
        return False


def test_what_is_held_does_not_make_every_request_search_the_caches(make_image: ImageMaker) -> None:
    """Open files cannot be dropped: once there are more than the limit, looking for others has to stay rare."""
    with small(make_image("32M", "-N", "8000")) as fs:
        asked = Asked()
        fs.volume.inodes.holders.insert(0, asked)
        handles = [fs.vfs.create(ROOT_INO, b"%d" % i, 0o644, os.O_RDWR)[0] for i in range(5 * LIMIT)]
        assert len(fs.volume.inodes) >= 5 * LIMIT
        assert 0 < asked.count < 40 * len(handles)
        fs.vfs.commit()
        asked.count = 0
        for handle in handles:
            fs.vfs.write(handle, 0, b"x" * 100)
        assert asked.count < 10 * len(handles)


def test_a_failing_commit_on_the_way_is_told_by_the_next_change(make_image: ImageMaker, log_guard: LogGuard) -> None:
    log_guard.expect("commit failed")
    image = make_image.excuse(make_image("32M", "-N", "4000"))
    with open_image(image) as fs:
        fs.mkdir("/d")
    device = FaultyDevice(FileDevice.open(image))
    limits = VolumeOptions(buffer_limit=LIMIT, inode_limit=LIMIT)
    fs = open_device(device, options=OpenOptions(volume=limits))
    parent = fs.stat("/d").ino
    fs.vfs.mknod(parent, b"first", 0o100644)
    device.arm("write", times=None)
    with pytest.raises(ReadOnly):
        for number in range(LIMIT):
            fs.vfs.mknod(parent, b"file %d" % number, 0o100644)
    assert fs.stat("/d/first").ino
    with pytest.raises(DeviceError):
        fs.close()


def test_state_of_files_that_are_not_open_is_given_up(make_image: ImageMaker) -> None:
    with small(make_image("64M", "-b", "1024", "-N", "8192")) as fs:
        held = fs.vfs.create(ROOT_INO, b"held", 0o644, os.O_RDWR)[0]
        fs.vfs.write(held, 0, b"held" * 1000)
        state = fs.vfs._files[held].file
        count = IDLE_FILES + 500
        for number in range(count):
            fs.write_bytes(f"/file {number}", b"%d" % number * 1000)
            assert len(fs.vfs.client._files) < IDLE_FILES + 10
        assert fs.vfs.client.file(state.inode) is state, "an open file keeps its mappings"
        for number in [*range(250), *range(count - 250, count)]:
            assert fs.read_bytes(f"/file {number}") == b"%d" % number * 1000
        assert fs.vfs.client._cached == sum(file.cache.nbytes for file in fs.vfs.client._files.values())
        assert fs.vfs.read(held, 0, 5000) == b"held" * 1000
