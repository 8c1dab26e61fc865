"""Corners of the format that are legal, or met in the wild: longest extents, any name, odd dots, unwritten tails."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

import py4fs
from images.content import pattern
from py4fs.errors import Corrupt, FsError
from py4fs.ext4.layout.dirent import DIR_ENTRY_2
from py4fs.ext4.volume import VolumeOptions
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs, debugfs_extents, e2fsck_clean

OPTIONS = py4fs.OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
LONGEST = 0x8000
KIB = 1024


# -- extents ----------------------------------------------------------------------------------------------------


def test_longest_extents_are_made_cut_and_joined(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """32,768 written blocks in one extent, here and by the kernel; each then cuts the other's."""
    image = make_image("256M", "-b", "1024", "-O", "^resize_inode,sparse_super2,^has_journal", "-E", "num_backup_sb=0")
    data = bytearray(pattern("long", 80 << 20))
    with py4fs.open_image(image, options=OPTIONS) as fs, fs.open("/ours", "wb") as file:
        for at in range(0, len(data), 1 << 20):
            file.write(data[at : at + (1 << 20)])
    assert max(count for _, count, _, unwritten in debugfs_extents(image, "/ours") if not unwritten) == LONGEST
    with kernel_mount(image) as root:
        (root / "theirs").write_bytes(data)
        with (root / "ours").open("r+b") as mine:
            mine.seek(20_000 * KIB)
            mine.write(b"k" * KIB)
        subprocess.run(["fallocate", "-p", "-o", str(10_000 * KIB), "-l", str(5 * KIB), root / "ours"], check=True)
    expected = bytearray(data)
    expected[20_000 * KIB : 20_001 * KIB] = b"k" * KIB
    expected[10_000 * KIB : 10_005 * KIB] = bytes(5 * KIB)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        assert fs.read_bytes("/ours") == expected
        for path in ("/ours", "/theirs"):
            with fs.open(path, "r+b") as file:
                file.fallocate(0x10 | 1, 30_000 * KIB, 5000 * KIB)  # zero across the border of two extents
                file.fallocate(3, 1 * KIB, KIB)
                file.seek(30_500 * KIB)
                file.write(b"p" * 3000)
                file.truncate(70 << 20)
    for contents in (expected, data):
        contents[30_000 * KIB : 35_000 * KIB] = bytes(5000 * KIB)
        contents[1 * KIB : 2 * KIB] = bytes(KIB)
        contents[30_500 * KIB : 30_500 * KIB + 3000] = b"p" * 3000
    e2fsck_clean(image)
    with kernel_mount(image, "ro") as root:
        assert (root / "ours").read_bytes() == expected[: 70 << 20]
        assert (root / "theirs").read_bytes() == data[: 70 << 20]


