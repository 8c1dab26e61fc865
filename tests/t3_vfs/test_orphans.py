"""Inodes without names: on the orphan list while somebody holds them, freed afterwards, whoever that is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from images.tools import fsck_clean, mke2fs, run
from py4fs.api import Filesystem, OpenOptions, open_device, open_image
from py4fs.device.memory import MemoryDevice
from py4fs.errors import NoSpace, NotFound, ReadOnly
from py4fs.ext4.layout.superblock import EXT4_ERROR_FS, EXT4_VALID_FS, SUPERBLOCK
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import ROOT_INO
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.volumes import Clock
from tests.t7_hostile.mutate import Mutator

NO_JOURNAL = ("-b", "1024", "-O", "^has_journal")
JOURNAL = ("-b", "1024", "-J", "size=1")


class Disk:
    """An image in memory, and the on-disk view of its orphan list."""

    def __init__(self, path: Path, *args: str) -> None:
        mke2fs(path, 8 << 20, *args)
        self.path = path
        self.device = MemoryDevice(path.read_bytes())
        self.mutator = Mutator(bytes(self.device.data))

    def open(self, *, readonly: bool = False) -> Filesystem:
        options = OpenOptions(readonly=readonly, atime="noatime", volume=VolumeOptions(strict=True))
        return open_device(self.device, clock=Clock(), options=options)

    def reopen(self, data: bytes | bytearray, *, readonly: bool = False) -> Filesystem:
        self.device = MemoryDevice(data)
        return self.open(readonly=readonly)

    def put_inode(self, ino: int, **fields: Any) -> None:
        self.mutator.put_inode(self.device.data, ino, **fields)

    def put_super(self, **fields: Any) -> None:
        self.mutator.put_super(self.device.data, **fields)

    def get_super(self, field: str) -> int:
        value: int = SUPERBLOCK.get(self.device.data, 1024, field)
        return value

    def chain(self) -> list[int]:
        """The orphan list as it is on the device."""
        found: list[int] = []
        ino = self.get_super("s_last_orphan")
        while ino:
            assert ino not in found
            found.append(ino)
            inode = self.mutator.get_inode(self.device.data, ino)
            ino = inode.i_dtime
        return found

    def check(self) -> None:
        self.path.write_bytes(self.device.data)
        fsck_clean(self.path)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "fs.img", *NO_JOURNAL)


def make_files(fs: Filesystem, count: int) -> list[int]:
    for number in range(count):
        fs.write_bytes(f"/f{number}", bytes([number + 1]) * 10_000)
    return [fs.stat(f"/f{number}").ino for number in range(count)]


def blocks(fs: Filesystem) -> tuple[int, int]:
    return fs.statvfs().bfree, fs.statvfs().ffree


def test_open_and_unlinked(disk: Disk) -> None:
    """On the list from the commit on; readable and writable; freed at the last close."""
    fs = disk.open()
    (ino,) = make_files(fs, 1)
    fs.mkdir("/dir")
    held = blocks(fs)
    fh, other = fs.vfs.open(ino, os.O_RDWR), fs.vfs.open(ino, os.O_RDONLY)
    fs.unlink("/f0")
    assert fs.vfs.getattr(ino).nlink == 0
    fs.sync()
    assert disk.chain() == [ino]
    assert disk.mutator.get_inode(disk.device.data, ino).i_links_count == 0
    fs.vfs.write(fh, 10_000, b"more" * 1000)
    assert fs.vfs.read(other, 9_999, 3) == b"\x01mo"
    fs.vfs.setattr(ino, size=5000)
    fs.vfs.release(fh)
    assert fs.vfs.read(other, 0, 3) == b"\x01\x01\x01"
    fs.sync()
    assert disk.chain() == [ino]
    fs.vfs.release(other)
    assert blocks(fs) == (held[0] + 10, held[1] + 1)
    fs.sync()
    assert disk.chain() == []
    inode = disk.mutator.get_inode(disk.device.data, ino)
    assert inode.i_links_count == 0 and inode.i_dtime
    with pytest.raises(Exception, match="not in use"):
        fs.vfs.getattr(ino)
    fs.close()
    disk.check()


def test_known_to_the_kernel(disk: Disk) -> None:
    """An inode that the kernel has references of lives until it forgets all of them."""
    fs = disk.open()
    inos = make_files(fs, 2)
    fs.mkdir("/dir")
    inos.append(fs.stat("/dir").ino)
    before = blocks(fs)
    for ino in inos:
        fs.vfs.ref(ino)
        fs.vfs.ref(ino, 2)
    fs.unlink("/f0")
    fs.unlink("/f1")
    fs.rmdir("/dir")
    assert blocks(fs) == before
    fs.sync()
    assert sorted(disk.chain()) == sorted(inos)
    fs.vfs.forget([(ino, 2) for ino in inos])
    assert blocks(fs) == before
    fh = fs.vfs.open(inos[0], os.O_RDONLY)
    fs.vfs.forget([(ino, 1) for ino in inos])
    assert blocks(fs) == (before[0] + 11, before[1] + 2)
    fs.vfs.forget([(12345, 1)])
    fs.vfs.release(fh)
    assert blocks(fs) == (before[0] + 21, before[1] + 3)
    fs.close()
    assert disk.chain() == []
    disk.check()


def test_list_of_many(disk: Disk, rng: random.Random) -> None:
    """Taken off the list in any order, the chain on the device stays right at every commit."""
    fs = disk.open()
    inos = make_files(fs, 12)
    handles = {ino: fs.vfs.open(ino, os.O_RDWR) for ino in inos}
    for number in range(12):
        fs.unlink(f"/f{number}")
    fs.sync()
    assert disk.chain() == inos[::-1]
    while handles:
        ino = rng.choice(list(handles))
        fs.vfs.release(handles.pop(ino))
        if rng.random() < 0.6:
            fs.sync()
            assert disk.chain() == [ino for ino in inos[::-1] if ino in handles]
    fs.close()
    disk.check()


def test_failed_removal_leaves_the_list(disk: Disk) -> None:
    """An operation that fails after the inode went on the list takes it off again, in memory and in the chain."""
    fs = disk.open()
    inos = make_files(fs, 3)
    handles = [fs.vfs.open(ino, os.O_RDWR) for ino in inos]
    fs.unlink("/f0")
    fs.unlink("/f1")
    links = dict(fs.volume.orphans._list._links)
    namespace = fs.volume.namespace
    with pytest.raises(ZeroDivisionError), fs.volume.operation(64) as tx:
        namespace.unlink(tx, fs.volume.inodes.get(ROOT_INO), b"f2")
        fs.volume.orphans.remove(tx, fs.volume.inodes.get_orphan(inos[0]))
        raise ZeroDivisionError
    assert fs.volume.orphans._list._links == links
    fs.sync()
    assert disk.chain() == [inos[1], inos[0]]
    for fh in handles:
        fs.vfs.release(fh)
    fs.close()
    disk.check()


@pytest.mark.parametrize("args", [NO_JOURNAL, ("-b", "1024", "-O", "^has_journal,^metadata_csum,^64bit")])
def test_left_behind(args: tuple[str, ...], tmp_path: Path) -> None:
    """What a server that died left on the list is freed by the next one, and left alone by a reader."""
    disk = Disk(tmp_path / "fs.img", *args)
    fs = disk.open()
    inos = make_files(fs, 4)
    before = blocks(fs)
    fs.setxattr("/f1", "user.large", b"x" * 700)
    fs.symlink("s" * 200, "/link")
    fs.mkdir("/dir")
    for ino in (*inos, fs.lstat("/link").ino, fs.stat("/dir").ino):
        fs.vfs.ref(ino)
    for name in ("/f0", "/f1", "/f2", "/link"):
        fs.unlink(name)
    fs.rmdir("/dir")
    fs.sync()
    assert len(disk.chain()) == 5
    assert not disk.get_super("s_state") & EXT4_VALID_FS
    crashed = bytes(disk.device.data)

    reader = disk.reopen(crashed, readonly=True)
    assert reader.read_bytes("/f3")[:2] == b"\x04\x04"
    assert any("not cleanly unmounted" in notice for notice in reader.notices)
    reader.close()
    assert disk.device.data == crashed

    fs = disk.reopen(crashed)
    assert any("orphans: 5 inode(s) deleted, 0 truncated" in notice for notice in fs.notices)
    assert blocks(fs) == (before[0] + 30, before[1] + 3)
    with pytest.raises(NotFound):
        fs.stat("/f0")
    fs.close()
    assert disk.chain() == []
    assert not disk.get_super("s_state") & EXT4_VALID_FS, "as it was found"
    disk.path.write_bytes(disk.device.data)
    # e2fsck wants to set VALID again, and nothing else
    done = run(["e2fsck", "-fy", disk.path], ok=(0, 1), clock=None)
    assert "orphaned" not in done and "Fix" not in done, done
    fsck_clean(disk.path)


def test_left_behind_in_a_truncation(disk: Disk) -> None:
    """An inode of the list that has a name is cut to its size."""
    fs = disk.open()
    inos = make_files(fs, 3)
    free = fs.statvfs().bfree
    fs.close()
    disk.put_inode(inos[0], i_size_lo=1500, i_dtime=inos[2])
    disk.put_inode(inos[2], i_size_lo=0, i_dtime=0)
    disk.put_super(s_last_orphan=inos[0])
    fs = disk.open()
    assert any("0 inode(s) deleted, 2 truncated" in notice for notice in fs.notices)
    assert fs.read_bytes("/f0") == b"\x01" * 1500
    assert fs.statvfs().bfree == free + 8 + 10
    fs.close()
    disk.check()


def orphans_of_the_kernel(mounted: Path) -> Iterator[Any]:
    """Open and unlinked files of all sizes, and a directory."""
    for number in range(6):
        path = mounted / f"gone{number}"
        path.write_bytes(os.urandom(1000) * (1 + 40 * number))
        os.setxattr(path, "user.large", b"x" * 600)
        yield path.open("r+b")
        path.unlink()
    (mounted / "dir").mkdir()
    fd = os.open(mounted / "dir", os.O_RDONLY)
    (mounted / "dir").rmdir()
    yield _Closer(fd)


class _Closer:
    """A file descriptor that is closed at the end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def test_left_behind_by_the_kernel(make_image: ImageMaker, kernel_mount: KernelMount, tmp_path: Path) -> None:
    image = make_image("16M", "-b", "1024", "-O", "^orphan_file")
    copy = tmp_path / "copy.img"
    with kernel_mount(image) as mounted, ExitStack() as held:
        (mounted / "kept").write_bytes(b"kept" * 1000)
        for item in orphans_of_the_kernel(mounted):
            held.enter_context(item)
        os.sync()
        copy.write_bytes(image.read_bytes())
    # replays the journal and leaves the list
    run(["debugfs", "-w", "-R", "journal_run", copy])
    data = copy.read_bytes()
    assert SUPERBLOCK.get(data, 1024, "s_last_orphan")
    device = MemoryDevice(data)
    fs = open_device(device, clock=Clock())
    assert any("orphans: 7 inode(s) deleted" in notice for notice in fs.notices), fs.notices
    assert sorted(fs.listdir("/")) == ["kept", "lost+found"]
    fs.close()
    copy.write_bytes(device.data)
    fsck_clean(copy)


