"""What is measured. A case gets a fresh image, mounts it as often as it likes, and reports seconds by name.

"Cold" means: the image's pages are dropped from the page cache and it is mounted anew, so that neither the
kernel nor the server knows anything.
"""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import extents, mappings, scale
from bench.base import MIB, Bench, Case, directory_fd, program, raise_readahead
from bench.drivers import BenchError, environment
from bench.parallel import parallel
from bench.small import blocks, small_files

DATA_MIB = 256
FILES = 2000
FSYNCS = 1000
TREE_FILES = 1800
TREE_DIRECTORIES = 150
BIG_SIZE = 15 << 40


# --- data --------------------------------------------------------------------------------------


def _pieces() -> Iterator[bytearray]:
    """DATA_MIB pieces of 1 MiB, each different, none compressible to zeros."""
    piece = bytearray(random.Random(1).randbytes(MIB))
    for number in range(DATA_MIB):
        piece[:8] = number.to_bytes(8, "little")
        yield piece


def data(bench: Bench) -> None:
    """Sequential write with fsync, and reads, in calls of 1 MiB."""
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
        with bench.best("warm read") as passes:
            for _ in passes:
                while os.readv(fd, [buffer]):
                    pass
                os.lseek(fd, 0, os.SEEK_SET)
        for number, piece in enumerate(_pieces()):
            if os.readv(fd, [buffer]) != MIB or buffer != piece:
                raise BenchError(f"piece {number} of the data is wrong")
        os.close(fd)
    with bench.mounted() as root:
        raise_readahead(root)
        fd = os.open(root / "data", os.O_RDONLY)
        with bench.timed("cold read, raised read-ahead"):
            while os.readv(fd, [buffer]):
                pass
        os.close(fd)


# --- metadata ----------------------------------------------------------------------------------


def metadata(bench: Bench) -> None:
    """Empty files in one directory; the calls go through a directory descriptor, names in random order."""
    names = [f"file-{number:05}" for number in range(FILES)]
    shuffled = random.Random(2).sample(names, FILES)
    with bench.mounted() as root:
        (root / "d").mkdir()
        with directory_fd(root / "d") as at:
            with bench.timed("create"):
                for name in names:
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at))
            with bench.timed("stat after create"):
                for name in shuffled:
                    os.stat(name, dir_fd=at)
            with bench.best("warm stat") as passes:
                for _ in passes:
                    for name in shuffled:
                        os.stat(name, dir_fd=at)
    with bench.mounted() as root, directory_fd(root / "d") as at:
        with bench.timed("stat (cold)"):
            for name in shuffled:
                os.stat(name, dir_fd=at)
        with bench.timed("rename"):
            for name in shuffled:
                os.rename(name, f"new-{name}", src_dir_fd=at, dst_dir_fd=at)
        with bench.timed("unlink"):
            for name in names:
                os.unlink(f"new-{name}", dir_fd=at)


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
    """tar in, and cold: tar out, grep -r, du, rm -rf, by the programs themselves."""
    with bench.mounted(unmount="unmount after tar in") as root:
        (root / "t").mkdir()
        with bench.timed("tar in"):
            program("tar", "-xf", bench.archive, "-C", root / "t")
    bench.results["tar in until unmounted"] = bench.results["tar in"] + bench.results["unmount after tar in"]
    with bench.mounted() as root, bench.timed("tar out (cold)"):
        # not -f /dev/null, for which tar reads nothing
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert reader.stdin is not None
        done = subprocess.run(["tar", "-cf", "-", "-C", root, "t"], stdout=reader.stdin, env=environment(), check=False)
        reader.stdin.close()
        if reader.wait() or done.returncode:
            raise BenchError("tar -c failed")
    with bench.mounted() as root, bench.timed("grep -r (cold)"):
        program("grep", "-rq", "no such words anywhere", root / "t", fails=1)
    with bench.mounted() as root, bench.timed("du (cold)"):
        program("du", "-s", root / "t")
    with bench.mounted() as root, bench.timed("rm -rf (cold)"):
        program("rm", "-rf", root / "t")


# --- durability --------------------------------------------------------------------------------


def fsync(bench: Bench, measure: str) -> None:
    """Create, write 4 KiB, fsync, close: FSYNCS times, as mail servers do."""
    block = random.Random(4).randbytes(4096)
    with bench.mounted() as root:
        (root / "d").mkdir()
        os.sync()
        with directory_fd(root / "d") as at, bench.timed(measure):
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


_MANY_INODES = ("-N", "1100000")
_LAZY = ("-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0")

CASES = {
    "data": Case(data, 1 << 30),
    "blocks": Case(blocks, 1 << 30),
    "metadata": Case(metadata, 1 << 30),
    "small": Case(small_files, 1 << 30),
    "parallel": Case(parallel, 1 << 30),
    "tree": Case(tree, 1 << 30),
    "fsync": Case(partial(fsync, measure="create + 4 KiB + fsync, 4 GiB"), 4 << 30),
    "fsync-big": Case(partial(fsync, measure="create + 4 KiB + fsync, 1 TiB"), 1 << 40, _LAZY),
    "mount": Case(scale.mount, 1 << 30),
    "big": Case(big, BIG_SIZE, _LAZY),
    "extents": Case(extents.stream, 3 << 30),
    "extents-tree": Case(extents.tree, 1 << 30),
    "begins": Case(mappings.begins, 1 << 30, fill=mappings.fill),
    "warm-requests": Case(mappings.requests, 1 << 30),
    "open-files": Case(scale.open_files, 1 << 30, fill=scale.fill_files),
    "directories": Case(scale.directories, 8 << 30, _MANY_INODES, scale.fill_directories, slow=True),
    "pieces": Case(scale.pieces, 4 << 30, ("-b", "1024"), scale.fill_pieces, slow=True),
}
