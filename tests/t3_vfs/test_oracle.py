"""Random operations on py4fs and on the kernel's ext4: every outcome and the trees that result are the same."""

from __future__ import annotations

import fcntl
import os
import random
import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.conftest import KernelMount
from tests.support.image import ImageMaker, superblock
from tests.support.tree import Snapshot, assert_same, snapshot
from tests.support.worlds import FS_IOC_GETFLAGS, UMASK, ApiWorld, KernelWorld, outcome

Op = tuple[str, tuple[Any, ...]]

PAGE = 4096
CONVERTING = ("fallocate", "truncate")
NEAR_AN_INODE = [0, 1, 59, 60, 61, 100, 128, 129]


def acl_value(*entries: tuple[int, int, int]) -> bytes:
    """posix_acl_xattr, version 2: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


WEIGHTS = {
    "mkdir": 14, "write": 22, "truncate": 8, "symlink": 4, "link": 5, "mknod": 3, "unlink": 8, "rmdir": 5, "rename": 12,
    "chmod": 4, "chown": 4, "utime": 4, "setxattr": 8, "removexattr": 3, "acl": 4, "read": 3, "listdir": 3,
    "fallocate": 14, "tmpfile": 4, "setflags": 12, "copyrange": 6,
}  # fmt: skip
TIMES = [second * 10**9 for second in (0, 631152000, 4102444800, -2147483648)]
TIMES_OF_A_NODE = ("atime", "mtime", "ctime")
NO_ID = 0xFFFFFFFF
#: NODUMP, NOATIME, SYNC, NOTAIL; DIRSYNC, TOPDIR: for directories only; immutable, append-only
FLAGS = [0, 0, 0, 0, 0x40, 0x80, 0xC8, 0x8040, 0x10000, 0x20080, 0x10, 0x20]
ACLS = [
    acl_value((1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID)),
    acl_value((1, 6, NO_ID), (4, 4, NO_ID), (32, 4, NO_ID)),
    acl_value((1, 7, NO_ID), (4, 0, NO_ID), (8, 3, 77), (16, 3, NO_ID), (32, 0, NO_ID)),
]


class Generator:
    """Operations that mostly make sense on a tree that it keeps a rough idea of."""

    def __init__(self, rng: random.Random, small: float = 0, values: Sequence[int] = ()) -> None:
        """`small`: how many writes and truncations stay near what an inode can hold.

        `values`: sizes of large attributes, of which many have the same value.
        """
        self.rng = rng
        self.small = small
        self.values = values
        self.names = ["a", "b", "c", "d", "long" * 40, "ü", "x y"]
        self.paths: list[str] = []

    def path(self) -> str:
        rng = self.rng
        if self.paths and rng.random() < 0.75:
            return rng.choice(self.paths)
        return self.new_path()

    def new_path(self) -> str:
        rng = self.rng
        base = rng.choice(self.paths) + "/" if self.paths and rng.random() < 0.8 else ""
        if base.count("/") > 5:
            base = base.split("/")[0] + "/"
        path = base + rng.choice(self.names) + str(rng.randrange(6))
        self.paths.append(path)
        if len(self.paths) > 60:
            self.paths.pop(rng.randrange(len(self.paths)))
        return path

    def data(self, length: int) -> bytes:
        return self.rng.randbytes(length) if self.rng.random() < 0.8 else bytes(length)

    def value(self) -> bytes:
        rng = self.rng
        if self.values and rng.random() < 0.8:
            return rng.choice([b"a", b"b"]) * rng.choice(self.values)
        return rng.randbytes(rng.choice([0, 1, 20, 90, 300, 900]))

    def write(self) -> tuple[str, int, bytes]:
        rng = self.rng
        if rng.random() < self.small:
            return self.path(), rng.choice([0, 0, 0, 10, 60, 100]), self.data(rng.randrange(1, 150))
        offset = rng.randrange(40) * PAGE
        return self.path(), offset, self.data(rng.randrange(1, 12) * PAGE)

    def range_of(self, kind: str) -> tuple[Any, ...]:
        rng = self.rng
        if kind == "copyrange":
            data = self.data(rng.randrange(1, 12) * PAGE)
            offset = rng.randrange(len(data))
            length = rng.randrange(1, len(data) - offset + 1)
            return self.path(), data, offset, length, self.path(), rng.randrange(40 * PAGE)
        mode = rng.choice([0, 1, 3, 3, 0x10, 0x11, 0x08, 0x20, 0x02, 0x28])
        unit = rng.choice([1, 512, PAGE, PAGE])
        offset = rng.randrange(0, 40 * PAGE) // unit * unit
        return self.path(), mode, offset, rng.randrange(0, 20 * PAGE) // unit * unit

    def next(self) -> Op:
        rng = self.rng
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        match kind:
            case "mkdir":
                return kind, (self.new_path(), rng.choice([0o777, 0o2755, 0o1777, 0o700]))
            case "write":
                return kind, self.write()
            case "fallocate" | "copyrange":
                return kind, self.range_of(kind)
            case "truncate":
                near = rng.random() < self.small
                return kind, (self.path(), rng.choice(NEAR_AN_INODE) if near else rng.randrange(0, 50 * PAGE))
            case "symlink":
                return kind, ("t" * rng.choice([1, 59, 60, 61, 200, 900]), self.new_path())
            case "link":
                return kind, (self.path(), self.new_path())
            case "tmpfile":
                data = self.data(rng.randrange(1, 6) * PAGE)
                return kind, (self.path(), rng.choice([0o644, 0o2775, 0o600]), data, self.new_path())
            case "setflags":
                return kind, (self.path(), rng.choice(FLAGS))
            case "mknod":
                mode = rng.choice([0o010644, 0o140600, 0o020600, 0o060600, 0o100640])
                return kind, (self.new_path(), mode, os.makedev(rng.choice([8, 300]), rng.choice([1, 70000])))
            case "unlink" | "rmdir" | "read" | "listdir":
                return kind, (self.path(),)
            case "rename":
                return kind, (self.path(), self.path(), rng.choice([0, 0, 0, 0, 1, 2, 4, 5, 6]))
            case "chmod":
                return kind, (self.path(), rng.choice([0o644, 0o600, 0o4755, 0o2775, 0o1777]))
            case "chown":
                return kind, (self.path(), rng.choice([0, 1000, 70001, 0xFFFFFFFE]), rng.choice([0, 1000, 70002]))
            case "utime":
                atime, mtime = (rng.choice(TIMES) + rng.randrange(10**9) for _ in range(2))
                return kind, (self.path(), atime, mtime)
            case "setxattr":
                name = rng.choice(["user.a", "user.b", "user.long" * 6, "trusted.t", "security.s", "bad.x"])
                return kind, (self.path(), name, self.value(), rng.choice([0, 0, 0, 1, 2]))
            case "removexattr":
                return kind, (self.path(), rng.choice(["user.a", "user.b", "trusted.t"]))
        name = rng.choice(["system.posix_acl_access", "system.posix_acl_default"])
        return "setxattr", (self.path(), name, rng.choice(ACLS), 0)


def run(
    image: Path,
    copy: Path,
    kernel_mount: KernelMount,
    rng: random.Random,
    count: int,
    small: float = 0,
    values: Sequence[int] = (),
    settled: Sequence[str] = (),
    same_totals: bool = True,
) -> None:
    """`settled`: operations after which the kernel has to write everything.

    Not `same_totals`: the kernel may have found fewer values to share, for it forgets those that are not in memory.
    """
    generator = Generator(rng, small, values)
    done: list[str] = []
    old_umask = os.umask(UMASK)
    try:
        with kernel_mount(image) as mounted:
            kernel, ours = KernelWorld(mounted), ApiWorld(copy)
            try:
                for number in range(count):
                    name, args = generator.next()
                    results = []
                    shown = [arg if not isinstance(arg, bytes) else f"<{len(arg)} bytes>" for arg in args]
                    done.append(f"{name}{tuple(shown)}")
                    for world in (kernel, ours):
                        world.begin()
                        results.append(outcome(getattr(world, name), *args))
                        world.finish()
                    if name in settled:
                        kernel.settle()
                    assert results[1] == results[0], f"operation {number}: {done[-1]}"
                    if rng.random() < 0.02:
                        ours.fs.sync()
            finally:
                ours.fs.close()
    finally:
        os.umask(old_umask)
    with kernel_mount(image, "ro,noatime") as left, kernel_mount(copy, "ro,noatime") as right:
        want, got = snapshot(left), snapshot(right)
        assert_same(want, got, ignore=(*TIMES_OF_A_NODE, "blocks"))
        if int(superblock(image).get("Inode size", 128)) > 128:  # else seconds do not tell operations apart
            assert_same_times(want, got, kernel, ours, done)
        for path, node in want.items():
            if node.type in ("file", "directory"):
                flags = [inode_flags(os.path.join(os.fsencode(root), path)) for root in (left, right)]
                assert flags[0] == flags[1], f"{path!r}: flags {flags[1]:#x}, in the kernel {flags[0]:#x}"
        unit = cluster_size(image)
        difference = assert_same_blocks(want, got, (image, copy), unit)
        a, b = os.statvfs(left), os.statvfs(right)
        if not same_totals:
            assert a.f_ffree <= b.f_ffree and a.f_bfree <= b.f_bfree + difference // a.f_bsize
            return
        assert (a.f_blocks, a.f_files, a.f_ffree) == (b.f_blocks, b.f_files, b.f_ffree)
        assert (a.f_bfree - b.f_bfree, a.f_bavail - b.f_bavail) == (difference // a.f_bsize,) * 2


def inode_flags(path: bytes) -> int:
    """What lsattr(1) shows."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags: int = struct.unpack("<Q", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
    finally:
        os.close(fd)
    return flags


