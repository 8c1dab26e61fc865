"""Operations that fail half-way: without space, without inodes, with a device that cannot read or write.

Every scenario runs with its first, second, third … allocation (or read) failing, until none is left to fail. After
each failure memory and tree are as they were, and the operation then succeeds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from images.tools import fsck_clean, mke2fs, run
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.faulty import FaultyDevice
from py4fs.device.memory import MemoryDevice
from py4fs.errors import DeviceError, FsError, NoSpace, NotFound, ReadOnly
from py4fs.ext4.directory import Directory
from py4fs.ext4.layout.superblock import EXT4_VALID_FS, SUPERBLOCK
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import RENAME_EXCHANGE, RENAME_WHITEOUT, ROOT, ROOT_INO, Vfs, in_any_group
from py4fs.vfs.ranges import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from tests.support.core import need_interpreted
from tests.support.logs import LogGuard
from tests.support.state import MemoryState, Tree, assert_same_tree, check_derived, cool, tree_state
from tests.support.volumes import Clock

BLOCK = 1024
NO_ID = 0xFFFFFFFF
MANY = 10_000
FEW = 40


def acl_value(*entries: tuple[int, int, int]) -> bytes:
    """posix_acl_xattr, version 2: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL = acl_value((1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID))
ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"


def open_bytes(image: bytes | bytearray) -> tuple[Filesystem, FaultyDevice, MemoryDevice]:
    memory = MemoryDevice(image)
    device = FaultyDevice(memory)
    options = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
    return open_device(device, clock=Clock(), options=options), device, memory


def fill_linear(fs: Filesystem) -> None:
    """A one-block directory whose next name makes an index of it."""
    fs.mkdir("/full")
    for number in range(MANY):
        fs.link("/d/f", f"/full/{number:04}{'x' * 40}")
        inode = fs.volume.inodes.get(fs.stat("/full").ino)
        index: Directory = inode.dirindex
        if not inode.is_inline and max(index.block(0, 0).room, default=0) < 60:
            return


def fill_htree(fs: Filesystem, path: str, length: int, until: Callable[[Directory], bool]) -> None:
    """An indexed directory that the next name, `0000 + number of entries`, changes as ``until`` says."""
    fs.mkdir(path)
    ino = fs.stat(path).ino
    for number in range(MANY):
        name = f"{number:05}".ljust(length, "x")
        fs.link("/d/f", f"{path}/{name}")
        if number > 40 and until(fs.volume.namespace.directory(fs.volume.inodes.get(ino))):
            fs.unlink(f"{path}/{name}")
            return
    raise AssertionError("never came")


def comb(fs: Filesystem, path: str, count: int) -> None:
    """A file of ``count`` extents of a block, with a hole behind each."""
    with fs.open(path, "wb") as file:
        for number in range(count):
            file.seek(number * 2 * BLOCK)
            file.write(bytes([1 + number % 250]) * BLOCK)


def populate(fs: Filesystem) -> None:
    fs.mkdir("/d")
    fs.mkdir("/d/sub")
    fs.mkdir("/d/sub/empty")
    fs.mkdir("/e")
    fs.mkdir("/e/empty")
    fs.write_bytes("/d/f", b"contents of f" * 200)
    fs.write_bytes("/d/g", b"g")
    fs.link("/d/g", "/e/g-again")
    fs.write_bytes("/e/victim", b"v" * 5000)
    fs.symlink("short", "/d/fast")
    fs.symlink("long/" * 40, "/d/slow")
    fs.write_bytes("/d/xbody", b"x")
    fs.setxattr("/d/xbody", "user.small", b"1")
    for name in ("xblock", "xshared"):
        fs.write_bytes(f"/d/{name}", b"x")
        fs.setxattr(f"/d/{name}", "user.large", b"large" * 40)
    fs.write_bytes("/d/xalone", b"x")
    fs.setxattr("/d/xalone", "user.large", b"alone" * 40)
    fs.mkdir("/acl")
    fs.setxattr("/acl", DEFAULT, ACL)
    fs.write_bytes("/acl/file", b"")
    fs.setxattr("/acl/file", ACCESS, ACL)
    fs.setxattr("/acl/file", "user.more", b"m" * 300)
    fs.write_bytes("/big", os.urandom(64) * 4096)
    comb(fs, "/four", 4)
    comb(fs, "/leaf", 84)
    comb(fs, "/leaves", 84 * 4)
    comb(fs, "/cut", 170)
    with fs.open("/hole", "wb") as file:
        file.truncate(100 * BLOCK)
    fill_linear(fs)
    size = [0]

    def grew(directory: Directory) -> bool:
        before, size[0] = size[0], directory.nblocks
        return bool(before) and size[0] > before

    fill_htree(fs, "/split", 30, grew)
    size[0] = 0
    fill_htree(fs, "/levels", 240, lambda directory: directory.tree.root().levels == 1)


