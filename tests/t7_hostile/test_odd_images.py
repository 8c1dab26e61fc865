"""Images that are no images, and images with one particular oddity or damage each."""

from __future__ import annotations

import hashlib
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import py4fs
from images.tools import debugfs, fsck_clean, mke2fs
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import BadChecksum, Corrupt, FsError, NotFound, ReadOnly, Stale, UnsupportedFeature
from py4fs.ext4.layout.extent import EXTENT, EXTENT_HEADER, EXTENT_INDEX, EXTENT_MAGIC
from py4fs.ext4.layout.superblock import EXT4_VALID_FS, SUPERBLOCK
from py4fs.iomap.records import MapType
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, e2fsck_clean
from tests.support.logs import LogGuard
from tests.support.volumes import Clock
from tests.t7_hostile.exercise import attempt, change, soon, walk
from tests.t7_hostile.mutate import Mutator
from tests.t7_hostile.test_mutations import NeverWritten

PLAIN = ("-b", "1024", "-O", "^metadata_csum,^uninit_bg,^64bit,^has_journal,^resize_inode")
CSUM = ("-b", "1024", "-O", "metadata_csum,64bit,^has_journal,^resize_inode")
MAP = ("-b", "1024", "-O", "^extent,^flex_bg,^metadata_csum,^64bit,^has_journal,^resize_inode")


class Sample:
    """A small image in memory, to be filled and then damaged."""

    def __init__(self, directory: Path, args: tuple[str, ...], fill: Callable[[Filesystem], None]) -> None:
        path = directory / "sample.img"
        mke2fs(path, 4 << 20, "-g", "1024", "-N", "64", *args)
        device = MemoryDevice(path.read_bytes())
        fs = open_device(device, clock=Clock())
        fill(fs)
        self.inodes = {path: fs.lstat(path).ino for path in all_paths(fs)}
        fs.close()
        path.write_bytes(device.data)
        fsck_clean(path)
        self.mutator = Mutator(bytes(device.data))
        self.image = bytearray(device.data)

    def open(self, *, readonly: bool = False) -> Filesystem:
        device = NeverWritten(self.image) if readonly else MemoryDevice(self.image)
        return open_device(device, clock=Clock(), options=OpenOptions(readonly=readonly))

    def put_inode(self, path: str, **fields: Any) -> None:
        self.mutator.put_inode(self.image, self.inodes[path], **fields)

    def get_inode(self, path: str) -> Any:
        return self.mutator.get_inode(self.image, self.inodes[path])

    def survive(self) -> None:
        """Nothing but FsError comes out of using it."""
        with soon():
            walk(self.open(readonly=True))
        with soon():
            fs = self.open()
            change(fs, walk(fs), random.Random(1), 60)
            attempt(fs.close)


def all_paths(fs: Filesystem) -> list[str]:
    return [f"{here.rstrip('/')}/{name}" for here, dirs, files in fs.walk("/") for name in dirs + files]


def root_of(*extents: tuple[int, int, int]) -> bytes:
    """i_block with a leaf of (lblk, ee_len, pblk)."""
    raw = bytearray(60)
    EXTENT_HEADER.pack_into(raw, 0, EXTENT_MAGIC, len(extents), 4, 0, 0)
    for number, (lblk, length, pblk) in enumerate(extents):
        EXTENT.pack_into(raw, 12 + 12 * number, lblk, length, 0, pblk)
    return bytes(raw)


# -- not an image, or not one for us -------------------------------------------------------------------------


NO_IMAGES = {
    "empty": b"",
    "one byte": b"x",
    "short": bytes(2047),
    "zeros": bytes(1 << 20),
    "text": b"This is not a file system.\n" * 1000,
    "random": random.Random(1).randbytes(1 << 20),
    "ones": b"\xff" * (1 << 20),
}


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("name", NO_IMAGES)
def test_no_image(name: str, readonly: bool, tmp_path: Path) -> None:
    path = tmp_path / "no.img"
    path.write_bytes(NO_IMAGES[name])
    with pytest.raises(Corrupt) as caught:
        py4fs.open_image(path, readonly=readonly)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == NO_IMAGES[name]


