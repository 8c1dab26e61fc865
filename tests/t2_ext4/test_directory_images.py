"""Directories in real images: what the kernel wrote is read, and what is written equals what the kernel writes."""

# Names are bytes, of any kind:
# ruff: noqa: PTH102, PTH108, PTH110, PTH116, PTH208

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from py4fs.errors import NotFound
from py4fs.ext4.directory import Directory
from py4fs.ext4.dirhash import dirhash
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_INDEX_FL
from py4fs.ext4.namespace import Owner
from py4fs.ext4.volume import Volume
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs
from tests.support.volumes import open_volume

ALGORITHMS = ["legacy", "half_md4", "tea"]
ROOT = Owner(0, 0)


def tool(*args: str | Path) -> None:
    subprocess.run(args, check=True, capture_output=True)


def make(make_image: ImageMaker, algorithm: str, unsigned: bool, *args: str) -> Path:
    image = make_image("24M", "-E", "hash_seed=12345678-1234-1234-1234-123456789abc,lazy_itable_init=0", *args)
    tool("tune2fs", "-E", f"hash_alg={algorithm}", image)
    tool("debugfs", "-w", "-R", f"set_super_value flags {2 if unsigned else 1}", image)
    return image


def random_names(rng: random.Random, count: int, longest: int = 255) -> list[bytes]:
    """Names of all lengths and all bytes."""
    allowed = [c for c in range(1, 256) if c != 0x2F]
    names: dict[bytes, None] = {}
    while len(names) < count:
        length = rng.choice([rng.randrange(1, 20), rng.randrange(1, longest + 1), longest])
        name = bytes(rng.choices(allowed, k=length))
        if name not in (b".", b".."):
            names[name] = None
    return list(names)


def directory(volume: Volume, path: str) -> tuple[Inode, Directory]:
    inode = volume.inodes.get(2)
    for part in path.encode().split(b"/"):
        inode = volume.namespace.get(inode, part)
    return inode, volume.namespace.directory(inode)


def layout(volume: Volume, path: str) -> list[object]:
    """Everything a directory's blocks say, but for inode numbers and checksums."""
    inode, found = directory(volume, path)
    blocks: list[object] = [inode.size, inode.blocks, bool(inode.flags & EXT4_INDEX_FL), inode.nlink]
    indexes = set()
    if found.indexed:
        root = found.tree.root()
        todo = [(root, root.levels)]
        blocks.append((root.hash_version, root.levels))
        while todo:
            block, levels = todo.pop()
            blocks.append((block.lblk, block.hashes, block.blocks))
            indexes.add(block.lblk)
            if levels:
                todo += [(found.tree.index_block(lblk), levels - 1) for lblk in block.blocks]
    for lblk in range(found.nblocks):
        if lblk not in indexes:
            blocks.append([(e.offset, e.name, e.ftype, e.size) for e in found.scan_block(lblk).listing()])
    return blocks