FEATURES = {
    "extents": "^has_journal,^resize_inode",
    "map": "^has_journal,^resize_inode,^extent,^flex_bg,^64bit,^metadata_csum",
    "journal": "^resize_inode",
    "inline": "^has_journal,^resize_inode,inline_data,ea_inode",
    "clusters": "^has_journal,^resize_inode,bigalloc",
}


@cache
def base_image(kind: str, directory: Path) -> bytes:
    path = directory / f"{kind}.img"
    journal = ("-J", "size=1") if kind == "journal" else ()
    units = ("-C", str(4 * BLOCK)) if kind == "clusters" else ("-g", "2048")
    mke2fs(path, 16 << 20, "-b", str(BLOCK), *units, "-N", "512", "-O", FEATURES[kind], *journal)
    fs, _, memory = open_bytes(path.read_bytes())
    populate(fs)
    fs.close()
    path.write_bytes(memory.data)
    fsck_clean(path)
    return bytes(memory.data)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def base(directory: Path) -> bytes:
    return base_image("extents", directory)


@dataclass(frozen=True)
class Scenario:
    """One operation. ``prepare`` opens handles and the like; ``steps``: it consists of several operations, so a
    failure may leave blocks behind that were allocated or not freed yet (never other contents). ``stamps``: times
    change first, whatever comes of the rest, as in the kernel. ``partly``: and data is changed range by range.
    ``kind``: of the image."""

    name: str
    act: Callable[[Vfs, dict[str, int]], Any]
    prepare: Callable[[Filesystem], dict[str, int]] | None = None
    steps: bool = False
    stamps: bool = False
    partly: bool = False
    kind: str = "extents"

    def __str__(self) -> str:
        return self.name if self.kind == "extents" else f"{self.kind}: {self.name}"

    def assert_unchanged(self, before: Tree, contents: Tree, state: MemoryState, fs: Filesystem) -> None:
        """After a failure."""
        if self.partly:
            return
        if self.stamps:
            assert_same_tree(without_times(contents), without_times(tree_state(fs, blocks=False)))
        elif self.steps:
            assert_same_tree(contents, tree_state(fs, blocks=False))
        else:
            state.assert_same(fs.vfs)
            assert_same_tree(before, tree_state(fs))


PATHS = [
    "d", "d/sub", "d/sub/empty", "e", "e/empty", "e/victim", "d/f", "d/g", "d/xbody", "d/xblock", "d/xalone", "acl",
    "acl/file", "big", "four", "leaf", "leaves", "cut", "hole", "full", "split", "levels",
]  # fmt: skip


@cache
def inode_numbers(base: bytes) -> dict[str, int]:
    fs, _, _ = open_bytes(base)
    found = {path: fs.lstat(path).ino for path in PATHS}
    found[""] = ROOT_INO
    # the names that make a directory split were counted when it was filled
    for path in ("split", "levels"):
        found[path + " count"] = len(fs.listdir(path))
    fs.close()
    return found


def opened(path: str) -> Callable[[Filesystem], dict[str, int]]:
    def prepare(fs: Filesystem) -> dict[str, int]:
        return {"fh": fs.vfs.open(fs.stat(path).ino, os.O_RDWR)}

    return prepare


def rights(path: str) -> Callable[[Filesystem], dict[str, int]]:
    def prepare(fs: Filesystem) -> dict[str, int]:
        fs.chmod(path, 0o6755)
        fs.setxattr(path, "security.capability", b"c" * 20)
        return {"ino": fs.stat(path).ino} | opened(path)(fs)

    return prepare


def nameless(fs: Filesystem) -> dict[str, int]:
    _, attr = fs.vfs.tmpfile(ROOT_INO, 0o644, os.O_RDWR, ROOT)
    return {"ino": attr.ino}


def two(source: str, target: str) -> Callable[[Filesystem], dict[str, int]]:
    def prepare(fs: Filesystem) -> dict[str, int]:
        return {"from": opened(source)(fs)["fh"]} | opened(target)(fs)

    return prepare


def next_name(n: dict[str, int], path: str, length: int) -> bytes:
    return f"{n[path + ' count']:05}".ljust(length, "x").encode()


