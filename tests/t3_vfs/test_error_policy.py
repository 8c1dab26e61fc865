"""Damage that is met while in use: recorded in the superblock, and errors= decides how to go on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import py4fs
from py4fs.errors import BadChecksum, ReadOnly
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard


def damaged(make_image: ImageMaker, *args: str) -> Path:
    """An image with one inode whose checksum is wrong."""
    image = make_image("16M", *args)
    make_image.excuse(image)
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/bad", b"bad")
        fs.write_bytes("/good", b"good")
    with py4fs.open_image(image, readonly=True) as fs:
        pblk, offset = fs.volume.inodes._locate(fs.stat("/bad").ino)
        size = fs.volume.geometry.block_size
    with image.open("r+b") as file:
        file.seek(pblk * size + offset + 24)  # i_gid
        file.write(b"\x55\x55")
    return image


def header(image: Path) -> str:
    return subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("stored", "option", "policy"),
    [
        ("continue", None, "continue"),
        ("remount-ro", None, "remount-ro"),
        ("continue", "remount-ro", "remount-ro"),
        ("remount-ro", "continue", "continue"),
        ("panic", None, "panic"),
    ],
)
def test_policy(
    make_image: ImageMaker, log_guard: LogGuard, stored: str, option: str | None, policy: str
) -> None:
    image = damaged(make_image, "-e", stored)
    stopped: list[bool] = []
    with py4fs.open_image(image, options=py4fs.OpenOptions(errors=option)) as fs:
        fs.volume.on_panic = lambda: stopped.append(True)
        fs.mkdir("/before")
        if policy != "continue":
            log_guard.expect("now read-only")
        for _ in range(2):
            with pytest.raises(BadChecksum):
                fs.stat("/bad")
        if policy == "continue":
            fs.mkdir("/after")
        else:
            with pytest.raises(ReadOnly, match="after an error"):
                fs.mkdir("/after")
        assert fs.read_bytes("/good") == b"good"
        assert stopped == ([True] if policy == "panic" else [])
    shown = header(image)
    assert re.search(r"Filesystem state: +clean with errors", shown)
    assert re.search(r"FS Error count: +" + ("2" if policy == "continue" else "1"), shown)
    assert re.search(r"First error function: +inode", shown)
    assert re.search(r"First error err: +EFSBADCRC", shown)
    with py4fs.open_image(image, readonly=True) as fs:
        assert fs.exists("/before") and fs.exists("/after") == (policy == "continue")
        assert any("recorded errors" in notice for notice in fs.notices)


def test_read_only_records_nothing(make_image: ImageMaker) -> None:
    image = damaged(make_image)
    before = image.read_bytes()
    with py4fs.open_image(image, readonly=True) as fs, pytest.raises(BadChecksum):
        fs.stat("/bad")
    assert image.read_bytes() == before
