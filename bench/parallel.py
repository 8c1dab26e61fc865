"""The same with several clients at once: processes that start together, each in a directory of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from bench.base import Bench, directory_fd
from bench.drivers import BenchError

CLIENTS = 4
FILES_EACH = 400
BLOCK = 4096
_DATA = random.Random(8).randbytes(BLOCK)
_NAMES = [f"file-{number:05}" for number in range(FILES_EACH)]


def _create(at: int) -> None:
    for name in _NAMES:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at)
        if os.write(fd, _DATA) != BLOCK:
            raise BenchError("short write")
        os.close(fd)


def _stat(at: int) -> None:
    for name in _NAMES:
        os.stat(name, dir_fd=at)


def _read(at: int) -> None:
    for name in _NAMES:
        fd = os.open(name, os.O_RDONLY, dir_fd=at)
        if os.read(fd, 2 * BLOCK) != _DATA:
            raise BenchError(f"{name}: not what was written")
        os.close(fd)


def _unlink(at: int) -> None:
    for name in _NAMES:
        os.unlink(name, dir_fd=at)


def _client(work: Callable[[int], None], directory: Path, start: int, hold: int) -> int:
    """A process that does its work when all have closed `hold`, the other end of the pipe `start`.

    It ends with 0 if all went well.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(hold)
        with directory_fd(directory) as at:
            os.read(start, 1)
            work(at)
        status = 0
    finally:
        os._exit(status)


def _together(bench: Bench, root: Path, measure: str, work: Callable[[int], None]) -> None:
    start, hold = os.pipe()
    pids = [_client(work, root / f"d{number}", start, hold) for number in range(CLIENTS)]
    with bench.timed(f"{CLIENTS} clients: {measure}"):
        os.close(hold)
        failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    os.close(start)
    if failed:
        raise BenchError(f"{measure}: {len(failed)} of {CLIENTS} clients failed")


def parallel(bench: Bench) -> None:
    """Create (4 KiB each), stat (cold), read (cold), unlink."""
    with bench.mounted() as root:
        for number in range(CLIENTS):
            (root / f"d{number}").mkdir()
        _together(bench, root, "create + write", _create)
    with bench.mounted() as root:
        _together(bench, root, "stat (cold)", _stat)
    with bench.mounted() as root:
        _together(bench, root, "read (cold)", _read)
        _together(bench, root, "unlink", _unlink)
