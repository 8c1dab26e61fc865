"""Attributes' values in inodes of their own: shared, counted, gone with the last reference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import py4fs
from images.content import pattern
from images.tools import run
from py4fs.api import Filesystem
from py4fs.errors import Corrupt, NoSpace
from py4fs.ext4 import xattr_body
from py4fs.ext4.volume import VolumeOptions
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs
from tests.support.state import assert_same_tree, cool, tree_state

OPTIONS = py4fs.OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))


def value_inodes(image: Path, path: str) -> dict[bytes, int]:
    """Attribute name -> inode of its value, of what is in the inode (debugfs does not show it)."""
    with py4fs.open_image(image, readonly=True) as fs:
        attrs = xattr_body.attributes(fs.volume.inodes.get(fs.lstat(path).ino))
    return {attr.name: attr.inum for attr in attrs if attr.inum}


def free(fs: Filesystem) -> tuple[int, int]:
    return fs.statvfs().bfree, fs.statvfs().ffree


def test_one_inode_for_one_value_until_nobody_has_it(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("32M", "-b", "4096", "-O", "ea_inode")
    value = pattern("value", 50_000)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        before = free(fs)
        for number in range(5):
            fs.write_bytes(f"/{number}", b"")
            fs.setxattr(f"/{number}", "user.large", value)
        fs.setxattr("/0", "user.again", value)
        assert (before[0] - free(fs)[0], before[1] - free(fs)[1]) == (13, 5 + 1)
        cool(fs)
        assert all(fs.getxattr(f"/{number}", "user.large") == value for number in range(5))
    inodes = {ino for number in range(5) for ino in value_inodes(image, f"/{number}").values()}
    assert len(inodes) == 1
    with kernel_mount(image, "ro") as root:
        assert os.getxattr(root / "3", "user.large") == value == os.getxattr(root / "0", "user.again")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.removexattr("/0", "user.large")
        fs.setxattr("/1", "user.large", b"small")
        fs.setxattr("/2", "user.large", pattern("another", 50_000))
        fs.unlink("/3")
        assert fs.getxattr("/4", "user.large") == value == fs.getxattr("/0", "user.again")
        fs.unlink("/0")
        fs.unlink("/4")
        fs.unlink("/1")
        fs.unlink("/2")
        fs.sync()
        assert free(fs) == before


def test_a_file_with_more_values_than_one_operation_drops(make_image: ImageMaker) -> None:
    image = make_image("64M", "-b", "4096", "-I", "512", "-O", "ea_inode")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        before = free(fs)
        fs.mkdir("/d")
        for number in range(100):
            fs.setxattr("/d", f"user.{number}", pattern(f"{number}", 5000))
        assert fs.stat("/d").blocks == 8 * (1 + 1 + 200)
        for number in range(100):
            assert fs.getxattr("/d", f"user.{number}") == pattern(f"{number}", 5000)
        fs.rmdir("/d")
        fs.sync()
        assert free(fs) == before


@pytest.mark.parametrize("size", [3000, 65536])
def test_no_space_for_a_value_changes_nothing(make_image: ImageMaker, size: int) -> None:
    image = make_image("2M", "-b", "1024", "-m", "0", "-O", "ea_inode,^has_journal")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.write_bytes("/f", b"")
        fs.setxattr("/f", "user.a", pattern("first", 2000))
        with pytest.raises(NoSpace), fs.open("/filler", "wb") as file:
            while True:
                file.write(bytes(16 << 10))
        fs.volume.alloc.conversion_reserve = fs.volume.superblock.free_blocks
        before = tree_state(fs)
        for name in ("user.a", "user.b"):
            with pytest.raises(NoSpace):
                fs.setxattr("/f", name, pattern("second", size))
        assert_same_tree(before, tree_state(fs))


def test_values_are_verified_and_are_no_files(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M", "-b", "4096", "-O", "ea_inode,^metadata_csum"))
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.write_bytes("/f", b"")
        fs.setxattr("/f", "user.large", pattern("large", 10_000))
    (ino,) = value_inodes(image, "/f").values()
    run(["debugfs", "-w", "-R", f"link <{ino}> /stolen", image])
    block = int(debugfs(image, f"blocks <{ino}>").split()[1])
    raw = bytearray(image.read_bytes())
    raw[block * 4096 + 17] ^= 1
    image.write_bytes(raw)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        with pytest.raises(Corrupt, match="hash of attribute's value"):
            fs.getxattr("/f", "user.large")
        with pytest.raises(Corrupt, match="the value of an attribute"):
            fs.stat("/stolen")
    run(["debugfs", "-w", "-R", f"sif <{ino}> size 9999", image])
    with py4fs.open_image(image, options=OPTIONS) as fs, pytest.raises(Corrupt, match="9999 bytes"):
        fs.getxattr("/f", "user.large")
