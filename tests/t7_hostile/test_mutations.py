"""Damaged images: errors with a name and a place, never a traceback, never a hang, never a byte written by reading."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from images.content import pattern
from images.tools import fsck_clean, mke2fs
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import FsError
from py4fs.ext4.features import RoCompat
from py4fs.ext4.layout.inode import EXT4_ENCRYPT_FL, EXT4_PROJINHERIT_FL
from tests.support.logs import LogGuard
from tests.support.volumes import Clock
from tests.t3_vfs.test_verity import seal
from tests.t7_hostile.exercise import attempt, change, soon, walk
from tests.t7_hostile.mutate import Mutator

KINDS = {
    "csum": ("-b", "1024", "-O", "metadata_csum,64bit,^has_journal,^resize_inode"),
    "plain": ("-b", "1024", "-O", "^metadata_csum,^uninit_bg,^64bit,^has_journal,^resize_inode"),
    "map": ("-b", "1024", "-O", "^extent,^flex_bg,^64bit,^metadata_csum,uninit_bg,^has_journal,^resize_inode"),
    "gdt": ("-b", "2048", "-I", "128", "-O", "^metadata_csum,uninit_bg,^has_journal,^resize_inode"),
    "inline": ("-b", "1024", "-O", "inline_data,ea_inode,metadata_csum,64bit,^has_journal,^resize_inode"),
    "clusters": ("-b", "1024", "-C", "2048", "-O", "bigalloc,inline_data,^metadata_csum,^has_journal,^resize_inode"),
    "features": (
        *("-b", "1024", "-O"),
        "metadata_csum,64bit,^has_journal,^resize_inode,quota,project,casefold,mmp,encrypt,verity",
    ),
    "all": (
        *("-b", "1024", "-O"),
        "inline_data,ea_inode,casefold,quota,project,large_dir,metadata_csum_seed,orphan_file,^resize_inode",
        *("-J", "size=1"),
    ),
    "clusters-quota": (
        *("-b", "1024", "-C", "2048", "-O"),
        "bigalloc,ea_inode,quota,project,casefold,^has_journal,^resize_inode",
    ),
    "journal": ("-b", "1024", "-O", "metadata_csum,64bit,^resize_inode", "-J", "size=1"),
}
MEMORY = 1 << 30
"""Bytes of address space that a damaged image of 3 MiB may cost."""


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What allocates without bound meets MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def any_warning(log_guard: LogGuard) -> None:
    log_guard.allow("")


def populate(fs: Filesystem, block: int) -> None:
    fs.mkdir("/dir")
    fs.mkdir("/dir/sub")
    fs.mkdir("/dir/sub/empty")
    fs.write_bytes("/file", b"contents" * 900)
    fs.link("/file", "/dir/again")
    fs.write_bytes("/dir/empty", b"")
    fs.symlink("short", "/fast")
    fs.symlink("long/" * 40, "/dir/slow")
    fs.mknod("/dir/fifo", 0o010644)
    fs.mknod("/dir/device", 0o020644, 0x801)
    fs.setxattr("/file", "user.a", b"1")
    fs.setxattr("/dir", "user.dir", b"d" * 20)
    for name in ("/dir/one", "/dir/two"):
        fs.write_bytes(name, b"x")
        fs.setxattr(name, "user.large", b"shared" * 30)
        fs.setxattr(name, "trusted.t", b"t")
    acl = bytes.fromhex("02000000" "01000700ffffffff" "02000500e8030000" "04000500ffffffff" "10000700ffffffff"
                        "20000100ffffffff")  # fmt: skip
    fs.setxattr("/dir/sub", "system.posix_acl_default", acl)
    fs.setxattr("/dir/one", "system.posix_acl_access", acl)
    for path, count in (("/four", 4), ("/leaf", 90), ("/deep", 350 if block == 1024 else 200)):
        with fs.open(path, "wb") as file:
            for number in range(count):
                file.seek(number * 2 * block)
                file.write(bytes([number & 255]) * 9)
    with fs.open("/sparse", "wb") as file:
        file.truncate(1 << 33)
        file.seek(1 << 32)
        file.write(b"beyond")
    if fs.volume.files.inline_data:
        fs.write_bytes("/small", b"inline" * 15)
        fs.mkdir("/few")
        for number in range(5):
            fs.link("/file", f"/few/name-{number}")
    if fs.volume.ea_inodes is not None:
        for name in ("/dir/one", "/dir/two", "/dir", "/file"):
            fs.setxattr(name, "user.shared", b"value" * 700)
            fs.setxattr(name, "user.own", name.encode() * 300)
    for directory, count, length in (("/index", 40, 60), ("/levels", 370 if block == 1024 else 40, 240)):
        fs.mkdir(directory)
        for number in range(count):
            fs.link("/file", f"{directory}/{number}".ljust(length, "n"))


def populate_owned_and_folded(fs: Filesystem) -> None:
    """What quotas count and case folding changes."""
    for number in range(30):
        fs.write_bytes(f"/dir/owned{number}", b"o" * number)
        fs.chown(f"/dir/owned{number}", number * 1000, number << 20)
    fs.mkdir("/fold")
    fs.set_casefold("/fold")
    for number in range(60):
        fs.link("/file", f"/fold/Größe{number}".ljust(60, "N"))


def populate_features(fs: Filesystem) -> None:
    """What has features of its own."""
    populate_owned_and_folded(fs)
    seal(fs, "/verity", pattern("verity", 60_000), block=1024)
    fs.mkdir("/secret")
    for number in range(60):
        fs.link("/file", f"/secret/{number}".ljust(60, "s"))
    fs.symlink("\x01\x01" + "c" * 300, "/secret/link")


def mark_features(fs: Filesystem) -> None:
    """Flags that e2fsck would want more for: a directory, a link and a file are encrypted, one has a project."""
    for path, flags in (("/secret/link", EXT4_ENCRYPT_FL), ("/secret", EXT4_ENCRYPT_FL), ("/sparse", EXT4_ENCRYPT_FL),
                        ("/dir/sub", EXT4_PROJINHERIT_FL)):  # fmt: skip
        inode = fs.volume.inodes.get(fs.lstat(path).ino)
        with fs.volume.operation(40) as tx:
            tx.touch(inode)
            inode.flags |= flags
            inode.projid = 7 if flags == EXT4_PROJINHERIT_FL else 0


@cache
def image(kind: str, directory: Path) -> bytes:
    path = directory / f"{kind}.img"
    args = KINDS[kind]
    block = int(args[1])
    clusters, journal = "-C" in args, "-J" in args
    groups = () if clusters else ("-g", "1024")
    mke2fs(path, (5 if clusters or journal else 3) << 20, *groups, "-N", "96", *args)
    device = MemoryDevice(path.read_bytes())
    fs = open_device(device, clock=Clock())
    populate(fs, block)
    if kind == "features":
        populate_features(fs)
    elif fs.volume.quotas.kinds:
        populate_owned_and_folded(fs)
    # two orphans: one deleted, one also large; their names are gone, their inodes not
    for name in ("/gone", "/gone-too"):
        fs.write_bytes(name, b"orphan" * 500)
        fs.vfs.open(fs.stat(name).ino, 0)
    fs.sync()
    path.write_bytes(device.data)
    fs.unlink("/gone")
    fs.unlink("/gone-too")
    fs.sync()
    data = bytes(device.data)
    fs.close()
    path.write_bytes(device.data)
    fsck_clean(path)
    if kind == "features":
        with open_device(device, clock=Clock()) as fs:
            mark_features(fs)
        return bytes(device.data)
    if kind == "all":
        present = bytearray(device.data)
        mutated = Mutator(bytes(present))
        mutated.put_super(present, s_feature_ro_compat=mutated.sb.s_feature_ro_compat | RoCompat.ORPHAN_PRESENT)
        return bytes(present)
    # with a journal, what is in its place is what was written at the end
    return bytes(device.data) if journal else data


@cache
def mutator(kind: str, directory: Path) -> Mutator:
    found = Mutator(image(kind, directory))
    if kind == "features":
        with open_device(MemoryDevice(found.image), clock=Clock(), options=OpenOptions(readonly=True)) as fs:
            found.find_verity(fs, "/verity", 65536)
    return found


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


class NeverWritten(MemoryDevice):
    """A device that could be written, but must not be."""

    def write(self, offset: int, data: object) -> None:
        raise AssertionError(f"written at byte {offset}")

    def flush(self) -> None:
        raise AssertionError("flushed")


def no_time(_seconds: float) -> None:
    """Whoever else has the image is given no time."""


LIMITED = OpenOptions(quota_limits=frozenset({"user", "group", "project"}))


def survive(damaged: bytearray, rng: random.Random, operations: int) -> None:
    """Read-only, then read/write, then what that made of it once more."""
    with soon():
        try:
            fs = open_device(NeverWritten(damaged), clock=Clock(), options=OpenOptions(readonly=True))
        except FsError:
            fs = None
        if fs is not None:
            walk(fs)
            fs.close()
    with soon():
        device = MemoryDevice(damaged)
        try:
            fs = open_device(device, clock=Clock(), sleep=no_time, rng=random.Random(1), options=LIMITED)
        except FsError:
            return
        found = walk(fs)
        change(fs, found, rng, operations)
        attempt(fs.close)
    with soon():
        try:
            fs = open_device(device, clock=Clock(), sleep=no_time)
        except FsError:
            return
        walk(fs)
        attempt(fs.close)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("batch", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, batch: int, directory: Path, seed: int) -> None:
    run_batch(kind, directory, f"{seed}:{kind}:{batch}", 20)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutations(kind: str, batch: int, directory: Path, seed: int) -> None:
    run_batch(kind, directory, f"{seed}:many:{kind}:{batch}", 500)


def run_batch(kind: str, directory: Path, name: str, count: int) -> None:
    source = mutator(kind, directory)
    for number in range(count):
        rng = random.Random(f"{name}:{number}")
        damaged, what = source.mutate(rng, rng.choice([1, 1, 1, 2, 4]))
        try:
            survive(damaged, rng, 25)
        except BaseException as exc:
            exc.add_note(f"image {kind!r}, case {name}:{number}: {what}")
            raise
