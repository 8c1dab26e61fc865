"""Mounts of images that are special: in a partition, watched by mmp, with names of many spellings, with quotas."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import pytest

import py4fs
from py4fs.ext4.quota import QuotaKind
from tests.support import disks, machine
from tests.support.image import ImageMaker, debugfs, e2fsck_clean
from tests.t4_fuse.conftest import FuseMount


def sequence(image: Path) -> int:
    [number] = re.findall(r"sequence: (?:0x)?([0-9a-f]+)", debugfs(image, "dump_mmp"))
    return int(number, 16)


def test_the_mmp_number_changes_while_it_is_mounted(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image.recipe("mmp-b1024")
    with fuse_mount(image):
        seen = {sequence(image)}
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            time.sleep(0.2)
            seen.add(sequence(image))
        assert len(seen) == 3 and 0xFF4D4D50 not in seen
    assert sequence(image) == 0xFF4D4D50


def test_a_partition(make_image: ImageMaker, fuse_mount: FuseMount, tmp_path: Path) -> None:
    bare = make_image.recipe("default-b1024-i256")
    sectors = bare.stat().st_size // disks.SECTOR
    disk = disks.blank(tmp_path / "disk", 4096 + 2 * sectors)
    disks.write_gpt(disk, {1: (2048, sectors), 2: (2048 + sectors, sectors)})
    for first in (2048, 2048 + sectors):
        disks.put(disk, first, bare.read_bytes())
    with fuse_mount(disk, ["partition=2"]) as mounted:
        (mounted.path / "only here").write_bytes(b"x" * 10_000)
    bare.write_bytes(disk.read_bytes()[(2048 + sectors) * disks.SECTOR :][: sectors * disks.SECTOR])
    e2fsck_clean(bare)
    with py4fs.open_image(disk, partition=2, readonly=True) as fs:
        assert fs.read_bytes("/only here") == b"x" * 10_000
    with py4fs.open_image(disk, partition=1, readonly=True) as fs:
        assert not fs.exists("/only here")


def test_no_spelling_is_remembered(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image.recipe("casefold")
    with py4fs.open_image(image) as fs:
        fs.mkdir("/fold")
        fs.set_casefold("/fold")
    with fuse_mount(image) as mounted:
        fold = mounted.path / "fold"
        assert not (fold / "NAME").exists()
        (fold / "Name").write_bytes(b"1")
        assert (fold / "NAME").read_bytes() == b"1" and (fold / "name").samefile(fold / "Name")
        (fold / "name").unlink()
        assert not any((fold / spelling).exists() for spelling in ("NAME", "Name", "name"))
        (fold / "Dir").mkdir()
        (fold / "DIR/below").mkdir()
        assert [entry.name for entry in (fold / "dir").iterdir()] == ["below"]
        (fold / "dir/BELOW").rmdir()
        (fold / "dIR").rmdir()
        assert list(fold.iterdir()) == []


def test_quota_meets_a_user(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_root()
    image = make_image.recipe("quota")
    with py4fs.open_image(image) as fs:
        fs.mkdir("/open")
        fs.chmod("/open", 0o777)
        with fs.volume.operation(16) as tx:
            fs.volume.quotas.set_limits(tx, QuotaKind.USER, 1234, hard_space=400 << 10, hard_inodes=3)
    with fuse_mount(image, ["usrquota", "allow_other"]) as mounted:
        fd = os.open(mounted.path / "open", os.O_RDONLY | os.O_DIRECTORY)
        directory = f"/proc/self/fd/{fd}"  # the way to it is closed to others
        pid = os.fork()
        if pid == 0:
            os._exit(_as_user(Path(directory)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(fd)
    with py4fs.open_image(image, readonly=True) as fs:
        usage = fs.volume.quotas.usage(QuotaKind.USER, 1234)
        assert usage.space <= 400 << 10 and usage.inodes == 3


def _as_user(directory: Path) -> int:
    """In a child: 0 when the user meets both limits."""
    os.setresuid(1234, 1234, 1234)
    (directory / "file").touch()
    for name in ("one", "two"):
        (directory / name).mkdir()
    try:
        (directory / "more").mkdir()
    except OSError as exc:
        if exc.errno != errno.EDQUOT:
            return 1
    else:
        return 2
    fd = os.open(directory / "file", os.O_WRONLY)
    try:
        os.write(fd, bytes(1 << 20))
        os.fsync(fd)
        os.close(fd)
    except OSError as exc:
        return 0 if exc.errno == errno.EDQUOT else 3
    return 4


def test_encrypted_contents_are_refused(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_loop()
    image = make_image.recipe("encrypted-b4096")
    with fuse_mount(image) as mounted:
        files = [path for path in (mounted.path / "secret").iterdir() if path.is_file() and not path.is_symlink()]
        assert len(files) == 4
        for path in files:
            with pytest.raises(OSError, match="Required key not available"):
                path.read_bytes()
            path.unlink()
