"""Attributes in real images: the same bytes, sharing and free counts as the kernel's."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from py4fs.errors import NoSpace
from py4fs.ext4 import acl
from py4fs.ext4.acl import AclEnt
from py4fs.ext4.layout.xattr import XATTR_HEADER
from py4fs.ext4.namespace import Owner
from py4fs.ext4.volume import Volume
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs, superblock
from tests.support.volumes import open_volume

ROOT = Owner(0, 0)
FILES = 6
Step = tuple[int, bytes, bytes | None]

ACLS = [
    acl.to_xattr((AclEnt(1, 6), AclEnt(2, 7, 1000), AclEnt(4, 4), AclEnt(16, 7), AclEnt(32, 0))),
    acl.to_xattr((AclEnt(1, 6), AclEnt(4, 4), AclEnt(8, 7, 70000), AclEnt(16, 7), AclEnt(32, 0))),
]


def random_steps(rng: random.Random, count: int, block_size: int) -> list[Step]:
    """Few names and values, so that attributes are replaced, move and become identical."""
    names = [b"user.a", b"user.long" * 6, b"trusted.t", b"security.s", b"user.b", b"user.\xff\xfe"]
    sizes = [0, 1, 4, 30, 40, 77, 200, block_size // 2, block_size - 80, block_size]
    steps: list[Step] = []
    for _ in range(count):
        which = rng.randrange(FILES)
        if rng.random() < 0.1:
            steps.append((which, acl.NAME_ACCESS, rng.choice([None, *ACLS])))
        else:
            size = rng.choice(sizes)
            value = rng.choice([None, bytes([rng.randrange(250, 253)]) * size, b"v" * size])
            steps.append((which, rng.choice(names), value))
    return steps


def by_kernel(mnt: Path, steps: list[Step]) -> list[bool]:
    """Whether each step succeeded."""
    done = []
    for which, name, value in steps:
        path = mnt / f"f{which}"
        try:
            if value is None:
                os.removexattr(path, name)
            else:
                os.setxattr(path, name, value)
            done.append(True)
        except OSError:
            done.append(False)
    return done


def by_us(volume: Volume, steps: list[Step]) -> list[bool]:
    done = []
    root = volume.inodes.get(2)
    for which, name, value in steps:
        inode = volume.namespace.get(root, b"f%d" % which)
        store = volume.xattrs
        try:
            with volume.operation(64) as tx:
                if acl.xattr_kind(name) is not None:
                    store.set_acl(tx, inode, None if value is None else acl.from_xattr(value), default=False)
                elif value is None:
                    store.remove(tx, inode, name)
                else:
                    store.set(tx, inode, name, value)
            done.append(True)
        except OSError:
            done.append(False)
    return done


def state(volume: Volume) -> tuple[object, ...]:
    """Bytes in inodes and blocks (not checksums), who shares what, i_blocks, free blocks."""
    root = volume.inodes.get(2)
    files = []
    blocks: dict[int, tuple[int, bytes]] = {}
    for which in range(FILES):
        inode = volume.namespace.get(root, b"f%d" % which)
        number, raw = 0, b""
        if inode.file_acl:
            buffer = bytearray(volume.buffers.read(inode.file_acl))
            XATTR_HEADER.put(buffer, 0, h_checksum=0)
            number, raw = blocks.setdefault(inode.file_acl, (len(blocks) + 1, bytes(buffer)))
        files.append((inode.ibody, number, raw, inode.blocks, volume.xattrs.list(inode)))
    return (*files, volume.superblock.free_blocks)


SHAPES = {
    "1k": ["-b", "1024"],
    "4k": ["-b", "4096"],
    "small_inodes": ["-b", "1024", "-I", "128"],
    "large_inodes": ["-b", "2048", "-I", "512"],
    "no_csum": ["-b", "1024", "-O", "^metadata_csum"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bytes_as_the_kernel(
    shape: str, make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    ours = make_image("16M", *SHAPES[shape])
    with kernel_mount(ours) as mnt:
        for which in range(FILES):
            (mnt / f"f{which}").touch()
    theirs = make_image.copy(ours, "theirs.img")
    block_size = int(SHAPES[shape][1])
    for round_ in range(3):
        steps = random_steps(rng, 150, block_size)
        with kernel_mount(theirs) as mnt:
            expected = by_kernel(mnt, steps)
        with open_volume(ours) as volume:
            got = by_us(volume, steps)
        # removing an ACL that is not there succeeds or not, as the kernel's version has it
        for (_, name, value), one, other in zip(steps, got, expected, strict=True):
            assert one == other or (name == acl.NAME_ACCESS and value is None)
        assert False in got and True in got
        with open_volume(ours, readonly=True) as volume:
            mine = state(volume)
        with open_volume(theirs, readonly=True) as volume:
            assert mine == state(volume), f"round {round_}"
    with kernel_mount(ours, "ro") as mnt:
        values = [attributes(mnt / f"f{which}") for which in range(FILES)]
    with open_volume(ours, readonly=True) as volume:
        root = volume.inodes.get(2)
        for which in range(FILES):
            inode = volume.namespace.get(root, b"f%d" % which)
            found = {name: volume.xattrs.get(inode, name) for name in volume.xattrs.list(inode)}
            assert found == values[which]


def attributes(path: Path) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}


def test_debugfs_reads_what_was_written(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        root = volume.inodes.get(2)
        with volume.operation(64) as tx:
            inode = volume.namespace.create(tx, root, b"f", 0o100644, ROOT)
        with volume.operation(64) as tx:
            volume.xattrs.set(tx, inode, b"user.small", b"in the inode")
            volume.xattrs.set(tx, inode, b"user.large", b"x" * 500)
            with pytest.raises(NoSpace):
                volume.xattrs.set(tx, inode, b"user.huge", b"x" * 5000)
    listing = debugfs(image, "ea_list /f")
    assert 'user.small (12) = "in the inode"' in listing and "user.large (500)" in listing


@pytest.mark.parametrize("value", [b"1", b"x" * 500])
def test_the_first_attribute_turns_the_feature_on(value: bytes, make_image: ImageMaker) -> None:
    image = make_image("16M", "-O", "^ext_attr")
    with open_volume(image) as volume:
        root = volume.inodes.get(2)
        with pytest.raises(KeyboardInterrupt), volume.operation(64) as tx:
            volume.xattrs.set(tx, root, b"user.a", value)
            raise KeyboardInterrupt
        volume.commit()
        assert "ext_attr" not in superblock(image)["Filesystem features"]
        with volume.operation(64) as tx:
            volume.xattrs.set(tx, root, b"user.a", value)
    assert "ext_attr" in superblock(image)["Filesystem features"]


def test_removing_a_file_gives_its_block_back(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        root = volume.inodes.get(2)
        free = volume.superblock.free_blocks
        for name in (b"a", b"b"):
            with volume.operation(64) as tx:
                inode = volume.namespace.create(tx, root, name, 0o100644, ROOT)
                volume.xattrs.set(tx, inode, b"user.large", b"x" * 500)
        assert volume.superblock.free_blocks == free - 1, "shared"
        for name in (b"a", b"b"):
            with volume.operation(64) as tx:
                inode = volume.namespace.unlink(tx, root, name)
            volume.reclaim.evict(inode)
        assert volume.superblock.free_blocks == free
