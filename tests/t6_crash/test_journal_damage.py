"""Damaged and strange journals: what the kernel would replay is replayed and nothing more, and it is said.

Each case starts from four transactions in the log of a small image. Number n writes block n of a file (and block 0,
again and again), number 4 revokes block 3.
"""

from __future__ import annotations

import random
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from images.tools import debugfs, run
from py4fs.device.faulty import FaultyDevice, Kind
from py4fs.device.file import FileDevice
from py4fs.errors import BadChecksum, Corrupt, DeviceError, FsError, UnsupportedFeature
from py4fs.ext4.journal import format as jf
from py4fs.ext4.journal.area import JournalArea, superblock_csum
from py4fs.ext4.journal.recovery import Replay
from py4fs.ext4.journal.recovery import recover as recover_journal
from py4fs.ext4.layout.jbd2 import (
    BLOCK_HEADER,
    BLOCK_TAG,
    COMMIT_HEADER,
    JBD2_CRC32C_CHKSUM,
    JBD2_MAGIC_NUMBER,
    JOURNAL_SUPERBLOCK,
)
from py4fs.ext4.layout.superblock import EXT4_ERROR_FS
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.volume import Volume, VolumeOptions
from tests.support.dirty import e2fsck, journal_of, patch, recover, recovered_view, set_superblock
from tests.support.image import ImageMaker

BLOCK = 1024
BLOCKS = 16 << 10
START = 100
TID = 7
NOW = 1_700_000_000
FEATURES = {0: (0, 0), 1: (1, 0), 2: (0, 8), 3: (0, 0x10)}
WIDE, ASYNC, REVOKE = 2, 4, 1


class World:
    """An image with a hand-made log."""

    def __init__(self, image: Path, csum: int, *, wide: bool = True, asynchronous: bool = False) -> None:
        self.image = image
        content = image.parent / "content"
        content.write_bytes(b"".join(b"old %1019d\n" % i for i in range(10)))
        debugfs(image, [f"write {content} file"])
        self.first = int(run(["debugfs", "-R", "blocks file", image]).split()[0])
        compat, incompat = FEATURES[csum]
        incompat |= REVOKE | WIDE * wide | ASYNC * asynchronous
        with journal_of(image) as area:
            self.set_journal(
                area, s_feature_compat=compat, s_feature_incompat=incompat, s_checksum_type=JBD2_CRC32C_CHKSUM
            )
        #: log block of each transaction's descriptor, and of the block behind its commit
        self.descriptors: list[int] = []
        self.ends: list[int] = []
        with journal_of(image) as area:
            self.features = area.features
            at = START
            for n in range(1, 5):
                self.descriptors.append(at)
                at = self.write(area, at, n, seconds=NOW + n)
                self.ends.append(at)
        set_superblock(image, recover=True)

    @staticmethod
    def set_journal(area: JournalArea, **fields: object) -> None:
        raw = bytearray(area.read(0))
        JOURNAL_SUPERBLOCK.put(raw, 0, **fields)
        JOURNAL_SUPERBLOCK.put(raw, 0, s_sequence=TID, s_start=START)
        JOURNAL_SUPERBLOCK.put(raw, 0, s_checksum=superblock_csum(bytes(raw)))
        area.write(0, [raw])

    def write(self, area: JournalArea, at: int, n: int, *, seconds: int) -> int:
        """Transaction n at log block ``at``; returns what is behind it."""
        blocks = [(self.first, self.content(n, 0)), (self.first + n, self.content(n, n))]
        log = jf.build_descriptors(self.features, TID + n - 1, blocks)
        crc = jf.transaction_crc(log)
        if n == 4:
            log += jf.build_revokes(self.features, TID + 3, [self.first + 3])
        log.append(jf.build_commit(self.features, TID + n - 1, seconds * 10**9, crc))
        area.write(at, log)
        return at + len(log)

    @staticmethod
    def content(n: int, block: int) -> bytes:
        return b"new %4d %1014d\n" % (n, block)

    def replay(self) -> Replay:
        with journal_of(self.image, readonly=True) as area:
            return recover_journal(area, BLOCKS)

    def upto(self, n: int) -> bytes:
        """The file after the first n transactions."""
        blocks = [b"old %1019d\n" % i for i in range(10)]
        for i in range(1, n + 1):
            blocks[0] = self.content(i, 0)
            if i != 3 or n < 4:
                blocks[i] = self.content(i, i)
        return b"".join(blocks)

    def file(self, source: bytes | Path | None = None) -> bytes:
        """The file as a view of the device, or an image, has it (e2fsck can make an image very large)."""
        start, length = self.first * BLOCK, 10 * BLOCK
        if isinstance(source, bytes):
            return source[start : start + length]
        with (source or self.image).open("rb") as file:
            file.seek(start)
            return file.read(length)