@pytest.mark.parametrize("readonly", [False, True])
def test_truncated_images(readonly: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.img"
    mke2fs(path, 2 << 20)
    whole = path.read_bytes()
    for size in [*range(0, 8192, 511), *range(8192, len(whole), 100_003), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(Corrupt):
            py4fs.open_image(path, readonly=readonly)
        assert path.read_bytes() == whole[:size]


def test_bad_superblock_checksum(tmp_path: Path) -> None:
    sample = Sample(tmp_path, CSUM, lambda fs: None)
    sample.image[1024 + SUPERBLOCK.offsets["s_volume_name"]] ^= 1
    for readonly in (False, True):
        with pytest.raises(BadChecksum, match="superblock"):
            sample.open(readonly=readonly)


def test_unknown_features(tmp_path: Path) -> None:
    sample = Sample(tmp_path, CSUM, lambda fs: None)
    good = bytes(sample.image)
    sb = SUPERBLOCK.unpack_from(good, 1024)
    sample.mutator.put_super(sample.image, s_feature_incompat=sb.s_feature_incompat | 1 << 30)
    for readonly in (False, True):
        with pytest.raises(UnsupportedFeature, match="FEATURE_I30"):
            sample.open(readonly=readonly)
    sample.image = bytearray(good)
    sample.mutator.put_super(sample.image, s_feature_ro_compat=sb.s_feature_ro_compat | 1 << 30)
    fs = open_device(NeverWritten(sample.image), clock=Clock())
    assert any("FEATURE_R30" in notice for notice in fs.notices)
    with pytest.raises(ReadOnly, match="FEATURE_R30"):
        fs.mkdir("/new")
    fs.listdir("/")
    fs.close()


def test_journal_to_replay(tmp_path: Path) -> None:
    """needs_recovery with an empty log: reading writes nothing, opening for writing clears the flag."""
    path = tmp_path / "dirty.img"
    mke2fs(path, 4 << 20, "-b", "1024")
    image = bytearray(path.read_bytes())
    mutator = Mutator(bytes(image))
    mutator.put_super(image, s_feature_incompat=mutator.sb.s_feature_incompat | 0x4)
    path.write_bytes(image)
    with py4fs.open_image(path, readonly=True) as fs:
        assert fs.listdir("/") == ["lost+found"]
    assert path.read_bytes() == image
    with py4fs.open_image(path) as fs:
        fs.write_bytes("/new", b"new")
    e2fsck_clean(path)


def test_readonly_writes_nothing(make_image: ImageMaker) -> None:
    """Every kind of image, opened read-only through the real device, stays the same to the byte."""
    for recipe in ("default-b1024-i256", "upstream-b4096", "no-csum", "htree-half_md4-signed"):
        path = make_image.recipe(recipe)
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        with py4fs.open_image(path, readonly=True) as fs:
            walk(fs)
            with pytest.raises(ReadOnly):
                fs.mkdir("/new")
            with pytest.raises(ReadOnly):
                fs.chmod("/", 0)
            with pytest.raises(ReadOnly):
                fs.unlink("/x")
            fs.sync()
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


# -- legal, but odd ------------------------------------------------------------------------------------------


def test_directory_with_deleted_first_entries(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """The first record of a block is unused: it is read over, used again, and joined by its neighbour."""
    path = make_image("4M", "-b", "1024", "-O", "^dir_index")
    with py4fs.open_image(path) as fs:
        fs.mkdir("/dir")
        for number in range(100):
            fs.write_bytes(f"/dir/{number:030}", b"")
        fs.mkdir("/dir/last")
        # blocks hold 23 of these
        gone = [f"{number:030}" for number in (0, 1, *range(20, 40), 60, 99)]
        for name in gone:
            fs.unlink(f"/dir/{name}")
        want = sorted([f"{number:030}" for number in range(100) if f"{number:030}" not in gone] + ["last"])
        assert sorted(fs.listdir("/dir")) == want
    with py4fs.open_image(path) as fs:
        assert sorted(fs.listdir("/dir")) == want
        for name in gone[:5]:
            fs.write_bytes(f"/dir/{name}", b"again")
        want = sorted(want + gone[:5])
        assert sorted(fs.listdir("/dir")) == want
    with kernel_mount(path, "ro") as mounted:
        assert sorted(entry.name for entry in (mounted / "dir").iterdir()) == want


def test_length_8000_is_written(tmp_path: Path) -> None:
    """ee_len 0x8000 is a written extent of 32,768 blocks, 0x8001 an unwritten one of a single block."""
    path = tmp_path / "long.img"
    mke2fs(path, 40 << 20, "-b", "1024", "-O", "^has_journal,^resize_inode,sparse_super2", "-E", "num_backup_sb=0")
    with py4fs.open_image(path) as fs:
        fs.write_bytes("/file", b"x")
        ino = fs.stat("/file").ino
    image = bytearray(path.read_bytes())
    mutator = Mutator(bytes(image))
    first = 5000
    image[first * 1024 : first * 1024 + 5] = b"first"
    raw = root_of((0, 0x8000, first), (0x8000, 0x8001, first + 0x8000))
    mutator.put_inode(image, ino, i_block=raw, i_size_lo=0x8001 * 1024)
    fs = open_device(NeverWritten(image), clock=Clock(), options=OpenOptions(readonly=True))
    assert [(m.length, m.type) for m in fs.mappings("/file")] == [
        (0x8000 * 1024, MapType.MAPPED),
        (1024, MapType.UNWRITTEN),
    ]
    with fs.open("/file") as file:
        assert file.read(5) == b"first"
        file.seek(0x8000 * 1024)
        assert file.read(2000) == bytes(1024)
    fs.close()


def test_unwritten_beyond_the_end(make_image: ImageMaker) -> None:
    """Preallocated blocks past the end: not data, written into by an append, freed by truncate."""
    path = make_image("8M", "-b", "1024")
    with py4fs.open_image(path) as fs:
        fs.write_bytes("/file", b"start")
    debugfs(path, ["fallocate /file 1 200"])
    with py4fs.open_image(path) as fs:
        free = fs.statvfs().bfree
        assert fs.read_bytes("/file") == b"start"
        assert fs.stat("/file").blocks == 201 * 2
        with fs.open("/file", "ab") as file:
            file.write(b"x" * 3000)
        assert fs.statvfs().bfree == free
        assert fs.read_bytes("/file") == b"start" + b"x" * 3000
        fs.truncate("/file", 100_000)
        assert fs.read_bytes("/file") == (b"start" + b"x" * 3000).ljust(100_000, b"\0")
        fs.truncate("/file", 5)
        assert fs.stat("/file").blocks == 2
        fs.sync()
        assert fs.statvfs().bfree == free + 200


def test_deep_empty_directories(make_image: ImageMaker) -> None:
    path = make_image("16M", "-b", "1024", "-N", "1000")
    deep = "/".join(["d"] * 600)
    with py4fs.open_image(path) as fs:
        fs.makedirs(deep)
        assert sum(1 for _ in fs.walk("/d")) == 600
        fs.rename("/d", "/e")
    with py4fs.open_image(path) as fs:
        here = "/e" + "/d" * 599
        while here:
            fs.rmdir(here)
            here = here.rpartition("/")[0]
        assert fs.listdir("/") == ["lost+found"]


def test_symlink_without_length(tmp_path: Path) -> None:
    sample = Sample(tmp_path, CSUM, lambda fs: fs.symlink("target", "/link"))
    sample.put_inode("/link", i_size_lo=0)
    fs = sample.open()
    with pytest.raises(Corrupt, match="symlink"):
        fs.readlink("/link")
    with pytest.raises(Corrupt):
        fs.stat("/link")
    fs.unlink("/link")
    fs.close()


# -- damage that was found to matter -------------------------------------------------------------------------


def fill(fs: Filesystem) -> None:
    fs.mkdir("/dir")
    fs.mkdir("/dir/sub")
    fs.write_bytes("/file", b"f" * 3000)
    fs.write_bytes("/other", b"o" * 3000)
    fs.link("/file", "/dir/again")
    fs.symlink("long" * 20, "/link")
    fs.setxattr("/file", "user.large", b"l" * 500)


def test_block_used_as_two_kinds(tmp_path: Path) -> None:
    """A symlink's block that is an attribute block, an attribute block that is a directory's."""
    sample = Sample(tmp_path, PLAIN, fill)
    pblk = sample.get_inode("/file").i_file_acl_lo
    sample.put_inode("/link", i_block=root_of((0, 1, pblk)))
    fs = sample.open()
    assert len(fs.getxattr("/file", "user.large")) == 500
    with pytest.raises(Corrupt, match="in use as XattrBlock"):
        fs.readlink("/link")
    sample.survive()


@pytest.mark.parametrize("which", ["gdt", "inode table", "bitmap"])
def test_attribute_block_that_is_metadata(which: str, tmp_path: Path, log_guard: LogGuard) -> None:
    log_guard.allow("stays on the orphan list")
    sample = Sample(tmp_path, PLAIN, fill)
    desc = sample.mutator.get_desc(sample.image, 0)
    pblk = {"gdt": 2, "inode table": desc.bg_inode_table_lo, "bitmap": desc.bg_block_bitmap_lo}[which]
    sample.put_inode("/other", i_file_acl_lo=pblk)
    fs = sample.open()
    with pytest.raises(Corrupt, match="metadata"):
        fs.listxattr("/other")
    sample.survive()


def test_extent_node_named_twice(tmp_path: Path) -> None:
    """An index that comes back to one leaf again and again must not be walked for ever."""

    def comb(fs: Filesystem) -> None:
        with fs.open("/file", "wb") as file:
            for number in range(10):
                file.seek(number * 2048)
                file.write(b"x")

    sample = Sample(tmp_path, PLAIN, comb)
    raw = bytearray(sample.get_inode("/file").i_block)
    leaf = EXTENT_INDEX.unpack_from(raw, 12).ei_leaf_lo
    EXTENT_HEADER.put(raw, 0, eh_entries=4)
    for number in range(4):
        EXTENT_INDEX.pack_into(raw, 12 + 12 * number, number << 29, leaf, 0, 0)
    sample.put_inode("/file", i_block=bytes(raw), i_size_high=200)
    fs = sample.open(readonly=True)
    with pytest.raises(Corrupt, match="extent node"):
        fs.mappings("/file")
    sample.survive()


def test_pointer_block_named_twice(tmp_path: Path) -> None:
    """A triple-indirect tree of one block that names itself stands for a billion blocks."""
    sample = Sample(tmp_path, MAP, lambda fs: fs.write_bytes("/file", b"x" * 20_000))
    pointers = int.from_bytes(sample.get_inode("/file").i_block[48:52], "little")
    data = int.from_bytes(sample.get_inode("/file").i_block[:4], "little")
    raw = (pointers.to_bytes(4, "little") * 255 + data.to_bytes(4, "little"))
    sample.image[pointers * 1024 : pointers * 1024 + 1024] = raw
    block = sample.get_inode("/file").i_block[:52] + bytes(4) + pointers.to_bytes(4, "little")
    sample.put_inode("/file", i_block=block, i_size_high=1)
    with soon(), pytest.raises(Corrupt):
        sample.open(readonly=True).mappings("/file")
    sample.survive()


@pytest.mark.parametrize("args", [PLAIN, CSUM, MAP], ids=["plain", "csum", "map"])
def test_blocks_counted_too_low(args: tuple[str, ...], tmp_path: Path) -> None:
    """i_blocks cannot fall below nothing."""
    sample = Sample(tmp_path, args, fill)
    sample.put_inode("/other", i_blocks_lo=2)
    fs = sample.open()
    fs.truncate("/other", 1024)
    assert fs.stat("/other").blocks == 0
    fs.close()


@pytest.mark.parametrize("value", [0, 0xFFFF])
def test_directories_counted_wrong(value: int, tmp_path: Path, log_guard: LogGuard) -> None:
    log_guard.allow("")
    sample = Sample(tmp_path, CSUM, fill)
    for group in range(sample.mutator.geo.groups):
        sample.mutator.put_desc(sample.image, group, bg_used_dirs_count_lo=value)
    fs = sample.open()
    fs.rmdir("/dir/sub")
    fs.mkdir("/new")
    fs.close()


def test_more_names_than_links(tmp_path: Path) -> None:
    """A second name that the link count knows nothing of: the inode is not freed twice, nor goes below no links."""
    sample = Sample(tmp_path, CSUM, fill)
    sample.put_inode("/file", i_links_count=1)
    fs = sample.open()
    fh = fs.vfs.open(sample.inodes["/file"], 2)
    fs.unlink("/file")
    for step in (lambda: fs.stat("/dir/again"), lambda: fs.unlink("/dir/again"), lambda: fs.link("/dir/again", "/n")):
        with pytest.raises(Stale):
            step()
    assert fs.vfs.read(fh, 0, 3) == b"fff"
    fs.vfs.release(fh)
    with pytest.raises(Stale):
        # freed, but not committed: the table has the old one
        fs.stat("/dir/again")
    fs.close()


def test_directories_in_circles(tmp_path: Path) -> None:
    sample = Sample(tmp_path, PLAIN, fill)
    at = find_entry(sample, "/dir/sub", b"sub")
    sample.image[at : at + 4] = sample.inodes["/dir"].to_bytes(4, "little")
    fs = sample.open(readonly=True)
    with soon(), pytest.raises(Corrupt, match="two names"):
        list(fs.walk("/"))
    sample.survive()


def find_entry(sample: Sample, path: str, name: bytes) -> int:
    """Byte offset of a directory entry."""
    wanted = sample.inodes[path].to_bytes(4, "little")
    at = -1
    while (at := bytes(sample.image).find(wanted, at + 1)) >= 0:
        if sample.image[at + 6] == len(name) and sample.image[at + 8 : at + 8 + len(name)] == name:
            return at
    raise AssertionError(path)


def test_metadata_shown_as_free(tmp_path: Path, log_guard: LogGuard) -> None:
    """Bitmaps that have nothing free but the inode tables: what is there is not given to files."""
    log_guard.expect("is not used for allocation: .*metadata")
    sample = Sample(tmp_path, CSUM, fill)
    geo = sample.mutator.geo
    for group in range(geo.groups):
        sample.mutator.put_bits(sample.image, group, 0, geo.group_block_count(group), True)
    for group in range(geo.groups):
        desc = sample.mutator.get_desc(sample.image, group)
        for pblk, count in ((desc.bg_inode_table_lo, geo.itable_blocks), (desc.bg_block_bitmap_lo, 1)):
            home, bit = geo.block_group(pblk)
            sample.mutator.put_bits(sample.image, home, bit, count, False)
    before = bytes(sample.image)
    fs = sample.open()
    attempt(fs.write_bytes, "/new", b"n" * 5000)
    attempt(fs.mkdir, "/newer")
    tables = [sample.mutator.get_desc(before, group).bg_inode_table_lo for group in range(geo.groups)]
    device = fs.volume.device
    for table in tables:
        size = geo.itable_blocks * geo.block_size
        assert device.read(table * geo.block_size, size) == before[table * geo.block_size :][:size]
    attempt(fs.close)


def test_uninit_flags_without_the_feature(tmp_path: Path) -> None:
    """Left-over flags say nothing where no checksum covers them: blocks in use must not be taken for free ones."""
    sample = Sample(tmp_path, PLAIN, fill)
    for group in range(sample.mutator.geo.groups):
        sample.mutator.put_desc(sample.image, group, bg_flags=3)
    fs = sample.open()
    fs.write_bytes("/new", b"n" * 100_000)
    fs.mkdir("/dir/new")
    fs.close()
    again = open_device(MemoryDevice(fs.volume.device.data), clock=Clock())  # type: ignore[attr-defined]
    assert again.read_bytes("/file") == b"f" * 3000
    assert again.read_bytes("/new") == b"n" * 100_000
    again.close()


@pytest.mark.parametrize("state", [EXT4_VALID_FS, 0])
def test_wrong_totals(state: int, tmp_path: Path) -> None:
    """Free totals beyond belief, or of a file system in use when the power went: the descriptors know better."""
    sample = Sample(tmp_path, CSUM, fill)
    fs = sample.open(readonly=True)
    want = fs.statvfs()
    wrong = {"s_free_blocks_count_lo": 7, "s_free_inodes_count": 3}
    if state & EXT4_VALID_FS:
        wrong = {"s_free_blocks_count_lo": 0xFFFFFFFF, "s_free_inodes_count": 0xFFFFFFFF}
    sample.mutator.put_super(sample.image, s_state=state, **wrong)
    fs = sample.open()
    assert (fs.statvfs().bfree, fs.statvfs().ffree) == (want.bfree, want.ffree)
    fs.write_bytes("/new", b"n")
    fs.close()
    path = tmp_path / "after.img"
    path.write_bytes(fs.volume.device.data)  # type: ignore[attr-defined]
    fsck_clean(path)


def test_huge_flex_groups(tmp_path: Path) -> None:
    """A nonsensical s_log_groups_per_flex costs neither time nor memory."""
    sample = Sample(tmp_path, CSUM, fill)
    for value in (31, 32, 255):
        sample.mutator.put_super(sample.image, s_log_groups_per_flex=value)
        sample.survive()


def test_huge_sparse_image_with_tiny_groups(tmp_path: Path, log_guard: LogGuard) -> None:
    """Half a billion empty group descriptors: found damaged, not all looked at."""
    log_guard.allow("")
    sample = Sample(tmp_path, PLAIN, fill)
    path = tmp_path / "huge.img"
    with path.open("wb") as file:
        file.write(sample.image)
        file.truncate(1 << 40)
    groups = (1 << 30) // 1024
    image = bytearray(sample.image)
    sample.mutator.put_super(
        image, s_blocks_count_lo=groups * 1024 + 1, s_inodes_count=groups * sample.mutator.geo.inodes_per_group,
        s_free_blocks_count_lo=1 << 29, s_free_inodes_count=1 << 20, s_log_groups_per_flex=31,
    )  # fmt: skip
    with path.open("r+b") as file:
        file.write(image[:2048])
    with soon(20):
        try:
            fs = py4fs.open_image(path)
        except FsError:
            return
        change(fs, walk(fs), random.Random(1), 40)
        attempt(fs.close)


def test_statfs_of_nonsense(tmp_path: Path) -> None:
    """No number is negative, whatever the journal inode and the overhead say."""
    path = tmp_path / "journal.img"
    mke2fs(path, 4 << 20, "-b", "1024")
    image = bytearray(path.read_bytes())
    mutator = Mutator(bytes(image))
    mutator.put_inode(image, 8, i_size_high=1 << 20)
    mutator.put_super(image, s_overhead_clusters=0)
    fs = open_device(NeverWritten(image), clock=Clock(), options=OpenOptions(readonly=True))
    assert min(fs.statvfs()) >= 0
    fs.close()


def test_reserved_inodes_have_no_names(tmp_path: Path) -> None:
    """A name for the journal's inode is damage, whether that inode is in memory or not."""
    path = tmp_path / "journal.img"
    mke2fs(path, 4 << 20, "-b", "1024", "-O", "^metadata_csum")
    with py4fs.open_image(path) as fs:
        fs.write_bytes("/name", b"")
    image = path.read_bytes()
    at = image.index(b"\x04\x01name") - 6
    image = image[:at] + (8).to_bytes(4, "little") + image[at + 4 :]
    fs = open_device(NeverWritten(image), clock=Clock(), options=OpenOptions(readonly=True))
    fs.volume.inodes.get(8, reserved=True)
    with pytest.raises(Corrupt, match="reserved"):
        fs.stat("/name")
    fs.close()


def test_mknod_of_nothing(tmp_path: Path) -> None:
    sample = Sample(tmp_path, CSUM, lambda fs: None)
    fs = sample.open()
    for mode in (0o030644, 0o150644, 0o1100644, -1):
        with pytest.raises(FsError):
            fs.mknod("/x", mode)
    for rdev in (-1, 1 << 32):
        with pytest.raises(FsError):
            fs.mknod("/x", stat.S_IFCHR | 0o600, rdev)
    with pytest.raises(NotFound):
        fs.stat("/x")
    fs.close()
