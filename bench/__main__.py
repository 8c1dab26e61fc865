"""py4fs and fuse2fs side by side: `python -m bench [--drivers py4fs fuse2fs kernel] [--no-big] [--files N]`.

Every driver gets fresh images of the same kind. Times are in seconds, lower is better; the ratio is to fuse2fs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from images.tools import environment, mke2fs

MIB = 1 << 20
DATA_SIZE = 256 * MIB
Results = dict[str, float]


def _py4fs(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "py4fs.cli.main", *map(str, words)]


def _pid_of(image: Path) -> int | None:
    """The server of an image: the process that has it open."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if any(fd.readlink() == image for fd in (entry / "fd").iterdir()):
                    return int(entry.name)
            except OSError:
                continue
    return None


def mount(driver: str, image: Path, directory: Path) -> None:
    if driver == "py4fs":
        command = _py4fs("mount", image, directory)
    elif driver == "fuse2fs":
        command = ["fuse2fs", str(image), str(directory), "-o", "rw,fakeroot"]
    else:
        command = ["mount", "-o", "loop", str(image), str(directory)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(None))


def unmount(driver: str, image: Path, directory: Path) -> None:
    """Returns when the server has gone."""
    if driver == "py4fs":
        subprocess.run(_py4fs("umount", directory), check=True)
    elif driver == "kernel" or os.geteuid() == 0:
        subprocess.run(["umount", directory], check=True)
    else:
        subprocess.run(["fusermount3", "-u", directory], check=True)
    while driver == "fuse2fs" and _pid_of(image) is not None:
        time.sleep(0.01)


@contextmanager
def mounted(driver: str, image: Path) -> Iterator[Path]:
    directory = image.with_suffix(".mnt")
    directory.mkdir(exist_ok=True)
    mount(driver, image, directory)
    try:
        yield directory
    finally:
        unmount(driver, image, directory)


def cold(directory: Path) -> None:
    """Forget what the kernel has cached of the mount."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


class Clock:
    """Collects the time of each step: of the wall clock, or of the processor when a server's `pid` is given."""

    def __init__(self, pid: int | None = None) -> None:
        self.results: Results = {}
        self._pid = pid

    def measure(self, name: str, step: Callable[[], object]) -> None:
        start = self._now()
        step()
        self.results[name] = self._now() - start

    def _now(self) -> float:
        if self._pid is None:
            return time.perf_counter()
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sequential_write(path: Path) -> None:
    block = os.urandom(MIB)
    with path.open("wb", buffering=0) as fp:
        for _ in range(DATA_SIZE // MIB):
            fp.write(block)
        os.fsync(fp.fileno())


def sequential_read(path: Path) -> None:
    with path.open("rb", buffering=0) as fp:
        while fp.read(MIB):
            pass


def data(clock: Clock, root: Path) -> None:
    clock.measure("write 256 MiB, fsync", lambda: sequential_write(root / "big"))
    cold(root)
    clock.measure("read 256 MiB, cold", lambda: sequential_read(root / "big"))
    (root / "big").unlink()


def metadata(clock: Clock, root: Path, files: int) -> None:
    base = root / "files"
    base.mkdir()
    names = [base / f"file-{i:05d}" for i in range(files)]

    def create() -> None:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))

    def stat() -> None:
        for name in names:
            name.stat()

    def rename() -> None:
        for name in names:
            name.rename(name.with_suffix(".new"))

    def unlink() -> None:
        for name in names:
            name.with_suffix(".new").unlink()

    clock.measure(f"create {files} files", create)
    cold(root)
    clock.measure(f"stat {files} files, cold", stat)
    clock.measure(f"stat {files} files, warm", stat)
    cold(root)
    clock.measure("list the directory, cold", lambda: [e.stat() for e in os.scandir(base)])
    clock.measure(f"rename {files} files", rename)
    clock.measure(f"unlink {files} files", unlink)


def programs(clock: Clock, root: Path, archive: Path) -> None:
    def run(*command: str | Path) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, cwd=root)

    clock.measure("tar x (2,000 files)", run("tar", "xf", archive))
    cold(root)
    clock.measure("tar c to /dev/null, cold", run("sh", "-c", "tar cf - tree | cat > /dev/null"))
    clock.measure("rm -rf", run("rm", "-rf", "tree"))


def make_archive(work: Path) -> Path:
    """2,000 files of 0 to 16 KiB in 100 directories."""
    tree = work / "tree"
    for i in range(2000):
        path = tree / f"d{i % 10}" / f"e{i % 100}" / f"file-{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(i * 37 % 16384))
    archive = work / "tree.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tree, "tree")
    shutil.rmtree(tree)
    return archive


def memory_of(pid: int) -> int:
    """Resident memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def big(work: Path) -> None:
    """A 15 TiB image: how long mounting takes, and the memory of the server."""
    image = work / "big.img"
    mke2fs(image, 15 << 40, "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", clock=None)
    directory = image.with_suffix(".mnt")
    directory.mkdir()
    start = time.perf_counter()
    mount("py4fs", image, directory)
    elapsed = time.perf_counter() - start
    try:
        pid = _pid_of(image)
        (directory / "file").write_bytes(b"x")
        os.statvfs(directory)
        resident = memory_of(pid) / MIB if pid else 0.0
    finally:
        unmount("py4fs", image, directory)
    print(f"\n15 TiB image: py4fs mounts it in {elapsed:.2f} s, the server has {resident:.0f} MiB resident")


def run_driver(driver: str, work: Path, archive: Path, files: int, cpu: bool) -> Results:
    image = work / f"{driver}.img"
    mke2fs(image, 2 << 30, "-b", "4096", clock=None)
    with mounted(driver, image) as root:
        clock = Clock(_pid_of(image) if cpu else None)
        data(clock, root)
        metadata(clock, root, files)
        programs(clock, root, archive)
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True, env=environment(None))
    image.unlink()
    return clock.results


def show(results: dict[str, Results]) -> None:
    drivers = list(results)
    print(f"{'seconds':<28}" + "".join(f"{driver:>10}" for driver in drivers) + f"{'py4fs/fuse2fs':>16}")
    for step in results[drivers[0]]:
        line = f"{step:<28}" + "".join(f"{results[driver][step]:>10.3f}" for driver in drivers)
        if {"py4fs", "fuse2fs"} <= set(drivers):
            line += f"{results['py4fs'][step] / results['fuse2fs'][step]:>16.2f}"
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--drivers", nargs="+", choices=("py4fs", "fuse2fs", "kernel"), default=["py4fs", "fuse2fs"])
    parser.add_argument("--files", type=int, default=2000, help="how many files the metadata steps use")
    parser.add_argument("--cpu", action="store_true", help="processor time of the server instead of elapsed time")
    parser.add_argument("--no-big", action="store_true", help="leave the 15 TiB image out")
    parser.add_argument("--work", type=Path, help="directory for the images (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="py4fs-bench-", dir=args.work) as name:
        work = Path(name).resolve()
        archive = make_archive(work)
        show({driver: run_driver(driver, work, archive, args.files, args.cpu) for driver in args.drivers})
        if not args.no_big:
            big(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