@pytest.fixture
def make_world(make_image: ImageMaker) -> Callable[..., World]:
    def make(csum: int, **options: bool) -> World:
        kind = "metadata_csum" if csum >= 2 else "^metadata_csum"
        return World(make_image.excuse(make_image("16M", "-b", "1024", "-O", kind)), csum, **options)

    return make


MakeWorld = Callable[..., World]
_KINDS: tuple[Kind, ...] = ("write", "flush")


def _corrupt(world: World, block: int, offset: int) -> None:
    with journal_of(world.image) as area:
        raw = bytearray(area.read(block))
        raw[offset] ^= 0x55
        area.write(block, [raw])


def _check_refused(world: World, kind: type[FsError], words: str) -> None:
    """Neither way of opening works, nothing is written, e2fsck and norecovery do."""
    before = world.image.read_bytes()
    for readonly in (True, False):
        with pytest.raises(kind, match=words) as caught:
            recover(world.image, readonly=readonly)
        if kind is not UnsupportedFeature:
            assert "run e2fsck, or look at the image as it is with -o norecovery" in str(caught.value)
    device = FileDevice.open(world.image, readonly=True)
    volume = Volume.open(device, VolumeOptions(readonly=True, norecovery=True), time.time_ns)
    assert volume.readonly and "norecovery" in volume.notices[0]
    volume.close()
    assert world.image.read_bytes() == before


def _check_damaged(world: World, want: bytes, words: str) -> None:
    """Replayed as far as possible, read-only, recorded, and left to e2fsck, which comes to the same file."""
    before = world.image.read_bytes()
    assert world.file(recovered_view(world.image)) == want
    assert world.image.read_bytes() == before
    notices = "\n".join(recover(world.image))
    assert "read-only: the journal is damaged, run e2fsck" in notices and words in notices
    assert world.file() == want
    superblock = Superblock(world.image.read_bytes()[1024:2048])
    assert superblock.state & EXT4_ERROR_FS and superblock.feature_incompat & 4
    copy = world.image.with_suffix(".fsck")
    copy.write_bytes(before)
    for image in (copy, world.image):
        status, output = e2fsck(image, "-y")
        assert status <= 1, output
        assert world.file(image) == want


# -- whole logs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("csum", [0, 1, 2, 3])
def test_what_the_cases_start_from(csum: int, wide: bool, make_world: MakeWorld) -> None:
    world = make_world(csum, wide=wide)
    replay = world.replay()
    assert (replay.transactions, replay.end, replay.next_sequence) == (4, TID + 4, TID + 5)
    assert (replay.head, replay.revoked, replay.failure, replay.problems) == (world.ends[-1], 1, None, [])
    shutil.copyfile(world.image, world.image.with_suffix(".fsck"))
    recover(world.image)
    assert world.file() == world.upto(4)
    with journal_of(world.image, readonly=True) as area:
        assert (area.start, area.sequence) == (0, TID + 5)
    status, output = e2fsck(world.image.with_suffix(".fsck"), "-y")
    assert status <= 1 and world.file(world.image.with_suffix(".fsck")) == world.upto(4), output


