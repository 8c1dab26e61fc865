"""Small images that claim to hold a lot: what they cost is bounded by what is really there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from images.tools import mke2fs
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import BadIndex, Corrupt
from py4fs.ext4 import htree
from py4fs.ext4.journal import fast_commit, locate
from py4fs.ext4.layout import fast_commit as fc
from py4fs.ext4.layout.htree import DX_COUNT_LIMIT, DX_ENTRY, DX_ROOT_ENTRIES_OFFSET
from py4fs.ext4.layout.quota import QUOTA_BLOCK_SIZE
from py4fs.ext4.quota import QuotaKind
from tests.support.logs import LogGuard
from tests.support.volumes import Clock
from tests.t7_hostile.exercise import soon
from tests.t7_hostile.mutate import Mutator
from tests.t7_hostile.test_odd_images import PLAIN, Sample, root_of


def many_names(fs: Filesystem) -> None:
    fs.mkdir("/index")
    fs.write_bytes("/file", b"")
    for number in range(60):
        fs.link("/file", f"/index/{number}".ljust(100, "n"))


def index_of(sample: Sample) -> int:
    """Byte of the image at which the entries of the index begin."""
    fs = sample.open(readonly=True)
    inode = fs.volume.inodes.get(sample.inodes["/index"])
    at = fs.volume.files.block_of(inode, 0) * fs.volume.geometry.block_size + DX_ROOT_ENTRIES_OFFSET
    fs.close()
    return at


def test_a_leaf_that_the_index_names_twice(tmp_path: Path) -> None:
    """Each is read once, or three small blocks of an index would make a listing of a hundred million leaves."""
    sample = Sample(tmp_path, PLAIN, many_names)
    at = index_of(sample)
    count = DX_COUNT_LIMIT.get(sample.image, at, "count")
    assert count > 4
    first = DX_ENTRY.get(sample.image, at, "block")
    DX_ENTRY.put(sample.image, at + (count - 1) * DX_ENTRY.size, block=first)
    # and the directory says that it is large
    sample.put_inode("/index", i_size_lo=3 << 20)
    fs = sample.open(readonly=True)
    with soon(), pytest.raises(Corrupt, match=f"leaf {first} twice"):
        fs.listdir("/index")
    fs.close()


def test_a_chain_of_one_hash_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_guard: LogGuard) -> None:
    """However large the directory says it is."""
    monkeypatch.setattr(htree, "MAX_CHAIN", 3)
    log_guard.expect("a hash chain longer than the directory; reading the directory without its index")
    sample = Sample(tmp_path, PLAIN, many_names)
    at = index_of(sample)
    fs = sample.open(readonly=True)
    tree = fs.volume.namespace.directory(fs.volume.inodes.get(sample.inodes["/index"])).tree
    name = b"missing"
    wanted = tree.hash_of(name)
    fs.close()
    count = DX_COUNT_LIMIT.get(sample.image, at, "count")
    for number in range(1, count):
        DX_ENTRY.put(sample.image, at + number * DX_ENTRY.size, hash=wanted + (number > 1))
    fs = sample.open(readonly=True)
    assert not fs.exists("/index/missing")
    with pytest.raises(BadIndex, match="longer"):
        fs.volume.namespace.directory(fs.volume.inodes.get(sample.inodes["/index"])).tree.find(name)
    fs.close()


def test_a_quota_tree_that_is_none(tmp_path: Path) -> None:
    """A few blocks, each named 256 times by another, would take days to look through, also without any entry."""
    path = tmp_path / "quota.img"
    mke2fs(path, 8 << 20, "-b", "1024", "-O", "quota,^has_journal")
    device = MemoryDevice(path.read_bytes())
    fs = open_device(device, clock=Clock())
    fs.write_bytes("/file", b"f")
    fs.chown("/file", 0x01020304, 0)
    quotas = fs.volume.quotas
    file = quotas._file(QuotaKind.USER)
    block, at = file._block(1)
    child = file._pointer(1, 0x01020304, 0)
    with fs.volume.operation(2) as tx:
        tx.touch(block)
        block.data[at : at + QUOTA_BLOCK_SIZE] = child.to_bytes(4, "little") * (QUOTA_BLOCK_SIZE // 4)
        block, at = file._block(child)
        tx.touch(block)
        block.data[at : at + QUOTA_BLOCK_SIZE] = bytes(QUOTA_BLOCK_SIZE)
    with soon(), pytest.raises(Corrupt, match=f"block {child}.: found met twice"):
        list(quotas.report(QuotaKind.USER))


def test_tags_of_fast_commits_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags without contents count too."""
    monkeypatch.setattr(fast_commit, "MAX_TAGS", 1000)
    area: Any = SimpleNamespace(fast_first=1)
    scan = fast_commit._FcScan(area, 7, 256)
    head = fc.FC_TAG.pack(fc.EXT4_FC_TAG_HEAD, fc.FC_HEAD.size) + fc.FC_HEAD.pack(0, 7)
    pads = fc.FC_TAG.pack(fc.EXT4_FC_TAG_PAD, 0) * 200
    assert scan.block(1, head + pads)
    with pytest.raises(Corrupt, match="1000 tags at most"):
        for number in range(2, 10):
            assert scan.block(number, pads)
    assert len(scan.pending) <= 1000


