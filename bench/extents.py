"""How many pieces files end up in: counted by filefrag and e2freefrag, on an image that the kernel mounts to look."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

from bench.base import MIB, Bench, kernel_mount, program
from bench.drivers import BenchError, run

STREAM_MIB = 1024
TURNS = 128
"""Pieces of 1 MiB that each of two writers appends by turns."""
SYNC_MIB = 16
_BATCH = 200


def extents_of(paths: Sequence[Path]) -> int:
    """The extents of all these files together. Raises BenchError."""
    found = 0
    for start in range(0, len(paths), _BATCH):
        done = run("filefrag", *paths[start : start + _BATCH])
        counts = re.findall(r": (\d+) extents? found", done.stdout)
        if done.returncode or len(counts) != len(paths[start : start + _BATCH]):
            raise BenchError(f"filefrag: {done.stderr.strip() or done.stdout[-200:]}")
        found += sum(map(int, counts))
    return found


def free_extents(image: Path) -> int:
    """The pieces that the free space of an image is in. Raises BenchError."""
    done = run("e2freefrag", image)
    found = re.search(r"Num\. free extent: (\d+)", done.stdout)
    if done.returncode or not found:
        raise BenchError(f"e2freefrag: {done.stderr.strip()}")
    return int(found[1])


def stream(bench: Bench) -> None:
    """One file of 1 GiB in calls of 1 MiB; two files that grow by turns, with and without fsync in between."""
    piece = random.Random(9).randbytes(MIB)
    with bench.mounted() as root, (root / "stream").open("wb", buffering=0) as file:
        for _ in range(STREAM_MIB):
            file.write(piece)
        os.fsync(file.fileno())
    for name, every in (("turns", 0), ("synced", SYNC_MIB)):
        with (
            bench.mounted() as root,
            (root / f"{name}1").open("wb", buffering=0) as one,
            (root / f"{name}2").open("wb", buffering=0) as other,
        ):
            for number in range(1, TURNS + 1):
                for file in (one, other):
                    file.write(piece)
                    if every and number % every == 0:
                        os.fsync(file.fileno())
    with kernel_mount(bench.image, bench.directory, "loop,ro") as root:
        for measure, *names in (
            ("extents, 1 GiB", "stream"),
            ("extents, two writers", "turns1", "turns2"),
            (f"extents, two writers, fsync each {SYNC_MIB} MiB", "synced1", "synced2"),
        ):
            bench.results[measure] = extents_of([root / name for name in names])


def tree(bench: Bench) -> None:
    """What tar leaves: the extents of all files, and those of the free space."""
    with bench.mounted() as root:
        program("tar", "-xf", bench.archive, "-C", root)
    bench.results["extents, free space after tar in"] = free_extents(bench.image)
    with kernel_mount(bench.image, bench.directory, "loop,ro") as root:
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_blocks]
        bench.results["extents, all files after tar in"] = extents_of(files)