@pytest.mark.parametrize("csum", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["nothing", "zeros", "old transaction"])
def test_a_transaction_without_commit_block(what: str, csum: int, make_world: MakeWorld) -> None:
    """How a log ends after a crash: the last transaction does not count, and nothing is wrong."""
    world = make_world(csum)
    with journal_of(world.image) as area:
        last = world.ends[2] - 1
        if what == "nothing":
            area.write(last, [b"x" * BLOCK])
        elif what == "zeros":
            area.write(last, [bytes(BLOCK)])
        else:
            area.write(last, [jf.build_commit(world.features, TID - 5, NOW * 10**9)])
    replay = world.replay()
    assert (replay.transactions, replay.end, replay.failure) == (2, TID + 2, None)
    recover(world.image)
    assert world.file() == world.upto(2)


@pytest.mark.parametrize("csum", [2, 3])
@pytest.mark.parametrize("damaged", ["descriptor", "commit"])
def test_blocks_of_an_older_journal(damaged: str, csum: int, make_world: MakeWorld) -> None:
    """The right number, a bad checksum and an earlier commit time: left over from before mke2fs, not damage."""
    world = make_world(csum)
    with journal_of(world.image) as area:
        world.write(area, world.descriptors[2], 3, seconds=NOW - 5)
    block = world.descriptors[2] if damaged == "descriptor" else world.ends[2] - 1
    _corrupt(world, block, 20)
    replay = world.replay()
    assert (replay.transactions, replay.end, replay.failure) == (2, TID + 2, None)
    assert "unfinished or old" in replay.problems[0]
    recover(world.image)
    assert world.file() == world.upto(2)


def test_gone_around_and_full(make_world: MakeWorld) -> None:
    """A log that holds transactions in all its blocks ends where it begins."""
    world = make_world(0)
    with journal_of(world.image) as area:
        area.store_superblock(sequence=TID, start=START)
        at = START
        tid = TID
        used = 0
        while area.length - used >= 3:
            room = area.length - used
            step = 3 if room - 3 >= 3 or room == 3 else room
            blocks = [(world.first + i, world.content(tid, i)) for i in range(step - 2)]
            log = jf.build_descriptor(world.features, tid, blocks)
            log.append(jf.build_commit(world.features, tid, tid * 10**9))
            area.write_around(at, log)
            at = area.wrap(at + step)
            used += step
            tid += 1
        assert at == START
    replay = world.replay()
    assert replay.transactions == tid - TID and replay.failure is None


# -- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("csum", [2, 3])
@pytest.mark.parametrize("offset", [13, 30, 900, 1022])
def test_descriptor(offset: int, csum: int, make_world: MakeWorld) -> None:
    """The kernel does not believe anything in such a log."""
    world = make_world(csum)
    _corrupt(world, world.descriptors[2], 900)
    _check_refused(world, BadChecksum, "descriptor checksum .*transaction 9")


@pytest.mark.parametrize("csum", [2, 3])
def test_revoke_block(csum: int, make_world: MakeWorld) -> None:
    world = make_world(csum)
    _corrupt(world, world.descriptors[3] + 3, 900)
    _check_refused(world, BadChecksum, "revoke block checksum .*transaction 10")


@pytest.mark.parametrize("csum", [1, 2, 3])
def test_commit_block(csum: int, make_world: MakeWorld) -> None:
    world = make_world(csum)
    _corrupt(world, world.ends[2] - 1, COMMIT_HEADER.offsets["h_chksum"])
    _check_damaged(world, world.upto(2), "commit block checksum")


@pytest.mark.parametrize("csum", [2, 3])
def test_half_a_commit_block(csum: int, make_world: MakeWorld) -> None:
    """Its first sector is there, the other has old bytes: that is how a torn one looks, and it counts."""
    world = make_world(csum)
    _corrupt(world, world.ends[2] - 1, 600)
    assert world.replay().transactions == 4


def test_v1_data(make_world: MakeWorld) -> None:
    """One checksum for all: the transaction does not count, nor what follows."""
    world = make_world(1)
    _corrupt(world, world.descriptors[2] + 2, 5)
    _check_damaged(world, world.upto(2), "commit block checksum")


def test_v1_descriptor(make_world: MakeWorld) -> None:
    world = make_world(1)
    _corrupt(world, world.descriptors[2], 1000)
    _check_damaged(world, world.upto(2), "commit block checksum")


