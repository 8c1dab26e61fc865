"""What debugfs and dumpe2fs say about an image that py4fs wrote is what py4fs says."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
from pathlib import Path

import pytest

import py4fs
from py4fs.iomap.records import MapType
from tests.support.image import ImageMaker


def tool(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, errors="replace").stdout


def fill(fs: py4fs.Filesystem, rng: random.Random) -> None:
    for number in range(30):
        directory = f"/d{number % 5}"
        fs.makedirs(directory)
        path = f"{directory}/f{number}"
        with fs.open(path, "wb") as file:
            for _ in range(rng.randrange(1, 30)):
                file.seek(rng.randrange(200) * 4096)
                file.write(rng.randbytes(rng.randrange(1, 20000)))
        fs.chmod(path, rng.choice([0o600, 0o4755, 0o644]))
        fs.chown(path, rng.choice([0, 100000]), rng.choice([0, 70000]))
        fs.utime(path, atime=rng.randrange(1 << 34) * 10**9, mtime=rng.randrange(1 << 33) * 10**9 + 123456789)
    fs.symlink("x" * 200, "/slow")
    fs.symlink("x" * 20, "/fast")
    fs.link("/d1/f1", "/d2/hard")
    fs.mknod("/dev", 0o060600, os.makedev(300, 70000))
    fs.truncate("/d3/f3", 5000)


@pytest.mark.parametrize("args", [("-b", "1024"), ("-b", "4096")], ids=["1k", "4k"])
def test_inodes_extents_and_counts(make_image: ImageMaker, rng: random.Random, args: tuple[str, ...]) -> None:
    image = make_image("64M", *args)
    block = int(args[1])
    with py4fs.open_image(image) as fs:
        fill(fs, rng)
        paths = [f"{top.rstrip('/')}/{name}" for top, dirs, files in fs.walk() for name in dirs + files]
        attrs = {path: fs.lstat(path) for path in paths}
        maps = {path: fs.mappings(path) for path, attr in attrs.items() if stat.S_ISREG(attr.mode)}
        totals = fs.statvfs()
    assert len(maps) >= 30
    for path, attr in attrs.items():
        shown = tool("debugfs", "-R", f"stat {path}", image)
        assert int(find(r"Inode: (\d+)", shown)) == attr.ino
        assert int(find(r"Mode: +(\d+)", shown), 8) == stat.S_IMODE(attr.mode)
        assert int(find(r"Generation: (\d+)", shown)) == attr.generation
        assert int(find(r"User: +(\d+)", shown)) == attr.uid
        assert int(find(r"Group: +(\d+)", shown)) == attr.gid
        assert int(find(r"Links: (\d+)", shown)) == attr.nlink
        assert int(find(r"Blockcount: (\d+)", shown)) == attr.blocks
        if not stat.S_ISBLK(attr.mode):
            assert int(find(r"Size: (\d+)", shown)) == attr.size
        for which in ("atime", "mtime", "ctime", "crtime"):
            low, extra = (int(word, 16) for word in re.findall(rf"\b{which}: 0x([0-9a-f]+):([0-9a-f]+)", shown)[0])
            seconds = (low ^ 1 << 31) - (1 << 31) + ((extra & 3) << 32)
            assert seconds * 10**9 + (extra >> 2) == getattr(attr, which), f"{path} {which}"
    for path, mappings in maps.items():
        ours = [(m.offset // block, m.length // block, m.addr // block, m.type == MapType.UNWRITTEN)
                for m in mappings if m.type in (MapType.MAPPED, MapType.UNWRITTEN)]  # fmt: skip
        assert ours == dumped_extents(image, path), path
    header = tool("dumpe2fs", "-h", image)
    assert int(find(r"Free blocks: +(\d+)", header)) == totals.bfree
    assert int(find(r"Free inodes: +(\d+)", header)) == totals.ffree
    assert find(r"Filesystem state: +(\w+)", header) == "clean"


def find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, f"{pattern} not in: {text}"
    return found[1]


def dumped_extents(image: Path, path: str) -> list[tuple[int, int, int, bool]]:
    """(logical, count, physical, unwritten) from `dump_extents -l`."""
    extents = []
    for line in tool("debugfs", "-R", f"dump_extents -l {path}", image).splitlines()[1:]:
        words = line.replace("/", " ").replace("-", " ").split()
        first, last, pblk = int(words[4]), int(words[5]), int(words[6])
        extents.append((first, last - first + 1, pblk, line.endswith("Uninit")))
    return extents
