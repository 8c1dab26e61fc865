"""Fast commits that the kernel left behind, and ones made here that it never would.

The oracle is the tree as it was when the last fsync came back. (The kernel's own replay gets link counts of
directories wrong, e2fsck 1.47.0 drops whole journals with an old fast commit in them.) Only the times of directories
are not in a fast commit.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from images.tools import run
from py4fs.device.faulty import FaultyDevice, Kind
from py4fs.device.file import FileDevice
from py4fs.errors import DeviceError, FsError, UnsupportedFeature
from py4fs.ext4.checksum import crc32c
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.fast_commit import FastCommits, scan_fast_commits
from py4fs.ext4.journal.recovery import recover as recover_journal
from py4fs.ext4.layout import fast_commit as fc
from py4fs.ext4.layout.extent import EXTENT
from py4fs.ext4.layout.inode import INODE
from py4fs.ext4.volume import Volume, VolumeOptions
from tests.support import machine, tree
from tests.support.dirty import dirty_copy, e2fsck, fsync, journal_of, kernel_tree, recover, recovered_view
from tests.support.image import ImageMaker

pytestmark = pytest.mark.usefixtures("loop")

Step = Callable[[Path], object]


@pytest.fixture
def loop() -> None:
    machine.need_loop()


def base(directory: Path) -> None:
    """What is there before, in a full commit."""
    (directory / "a").write_bytes(b"a" * 30_000)
    (directory / "b").write_bytes(b"b" * 9_000)
    (directory / "dir").mkdir()
    (directory / "dir/c").write_bytes(b"c" * 100)
    (directory / "empty").mkdir()
    for i in range(20):
        (directory / f"m{i}").write_bytes(b"%d" % i * 3000)
    os.sync()


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _create(directory: Path) -> None:
    (directory / "new").write_bytes(b"n" * 12_345)
    fsync(directory / "new")


def _sparse(directory: Path) -> None:
    """A file whose extents fill several leaves, a fast commit each now and then."""
    fd = os.open(directory / "sparse", os.O_CREAT | os.O_RDWR)
    for i in range(300):
        os.pwrite(fd, b"%4d" % i * 1024, i * 12_288)
        if i % 20 == 0:
            os.fsync(fd)
    os.fsync(fd)
    os.close(fd)


def _fill_directory(directory: Path) -> None:
    for i in range(90):
        path = directory / "dir" / f"a-name-that-makes-the-directory-grow-{i:040}"
        path.write_bytes(b"q%d" % i)
        fsync(path)


def _rewrite(directory: Path) -> None:
    """Blocks of a file go and others come, in several fast commits."""
    path = directory / "a"
    for size in (4096, 60_000, 0, 20_000):
        os.truncate(path, min(size, path.stat().st_size))
        _append(path, os.urandom(size - path.stat().st_size))
        fsync(path)


def _again(directory: Path) -> None:
    """Names that come and go, the same ones, over several fast commits."""
    for i in range(4):
        (directory / "n").write_bytes(b"%d" % i * 5000)
        fsync(directory / "n")
        os.link(directory / "n", directory / f"dir/n{i}")
        fsync(directory / "n")
        (directory / "n").unlink()
        fsync(directory / f"dir/n{i}")


def _nested(directory: Path) -> None:
    (directory / "dir/x/y").mkdir(parents=True)
    (directory / "dir/x/y/z").write_bytes(b"z" * 5000)
    (directory / "dir/x/w").mkdir()
    (directory / "dir/x/w").rmdir()
    fsync(directory / "dir/x/y/z")


STEPS: dict[str, Step] = {
    "create": _create,
    "append": lambda d: _append(d / "a", b"more" * 5000),
    "rename": lambda d: (d / "b").rename(d / "b2"),
    "rename over": lambda d: (d / "m7").rename(d / "m8"),
    "link": lambda d: os.link(d / "a", d / "dir/hard"),
    "unlink": lambda d: (d / "m1").unlink(),
    "truncate": lambda d: os.truncate(d / "m2", 100),
    "truncate to nothing": lambda d: os.truncate(d / "m6", 0),
    "mkdir": lambda d: (d / "dir/sub").mkdir(),
    "rmdir": lambda d: (d / "empty").rmdir(),
    "chmod": lambda d: (d / "m5").chmod(0o600),
    "chown": lambda d: os.chown(d / "m5", 5, 70_000),
    "utime": lambda d: os.utime(d / "m11", (5, 5)),
    "fallocate": lambda d: subprocess.run(["fallocate", "-l", "1M", d / "m9"], check=True),
    "punch": lambda d: subprocess.run(["fallocate", "-p", "-o", "4096", "-l", "4096", d / "a"], check=True),
    "sparse": _sparse,
    "directory grows": _fill_directory,
    "rewrite": _rewrite,
    "names again": _again,
    "nested": _nested,
}


def _with_fast_commits(make_image: ImageMaker, *mke2fs: str) -> Path:
    image = make_image("48M", *(mke2fs or ("-b", "4096")), "-J", "size=8" if not mke2fs else "size=4")
    run(["tune2fs", "-O", "fast_commit", image])
    return image


def comparable(snapshot: tree.Snapshot) -> tree.Snapshot:
    return {
        name: replace(node, mtime=0, ctime=0, size=0, blocks=0) if node.type == "directory" else node
        for name, node in snapshot.items()
    }


class World:
    """A dirty image with fast commits in it, and the tree that it must become."""

    def __init__(self, image: Path, path: Path, step: Step, touch: tuple[str, ...] = ("a", "m0")) -> None:
        self.want: tree.Snapshot = {}

        def work(directory: Path) -> None:
            base(directory)
            step(directory)
            for name in touch:
                (directory / name).chmod(0o640)  # makes it part of the transaction
                fsync(directory / name)
            self.want = comparable(tree.snapshot(directory))

        self.image = dirty_copy(image, path, work)

    def check(self, image: Path) -> None:
        """A recovered image is clean and as wanted."""
        status, output = e2fsck(image, "-n")
        assert status == 0, output
        tree.assert_same(self.want, comparable(kernel_tree(image)))


def _scan(area: JournalArea) -> FastCommits:
    replay = recover_journal(area, area.device.size // area.block_size)
    return scan_fast_commits(area, replay.end, 256)


def _tags(image: Path) -> FastCommits:
    with journal_of(image, readonly=True) as area:
        return _scan(area)


@pytest.mark.parametrize("step", STEPS, ids=list(STEPS))
def test_kernel_made(step: str, make_image: ImageMaker, tmp_path: Path) -> None:
    world = World(_with_fast_commits(make_image), tmp_path / "dirty.img", STEPS[step])
    assert _tags(world.image).commits
    before = world.image.read_bytes()
    recovered_view(world.image)
    assert world.image.read_bytes() == before
    assert "fast commit(s)" in "".join(recover(world.image))
    world.check(world.image)


@pytest.mark.parametrize(
    "options",
    [
        ("-b", "1024"),
        ("-b", "1024", "-O", "^metadata_csum"),
        ("-b", "1024", "-O", "bigalloc", "-C", "4096"),
        ("-b", "1024", "-O", "inline_data"),
    ],
    ids=" ".join,
)
def test_small_blocks(options: tuple[str, ...], make_image: ImageMaker, tmp_path: Path) -> None:
    def steps(directory: Path) -> None:
        for name in ("create", "rename over", "truncate", "mkdir", "sparse", "directory grows", "nested"):
            STEPS[name](directory)

    world = World(_with_fast_commits(make_image, *options), tmp_path / "dirty.img", steps)
    assert _tags(world.image).commits
    recover(world.image)
    world.check(world.image)


def test_old_fast_commits_are_passed_over(make_image: ImageMaker, tmp_path: Path) -> None:
    """A full commit came behind them."""

    def steps(directory: Path) -> None:
        STEPS["create"](directory)
        (directory / "link").symlink_to("not for fast commits")

    world = World(_with_fast_commits(make_image), tmp_path / "dirty.img", steps, ("a",))
    assert not _tags(world.image).commits
    with journal_of(world.image, readonly=True) as area:
        assert fc.FC_TAG.unpack_from(area.read(area.fast_first)).fc_tag == fc.EXT4_FC_TAG_HEAD
    assert "fast commit" not in "".join(recover(world.image))
    world.check(world.image)


def test_orphans_of_the_full_commit_stay_orphans(make_image: ImageMaker, tmp_path: Path) -> None:
    """A file without a name, still open and written: on the orphan list before, and in fast commits."""

    def steps(directory: Path) -> None:
        fd = os.open(directory / "m4", os.O_RDWR)
        (directory / "m4").unlink()
        os.sync()
        os.pwrite(fd, b"x" * 50_000, 0)
        os.fsync(fd)
        os.close(fd)

    world = World(_with_fast_commits(make_image), tmp_path / "dirty.img", steps)
    recover(world.image)
    world.check(world.image)


def test_interrupted_anywhere(make_image: ImageMaker, tmp_path: Path) -> None:
    """Recovery that stops at its Nth write or flush: the next one leads to the same tree."""

    def steps(directory: Path) -> None:
        for name in ("create", "rename over", "truncate", "mkdir", "unlink"):
            STEPS[name](directory)

    world = World(_with_fast_commits(make_image), tmp_path / "dirty.img", steps)
    image = tmp_path / "copy.img"
    kinds: tuple[Kind, ...] = ("write", "flush")
    for what in kinds:
        for count in range(1, 200):
            image.write_bytes(world.image.read_bytes())
            device = FaultyDevice(FileDevice.open(image))
            device.arm(what, count, times=None)
            try:
                volume = Volume.open(device, VolumeOptions(), time.time_ns)
            except DeviceError:
                device.close()
            else:
                volume.close()
                break
            recover(image)
            status, output = e2fsck(image, "-n")
            assert status == 0, (what, count, output)
            if count % 4 == 0:
                world.check(image)
        else:
            pytest.fail("it never came through")
        assert count > (8 if what == "write" else 5)
        world.check(image)


# -- made by hand ----------------------------------------------------------------------------------------------


class Maker:
    """Writes fast commits behind the log of a dirty image."""

    def __init__(self, area: JournalArea, tid: int) -> None:
        self._area = area
        self._tid = tid
        self._block = area.fast_first
        self._data = bytearray()
        self._crc = 0
        self.tag(fc.EXT4_FC_TAG_HEAD, fc.FC_HEAD.pack(0, tid))

    def tag(self, tag: int, value: bytes) -> None:
        raw = fc.FC_TAG.pack(tag, len(value)) + value
        size = self._area.block_size
        if len(self._data) + len(raw) + fc.FC_TAG.size > size:
            self._pad()
        self._crc = crc32c(self._crc, raw)
        self._data += raw

    def _pad(self) -> None:
        rest = self._area.block_size - len(self._data) - fc.FC_TAG.size
        raw = fc.FC_TAG.pack(fc.EXT4_FC_TAG_PAD, rest) + bytes(rest)
        self._crc = crc32c(self._crc, raw)
        self._data += raw
        self._write()

    def _write(self) -> None:
        assert len(self._data) == self._area.block_size
        self._area.write(self._block, [self._data])
        self._block += 1
        self._data = bytearray()

    def end(self, *, tid: int | None = None, crc: int = 0) -> None:
        """The tail; ``crc`` is xored into the right checksum."""
        length = self._area.block_size - len(self._data) - fc.FC_TAG.size
        head = fc.FC_TAG.pack(fc.EXT4_FC_TAG_TAIL, length) + (self._tid if tid is None else tid).to_bytes(4, "little")
        value = crc32c(self._crc, head) ^ crc
        self._data += head + value.to_bytes(4, "little") + bytes(length - 8)
        self._crc = 0
        self._write()

    def dentry(self, tag: int, parent: int, ino: int, name: bytes) -> None:
        self.tag(tag, fc.FC_DENTRY.pack(parent, ino) + name)

    def add_range(self, ino: int, lblk: int, count: int, pblk: int) -> None:
        extent = EXTENT.pack(lblk, count, pblk >> 32, pblk & 0xFFFFFFFF)
        self.tag(fc.EXT4_FC_TAG_ADD_RANGE, fc.FC_ADD_RANGE.pack(ino, extent))


@pytest.fixture
def committed(make_image: ImageMaker, tmp_path: Path) -> World:
    """An image whose full commits hold everything, and that has room for fast commits."""
    image = _with_fast_commits(make_image)
    world = World.__new__(World)
    world.want = {}

    def work(directory: Path) -> None:
        base(directory)
        world.want = comparable(tree.snapshot(directory))

    world.image = dirty_copy(image, tmp_path / "dirty.img", work)
    return world


def _maker(area: JournalArea) -> Maker:
    return Maker(area, recover_journal(area, area.device.size // area.block_size).end)


def _ino(image: Path, name: str) -> int:
    return int(run(["debugfs", "-R", f"stat {name}", image]).split("Inode:")[1].split()[0])


BAD: dict[str, Callable[[Maker, int], None]] = {
    "name with a slash": lambda m, ino: m.dentry(fc.EXT4_FC_TAG_LINK, 2, ino, b"a/b"),
    "name with a NUL": lambda m, ino: m.dentry(fc.EXT4_FC_TAG_LINK, 2, ino, b"a\0b"),
    "dot": lambda m, ino: m.dentry(fc.EXT4_FC_TAG_UNLINK, 2, 2, b"."),
    "parent is a file": lambda m, ino: m.dentry(fc.EXT4_FC_TAG_LINK, ino, ino, b"x"),
    "link of a directory": lambda m, ino: m.dentry(fc.EXT4_FC_TAG_LINK, 2, 2, b"x"),
    "blocks of the inode table": lambda m, ino: m.add_range(ino, 0, 4, 40),
    "blocks beyond the end": lambda m, ino: m.add_range(ino, 0, 4, 1 << 40),
    "blocks of a directory": lambda m, ino: m.add_range(2, 0, 4, 9000),
    "no blocks": lambda m, ino: m.add_range(ino, 0, 0, 9000),
    "beyond the largest file": lambda m, ino: m.add_range(ino, 0xFFFFFFFF, 1, 9000),
    "reserved inode": lambda m, ino: m.tag(fc.EXT4_FC_TAG_INODE, fc.FC_INODE.pack(8) + bytes(160)),
    "no such inode": lambda m, ino: m.tag(fc.EXT4_FC_TAG_INODE, fc.FC_INODE.pack(1 << 31) + bytes(160)),
    "inode with a type unknown": lambda m, ino: m.tag(
        fc.EXT4_FC_TAG_INODE, fc.FC_INODE.pack(ino) + (0xF000).to_bytes(2, "little") + b"\1" * 126
    ),
}


@pytest.mark.parametrize("bad", BAD, ids=list(BAD))
def test_nonsense_changes_nothing(bad: str, committed: World) -> None:
    """One tag that cannot be: no fast commit counts, the rest is served, and writing waits for e2fsck."""
    image = committed.image
    with journal_of(image) as area:
        maker = _maker(area)
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, _ino(image, "a"), b"first")
        BAD[bad](maker, _ino(image, "a"))
        maker.end()
        assert _scan(area).commits == 1
    before = image.read_bytes()
    recovered_view(image)
    assert image.read_bytes() == before
    notices = "\n".join(recover(image))
    assert "read-only: fast commits could not be replayed, run e2fsck" in notices
    status, output = e2fsck(image, "-n")
    assert status == 0, output
    tree.assert_same(committed.want, comparable(kernel_tree(image)))


def test_missing_things_are_passed_over(committed: World) -> None:
    """As the kernel: names that are not there, or there already, inodes that are not in use."""
    image = committed.image
    ino = _ino(image, "a")
    with journal_of(image) as area:
        maker = _maker(area)
        maker.dentry(fc.EXT4_FC_TAG_UNLINK, 2, ino, b"never-there")
        maker.dentry(fc.EXT4_FC_TAG_UNLINK, 2, ino, b"b")
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, ino, b"b")
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, 3000, b"x")
        maker.dentry(fc.EXT4_FC_TAG_LINK, 3000, ino, b"x")
        maker.dentry(fc.EXT4_FC_TAG_CREAT, 2, ino, b"a")
        maker.tag(fc.EXT4_FC_TAG_DEL_RANGE, fc.FC_DEL_RANGE.pack(3000, 0, 5))
        maker.add_range(3000, 0, 1, 9000)
        maker.tag(fc.EXT4_FC_TAG_PAD, b"anything")
        maker.end()
        assert _scan(area).commits == 1
    assert "1 fast commit(s)" in "".join(recover(image))
    committed.check(image)


def test_a_device_inode_keeps_its_number(committed: World) -> None:
    """What i_block holds is not a map there."""
    image = committed.image
    with journal_of(image) as area:
        maker = _maker(area)
        raw = bytearray(160)
        INODE.put(raw, 0, i_mode=0o020600, i_links_count=1, i_block=(4 << 8 | 64).to_bytes(4, "little") + bytes(56))
        raw[128:130] = (32).to_bytes(2, "little")
        maker.tag(fc.EXT4_FC_TAG_INODE, fc.FC_INODE.pack(2000) + raw)
        maker.dentry(fc.EXT4_FC_TAG_CREAT, 2, 2000, b"tty")
        maker.end()
    recover(image)
    node = kernel_tree(image)[b"tty"]
    assert (node.type, node.rdev) == ("char device", os.makedev(4, 64))
    assert e2fsck(image, "-n")[0] == 0


def test_an_inode_number_is_used_again(committed: World) -> None:
    """A file and a directory lose their last names, their numbers go to others."""
    image = committed.image
    for name, other in (("a", 0o040755), ("empty", 0o100644)):
        ino = _ino(image, name)
        with journal_of(image) as area:
            maker = _maker(area)
            maker.dentry(fc.EXT4_FC_TAG_UNLINK, 2, ino, name.encode())
            raw = bytearray(160)
            INODE.put(raw, 0, i_mode=other, i_links_count=1, i_flags=0x80000, i_generation=77, i_size_lo=3 * 4096)
            raw[128:130] = (32).to_bytes(2, "little")
            maker.tag(fc.EXT4_FC_TAG_INODE, fc.FC_INODE.pack(ino) + raw)
            maker.dentry(fc.EXT4_FC_TAG_CREAT, 2, ino, b"again")
            if other == 0o100644:
                maker.add_range(ino, 0, 3, 9000)
            maker.end()
        copy = image.with_suffix(f".{name}")
        copy.write_bytes(image.read_bytes())
        assert "1 fast commit(s)" in "".join(recover(copy))
        status, output = e2fsck(copy, "-n")
        assert status == 0, output
        found = kernel_tree(copy)
        assert name.encode() not in found and found[b"again"].type == ("directory" if other < 0o100000 else "file")


@pytest.mark.parametrize("how", ["checksum", "tid", "no tail", "bad length", "unknown tag"])
def test_an_unfinished_fast_commit_is_ignored(how: str, committed: World) -> None:
    image = committed.image
    with journal_of(image) as area:
        maker = _maker(area)
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, _ino(image, "a"), b"first")
        if how == "bad length":
            maker.tag(fc.EXT4_FC_TAG_DEL_RANGE, bytes(11))
        if how == "unknown tag":
            maker.tag(99, b"")
        if how == "no tail":
            maker._pad()
        else:
            maker.end(tid=5000 if how == "tid" else None, crc=int(how == "checksum"))
    assert any("unfinished fast commit" in line for line in recover(image))
    committed.check(image)


def test_a_second_fast_commit_that_is_unfinished(committed: World) -> None:
    """The first one counts."""
    image = committed.image
    with journal_of(image) as area:
        maker = _maker(area)
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, _ino(image, "a"), b"first")
        maker.end()
        maker.dentry(fc.EXT4_FC_TAG_LINK, 2, _ino(image, "a"), b"second")
        maker.end(crc=1)
    recover(image)
    assert e2fsck(image, "-n")[0] == 0
    found = kernel_tree(image)
    assert b"first" in found and b"second" not in found and found[b"a"].nlink == 2


def test_unknown_features_refuse(committed: World) -> None:
    image = committed.image
    with journal_of(image) as area:
        tid = recover_journal(area, 12_288).end
        data = fc.FC_TAG.pack(fc.EXT4_FC_TAG_HEAD, 8) + fc.FC_HEAD.pack(1, tid)
        area.write(area.fast_first, [data + bytes(area.block_size - len(data))])
    before = image.read_bytes()
    with pytest.raises(UnsupportedFeature, match="fast commit features 0x1"):
        recover(image)
    assert image.read_bytes() == before


def test_any_bytes_get_an_answer(committed: World, rng: object, tmp_path: Path) -> None:
    """Random tags with right checksums: an FsError or a file system that e2fsck can repair, nothing else."""
    import random

    assert isinstance(rng, random.Random)
    image = tmp_path / "copy.img"
    inos = [2, 8, 11, 12, *(_ino(committed.image, name) for name in ("a", "dir", "empty", "m3")), 3000]
    names = (b"a", b"b", b"dir", b"new", b"empty", b"c")
    for _ in range(40):
        image.write_bytes(committed.image.read_bytes())
        with journal_of(image) as area:
            maker = _maker(area)
            for _ in range(rng.randrange(1, 30)):
                kind = rng.randrange(1, 8)
                if kind == fc.EXT4_FC_TAG_ADD_RANGE:
                    pblk = rng.randrange(5000, 12_000)
                    maker.add_range(rng.choice(inos), rng.randrange(40), rng.randrange(1, 9), pblk)
                elif kind == fc.EXT4_FC_TAG_DEL_RANGE:
                    maker.tag(kind, fc.FC_DEL_RANGE.pack(rng.choice(inos), rng.randrange(20), rng.randrange(20)))
                elif kind in (fc.EXT4_FC_TAG_CREAT, fc.EXT4_FC_TAG_LINK, fc.EXT4_FC_TAG_UNLINK):
                    maker.dentry(kind, rng.choice(inos), rng.choice(inos), rng.choice(names))
                elif kind == fc.EXT4_FC_TAG_INODE:
                    raw = bytearray(rng.randbytes(160))
                    raw[128:130] = (32).to_bytes(2, "little")
                    INODE.put(raw, 0, i_mode=rng.choice((0o100644, 0o40755, 0o120777)), i_links_count=rng.randrange(3))
                    INODE.put(raw, 0, i_flags=rng.choice((0, 0x80000)), i_size_high=0, i_file_acl_lo=0)
                    INODE.put(raw, 0, l_i_file_acl_high=0)
                    maker.tag(kind, fc.FC_INODE.pack(rng.choice(inos)) + raw)
                else:
                    maker.tag(fc.EXT4_FC_TAG_PAD, rng.randbytes(7))
            maker.end()
        try:
            recover(image)
        except FsError:
            continue
        status, output = e2fsck(image, "-y")
        assert status <= 1, output
