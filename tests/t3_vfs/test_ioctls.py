"""ioctl(2) on files and the file system: outcome and result are those of the kernel's ext4."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from images.tools import run
from py4fs.api import Filesystem, OpenOptions, open_image
from py4fs.errors import Invalid, NoSuchIoctl, NotPermitted, NotSupported
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL, EXT4_IMMUTABLE_FL, EXT4_JOURNAL_DATA_FL, EXT4_NOATIME_FL
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import ROOT, Caller, FsXattr
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, superblock
from tests.support.logs import LogGuard
from tests.support.volumes import Clock

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
GETVERSION, SETVERSION = 0x80087601, 0x40087602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
FIBMAP = 1
GETFSUUID, GETFSLABEL, SETFSLABEL = 0x80111500, 0x81009431, 0x41009432
FSXATTR = struct.Struct("<5I8x")
OWNER = 1000


def open_fs(image: Path) -> Filesystem:
    options = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
    return open_image(image, clock=Clock(), options=options)


@pytest.fixture
def image(make_image: ImageMaker) -> Path:
    return make_image("32M", "-b", "1024", "-L", "before")


@pytest.fixture
def fs(image: Path) -> Iterator[Filesystem]:
    fs = open_fs(image)
    yield fs
    fs.close()


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def has_sys_resource() -> bool:
    """Whether root on this machine has what the kernel wants to see for journalled data."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1)