def test_a_journal_whose_blocks_are_one(tmp_path: Path) -> None:
    """The log would be as long as its inode says, on an image of any size."""
    path = tmp_path / "journal.img"
    mke2fs(path, 8 << 20, "-b", "1024", "-O", "^resize_inode,metadata_csum", "-J", "size=1")
    image = bytearray(path.read_bytes())
    mutator = Mutator(bytes(image))
    with open_device(MemoryDevice(image), options=OpenOptions(readonly=True)) as fs:
        run = fs.volume.files.run_at(fs.volume.inodes.get(8, reserved=True), 0)
    runs = [(number * 256, 256, run.pblk) for number in range(4)]
    mutator.put_inode(image, 8, i_block=root_of(*runs))
    with pytest.raises(Corrupt, match=r"block [0-9]+ twice"):
        open_device(MemoryDevice(image))


def test_a_journal_in_too_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointer blocks that name each other stand for millions of pieces before any of them is met twice."""
    monkeypatch.setattr(locate, "MAX_RUNS", 100)
    path = tmp_path / "journal.img"
    mke2fs(path, 16 << 20, "-b", "1024", "-O", "^resize_inode,^metadata_csum,^extents,^64bit", "-J", "size=1")
    image = bytearray(path.read_bytes())
    mutator = Mutator(bytes(image))
    pointers = int.from_bytes(mutator.get_inode(image, 8).i_block[48:52], "little")
    step = b"".join((5000 + 2 * number).to_bytes(4, "little") for number in range(256))
    image[pointers * 1024 : (pointers + 1) * 1024] = step
    with pytest.raises(Corrupt, match=r"journal inode 8.: found in more than 100 pieces"):
        open_device(MemoryDevice(image))


def test_orphans_are_not_all_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "orphans.img"
    mke2fs(path, 8 << 20, "-b", "1024", "-O", "^has_journal")
    device = MemoryDevice(path.read_bytes())
    fs = open_device(device, clock=Clock())
    for number in range(300):
        fs.write_bytes(f"/{number}", b"o")
        fs.vfs.open(fs.stat(f"/{number}").ino, 0)
        fs.unlink(f"/{number}")
    fs.sync()
    copy = bytes(device.data)
    fs.close()
    again = open_device(MemoryDevice(copy), clock=Clock(), options=OpenOptions(readonly=True))
    before = len(again.volume.inodes)
    assert len(again.volume.orphans.load_list()) == 300
    assert len(again.volume.inodes) == before
    again.close()