SCENARIOS = [
    Scenario("mkdir", lambda v, n: v.mkdir(n["d"], b"new")),
    Scenario("mkdir in root", lambda v, n: v.mkdir(n[""], b"new")),
    Scenario("mkdir default acl", lambda v, n: v.mkdir(n["acl"], b"new")),
    Scenario("mknod", lambda v, n: v.mknod(n["d"], b"new", 0o020644, 0x801)),
    Scenario("create", lambda v, n: v.create(n["d"], b"new", 0o644, os.O_RDWR)),
    Scenario("create default acl", lambda v, n: v.create(n["acl"], b"new", 0o644, os.O_RDWR)),
    Scenario("create into index", lambda v, n: v.mknod(n["full"], b"n" * 200, 0o100644)),
    Scenario("create splits leaf", lambda v, n: v.mknod(n["split"], next_name(n, "split", 30), 0o100644)),
    Scenario("create adds level", lambda v, n: v.mknod(n["levels"], next_name(n, "levels", 240), 0o100644)),
    Scenario("symlink fast", lambda v, n: v.symlink(n["d"], b"new", b"target")),
    Scenario("symlink block", lambda v, n: v.symlink(n["d"], b"new", b"target" * 50)),
    Scenario("link", lambda v, n: v.link(n["d/f"], n["e"], b"new")),
    Scenario("link splits leaf", lambda v, n: v.link(n["d/g"], n["split"], next_name(n, "split", 30))),
    Scenario("tmpfile", lambda v, n: v.tmpfile(n["d"], 0o644, os.O_RDWR, ROOT)),
    Scenario("tmpfile default acl", lambda v, n: v.tmpfile(n["acl"], 0o644, os.O_RDWR, ROOT)),
    Scenario("link first name", lambda v, n: v.link(n["ino"], n["split"], next_name(n, "split", 30)), nameless),
    Scenario("unlink", lambda v, n: v.unlink(n["e"], b"victim")),
    Scenario("unlink one of two", lambda v, n: v.unlink(n["e"], b"g-again")),
    Scenario("unlink held", lambda v, n: v.unlink(n["e"], b"victim"), opened("e/victim")),
    Scenario("unlink symlink", lambda v, n: v.unlink(n["d"], b"slow")),
    Scenario("unlink extents", lambda v, n: v.unlink(n[""], b"leaves"), steps=True),
    Scenario("unlink in index", lambda v, n: v.unlink(n["split"], b"00007".ljust(30, b"x"))),
    Scenario("unlink xattr block", lambda v, n: v.unlink(n["d"], b"xblock")),
    Scenario("unlink lone xattr block", lambda v, n: v.unlink(n["d"], b"xalone")),
    Scenario("rmdir", lambda v, n: v.rmdir(n["e"], b"empty")),
    Scenario("rename", lambda v, n: v.rename(n["d"], b"f", n["d"], b"new")),
    Scenario("rename whiteout", lambda v, n: v.rename(n["d"], b"f", n["e"], b"victim", RENAME_WHITEOUT)),
    Scenario("rename whiteout acl", lambda v, n: v.rename(n["acl"], b"file", n["split"], b"n", RENAME_WHITEOUT)),
    Scenario("rename across", lambda v, n: v.rename(n["d"], b"f", n["e"], b"new")),
    Scenario("rename over file", lambda v, n: v.rename(n["d"], b"f", n["e"], b"victim")),
    Scenario("rename dir over dir", lambda v, n: v.rename(n["d"], b"sub", n["e"], b"empty")),
    Scenario("rename dir across", lambda v, n: v.rename(n["d"], b"sub", n["e"], b"new")),
    Scenario("rename into index", lambda v, n: v.rename(n["d"], b"f", n["full"], b"n" * 200)),
    Scenario("rename splits leaf", lambda v, n: v.rename(n["d"], b"f", n["split"], next_name(n, "split", 30))),
    Scenario("rename within split", lambda v, n: v.rename(
        n["split"], b"00007".ljust(30, b"x"), n["split"], next_name(n, "split", 30))),
    Scenario("exchange", lambda v, n: v.rename(n["d"], b"f", n["e"], b"victim", RENAME_EXCHANGE)),
    Scenario("exchange file and dir", lambda v, n: v.rename(n["d"], b"sub", n["e"], b"victim", RENAME_EXCHANGE)),
    Scenario("chmod", lambda v, n: v.setattr(n["d/f"], mode=0o600)),
    Scenario("chmod acl", lambda v, n: v.setattr(n["acl/file"], mode=0o600)),
    Scenario("chown", lambda v, n: v.setattr(n["d/f"], uid=70000, gid=70001)),
    Scenario("utime", lambda v, n: v.setattr(n["d/f"], atime=10**18, mtime=10**18)),
    Scenario("truncate up", lambda v, n: v.setattr(n["d/f"], size=100_001)),
    Scenario("truncate down", lambda v, n: v.setattr(n["big"], size=1500)),
    Scenario("truncate to zero", lambda v, n: v.setattr(n["big"], size=0)),
    Scenario("truncate extents", lambda v, n: v.setattr(n["cut"], size=2 * BLOCK * 120)),
    Scenario("truncate extents to a byte", lambda v, n: v.setattr(n["leaves"], size=1), steps=True),
    Scenario("truncate huge", lambda v, n: v.setattr(n["d/f"], size=1 << 34)),
    Scenario("open truncating", lambda v, n: v.open(n["cut"], os.O_RDWR | os.O_TRUNC), steps=True),
    Scenario("append", lambda v, n: v.write(n["fh"], 2600, b"appended" * 300), opened("d/f")),
    Scenario("overwrite", lambda v, n: v.write(n["fh"], 10, b"over" * 500), opened("d/f")),
    Scenario("write hole", lambda v, n: v.write(n["fh"], 50 * BLOCK + 7, b"in a hole"), opened("hole")),
    Scenario("write beyond", lambda v, n: v.write(n["fh"], 1 << 30, b"far"), opened("d/f")),
    Scenario("write grows tree", lambda v, n: v.write(n["fh"], 30 * BLOCK, b"w" * BLOCK), opened("four")),
    Scenario("write splits leaf", lambda v, n: v.write(n["fh"], 81 * BLOCK, b"w" * 99), opened("leaf")),
    Scenario("write splits root", lambda v, n: v.write(n["fh"], 301 * BLOCK + 5, b"w" * 99), opened("leaves")),
    Scenario("write large", lambda v, n: v.write(n["fh"], 0, b"large" * (700 << 10)), opened("d/g")),
    Scenario("write fills holes", lambda v, n: v.write(n["fh"], 0, b"fill" * (BLOCK * 40)), opened("cut")),
    Scenario(
        "write ends rights", lambda v, n: v.write(n["fh"], 0, b"w", kill_priv=in_any_group), rights("d/xbody"), True
    ),
    Scenario(
        "chown ends rights", lambda v, n: v.setattr(n["ino"], uid=7, kill_priv=in_any_group), rights("d/xblock"), True
    ),
    Scenario("setxattr in inode", lambda v, n: v.setxattr(n["d/f"], b"user.a", b"1")),
    Scenario("setxattr in block", lambda v, n: v.setxattr(n["d/f"], b"user.a", b"1" * 500)),
    Scenario("setxattr unshares", lambda v, n: v.setxattr(n["d/xblock"], b"user.large", b"9" * 200)),
    Scenario("setxattr alone in block", lambda v, n: v.setxattr(n["d/xalone"], b"user.large", b"9" * 200)),
    Scenario("setxattr shares", lambda v, n: v.setxattr(n["d/xalone"], b"user.large", b"large" * 40)),
    Scenario("setxattr grows out", lambda v, n: v.setxattr(n["d/xbody"], b"user.small", b"9" * 400)),
    Scenario("set acl", lambda v, n: v.setxattr(n["d/f"], ACCESS, ACL)),
    Scenario("set acl in block", lambda v, n: v.setxattr(n["d/xalone"], ACCESS, ACL)),
    Scenario("set default acl", lambda v, n: v.setxattr(n["d"], DEFAULT, ACL)),
    Scenario("removexattr", lambda v, n: v.removexattr(n["d/xbody"], b"user.small")),
    Scenario("removexattr block", lambda v, n: v.removexattr(n["d/xalone"], b"user.large")),
    Scenario("removexattr shared", lambda v, n: v.removexattr(n["d/xblock"], b"user.large")),
    Scenario("remove acl", lambda v, n: v.removexattr(n["acl/file"], ACCESS)),
]  # fmt: skip

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
SCENARIOS += [
    Scenario(name, lambda v, n, a=length: v.copy_file_range(n["from"], 0, n["fh"], 0, a), two(*pair), True, True, True)  # type: ignore[misc]
    for name, length, pair in [("copy", 9 * BLOCK, ("big", "d/g")), ("copy holes", 1 << 20, ("four", "cut"))]
]
SCENARIOS += [
    Scenario(name, lambda v, n, a=arguments: v.fallocate(n["fh"], *a), opened(path), False, True, "extents" in name)  # type: ignore[misc]
    for name, path, arguments in [
        ("fallocate", "hole", (0, 10 * BLOCK, 20 * BLOCK)),
        ("fallocate keeping size", "d/f", (FALLOC_FL_KEEP_SIZE, 10 * BLOCK, 20 * BLOCK)),
        ("fallocate fills holes", "leaf", (0, 0, 100 * BLOCK)),
        ("punch", "big", (PUNCH, 20 * BLOCK, 30 * BLOCK)),
        ("punch extents", "cut", (PUNCH, 20 * BLOCK, 60 * BLOCK)),
        ("punch in a full leaf", "leaf", (PUNCH, 20 * BLOCK, 1 * BLOCK)),
        ("zero range", "big", (FALLOC_FL_ZERO_RANGE, 20 * BLOCK, 30 * BLOCK)),
        ("zero range extents", "leaves", (FALLOC_FL_ZERO_RANGE, 100 * BLOCK, 50 * BLOCK)),
        ("collapse", "big", (FALLOC_FL_COLLAPSE_RANGE, 20 * BLOCK, 30 * BLOCK)),
        ("collapse extents", "leaves", (FALLOC_FL_COLLAPSE_RANGE, 20 * BLOCK, 60 * BLOCK)),
        ("insert", "big", (FALLOC_FL_INSERT_RANGE, 20 * BLOCK, 30 * BLOCK)),
        ("insert extents", "leaves", (FALLOC_FL_INSERT_RANGE, 20 * BLOCK, 60 * BLOCK)),
    ]
]
SCENARIOS += [
    replace(scenario, kind="map", steps=scenario.steps or scenario.name.startswith("write"))
    for scenario in SCENARIOS
    if scenario.name.startswith(("write", "append", "truncate", "unlink", "punch", "mkdir", "create splits", "symlink"))
]