def loop(disk: Disk, inos: list[int]) -> None:
    disk.put_inode(inos[0], i_dtime=inos[1])
    disk.put_inode(inos[1], i_dtime=inos[0])


BAD_LISTS: dict[str, Callable[[Disk, list[int]], Any]] = {
    "loop": loop,
    "loop to itself": lambda disk, inos: disk.put_inode(inos[0], i_dtime=inos[0]),
    "beyond the table": lambda disk, inos: disk.put_inode(inos[0], i_dtime=0xFFFFFFF),
    "reserved inode": lambda disk, inos: disk.put_inode(inos[0], i_dtime=7),
    "root": lambda disk, inos: disk.put_inode(inos[0], i_dtime=2),
    "directory in use": lambda disk, inos: disk.put_inode(inos[0], i_dtime=inos[-1]),
    "free inode": lambda disk, inos: disk.put_super(s_last_orphan=inos[-1] + 5),
    "free inode behind": lambda disk, inos: disk.put_inode(inos[0], i_dtime=inos[-1] + 5),
    "file type": lambda disk, inos: disk.put_inode(inos[0], i_mode=0),
    "extents": lambda disk, inos: disk.put_inode(inos[0], i_block=b"\xff" * 60, i_size_lo=0),
}


@pytest.mark.parametrize("damage", BAD_LISTS)
def test_bad_lists(damage: str, disk: Disk) -> None:
    """A list that makes no sense: everything can be read, nothing is freed on its word, e2fsck is recommended."""
    fs = disk.open()
    inos = make_files(fs, 3)
    fs.mkdir("/dir")
    inos.append(fs.stat("/dir").ino)
    fs.close()
    disk.put_super(s_last_orphan=inos[0])
    BAD_LISTS[damage](disk, inos)
    fs = disk.open()
    assert fs.volume.readonly
    assert any("orphan list is damaged" in notice and "e2fsck" in notice for notice in fs.notices)
    assert fs.read_bytes("/f2") == b"\x03" * 10_000
    with pytest.raises(ReadOnly, match="orphan list"):
        fs.mkdir("/new")
    fs.close()
    fs = disk.open(readonly=True)
    fs.listdir("/")
    fs.close()
    disk.path.write_bytes(disk.device.data)
    run(["e2fsck", "-fy", disk.path], ok=(0, 1))
    fsck_clean(disk.path)