def assert_same_times(
    want: Snapshot, got: Snapshot, kernel: KernelWorld, ours: ApiWorld, done: list[str]
) -> None:
    """Every time was set by the same operation, or to the same value by utime."""
    wrong = []
    for path, node in want.items():
        for which in TIMES_OF_A_NODE:
            expected = getattr(node, which)
            found = getattr(got[path], which)
            step = kernel.step_of(expected)
            if step is None and path:
                if expected != found:
                    wrong.append(f"{path!r} {which}: want {expected}, got {found}")
            elif step is not None and ours.step_of(found) != step:
                by_us = done[step].startswith(("listdir", "mkdir"))
                if which == "atime" and node.type == "directory" and not by_us:
                    continue  # some other program on this machine read the kernel's directory
                other = ours.step_of(found)
                by = "nothing" if other is None else done[other]
                wrong.append(f"{path!r} {which}: set by {other}: {by}, in the kernel by {step}: {done[step]}")
    assert not wrong, "\n".join(wrong[:20])


def assert_same_blocks(want: Snapshot, got: Snapshot, images: tuple[Path, Path], block: int) -> int:
    """i_blocks are the same, but for nodes of the extent tree, where the file is or was scattered differently.

    How a file is scattered is policy; that data and trees add up is not. Returns the bytes that `got` has more.
    """
    more: dict[bytes, int] = {}
    for path, node in want.items():
        difference = (got[path].blocks - node.blocks) * 512
        if difference and node.link_of == path:
            assert node.type == "file", f"{path!r}: blocks: want {node.blocks}, got {got[path].blocks}"
            nodes = [tree_nodes(image, path) for image in images]
            assert difference == (nodes[1] - nodes[0]) * block, f"{path!r}: want {node.blocks}, got {got[path].blocks}"
            more[path] = difference
    return sum(more.values())


