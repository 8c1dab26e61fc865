"""Quota: usage as e2fsck counts it and debugfs prints it, limits and grace, projects, damaged quota files."""

from __future__ import annotations

import errno
import random
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

import py4fs
from py4fs.api import open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import CrossDevice, FsError, NotSupported, QuotaExceeded
from py4fs.ext4.inode import NS
from py4fs.ext4.quota import QuotaKind, Usage
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import ROOT, Caller, FsXattr
from tests.support.image import ImageMaker, debugfs
from tests.support.logs import LogGuard
from tests.support.volumes import Clock
from tests.support.worlds import ApiWorld, outcome
from tests.t3_vfs.test_oracle import WEIGHTS, Generator
from tests.t6_crash.campaign import campaign

ALICE = Caller(1000, 100)
KIB = 1024


def listed(image: Path, kind: QuotaKind) -> dict[int, tuple[int, ...]]:
    """id -> space, soft, hard, inodes, soft, hard, as debugfs prints them."""
    lines = debugfs(image, f"list_quota {kind.name.lower()}").splitlines()[1:]
    rows = [[int(word) for word in line.split()] for line in lines if re.match(r"\s*\d", line)]
    return {row[0]: tuple(row[1:]) for row in rows}


def as_listed(usage: Usage) -> tuple[int, ...]:
    soft, hard = usage.soft_space // KIB, usage.hard_space // KIB
    return (usage.space, soft, hard, usage.inodes, usage.soft_inodes, usage.hard_inodes)


ALL = "inline_data,ea_inode,casefold,quota,project,metadata_csum_seed,orphan_file"


@pytest.mark.parametrize(
    "args",
    [
        ("-b", "1024", "-O", "quota,project"),
        ("-b", "4096", "-O", "quota"),
        ("-O", "quota,project,^has_journal"),
        ("-b", "1024", "-O", "quota,project,ea_inode"),
        ("-b", "4096", "-O", ALL),
        ("-b", "1024", "-I", "512", "-O", ALL),
        ("-b", "4096", "-C", "65536", "-O", "bigalloc,quota,project"),
        ("-b", "1024", "-C", "8192", "-O", f"bigalloc,large_dir,{ALL}"),
    ],
    ids=["1k", "4k", "no-journal", "values", "all-4k", "all-1k-i512", "clusters", "all-clusters"],
)
def test_random_operations(make_image: ImageMaker, rng: random.Random, args: tuple[str, ...]) -> None:
    """e2fsck counts by itself when the test ends."""
    image = make_image("64M" if "-C" not in args else "256M", *args)
    small = 0.5 if "inline_data" in args[-1] else 0
    values = [500, 900, 4000, 20000, 65536] if "ea_inode" in args[-1] else []
    world, generator = ApiWorld(image), Generator(rng, small, values)
    with mock.patch.dict(WEIGHTS, setxattr=30 if values else WEIGHTS["setxattr"]):
        for _ in range(400):
            name, arguments = generator.next()
            world.begin()
            outcome(getattr(world, name), *arguments)
            if rng.random() < 0.02:
                world.fs.sync()
    for number in range(200):
        world.fs.write_bytes(f"/many{number}", bytes(number * 50))
        world.fs.chown(f"/many{number}", rng.randrange(1 << 32), rng.choice([0, 0xFFFFFFFE, number << 16]))
    quotas = world.fs.volume.quotas
    found = {kind: {usage.id: as_listed(usage) for usage in quotas.report(kind)} for kind in quotas.kinds}
    world.fs.close()
    assert len(found) == (3 if "project" in args[-1] else 2) and len(found[QuotaKind.USER]) > 150
    for kind, usages in found.items():
        assert listed(image, kind) == usages


