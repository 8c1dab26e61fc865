"""The file system as a whole: trim, freeze and thaw, remount, shut down."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from images.tools import fsck_clean, run
from py4fs.api import Filesystem, OpenOptions, open_device, open_image
from py4fs.device.faulty import FaultyDevice
from py4fs.device.memory import MemoryDevice
from py4fs.device.overlay import OverlayDevice
from py4fs.errors import (
    Busy,
    CommitPending,
    DeviceError,
    Frozen,
    FsError,
    Invalid,
    NotPermitted,
    NotSupported,
    ReadOnly,
)
from py4fs.ext4.layout.superblock import EXT4_VALID_FS, SUPERBLOCK
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.plans import run_write
from py4fs.vfs import ROOT_INO, Caller
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.volumes import Clock

FITRIM = 0xC0185879
BLOCK = 1024
ALL = (1 << 64) - 1
KINDS = {"journal": (), "no journal": ("-O", "^has_journal"), "maps": ("-t", "ext3")}


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, make_image: ImageMaker) -> bytes:
    return make_image("16M", "-b", str(BLOCK), "-g", "2048", *KINDS[request.param]).read_bytes()


class World:
    """A file system in memory; its image can be looked at while it is in use."""

    def __init__(self, image: bytes, path: Path) -> None:
        self.device = MemoryDevice(image)
        self.fs = open_device(self.device, clock=Clock(), options=OpenOptions(volume=VolumeOptions(strict=True)))
        self.path = path

    def needs_recovery(self) -> bool:
        state = SUPERBLOCK.get(self.device.data, 1024, "s_state")
        incompat = SUPERBLOCK.get(self.device.data, 1024, "s_feature_incompat")
        return bool(incompat & 4) or not state & EXT4_VALID_FS

    def check_now(self) -> None:
        """The image as it is now is clean."""
        assert not self.needs_recovery()
        self.path.write_bytes(self.device.data)
        fsck_clean(self.path)

    def reopened(self) -> Filesystem:
        """What somebody finds who has only the image."""
        return open_device(MemoryDevice(self.device.data), clock=Clock())


@pytest.fixture
def world(base: bytes, tmp_path: Path) -> Iterator[World]:
    world = World(base, tmp_path / "now.img")
    yield world
    world.fs.close()
    world.check_now()


# -- freeze --------------------------------------------------------------------------------------------------


def test_frozen(world: World) -> None:
    """While it is frozen the image is clean and does not change; reading goes on."""
    fs, vfs = world.fs, world.fs.vfs
    fs.write_bytes("/f", b"contents" * 1000)
    fh = vfs.open(fs.stat("/f").ino, os.O_RDWR)
    vfs.cancel(vfs.plan_write(fh, 90 * BLOCK, 5))
    assert world.needs_recovery()
    vfs.freeze()
    frozen = bytes(world.device.data)
    world.check_now()
    assert not vfs.volume.orphans.in_file and not len(vfs.volume.orphans)
    assert world.reopened().read_bytes("/f") == b"contents" * 1000
    changes: list[Callable[[], Any]] = [
        lambda: vfs.mkdir(ROOT_INO, b"d"),
        lambda: vfs.write(fh, 0, b"x"),
        lambda: vfs.plan_write(fh, 0, 5),
        lambda: vfs.setattr(ROOT_INO, mode=0o700),
        lambda: vfs.unlink(ROOT_INO, b"f"),
        lambda: vfs.setxattr(ROOT_INO, b"user.x", b"1"),
        lambda: vfs.fallocate(fh, 0, 0, 10),
        lambda: vfs.trim(0, ALL, 0),
        lambda: vfs.set_label(b"x"),
        lambda: vfs.remount(True),
    ]
    for change in changes:
        with pytest.raises(Frozen):
            change()
    with pytest.raises(Busy):
        vfs.freeze()
    assert vfs.read(fh, 0, 8) == b"contents" and fs.listdir() == ["lost+found", "f"]
    vfs.fsync(fh)
    fs.sync()
    vfs.commit()
    assert world.device.data == frozen
    vfs.thaw()
    with pytest.raises(Invalid):
        vfs.thaw()
    for change in changes[:2]:
        change()
    assert world.needs_recovery()
    vfs.release(fh)


def test_closed_while_frozen(world: World) -> None:
    """What the last close would free is freed when the volume is thawed."""
    fs, vfs = world.fs, world.fs.vfs
    fs.write_bytes("/f", b"contents" * 1000)
    fs.write_bytes("/g", b"contents" * 1000)
    fs.sync()
    before = fs.statvfs().bfree, fs.statvfs().ffree
    handles = [vfs.open(fs.stat(name).ino, os.O_RDWR) for name in ("/f", "/g")]
    known = fs.stat("/g").ino
    vfs.ref(known)
    fs.unlink("/f")
    fs.unlink("/g")
    vfs.abort_write(handles[0], vfs.plan_write(handles[0], 20 * BLOCK, 10 * BLOCK))
    vfs.freeze()
    frozen = bytes(world.device.data)
    for fh in handles:
        vfs.release(fh)
    vfs.forget([(known, 1)])
    assert world.device.data == frozen
    vfs.thaw()
    assert (fs.statvfs().bfree - before[0], fs.statvfs().ffree - before[1]) >= (16, 2)
    assert not len(fs.volume.orphans)


def test_a_freeze_waits(world: World) -> None:
    """For writes in flight, and for a commit that somebody else is writing."""
    fs, vfs = world.fs, world.fs.vfs
    fh, _ = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
    plan = vfs.plan_write(fh, 0, 10)
    for step in (vfs.freeze, lambda: vfs.shutdown(0)):
        with pytest.raises(CommitPending):
            step()
    run_write(plan, fs.volume.device, b"x" * 10)
    assert vfs.finish_write(fh, plan) == 10
    commit = vfs.start_commit(durable=True)
    assert commit is not None
    with pytest.raises(CommitPending):
        vfs.freeze()
    commit.write()
    vfs.finish_commit(commit)
    vfs.freeze()
    vfs.thaw()
    vfs.release(fh)


def test_closed_frozen(base: bytes, tmp_path: Path) -> None:
    world = World(base, tmp_path / "now.img")
    world.fs.mkdir("/d")
    world.fs.vfs.freeze()
    world.fs.close()
    world.check_now()


def test_mounts_are_counted_once(world: World) -> None:
    before = SUPERBLOCK.get(world.device.data, 1024, "s_mnt_count")
    for number in range(3):
        world.fs.mkdir(f"/{number}")
        world.fs.vfs.freeze()
        world.fs.vfs.thaw()
    assert SUPERBLOCK.get(world.device.data, 1024, "s_mnt_count") == before + 1


# -- remount -------------------------------------------------------------------------------------------------


def test_remount(world: World) -> None:
    fs, vfs = world.fs, world.fs.vfs
    fs.write_bytes("/f", b"contents")
    reader = vfs.open(fs.stat("/f").ino, os.O_RDONLY)
    writer = vfs.open(fs.stat("/f").ino, os.O_WRONLY)
    with pytest.raises(Busy):
        vfs.remount(readonly=True)
    vfs.release(writer)
    fs.write_bytes("/gone", b"contents")
    held = vfs.open(fs.stat("/gone").ino, os.O_RDONLY)
    fs.unlink("/gone")
    with pytest.raises(Busy):
        vfs.remount(readonly=True)
    vfs.release(held)
    for _ in range(2):
        vfs.remount(readonly=True)
        world.check_now()
        assert fs.volume.readonly
        for change in (lambda: fs.mkdir("/d"), lambda: vfs.open(fs.stat("/f").ino, os.O_RDWR)):
            with pytest.raises(ReadOnly):
                change()
        assert vfs.read(reader, 0, 9) == b"contents"
        world.check_now()
    vfs.remount(readonly=False)
    vfs.remount(readonly=False)
    fs.mkdir("/d")
    vfs.release(reader)


def test_what_stays_readonly(base: bytes, log_guard: LogGuard) -> None:
    options = OpenOptions(readonly=True)
    fs = open_device(MemoryDevice(base), clock=Clock(), options=options)
    fs.vfs.remount(readonly=True)
    with pytest.raises(ReadOnly, match="mounted read-only"):
        fs.vfs.remount(readonly=False)
    fs.close()
    device = FaultyDevice(MemoryDevice(base))
    log_guard.expect("now read-only")
    fs = open_device(device, clock=Clock())
    fs.mkdir("/d")
    device.arm("write")
    with pytest.raises(DeviceError):
        fs.sync()
    with pytest.raises(ReadOnly):
        fs.vfs.remount(readonly=False)
    with pytest.raises(FsError):
        fs.close()


# -- shutdown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_shutdown(flags: int, base: bytes, tmp_path: Path) -> None:
    """Nothing works any more, nothing is written any more; what there is depends on the flags."""
    world = World(base, tmp_path / "now.img")
    fs, vfs = world.fs, world.fs.vfs
    fs.mkdir("/durable")
    fs.sync()
    fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
    vfs.write(fh, 0, b"contents")
    dir_fh = vfs.opendir(ROOT_INO)
    left_open, _ = vfs.create(ROOT_INO, b"g", 0o644, os.O_RDWR)
    for handle in (fh, left_open):
        vfs.abort_write(handle, vfs.plan_write(handle, 9 * BLOCK, 5))
        # its blocks stay behind the end of the file
        vfs.cancel(vfs.plan_write(handle, 9 * BLOCK, 5))
    plan = vfs.plan_read(fh, 0, 5)
    written = bytes(world.device.data)
    vfs.shutdown(flags)
    vfs.shutdown(2)
    journal = fs.volume.journal_area is not None
    image = bytes(world.device.data)
    assert (image == written) == (flags == 2 or (flags == 1 and not journal))
    assert world.needs_recovery() == (flags != 0)
    steps: list[Callable[[], Any]] = [
        lambda: vfs.getattr(ROOT_INO),
        lambda: vfs.lookup(ROOT_INO, b"f"),
        lambda: list(vfs.readdir(dir_fh)),
        lambda: vfs.opendir(ROOT_INO),
        lambda: vfs.read(fh, 0, 8),
        lambda: vfs.write(fh, 0, b"x"),
        lambda: vfs.finish_read(fh, plan),
        lambda: vfs.mkdir(ROOT_INO, b"d"),
        lambda: vfs.setattr(attr.ino, size=0),
        lambda: vfs.fsync(fh),
        vfs.sync,
        vfs.statfs,
        vfs.freeze,
        lambda: vfs.remount(False),
        lambda: vfs.trim(0, ALL, 0),
        lambda: vfs.listxattr(ROOT_INO),
    ]
    for step in steps:
        with pytest.raises(DeviceError, match="shut down"):
            step()
    assert not len(fs.volume.pins)
    vfs.commit()
    assert vfs.start_commit(durable=False) is None
    vfs.release(fh)
    vfs.releasedir(dir_fh)
    vfs.forget([(attr.ino, 1)])
    fs.close()
    assert world.device.data == image
    world.path.write_bytes(image)
    if flags and not journal:
        run(["e2fsck", "-fp", world.path], ok=(0, 1))
    elif flags:
        run(["e2fsck", "-p", world.path], ok=(0, 1))
    fsck_clean(world.path)
    again = open_image(world.path, readonly=True)
    assert again.exists("/durable")
    assert again.exists("/f") == (flags == 0 or (flags == 1 and journal))
    again.close()


def test_shutdown_refused(world: World) -> None:
    with pytest.raises(Invalid):
        world.fs.vfs.shutdown(3)
    with pytest.raises(NotPermitted):
        world.fs.vfs.shutdown(0, Caller(5, 5))
    world.fs.mkdir("/d")
    commit = world.fs.vfs.start_commit(durable=True)
    assert commit is not None
    with pytest.raises(CommitPending):
        world.fs.vfs.shutdown(0)
    commit.write()
    world.fs.vfs.finish_commit(commit)
    world.fs.mkdir("/e")


# -- trim ----------------------------------------------------------------------------------------------------


def test_trim(world: World) -> None:
    """Every free block is discarded, and no other."""
    fs, vfs = world.fs, world.fs.vfs
    fs.write_bytes("/kept", os.urandom(3000) * 100)
    fs.write_bytes("/gone", os.urandom(3000) * 100)
    fs.sync()
    place = [(m.addr, m.length) for m in fs.mappings("/gone") if m.addr >= 0]
    kept = fs.read_bytes("/kept")
    fs.unlink("/gone")
    assert any(world.device.data[place[0][0] : place[0][0] + BLOCK])
    assert vfs.trim(0, ALL, 0) == fs.statvfs().bfree * BLOCK
    for addr, length in place:
        assert not any(world.device.data[addr : addr + length])
    assert fs.read_bytes("/kept") == kept
    assert vfs.trim(0, ALL, 2000 * BLOCK) < fs.statvfs().bfree * BLOCK
    assert vfs.trim(0, BLOCK, 0) == 0


def test_trim_leaves_what_is_pinned(world: World) -> None:
    """Freed, but a read in flight may still be there; or freed by nobody yet who would survive a crash."""
    fs, vfs = world.fs, world.fs.vfs
    data = os.urandom(100 * BLOCK)
    fs.write_bytes("/f", data)
    fs.sync()
    fh = vfs.open(fs.stat("/f").ino, os.O_RDWR)
    plan = vfs.plan_read(fh, 0, len(data))
    vfs.setattr(fs.stat("/f").ino, size=0)
    assert vfs.trim(0, ALL, 0) <= (fs.statvfs().bfree - 100) * BLOCK
    at, length = plan.runs[0]
    assert world.device.data[at : at + length] == data[:length]
    assert not vfs.finish_read(fh, plan)
    assert vfs.trim(0, ALL, 0) == fs.statvfs().bfree * BLOCK
    assert not any(world.device.data[at : at + length])
    vfs.release(fh)


def test_trim_refused(world: World) -> None:
    vfs = world.fs.vfs
    end = world.fs.volume.geometry.blocks_count * BLOCK
    for bad in ((0, BLOCK - 1, 0), (end, ALL, 0), (0, ALL, 2049 * BLOCK), (-1, ALL, 0)):
        with pytest.raises(Invalid):
            vfs.trim(*bad)
    with pytest.raises(NotPermitted):
        vfs.trim(0, ALL, 0, Caller(5, 5))


def test_trim_without_discard(base: bytes) -> None:
    device = OverlayDevice(MemoryDevice(base), BLOCK, {}, writable=True)
    fs = open_device(device, clock=Clock())
    with pytest.raises(NotSupported):
        fs.vfs.trim(0, ALL, 0)
    fs.close()


def test_trim_makes_holes_in_the_image(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """As much as the kernel discards, range by range; the image file gets smaller."""
    image = make_image("64M", "-b", str(BLOCK))
    other = make_image.copy(image)
    length = 8 << 20
    ranges = [(0, ALL, 0), (3 << 20, length, 0), (5000, 100_000, 0), (0, ALL, 100 << 10), (0, ALL, 9 << 20)]
    want: list[int | str] = []
    for start, size, least in ranges:
        # mounted anew each time: the kernel remembers what it has trimmed
        with kernel_mount(other) as root:
            fd = os.open(root, os.O_RDONLY)
            try:
                answer = fcntl.ioctl(fd, FITRIM, struct.pack("<QQQ", start, size, least))
                want.append(struct.unpack("<QQQ", answer)[1])
            except OSError as exc:
                want.append(errno.errorcode[exc.errno or 0])
            finally:
                os.close(fd)
    fs = open_image(image, clock=Clock())
    got: list[int | str] = []
    for start, size, least in ranges:
        try:
            got.append(fs.vfs.trim(start, size, least))
        except OSError as exc:
            got.append(errno.errorcode[exc.errno or 0])
    assert got == want
    fs.write_bytes("/f", os.urandom(1 << 20) * 20)
    fs.sync()
    full = image.stat().st_blocks
    fs.unlink("/f")
    fs.vfs.trim(0, ALL, 0)
    assert image.stat().st_blocks < full - 30_000
    fs.close()


@pytest.mark.parametrize("kind", ["write", "flush"])
@pytest.mark.parametrize("ending", ["freeze", "remount", "shutdown"])
def test_the_device_fails(kind: str, ending: str, make_image: ImageMaker, tmp_path: Path, log_guard: LogGuard) -> None:
    """Nothing is frozen, remounted or shut then; the volume is read-only, and replaying the journal is all it needs."""
    base = make_image("16M", "-b", str(BLOCK)).read_bytes()
    log_guard.allow("commit failed, now read-only")
    failures = 0
    for nth in range(1, 100):
        memory = MemoryDevice(base)
        device = FaultyDevice(memory)
        fs = open_device(device, clock=Clock())
        fs.write_bytes("/f", b"contents" * 1000)
        device.arm(kind, nth)  # type: ignore[arg-type]
        vfs = fs.vfs
        steps: dict[str, Callable[[], Any]] = {
            "freeze": vfs.freeze,
            "remount": partial(vfs.remount, True),
            "shutdown": partial(vfs.shutdown, 0),
        }
        try:
            steps[ending]()
        except DeviceError:
            failures += 1
            pauses = fs.volume.pauses
            assert not (pauses.frozen or pauses.readonly or pauses.shut) and fs.volume.readonly
            with pytest.raises(ReadOnly):
                fs.mkdir("/d")
            with pytest.raises(FsError):
                fs.close()
        else:
            assert not device.failed
            fs.close()
        path = tmp_path / "image"
        path.write_bytes(memory.data)
        run(["e2fsck", "-p", path], ok=(0, 1))
        fsck_clean(path)
        if not device.failed:
            break
    assert failures >= 3