def with_values(fs: Filesystem) -> dict[str, int]:
    """Values in inodes of their own: one of two files, and one of a file that shares its block."""
    for name in ("/d/f", "/e/victim"):
        fs.setxattr(name, "user.value", b"the same" * 700)
    for name in ("/d/xblock", "/d/xshared"):
        fs.setxattr(name, "user.value", b"shared" * 900)
    return {}


SCENARIOS += [
    Scenario(name, act, prepare, steps, partly=partly, kind="inline")
    for name, act, prepare, steps, partly in [
        ("write", lambda v, n: v.write(n["fh"], 3, b"inline" * 5), opened("d/g"), True, False),
        ("write leaves inode", lambda v, n: v.write(n["fh"], 70, b"x" * 3000), opened("d/g"), True, True),
        ("truncate up in inode", lambda v, n: v.setattr(n["d/g"], size=50), None, False, False),
        ("truncate leaves inode", lambda v, n: v.setattr(n["d/g"], size=5000), None, False, False),
        ("truncate in inode", lambda v, n: v.setattr(n["d/g"], size=0), None, False, False),
        ("fallocate leaves inode", lambda v, n: v.fallocate(n["fh"], 0, 0, 9000), opened("d/g"), True, True),
        ("mkdir", lambda v, n: v.mkdir(n["e"], b"new"), None, False, False),
        ("link leaves inode", lambda v, n: v.link(n["d/f"], n["e"], b"n" * 200), None, False, False),
        ("rename", lambda v, n: v.rename(n["d"], b"sub", n["e"], b"new"), None, False, False),
        ("rmdir", lambda v, n: v.rmdir(n["e"], b"empty"), None, False, False),
        ("setxattr value", lambda v, n: v.setxattr(n["d/f"], b"user.a", b"9" * 5000), None, False, False),
        ("setxattr known", lambda v, n: v.setxattr(n["d/f"], b"user.a", b"shared" * 900), with_values, False, False),
        ("setxattr other", lambda v, n: v.setxattr(n["d/f"], b"user.value", b"9" * 5000), with_values, True, False),
        ("setxattr no value", lambda v, n: v.setxattr(n["d/xblock"], b"user.value", b"9"), with_values, True, False),
        ("removexattr value", lambda v, n: v.removexattr(n["d/xblock"], b"user.value"), with_values, True, False),
        ("unlink values", lambda v, n: v.unlink(n["d"], b"xblock"), with_values, True, False),
    ]
]
SCENARIOS += [
    replace(scenario, kind="clusters")
    for scenario in SCENARIOS
    if scenario.kind == "extents"
    and scenario.name.startswith(("write h", "write f", "write g", "append", "unlink extents", "punch"))
]