def cluster_size(image: Path) -> int:
    """Bytes of what a node of an extent tree takes: a cluster, or a block without bigalloc."""
    sb = superblock(image)
    return int(sb.get("Cluster size", sb["Block size"]))


def tree_nodes(image: Path, path: bytes) -> int:
    """Nodes of a file's extent tree outside the inode: debugfs prints a line for each index entry."""
    request = b'dump_extents -n "/' + path + b'"'
    done = subprocess.run(["debugfs", "-R", request, image], capture_output=True, check=True)
    return len(re.findall(rb"^ *\d+/ *\d+ ", done.stdout, re.MULTILINE))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "args",
    [
        ("-b", "4096"),
        ("-b", "1024"),
        ("-b", "2048", "-I", "256", "-O", "metadata_csum_seed"),
        ("-b", "1024", "-t", "ext2"),
        ("-b", "4096", "-O", "^extent,^64bit"),
    ],
    ids=["4k", "1k", "2k-seed", "ext2", "block-maps"],
)
def test_random_operations_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    image = make_image("64M", *args)
    run(image, make_image.copy(image, "ours.img"), kernel_mount, rng, 500)


@pytest.mark.long
@pytest.mark.parametrize("round", range(10))
def test_many_random_operations_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, round: int
) -> None:
    variant = rng.choice([("-t", "ext4"), ("-t", "ext4"), ("-t", "ext2"), ("-O", "^metadata_csum,uninit_bg")])
    image = make_image("256M", "-b", rng.choice(["1024", "2048", "4096"]), *variant)
    run(image, make_image.copy(image, "ours.img"), kernel_mount, rng, 5000)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "args",
    [
        ("-b", "4096", "-O", "inline_data"),
        ("-b", "1024", "-I", "512", "-O", "inline_data"),
        ("-b", "1024", "-O", "inline_data,^dir_index"),
    ],
    ids=["4k", "1k-i512", "linear"],
)
def test_random_operations_on_inline_data_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    """What fallocate and truncate move out of an inode, the kernel (6.18) journals as metadata, and a checkpoint then
    writes over what has been written to that block since, unless it was forced to write before.
    """
    image = make_image("64M", *args)
    copy = make_image.copy(image, "ours.img")
    run(image, copy, kernel_mount, rng, 700, small=0.75, settled=CONVERTING)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "args",
    [
        ("-b", "4096", "-O", "ea_inode"),
        ("-b", "1024", "-O", "ea_inode,inline_data"),
        ("-b", "2048", "-I", "512", "-O", "ea_inode"),
    ],
    ids=["4k", "1k-inline", "2k-i512"],
)
def test_random_operations_on_large_attributes_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    image = make_image("64M", *args)
    sizes = [500, 800, 900, 1000, 3000, 4000, 4050, 5000, 20000, 65536]
    with mock.patch.dict(WEIGHTS, setxattr=50, removexattr=20):
        run(image, make_image.copy(image, "ours.img"), kernel_mount, rng, 700, values=sizes, settled=CONVERTING)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "args",
    [
        ("-b", "4096", "-C", "16384"),
        ("-b", "1024", "-C", "65536"),
        ("-b", "1024", "-C", "2048", "-O", "inline_data,ea_inode"),
        ("-b", "2048", "-C", "32768", "-O", "^has_journal,^metadata_csum,uninit_bg"),
    ],
    ids=["4k-16k", "1k-64k", "1k-2k-inline", "2k-32k-crc16"],
)
def test_random_operations_on_clusters_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, args: tuple[str, ...]
) -> None:
    features = "bigalloc," + args[-1] if "-O" in args else "bigalloc"
    rest = args[: args.index("-O")] if "-O" in args else args
    image = make_image("256M", *rest, "-O", features)
    settled = CONVERTING if "inline_data" in features else ()
    with mock.patch.dict(WEIGHTS, fallocate=40, truncate=20):
        run(image, make_image.copy(image, "ours.img"), kernel_mount, rng, 700, settled=settled)


