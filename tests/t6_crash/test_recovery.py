"""Journals that the kernel left behind, recovered by py4fs, by e2fsck and by the kernel to the same tree."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from images.tools import debugfs, run
from py4fs.ext4.journal.format import JournalFeatures, parse_header, parse_tags
from py4fs.ext4.journal.recovery import recover as recover_journal
from py4fs.ext4.layout.jbd2 import JBD2_DESCRIPTOR_BLOCK, JBD2_REVOKE_BLOCK, JOURNAL_SUPERBLOCK
from tests.support import machine
from tests.support.dirty import check_recovery, dirty_copy, fsync, journal_of, set_superblock
from tests.support.image import ImageMaker

pytestmark = pytest.mark.usefixtures("loop")


@pytest.fixture
def loop() -> None:
    machine.need_loop()


@dataclass(frozen=True)
class Case:
    """One kind of file system and journal."""

    name: str
    mke2fs: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    #: what the journal has to look like, or the case would prove nothing
    want: dict[str, object] = field(default_factory=dict)


CASES = [
    Case("4k", ("-b", "4096"), want={"block_size": 4096, "csum": 3, "wide": True}),
    Case("1k", ("-b", "1024"), want={"block_size": 1024, "csum": 3}),
    Case("small-inodes", ("-b", "4096", "-I", "128"), want={"csum": 3}),
    Case("no-checksums", ("-b", "1024", "-O", "^metadata_csum"), want={"csum": 0, "wide": True}),
    Case("32-bit", ("-b", "4096", "-O", "^64bit"), want={"csum": 3, "wide": False}),
    Case("ext3", ("-t", "ext3", "-b", "1024"), want={"csum": 0, "wide": False}),
    Case("v1", ("-O", "^metadata_csum"), ("journal_checksum",), {"csum": 1}),
    Case("v1-32-bit", ("-O", "^metadata_csum,^64bit"), ("journal_checksum",), {"csum": 1, "wide": False}),
    Case("async", ("-b", "4096"), ("journal_async_commit", "data=writeback"), {"csum": 3, "async_commit": True}),
    Case(
        "async-v1",
        ("-b", "4096", "-O", "^metadata_csum"),
        ("journal_async_commit", "data=writeback"),
        {"csum": 1, "async_commit": True},
    ),
    Case("data", ("-b", "1024"), ("data=journal",)),
]


def mixed(directory: Path) -> None:
    """Files and directories come and go, with a commit now and then; blocks of directories become file data."""
    for i in range(24):
        sub = directory / f"s{i}"
        sub.mkdir()
        for j in range(6):
            (sub / f"f{j}").write_bytes(os.urandom(3000 + 500 * j))
        if i % 3 == 0:
            fsync(sub)
    for i in range(0, 24, 2):
        shutil.rmtree(directory / f"s{i}")
    fsync(directory)
    for i in range(20):
        (directory / f"x{i}").write_bytes(os.urandom(20_000))
    (directory / "x0").rename(directory / "x1")
    os.symlink("y" * 200, directory / "link")
    os.setxattr(directory / "x2", "user.a", b"b" * 200)
    os.truncate(directory / "x3", 100)
    fsync(directory / "x4")
    fsync(directory)
    (directory / "not-committed").write_bytes(b"lost")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_kernel_made(case: Case, make_image: ImageMaker, tmp_path: Path) -> None:
    image = make_image("32M", *case.mke2fs)
    dirty = dirty_copy(image, tmp_path / "dirty.img", mixed, *case.mount)
    with journal_of(dirty, readonly=True) as area:
        features = area.features
        assert area.start
        assert {name: getattr(features, name) for name in case.want} == case.want
    notices = check_recovery(dirty)
    assert re.search(r"journal replayed: \d+ transaction\(s\), \d+ block\(s\)", "\n".join(notices))


def _kinds(image: Path) -> list[int]:
    """The block types in the log, in no order."""
    with journal_of(image, readonly=True) as area:
        headers = [parse_header(area.read(block)) for block in range(area.first, area.last)]
    return [header.blocktype for header in headers if header is not None]


def test_revoked_blocks_stay_as_they_are(make_image: ImageMaker, tmp_path: Path) -> None:
    """Directory blocks are journalled, freed and used for file data, which is not: their old copies must not win."""

    def work(directory: Path) -> None:
        base = directory / "dirs"
        base.mkdir()
        for i in range(40):
            (base / f"d{i}").mkdir()
            for j in range(30):
                (base / f"d{i}" / ("n" * 60 + str(j))).touch()
        fsync(base)
        shutil.rmtree(base)
        fsync(directory)
        for i in range(8):
            (directory / f"data{i}").write_bytes(os.urandom(2 << 20))
            fsync(directory / f"data{i}")

    image = make_image("32M", "-b", "1024", "-J", "size=4", "-m", "0")
    dirty = dirty_copy(image, tmp_path / "dirty.img", work)
    assert JBD2_REVOKE_BLOCK in _kinds(dirty)
    with journal_of(dirty, readonly=True) as area:
        assert recover_journal(area, 32 << 10).revoked > 0
    check_recovery(dirty)


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_wrapped_log(block_size: int, make_image: ImageMaker, tmp_path: Path) -> None:
    def work(directory: Path) -> None:
        for i in range(330):
            (directory / f"f{i % 50}").write_bytes(b"%d" % i * 200)
            (directory / f"g{i}").touch()
            fsync(directory / f"f{i % 50}")

    image = make_image("24M", "-b", str(block_size), "-J", f"size={block_size >> 10}")
    dirty = dirty_copy(image, tmp_path / "dirty.img", work)
    with journal_of(dirty, readonly=True) as area:
        replay = recover_journal(area, area.device.size // block_size)
        assert replay.transactions > 1
        assert replay.head < area.start, "the log did not wrap: more work is needed"
    check_recovery(dirty)


@pytest.mark.parametrize("sequence", [0xFFFFFFF0, 0xFFFFFFFE, 0x7FFFFFF8])
def test_transaction_numbers_wrap(sequence: int, make_image: ImageMaker, tmp_path: Path) -> None:
    def work(directory: Path) -> None:
        base = directory / "dirs"
        base.mkdir()
        for i in range(40):
            (directory / f"f{i}").write_bytes(b"%d" % i * 200)
            (base / str(i)).mkdir()
            fsync(directory / f"f{i}")
            if i % 4 == 3:
                (base / str(i - 1)).rmdir()

    image = make_image("24M", "-b", "1024")
    with journal_of(image) as area:
        area.store_superblock(sequence=sequence)
    dirty = dirty_copy(image, tmp_path / "dirty.img", work)
    with journal_of(dirty, readonly=True) as area:
        replay = recover_journal(area, area.device.size // 1024)
        assert replay.transactions >= 40
        assert (replay.next_sequence - sequence) & 0xFFFFFFFF < 100
        assert sequence == 0x7FFFFFF8 or replay.next_sequence < 100
    check_recovery(dirty)


def test_escaped_blocks(make_image: ImageMaker, tmp_path: Path) -> None:
    """A journalled block that begins like one of the journal's own is changed in the log, and restored."""
    magic = bytes.fromhex("c03b3998")

    def work(directory: Path) -> None:
        (directory / "f").write_bytes((magic + b"x" * 4092) * 10)
        fsync(directory / "f")

    image = make_image("32M", "-b", "4096")
    dirty = dirty_copy(image, tmp_path / "dirty.img", work, "data=journal")
    with journal_of(dirty, readonly=True) as area:
        blocks = [area.read(block) for block in range(area.first, area.last)]
        tags = [
            tag
            for data in blocks
            if (header := parse_header(data)) is not None and header.blocktype == JBD2_DESCRIPTOR_BLOCK
            for tag in parse_tags(area.features, data)
        ]
    assert sum(tag.escaped for tag in tags) == 10
    check_recovery(dirty)


