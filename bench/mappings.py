"""How often data needs a question about where it lies: the counters of the server's iomap client (SIGUSR1)."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

from bench.base import Bench
from bench.drivers import BenchError

BLOCK = 4096
LEAVES, LEAF = 6, 340
"""Nodes of the extent tree that hold the file's extents, and how many a node of 4 KiB has room for."""
PIECES = LEAVES * LEAF
WINDOWS = 2 * LEAVES
"""A window has 512 runs (`py4fs.iomap.server.WINDOW`) and ends with the node; a block and a hole are two runs."""
RANDOM_READS = 4000
WARM_STATS, WARM_READS = 10_000, 1_000
_PASSES = 10


def fill(root: Path) -> None:
    """A file of PIECES extents: every other block is written."""
    block = random.Random(10).randbytes(BLOCK)
    with (root / "pieces").open("wb") as file:
        for number in range(PIECES):
            file.seek(2 * number * BLOCK)
            file.write(block)
        file.truncate(2 * PIECES * BLOCK)


def _begins(bench: Bench, measure: str, work: Callable[[], None]) -> None:
    before = bench.driver.counters()
    work()
    after = bench.driver.counters()
    if before:
        bench.results[measure] = after["upcalls"] - before["upcalls"]
        if after["hits"] - before["hits"] < PIECES:
            raise BenchError(f"{measure}: the reads did not reach the server")


def begins(bench: Bench) -> None:
    """Questions of a cold sequential read and of random reads after it, both past the kernel's page cache."""
    buffer = mmap.mmap(-1, BLOCK)
    rng = random.Random(11)
    with bench.mounted() as root:
        fd = os.open(root / "pieces", os.O_RDONLY | os.O_DIRECT)

        def in_order() -> None:
            for number in range(2 * PIECES):
                os.preadv(fd, [buffer], number * BLOCK)

        def anywhere() -> None:
            for _ in range(RANDOM_READS):
                os.preadv(fd, [buffer], rng.randrange(2 * PIECES) * BLOCK)

        _begins(bench, f"begins, cold sequential read of {WINDOWS} windows", in_order)
        _begins(bench, f"begins, {RANDOM_READS:,} warm random reads", anywhere)
        os.close(fd)


def requests(bench: Bench) -> None:
    """Requests that reach the server when everything is warm: none."""
    measure = f"requests, {WARM_STATS:,} warm stats and {WARM_READS:,} warm reads"
    with bench.mounted() as root:
        (root / "d").mkdir()
        names = [root / "d" / f"file-{number:04}" for number in range(WARM_STATS // _PASSES)]
        for name in names:
            name.write_bytes(b"x" * BLOCK)
        fds = [os.open(name, os.O_RDONLY) for name in names[: WARM_READS // _PASSES]]

        def work() -> None:
            for name in names:
                name.stat()
            for fd in fds:
                os.pread(fd, BLOCK, 0)

        work()
        before = bench.driver.counters()
        for _ in range(_PASSES):
            work()
        after = bench.driver.counters()
        if before:
            bench.results[measure] = after["requests"] - before["requests"]
        for fd in fds:
            os.close(fd)