@pytest.mark.parametrize("csum", [2, 3])
def test_data_block(csum: int, make_world: MakeWorld) -> None:
    """The other blocks count, this one stays as the transactions before left it."""
    world = make_world(csum)
    _corrupt(world, world.descriptors[3] + 1, 5)
    want = world.content(3, 0) + world.upto(4)[BLOCK:]
    _check_damaged(world, want, "a bad copy of block")


@pytest.mark.parametrize("csum", [1, 3])
def test_async_commit(csum: int, make_world: MakeWorld) -> None:
    """A bad commit block at the end is one that did not get finished; with another behind it, it is damage."""
    world = make_world(csum, asynchronous=True)
    _corrupt(world, world.ends[3] - 1, COMMIT_HEADER.offsets["h_chksum"])
    replay = world.replay()
    assert (replay.transactions, replay.end, replay.failure) == (3, TID + 3, None)
    _corrupt(world, world.ends[3] - 1, COMMIT_HEADER.offsets["h_chksum"])
    _corrupt(world, world.ends[1] - 1, COMMIT_HEADER.offsets["h_chksum"])
    replay = world.replay()
    assert (replay.transactions, replay.end) == (1, TID + 1) and replay.failure is not None


@pytest.mark.parametrize("pblk", [BLOCKS, 0xFFFFFFFF, 1 << 40])
def test_block_numbers_beyond_the_end(pblk: int, make_world: MakeWorld) -> None:
    world = make_world(3)
    with journal_of(world.image) as area:
        log = jf.build_descriptors(world.features, TID + 4, [(pblk, b"x" * BLOCK), (world.first, b"y" * BLOCK)])
        area.write(world.ends[-1], [*log, jf.build_commit(world.features, TID + 4, (NOW + 9) * 10**9)])
    replay = world.replay()
    assert replay.transactions == 5 and "block number in a tag" in str(replay.failure)
    assert world.file(recovered_view(world.image))[:BLOCK] == b"y" * BLOCK


def test_a_block_of_the_journal_itself(make_world: MakeWorld) -> None:
    world = make_world(3)
    with journal_of(world.image) as area:
        log = jf.build_descriptors(world.features, TID + 4, [(area.runs[0][0], b"x" * BLOCK)])
        area.write(world.ends[-1], [*log, jf.build_commit(world.features, TID + 4, (NOW + 9) * 10**9)])
    assert "not a block of the journal itself" in str(world.replay().failure)


@pytest.mark.parametrize("csum", [0, 3])
def test_revoke_count_beyond_the_block(csum: int, make_world: MakeWorld) -> None:
    world = make_world(csum)
    with journal_of(world.image) as area:
        block = world.descriptors[3] + 3
        raw = bytearray(area.read(block))
        raw[12:16] = struct.pack(">I", BLOCK + 1)
        area.write(block, [jf._set_tail(world.features, raw)])
    _check_refused(world, Corrupt, "r_count of a revoke block")


def test_a_transaction_without_end(make_world: MakeWorld) -> None:
    """All blocks are descriptors of one transaction: the kernel would go around for ever."""
    world = make_world(0)
    with journal_of(world.image) as area:
        block = bytearray(BLOCK)
        BLOCK_HEADER.pack_into(block, 0, JBD2_MAGIC_NUMBER, 1, TID)
        block[12:20] = BLOCK_TAG.pack(5, 0, 2 | 8, 0)[:8]
        area.write(area.first, [bytes(block)] * (area.length))
    replay = world.replay()
    assert replay.transactions == 0 and len(replay.blocks) == 0
    with journal_of(world.image) as area:
        BLOCK_HEADER.pack_into(block, 0, JBD2_MAGIC_NUMBER, 5, TID)
        area.write(area.first, [bytes(block)] * (area.length))
    assert world.replay().transactions == 0