@pytest.mark.parametrize("unsigned", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reading_what_the_kernel_wrote(
    algorithm: str, unsigned: bool, make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    image = make(make_image, algorithm, unsigned, "-b", "1024", "-N", "4096")
    names = random_names(rng, 1200)
    with kernel_mount(image) as mnt:
        base = os.fsencode(mnt) + b"/d/"
        os.mkdir(base)
        for name in names:
            os.close(os.open(base + name, os.O_CREAT, 0o600))
        for name in names[::5]:
            os.unlink(base + name)
        inos = {name: os.stat(base + name).st_ino for name in os.listdir(base)}
    with open_volume(image, readonly=True) as volume:
        inode, found = directory(volume, "d")
        assert inode.flags & EXT4_INDEX_FL
        assert all(found.lookup(name) == (ino, 1) for name, ino in inos.items())
        assert all(found.lookup(name) is None for name in names[::5])
        entries = {e.name: e.ino for e in found.entries() if e.name not in (b".", b"..")}
        assert entries == inos
        version = ALGORITHMS.index(algorithm) + 3 * unsigned
        assert found.tree.hash_of(names[0]) == dirhash(names[0], version, found.hash_seed)[0]


@pytest.mark.parametrize("unsigned", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_writing_the_same_as_the_kernel(
    algorithm: str, unsigned: bool, make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    """The same links, made and removed in the same order: the same entries in the same places of the same blocks."""
    ours = make(make_image, algorithm, unsigned, "-b", "1024")
    steps: list[tuple[str, bytes]] = []
    there: list[bytes] = []
    for name in random_names(rng, 1000):
        steps.append(("add", name))
        there.append(name)
        if rng.random() < 0.25:
            steps.append(("remove", there.pop(rng.randrange(len(there)))))
    compare_with_the_kernel(make_image, kernel_mount, ours, steps)
    assert "Root node dump" in debugfs(ours, "htree_dump /d")


def test_two_levels_of_index_as_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    """Names so long that 1 KiB blocks hold three, and the index splits nodes."""
    ours = make(make_image, "half_md4", False, "-b", "1024")
    names = [b"%x" % number + bytes(rng.choices(b"abcdef", k=240)) for number in range(2000)]
    compare_with_the_kernel(make_image, kernel_mount, ours, [("add", name) for name in names])
    with open_volume(ours, readonly=True) as volume:
        root = directory(volume, "d")[1].tree.root()
        assert root.levels == 1 and len(root.blocks) > 4


def compare_with_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, ours: Path, steps: list[tuple[str, bytes]]
) -> None:
    """Do the steps ("add" or "remove" a link) on a copy through the kernel and on the image through py4fs."""
    theirs = make_image.copy(ours, "theirs.img")
    there: dict[bytes, None] = {}
    with kernel_mount(theirs) as mnt:
        base = os.fsencode(mnt) + b"/d/"
        os.mkdir(base)
        target = os.fsencode(mnt) + b"/file"
        os.close(os.open(target, os.O_CREAT, 0o600))
        for what, name in steps:
            if what == "add":
                os.link(target, base + name)
                there[name] = None
            else:
                os.unlink(base + name)
                del there[name]
    with open_volume(ours) as volume:
        namespace = volume.namespace
        root = volume.inodes.get(2)
        with volume.operation(64) as tx:
            parent = namespace.create(tx, root, b"d", 0o40755, ROOT)
        with volume.operation(64) as tx:
            file = namespace.create(tx, root, b"file", 0o100600, ROOT)
        for number, (what, name) in enumerate(steps):
            with volume.operation(64) as tx:
                if what == "add":
                    namespace.link(tx, file, parent, name)
                else:
                    namespace.unlink(tx, parent, name)
            if number % 70 == 69:
                volume.commit()
    with open_volume(ours, readonly=True) as one, open_volume(theirs, readonly=True) as other:
        assert layout(one, "d") == layout(other, "d")
        listed = {e.name for e in directory(one, "d")[1].entries()}
        assert listed == {b".", b"..", *there}
    with kernel_mount(ours, "ro") as mnt:
        base = os.fsencode(mnt) + b"/d/"
        assert sorted(os.listdir(base)) == sorted(there)
        assert len({os.stat(base + name).st_ino for name in there}) == 1


FEATURES = {
    "4k": ["-b", "4096"],
    "2k": ["-b", "2048"],
    "no_csum": ["-b", "1024", "-O", "^metadata_csum"],
    "no_filetype": ["-b", "1024", "-O", "^filetype"],
    "no_index": ["-b", "1024", "-O", "^dir_index"],
    "csum_seed": ["-b", "1024", "-O", "metadata_csum_seed"],
}


@pytest.mark.parametrize("shape", FEATURES)
def test_forms_of_directories(
    shape: str, make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random
) -> None:
    ours = make_image("32M", *FEATURES[shape])
    names = random_names(rng, 500)
    compare_with_the_kernel(make_image, kernel_mount, ours, [("add", name) for name in names])
    with kernel_mount(ours) as mnt:
        base = os.fsencode(mnt) + b"/d/"
        assert sorted(os.listdir(base)) == sorted(names)
        for name in names[:100]:
            os.unlink(base + name)
    with open_volume(ours) as volume:
        inode, found = directory(volume, "d")
        for name in names:
            with volume.operation(64) as tx:
                if name in names[:100]:
                    with pytest.raises(NotFound):
                        volume.namespace.unlink(tx, inode, name)
                else:
                    volume.namespace.unlink(tx, inode, name)
        assert found.is_empty()


def long_name(letter: bytes, number: int) -> bytes:
    return letter * 200 + b"%06x" % number


COLLIDING = [long_name(b"c", number) for number in (0x0E39F5, 0x147FAC, 0x147FCA)]
"""Three names with one legacy hash (which has no seed)."""


def test_real_collisions_over_two_leaves(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """Four names fill a block of 1 KiB; the fifth splits it, by size, among the three that collide."""
    value = dirhash(COLLIDING[0], 0, (0, 0, 0, 0))[0]
    assert all(dirhash(name, 0, (0, 0, 0, 0))[0] == value for name in COLLIDING)
    others = [long_name(b"n", number) for number in range(100)]
    lower = next(name for name in others if dirhash(name, 0, (0, 0, 0, 0))[0] < value)
    fifth = next(name for name in others if name != lower)
    image = make(make_image, "legacy", False, "-b", "1024")
    names = [*COLLIDING, lower, fifth]
    with open_volume(image) as volume:
        root = volume.inodes.get(2)
        with volume.operation(64) as tx:
            parent = volume.namespace.create(tx, root, b"d", 0o40755, ROOT)
        for name in names:
            with volume.operation(64) as tx:
                volume.namespace.create(tx, parent, name, 0o100600, ROOT)
        found = volume.namespace.directory(parent)
        run = found.tree.run_from(value | 1)
        assert run is not None and run.low == value | 1, "the chain crosses a leaf"
        assert sorted(e.name for e in found.entries()) == sorted([b".", b"..", *names])
    with open_volume(image, readonly=True) as volume:
        assert all(directory(volume, "d")[1].lookup(name) for name in names)
    with kernel_mount(image) as mnt:
        base = os.fsencode(mnt) + b"/d/"
        assert all(os.path.exists(base + name) for name in names)
        assert sorted(os.listdir(base)) == sorted(names)
