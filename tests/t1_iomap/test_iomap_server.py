"""ext4's iomap server over a block map in memory; section numbers are IOMAP.md's."""

from collections.abc import Sequence

import pytest

from py4fs.errors import Corrupt, FileTooBig, Invalid, NoSpace
from py4fs.ext4.inode import Inode
from py4fs.ext4.runs import RunState
from py4fs.iomap.records import (
    INVAL_TO_EOF,
    NULL_ADDR,
    IoDir,
    IoendFlags,
    MapFlags,
    Mapping,
    MapType,
    OpFlags,
)
from py4fs.iomap.validate import validate, validate_begin
from tests.t1_iomap.iomap_fakes import MAX_BLOCKS, B, FakeVolume

MAX = (MAX_BLOCKS - 1) * B


@pytest.fixture
def volume() -> FakeVolume:
    return FakeVolume()


@pytest.fixture
def inode(volume: FakeVolume) -> Inode:
    """Blocks 2-3 written at 100, 4 unwritten at 200, 6 written at 300, size 7 blocks less 24 bytes."""
    inode = volume.inode()
    volume.files.maps[inode.ino] = {2: (100, True), 3: (101, True), 4: (200, False), 6: (300, True)}
    inode.size = 7 * B - 24
    return inode


class Asker:
    """Takes what is pushed, unless told to decline."""

    def __init__(self, accept: bool = True) -> None:
        self.accept = accept
        self.got: list[Mapping] = []

    def __call__(self, mappings: Sequence[Mapping]) -> bool:
        for mapping in mappings:
            validate(mapping, IoDir.READ, block_size=B, max_file_bytes=MAX, strict=True)
        if self.accept:
            self.got += mappings
        return self.accept

    def at(self, pos: int) -> Mapping | None:
        return next((m for m in reversed(self.got) if m.offset <= pos < m.end), None)


ALL_OPS = [
    0,
    OpFlags.WRITE,
    OpFlags.WRITE | OpFlags.FAULT,
    OpFlags.ZERO,
    OpFlags.REPORT,
    OpFlags.DIRECT,
    OpFlags.DIRECT | OpFlags.WRITE,
    OpFlags.WRITEBACK,
    OpFlags.WRITE | OpFlags.DIRECT | OpFlags.ATOMIC,
    OpFlags.REPORT | OpFlags.SWAPFILE,
]