def outcome(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


class Kernel:
    """A file and a directory on a kernel mount."""

    def __init__(self, root: Path) -> None:
        (root / "file").write_bytes(b"contents" * 1000)
        (root / "dir").mkdir()
        self.fds = {name: os.open(root / name, os.O_RDONLY) for name in ("file", "dir")}
        for fd in self.fds.values():
            os.fchown(fd, OWNER, OWNER)

    def close(self) -> None:
        for fd in self.fds.values():
            fcntl.ioctl(fd, SETFLAGS, struct.pack("<Q", EXT4_EXTENTS_FL))
            os.close(fd)

    def get_flags(self, name: str) -> int:
        flags: int = struct.unpack("<Q", fcntl.ioctl(self.fds[name], GETFLAGS, bytes(8)))[0]
        return flags

    def set_flags(self, name: str, flags: int, uid: int) -> None:
        with acting_as(uid):
            fcntl.ioctl(self.fds[name], SETFLAGS, struct.pack("<Q", flags))

    def get_fsx(self, name: str) -> FsXattr:
        return FsXattr(*FSXATTR.unpack(fcntl.ioctl(self.fds[name], FSGETXATTR, bytes(28))))

    def set_fsx(self, name: str, fsx: FsXattr, uid: int) -> None:
        with acting_as(uid):
            fcntl.ioctl(self.fds[name], FSSETXATTR, FSXATTR.pack(*fsx))

    def set_version(self, name: str, version: int, uid: int) -> int:
        with acting_as(uid):
            fcntl.ioctl(self.fds[name], SETVERSION, struct.pack("<Q", version))
        return int(struct.unpack("<Q", fcntl.ioctl(self.fds[name], GETVERSION, bytes(8)))[0])


class Ours:
    """The same on py4fs."""

    def __init__(self, fs: Filesystem) -> None:
        self.vfs = fs.vfs
        fs.write_bytes("/file", b"contents" * 1000)
        fs.mkdir("/dir")
        self.inos = {name: fs.stat(name).ino for name in ("file", "dir")}
        for ino in self.inos.values():
            fs.vfs.setattr(ino, uid=OWNER, gid=OWNER)

    def get_flags(self, name: str) -> int:
        return self.vfs.get_flags(self.inos[name])

    def set_flags(self, name: str, flags: int, uid: int) -> None:
        self.vfs.set_flags(self.inos[name], flags, Caller(uid, uid))

    def get_fsx(self, name: str) -> FsXattr:
        return self.vfs.get_fsx(self.inos[name])

    def set_fsx(self, name: str, fsx: FsXattr, uid: int) -> None:
        self.vfs.set_fsx(self.inos[name], fsx, Caller(uid, uid))

    def set_version(self, name: str, version: int, uid: int) -> int:
        self.vfs.set_version(self.inos[name], version, Caller(uid, uid))
        return self.vfs.get_version(self.inos[name])


@contextmanager
def both(make_image: ImageMaker, kernel_mount: KernelMount, *args: str) -> Iterator[tuple[Kernel, Ours]]:
    fs = open_fs(make_image("16M", *args))
    with kernel_mount(make_image("16M", *args)) as root:
        kernel = Kernel(root)
        try:
            yield kernel, Ours(fs)
        finally:
            kernel.close()
            fs.close()


@pytest.mark.parametrize("args", [(), ("-O", "^has_journal,^metadata_csum")], ids=["ext4", "no-journal"])
def test_flags_as_the_kernel(
    args: tuple[str, ...], make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    with both(make_image, kernel_mount, *args) as (kernel, ours):
        for number in range(600):
            name = rng.choice(["file", "dir"])
            old = kernel.get_flags(name)
            assert ours.get_flags(name) == old
            uid = rng.choice([0, 0, OWNER, OWNER + 1])
            kind = rng.random()
            if kind < 0.1:
                flags = rng.getrandbits(32) | EXT4_EXTENTS_FL
            elif kind < 0.3:
                flags = EXT4_EXTENTS_FL
            else:
                flags = old ^ (1 << rng.randrange(32)) | EXT4_EXTENTS_FL
            if (flags ^ old) & EXT4_JOURNAL_DATA_FL and not has_sys_resource():
                flags ^= EXT4_JOURNAL_DATA_FL
            if number % 4 == 0:
                fsx = FsXattr(rng.choice([0, 1 << rng.choice([3, 4, 5, 6, 7, 9])]), projid=rng.choice([0, 0, 5]))
                if old & EXT4_IMMUTABLE_FL and fsx.projid:
                    continue
                got = [outcome(partial(world.set_fsx, name, fsx, uid)) for world in (kernel, ours)]
                if fsx.projid and got[0] == "ENOTSUP":
                    # the kernel has set the flags nevertheless
                    kernel.set_flags(name, old, 0)
            else:
                got = [outcome(partial(world.set_flags, name, flags, uid)) for world in (kernel, ours)]
            assert got[1] == got[0], f"{number}: {name} {flags:#x} on {old:#x} by {uid}"
            assert ours.get_fsx(name) == kernel.get_fsx(name)


def test_special_flags(fs: Filesystem) -> None:
    """What needs root, a conversion or a feature; and what comes of it."""
    fs.write_bytes("/f", b"contents")
    ino = fs.stat("/f").ino
    fs.vfs.setattr(ino, uid=OWNER)
    owner = Caller(OWNER, OWNER)
    old = fs.vfs.get_flags(ino)
    before = fs.stat("/f").ctime
    with pytest.raises(NotPermitted):
        fs.vfs.set_flags(ino, old | EXT4_JOURNAL_DATA_FL, owner)
    with pytest.raises(NotSupported):
        fs.vfs.set_flags(ino, old & ~EXT4_EXTENTS_FL, ROOT)
    with pytest.raises(NotSupported):
        fs.vfs.set_fsx(ino, FsXattr(projid=1), ROOT)
    assert (fs.vfs.get_flags(ino), fs.stat("/f").ctime) == (old, before)
    fs.vfs.set_flags(ino, old | EXT4_JOURNAL_DATA_FL | EXT4_NOATIME_FL, ROOT)
    assert fs.vfs.get_flags(ino) == fs.stat("/f").flags == old | EXT4_JOURNAL_DATA_FL | EXT4_NOATIME_FL
    assert fs.stat("/f").ctime > before
    fs.vfs.set_flags(ino, old | EXT4_NOATIME_FL, ROOT)
    fs.symlink("f", "/link")
    with pytest.raises(NotSupported):
        fs.vfs.set_flags(fs.lstat("/link").ino, EXT4_NOATIME_FL, ROOT)


def test_immutable_while_open(fs: Filesystem) -> None:
    """No more writes through handles opened before, but for what a page cache has already."""
    fh, attr = fs.vfs.create(2, b"f", 0o644, os.O_RDWR)
    fs.vfs.set_flags(attr.ino, attr.flags | EXT4_IMMUTABLE_FL, ROOT)
    for step in (
        lambda: fs.vfs.write(fh, 0, b"x"),
        lambda: fs.vfs.fallocate(fh, 0, 0, 10),
        lambda: fs.vfs.setattr(attr.ino, size=0),
        lambda: fs.vfs.unlink(2, b"f"),
    ):
        with pytest.raises(NotPermitted):
            step()
    assert fs.vfs.write(fh, 0, b"old", cached=True) == 3
    fs.vfs.release(fh)
    fs.vfs.set_flags(attr.ino, attr.flags, ROOT)
    assert fs.read_bytes("/f") == b"old"


def test_versions(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    with both(make_image, kernel_mount, "-O", "^metadata_csum") as (kernel, ours):
        for uid in (0, OWNER, OWNER + 1):
            got = [outcome(partial(world.set_version, "file", 0xFEDCBA98, uid)) for world in (kernel, ours)]
            assert got[1] == got[0] == (0xFEDCBA98 if uid <= OWNER else "EPERM")
    with both(make_image, kernel_mount) as (kernel, ours):
        got = [outcome(partial(world.set_version, "file", 5, 0)) for world in (kernel, ours)]
        assert got == ["ENOTTY", "ENOTTY"]
        with pytest.raises(NoSuchIoctl):
            ours.vfs.set_version(ours.inos["dir"], 5, ROOT)


def test_bmap(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """Every block of a file with holes and unwritten blocks, in every unit."""
    image = make_image("16M", "-b", "4096")
    with kernel_mount(image) as root:  # noqa: SIM117
        with (root / "f").open("wb", buffering=0) as file:
            for block in (0, 1, 5, 9):
                file.seek(block * 4096)
                file.write(b"x" * 4096)
            os.posix_fallocate(file.fileno(), 12 * 4096, 8192)
            os.fsync(file.fileno())
            want = [struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", n)))[0] for n in range(16)]
    fs = open_fs(image)
    ino = fs.stat("/f").ino
    assert [fs.vfs.bmap(ino, n, 4096) for n in range(16)] == want
    assert [fs.vfs.bmap(ino, n, 512) for n in range(16 * 8)] == [
        block * 8 + part if block else 0 for block in want for part in range(8)
    ]
    # a kernel's unit may be larger than a block: then only what lies in one piece, and rightly aligned, has a number
    pairs = zip(want[::2], want[1::2], strict=True)
    assert [fs.vfs.bmap(ino, n, 8192) for n in range(8)] == [
        one // 2 if one and one % 2 == 0 and two == one + 1 else 0 for one, two in pairs
    ]
    assert fs.vfs.bmap(ino, 1 << 60, 512) == 0
    for bad in ((-1, 4096), (0, 0), (0, 1000)):
        with pytest.raises(Invalid):
            fs.vfs.bmap(ino, *bad)
    with pytest.raises(Invalid):
        fs.vfs.bmap(2, 0, 4096)
    fs.close()


def labels(image: Path) -> set[bytes]:
    """The label in every copy of the superblock."""
    raw = image.read_bytes()
    size = 1024
    groups = len(raw) // size // 8192
    found = {bytes(SUPERBLOCK.get(raw, 1024, "s_volume_name"))}
    for group in (1, 3, 5, 7, 9):
        if group < groups:
            found.add(bytes(SUPERBLOCK.get(raw, (group * 8192 + 1) * size, "s_volume_name")))
    return found


@pytest.mark.parametrize("label", [b"new", b"sixteen bytes oh", b"", b"cut\0here"])
def test_labels(label: bytes, make_image: ImageMaker, kernel_mount: KernelMount, fsck: Callable[[Path], None]) -> None:
    """In all copies, as the kernel writes them."""
    image = make_image("32M", "-b", "1024", "-L", "before")
    other = make_image.copy(image)
    with kernel_mount(other) as root:
        fd = os.open(root, os.O_RDONLY)
        fcntl.ioctl(fd, SETFSLABEL, label.ljust(256, b"\0"))
        want = fcntl.ioctl(fd, GETFSLABEL, bytes(256)).split(b"\0")[0]
        os.close(fd)
    fs = open_fs(image)
    assert fs.vfs.get_label() == b"before"
    fs.vfs.set_label(label)
    assert fs.vfs.get_label() == want
    assert str(superblock(image)["Filesystem UUID"]).replace("-", "") == fs.vfs.fs_uuid().hex()
    fs.close()
    assert labels(image) == labels(other) == {want.ljust(16, b"\0")}
    fsck(image)


def test_labels_refused(fs: Filesystem) -> None:
    with pytest.raises(Invalid):
        fs.vfs.set_label(b"seventeen bytes !")
    with pytest.raises(NotPermitted):
        fs.vfs.set_label(b"x", Caller(OWNER, OWNER))
    assert fs.vfs.get_label() == b"before"


def test_a_damaged_copy_stays(make_image: ImageMaker, log_guard: LogGuard) -> None:
    log_guard.expect("copy of the superblock in block 8193")
    image = make_image.excuse(make_image("32M", "-b", "1024", "-L", "before"))
    with image.open("r+b") as file:
        file.seek(8193 * 1024)
        file.write(bytes(1024))
    fs = open_fs(image)
    fs.vfs.set_label(b"after")
    fs.close()
    assert labels(image) == {b"after".ljust(16, b"\0"), bytes(16)}
    assert run(["e2label", image]).strip() == "after"
