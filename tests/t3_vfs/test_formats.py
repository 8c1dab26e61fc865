"""Formats that need more than a run of random operations: large blocks, large numbers, units, times."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import py4fs
from images.content import pattern
from images.tools import mke2fs, run
from py4fs.ext4.layout.inode import EXT4_HUGE_FILE_FL
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.records import MapType
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs, e2fsck_clean, superblock
from tests.support.tree import snapshot
from tests.support.worlds import ApiWorld, KernelWorld, outcome
from tests.t3_vfs.test_oracle import Generator

OPTIONS = py4fs.OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))


# -- blocks larger than a page, which kernels before 6.19 do not mount ------------------------------------------


def comparable(op: str) -> bool:
    """What does not depend on the size of blocks."""
    return op not in ("fallocate", "setxattr", "removexattr")


@pytest.mark.parametrize("block", [8192, 16384, 32768, 65536])
def test_large_blocks(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, tmp_path: Path, block: int
) -> None:
    """The same operations on an image with small blocks through the kernel; debugfs reads what was written here."""
    image = make_image("256M", "-b", str(block))
    other = make_image("64M", "-b", "4096")
    generator = Generator(rng)
    with kernel_mount(other) as root:
        kernel, ours = KernelWorld(root), ApiWorld(image)
        try:
            for number in range(400):
                op, args = generator.next()
                if not comparable(op):
                    continue
                results = [outcome(getattr(world, op), *args) for world in (kernel, ours) if world.begin() is None]
                assert results[0] == results[1], f"operation {number}: {op}{args}"
            fill_directory(ours.fs)
        finally:
            ours.fs.close()
        want = {path: (n.type, n.size, n.target, n.digest) for path, n in snapshot(root).items() if n.type != "socket"}
    e2fsck_clean(image)
    copied = tmp_path / "copied"
    copied.mkdir()
    run(["debugfs", "-R", f"rdump / {copied}", image])
    found = {path: (n.type, n.size, n.target, n.digest) for path, n in snapshot(copied).items()}
    many = {path: node for path, node in found.items() if path.startswith(b"many")}
    assert len(many) == 1 + 1500 and all(node[1] == 5 for path, node in many.items() if path != b"many")
    for path, node in want.items():
        if path and node[0] in ("file", "symlink"):
            assert found[path] == node, path


def fill_directory(fs: py4fs.Filesystem) -> None:
    """Enough long names that a directory of the largest blocks gets an index."""
    fs.mkdir("/many")
    for number in range(2000):
        fs.write_bytes(f"/many/{number:05}" + "-long" * 40, b"small")
    for number in range(0, 2000, 4):
        fs.unlink(f"/many/{number:05}" + "-long" * 40)


@pytest.mark.parametrize("block", [8192, 65536])
def test_large_blocks_in_all_forms(make_image: ImageMaker, block: int) -> None:
    """Attributes, ranges, small files in large inodes, clusters."""
    features = ("-O", "bigalloc,inline_data,ea_inode", "-C", str(8 * block))
    image = make_image("512M", "-b", str(block), "-I", "1024", *features)
    values = {f"user.{size}": pattern(str(size), size) for size in (10, 500, 5000, 8000, 60_000, 65_536)}
    with py4fs.open_image(image, options=OPTIONS) as fs:
        for path in ("/inline", "/blocks"):
            with fs.open(path, "wb") as file:
                file.write(b"x" * 400)
                if path == "/blocks":
                    file.seek(10 * block)
                    file.write(b"y" * block)
                    file.fallocate(3, 10 * block, 100)
                    file.fallocate(0x10, 3 * block, 4 * block)
                    file.fallocate(0, 0, 20 * block)
            for name, value in values.items():
                fs.setxattr(path, name, value)
        fs.symlink("t" * 4095, "/link")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        for path in ("/inline", "/blocks"):
            assert {name: fs.getxattr(path, name) for name in values} == values
            assert fs.read_bytes(path)[:400] == b"x" * 400
        assert fs.read_bytes("/blocks")[10 * block : 10 * block + 101] == bytes(100) + b"y"
        assert len(fs.readlink("/link")) == 4095
        fs.unlink("/blocks")


# -- block numbers beyond 32 bits ------------------------------------------------------------------------------


@pytest.fixture
def huge(make_image: ImageMaker) -> Iterator[Path]:
    """A file system of 17 TiB on tmpfs."""
    directory = Path("/dev/shm")
    if not directory.is_dir() or shutil.disk_usage(directory).free < 1 << 30:
        pytest.skip("17 TiB need a tmpfs at /dev/shm with 1 GiB free")
    path = directory / f"py4fs-huge-{os.getpid()}.img"
    try:
        options = ("-b", "4096", "-i", str(1 << 26), "-O", "64bit,^has_journal,^resize_inode", "-m", "0")
        mke2fs(path, 17 << 40, *options, "-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1")
        yield path
        e2fsck_clean(path)
    finally:
        path.unlink(missing_ok=True)


def test_block_numbers_beyond_32_bits(huge: Path, kernel_mount: KernelMount) -> None:
    data = {}
    with py4fs.open_image(huge, options=OPTIONS) as fs:
        geo = fs.volume.geometry
        assert geo.blocks_count > 1 << 32
        beyond = [g for g in range(geo.groups) if geo.group_first_block(g) > 1 << 32]
        for number in range(60):
            fs.mkdir(f"/{number}")
        high = [n for n in range(60) if (fs.stat(f"/{n}").ino - 1) // geo.inodes_per_group in beyond]
        assert high, "directories are spread over all groups"
        for number in high:
            for name in range(20):
                path = f"/{number}/{name}"
                data[path] = pattern(path, 9000 * name)
                fs.write_bytes(path, data[path])
                fs.setxattr(path, "user.block", pattern(path + "x", 3000))
            with fs.open(f"/{number}/comb", "wb") as file:
                for at in range(0, 2000 * 8192, 8192):
                    file.seek(at)
                    file.write(b"x")
            for name in range(300):
                fs.write_bytes(f"/{number}/{'n' * 200}{name}", b"")
        runs = [m for path in data for m in fs.mappings(path) if m.type == MapType.MAPPED]
        assert runs and all(m.addr // 4096 > 1 << 32 for m in runs)
    with kernel_mount(huge) as root:
        for path, wanted in data.items():
            assert (root / path[1:]).read_bytes() == wanted
            assert os.getxattr(root / path[1:], "user.block") == pattern(path + "x", 3000)
        (root / str(high[0]) / "kernel").write_bytes(pattern("kernel", 100_000))
    with py4fs.open_image(huge, options=OPTIONS) as fs:
        assert fs.read_bytes(f"/{high[0]}/kernel") == pattern("kernel", 100_000)
        for path, wanted in data.items():
            assert fs.read_bytes(path) == wanted
            fs.unlink(path)
        fs.unlink(f"/{high[-1]}/comb")


# -- units and features that come by themselves ----------------------------------------------------------------


def test_i_blocks_in_blocks_of_the_file_system(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """The flag HUGE_FILE, which nothing sets below 128 PiB: read as by the kernel, and dropped at the next change."""
    image = make_image("32M", "-b", "4096")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.write_bytes("/f", bytes(50_000))
        flags = fs.stat("/f").flags
        assert fs.stat("/f").blocks == 13 * 8
    run(["debugfs", "-w", "-R", f"sif /f flags {flags | EXT4_HUGE_FILE_FL:#x}", image])
    run(["debugfs", "-w", "-R", "sif /f blocks 13", image])
    e2fsck_clean(image)
    with kernel_mount(image, "ro") as root:
        assert (root / "f").stat().st_blocks == 13 * 8
    with py4fs.open_image(image, options=OPTIONS) as fs:
        assert fs.stat("/f").blocks == 13 * 8 and fs.stat("/f").flags & EXT4_HUGE_FILE_FL
        fs.chmod("/f", 0o600)
    assert f"Flags: {flags:#x}" in debugfs(image, "stat /f") and "Blockcount: 104" in debugfs(image, "stat /f")


def test_large_file_comes_with_the_first_one(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("32M", "-t", "ext2", "-r", "0", "-I", "128", "-O", "none")
    assert "large_file" not in superblock(image)["Filesystem features"]
    with py4fs.open_image(image, options=OPTIONS) as fs, fs.open("/f", "wb") as file:
        file.seek(3 << 30)
        file.write(b"end")
    assert "large_file" in superblock(image)["Filesystem features"]
    assert superblock(image)["Filesystem revision #"].startswith("1")
    e2fsck_clean(image)
    with kernel_mount(image, "ro") as root:
        assert (root / "f").stat().st_size == (3 << 30) + 3


def test_an_attribute_block_of_1024_files(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """h_refcount goes up to 1024; the file after that has another block."""
    image = make_image("32M", "-b", "1024", "-I", "128", "-N", "2048")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        free = fs.statvfs().bfree
        for number in range(1030):
            fs.write_bytes(f"/{number}", b"")
            fs.setxattr(f"/{number}", "user.a", b"the same")
        directory = fs.stat("/").blocks // 2
        blocks = {fs.vfs._get(fs.stat(f"/{number}").ino).file_acl for number in range(1030)}
        assert len(blocks) == 2
    with kernel_mount(image) as root:
        assert all(os.getxattr(root / str(n), "user.a") == b"the same" for n in range(0, 1030, 50))
        for number in range(0, 1030, 2):
            (root / str(number)).unlink()
    with py4fs.open_image(image, options=OPTIONS) as fs:
        for number in range(1, 1030, 2):
            fs.removexattr(f"/{number}", "user.a")
        fs.sync()
        assert free - fs.statvfs().bfree <= directory, "the blocks of attributes are free again"


# -- times -------------------------------------------------------------------------------------------------------

BORDERS = (-(1 << 31), -1, 0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 33) + 5, (3 << 32) - 1, 3 << 32)
LAST = (1 << 34) - (1 << 31) - 1
SECONDS = sorted({second + off for second in BORDERS for off in (-1, 0, 1)} | {LAST, 1 << 34, 1 << 36})


@pytest.mark.parametrize("size", [128, 256])
def test_times_of_all_epochs(make_image: ImageMaker, kernel_mount: KernelMount, size: int) -> None:
    """Before 1970, after 2038, up to 2446, and clamped beyond: set by either, read the same by both."""
    image = make_image("16M", "-I", str(size))
    wanted = {}
    with kernel_mount(image) as root:
        for second in SECONDS:
            path = root / f"kernel{second}"
            path.write_bytes(b"")
            os.utime(path, ns=(second * 10**9 + 123456789, second * 10**9 + 987654321))
            wanted[second] = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with py4fs.open_image(image, options=OPTIONS) as fs:
        for second in SECONDS:
            attr = fs.stat(f"/kernel{second}")
            fs.write_bytes(f"/ours{second}", b"")
            fs.utime(f"/ours{second}", atime=second * 10**9 + 123456789, mtime=second * 10**9 + 987654321)
            assert (attr.atime, attr.mtime) == wanted[second], second
            ours = fs.stat(f"/ours{second}")
            assert (ours.atime, ours.mtime) == wanted[second], second
    with kernel_mount(image, "ro,noatime") as root:
        for second in SECONDS:
            stat = (root / f"ours{second}").stat()
            assert (stat.st_atime_ns, stat.st_mtime_ns) == wanted[second], second
    shown = subprocess.run(["debugfs", "-R", "stat /ours-1", image], capture_output=True, text=True, check=True).stdout
    assert "mtime: 0xffffffff" in shown