@pytest.mark.parametrize("op", ALL_OPS, ids=str)
@pytest.mark.parametrize("accept", [True, False])
def test_both_mappings_are_valid_and_cover_pos(op: int, accept: bool) -> None:
    """6.2 and 6.3, in the strict form of newer kernels, at every position."""
    for pos in [*range(0, 9 * B, B // 2), 1 << 30, MAX - 1]:
        volume = FakeVolume()
        inode = volume.inode()
        volume.files.maps[inode.ino] = {2: (100, True), 3: (101, True), 4: (200, False), 6: (300, True)}
        inode.size = 7 * B - 24
        asker = Asker(accept)
        if op & OpFlags.ATOMIC:
            pos -= pos % B
        if op & OpFlags.SWAPFILE and volume.files.run_at(inode, pos // B).state is RunState.HOLE:
            continue  # refused: below
        read, write = volume.server.begin(inode, pos, B if op & OpFlags.ATOMIC else 100, op, asker)
        validate_begin(read, write, pos, block_size=B, max_file_bytes=MAX, strict=True)
        assert write == Mapping(read.offset, read.length, NULL_ADDR, MapType.PURE_OVERWRITE)
        answer: Mapping | None = read
        if read.type == MapType.RETRY_CACHE:
            assert accept
            answer = asker.at(pos)
        assert answer is not None
        if op & (OpFlags.WRITE | OpFlags.WRITEBACK):
            assert answer.type in (MapType.MAPPED, MapType.UNWRITTEN)


def test_read_populates_a_window_then_retries(volume: FakeVolume, inode: Inode) -> None:
    asker = Asker()
    read, _ = volume.server.begin(inode, 2 * B + 5, 10, 0, asker)
    assert read == Mapping(2 * B, 2 * B, NULL_ADDR, MapType.RETRY_CACHE)
    assert sorted(asker.got) == [
        Mapping(2 * B, 2 * B, 100 * B, MapType.MAPPED, 0, 1),
        Mapping(4 * B, B, 200 * B, MapType.UNWRITTEN, 0, 1),
        Mapping(5 * B, B, NULL_ADDR, MapType.HOLE),
        Mapping(6 * B, B, 300 * B, MapType.MAPPED, 0, 1),
        Mapping(7 * B, MAX - 7 * B, NULL_ADDR, MapType.HOLE),
    ]
    assert asker.got[0].offset == 2 * B, "what was asked for comes first"


def test_no_retry_without_a_successful_push(volume: FakeVolume, inode: Inode) -> None:
    want = Mapping(2 * B, 2 * B, 100 * B, MapType.MAPPED, 0, 1)
    assert volume.server.begin(inode, 2 * B, 10, 0, Asker(accept=False))[0] == want
    assert volume.server.begin(inode, 2 * B, 10, 0)[0] == want


@pytest.mark.parametrize("op", [OpFlags.ATOMIC | OpFlags.WRITE, OpFlags.REPORT | OpFlags.SWAPFILE])
def test_atomic_and_swapfile_are_answered_directly(volume: FakeVolume, inode: Inode, op: int) -> None:
    asker = Asker()
    assert volume.server.begin(inode, 2 * B, B, op, asker)[0].type == MapType.MAPPED
    assert asker.got == []


def test_report_is_trimmed_to_pos(volume: FakeVolume, inode: Inode) -> None:
    """9.6: an untrimmed mapping would show up twice; 9.7: past the end one long hole."""
    read, _ = volume.server.begin(inode, 3 * B + 1, B, OpFlags.REPORT, Asker())
    assert read == Mapping(3 * B, B, 101 * B, MapType.MAPPED, 0, 1)
    read, _ = volume.server.begin(inode, 1 << 30, MAX - (1 << 30), OpFlags.REPORT, Asker())
    assert read == Mapping(1 << 30, MAX - (1 << 30), NULL_ADDR, MapType.HOLE)


def test_zero_leaves_holes(volume: FakeVolume, inode: Inode) -> None:
    asker = Asker()
    volume.server.begin(inode, 5 * B, B, OpFlags.ZERO, asker)
    assert asker.at(5 * B) == Mapping(5 * B, B, NULL_ADDR, MapType.HOLE)
    assert 5 not in volume.files.maps[inode.ino]


def test_write_allocates_what_was_asked_as_unwritten(volume: FakeVolume, inode: Inode) -> None:
    asker = Asker()
    volume.server.begin(inode, 9 * B + 100, 2 * B, OpFlags.WRITE, asker)
    blocks = volume.files.maps[inode.ino]
    assert sorted(blocks) == [2, 3, 4, 6, 9, 10, 11]
    assert not any(blocks[b][1] for b in (9, 10, 11))
    assert asker.at(9 * B) == Mapping(9 * B, 3 * B, blocks[9][0] * B, MapType.UNWRITTEN, 0, 1)
    # nothing changes where blocks are
    before = dict(blocks)
    volume.server.begin(inode, 2 * B, 3 * B, OpFlags.WRITE, asker)
    assert volume.files.maps[inode.ino] == before


def test_write_allocation_is_bounded() -> None:
    volume = FakeVolume(max_blocks=4)
    inode = volume.inode()
    volume.server.begin(inode, 0, 100 * B, OpFlags.WRITE, None)
    assert len(volume.files.maps[inode.ino]) == 4


def test_failed_allocation_leaves_nothing(volume: FakeVolume, inode: Inode) -> None:
    volume.files.free = {50, 51}
    before = dict(volume.files.maps[inode.ino])
    asker = Asker()
    volume.server.begin(inode, 10 * B, 4 * B, OpFlags.WRITE, asker)
    assert sorted(volume.files.maps[inode.ino]) == [*before, 10, 11], "as much as there is room for"
    before = dict(volume.files.maps[inode.ino])
    asker = Asker()
    with pytest.raises(NoSpace):
        volume.server.begin(inode, 12 * B, 3 * B, OpFlags.WRITE, asker)
    assert volume.files.maps[inode.ino] == before
    assert volume.files.free == set()
    assert asker.got == []


def test_limits(volume: FakeVolume, inode: Inode) -> None:
    with pytest.raises(FileTooBig):
        volume.server.begin(inode, MAX, 1, 0)
    for pos, count in ((-1, 1), (0, 0), (0, -1)):
        with pytest.raises(Invalid):
            volume.server.begin(inode, pos, count, 0)
    read, _ = volume.server.begin(inode, MAX - B, 10 * B, OpFlags.WRITE)
    assert read.end == MAX


def test_open_pushes_the_first_mappings(volume: FakeVolume, inode: Inode) -> None:
    asker = Asker()
    assert volume.server.open_push(inode, asker)
    assert asker.at(0) == Mapping(0, 2 * B, NULL_ADDR, MapType.HOLE)
    assert asker.at(2 * B) == Mapping(2 * B, 2 * B, 100 * B, MapType.MAPPED, 0, 1)
    assert not volume.server.open_push(inode, Asker(accept=False))


def test_refresh_pushes_only_the_range(volume: FakeVolume, inode: Inode) -> None:
    asker = Asker()
    volume.server.refresh(inode, 3 * B + 10, B, asker)
    assert [m.offset for m in asker.got] == [2 * B, 4 * B]


# --- ioend and end (6.5, 9.1) ----------------------------------------------------------------------------------


def ioend(volume: FakeVolume, inode: Inode, pos: int, written: int, flags: int, error: int = 0) -> int:
    with volume.operation(20) as tx:
        return volume.server.ioend(tx, inode, pos, written, flags, error)


def test_ioend_converts_touched_blocks(volume: FakeVolume, inode: Inode) -> None:
    assert ioend(volume, inode, 4 * B + 5, 1, IoendFlags.UNWRITTEN) == inode.size
    assert volume.files.maps[inode.ino][4] == (200, True)


@pytest.mark.parametrize("flags", [0, IoendFlags.UNWRITTEN, IoendFlags.APPEND, IoendFlags.WRITEBACK])
def test_size_rises_whatever_append_says(volume: FakeVolume, inode: Inode, flags: int) -> None:
    assert ioend(volume, inode, 7 * B, 10, flags) == 7 * B + 10 == inode.size
    assert ioend(volume, inode, 0, 10, flags) == 7 * B + 10 == inode.size


def test_failed_ioend_changes_nothing(volume: FakeVolume, inode: Inode) -> None:
    """9.5: `written` may be non-zero with an error."""
    size = inode.size
    assert ioend(volume, inode, 4 * B, 4 * B, IoendFlags.UNWRITTEN | IoendFlags.DIRECT, -28) == size
    assert inode.size == size
    assert volume.files.maps[inode.ino][4] == (200, False)


def test_ioend_swapoff_and_shared(volume: FakeVolume, inode: Inode) -> None:
    size = inode.size
    assert ioend(volume, inode, 0, 0, IoendFlags.SWAPOFF) == size
    with pytest.raises(Corrupt):
        ioend(volume, inode, 0, B, IoendFlags.SHARED)
    with pytest.raises(FileTooBig):
        ioend(volume, inode, MAX, 1, 0)


def test_size_in_core_is_committed_at_flush(volume: FakeVolume, inode: Inode) -> None:
    """9.1 (a), (c), (d)."""
    old = inode.size
    volume.server.end(inode, old, 100, 60, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    volume.server.end(inode, 0, 100, 100, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    volume.server.end(inode, old + 500, 100, 0, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    assert (inode.size, volume.server.size(inode)) == (old, old + 60)
    with volume.operation(1) as tx:
        assert volume.server.commit_size(tx, inode) == old + 60
    assert inode.size == old + 60
    volume.server.end(inode, inode.size, 100, 100, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    volume.server.size_set(inode.ino)
    assert volume.server.size(inode) == old + 60


def test_short_write_gives_blocks_past_the_end_back(volume: FakeVolume, inode: Inode) -> None:
    heard: list[tuple[int, int, int]] = []
    volume.server.subscribe(lambda *what: heard.append(what))
    volume.server.begin(inode, 6 * B, 6 * B, OpFlags.WRITE)
    volume.server.begin(inode, 7 * B, 5 * B, OpFlags.WRITE)
    assert sorted(volume.files.maps[inode.ino]) == [2, 3, 4, 6, 7, 8, 9, 10, 11]
    volume.server.end(inode, 7 * B, 5 * B, 2 * B - 5, OpFlags.WRITE | OpFlags.DIRECT)
    assert sorted(volume.files.maps[inode.ino]) == [2, 3, 4, 6, 7, 8]
    assert heard == [(inode.ino, 9 * B, 3 * B)]
    # unwritten blocks inside the file stay, a finished write and a read give nothing back
    volume.server.end(inode, 4 * B, B, 0, OpFlags.WRITE)
    volume.server.end(inode, 7 * B, 2 * B, 2 * B, OpFlags.WRITE)
    volume.server.end(inode, 7 * B, 2 * B, 0, 0)
    assert sorted(volume.files.maps[inode.ino]) == [2, 3, 4, 6, 7, 8]


def test_invalidate_reaches_every_asker(volume: FakeVolume, inode: Inode) -> None:
    heard: list[tuple[int, int, int]] = []
    for _ in range(2):
        volume.server.subscribe(lambda *what: heard.append(what))
    volume.server.invalidate(inode.ino)
    volume.server.invalidate(inode.ino, B, B)
    assert heard == [(inode.ino, 0, INVAL_TO_EOF)] * 2 + [(inode.ino, B, B)] * 2