def test_nothing_committed(make_image: ImageMaker, tmp_path: Path) -> None:
    """Mounted, never committed: needs_recovery is set and there is nothing to do."""
    image = make_image("16M")
    dirty = dirty_copy(image, tmp_path / "dirty.img", lambda directory: (directory / "lost").touch())
    check_recovery(dirty)


def test_contents_without_the_flag_are_old(make_image: ImageMaker, tmp_path: Path) -> None:
    """As the kernel: a journal is replayed when the superblock says so, whatever its own superblock says."""
    image = make_image("16M")

    def work(directory: Path) -> None:
        (directory / "f").write_bytes(b"x" * 10_000)
        fsync(directory / "f")

    dirty = dirty_copy(image, tmp_path / "dirty.img", work)
    set_superblock(dirty, recover=False)
    notices = check_recovery(dirty, fsck=False)
    assert "its contents are ignored" in notices[0]


# -- journals made by debugfs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("features", ["64bit", "^64bit"])
def test_debugfs_made(version: int, features: str, make_image: ImageMaker, tmp_path: Path) -> None:
    """Transactions written with `jw`: data, and revokes of it, in each kind of journal."""
    image = make_image("16M", "-b", "1024", "-O", f"{features},{'' if version >= 2 else '^'}metadata_csum")
    file = tmp_path / "file"
    file.write_bytes(b"".join(b"%1023d\n" % i for i in range(40)))
    debugfs(image, [f"write {file} file"])
    first = int(re.findall(r"\d+", run(["debugfs", "-R", "blocks file", image]))[0])
    new = tmp_path / "new"
    new.write_bytes(bytes.fromhex("c03b3998") * 256 * 3)
    dirty = tmp_path / "dirty.img"
    shutil.copyfile(image, dirty)
    blocks = ",".join(str(first + i) for i in range(3))
    checksums = f" -c -v {version}" if version >= 2 else ""
    commands = [
        f"jo{checksums}",
        f"jw -b {blocks} {new}",
        f"jw -b {','.join(str(first + 5 + i) for i in range(3))} {new}",
        f"jw -r {first + 5},{first + 6}",
        "jc",
    ]
    run(["debugfs", "-w", "-f", "-", dirty], stdin="\n".join(commands) + "\n")
    if version == 1:
        _make_v1(dirty)
    with journal_of(dirty, readonly=True) as area:
        assert area.features.csum == version and area.features.wide is (features == "64bit")
        assert recover_journal(area, 16 << 10).revoked == 2
    check_recovery(dirty)


def _make_v1(image: Path) -> None:
    """Turn a journal without checksums into one whose commit blocks have none, which v1 allows."""
    with journal_of(image) as area:
        raw = bytearray(area.read(0))
        JOURNAL_SUPERBLOCK.put(raw, 0, s_feature_compat=1)
        area.write(0, [raw])


def test_the_kernel_s_features_are_read(make_image: ImageMaker) -> None:
    with journal_of(make_image("16M", "-b", "1024"), readonly=True) as area:
        assert area.features == JournalFeatures(1024, area.record.s_uuid, csum=0, wide=False, revoke=False)
