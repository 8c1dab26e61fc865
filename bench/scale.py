"""What must not grow with size: names in a directory, extents of a file, files walked, files open.

Rows with two sizes are held against each other (`bench.targets.GROWTH`).
"""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

from bench.base import Bench, directory_fd
from bench.drivers import BenchError

FEW, MANY = 1000, 1_000_000
NAMES, CREATES = 1000, 100
"""Operations of each pass."""
WARM_UP = 30_000
SEEKS = 1000
OPENS = 200
APPENDS = 20
OPEN_FILES = 10_000
SMALL_CACHE = "32M"
BLOCK = 1024
SIZES = ((f"{FEW:,}", FEW), (f"{MANY:,}", MANY))


# --- directories -------------------------------------------------------------------------------


def fill_directories(root: Path) -> None:
    """Directories `few` and `many` of empty files."""
    for name, count in (("few", FEW), ("many", MANY)):
        (root / name).mkdir()
        with directory_fd(root / name) as at:
            for number in range(count):
                os.close(os.open(f"file-{number:07}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at))


def directories(bench: Bench) -> None:
    """Lookups of names that are there and that are not, creates: as many in a small directory as in a big one; a walk.

    Each lookup reaches the server, since no name is used twice. The first ones are cold: in a big directory each name
    is in another block. Then WARM_UP names that are not there are looked for, which meets nearly all of its blocks.
    """
    rng = random.Random(12)
    for directory, (size, count) in zip(("few", "many"), SIZES, strict=True):
        there = [f"file-{number:07}" for number in rng.sample(range(count), NAMES)]
        with bench.mounted() as root, directory_fd(root / directory) as at:
            with bench.timed(f"lookup (cold), {size} names"):
                for name in there:
                    os.stat(name, dir_fd=at)
            _absent(at, range(count, count + WARM_UP))
            fresh = count + WARM_UP
            with bench.best(f"lookup, {size} names") as passes:
                for number, _ in enumerate(passes):
                    _absent(at, range(fresh + number * NAMES, fresh + (number + 1) * NAMES))
            with bench.best(f"create, {size} names") as passes:
                for number, _ in enumerate(passes):
                    _create(at, range(number * CREATES, (number + 1) * CREATES))
    _walk(bench)


def _absent(at: int, numbers: range) -> None:
    for number in numbers:
        try:
            os.stat(f"file-{number:07}", dir_fd=at)
        except FileNotFoundError:
            continue
        raise BenchError(f"file-{number:07} is there")


def _create(at: int, numbers: range) -> None:
    for number in numbers:
        os.close(os.open(f"new-{number:07}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at))


def _walk(bench: Bench) -> None:
    """List and look at every file, with the caches as they are and with small ones: what cannot be dropped remains."""
    for cache_size in ("", SMALL_CACHE):
        bench.driver.cache_size = cache_size
        suffix = f", cache_size={cache_size}" if cache_size else ""
        walked = f"{MANY:,} files walked{suffix}"
        with bench.mounted() as root, bench.timed(f"walk: {walked}"), os.scandir(root / "many") as entries:
            for entry in entries:
                entry.stat()
        if bench.driver.peak_kib is not None:
            bench.results[f"memory, {walked}"] = bench.driver.peak_kib
        if not bench.driver.has_cache_size:
            break
    bench.driver.cache_size = ""


# --- a file in many pieces ---------------------------------------------------------------------


def fill_pieces(root: Path) -> None:
    """Files `few` and `many` with a hole behind each block, so each block is an extent."""
    block = bytes(range(256)) * (BLOCK // 256)
    for name, count in (("few", FEW), ("many", MANY)):
        fd = os.open(root / name, os.O_WRONLY | os.O_CREAT)
        for number in range(count):
            os.pwrite(fd, block, 2 * number * BLOCK)
        os.fsync(fd)
        os.close(fd)


def pieces(bench: Bench) -> None:
    """Open, seek, append, each as often in a file of few pieces as in one of many.

    All warm, and seeking cold too, where many places of a big file are in as many nodes of its tree.
    """
    block = b"x" * BLOCK
    for name, (size, count) in zip(("few", "many"), SIZES, strict=True):
        rng = random.Random(13)
        places = [rng.randrange(count) for _ in range(SEEKS)]
        with bench.mounted() as root:
            path = root / name

            def opens(path: Path = path) -> None:
                for _ in range(OPENS):
                    os.close(os.open(path, os.O_RDWR))

            opens()
            with bench.best(f"open, {size} extents") as passes:
                for _ in passes:
                    opens()
            fd = os.open(path, os.O_RDONLY)
            if os.lseek(fd, BLOCK, os.SEEK_DATA) != BLOCK:  # else holes are not told from data (fuse2fs)
                with bench.timed(f"seek to data (cold), {size} extents"):
                    _seeks(fd, places)
                with bench.best(f"seek to data, {size} extents") as passes:
                    for _ in passes:
                        _seeks(fd, places)
            os.close(fd)
            fd = os.open(path, os.O_WRONLY)
            end = os.fstat(fd).st_size
            with bench.best(f"append + fsync, {size} extents") as passes:
                for number, _ in enumerate(passes):
                    for piece in range(number * APPENDS, (number + 1) * APPENDS):
                        os.pwrite(fd, block, end + (2 * piece + 1) * BLOCK)
                        os.fsync(fd)
            os.close(fd)


def _seeks(fd: int, places: list[int]) -> None:
    for place in places:
        if os.lseek(fd, (2 * place - 1) * BLOCK if place else 0, os.SEEK_DATA) != 2 * place * BLOCK:
            raise BenchError(f"SEEK_DATA does not find block {2 * place}")
        if os.lseek(fd, 2 * place * BLOCK, os.SEEK_HOLE) != (2 * place + 1) * BLOCK:
            raise BenchError(f"SEEK_HOLE does not find block {2 * place + 1}")


# --- open files --------------------------------------------------------------------------------


def fill_files(root: Path) -> None:
    """OPEN_FILES files of one block."""
    for number in range(OPEN_FILES):
        (root / f"file-{number:05}").write_bytes(b"x" * BLOCK)


def open_files(bench: Bench) -> None:
    """Open many files, then write to each and close them all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES + 1000), hard))
    try:
        with bench.mounted() as root, directory_fd(root) as at:
            with bench.timed(f"open {OPEN_FILES:,} files"):
                fds = [os.open(f"file-{number:05}", os.O_RDWR, dir_fd=at) for number in range(OPEN_FILES)]
            with bench.timed(f"write to and close {OPEN_FILES:,} files"):
                for fd in fds:
                    os.pwrite(fd, b"y", 0)
                for fd in fds:
                    os.close(fd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if bench.driver.peak_kib is not None:
        bench.results[f"memory, {OPEN_FILES:,} open files"] = bench.driver.peak_kib


def mount(bench: Bench) -> None:
    """What a small image needs to be mounted, for comparison with a big one."""
    with bench.mounted(mount="mount 1 GiB", unmount="unmount 1 GiB") as root:
        list(root.iterdir())
        (root / "file").write_bytes(bytes(100_000))