class FailingAllocator:
    """Lets the Nth allocation and all after it find nothing."""

    def __init__(self, fs: Filesystem) -> None:
        alloc = fs.volume.alloc
        self.left = MANY
        self.failed = 0
        for name in ("new_blocks", "new_inode"):
            setattr(alloc, name, self._wrap(getattr(alloc, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.left:
                self.failed += 1
                raise NoSpace("injected")
            self.left -= 1
            return function(*args, **kwargs)

        return call


class FewBlocks:
    """Lets the allocator have so many blocks more, from when ``left`` is set on; with MANY all there are.

    Not for operations that may take what is reserved. Works with a compiled core, too.
    """

    def __init__(self, fs: Filesystem) -> None:
        self._volume = fs.volume
        self._reserve = fs.volume.alloc.conversion_reserve
        self.failed = 0
        """Whether an allocation may have failed."""
        self._left = MANY

    @property
    def left(self) -> int:
        return self._left

    @left.setter
    def left(self, count: int) -> None:
        self._left = count
        volume, held = self._volume, self._reserve
        if count < MANY:
            self.failed = 1
            held = max(held, volume.superblock.free_blocks - (count << volume.geometry.cluster_bits))
        volume.alloc.conversion_reserve = held


def check_image(memory: MemoryDevice, path: Path) -> None:
    path.write_bytes(memory.data)
    fsck_clean(path)
    path.unlink()


def prepared(
    scenario: Scenario, base: bytes
) -> tuple[Filesystem, FaultyDevice, MemoryDevice, dict[str, int]]:
    """The image of a scenario, as it finds it, and the inodes by their paths."""
    fs, device, memory = open_bytes(base)
    numbers = dict(inode_numbers(base))
    if scenario.prepare:
        numbers |= scenario.prepare(fs)
    return fs, device, memory, numbers


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_without_space(scenario: Scenario, directory: Path, tmp_path: Path) -> None:
    """The Nth allocation fails: NoSpace, or a short write; nothing else changes."""
    need_interpreted()
    base = base_image(scenario.kind, directory)
    fs, _, memory, numbers = prepared(scenario, base)
    cool(fs)
    allocator = FailingAllocator(fs)
    before = tree_state(fs)
    contents = tree_state(fs, blocks=False)
    for nth in range(MANY):
        state = MemoryState(fs.vfs)
        allocator.left, allocator.failed = nth, 0
        try:
            result = scenario.act(fs.vfs, numbers)
        except NoSpace:
            assert allocator.failed
            allocator.left = MANY
            scenario.assert_unchanged(before, contents, state, fs)
            check_derived(fs.vfs)
        else:
            allocator.left = MANY
            if not allocator.failed:
                break
            # what there was room for was written, or the operation could do without
            if scenario.name.startswith("write") and result is not None:
                fs, _, memory, numbers = prepared(scenario, base)
                allocator = FailingAllocator(fs)
    check_derived(fs.vfs)
    fs.close()
    check_image(memory, tmp_path / "after.img")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_with_few_blocks_left(scenario: Scenario, directory: Path, tmp_path: Path) -> None:
    """None, one, two ...: NoSpace, or a short write; nothing else changes."""
    base = base_image(scenario.kind, directory)
    fs, _, memory, numbers = prepared(scenario, base)
    cool(fs)
    before = tree_state(fs)
    contents = tree_state(fs, blocks=False)
    blocks = FewBlocks(fs)
    for left in range(FEW):
        state = MemoryState(fs.vfs)
        blocks.left = left
        try:
            scenario.act(fs.vfs, numbers)
        except NoSpace:
            blocks.left = MANY
            scenario.assert_unchanged(before, contents, state, fs)
            check_derived(fs.vfs)
        else:
            blocks.left = MANY
            break
    else:
        scenario.act(fs.vfs, numbers)
    check_derived(fs.vfs)
    fs.close()
    check_image(memory, tmp_path / "after.img")


def clean_result(scenario: Scenario, base: bytes) -> tuple[Tree, Tree]:
    """The tree after the operation without failures, and without what depends on where blocks lie."""
    fs, _, _, numbers = prepared(scenario, base)
    cool(fs)
    scenario.act(fs.vfs, numbers)
    full, contents = tree_state(fs), tree_state(fs, blocks=False)
    fs.close()
    return full, contents


def without_times(tree: Tree) -> Tree:
    """The clock of a second try shows another time, and generations are random."""
    varying = ("atime", "mtime", "ctime", "crtime", "generation")
    inodes = {}
    for ino, state in tree["inodes"].items():
        attr = {key: value for key, value in state["attr"].items() if key not in varying}
        inodes[ino] = state | {"attr": attr}
    return tree | {"inodes": inodes}


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(s, marks=[pytest.mark.long] if s.kind in ("map", "inline") else [], id=str(s)) for s in SCENARIOS],
)
def test_reads_fail(scenario: Scenario, directory: Path, tmp_path: Path, log_guard: LogGuard) -> None:
    """The Nth read after a cold start fails: DeviceError and nothing has changed, or success."""
    base = base_image(scenario.kind, directory)
    _, wanted = clean_result(scenario, base)
    wanted = without_times(wanted)
    before: Tree = {}
    # a name can be gone although what it stood for could not be freed yet
    log_guard.allow("stays on the orphan list")
    for nth in range(1, MANY):
        fs, device, memory, numbers = prepared(scenario, base)
        cool(fs)
        if not before:
            full, contents = tree_state(fs), tree_state(fs, blocks=False)
            before = {"full": full, "contents": contents}
            cool(fs)
        state = MemoryState(fs.vfs)
        device.failed = 0
        device.arm("read", nth)
        try:
            scenario.act(fs.vfs, numbers)
        except DeviceError:
            assert device.failed
            device.disarm()
            if not scenario.steps or without_times(tree_state(fs, blocks=False)) != wanted:
                scenario.assert_unchanged(before["full"], before["contents"], state, fs)
            check_derived(fs.vfs)
            scenario.act(fs.vfs, numbers)
        done = not device.failed
        device.disarm()
        assert_same_tree(wanted, without_times(tree_state(fs, blocks=False)))
        check_derived(fs.vfs)
        fs.close()
        if nth <= 3 or done or nth % 4 == 0:
            check_image(memory, tmp_path / "after.img")
        if done:
            break


def busy_work(fs: Filesystem) -> None:
    """Something that makes dirty metadata of every kind."""
    fs.mkdir("/d/made")
    fs.write_bytes("/d/made/file", b"data" * 3000)
    fs.symlink("target" * 30, "/d/made/link")
    fs.setxattr("/d/made/file", "user.large", b"l" * 300)
    fs.unlink("/e/victim")
    fs.rename("/d/f", "/e/f")
    fs.truncate("/cut", 3000)


ENDINGS: dict[str, Callable[[Filesystem], None]] = {
    "commit": lambda fs: fs.vfs.commit(),
    "sync": lambda fs: fs.sync(),
    "close": lambda fs: fs.close(),
}


@pytest.mark.parametrize("kind", ["write", "flush"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("features", ["extents", "journal"])
def test_commits_fail(
    features: str, ending: str, kind: str, directory: Path, tmp_path: Path, log_guard: LogGuard
) -> None:
    """The Nth write or flush of a commit fails: the caller hears of it, the volume is read-only, never clean.

    With a journal, replaying it is all that the image needs.
    """
    base = base_image(features, directory)
    failures = 0
    log_guard.allow("commit failed, now read-only")
    for nth in range(1, MANY):
        fs, device, memory = open_bytes(base)
        busy_work(fs)
        device.arm(kind, nth)  # type: ignore[arg-type]
        try:
            ENDINGS[ending](fs)
        except DeviceError:
            pass
        else:
            assert not device.failed
            break
        failures += 1
        assert device.failed
        check_failed_volume(fs, memory, closed=ending == "close")
        path = tmp_path / "damaged.img"
        path.write_bytes(memory.data)
        if features == "journal":
            out = run(["e2fsck", "-fp", path], ok=(0, 1))
            assert "UNEXPECTED" not in out
            fsck_clean(path)
            continue
        if SUPERBLOCK.get(memory.data, 1024, "s_state") & EXT4_VALID_FS:
            # only the flush behind the very last write may leave it like that
            assert (ending, kind) == ("close", "flush")
            fsck_clean(path)
        repair(path)
    device.disarm()
    fs.close()
    check_image(memory, tmp_path / "after.img")
    flushes = {"commit": 0, "sync": 2, "close": 3}[ending] if features == "extents" else 2
    assert failures >= (flushes if kind == "flush" else 5 if features == "extents" else 2)


def check_failed_volume(fs: Filesystem, memory: MemoryDevice, closed: bool) -> None:
    """After a failed commit: reading goes on, every change is refused, fsync does not lie, nothing is written."""
    vfs = fs.vfs
    assert fs.volume.readonly
    assert vfs.getattr(ROOT_INO).nlink
    written = bytes(memory.data)
    for change in (
        lambda: vfs.mkdir(ROOT_INO, b"more"),
        lambda: vfs.setattr(ROOT_INO, mode=0o700),
        lambda: vfs.create(ROOT_INO, b"more", 0o644, os.O_RDWR),
    ):
        with pytest.raises(ReadOnly):
            change()
    with pytest.raises(FsError):
        fs.sync()
    if not closed:
        with pytest.raises(FsError):
            fs.close()
    fs.close()
    assert memory.data == written, "written to after the failure"


def repair(path: Path) -> None:
    """e2fsck can always make the image right."""
    run(["e2fsck", "-fy", path], ok=(0, 1))
    fsck_clean(path)


def test_first_write_fails(base: bytes, log_guard: LogGuard) -> None:
    """Not even the mark "in use" can be written: the operation fails, and the image stays as it was."""
    fs, device, memory = open_bytes(base)
    device.arm("write", 1)
    with pytest.raises(DeviceError):
        fs.mkdir("/new")
    assert fs.volume.readonly
    with pytest.raises(NotFound):
        fs.stat("/new")
    with pytest.raises(FsError):
        fs.close()
    assert memory.data == base


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_open_handles_after_a_failed_commit(kind: str, base: bytes, log_guard: LogGuard) -> None:
    """A handle opened for writing before the failure writes nothing any more."""
    log_guard.expect("now read-only")
    fs, device, memory = open_bytes(base)
    fh = fs.vfs.open(fs.stat("/big").ino, os.O_RDWR)
    contents = fs.vfs.read(fh, 0, 9)
    fs.mkdir("/new")
    device.arm(kind, 1)  # type: ignore[arg-type]
    with pytest.raises(DeviceError):
        fs.vfs.fsync(fh)
    written = bytes(memory.data)
    for kernel_owns_times in (False, True):
        fs.vfs.kernel_owns_times = kernel_owns_times
        with pytest.raises(ReadOnly):
            fs.vfs.write(fh, 0, b"overwrite")
        assert fs.vfs.read(fh, 0, 9) == contents
    with pytest.raises(FsError):
        fs.vfs.fsync(fh)
    fs.vfs.release(fh)
    with pytest.raises(FsError):
        fs.close()
    assert memory.data == written


def test_valid_is_cleared_before_data_is_written(base: bytes) -> None:
    """Overwriting needs no new metadata; the image is marked in use all the same, and flushed, before the data."""
    events: list[str] = []

    class Watched(MemoryDevice):
        def write(self, offset: int, data: Any) -> None:
            events.append("super" if offset == 1024 else "write")
            super().write(offset, data)

        def flush(self) -> None:
            events.append("flush")

    device = Watched(base)
    fs = open_device(device, clock=Clock(), options=OpenOptions(atime="noatime"))
    fs.vfs.kernel_owns_times = True
    fh = fs.vfs.open(fs.stat("/big").ino, os.O_RDWR)
    fs.vfs.write(fh, 0, b"overwrite")
    assert events == ["super", "flush", "write"]
    assert not SUPERBLOCK.get(device.data, 1024, "s_state") & EXT4_VALID_FS
    fs.vfs.release(fh)
    fs.close()
    assert events[-3:] == ["flush", "super", "flush"]
    assert SUPERBLOCK.get(device.data, 1024, "s_state") & EXT4_VALID_FS


@pytest.mark.parametrize("features", ["extents", "journal"])
def test_commits_that_cannot_read(features: str, directory: Path, tmp_path: Path) -> None:
    """A commit may have to read again what it changes a part of. When that fails, nothing is lost: try again."""
    fs, device, memory = open_bytes(base_image(features, directory))
    busy_work(fs)
    dirty = fs.volume.transactions.running.dirty
    blocks = fs.volume.buffers._blocks
    for nth in range(1, MANY):
        for pblk in [pblk for pblk, block in blocks.items() if block not in dirty]:
            del blocks[pblk]
        device.failed = 0
        device.arm("read", nth)
        try:
            fs.sync()
        except DeviceError:
            assert not fs.volume.readonly
            fs.mkdir(f"/more{nth}")
        if not device.failed:
            break
    assert nth > 3
    device.disarm()
    tree = tree_state(fs)
    fs.close()
    check_image(memory, tmp_path / "after.img")
    again, _, _ = open_bytes(memory.data)
    assert_same_tree(tree["names"], tree_state(again)["names"])
    again.close()