JOURNAL_SUPERBLOCKS: list[tuple[dict[str, int], type[FsError], str]] = [
    ({"h_magic": 5}, Corrupt, "h_magic"),
    ({"h_blocktype": 2}, Corrupt, "h_blocktype"),
    ({"s_blocksize": 4096}, Corrupt, "s_blocksize"),
    ({"s_maxlen": 1 << 30}, Corrupt, "s_maxlen"),
    ({"s_maxlen": 900}, Corrupt, "s_maxlen"),
    ({"s_first": 0}, Corrupt, "s_first"),
    ({"s_first": 1 << 20}, Corrupt, "s_first"),
    ({"s_start": 1 << 20}, Corrupt, "s_start"),
    ({"s_feature_incompat": 0x19}, Corrupt, "at most one of"),
    ({"s_feature_incompat": 0x11, "s_feature_compat": 1}, Corrupt, "at most one of"),
    ({"s_feature_incompat": 0x31, "s_num_fc_blks": 1000}, Corrupt, "room|at least 1024 blocks"),
    ({"s_checksum_type": 1}, Corrupt, "s_checksum_type"),
    ({"s_feature_incompat": 0x51}, UnsupportedFeature, "journal FEATURE_I6"),
    ({"s_feature_ro_compat": 2}, UnsupportedFeature, "journal FEATURE_R1"),
]


@pytest.mark.parametrize(("fields", "kind", "words"), JOURNAL_SUPERBLOCKS, ids=lambda value: str(value)[:40])
def test_journal_superblock(fields: dict[str, int], kind: type[FsError], words: str, make_world: MakeWorld) -> None:
    world = make_world(3)
    with journal_of(world.image) as area:
        raw = bytearray(area.read(0))
        JOURNAL_SUPERBLOCK.put(raw, 0, **fields)
        JOURNAL_SUPERBLOCK.put(raw, 0, s_checksum=superblock_csum(bytes(raw)))
        area.write(0, [raw])
    _check_refused(world, kind, words)


def test_journal_superblock_checksum(make_world: MakeWorld) -> None:
    world = make_world(3)
    _corrupt(world, 0, 0x60)
    _check_refused(world, BadChecksum, "s_checksum .journal superblock.")


def test_bad_journal_of_a_clean_image(make_world: MakeWorld) -> None:
    """For reading it does not matter, for writing it does."""
    world = make_world(3)
    set_superblock(world.image, recover=False)
    _corrupt(world, 0, 0x60)
    assert "does not matter for reading" in recover(world.image, readonly=True)[0]
    with pytest.raises(BadChecksum):
        recover(world.image)


def test_errno_in_the_journal(make_world: MakeWorld) -> None:
    """The kernel had to give up: e2fsck must look at everything."""
    for dirty in (True, False):
        world = make_world(3)
        with journal_of(world.image) as area:
            area.store_superblock(errno=-5, start=START if dirty else 0)
        set_superblock(world.image, recover=dirty)
        notices = recover(world.image)
        assert any("aborted with error 5" in line for line in notices)
        assert Superblock(world.image.read_bytes()[1024:2048]).state & EXT4_ERROR_FS
        with journal_of(world.image, readonly=True) as area:
            assert (area.errno, area.start) == (0, 0)
        assert world.file() == world.upto(4 if dirty else 0)


def test_torn_superblock(make_world: MakeWorld) -> None:
    """A whole one in the journal makes up for it, as it does for any other block."""
    world = make_world(3)
    whole = world.image.read_bytes()
    patch(world.image, 1024 + 0x30, b"torn")
    _check_refused_everywhere(world, "superblock checksum")
    with journal_of(world.image) as area:
        log = jf.build_descriptors(world.features, TID + 4, [(1, whole[1024:2048])])
        area.write(world.ends[-1], [*log, jf.build_commit(world.features, TID + 4, (NOW + 9) * 10**9)])
    assert world.file(recovered_view(world.image)) == world.upto(4)
    recover(world.image)
    status, output = e2fsck(world.image, "-n")
    assert status == 0, output
    assert world.file() == world.upto(4)


def _check_refused_everywhere(world: World, words: str) -> None:
    for options in (VolumeOptions(), VolumeOptions(norecovery=True), VolumeOptions(readonly=True)):
        device = FileDevice.open(world.image)
        with pytest.raises(BadChecksum, match=words):
            Volume.open(device, options, time.time_ns)
        device.close()


