"""Files with a Merkle tree, made by hand as the kernel's documentation of fs-verity has it."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import pytest

import py4fs
from images.content import pattern
from py4fs.cli import options
from py4fs.errors import BadChecksum, Corrupt, FsError, NotPermitted
from py4fs.ext4.layout.inode import EXT4_VERITY_FL
from tests.support.image import ImageMaker

ALGORITHMS = {"sha256": 1, "sha512": 2}


def merkle(data: bytes, block: int, name: str, salt: bytes) -> tuple[bytes, bytes]:
    """(root hash, the levels of the tree from the root on)."""
    padded = salt.ljust(-(-len(salt) // hashlib.new(name).block_size) * hashlib.new(name).block_size, b"\0")
    size = hashlib.new(name).digest_size
    if not data:
        return bytes(size), b""
    tree, level = b"", data
    while True:
        blocks = [level[at : at + block].ljust(block, b"\0") for at in range(0, len(level), block)]
        hashes = [hashlib.new(name, padded + piece).digest() for piece in blocks]
        if len(hashes) == 1:
            return hashes[0], tree
        per_block = block // size
        groups = [hashes[at : at + per_block] for at in range(0, len(hashes), per_block)]
        level = b"".join(b"".join(group).ljust(block, b"\0") for group in groups)
        tree = level + tree


def seal(
    fs: py4fs.Filesystem, path: str, data: bytes, *, block: int = 4096, name: str = "sha256", salt: bytes = b""
) -> int:
    """Write a file and its tree, descriptor and flag; returns the byte of the file where the tree begins."""
    fs.write_bytes(path, data)
    root, tree = merkle(data, block, name, salt)
    size = fs.volume.geometry.block_size
    start = -(-len(data) // 65536) * 65536
    log = block.bit_length() - 1
    head = struct.pack("<BBBBIQ", 1, ALGORITHMS[name], log, len(salt), 0, len(data))
    descriptor = head + root.ljust(64, b"\0") + salt.ljust(32, b"\0") + bytes(144)
    behind = tree.ljust(-(-len(tree) // size) * size, b"\0") + descriptor
    behind += bytes(-(len(behind) + 4) % size) + struct.pack("<I", len(descriptor))
    inode = fs.volume.inodes.get(fs.stat(path).ino)
    with fs.volume.operation(200) as tx:
        runs = fs.volume.files.allocate(tx, inode, start // size, len(behind) // size, unwritten=False)
        tx.touch(inode)
        inode.flags |= EXT4_VERITY_FL
    for run in runs:
        at = run.lblk * size - start
        fs.volume.device.write(run.pblk * size, behind[at : at + run.count * size])
    fs.volume.note_data_written()
    return start


@pytest.fixture(params=["-b1024", "-b4096"])
def image(request: pytest.FixtureRequest, make_image: ImageMaker) -> Path:
    return make_image("32M", request.param, "-O", "verity")


CASES = [
    (0, 4096, "sha256", b""),
    (1, 4096, "sha256", b""),
    (4096, 4096, "sha256", b"salt"),
    (4097, 1024, "sha256", b""),
    (600_000, 1024, "sha256", b"s" * 32),
    (3_000_000, 4096, "sha512", b"pepper"),
]


@pytest.mark.parametrize(("size", "block", "name", "salt"), CASES)
def test_read(image: Path, size: int, block: int, name: str, salt: bytes, rng: random.Random) -> None:
    data = pattern("verity", size)
    with py4fs.open_image(image) as fs:
        seal(fs, "/f", data, block=block, name=name, salt=salt)
        assert fs.read_bytes("/f") == data and fs.stat("/f").size == size
    with py4fs.open_image(image, readonly=True) as fs, fs.open("/f") as file:
        for _ in range(20):
            at = rng.randrange(size + 1)
            file.seek(at)
            assert file.read(5000) == data[at : at + 5000]


def test_it_cannot_be_changed_but_deleted(image: Path) -> None:
    with py4fs.open_image(image) as fs:
        seal(fs, "/f", pattern("v", 100_000))
        for step in (lambda: fs.write_bytes("/f", b""), lambda: fs.truncate("/f", 5), lambda: fs.open("/f", "r+b")):
            with pytest.raises(NotPermitted):
                step()
        fs.chmod("/f", 0o600)
        fs.setxattr("/f", "user.a", b"1", 0)
        fs.rename("/f", "/g")
        free = fs.statvfs().bfree
        fs.unlink("/g")
        fs.sync()
        assert fs.statvfs().bfree > free + 100_000 // fs.volume.geometry.block_size


def flip(image: Path, path: str, position: int) -> None:
    with py4fs.open_image(image, readonly=True) as fs:
        size = fs.volume.geometry.block_size
        place = fs.volume.files.block_of(fs.volume.inodes.get(fs.stat(path).ino), position // size)
    with image.open("r+b") as file:
        file.seek(place * size + position % size)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("where", ["data", "leaf", "root"])
def test_damage_is_found_where_it_is(image: Path, where: str) -> None:
    data = pattern("verity", 600_000)
    with py4fs.open_image(image) as fs:
        start = seal(fs, "/f", data, block=1024)
    flip(image, "/f", {"data": 300_000, "leaf": start + 1024 * 3 + 17, "root": start + 5}[where])
    with py4fs.open_image(image, readonly=True) as fs:
        with pytest.raises(BadChecksum, match="verity"):
            fs.read_bytes("/f")
        with fs.open("/f") as file:
            file.seek(500_000)
            if where == "root":
                with pytest.raises(BadChecksum):
                    file.read(1000)
            else:
                assert file.read(1000) == data[500_000:501_000]
    unverified = py4fs.OpenOptions(readonly=True, verify_data=False)
    with py4fs.open_image(image, options=unverified) as fs:
        assert (fs.read_bytes("/f") == data) == (where != "data")


@pytest.mark.parametrize("number", range(30))
def test_any_descriptor_gives_an_answer(make_image: ImageMaker, number: int) -> None:
    image = make_image.excuse(make_image("16M", "-b", "1024", "-O", "verity"))
    rng = random.Random(number)
    with py4fs.open_image(image) as fs:
        start = seal(fs, "/f", pattern("v", 100_000), block=1024)
    descriptor = start + 5 * 1024  # behind four leaves and a root
    for _ in range(rng.randrange(1, 6)):
        flip(image, "/f", descriptor + rng.choice([0, 1, 2, 3, 8, 9, 20, 300, 1020, 1021, 1023]))
    with py4fs.open_image(image, readonly=True) as fs:
        try:
            assert fs.read_bytes("/f") == pattern("v", 100_000)
        except FsError as exc:
            assert "\n" not in str(exc)


def test_a_flag_without_a_tree(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M", "-O", "verity"))
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/f", b"data")
        inode = fs.volume.inodes.get(fs.stat("/f").ino)
        with fs.volume.operation(4) as tx:
            tx.touch(inode)
            inode.flags |= EXT4_VERITY_FL
        with pytest.raises(Corrupt, match="verity descriptor size"):
            fs.read_bytes("/f")


def test_option() -> None:
    assert options.parse([]).verify == "merkle" and options.parse(["verify=none"]).verify == "none"
