"""Bitmaps and descriptors that lie: what is in use is not given away, and what is sound stays readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from py4fs.api import Filesystem
from py4fs.errors import BadChecksum, Corrupt, FsError, NoSpace, ReadOnly
from tests.support.logs import LogGuard
from tests.t7_hostile.test_odd_images import CSUM, PLAIN, Sample, fill

SIZE = 3000
"""Bytes of a file; nobody's neighbour is the same."""


def fill_groups(fs: Filesystem) -> None:
    """A directory, and a file, in every group."""
    fill(fs)
    for number in range(12):
        fs.mkdir(f"/dir{number}")
        fs.write_bytes(f"/dir{number}/file", bytes([number]) * SIZE)


def unharmed(fs: Filesystem) -> None:
    for number in range(12):
        assert fs.read_bytes(f"/dir{number}/file") == bytes([number]) * SIZE


def hide_inode(sample: Sample, path: str) -> None:
    """Its bit says that it is free."""
    group, bit = sample.mutator.geo.inode_location(sample.inodes[path])
    sample.mutator.put_bits(sample.image, group, bit, 1, False, inodes=True)


@pytest.mark.parametrize("args", [PLAIN, CSUM], ids=["plain", "csum"])
def test_a_file_is_not_taken_for_a_free_inode(args: tuple[str, ...], tmp_path: Path, log_guard: LogGuard) -> None:
    log_guard.expect("group 0 is not used for allocation: inode bitmap .group 0.: found inode 12 free, expected in use")
    sample = Sample(tmp_path, args, fill_groups)
    assert sample.inodes["/dir"] == 12
    hide_inode(sample, "/dir")
    fs = sample.open()
    for number in range(20):
        fs.write_bytes(f"/new{number}", b"n" * SIZE)
    fs.sync()
    assert sorted(fs.listdir("/dir")) == ["again", "sub"]
    assert all(fs.stat(f"/new{number}").ino != 12 for number in range(20))
    unharmed(fs)
    fs.close()


@pytest.mark.parametrize("args", [PLAIN, CSUM], ids=["plain", "csum"])
def test_a_freed_inode_is_used_again(args: tuple[str, ...], tmp_path: Path) -> None:
    """Also before the table says that it was freed, and after an operation that failed."""
    sample = Sample(tmp_path, args, fill_groups)
    fs = sample.open()
    fs.volume.alloc.inodes_wait = False  # as with a journal
    ino = fs.stat("/dir1/file").ino
    for _ in range(3):
        fs.unlink("/dir1/file")
        fs.write_bytes("/dir1/file", b"\1" * SIZE)
        assert fs.stat("/dir1/file").ino == ino
        fs.sync()
    fs.unlink("/dir1/file")
    with pytest.raises(FsError), fs.volume.operation(40) as tx:
        fs.volume.inodes.new(tx, ino, 1)
        raise NoSpace("on purpose")
    fs.write_bytes("/dir1/file", b"\1" * SIZE)
    assert fs.stat("/dir1/file").ino == ino
    fs.close()


@pytest.mark.parametrize("what", ["bg_block_bitmap_lo", "bg_inode_bitmap_lo", "bg_inode_table_lo"])
def test_the_places_of_metadata_are_in_use(what: str, tmp_path: Path, log_guard: LogGuard) -> None:
    """A block bitmap in which a group's own metadata is free is not believed in anything else."""
    sample = Sample(tmp_path, PLAIN, fill_groups)
    geo = sample.mutator.geo
    place = getattr(sample.mutator.get_desc(sample.image, 2), what)
    home, bit = geo.block_group(place)
    sample.mutator.put_bits(sample.image, home, bit, 1, False)
    log_guard.allow(f"group {home} ")
    fs = sample.open()
    with pytest.raises(Corrupt, match=f"block {place} free"):
        fs.volume.groups.block_bitmap(home)
    unharmed(fs)
    fs.write_bytes("/new", b"n" * 500_000)
    fs.close()


@pytest.mark.parametrize(
    ("field", "other", "text"),
    [
        ("bg_inode_bitmap_lo", "bg_inode_table_lo", "its inode bitmap|its inode table"),
        ("bg_block_bitmap_lo", "bg_inode_bitmap_lo", "its (block|inode) bitmap"),
        ("bg_block_bitmap_lo", None, "the descriptors"),
    ],
)
def test_places_in_places(field: str, other: str | None, text: str, tmp_path: Path) -> None:
    sample = Sample(tmp_path, PLAIN, fill_groups)
    desc = sample.mutator.get_desc(sample.image, 0)
    sample.mutator.put_desc(sample.image, 0, **{field: 2 if other is None else getattr(desc, other)})
    fs = sample.open()
    with pytest.raises(Corrupt, match=text):
        fs.volume.groups.inode_bitmap(0)
    unharmed(fs)
    fs.close()


def test_a_damaged_descriptor_costs_its_own_group_only(tmp_path: Path, log_guard: LogGuard) -> None:
    """Neighbours in the flex group stay readable; nothing is written, as in the kernel, which does not mount it."""
    log_guard.expect("now read-only: a group descriptor is damaged, run e2fsck: group descriptor checksum .group 2.")
    sample = Sample(tmp_path, CSUM, fill_groups)
    geo = sample.mutator.geo
    assert geo.groups_per_flex >= geo.groups
    sample.image[sample.mutator._desc_at(2) + 10] ^= 0xFF
    for readonly in (True, False):
        fs = sample.open(readonly=readonly)
        read = lost = 0
        for number in range(12):
            try:
                assert fs.read_bytes(f"/dir{number}/file") == bytes([number]) * SIZE
                read += 1
            except BadChecksum as exc:
                assert geo.inode_location(sample.inodes[f"/dir{number}"])[0] == 2, exc
                lost += 1
        assert read + lost == 12
        assert read > lost
        if not readonly:
            with pytest.raises(ReadOnly):
                fs.write_bytes("/new", b"n" * 50_000)
            with pytest.raises(ReadOnly):
                fs.mkdir("/newer")
        fs.close()
    sample.survive()


@pytest.mark.parametrize("field", ["bg_free_blocks_count_lo", "bg_free_inodes_count_lo"])
def test_free_counts_beyond_belief(field: str, tmp_path: Path, log_guard: LogGuard) -> None:
    """They hinder nobody who reads; where they are wrong nothing is allocated."""
    log_guard.allow("is not used for allocation: free (blocks|inodes)")
    sample = Sample(tmp_path, CSUM, fill_groups)
    for group in range(sample.mutator.geo.groups):
        sample.mutator.put_desc(sample.image, group, **{field: 0xFFFF})
    fs = sample.open()
    unharmed(fs)
    with pytest.raises((NoSpace, Corrupt)):
        fs.write_bytes("/new", b"n" * 50_000)
    unharmed(fs)
    fs.close()