def test_list_of_a_file_system_with_errors(disk: Disk) -> None:
    """Recorded errors: the list is not believed (as in the kernel), new orphans begin a new one."""
    fs = disk.open()
    inos = make_files(fs, 2)
    fs.close()
    disk.put_super(s_last_orphan=inos[0], s_state=EXT4_VALID_FS | EXT4_ERROR_FS)
    disk.put_inode(inos[0], i_size_lo=100)
    fs = disk.open()
    assert any("because of recorded errors" in notice for notice in fs.notices)
    assert fs.stat("/f0").blocks == 20
    fs.vfs.open(inos[1], os.O_RDONLY)
    fs.unlink("/f1")
    fs.sync()
    assert disk.chain() == [inos[1]]
    fs.close()
    assert disk.chain() == []
    assert disk.get_super("s_state") & EXT4_ERROR_FS
    disk.path.write_bytes(disk.device.data)
    run(["e2fsck", "-fy", disk.path], ok=(0, 1))


def test_orphan_file(tmp_path: Path) -> None:
    """With the orphan_file feature: a flag without entries goes away (more in t2_ext4/test_orphan_file.py)."""
    disk = Disk(tmp_path / "fs.img", "-b", "1024", "-O", "orphan_file,has_journal")
    fs = disk.open()
    make_files(fs, 1)
    fs.unlink("/f0")
    fs.close()
    disk.check()
    disk.put_super(s_feature_ro_compat=disk.get_super("s_feature_ro_compat") | 0x10000)
    fs = disk.open()
    fs.mkdir("/new")
    fs.close()
    assert not disk.get_super("s_feature_ro_compat") & 0x10000
    disk.check()


