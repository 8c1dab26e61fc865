"""What is measured. A case gets a fresh image, mounts it as often as it likes, and reports seconds by name.

"Cold" means: the image's pages are dropped from the page cache and it is mounted anew, so that neither the
kernel nor the server knows anything.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.drivers import BenchError, Driver, environment, run

MIB = 1 << 20
DATA_MIB = 256
FILES = 2000
FSYNCS = 1000
TREE_FILES = 1800
TREE_DIRECTORIES = 150
BIG_SIZE = 15 << 40


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


# --- data --------------------------------------------------------------------------------------


def _pieces() -> Iterator[bytearray]:
    """DATA_MIB pieces of 1 MiB, each different, none compressible to zeros."""
    piece = bytearray(random.Random(1).randbytes(MIB))
    for number in range(DATA_MIB):
        piece[:8] = number.to_bytes(8, "little")
        yield piece


def data(bench: Bench) -> None:
    """Sequential write with fsync, and a cold read, in calls of 1 MiB."""
    with bench.mounted(unmount="unmount after write") as root:
        fd = os.open(root / "data", os.O_WRONLY | os.O_CREAT)
        with bench.timed("write + fsync"):
            for piece in _pieces():
                if os.write(fd, piece) != MIB:
                    raise BenchError("short write")
            os.fsync(fd)
            os.close(fd)
    bench.results["write until unmounted"] = bench.results["write + fsync"] + bench.results["unmount after write"]
    buffer = bytearray(MIB)
    with bench.mounted() as root:
        fd = os.open(root / "data", os.O_RDONLY)
        with bench.timed("cold read"):
            while os.readv(fd, [buffer]):
                pass
        os.lseek(fd, 0, os.SEEK_SET)
        for number, piece in enumerate(_pieces()):
            if os.readv(fd, [buffer]) != MIB or buffer != piece:
                raise BenchError(f"piece {number} of the data is wrong")
        os.close(fd)


# --- metadata ----------------------------------------------------------------------------------


def metadata(bench: Bench) -> None:
    """Empty files in one directory; the calls go through a directory descriptor, names in random order."""
    names = [f"file-{number:05}" for number in range(FILES)]
    shuffled = random.Random(2).sample(names, FILES)
    with bench.mounted() as root:
        (root / "d").mkdir()
        with _directory(root / "d") as at:
            with bench.timed("create"):
                for name in names:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at))
            with bench.timed("stat again"):
                for name in shuffled:
                    os.stat(name, dir_fd=at)
    with bench.mounted() as root, _directory(root / "d") as at:
        with bench.timed("stat (cold)"):
            for name in shuffled:
                os.stat(name, dir_fd=at)
        with bench.timed("rename"):
            for name in shuffled:
                os.rename(name, f"new-{name}", src_dir_fd=at, dst_dir_fd=at)
        with bench.timed("unlink"):
            for name in names:
                os.unlink(f"new-{name}", dir_fd=at)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


# --- a tree ------------------------------------------------------------------------------------


def make_archive(path: Path) -> None:
    """A tar file like a source tree: TREE_FILES files, mostly small, in nested directories, some links."""
    rng = random.Random(3)
    text = rng.randbytes(MIB)
    directories = [""]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(TREE_DIRECTORIES):
            parent = rng.choice(directories[-20:])
            directories.append(f"{parent}dir{number:03}/")
            entry = tarfile.TarInfo(directories[-1])
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o755
            entry.mtime = 1_600_000_000 + number
            tar.addfile(entry)
        for number in range(TREE_FILES):
            entry = tarfile.TarInfo(f"{rng.choice(directories)}file{number:04}.c")
            entry.mtime = 1_600_000_000 + number
            kind = rng.random()
            if kind < 0.02:
                entry.type, entry.linkname = tarfile.SYMTYPE, f"file{number:04}.h"
                tar.addfile(entry)
                continue
            entry.mode = 0o755 if kind > 0.9 else 0o644
            entry.size = rng.choice((rng.randrange(4096), rng.randrange(16384), rng.randrange(16384), 4096 * 20))
            start = rng.randrange(MIB - entry.size)
            tar.addfile(entry, io.BytesIO(text[start : start + entry.size]))


def tree(bench: Bench) -> None:
    """tar in, tar out (cold), rm -rf (cold), by the programs themselves."""
    with bench.mounted(unmount="unmount after tar in") as root:
        (root / "t").mkdir()
        with bench.timed("tar in"):
            _program("tar", "-xf", bench.archive, "-C", root / "t")
    bench.results["tar in until unmounted"] = bench.results["tar in"] + bench.results["unmount after tar in"]
    with bench.mounted() as root, bench.timed("tar out (cold)"):
        # not -f /dev/null, for which tar reads nothing
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert reader.stdin is not None
        done = subprocess.run(["tar", "-cf", "-", "-C", root, "t"], stdout=reader.stdin, env=environment(), check=False)
        reader.stdin.close()
        if reader.wait() or done.returncode:
            raise BenchError("tar -c failed")
    with bench.mounted() as root, bench.timed("rm -rf (cold)"):
        _program("rm", "-rf", root / "t")


def _program(*argv: str | Path) -> None:
    done = run(*argv)
    if done.returncode:
        raise BenchError(f"{argv[0]}: {done.stderr.strip()}")


# --- durability --------------------------------------------------------------------------------


def fsync(bench: Bench, measure: str) -> None:
    """Create, write 4 KiB, fsync, close: FSYNCS times, as mail servers do."""
    block = random.Random(4).randbytes(4096)
    with bench.mounted() as root:
        (root / "d").mkdir()
        os.sync()
        with _directory(root / "d") as at, bench.timed(measure):
            for number in range(FSYNCS):
                fd = os.open(f"file-{number:05}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at)
                if os.write(fd, block) != len(block):
                    raise BenchError("short write")
                os.fsync(fd)
                os.close(fd)


# --- a big image -------------------------------------------------------------------------------


def big(bench: Bench) -> None:
    """Mount 15 TiB, look around, write one small file, unmount."""
    with bench.mounted(mount="mount 15 TiB", unmount="unmount 15 TiB") as root:
        list(root.iterdir())
        (root / "file").write_bytes(bytes(100_000))
    if bench.driver.peak_kib is not None:
        bench.results["memory 15 TiB"] = bench.driver.peak_kib


# --- all of them -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A measurement, and the image it needs."""

    run: Callable[[Bench], None]
    size: int
    mke2fs: tuple[str, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    """What py4fs's median may be at most, as a multiple of fuse2fs's."""
    absolute: dict[str, float] = field(default_factory=dict)
    """What py4fs's median may be at most, in the measure's own unit (s, KiB)."""


_DATA = {"write + fsync": 1.0, "write until unmounted": 1.0, "cold read": 1.0}
_LAZY = ("-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0")
_METADATA = {"create": 2.0, "stat again": 2.0, "stat (cold)": 2.0, "rename": 2.0, "unlink": 2.0}
_TREE = {"tar in": 2.0, "tar in until unmounted": 2.0, "tar out (cold)": 2.0, "rm -rf (cold)": 2.0}

CASES = {
    "data": Case(data, 1 << 30, limits=_DATA),
    "metadata": Case(metadata, 1 << 30, limits=_METADATA),
    "tree": Case(tree, 1 << 30, limits=_TREE),
    "fsync": Case(partial(fsync, measure="create + 4 KiB + fsync, 4 GiB"), 4 << 30),
    "fsync-big": Case(partial(fsync, measure="create + 4 KiB + fsync, 1 TiB"), 1 << 40, _LAZY),
    "big": Case(
        big,
        BIG_SIZE,
        _LAZY,
        absolute={"mount 15 TiB": 1.0, "memory 15 TiB": 150 * 1000 * 1000 / 1024},
    ),
}


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
    needed = ["mke2fs", "e2fsck", "tar", "cp", "rm", "umount", *(["fuse2fs"] if "fuse2fs" in drivers else [])]
    return [name for name in needed if shutil.which(name, path=environment()["PATH"]) is None]
