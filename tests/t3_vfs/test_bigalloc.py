"""bigalloc: what is counted in clusters, and when a cluster is given back."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

import py4fs
from images.tools import run
from py4fs.api import Filesystem
from py4fs.errors import Corrupt, NoSpace
from py4fs.ext4.trim import free_runs
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.records import MapType
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, e2fsck_clean

OPTIONS = py4fs.OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
BLOCK, RATIO = 4096, 8
PUNCH = 3


@pytest.fixture
def image(make_image: ImageMaker) -> Path:
    return make_image("128M", "-b", str(BLOCK), "-O", "bigalloc", "-C", str(BLOCK * RATIO))


def clusters(fs: Filesystem, path: str) -> set[int]:
    """The device's clusters that a file's blocks are in."""
    found = set()
    for mapping in fs.mappings(path):
        if mapping.type in (MapType.MAPPED, MapType.UNWRITTEN):
            first, last = mapping.addr // BLOCK, (mapping.addr + mapping.length) // BLOCK - 1
            assert (first - mapping.offset // BLOCK) % RATIO == 0, "the same place in file and device clusters"
            found |= set(range(first // RATIO, last // RATIO + 1))
    return found


def test_a_cluster_goes_with_its_last_block(image: Path, rng: random.Random) -> None:
    with py4fs.open_image(image, options=OPTIONS) as fs:
        free = fs.statvfs().bfree
        for number in range(30):
            path = f"/{number}"
            blocks = rng.sample(range(40), 12)
            with fs.open(path, "wb") as file:
                for block in blocks:
                    file.seek(block * BLOCK)
                    file.write(b"x")
                touched = {block // RATIO for block in blocks}
                assert len(clusters(fs, path)) == len(touched)
                assert fs.stat(path).blocks % (RATIO * BLOCK // 512) == 0
                left = set(blocks)
                for block in rng.sample(blocks, 12):
                    file.fallocate(PUNCH, block * BLOCK, BLOCK)
                    left.discard(block)
                    assert len(clusters(fs, path)) == len({block // RATIO for block in left})
                assert fs.stat(path).blocks == 0
        for number in range(30):
            fs.unlink(f"/{number}")
        fs.sync()
        assert fs.statvfs().bfree == free


def test_unwritten_extents_and_ranges_cut_anywhere(image: Path, rng: random.Random) -> None:
    """fallocate, punch, truncate at all places of clusters; after each step the counts are those of the mappings."""
    with py4fs.open_image(image, options=OPTIONS) as fs, fs.open("/f", "wb") as file:
        for start, length in itertools.product((0, 1, 7, 8, 9), (1, 7, 8, 9, 17, 64)):
            file.fallocate(1, start * BLOCK, length * BLOCK)
            file.fallocate(PUNCH, rng.randrange(20) * BLOCK, rng.randrange(1, 20) * BLOCK)
            file.seek(rng.randrange(60) * BLOCK)
            file.write(bytes(rng.randrange(1, 3 * BLOCK)))
            file.truncate(rng.randrange(80) * BLOCK)
            nodes = len(fs.volume.files.extent_tree(fs.vfs._get(fs.stat("/f").ino)).node_blocks())
            assert fs.stat("/f").blocks == (len(clusters(fs, "/f")) + nodes) * RATIO * BLOCK // 512


def test_no_space_counts_clusters(make_image: ImageMaker) -> None:
    image = make_image("4M", "-b", "1024", "-O", "bigalloc,^has_journal", "-C", "65536", "-m", "0", "-N", "256")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        made = 0
        with pytest.raises(NoSpace):
            for made in range(100):
                fs.write_bytes(f"/{made}", b"x")
        assert 10 < made < 62
        left = fs.statvfs().bavail
        assert left < 64
        with fs.open("/0", "r+b") as file:
            file.seek(63 * 1024)
            file.write(b"in a cluster that it has already")
        for number in range(made + 1):
            if fs.exists(f"/{number}"):
                fs.unlink(f"/{number}")


def test_extents_out_of_place_are_named(image: Path, make_image: ImageMaker) -> None:
    make_image.excuse(image)
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.write_bytes("/f", bytes(3 * BLOCK))
    run(["debugfs", "-w", "-R", "sif /f block[5] 7777", image])
    with py4fs.open_image(image, options=OPTIONS) as fs:
        with pytest.raises(Corrupt, match="the same place in a cluster"), fs.open("/f", "r+b") as file:
            file.seek(5 * BLOCK)
            file.write(b"x")
        with pytest.raises(Corrupt, match="the same place in a cluster"):
            fs.truncate("/f", BLOCK)


@pytest.mark.parametrize("cluster", [2048, 262144, 1 << 20, 32 << 20])
def test_any_ratio(make_image: ImageMaker, cluster: int) -> None:
    size = max(16 << 20, 64 * cluster)
    image = make_image(size, "-b", "1024", "-O", "bigalloc,^has_journal", "-C", str(cluster), "-N", "2048")
    with py4fs.open_image(image, options=OPTIONS) as fs:
        fs.mkdir("/d")
        for number in range(20):
            with fs.open(f"/d/{number}", "wb") as file:
                for at in range(0, 3 * number * 1024, 3000):
                    file.seek(at)
                    file.write(b"x" * 500)
        for number in range(0, 20, 2):
            fs.unlink(f"/d/{number}")
    e2fsck_clean(image)


def test_what_is_told_to_be_free_is_free(image: Path) -> None:
    """FITRIM: whole clusters, as many as there are free, and none of a file."""
    with py4fs.open_image(image, options=OPTIONS) as fs:
        for number in range(40):
            fs.write_bytes(f"/{number}", b"x" * 5000)
        for number in range(0, 40, 2):
            fs.unlink(f"/{number}")
        fs.sync()
        volume = fs.volume
        runs = list(free_runs(volume.geometry, volume.groups, 0, 1 << 62, 0))
        assert all(first % RATIO == 0 and count % RATIO == 0 for first, count in runs)
        assert sum(count for _, count in runs) == volume.superblock.free_blocks
        used = {cluster for number in range(1, 40, 2) for cluster in clusters(fs, f"/{number}")}
        told = {cluster for first, count in runs for cluster in range(first // RATIO, (first + count) // RATIO)}
        assert used and not used & told


@pytest.mark.parametrize(
    "args",
    [("-b", "1024", "-C", "16384"), ("-b", "4096", "-C", "65536"), ("-b", "1024", "-C", "8192", "-g", "8192")],
    ids=["1k-16k", "4k-64k", "small-groups"],
)
@pytest.mark.parametrize("journal", ["has_journal", "^has_journal"])
def test_overhead_is_counted_where_no_superblock_tells_it(
    make_image: ImageMaker, kernel_mount: KernelMount, args: tuple[str, ...], journal: str
) -> None:
    image = make_image("1G", *args, "-O", f"bigalloc,{journal}")
    run(["debugfs", "-w", "-R", "ssv overhead_clusters 0", image])
    with kernel_mount(image, "ro") as root:
        want = os.statvfs(root)
    with py4fs.open_image(image, readonly=True) as fs:
        found = fs.statvfs()
    assert (found.blocks, found.bfree, found.bavail) == (want.f_blocks, want.f_bfree, want.f_bavail)