def test_not_cleanly_unmounted(disk: Disk) -> None:
    """Such an image can be used, its user is told, and it stays marked for e2fsck."""
    disk.put_super(s_state=0)
    fs = disk.open()
    assert any("not cleanly unmounted" in notice for notice in fs.notices)
    fs.write_bytes("/file", b"data")
    fs.close()
    assert not disk.get_super("s_state") & EXT4_VALID_FS
    disk.path.write_bytes(disk.device.data)
    run(["e2fsck", "-fy", disk.path], ok=(0, 1))
    fsck_clean(disk.path)


WORKER = textwrap.dedent(
    """
    import random, sys
    import py4fs
    rng = random.Random(sys.argv[2])
    fs = py4fs.open_image(sys.argv[1])
    fs.write_bytes("/synced", b"s" * 5000)
    fs.sync()
    print("ready", flush=True)
    names = []
    held = []
    while True:
        name = f"/{rng.randrange(40)}"
        kind = rng.randrange(7)
        try:
            if kind == 0:
                fs.mkdir(name)
            elif kind < 3:
                fs.write_bytes(name + rng.choice(["", "/x", "/y"]), b"d" * rng.randrange(60_000))
            elif kind == 3:
                fs.vfs.open(fs.stat(name).ino, 0)
                fs.unlink(name)
            elif kind == 4:
                fs.rename(name, f"/{rng.randrange(40)}")
            elif kind == 5:
                fs.setxattr(name, "user.x", b"v" * rng.randrange(900))
            elif rng.random() < 0.3:
                fs.sync()
        except py4fs.errors.FsError:
            pass
    """
)


