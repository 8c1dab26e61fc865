"""Multiple mount protection, in both directions: owners that live, that died, that come while we are there."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

import py4fs
from py4fs.api import open_device
from py4fs.device.file import FileDevice
from py4fs.device.memory import MemoryDevice
from py4fs.errors import BadChecksum, Busy, Corrupt, FsError, ReadOnly
from py4fs.ext4 import checksum
from py4fs.ext4.layout.mmp import EXT4_MMP_SEQ_CLEAN, EXT4_MMP_SEQ_FSCK, MMP_BLOCK
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.fuse import heartbeat
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs, e2fsck_clean
from tests.support.logs import LogGuard
from tests.support.volumes import Clock

Sleeps = list[float]


@pytest.fixture(params=["mmp", "mmp-b1024"])
def image(request: pytest.FixtureRequest, make_image: ImageMaker) -> Path:
    return make_image.recipe(request.param)


def opened(
    device: MemoryDevice, sleep: Callable[[float], None] | None = None, readonly: bool = False
) -> py4fs.Filesystem:
    def refuse(seconds: float) -> None:
        raise AssertionError(f"asked to wait {seconds} seconds")

    options = py4fs.OpenOptions(readonly=readonly)
    return open_device(device, clock=Clock(), sleep=sleep or refuse, rng=Random(5), options=options)


def place(device: MemoryDevice) -> int:
    record = SUPERBLOCK.unpack_from(device.data, 1024)
    return int(record.s_mmp_block) * (1024 << int(record.s_log_block_size))


def change(device: MemoryDevice, **fields: int | bytes) -> None:
    """What another host writes."""
    at = place(device)
    raw = bytearray(device.data[at : at + 1024])
    MMP_BLOCK.put(raw, 0, **fields)
    checksum.set_mmp(raw, checksum.superblock_seed(SUPERBLOCK.unpack_from(device.data, 1024)))
    device.data[at : at + 1024] = raw


def seq(device: MemoryDevice) -> int:
    return int(MMP_BLOCK.unpack_from(device.data, place(device)).mmp_seq)


def in_use(image: Path, name: bytes = b"other") -> MemoryDevice:
    """The image as a host leaves it that dies."""
    device = MemoryDevice(image.read_bytes())
    change(device, mmp_seq=77, mmp_nodename=name, mmp_bdevname=b"sdx1", mmp_check_interval=10)
    return device


def test_clean_is_taken_at_once_and_left_clean(image: Path) -> None:
    with py4fs.open_image(image, sleep=lambda _: pytest.fail("waited")) as fs:
        fs.mkdir("/d")
        fs.sync()
        text = debugfs(image, "dump_mmp")
        assert f"node_name: {os.uname().nodename}" in text and f"device_name: {image.name}" in text
        interval = fs.vfs.mmp_interval
        assert interval == (1 if "1024" in image.name else 5)
        assert f"check_interval: {max(2 * interval, 5)}\n" in text
        [number] = re.findall(r"sequence: (?:0x)?([0-9a-f]+)", text)
        assert int(number, 16) != EXT4_MMP_SEQ_CLEAN
    assert "sequence: ff4d4d50" in debugfs(image, "dump_mmp")


def test_dead_owner_is_waited_for_twice(image: Path) -> None:
    device = in_use(image)
    waits: Sleeps = []
    with opened(device, waits.append) as fs:
        assert waits == [21, 21]
        assert seq(device) not in (77, EXT4_MMP_SEQ_CLEAN)
        fs.mkdir("/d")
    assert seq(device) == EXT4_MMP_SEQ_CLEAN


def test_living_owner_is_respected(image: Path) -> None:
    device = in_use(image)
    before = []

    def sleep(_seconds: float) -> None:
        change(device, mmp_seq=78)
        before.append(bytes(device.data))

    with pytest.raises(Busy, match=r"mmp: in use by other \(sdx1, last seen at "):
        opened(device, sleep)
    assert before == [device.data]


def test_two_that_come_at_once_do_not_both_get_it(image: Path) -> None:
    device = in_use(image)
    waits: Sleeps = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            change(device, mmp_seq=123, mmp_nodename=b"third")

    with pytest.raises(Busy, match="mmp: in use by third"):
        opened(device, sleep)
    assert seq(device) == 123


def test_fsck_marker(image: Path) -> None:
    device = in_use(image)
    change(device, mmp_seq=EXT4_MMP_SEQ_FSCK)
    before = bytes(device.data)
    with pytest.raises(Busy, match="mmp: e2fsck is running on it, on other"):
        opened(device)
    assert device.data == before


def test_readers_are_let_in_and_told(image: Path) -> None:
    device = in_use(image)
    before = bytes(device.data)
    with opened(device, readonly=True) as fs:
        assert [n for n in fs.notices if n.startswith("mmp: may be in use by other")]
        assert fs.vfs.mmp_interval is None
    device.data[place(device)] ^= 1
    with opened(device, readonly=True) as fs:
        assert [n for n in fs.notices if "the mmp block is damaged" in n]
    device.data[place(device)] ^= 1
    assert device.data == before


def test_refresh_counts_up_and_around(image: Path) -> None:
    device = MemoryDevice(image.read_bytes())
    with opened(device) as fs:
        first = seq(device)
        fs.vfs.mmp_refresh()
        assert seq(device) == first + 1
        change(device, mmp_seq=0xE24D4D4F)
        assert fs.volume.mmp is not None
        fs.volume.mmp._seq = 0xE24D4D4F
        fs.vfs.mmp_refresh()
        assert seq(device) == 1


def test_operations_refresh_when_nobody_else_does(image: Path) -> None:
    device = MemoryDevice(image.read_bytes())
    clock = Clock()
    with open_device(device, clock=clock, rng=Random(5)) as fs:
        first = seq(device)
        fs.mkdir("/a")
        assert seq(device) == first
        clock.now += 6 * 10**9
        fs.mkdir("/b")
        assert seq(device) == first + 1


@pytest.mark.parametrize("way", ["refresh", "operation", "commit"])
def test_taken_over_nothing_is_written_any_more(image: Path, way: str, log_guard: LogGuard) -> None:
    log_guard.expect("commit failed, now read-only: .*mmp: taken over by thief")
    device = MemoryDevice(image.read_bytes())
    clock = Clock()
    fs = open_device(device, clock=clock, rng=Random(5))
    fs.mkdir("/before")
    fs.sync()
    fs.mkdir("/lost")
    change(device, mmp_seq=4, mmp_nodename=b"thief")
    clock.now += 100 * 10**9
    after = bytes(device.data)
    if way == "refresh":
        with pytest.raises(Busy, match="taken over by thief"):
            fs.vfs.mmp_refresh()
    elif way == "commit":
        with pytest.raises(Busy, match="taken over by thief"):
            fs.sync()
    with pytest.raises((ReadOnly, Busy)):
        fs.mkdir("/more")
    with pytest.raises((ReadOnly, Busy)):
        fs.write_bytes("/file", b"x" * 100_000)
    with pytest.raises(Busy):
        fs.close()
    assert device.data == after


def test_failed_open_gives_it_back(image: Path) -> None:
    device = MemoryDevice(image.read_bytes())
    with opened(device) as fs:
        pblk, offset = fs.volume.inodes._locate(2)
        at = pblk * fs.volume.geometry.block_size + offset
    device.data[at : at + 256] = bytes(256)
    with pytest.raises(FsError):
        opened(device)
    assert seq(device) == EXT4_MMP_SEQ_CLEAN


def test_damage(image: Path) -> None:
    device = MemoryDevice(image.read_bytes())
    device.data[place(device) + 20] ^= 1
    with pytest.raises(BadChecksum, match="mmp block"):
        opened(device)
    change(device, mmp_magic=5)
    with pytest.raises(Corrupt, match="mmp_magic"):
        opened(device)
    change(device, mmp_magic=0x004D4D50, mmp_seq=0xF0000000)
    with pytest.raises(Corrupt, match="mmp_seq"):
        opened(device)


@pytest.mark.parametrize("block", [0, 1, 1 << 31, (1 << 64) - 1])
def test_impossible_place(image: Path, block: int) -> None:
    device = MemoryDevice(image.read_bytes())
    raw = bytearray(device.data[1024:2048])
    SUPERBLOCK.put(raw, 0, s_mmp_block=block)
    checksum.set_superblock(raw)
    device.data[1024:2048] = raw
    if block == 1 and SUPERBLOCK.unpack_from(raw).s_first_data_block == 0:
        with pytest.raises(Corrupt):  # the group descriptors
            opened(device)
        return
    with pytest.raises(Corrupt, match="s_mmp_block"):
        opened(device)


def test_heartbeat(image: Path) -> None:
    device = MemoryDevice(image.read_bytes())
    with opened(device) as fs:
        first, interval = seq(device), fs.vfs.mmp_interval
        assert interval is not None

        async def main() -> None:
            with trio.move_on_after(10 * interval + 0.5):
                await heartbeat.beat(fs.vfs)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
        assert seq(device) == first + 10


def test_the_kernel_finds_it_clean(image: Path, kernel_mount: KernelMount) -> None:
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/ours", b"1")
    started = time.monotonic()
    with kernel_mount(image, "rw") as root:
        assert time.monotonic() - started < 4
        assert (root / "ours").read_bytes() == b"1"
        (root / "theirs").write_bytes(b"2")
    with py4fs.open_image(image, sleep=lambda _: pytest.fail("waited")) as fs:
        assert fs.read_bytes("/theirs") == b"2"


@pytest.mark.long
def test_a_kernel_that_has_it_is_respected(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image.recipe("mmp-b1024")
    with kernel_mount(image, "rw"):
        # without our locks, which would refuse it first
        device = FileDevice(os.open(image, os.O_RDWR), str(image), readonly=False)
        with pytest.raises(Busy, match="mmp: in use by "):
            open_device(device)
        device.close()


@pytest.mark.long
def test_a_kernel_respects_us(make_image: ImageMaker) -> None:
    image = make_image.recipe("mmp-b1024")
    device = FileDevice(os.open(image, os.O_RDWR), str(image), readonly=False)
    with open_device(device) as fs:
        mount = subprocess.Popen(["mount", "-o", "loop", image, "/mnt"], stderr=subprocess.PIPE, text=True)
        while mount.poll() is None:
            fs.vfs.mmp_refresh()
            time.sleep(1)
        _, text = mount.communicate()
        assert mount.returncode == 32, text
    e2fsck_clean(image)
