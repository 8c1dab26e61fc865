"""Contents written by the kernel's own ext4 through a loop mount (needs root)."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images.content import ACCESS_ACL, DEFAULT_ACL, LATIN1_NAME, UTF8_NAME, pattern
from images.tools import environment, run

FALLOC_KEEP_SIZE = 1


@contextmanager
def loop_mount(image: Path, *options: str) -> Iterator[Path]:
    """The image mounted by the kernel's ext4 at a fresh directory; unmounted (and so on disk) at the end."""
    with tempfile.TemporaryDirectory(prefix="py4fs-kernel-") as name:
        run(["mount", "-t", "ext4", "-o", ",".join(["loop", *options]), image, name], clock=None)
        try:
            yield Path(name)
        finally:
            run(["umount", name], clock=None)


def available() -> bool:
    """Whether this process may loop-mount at all."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


def _fallocate(path: Path, offset: int, length: int, *flags: str) -> None:
    subprocess.run(
        ["fallocate", *flags, "-o", str(offset), "-l", str(length), os.fspath(path)],
        check=True,
        env=environment(),
    )


def tree(root: Path) -> None:
    """All types, names, owners, xattrs, ACLs, links, nested directories."""
    base = root / "tree"
    base.mkdir()
    for i in range(40):
        sub = base / f"d{i % 8}" / f"e{i}"
        sub.mkdir(parents=True)
        for j in range(6):
            (sub / f"f{j}").write_bytes(pattern(f"{i}/{j}", (i * 997 + j * 4096) % 50_000))
    (base / os.fsdecode(LATIN1_NAME.encode("utf-8", "surrogateescape"))).write_bytes(b"1")
    (base / UTF8_NAME).write_bytes(b"2")
    (base / "fast").symlink_to("t" * 59)
    (base / "slow").symlink_to("t" * 800)
    (base / "hard").hardlink_to(base / "d0/e0/f1")
    for name, kind, number in (
        ("fifo", 0o010644, 0),
        ("socket", 0o140755, 0),
        ("char", 0o020600, os.makedev(4, 64)),
        ("block", 0o060660, os.makedev(300, 70000)),
    ):
        os.mknod(base / name, kind, number)
    owned = base / "owned"
    owned.write_bytes(b"x" * 10)
    os.chown(owned, 70_001, 140_002)
    owned.chmod(0o6755)
    os.setxattr(owned, "user.small", b"1")
    for i in range(8):
        os.setxattr(owned, f"user.large{i}", pattern(f"large{i}", 90))
    os.setxattr(owned, "trusted.t", b"t")
    os.setxattr(owned, "security.s", b"s")
    (base / "acl").write_bytes(b"a")
    os.setxattr(base / "acl", "system.posix_acl_access", ACCESS_ACL)
    os.setxattr(base / "d1", "system.posix_acl_default", DEFAULT_ACL)
    os.utime(base / "fifo", ns=(0, 4_102_444_800_123_456_789))  # year 2100, with nanoseconds
    os.utime(base / "block", ns=(1, -1_000_000_000_000_000_000))


def preallocated(root: Path) -> None:
    """Sparse, unwritten, punched, huge and deeply fragmented files."""
    base = root / "data"
    base.mkdir()
    _fallocate(_filled(base / "unwritten-tail", 10_000), 0, 1 << 20)
    _fallocate(_filled(base / "beyond-eof", 5_000), 0, 1 << 20, "-n")
    _fallocate(_filled(base / "punched", 400_000), 65_536, 131_072, "-p")
    _fallocate(_filled(base / "zeroed", 400_000), 65_536, 131_072, "-z")
    with (base / "far").open("wb") as fp:
        fp.seek(6 << 30)
        fp.write(b"far away")
    with (base / "comb").open("wb") as fp:
        for i in range(6000):
            fp.seek(i * 8192)
            fp.write(b"%08d" % i)


def churn(root: Path) -> None:
    """Create and delete with fixed choices, so that free space, directories and trees get holes."""
    rng = random.Random("churn")
    base = root / "churn"
    base.mkdir()
    names: list[str] = []
    for i in range(1500):
        if names and rng.random() < 0.4:
            (base / names.pop(rng.randrange(len(names)))).unlink()
        else:
            name = f"{i}-" + "x" * rng.randrange(1, 120)
            _filled(base / name, rng.choice((0, 100, 5_000, 40_000)))
            names.append(name)


def small(root: Path) -> None:
    """Files and directories around what fits an inode, grown, shrunk, with attributes in the way."""
    base = root / "small"
    base.mkdir()
    for size in (0, 1, 59, 60, 61, 100, 127, 128, 129, 159, 160, 161, 400):
        _filled(base / f"size-{size}", size)
        os.truncate(_filled(base / f"cut-{size}", size), size // 2)
        with_value = _filled(base / f"value-{size}", size // 2)
        os.setxattr(with_value, "user.in-the-way", pattern(f"value-{size}", 40))
        with with_value.open("r+b") as fp:
            fp.seek(size // 2)
            fp.write(pattern(f"more-{size}", size - size // 2))
    for entries in range(9):
        directory = base / f"dir-{entries}"
        directory.mkdir()
        for i in range(entries):
            _filled(directory / f"entry-{i}", i)
        for i in range(0, entries, 3):
            (directory / f"entry-{i}").unlink()
        (directory / "sub").mkdir()


def large_values(root: Path) -> None:
    """Attributes of all sizes, many of them the same, on files and directories."""
    base = root / "values"
    base.mkdir()
    for i, size in enumerate((10, 900, 1024, 3000, 4040, 4096, 20_000, 65_536)):
        for number in range(3):
            path = base / f"{size}-{number}"
            if number:
                _filled(path, size)
            else:
                path.mkdir()
            os.setxattr(path, "user.shared", pattern(f"shared-{size}", size))
            os.setxattr(path, "user.own", pattern(f"own-{size}-{number}", size))
            os.setxattr(path, f"trusted.{i}", pattern("everybody", 30_000))
    os.removexattr(base / "4096-1", "user.shared")
    os.setxattr(base / "20000-1", "user.shared", b"small now")
    (base / "65536-2").unlink()


def clusters(root: Path) -> None:
    """Files with holes inside clusters, directories and trees of many nodes, each of which takes a cluster."""
    base = root / "clusters"
    base.mkdir()
    for step in (1, 3, 7, 20, 100):
        with (base / f"every-{step}").open("wb") as fp:
            for i in range(60):
                fp.seek(i * step * 4096)
                fp.write(b"%08d" % i)
        path = _filled(base / f"punched-{step}", 800_000)
        for i in range(0, 150, step + 1):
            _fallocate(path, i * 4096, 4096, "-p")
        os.truncate(_filled(base / f"cut-{step}", 300_000), step * 4096)
        _fallocate(_filled(base / f"more-{step}", 5000), 0, step * 10_000, "-n")
    for i in range(300):
        _filled(base / f"{i}-{'long' * 30}", i)


def many_names(root: Path) -> None:
    """An htree with two index levels (1 KiB blocks), and one that shrank again."""
    for base, keep in ((root / "many", 1), (root / "few", 50)):
        base.mkdir()
        for i in range(20_000):
            os.mknod(base / f"a-rather-long-name-to-fill-blocks-{i:07d}", 0o100644)
        for i in range(20_000):
            if i % keep:
                (base / f"a-rather-long-name-to-fill-blocks-{i:07d}").unlink()


def _filled(path: Path, size: int) -> Path:
    path.write_bytes(pattern(path.name, size))
    return path