@pytest.mark.parametrize("csum", [0, 3])
def test_interrupted_anywhere(csum: int, make_world: MakeWorld, tmp_path: Path) -> None:
    """Recovery that stops at its Nth write or flush leaves what the next one brings to the same end."""
    world = make_world(csum)
    recover_copy = tmp_path / "copy.img"
    for kind in _KINDS:
        for count in range(1, 50):
            shutil.copyfile(world.image, recover_copy)
            device = FaultyDevice(FileDevice.open(recover_copy))
            device.arm(kind, count, times=None)
            try:
                volume = Volume.open(device, VolumeOptions(), time.time_ns)
            except DeviceError:
                device.close()
            else:
                volume.close()
                break
            recover(recover_copy)
            status, output = e2fsck(recover_copy, "-n")
            assert status == 0, (kind, count, output)
            assert world.file(recover_copy) == world.upto(4)
        assert count > 3


def test_unreadable_log(make_world: MakeWorld) -> None:
    """A read error anywhere on the way: it is said, and nothing was written."""
    world = make_world(3)
    before = world.image.read_bytes()
    for count in range(1, 100):
        device = FaultyDevice(FileDevice.open(world.image))
        device.arm("read", count)
        try:
            volume = Volume.open(device, VolumeOptions(readonly=True), time.time_ns)
        except DeviceError:
            device.close()
            assert world.image.read_bytes() == before
        else:
            volume.close()
            break
    assert count > 15


def test_journal_inode(make_world: MakeWorld, tmp_path: Path) -> None:
    """What leads to the journal is damaged."""
    world = make_world(0)
    place = run(["debugfs", "-R", "imap <8>", world.image]).split("located at block ")[1]
    block, offset = place.split(", offset ")
    inode = int(block) * BLOCK + int(offset, 16)
    for at, value, words in (
        (0, b"\0\0", "a regular file"),
        (40, b"\0\0", "extent"),
        (44, b"\0\0", "extent|eh_entries|hole"),
        (60, b"\xff\xff\xff\xff", "below"),
    ):
        image = tmp_path / "copy.img"
        image.write_bytes(world.image.read_bytes())
        patch(image, inode + at, value)
        with pytest.raises(Corrupt, match=words):
            recover(image)


@pytest.mark.parametrize("csum", [0, 1, 2, 3])
def test_random_damage(csum: int, make_world: MakeWorld, rng: random.Random, tmp_path: Path) -> None:
    """Bytes flipped anywhere in the log: an FsError or a volume, and e2fsck comes to the same as without us."""
    world = make_world(csum)
    ours, theirs = tmp_path / "ours.img", tmp_path / "theirs.img"
    original = world.image.read_bytes()
    with journal_of(world.image, readonly=True) as area:
        places = [(area.physical(block) * BLOCK, block + 1 in world.ends) for block in range(START, world.ends[-1])]
    for _ in range(25):
        damaged = bytearray(original)
        for _ in range(rng.choice((1, 1, 1, 3))):
            at, commit = rng.choice(places)
            # what is wrong behind a commit block's header, e2fsck 1.47.0 does not take for a torn write
            at += rng.randrange(60) if commit else rng.choice((rng.randrange(60), rng.randrange(BLOCK)))
            damaged[at] ^= 1 << rng.randrange(8)
        ours.write_bytes(damaged)
        theirs.write_bytes(damaged)
        try:
            recover(ours)
        except FsError:
            assert ours.read_bytes() == damaged
        for image in (ours, theirs):
            status, output = e2fsck(image, "-y")
            assert status <= 1, output
        assert world.file(ours) == world.file(theirs)


def test_features_are_values() -> None:
    features = jf.JournalFeatures(4096, b"u" * 16)
    assert replace(features, csum=2, wide=True).tag_size == 14
    assert replace(features, csum=2).tag_size == 10
    assert replace(features, csum=0, wide=True).tag_size == 12
    assert replace(features, csum=1).tag_size == 8
    assert features.tag_size == 16