def test_values_of_attributes_count_for_everybody_who_has_them(make_image: ImageMaker) -> None:
    """A value in an inode is charged, as space and as an inode, for each reference, and not by itself."""
    image = make_image("32M", "-b", "1024", "-I", "256", "-O", "ea_inode,quota,project")
    world = World(image)
    fs, value = world.fs, b"v" * 5000
    world.limit(QuotaKind.USER, ALICE.uid, hard_inodes=6)

    def used(number: int = ALICE.uid) -> tuple[int, int]:
        usage = world.usage(QuotaKind.USER, number)
        return usage.inodes, usage.space

    for name in ("/d/a", "/d/b"):
        fs.mknod(name, stat.S_IFREG | 0o644, caller=ALICE)
        fs.setxattr(name, "user.v", value)
    assert used() == (4, 2 * 5 * KIB)
    fs.setxattr("/d/a", "user.v", value[:4000])
    assert used() == (4, 9 * KIB)
    fs.setxattr("/d/a", "user.v", b"small")
    assert used() == (3, 5 * KIB)
    fs.chown("/d/b", 7, 7)
    assert (used(), used(7)) == ((1, 0), (2, 5 * KIB))
    for number in range(5):
        fs.setxattr("/d/a", f"user.v{number}", value)
    more = used()[1]
    with pytest.raises(QuotaExceeded):
        fs.vfs.setxattr(fs.stat("/d/a").ino, b"user.v5", value, caller=ALICE)
    assert used() == (6, more)
    before = {kind: list(world.fs.volume.quotas.report(kind)) for kind in QuotaKind}
    with fs.volume.operation(1000) as tx:
        fs.volume.quotas.recount(tx, fs.volume.inodes.in_use)
    assert {kind: list(world.fs.volume.quotas.report(kind)) for kind in QuotaKind} == before
    fs.unlink("/d/a")
    fs.unlink("/d/b")
    assert (used(), used(7)) == ((0, 0), (0, 0))
    world.fs.close()


def test_blocks_of_attributes_that_are_shared_count_their_values_for_everybody(make_image: ImageMaker) -> None:
    image = make_image("32M", "-b", "1024", "-I", "128", "-O", "ea_inode,quota")
    world = World(image)
    for number in range(3):
        world.fs.mknod(f"/d/{number}", stat.S_IFREG | 0o644, caller=ALICE)
        world.fs.setxattr(f"/d/{number}", "user.v", b"v" * 5000)
    assert world.usage()[1:3] == (3 * 6 * KIB, 3 * 2)
    world.fs.chown("/d/0", 7, 7)
    world.fs.setxattr("/d/0", "user.w", b"w" * 5000)
    world.fs.unlink("/d/1")
    assert (world.usage()[1:3], world.usage(QuotaKind.USER, 7)[1:3]) == ((6 * KIB, 2), (11 * KIB, 3))
    world.fs.close()


