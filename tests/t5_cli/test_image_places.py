"""Images inside other images, through the commands and the API: partitions written to, views only read."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import py4fs
from py4fs.cli.main import main
from py4fs.errors import ReadOnly
from tests.support import disks
from tests.support.image import ImageMaker, e2fsck_clean

START = 2048


@pytest.fixture
def bare(make_image: ImageMaker) -> Path:
    return make_image.recipe("default-b1024-i256")


def disk_around(bare: Path, disk: Path, numbers: tuple[int, ...] = (2,)) -> Path:
    sectors = bare.stat().st_size // disks.SECTOR
    disks.blank(disk, START + len(numbers) * sectors + 64)
    places = {number: START + index * sectors for index, number in enumerate(numbers)}
    for first in places.values():
        disks.put(disk, first, bare.read_bytes())
    disks.write_gpt(disk, {number: (first, sectors) for number, first in places.items()})
    return disk


def test_a_partition_is_written(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = disk_around(bare, tmp_path / "disk")
    before = disk.read_bytes()
    with py4fs.open_image(disk) as fs:
        fs.write_bytes("/new", b"n" * 100_000)
    assert main(["cat", str(disk), "/new"]) == 0
    assert capsys.readouterr().out == "n" * 100_000
    assert main(["iomap", "--compare", str(disk), "/new"]) == 0
    after = disk.read_bytes()
    first, size = START * disks.SECTOR, bare.stat().st_size
    assert after[:first] == before[:first] and after[first + size :] == before[first + size :]
    inner = tmp_path / "inner"
    inner.write_bytes(after[first : first + size])
    e2fsck_clean(inner)


def test_a_choice_has_to_be_made(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = disk_around(bare, tmp_path / "disk", (1, 3))
    assert main(["ls", str(disk)]) == 1
    assert capsys.readouterr().err == (
        f"py4fs: {disk}: has 2 ext4 partitions, numbers 1, 3: say which with partition=N\n"
    )
    assert main(["ls", "--partition", "3", str(disk)]) == 0
    with py4fs.open_image(disk, partition=3) as fs:
        fs.mkdir("/only in three")
    with py4fs.open_image(disk, partition=1, readonly=True) as fs:
        assert not fs.exists("/only in three")


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "a gzip-compressed image": lambda data: gzip.compress(data, 1),
    "an xz-compressed image": lambda data: lzma.compress(data, preset=0),
    "a zstd-compressed image": lambda data: zstandard.ZstdCompressor().compress(data),
    "an Android sparse image": disks.to_sparse,
}


def assert_same_contents(fs: py4fs.Filesystem, other: py4fs.Filesystem, file: str) -> None:
    """Read where there is data, a piece at a time: the largest file has gigabytes of holes."""
    with fs.open(file) as ours, other.open(file) as theirs:
        size = ours.seek(0, os.SEEK_END)
        assert theirs.seek(0, os.SEEK_END) == size
        for at in range(0, size, 1 << 20) if size < 64 << 20 else (0, 1 << 20, 1 << 32, size - 4096):
            ours.seek(at)
            theirs.seek(at)
            assert ours.read(1 << 20) == theirs.read(1 << 20)


@pytest.mark.parametrize("what", ENCODERS)
def test_views_are_read_only(what: str, bare: Path, tmp_path: Path) -> None:
    path = tmp_path / "view"
    path.write_bytes(ENCODERS[what](bare.read_bytes()))
    before = path.read_bytes()
    with py4fs.open_image(bare, readonly=True) as plain, py4fs.open_image(path) as fs:
        assert fs.notices == [f"read-only: {what} can only be read"]
        names = sorted(plain.walk())
        assert sorted(fs.walk()) == names
        for base, _, files in names:
            for name in files:
                file = f"{base.rstrip('/')}/{name}"
                if plain.lstat(file).mode & 0o170000 == 0o100000:
                    assert_same_contents(fs, plain, file)
        with pytest.raises(ReadOnly):
            fs.mkdir("/d")
    assert path.read_bytes() == before