def test_blocks_past_the_end_that_the_kernel_left(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("32M", "-b", "4096")
    with kernel_mount(image) as root:
        for name in ("append", "extend", "cut"):
            (root / name).write_bytes(b"x" * 5000)
            subprocess.run(["fallocate", "-n", "-l", str(1 << 20), root / name], check=True)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        free = fs.statvfs().bfree
        assert all(fs.stat(f"/{name}").blocks == 2048 for name in ("append", "extend", "cut"))
        with fs.open("/append", "ab") as file:
            file.write(b"y" * 300_000)
        fs.truncate("/extend", 600_000)
        assert fs.statvfs().bfree == free
        fs.truncate("/cut", 5000)
        fs.sync()
        assert fs.statvfs().bfree == free + 254
    with kernel_mount(image) as root:
        assert (root / "append").read_bytes() == b"x" * 5000 + b"y" * 300_000
        assert (root / "extend").read_bytes() == b"x" * 5000 + bytes(595_000)
        assert (root / "cut").stat().st_blocks == 16
        with (root / "append").open("ab") as file:
            file.write(b"z")


# -- names ------------------------------------------------------------------------------------------------------


def any_names(rng: random.Random) -> list[bytes]:
    """Names of every byte that can be in one, of all lengths up to 255."""
    every = bytes(set(range(1, 256)) - {ord("/")})
    names = [every + b"\xff", every[::-1] + b"!", b"\xff" * 255, b"\x01", b"\xc3", b"\xed\xa0\x80", b" ", b"..."]
    names += [bytes([byte]) for byte in every if byte != ord(".")]
    names += [bytes(rng.choices(every, k=length)) for length in range(2, 256)]
    return names


@pytest.mark.parametrize("features", ["^dir_index", "dir_index", "inline_data"])
def test_names_of_any_bytes(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, features: str
) -> None:
    image = make_image("32M", "-b", "1024", "-N", "4096", "-O", features)
    names = sorted(set(any_names(rng)))
    assert max(map(len, names)) == 255 and set(b"".join(names)) == set(range(1, 256)) - {ord("/")}
    with kernel_mount(image) as root:
        (root / "theirs").mkdir()
        for number, name in enumerate(names):
            (root / "theirs" / os.fsdecode(name)).symlink_to(str(number))
            if number % 20 == 0:
                (root / f"few-{number}").mkdir()
                (root / f"few-{number}" / os.fsdecode(name)).symlink_to("x")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        vfs = fs.vfs
        theirs = fs.stat("/theirs").ino
        for number, name in enumerate(names):
            assert vfs.readlink(vfs.lookup(theirs, name).ino) == b"%d" % number
        ours = vfs.mkdir(2, b"ours").ino
        for number, name in enumerate(names):
            vfs.symlink(ours, name, b"%d" % number)
        for number in range(0, len(names), 20):
            few = fs.stat(f"/few-{number}").ino
            assert vfs.lookup(few, names[number]).size == 1
            vfs.unlink(few, names[number])
    with kernel_mount(image) as root:
        for number, name in enumerate(names):
            link = root / "ours" / os.fsdecode(name)
            assert str(link.readlink()) == str(number)
            link.unlink()


# -- dots -------------------------------------------------------------------------------------------------------

DOT, DOTDOT = 0, 12
#: (byte offset in the directory's block, fields of the entry there, name)
ODD_DOTS: dict[str, tuple[int, dict[str, int], bytes]] = {
    "dot of type 0": (DOT, {"file_type": 0}, b"."),
    "dotdot of type 0": (DOTDOT, {"file_type": 0}, b".."),
    "dot names another directory": (DOT, {"inode": 2}, b"."),
    "dot is unused": (DOT, {"inode": 0}, b"."),
    "dotdot is unused": (DOTDOT, {"inode": 0}, b".."),
    "dot reaches over dotdot": (DOT, {"rec_len": 24}, b"."),
    "dot is called otherwise": (DOT, {}, b"x"),
    "dotdot is called otherwise": (DOTDOT, {}, b"xy"),
    "two dots": (DOTDOT, {"name_len": 1}, b".\0"),
    "no name": (DOT, {"name_len": 0}, b"."),
}


@pytest.mark.parametrize("what", ODD_DOTS)
def test_odd_dots(make_image: ImageMaker, what: str) -> None:
    """Entries are listed or the directory is named as damaged; nothing else of the image suffers."""
    image = make_image.excuse(make_image("8M", "-b", "1024", "-O", "^metadata_csum,^has_journal"))
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        fs.mkdir("/d/sub")
        fs.write_bytes("/d/file", b"x")
        fs.write_bytes("/other", b"y")
    pblk = int(debugfs(image, "blocks /d"))
    raw = bytearray(image.read_bytes())
    offset, fields, name_there = ODD_DOTS[what]
    at = pblk * KIB + offset
    DIR_ENTRY_2.put(raw, at, **fields)
    raw[at + 8 : at + 8 + len(name_there)] = name_there
    image.write_bytes(raw)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        vfs = fs.vfs
        ino = fs.stat("/d").ino
        if what == "no name":
            with pytest.raises(Corrupt, match="name"):
                fs.listdir("/d")
        else:
            assert {"sub", "file"} <= set(fs.listdir("/d"))
            assert fs.read_bytes("/d/file") == b"x"
            fs.write_bytes("/d/new", b"new")
            fs.unlink("/d/new")
            fs.unlink("/d/file")
            fs.rmdir("/d/sub")
        for name in (b".", b".."):
            try:
                vfs.lookup(ino, name)
            except FsError as exc:
                assert isinstance(exc, Corrupt) and "\n" not in str(exc)
        for change in (fs.rmdir, lambda path: fs.rename(path, "/e")):
            try:
                change("/d")
            except FsError as exc:
                assert "\n" not in str(exc)
        assert fs.read_bytes("/other") == b"y"
    with py4fs.open_image(image, options=OPTIONS) as fs:
        assert fs.read_bytes("/other") == b"y"


def test_a_file_system_of_the_smallest_kind(make_image: ImageMaker, kernel_mount: KernelMount, tmp_path: Path) -> None:
    """As few blocks and inodes as mke2fs makes."""
    image = make_image("64K", "-t", "ext2", "-b", "1024", "-N", "16")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.write_bytes("/f", b"x" * 3000)
        assert fs.statvfs().blocks < 64
    with kernel_mount(image, "ro") as root:
        assert (root / "f").read_bytes() == b"x" * 3000
