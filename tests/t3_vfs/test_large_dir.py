"""Directories with three levels of index (large_dir), with a million entries, with more than 65,000 subdirectories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import py4fs
from py4fs.api import Filesystem
from py4fs.errors import NoSpace, TooManyLinks
from py4fs.ext4.volume import VolumeOptions
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, e2fsck_clean
from tests.support.state import cool

OPTIONS = py4fs.OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
SMALL_BLOCKS = ("-b", "1024", "-N", "2048", "-O", "large_dir,^has_journal")


def name(number: int) -> str:
    """Three of these fill a block of 1 KiB."""
    return f"{number:07}-" + "n" * 247


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def levels(fs: Filesystem, path: str) -> int:
    inode = fs.vfs._get(fs.stat(path).ino)
    return fs.volume.namespace.directory(inode).tree.root().levels + 1


def fill(fs: Filesystem, path: str, numbers: range) -> None:
    fs.write_bytes("/target", b"x")
    for number in numbers:
        fs.link("/target", f"{path}/{name(number)}")


def test_three_levels(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """Made here, read and gone on with by the kernel, and then here again."""
    image = make_image("96M", *SMALL_BLOCKS)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        fill(fs, "/d", range(30_000))
        assert levels(fs, "/d") == 3
        cool(fs)
        assert sorted(fs.listdir("/d")) == [name(number) for number in range(30_000)]
    e2fsck_clean(image)
    with kernel_mount(image) as root:
        assert sorted(names(root / "d")) == [name(number) for number in range(30_000)]
        for number in range(0, 30_000, 500):
            assert (root / "d" / name(number)).read_bytes() == b"x"
        for number in range(30_000, 32_000):
            os.link(root / "target", root / "d" / name(number))
        for number in range(0, 15_000, 3):
            (root / "d" / name(number)).unlink()
    with py4fs.open_image(image, options=OPTIONS) as fs:
        left = [n for n in range(32_000) if n >= 15_000 or n % 3]
        assert sorted(fs.listdir("/d")) == [name(number) for number in left]
        for number in left[:200]:
            fs.unlink(f"/d/{name(number)}")
        assert fs.exists(f"/d/{name(left[200])}") and not fs.exists(f"/d/{name(left[0])}")


def test_what_the_kernel_made_with_three_levels(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("96M", *SMALL_BLOCKS)
    with kernel_mount(image) as root:
        (root / "d").mkdir()
        (root / "f").write_bytes(b"x")
        for number in range(30_000):
            os.link(root / "f", root / "d" / name(number))
    with py4fs.open_image(image, options=OPTIONS) as fs:
        assert levels(fs, "/d") == 3
        assert sorted(fs.listdir("/d")) == [name(number) for number in range(30_000)]
        fill(fs, "/d", range(30_000, 31_000))


def test_two_levels_are_the_end_without_large_dir(make_image: ImageMaker) -> None:
    image = make_image("96M", "-b", "1024", "-N", "2048", "-O", "^has_journal")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        with pytest.raises(NoSpace, match="directory index full"):
            fill(fs, "/d", range(60_000))
        assert levels(fs, "/d") == 2


def subdirectories(fs: Filesystem, numbers: range) -> None:
    for number in numbers:
        fs.mkdir(f"/d/{number}")


def test_more_subdirectories_than_a_link_count_can_say(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """dir_nlink: from 65,000 on the count is 1, and stays it when some go."""
    image = make_image("64M", "-b", "4096", "-N", "66000", "-O", "inline_data,^has_journal")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        subdirectories(fs, range(200))
        inode = fs.vfs._get(fs.stat("/d").ino)
        missing = 65_000 - 2 - 200
        subdirectories(fs, range(200, 200 + missing))
        assert fs.stat("/d").nlink == 65_000
        subdirectories(fs, range(200 + missing, 220 + missing))
        assert inode.nlink == 1
        for number in range(10):
            fs.rmdir(f"/d/{number}")
        assert fs.stat("/d").nlink == 1
    e2fsck_clean(image)
    with kernel_mount(image) as root:
        assert (root / "d").stat().st_nlink == 1 and len(names(root / "d")) == 65_008
        (root / "d" / "kernel").mkdir()
        assert (root / "d").stat().st_nlink == 1


def test_without_dir_nlink_there_is_an_end(make_image: ImageMaker) -> None:
    image = make_image("64M", "-b", "4096", "-N", "66000", "-O", "inline_data,^has_journal,^dir_nlink")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        with fs.volume.operation(1) as tx:  # as if there were so many: e2fsck is not asked
            inode = fs.vfs._get(fs.stat("/d").ino)
            tx.touch(inode)
            inode.nlink = 65_000
        with pytest.raises(TooManyLinks):
            fs.mkdir("/d/one-more")
        with fs.volume.operation(1) as tx:
            tx.touch(inode)
            inode.nlink = 2


@pytest.mark.long
@pytest.mark.parametrize("features", ["large_dir,^has_journal", "^has_journal"], ids=["large_dir", "4k"])
def test_a_million_entries(make_image: ImageMaker, kernel_mount: KernelMount, features: str) -> None:
    block = "1024" if features.startswith("large") else "4096"
    image: Path = make_image("400M", "-b", block, "-N", "4096", "-O", features)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        for number in range(1_000_000):
            if number % 60_000 == 0:
                fs.write_bytes(f"/target-{number}", b"x")
                target = f"/target-{number}"
            fs.link(target, f"/d/{number:020}")
        cool(fs)
        assert sum(1 for _ in fs.scandir("/d")) == 1_000_000
        for number in range(0, 1_000_000, 7919):
            assert fs.stat(f"/d/{number:020}").size == 1
    e2fsck_clean(image)
    with kernel_mount(image, "ro") as root:
        assert len(names(root / "d")) == 1_000_000