FORMATS = {
    "rev0": ("-t", "ext2", "-r", "0", "-I", "128", "-O", "none"),
    "meta_bg": ("-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"),
    "meta_bg-32bit": ("-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,uninit_bg"),
    "sparse_super2": ("-O", "sparse_super2,^resize_inode"),
    "sparse_super2-one": ("-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=1"),
    "uninit_bg": ("-b", "1024", "-O", "^metadata_csum,uninit_bg"),
    "no-csum": ("-O", "^metadata_csum,^uninit_bg,^64bit"),
    "i512": ("-b", "1024", "-I", "512"),
    "i1024": ("-b", "1024", "-I", "1024", "-O", "inline_data"),
    "i4096": ("-b", "4096", "-I", "4096", "-N", "4096", "-O", "inline_data,ea_inode"),
    "flex-64": ("-b", "1024", "-G", "64", "-g", "1024"),
    "no-flex_bg": ("-b", "1024", "-O", "^flex_bg"),
    "no-filetype": ("-O", "^filetype"),
    "no-extra_isize": ("-b", "1024", "-I", "256", "-O", "^extra_isize"),
    "no-huge_file": ("-O", "^huge_file"),
    "no-large_file": ("-O", "^large_file,^huge_file"),
    "stable_inodes": ("-O", "stable_inodes"),
    "orphan_file": ("-O", "orphan_file,metadata_csum_seed"),
    "ext3": ("-t", "ext3"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FORMATS)
def test_random_operations_on_other_formats_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, name: str
) -> None:
    """A short run each: what is in it differs little, where it lies and how it is stored does."""
    image = make_image("48M", *FORMATS[name])
    settled = CONVERTING if "inline_data" in FORMATS[name][-1] else ()
    run(image, make_image.copy(image, "ours.img"), kernel_mount, rng, 200, settled=settled)


MANY = {
    "inline": ("-b", "4096", "-O", "inline_data"),
    "values": ("-b", "1024", "-O", "ea_inode"),
    "clusters": ("-b", "1024", "-O", "bigalloc", "-C", "8192"),
    "all": ("-b", "4096", "-I", "512", "-O", "bigalloc,inline_data,ea_inode,orphan_file,large_dir", "-C", "16384"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MANY)
def test_many_random_operations_on_formats_equal_the_kernel(
    make_image: ImageMaker, kernel_mount: KernelMount, rng: random.Random, name: str
) -> None:
    image = make_image("512M", *MANY[name])
    inline = "inline_data" in " ".join(MANY[name])
    values = [800, 1000, 4000, 20000] if "ea_inode" in " ".join(MANY[name]) else []
    copy = make_image.copy(image, "ours.img")
    settled = CONVERTING if inline else ()
    small = 0.5 if inline else 0
    run(image, copy, kernel_mount, rng, 5000, small, values, settled, same_totals=not values)
