"""What all measurements share: one driver on one fresh image, clocks, images, programs."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.drivers import BenchError, Driver, Kernel, environment, run

MIB = 1 << 20
PASSES = 10
"""Warm rows do their work so often, in one process and after a pass that is not counted; the quickest pass counts."""


@dataclass
class Bench:
    """One driver on one fresh image. Results: seconds (or KiB) by measure, in the order of the case."""

    driver: Driver
    image: Path
    directory: Path
    archive: Path
    """The tar file for `tar in`."""
    results: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    """CPU seconds of client and server for operations (not for mounting), which other load disturbs less."""

    @contextmanager
    def timed(self, measure: str) -> Iterator[None]:
        start = self._clocks()
        yield
        self._note(measure, start)

    @contextmanager
    def best(self, measure: str) -> Iterator[Iterator[None]]:
        """Time each round of a loop over what this gives; the quickest counts. For work that leaves nothing behind."""
        runs: list[tuple[float, float]] = []

        def rounds() -> Iterator[None]:
            for _ in range(PASSES):
                start = self._clocks()
                yield
                self._note(measure, start)
                runs.append((self.results[measure], self.cpu[measure]))

        yield rounds()
        self.results[measure], self.cpu[measure] = (min(values) for values in zip(*runs, strict=True))

    def _clocks(self) -> tuple[float, float]:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        clients = time.process_time() + ended.ru_utime + ended.ru_stime
        return time.perf_counter(), clients + self.driver.cpu_seconds()

    def _note(self, measure: str, start: tuple[float, float]) -> None:
        self.results[measure], self.cpu[measure] = (now - then for now, then in zip(self._clocks(), start, strict=True))

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
    fill: Callable[[Path], None] | None = None
    """What the image holds when the measuring begins; put in once, by the kernel."""
    slow: bool = False
    """Takes minutes and gigabytes: only run when it is asked for."""


def make_image(case: Case, path: Path, directory: Path) -> None:
    """The image of a case, fully initialised where that is feasible, filled through a mount at `directory`."""
    with path.open("wb") as image:
        image.truncate(case.size)
    options = case.mke2fs or ("-E", "lazy_itable_init=0,lazy_journal_init=0")
    done = run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", *options, path)
    if done.returncode:
        raise BenchError(f"mke2fs: {done.stderr.strip()}")
    if case.fill is not None:
        with kernel_mount(path, directory) as root:
            case.fill(root)


@contextmanager
def kernel_mount(image: Path, directory: Path, options: str = "loop") -> Iterator[Path]:
    """The image mounted by the kernel, to fill it or to look into it."""
    kernel = Kernel(directory.with_name("kernel.log"), options)
    kernel.mount(image, directory)
    try:
        yield directory
        kernel.unmount()
    finally:
        kernel.abandon()


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
    needed = ["mke2fs", "e2fsck", "e2freefrag", "filefrag", "tar", "cp", "rm", "umount", "grep", "du", "ls"]
    if "fuse2fs" in drivers:
        needed.append("fuse2fs")
    return [name for name in needed if shutil.which(name, path=environment()["PATH"]) is None]