def test_e2fsck_would_find_a_wrong_number(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M", "-O", "quota"))
    with py4fs.open_image(image) as fs, fs.volume.operation(64) as tx:
        fs.volume.quotas._file(QuotaKind.USER).put(tx, 0, dqb_curspace=5)
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 4 and "Usage inconsistent for ID 0" in done.stderr


@pytest.fixture
def image(make_image: ImageMaker) -> Path:
    return make_image.recipe("quota-project-b1024")


class World:
    """An open image with limits kept, a directory for everybody, and alice's quota."""

    def __init__(self, image: Path, *, limits: bool = True) -> None:
        self.clock = Clock()
        kinds = frozenset({"user", "group", "project"}) if limits else frozenset[str]()
        options = py4fs.OpenOptions(quota_limits=kinds, volume=VolumeOptions(strict=True))
        self.fs = py4fs.open_image(image, clock=self.clock, options=options)
        self.fs.mkdir("/d", 0o777)

    def limit(self, kind: QuotaKind, number: int, **limits: int) -> None:
        with self.fs.volume.operation(16) as tx:
            self.fs.volume.quotas.set_limits(tx, kind, number, **limits)

    def usage(self, kind: QuotaKind = QuotaKind.USER, number: int = ALICE.uid) -> Usage:
        return self.fs.volume.quotas.usage(kind, number)

    def write(self, path: str, size: int, caller: Caller = ALICE) -> int:
        """Bytes written until EDQUOT."""
        file = self.fs.open(path, "wb", caller=caller)
        try:
            done = 0
            while done < size:
                done += file.write(bytes(min(size - done, 64 * KIB))) or 0
        except QuotaExceeded:
            return done
        finally:
            file.close()
        return done


@pytest.fixture
def world(image: Path) -> Iterator[World]:
    made = World(image)
    yield made
    made.fs.close()


def test_hard_limit_of_space(world: World) -> None:
    world.limit(QuotaKind.USER, 1000, hard_space=100 * KIB)
    done = world.write("/d/f", 1 << 20)
    assert 90 * KIB <= done <= 100 * KIB and world.usage().space <= 100 * KIB
    with pytest.raises(QuotaExceeded) as caught:
        world.fs.symlink("t" * 500, "/d/link", ALICE)
        for number in range(20):
            world.fs.symlink("t" * 500, f"/d/link{number}", ALICE)
    assert caught.value.errno == errno.EDQUOT and "user 1000" in str(caught.value)
    world.fs.write_bytes("/d/roots", bytes(1 << 20))
    assert world.write("/d/f2", 1 << 20, Caller(0, 0)) == 1 << 20
    world.fs.truncate("/d/f", 0)
    assert world.write("/d/f", 50 * KIB) == 50 * KIB


def test_hard_limit_of_inodes(world: World) -> None:
    world.limit(QuotaKind.GROUP, 100, hard_inodes=3)
    for number in range(3):
        world.fs.mkdir(f"/d/{number}", caller=ALICE)
    before = world.fs.statvfs()
    for make in (world.fs.mkdir, world.fs.mknod):
        with pytest.raises(QuotaExceeded, match="group 100: 4 inodes, limit 3"):
            make("/d/more", stat.S_IFREG | 0o644 if make == world.fs.mknod else 0o755, caller=ALICE)
    assert not world.fs.exists("/d/more") and world.fs.statvfs() == before
    world.fs.rmdir("/d/0")
    world.fs.mkdir("/d/more", caller=ALICE)


def test_soft_limit_and_grace(world: World) -> None:
    world.limit(QuotaKind.USER, 1000, soft_space=50 * KIB)
    assert world.write("/d/a", 60 * KIB) == 60 * KIB
    end = world.usage().space_grace_end
    assert end == pytest.approx(world.clock.now // NS + 7 * 86400, abs=5)
    assert world.write("/d/b", 10 * KIB) == 10 * KIB and world.usage().space_grace_end == end
    world.clock.now = end * NS
    assert world.write("/d/c", 10 * KIB) == 0
    world.fs.unlink("/d/a")
    assert world.usage().space_grace_end == 0
    assert world.write("/d/c", 30 * KIB) == 30 * KIB
    world.limit(QuotaKind.USER, 1000, soft_inodes=1)
    with pytest.raises(QuotaExceeded, match="more than 1 inodes for too long"):
        world.fs.mkdir("/d/x", caller=ALICE)
        world.clock.now += 8 * 86400 * NS
        world.fs.mkdir("/d/y", caller=ALICE)
    assert world.fs.exists("/d/x")


def test_what_is_given_away_counts_for_the_new_owner(world: World) -> None:
    world.write("/d/f", 40 * KIB)
    assert (world.usage().inodes, world.usage(number=2000).inodes) == (1, 0)
    world.fs.chown("/d/f", 2000, 200)
    assert (world.usage().space, world.usage(number=2000).space) == (0, 40 * KIB)
    assert world.usage(QuotaKind.GROUP, 200).inodes == 1
    world.limit(QuotaKind.GROUP, 300, hard_space=KIB)
    ino = world.fs.stat("/d/f").ino
    with pytest.raises(QuotaExceeded):
        world.fs.vfs.setattr(ino, gid=300, caller=Caller(2000, 200))
    assert world.fs.stat("/d/f").gid == 200
    world.fs.vfs.setattr(ino, gid=300)
    assert world.fs.stat("/d/f").gid == 300


def test_limits_are_kept_only_when_asked_for(image: Path) -> None:
    world = World(image, limits=False)
    world.limit(QuotaKind.USER, 1000, hard_space=KIB, soft_inodes=1)
    assert world.write("/d/f", 50 * KIB) == 50 * KIB
    assert world.usage().space == 50 * KIB and world.usage().inode_grace_end == 0
    world.fs.close()
    assert listed(image, QuotaKind.USER)[1000] == (50 * KIB, 0, 1, 1, 1, 0)


def test_removed_but_open_files_count_until_they_are_closed(world: World) -> None:
    with world.fs.open("/d/f", "wb", caller=ALICE) as file:
        file.write(bytes(10 * KIB))
        world.fs.unlink("/d/f")
        assert (world.usage().space, world.usage().inodes) == (10 * KIB, 1)
    assert (world.usage().space, world.usage().inodes) == (0, 0)


def set_project(fs: py4fs.Filesystem, path: str, project: int) -> None:
    """As `chattr -p PROJECT +P` does, through FS_IOC_FSSETXATTR."""
    ino = fs.stat(path).ino
    xflags = fs.vfs.get_fsx(ino).xflags | 0x200  # FS_XFLAG_PROJINHERIT
    fs.vfs.set_fsx(ino, FsXattr(xflags, projid=project), ROOT)
    assert fs.vfs.get_fsx(ino) == FsXattr(xflags, projid=project)


def test_projects(world: World, image: Path) -> None:
    fs = world.fs
    fs.mkdir("/p", 0o777)
    set_project(fs, "/p", 42)
    fs.mkdir("/p/sub")
    fs.write_bytes("/p/sub/file", bytes(20 * KIB))
    assert world.usage(QuotaKind.PROJECT, 42).inodes == 3
    fs.write_bytes("/other", b"1")
    for move in (fs.link, fs.rename):
        with pytest.raises(CrossDevice):
            move("/other", "/p/other")
    with pytest.raises(CrossDevice):
        fs.rename("/other", "/p/sub", 2)
    fs.rename("/p/sub/file", "/out")
    world.limit(QuotaKind.PROJECT, 42, hard_space=30 * KIB)
    assert world.write("/p/g", 1 << 20, ALICE) < 30 * KIB
    fs.close()
    assert listed(image, QuotaKind.PROJECT)[42][3] == 4
    assert re.search(r"Project: +42", debugfs(image, "stat /p/sub"))


def test_without_the_feature_there_are_no_projects(make_image: ImageMaker) -> None:
    with py4fs.open_image(make_image("16M")) as fs:
        fs.mkdir("/p")
        set_project(fs, "/p", 0)
        with pytest.raises(NotSupported):
            set_project(fs, "/p", 5)
        inode = fs.volume.inodes.get(fs.stat("/p").ino)
        inode.projid = 5
        fs.mkdir("/p/sub")
        assert fs.volume.inodes.get(fs.stat("/p/sub").ino).projid == 0
        fs.write_bytes("/f", b"")
        fs.rename("/f", "/p/f")
        inode.projid = 0


def test_recount(image: Path) -> None:
    """As after fast commits, which do not tell what was there before."""
    world = World(image)
    rng = random.Random(1)
    for number in range(100):
        world.fs.write_bytes(f"/d/{number}", bytes(rng.randrange(9000)))
        world.fs.chown(f"/d/{number}", rng.randrange(20), rng.randrange(20))
    volume = world.fs.volume
    before = {kind: list(volume.quotas.report(kind)) for kind in QuotaKind}
    settle, volume.transactions.settle = volume.transactions.settle, None
    with volume.operation(1000) as tx:
        for number in range(30):
            volume.quotas._file(QuotaKind.USER).put(tx, number, dqb_curspace=number, dqb_curinodes=99)
    with volume.operation(1000) as tx:
        volume.quotas.recount(tx, volume.inodes.in_use)
    volume.transactions.settle = settle
    known = {usage.id for usage in before[QuotaKind.USER]}
    assert [u for u in volume.quotas.report(QuotaKind.USER) if u.id in known] == before[QuotaKind.USER]
    world.fs.close()


def test_the_last_user_of_the_disk_undoes_all(make_image: ImageMaker) -> None:
    """No room for the quota file to grow: the operation did not happen."""
    image = make_image("4M", "-b", "1024", "-O", "quota,^has_journal", "-m", "0")
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d", 0o777)
        with pytest.raises(FsError), fs.open("/d/fill", "wb") as file:
            while True:
                file.write(bytes(64 * KIB))
        failed = 0
        for number in range(100):
            try:
                fs.mknod(f"/d/{number}", stat.S_IFREG | 0o644, caller=Caller(number << 8, number << 16))
            except FsError as exc:
                assert exc.errno == errno.ENOSPC
                failed += 1
        assert failed
        assert len(fs.listdir("/d")) == 101 - failed


def test_crashes_leave_the_numbers_right(seed: int) -> None:
    """After any replay e2fsck counts the same."""
    assert campaign("1k-quota", seed, 60) == 60


# -- damage ---------------------------------------------------------------------------------------------------


def quota_blocks(image: Path) -> list[int]:
    """Byte offsets of the quota files' blocks of 1 KiB."""
    with py4fs.open_image(image, readonly=True) as fs:
        found = []
        for kind in fs.volume.quotas.kinds:
            file = fs.volume.quotas._file(kind)
            for number in range(file.info.dqi_blocks):
                block, at = file._block(number)
                found.append(block.pblk * fs.volume.geometry.block_size + at)
        return found


def test_a_damaged_head_makes_it_read_only(image: Path) -> None:
    data = bytearray(image.read_bytes())
    for patch, text in ((0, "dqh_magic"), (4, "dqh_version"), (8 + 12, "dqi_blocks")):
        device = MemoryDevice(data)
        device.data[quota_blocks(image)[0] + patch] ^= 0xFF
        before = bytes(device.data)
        with open_device(device) as fs:
            assert [line for line in fs.notices if "a quota file is damaged, run e2fsck" in line and text in line]
            fs.listdir("/")
        assert device.data == before


def survives(step: Callable[[], object]) -> None:
    try:
        step()
    except FsError as exc:
        assert "\n" not in str(exc)


@pytest.mark.parametrize("number", range(30))
def test_any_quota_file_gives_an_answer(image: Path, number: int, log_guard: LogGuard) -> None:
    """Trees with circles, impossible blocks, wrong counts: an error or a result, in bounded time."""
    log_guard.allow("could not be freed and stays on the orphan list: quota ")
    rng = random.Random(number)
    device = MemoryDevice(image.read_bytes())
    with open_device(device) as fs:
        for index in range(40):
            fs.mknod(f"/n{index}", stat.S_IFREG | 0o644, caller=Caller(index * 77, index))
    blocks = quota_blocks(image)
    for _ in range(rng.randrange(1, 40)):
        place = rng.choice(blocks) + rng.choice([rng.randrange(KIB), 4 * rng.randrange(4), 8 + 4 * rng.randrange(6)])
        device.data[place] = rng.choice([0, 1, 2, 3, 7, 255])
    try:
        with open_device(device) as fs:
            for index in range(40):
                survives(partial(fs.unlink, f"/n{index}"))
                survives(partial(fs.mkdir, f"/d{index}", caller=Caller(index << 20, 5)))
            for kind in QuotaKind:
                survives(lambda kind=kind: list(fs.volume.quotas.report(kind)))  # type: ignore[misc]
    except FsError as exc:
        assert "\n" not in str(exc)


def test_quota_inodes_have_no_names(image: Path) -> None:
    with py4fs.open_image(image, readonly=True) as fs:
        project = fs.volume.superblock.record.s_prj_quota_inum
        for ino in (3, 4, project):
            with pytest.raises(FsError):
                fs.vfs.getattr(ino)


def test_options_of_a_mount() -> None:
    from py4fs.cli import options

    assert options.parse(["usrquota,prjquota"]).quota_limits == ("user", "project")
    assert options.parse(["usrquota,noquota"]).quota_limits == ()
