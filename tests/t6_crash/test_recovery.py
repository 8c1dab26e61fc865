"""Journals that the kernel left behind, recovered by py4fs, by e2fsck and by the kernel to the same tree."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from images.kernel import loop_mount
from images.tools import debugfs, run
from py4fs import OpenOptions, open_image
from py4fs.device.file import FileDevice
from py4fs.errors import Corrupt, NeedsRecovery, NotFound
from py4fs.ext4.journal.format import JournalFeatures, parse_header, parse_tags
from py4fs.ext4.journal.recovery import recover as recover_journal
from py4fs.ext4.layout.jbd2 import JBD2_DESCRIPTOR_BLOCK, JBD2_REVOKE_BLOCK, JOURNAL_SUPERBLOCK
from py4fs.ext4.volume import Volume, VolumeOptions
from tests.support import machine, tree
from tests.support.dirty import (
    check_recovery,
    dirty_copy,
    e2fsck,
    fsync,
    journal_of,
    recovered_view,
    set_superblock,
)
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
    (directory / "link").symlink_to("y" * 200)
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


def test_wrapped_log_before_fast_commits(make_image: ImageMaker, tmp_path: Path) -> None:
    """The blocks for fast commits are not part of the way around (e2fsck 1.47.0 thinks they are)."""

    def work(directory: Path) -> None:
        for i in range(420):
            (directory / f"f{i % 50}").write_bytes(b"%d" % i * 200)
            (directory / f"link{i}").symlink_to("this makes it a full commit")
            fsync(directory / f"f{i % 50}")

    image = make_image("24M", "-b", "1024", "-J", "size=2")
    run(["tune2fs", "-O", "fast_commit", image])
    dirty = dirty_copy(image, tmp_path / "dirty.img", work)
    with journal_of(dirty, readonly=True) as area:
        assert area.features.fast_commit and area.last < area.fast_first < area.maxlen
        replay = recover_journal(area, area.device.size // 1024)
        assert replay.head < area.start, "the log did not wrap: more work is needed"
    check_recovery(dirty, fsck=False)


def test_read_only_device(make_image: ImageMaker, tmp_path: Path) -> None:
    """Recovery in memory is no different when the device cannot be written at all."""
    dirty = dirty_copy(make_image("16M"), tmp_path / "dirty.img", mixed)
    view = recovered_view(dirty)
    before = dirty.read_bytes()
    device = FileDevice.open(dirty, readonly=True)
    volume = Volume.open(device, VolumeOptions(), time.time_ns)
    assert "the device is read-only" in (volume.readonly_reason or "")
    assert any("in memory only" in line for line in volume.notices)
    assert volume.device.read(0, len(view)) == view
    volume.close()
    assert dirty.read_bytes() == before


# -- a journal on a device of its own ----------------------------------------------------------------------------------


@pytest.fixture(params=[1024, 4096])
def external(request: pytest.FixtureRequest, make_image: ImageMaker, tmp_path: Path) -> tuple[Path, Path]:
    """(dirty image, its journal), both copied while the kernel had them mounted."""
    size = str(request.param)
    journal = make_image.excuse(make_image("8M", "-b", size, "-U", "random", "-O", "journal_dev", name="journal"))
    with loop_device(journal) as device:
        image = make_image.excuse(make_image("32M", "-b", size, "-J", f"device={device}"))
        dirty, copy = tmp_path / "dirty.img", tmp_path / "dirty.journal"

        def work(directory: Path) -> None:
            mixed(directory)
            shutil.copyfile(journal, copy)

        dirty_copy(image, dirty, work)
    return dirty, copy


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """The image as a block device."""
    device = run(["losetup", "--find", "--show", image]).strip()
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])


def _open(image: Path, journal: Path | None, *, readonly: bool = False, norecovery: bool = False) -> list[str]:
    journal_path = None if journal is None else str(journal)
    options = OpenOptions(readonly=readonly, norecovery=norecovery, journal_path=journal_path)
    with open_image(image, options=options) as filesystem:
        return list(filesystem.notices)


def test_external_journal(external: tuple[Path, Path], tmp_path: Path) -> None:
    image, journal = external
    both = image.read_bytes(), journal.read_bytes()
    fsck, fsck_journal = tmp_path / "fsck.img", tmp_path / "fsck.journal"
    shutil.copyfile(image, fsck)
    shutil.copyfile(journal, fsck_journal)
    assert any("in memory only" in line for line in _open(image, journal, readonly=True))
    assert (image.read_bytes(), journal.read_bytes()) == both
    assert any("journal replayed" in line for line in _open(image, journal))
    status, output = e2fsck(image, "-n", "-j", str(journal))
    assert status == 0, output
    status, output = e2fsck(fsck, "-y", "-j", str(fsck_journal))
    assert status <= 1, output
    trees = []
    for one, its in ((image, journal), (fsck, fsck_journal)):
        with loop_device(its) as device, loop_mount(one, "ro", f"journal_path={device}") as directory:
            trees.append(tree.snapshot(directory))
    tree.assert_same(trees[1], trees[0])


def test_external_journal_is_needed(external: tuple[Path, Path], make_image: ImageMaker, tmp_path: Path) -> None:
    """Without it, with another one, or with something else, nothing is served but with norecovery."""
    image, journal = external
    before = image.read_bytes()
    other = make_image.excuse(make_image("8M", "-U", "random", "-O", "journal_dev", name="other"))
    for readonly in (False, True):
        with pytest.raises(NeedsRecovery, match="journal_path="):
            _open(image, None, readonly=readonly)
        with pytest.raises(NeedsRecovery, match="not this file system's journal"):
            _open(image, other, readonly=readonly)
        with pytest.raises(Corrupt, match="journal_dev"):
            _open(image, make_image.excuse(make_image("8M")), readonly=readonly)
        with pytest.raises(NotFound):
            _open(image, tmp_path / "nothing", readonly=readonly)
    assert "norecovery" in _open(image, None, norecovery=True)[0]
    assert image.read_bytes() == before
    _open(image, journal)
    assert "its journal is external" in _open(image, None)[0]


def test_written_through_an_external_journal(external: tuple[Path, Path]) -> None:
    image, journal = external
    with open_image(image, options=OpenOptions(journal_path=str(journal))) as filesystem:
        filesystem.write_bytes("/new", b"x" * 10_000)
        filesystem.sync()
    status, output = e2fsck(image, "-n", "-j", str(journal))
    assert status == 0, output
    with open_image(image, readonly=True) as filesystem:
        assert filesystem.read_bytes("/new") == b"x" * 10_000


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
