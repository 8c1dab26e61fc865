"""Images made for one test, and the checks every one of them has to pass at the end of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from images import build, recipes
from images.tools import environment, mke2fs


def e2fsck_clean(image: Path) -> None:
    """Fail the test with e2fsck's own words unless `e2fsck -fn` finds the image clean (exit 0)."""
    done = subprocess.run(
        ["e2fsck", "-fn", image],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(None),
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"e2fsck -fn {image.name}: exit {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)


class ImageMaker:
    """Makes images in the test's directory and remembers them: each ends in `e2fsck -fn` unless excused."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self._directory = directory
        self._cache = cache
        self._made: list[Path] = []
        self._excused: set[Path] = set()

    def __call__(self, size: int | str = "16M", *mke2fs_args: str, name: str = "", clock: int | None = None) -> Path:
        """A fresh ext4 image; size in bytes or with K, M, G, T. `clock`: seconds mke2fs takes for now."""
        path = self._new_path(name)
        mke2fs(path, _bytes(size), *mke2fs_args, clock=clock)
        return path

    def recipe(self, recipe: str) -> Path:
        """A private copy of an image of the matrix (built once per run)."""
        master = self._cache / f"{recipe}.img"
        if not master.exists():
            build.build(recipes.RECIPES[recipe], master)
        return self.copy(master)

    def copy(self, source: Path, name: str = "") -> Path:
        """A private sparse copy of an image."""
        path = self._new_path(name or source.name)
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, path], check=True)
        return path

    def excuse(self, image: Path) -> Path:
        """This image is meant to be damaged: no e2fsck at the end."""
        self._excused.add(image)
        return image

    def check_all(self) -> None:
        """Called when the test is over."""
        for path in self._made:
            if path.exists() and path not in self._excused:
                e2fsck_clean(path)

    def _new_path(self, name: str) -> Path:
        number = len(self._made)
        path = self._directory / (name if name and number == 0 else f"{number}-{name or 'fs.img'}")
        self._made.append(path)
        return path


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[size[-1]]


def debugfs(image: Path, command: str) -> str:
    """Output of one read-only debugfs command; debugfs always exits 0, so look at the text."""
    done = subprocess.run(
        ["debugfs", "-R", command, image],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment(None),
        check=False,
    )
    complaint = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if complaint:
        pytest.fail(f"debugfs -R {command!r} {image.name}: {complaint[0]}", pytrace=False)
    return done.stdout


def debugfs_extents(image: Path, path: str) -> list[tuple[int, int, int, bool]]:
    """The leaf extents of a file as debugfs sees them: (lblk, count, pblk, unwritten), in file order."""
    found = []
    for line in debugfs(image, f'dump_extents -l "{path}"').splitlines()[1:]:
        numbers = line.replace("/", " ").replace("-", " ").split()
        unwritten = numbers[-1] == "Uninit"
        first, last, start = (int(n) for n in numbers[4:7])
        found.append((first, last - first + 1, start, unwritten))
    return found


def superblock(image: Path) -> dict[str, str]:
    """`dumpe2fs -h` as a mapping of its own labels."""
    done = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, env=environment(None), check=True)
    pairs: Sequence[tuple[str, str, str]] = [line.partition(":") for line in done.stdout.splitlines()]
    return {key.strip(): value.strip() for key, sep, value in pairs if sep}


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
