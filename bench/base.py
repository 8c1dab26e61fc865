"""What all measurements share: one driver on one fresh image, clocks, images, programs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.drivers import BenchError, Driver, environment, run

MIB = 1 << 20


@dataclass
class Bench:
    """One driver on one fresh image. Results: seconds (or KiB) by measure, in the order of the case."""

    driver: Driver
    image: Path
    directory: Path
    archive: Path
    """The tar file for `tar in`."""
    cpu: bool = False
    """Measure operations in CPU seconds of client and server, which other load disturbs less."""
    results: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, measure: str) -> Iterator[None]:
        start = self._clock()
        yield
        self.results[measure] = self._clock() - start

    def _clock(self) -> float:
        if not self.cpu:
            return time.perf_counter()
        times = os.times()
        ours = time.process_time() + times.children_user + times.children_system
        return ours + self.driver.cpu_seconds()

    @contextmanager
    def mounted(self, *, mount: str = "", unmount: str = "") -> Iterator[Path]:
        """A cold mount; how long mounting and unmounting take is noted under the names given."""
        drop_pages(self.image)
        took = self.driver.mount(self.image, self.directory)
        if mount:
            self.results[mount] = took
        yield self.directory
        took = self.driver.unmount()
        if unmount:
            self.results[unmount] = took


def drop_pages(image: Path) -> None:
    """Write an image's dirty pages out and forget all of them."""
    fd = os.open(image, os.O_RDWR)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextmanager
def directory_fd(path: Path) -> Iterator[int]:
    """A descriptor of a directory, for calls that take names relative to it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def program(*argv: str | Path, fails: int = 0) -> None:
    """Run a program to its end. Raises BenchError unless it ends with the exit code `fails`."""
    done = run(*argv)
    if done.returncode != fails:
        raise BenchError(f"{argv[0]}: {done.stderr.strip()}")


def raise_readahead(directory: Path) -> None:
    """Let the kernel read ahead 2 MiB below a mount point. Raises BenchError."""
    device = directory.stat().st_dev
    found = list(Path("/sys/class/bdi").glob(f"{os.major(device)}:{os.minor(device)}*/read_ahead_kb"))
    if not found:
        raise BenchError(f"no bdi of {directory}")
    found[0].write_text("2048", encoding="ascii")


@dataclass(frozen=True)
class Case:
    """A measurement, and the image it needs."""

    run: Callable[[Bench], None]
    size: int
    mke2fs: tuple[str, ...] = ()


def make_image(case: Case, path: Path) -> None:
    """An empty file system for a case, fully initialised where that is feasible."""
    with path.open("wb") as image:
        image.truncate(case.size)
    options = case.mke2fs or ("-E", "lazy_itable_init=0,lazy_journal_init=0")
    done = run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", *options, path)
    if done.returncode:
        raise BenchError(f"mke2fs: {done.stderr.strip()}")


def copy_image(master: Path, path: Path) -> None:
    """A private sparse copy."""
    path.unlink(missing_ok=True)
    done = run("cp", "--sparse=always", "--reflink=auto", master, path)
    if done.returncode:
        raise BenchError(f"cp: {done.stderr.strip()}")


def check_image(image: Path) -> str:
    """Empty when e2fsck finds the image clean, else its words."""
    done = run("e2fsck", "-fn", image)
    return "" if done.returncode == 0 else f"e2fsck -fn: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr}"


def missing_programs(drivers: list[str]) -> list[str]:
    """Programs that are needed and not installed."""
    needed = ["mke2fs", "e2fsck", "tar", "cp", "rm", "umount", "grep", "du", "ls"]
    if "fuse2fs" in drivers:
        needed.append("fuse2fs")
    return [name for name in needed if shutil.which(name, path=environment()["PATH"]) is None]
