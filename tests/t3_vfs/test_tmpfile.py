"""Files without a name (O_TMPFILE), and the first name that they get."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from py4fs.api import Filesystem, OpenOptions, open_device, open_image
from py4fs.device.memory import MemoryDevice
from py4fs.errors import NotADirectory, NotFound, NotPermitted
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import ROOT_INO, Caller
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.volumes import Clock

NO_ID = 0xFFFFFFFF
BLOCK = 1024
DEFAULT_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID))
)


@pytest.fixture(params=["extents", "map", "orphan list"])
def fs(request: pytest.FixtureRequest, make_image: ImageMaker) -> Iterator[Filesystem]:
    args = {"extents": (), "map": ("-O", "^extent,^64bit,^flex_bg"), "orphan list": ("-O", "^orphan_file")}
    options = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
    fs = open_image(make_image("16M", "-b", str(BLOCK), *args[request.param]), clock=Clock(), options=options)
    yield fs
    fs.close()


def counts(fs: Filesystem) -> tuple[int, int]:
    return fs.statvfs().bfree, fs.statvfs().ffree


def test_freed_at_the_last_close(fs: Filesystem) -> None:
    before = counts(fs), fs.stat("/").mtime, fs.listdir()
    fh, attr = fs.vfs.tmpfile(ROOT_INO, 0o640, os.O_RDWR, Caller(7, 8, 0o022))
    assert (attr.nlink, attr.mode, attr.uid, attr.gid, attr.size) == (0, 0o100640, 7, 8, 0)
    assert attr.ino in fs.volume.orphans
    fs.vfs.write(fh, 0, b"x" * 5000)
    assert fs.vfs.read(fh, 4990, 99) == b"x" * 10
    fs.sync()
    assert fs.vfs.getattr(attr.ino).size == 5000
    fs.vfs.release(fh)
    assert (counts(fs), fs.stat("/").mtime, fs.listdir()) == before
    assert attr.ino not in fs.volume.orphans


def test_linked(fs: Filesystem) -> None:
    """Its first name takes it off the orphans; from then on it is a file like any other."""
    fs.mkdir("/d")
    with fs.tmpfile("/d") as file:
        file.write(b"contents" * 1000)
        attr = file.stat()
        fs.link(file, "/d/name")
        assert attr.ino not in fs.volume.orphans
        after = fs.stat("/d/name")
        assert (after.ino, after.nlink) == (attr.ino, 1)
        assert after.ctime > attr.ctime and after.mtime == attr.mtime
        fs.link(file, "/second")
        file.write(b"more")
    assert fs.stat("/second").nlink == 2
    assert fs.read_bytes("/d/name") == b"contents" * 1000 + b"more"
    fs.unlink("/d/name")
    fs.unlink("/second")
    with pytest.raises(Exception, match="not in use"):
        fs.vfs.getattr(attr.ino)


def test_a_plan_in_flight_while_it_is_linked(fs: Filesystem) -> None:
    """A block map's blocks behind the end keep it an orphan until the size was raised over them."""
    fh, attr = fs.vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, Caller(0, 0))
    plan = fs.vfs.plan_write(fh, 0, 10 * BLOCK)
    fs.vfs.link(attr.ino, ROOT_INO, b"f")
    held = attr.ino in fs.volume.orphans
    assert held == (not fs.volume.files.mapper(fs.volume.inodes.get(attr.ino)).has_unwritten)
    fs.volume.device.writev(plan.runs[0].offset, [b"f" * plan.count])
    assert fs.vfs.finish_write(fh, plan) == 10 * BLOCK
    assert attr.ino not in fs.volume.orphans
    fs.vfs.release(fh)
    assert fs.read_bytes("/f") == b"f" * 10 * BLOCK


def test_what_cannot_be_linked(fs: Filesystem) -> None:
    """O_EXCL said so, or it had a name once; nor a second time after its only name is gone."""
    vfs = fs.vfs
    fh, attr = vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR | os.O_EXCL, Caller(0, 0))
    with pytest.raises(NotFound):
        vfs.link(attr.ino, ROOT_INO, b"name")
    vfs.release(fh)
    fh, attr = vfs.create(ROOT_INO, b"f", 0o600, os.O_RDWR)
    vfs.unlink(ROOT_INO, b"f")
    with pytest.raises(NotFound):
        vfs.link(attr.ino, ROOT_INO, b"name")
    vfs.release(fh)
    fh, attr = vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, Caller(0, 0))
    vfs.link(attr.ino, ROOT_INO, b"f")
    vfs.unlink(ROOT_INO, b"f")
    with pytest.raises(NotFound):
        vfs.link(attr.ino, ROOT_INO, b"name")
    vfs.release(fh)
    with pytest.raises(NotADirectory):
        fs.write_bytes("/f", b"")
        vfs.tmpfile(fs.stat("/f").ino, 0o600, os.O_RDWR, Caller(0, 0))
    fs.mkdir("/gone")
    held = vfs.opendir(fs.stat("/gone").ino)
    gone = fs.stat("/gone").ino
    fs.rmdir("/gone")
    with pytest.raises(NotPermitted):
        vfs.tmpfile(gone, 0o600, os.O_RDWR, Caller(0, 0))
    vfs.releasedir(held)


def test_inherits_as_created(fs: Filesystem) -> None:
    """Mode, group, ACL and flags are those of a file that is created in the directory."""
    fs.mkdir("/d")
    fs.chmod("/d", 0o2777)
    fs.chown("/d", 5, 6)
    fs.setxattr("/d", "system.posix_acl_default", DEFAULT_ACL)
    caller = Caller(7, 8, 0o077)
    parent = fs.stat("/d").ino
    named, want = fs.vfs.create(parent, b"f", 0o2664, os.O_RDWR, caller)
    fh, got = fs.vfs.tmpfile(parent, 0o2664, os.O_RDWR, caller)
    assert (got.mode, got.uid, got.gid, got.flags) == (want.mode, want.uid, want.gid, want.flags)
    name = b"system.posix_acl_access"
    assert fs.vfs.getxattr(got.ino, name) == fs.vfs.getxattr(want.ino, name)
    fs.vfs.release(named)
    fs.vfs.release(fh)


@pytest.mark.parametrize("linked", [False, True])
def test_after_a_crash(make_image: ImageMaker, linked: bool) -> None:
    """What has no name when the server dies is freed when the image is opened again; what has one stays."""
    device = MemoryDevice(make_image("16M", "-b", str(BLOCK)).read_bytes())
    fs = open_device(device, clock=Clock())
    fs.sync()
    before = counts(fs)
    file = fs.tmpfile()
    file.write(b"data" * 1000)
    if linked:
        fs.link(file, "/name")
    fs.sync()
    again = open_device(MemoryDevice(device.data), clock=Clock())
    if linked:
        assert again.read_bytes("/name") == b"data" * 1000
    else:
        assert any("1 inode(s) deleted" in notice for notice in again.notices)
        assert counts(again) == before
    again.close()
    file.close()
    fs.close()


def test_the_kernel_sees_the_same(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """Outcomes of linkat(2) on such files, in the kernel's ext4."""
    image = make_image("16M")
    with kernel_mount(image) as root:
        for flags, outcome in ((0, "ok"), (os.O_EXCL, "ENOENT")):
            fd = os.open(root, os.O_TMPFILE | os.O_RDWR | flags, 0o640)
            try:
                os.link(f"/proc/self/fd/{fd}", root / f"f{flags}", src_dir_fd=fd, follow_symlinks=True)
                assert outcome == "ok"
            except FileNotFoundError:
                assert outcome == "ENOENT"
            finally:
                os.close(fd)