@pytest.mark.parametrize("args", [NO_JOURNAL, JOURNAL], ids=["no journal", "journal"])
def test_killed(args: tuple[str, ...], tmp_path: Path, rng: random.Random) -> None:
    """kill -9 in the middle of work: e2fsck makes the image right, and knows that it has to look."""
    for number in range(4):
        path = tmp_path / f"killed{number}.img"
        mke2fs(path, 16 << 20, *args)
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, path, str(number)], stdout=subprocess.PIPE, env=environment
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            time.sleep(rng.random() * 0.7)
            worker.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        sb = SUPERBLOCK.unpack_from(data, 1024)
        assert not sb.s_state & EXT4_VALID_FS or sb.s_feature_incompat & 0x4
        out = run(["e2fsck", "-fy" if args is NO_JOURNAL else "-p", path], ok=(0, 1))
        if args is JOURNAL:
            assert "UNEXPECTED" not in out
        fsck_clean(path)
        fs = open_device(MemoryDevice(path.read_bytes()), options=OpenOptions(readonly=True))
        assert fs.read_bytes("/synced") == b"s" * 5000
        fs.close()


@pytest.mark.parametrize(("feature", "waits"), [("^has_journal", True), ("has_journal", False)])
def test_without_a_journal_freed_inodes_wait_for_the_commit(feature: str, waits: bool, make_image: ImageMaker) -> None:
    """Until then the device may have the old name, which must not lead to a new file. When all others are in use,
    they are taken all the same, as by the kernel."""
    with open_image(make_image("8M", "-b", "1024", "-N", "32", "-O", feature)) as fs:
        fs.write_bytes("/old", b"old")
        fs.sync()
        ino = fs.stat("/old").ino
        fs.unlink("/old")
        fs.write_bytes("/new", b"new")
        assert (fs.stat("/new").ino != ino) == waits
        fs.sync()
        fs.write_bytes("/newer", b"newer")
        assert (fs.stat("/newer").ino == ino) == waits
        free = fs.statvfs().ffree
        for number in range(free):
            fs.write_bytes(f"/{number}", b"")
        fs.unlink("/0")
        fs.write_bytes("/again", b"")
        with pytest.raises(NoSpace):
            fs.write_bytes("/one-more", b"")
