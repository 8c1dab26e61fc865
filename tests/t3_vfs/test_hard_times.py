"""Random operations with caches far too small, a device that fails now and then, and an allocator that runs dry.

Whatever fails is tried again, so in the end the tree is the one that a volume without such troubles has.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from images.tools import fsck_clean, mke2fs
from py4fs import compiled
from py4fs.api import OpenOptions, open_device
from py4fs.device.faulty import FaultyDevice
from py4fs.device.memory import MemoryDevice
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import Caller
from tests.support.logs import LogGuard
from tests.support.state import Tree, assert_same_tree, check_derived, tree_state
from tests.support.worlds import UMASK, ApiWorld, outcome
from tests.t3_vfs.test_faults import MANY, FailingAllocator, FewBlocks, without_times
from tests.t3_vfs.test_oracle import ACLS

ARGS = {
    "1k": ("-b", "1024", "-g", "2048", "-O", "^has_journal,^resize_inode"),
    "journal": ("-b", "1024", "-J", "size=1"),
    "map": ("-b", "1024", "-O", "^extent,^64bit,^metadata_csum,^has_journal"),
    "4k": ("-b", "4096", "-O", "^has_journal"),
}


HOMES = [f"home{number}" for number in range(5)]
NAMES = [f"n{number}" for number in range(6)] + ["long" * 50]


KINDS = {
    "mkdir": 14, "write": 22, "truncate": 8, "fallocate": 8, "symlink": 4, "link": 5, "unlink": 8, "rmdir": 8,
    "rename": 14, "chmod": 4, "setxattr": 8, "removexattr": 3, "acl": 4, "listdir": 3,
}  # fmt: skip


def operation(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    """One that finds what it names most of the time."""

    def path() -> str:
        home = rng.choice(HOMES)
        deep = rng.random() < 0.2
        return f"{home}/{rng.choice(NAMES)}/{rng.choice(NAMES)}" if deep else f"{home}/{rng.choice(NAMES)}"

    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    size = rng.randrange(1, 40) * 1024
    found: dict[str, tuple[str, tuple[Any, ...]]] = {
        "mkdir": (kind, (path(), 0o755)),
        "write": (kind, (path(), rng.randrange(100_000), rng.randbytes(1) * rng.choice([1, 5000, 60_000]))),
        "truncate": (kind, (path(), rng.randrange(150_000))),
        "fallocate": (kind, (path(), rng.choice([0, 1, 3, 0x10]), rng.randrange(60) * 1024, size)),
        "symlink": (kind, ("t" * rng.choice([5, 200]), path())),
        "rename": (kind, (path(), path(), rng.choice([0, 0, 0, 2]))),
        "link": (kind, (path(), path())),
        "chmod": (kind, (path(), rng.choice([0o600, 0o755]))),
        "setxattr": (kind, (path(), rng.choice(["user.a", "user.b"]), b"v" * rng.choice([3, 90, 400]), 0)),
        "acl": ("setxattr", (path(), "system.posix_acl_access", rng.choice(ACLS), 0)),
        "removexattr": (kind, (path(), "user.a")),
    }
    return found.get(kind) or (kind, (path(),))


def world(device: Any, volume: VolumeOptions) -> ApiWorld:
    made = ApiWorld.__new__(ApiWorld)
    made.step = -1
    made.fs = open_device(
        device, clock=made.clock, rng=random.Random(1), options=OpenOptions(atime="noatime", volume=volume)
    )
    made.caller = Caller(0, 0, UMASK)
    made.begin()
    for home in HOMES:
        made.mkdir(home, 0o755)
        for name in NAMES[:3]:
            made.mkdir(f"{home}/{name}", 0o755)
        for name in NAMES[3:]:
            made.write(f"{home}/{name}", 0, b"first" * 700)
    made.fs.sync()
    return made


@pytest.mark.parametrize("kind", ARGS)
def test_small_caches_and_failures(kind: str, tmp_path: Path, rng: random.Random, log_guard: LogGuard) -> None:
    run(kind, tmp_path, rng, log_guard, 250)


@pytest.mark.long
@pytest.mark.parametrize("round", range(5))
@pytest.mark.parametrize("kind", ARGS)
def test_longer(kind: str, round: int, tmp_path: Path, rng: random.Random, log_guard: LogGuard) -> None:
    run(kind, tmp_path, rng, log_guard, 3000)


def by_path(tree: Tree) -> dict[bytes, Any]:
    """A tree without inode numbers: an inode is known by the first of its names."""
    first: dict[int, bytes] = {}
    for path, ino in sorted(tree["names"].items()):
        if not path.endswith(b"/.."):
            first.setdefault(ino, path)
    named: dict[bytes, Any] = {path: first[ino] for path, ino in tree["names"].items()}
    for ino, state in tree["inodes"].items():
        attr = {key: value for key, value in state["attr"].items() if key != "ino"}
        named[b"inode of " + first[ino]] = state | {"attr": attr}
    return named


def run(
    kind: str,
    directory: Path,
    rng: random.Random,
    log_guard: LogGuard,
    count: int,
) -> None:
    log_guard.allow("stays on the orphan list|injected failure")
    path = directory / "fs.img"
    mke2fs(path, 24 << 20, "-N", "512", *ARGS[kind])
    image = path.read_bytes()
    easy = world(MemoryDevice(image), VolumeOptions(strict=True))
    memory = MemoryDevice(image)
    device = FaultyDevice(memory)
    hard = world(device, VolumeOptions(strict=True, buffer_limit=1, inode_limit=1))
    allocator: FailingAllocator | FewBlocks
    allocator = FewBlocks(hard.fs) if compiled.active() else FailingAllocator(hard.fs)
    failures = 0
    for number in range(count):
        name, args = operation(rng)
        for each in (easy, hard):
            each.begin()
        wanted = outcome(getattr(easy, name), *args)
        volume = hard.fs.volume
        volume.groups.shrink(volume.transactions.running.dirty, 1)
        device.failed = allocator.failed = 0
        trouble = rng.random()
        if trouble < 0.6:
            device.arm("read", rng.randrange(1, 8))
        elif trouble < 0.7:
            allocator.left = rng.randrange(6)
        got = outcome(getattr(hard, name), *args)
        failed = device.failed or allocator.failed
        device.disarm()
        allocator.left = MANY
        if failed and got != wanted:
            assert got in ("EIO", "ENOSPC"), f"operation {number}: {name}{args}: {got}"
            failures += 1
            check_derived(hard.fs.vfs)
            got = outcome(getattr(hard, name), *args)
        elif failed and name == "write":
            # space came to an end in the middle
            got = outcome(getattr(hard, name), *args)
        assert got == wanted, f"operation {number}: {name}{args}"
        if rng.random() < 0.5:
            # only what is clean can be dropped from the caches
            hard.fs.vfs.commit()
            easy.fs.vfs.commit()
        if number % 50 == 49:
            check_derived(hard.fs.vfs)
    assert failures > count // 50
    left, right = (by_path(without_times(tree_state(each.fs, blocks=False))) for each in (easy, hard))
    assert_same_tree(left, right)
    easy.fs.close()
    hard.fs.close()
    path.write_bytes(memory.data)
    fsck_clean(path)
