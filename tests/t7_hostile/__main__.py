"""Odd and broken images of others, read and then changed: `python -m tests.t7_hostile DIRECTORY [NAME ...]`.

DIRECTORY holds images named image, image.gz or image.bz2, in sub-directories, as e2fsprogs' own tests/ does. For each:
`py4fs ls -lR` and everything that can be looked at, with no byte of the image changed; then, on a copy, ordinary and
random operations, after which e2fsck finds no more to repair than it did before.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import py4fs
from images.tools import environment
from py4fs.api import Filesystem
from py4fs.errors import FsError
from tests.t7_hostile.exercise import Hang, attempt, change, soon, walk

SECONDS = 20
"""What a command may take."""
WALK = 200
"""Seconds for looking at all of an image: some have thousands of names."""
OPENERS: dict[str, Callable[..., Any]] = {"image": open, "image.gz": gzip.open, "image.bz2": bz2.open}
PIECE = 1 << 16
MOST_NAMES = 200_000


def unpack(source: Path, target: Path) -> None:
    """A sparse copy of an image."""
    with OPENERS[source.name](source, "rb") as packed, target.open("wb") as file:
        while piece := packed.read(PIECE):
            if piece.count(0) == len(piece):
                file.seek(len(piece), 1)
            else:
                file.write(piece)
        file.truncate()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Repair:
    """What `e2fsck -fy` makes of a copy of an image: how it ends, and how much it asks."""

    def __init__(self, image: Path, work: Path) -> None:
        copy = work / "repaired.img"
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        done = subprocess.run(
            ["e2fsck", "-fy", copy],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(None),
            check=False,
        )
        self.text = done.stdout + done.stderr
        self.failed = done.returncode & ~3  # 1 and 2: all was repaired
        self.questions = len(re.findall(r"\? yes$", self.text, re.MULTILINE))

    def worse_than(self, other: Repair) -> bool:
        return self.failed > other.failed or self.questions > other.questions


def command(*words: str | Path) -> str:
    """What is wrong with how a command of py4fs ended, or nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "py4fs.cli.main", *words], capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"hang: {words[0]}"
    if done.returncode < 0 or b"Traceback" in done.stderr:
        return f"{words[0]}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}"
    return ""


def ordinary(fs: Filesystem) -> None:
    """What every user does first."""
    attempt(fs.mkdir, "/py4fs")
    attempt(fs.write_bytes, "/py4fs/file", b"contents" * 3000)
    attempt(fs.rename, "/py4fs/file", "/py4fs-renamed")
    attempt(fs.link, "/py4fs-renamed", "/py4fs/link")
    attempt(fs.write_bytes, "/py4fs/gone", b"x" * 10_000)
    attempt(fs.unlink, "/py4fs/gone")


def read(image: Path) -> Iterator[str]:
    """Problems met when only looking."""
    before = digest(image)
    yield command("ls", "-lR", image)
    try:
        with soon(WALK), py4fs.open_image(image, readonly=True) as fs:
            walk(fs, MOST_NAMES)
    except FsError as exc:
        print(f"  refused: {exc}")
    except (Exception, Hang):  # noqa: BLE001  (it is what is looked for)
        yield traceback.format_exc()
    if digest(image) != before:
        yield "the image was changed by reading"


def write(image: Path, work: Path, seed: int) -> Iterator[str]:
    """Problems met when changing it."""
    before = Repair(image, work)
    try:
        with soon(WALK), py4fs.open_image(image) as fs:
            ordinary(fs)
            if seed:
                change(fs, walk(fs, MOST_NAMES), random.Random(seed), 60)
    except FsError as exc:
        print(f"  writing: {exc}")
    except (Exception, Hang):  # noqa: BLE001  (it is what is looked for)
        yield traceback.format_exc()
    after = Repair(image, work)
    if after.worse_than(before):
        yield f"e2fsck: {before.questions} questions before, {after.questions} after\n{before.text}\n---\n{after.text}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.t7_hostile", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", help="only images in directories of these names")
    parser.add_argument("--seed", type=int, default=0, help="random operations too")
    args = parser.parse_args()
    logging.disable()
    images = sorted(path for path in args.directory.rglob("*") if path.name in OPENERS and path.is_file())
    failed = count = 0
    for source in images:
        name = source.parent.name
        if args.names and name not in args.names:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="py4fs-odd-") as directory:
            image = Path(directory, "image")
            unpack(source, image)
            print(name)
            problems = [problem for problem in read(image) if problem]
            problems += [problem for problem in write(image, Path(directory), args.seed) if problem]
        count += 1
        failed += bool(problems)
        for problem in problems:
            print("  FAILED", problem.replace("\n", "\n    "))
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
    print(f"{count} images, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
