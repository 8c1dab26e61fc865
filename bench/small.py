"""Blocks of 4 KiB in one file, and many files of 4 KiB."""

from __future__ import annotations

import os
import random

from bench.base import MIB, Bench, directory_fd, program
from bench.drivers import BenchError

BLOCK = 4096
RANDOM_FILE_MIB = 64
RANDOM_READS = 4000
RANDOM_WRITES = 4000
APPENDS = 1000
SMALL_FILES = 1500


def _write_all(fd: int, data: bytes, offset: int) -> None:
    if os.pwrite(fd, data, offset) != len(data):
        raise BenchError("short write")


def blocks(bench: Bench) -> None:
    """Random reads (cold) and writes (then fsync) of 4 KiB in a file of 64 MiB; appends with fsync each."""
    rng = random.Random(5)
    data = rng.randbytes(BLOCK)
    places = rng.sample(range(RANDOM_FILE_MIB * MIB // BLOCK), RANDOM_READS)
    with bench.mounted() as root, (root / "data").open("wb") as file:
        for _ in range(RANDOM_FILE_MIB):
            file.write(rng.randbytes(MIB))
    with bench.mounted() as root:
        fd = os.open(root / "data", os.O_RDWR)
        with bench.timed("random 4 KiB read (cold)"):
            for place in places:
                if len(os.pread(fd, BLOCK, place * BLOCK)) != BLOCK:
                    raise BenchError("short read")
        with bench.best("warm 4 KiB read") as passes:
            for _ in passes:
                for place in places:
                    os.pread(fd, BLOCK, place * BLOCK)
        os.close(fd)
    with bench.mounted() as root:
        fd = os.open(root / "data", os.O_RDWR)
        with bench.timed("random 4 KiB write"):
            for place in places[:RANDOM_WRITES]:
                _write_all(fd, data, place * BLOCK)
            os.fsync(fd)
        os.close(fd)
    with bench.mounted() as root:
        fd = os.open(root / "log", os.O_WRONLY | os.O_CREAT)
        with bench.timed("4 KiB append + fsync"):
            for number in range(APPENDS):
                _write_all(fd, data, number * BLOCK)
                os.fsync(fd)
        os.close(fd)


def small_files(bench: Bench) -> None:
    """Files of 4 KiB in one directory: written, listed with their attributes, read. All but the first cold."""
    names = [f"file-{number:05}" for number in range(SMALL_FILES)]
    data = random.Random(6).randbytes(BLOCK)
    with bench.mounted() as root:
        (root / "d").mkdir()
        with directory_fd(root / "d") as at, bench.timed("create + write 4 KiB"):
            for name in names:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at)
                _write_all(fd, data, 0)
                os.close(fd)
    with bench.mounted() as root, bench.timed("ls -l (cold)"):
        program("ls", "-l", root / "d")
    if bench.driver.peak_kib is not None:
        bench.results[f"memory, {SMALL_FILES:,} files walked"] = bench.driver.peak_kib
    with bench.mounted() as root, directory_fd(root / "d") as at, bench.timed("small-file read (cold)"):
        for name in random.Random(7).sample(names, SMALL_FILES):
            fd = os.open(name, os.O_RDONLY, dir_fd=at)
            if os.read(fd, 2 * BLOCK) != data:
                raise BenchError(f"{name}: not what was written")
            os.close(fd)
