"""The numbered rules of IOMAP.md, one test each where the other files have none: section 6 as the client keeps it,
the recipe of section 8 and the findings of section 9 as the server keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from py4fs.errors import Corrupt, DeviceError, FileTooBig, FsError, Invalid, NoSpace, NotSupported
from py4fs.ext4 import inline
from py4fs.ext4.runs import RunState
from py4fs.iomap import protocol
from py4fs.iomap.client import IomapClient, run_read, run_write
from py4fs.iomap.plans import run_read_into
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
from py4fs.iomap.server import Ext4Iomap
from py4fs.iomap.validate import validate_begin
from tests.support.core import need_interpreted
from tests.t1_iomap.iomap_fakes import MAX_BLOCKS, B, FakeVolume
from tests.t1_iomap.test_iomap_client import World

MAX = (MAX_BLOCKS - 1) * B
HOLE, MAPPED, UNWRITTEN = MapType.HOLE, MapType.MAPPED, MapType.UNWRITTEN


class Recorder:
    """Notes what a client asks its server, and what that answers."""

    def __init__(self, world: World) -> None:
        need_interpreted()
        self.begins: list[tuple[int, int, int]] = []
        self.replies: list[tuple[Mapping, Mapping]] = []
        self.ends: list[tuple[int, int, int, int]] = []
        self.ioends: list[tuple[int, int, int]] = []
        server = world.volume.server
        begin, end, ioend = server.begin, server.end, server.ioend

        def note_begin(inode: Any, pos: int, count: int, opflags: int, *rest: Any) -> tuple[Mapping, Mapping]:
            self.begins.append((pos, count, opflags))
            self.replies.append(begin(inode, pos, count, opflags, *rest))
            return self.replies[-1]

        def note_end(inode: Any, pos: int, count: int, written: int, opflags: int, flags: int = 0) -> None:
            self.ends.append((pos, count, written, opflags))
            end(inode, pos, count, written, opflags, flags)

        def note_ioend(tx: Any, inode: Any, pos: int, written: int, flags: int, error: int = 0) -> int:
            self.ioends.append((pos, written, flags))
            return ioend(tx, inode, pos, written, flags, error)

        for name, note in (("begin", note_begin), ("end", note_end), ("ioend", note_ioend)):
            setattr(server, name, note)


@pytest.fixture
def world() -> World:
    return World()


def answering(world: World, *replies: tuple[Mapping, Mapping]) -> list[int]:
    """Let the server give these replies, the last one for ever; returns the operations that were asked."""
    need_interpreted()
    asked: list[int] = []

    def begin(inode: Any, pos: int, count: int, opflags: int, *rest: Any) -> tuple[Mapping, Mapping]:
        asked.append(opflags)
        return replies[min(len(asked), len(replies)) - 1]

    world.volume.server.begin = begin  # type: ignore[method-assign, assignment]
    return asked


def pure(length: int = B) -> Mapping:
    return Mapping(0, length, NULL_ADDR, MapType.PURE_OVERWRITE)


def fill(world: World) -> None:
    """Blocks 0-1 written, 2 a hole, 3 unwritten, 4-: hole; all of it in the cache."""
    world.write(0, b"a" * (2 * B))
    world.volume.server.begin(world.inode, 3 * B, B, OpFlags.WRITE)
    world.inode.size = 5 * B
    world.file.cache.clear()
    world.client.load(world.file)


# --- 6.2 begin -------------------------------------------------------------------------------------------------


def test_6_2_step_1_a_hit_makes_no_upcall(world: World) -> None:
    fill(world)
    asked = Recorder(world)
    for pos, kind in ((0, MAPPED), (B + 5, MAPPED), (2 * B, HOLE), (3 * B, UNWRITTEN), (9 * B, HOLE)):
        for op in (OpFlags.READ, OpFlags.ZERO, OpFlags.REPORT, OpFlags.DIRECT):
            assert world.client.mapping(world.file, pos, 10, op).type == kind
    assert asked.begins == []


@pytest.mark.parametrize("op", [OpFlags.WRITE, OpFlags.WRITEBACK, OpFlags.WRITE | OpFlags.DIRECT])
def test_6_2_try_cache_a_hole_to_write_into_is_a_miss(world: World, op: int) -> None:
    fill(world)
    asked = Recorder(world)
    assert world.client.mapping(world.file, 2 * B + 7, 100, op).type == UNWRITTEN
    assert asked.begins == [(2 * B + 7, 100, op)]


@pytest.mark.parametrize("op", [OpFlags.ZERO, OpFlags.UNSHARE, OpFlags.WRITE | OpFlags.UNSHARE])
def test_6_2_try_cache_zero_and_unshare_take_a_hole(world: World, op: int) -> None:
    fill(world)
    asked = Recorder(world)
    assert world.client.mapping(world.file, 2 * B, 10, op).type == HOLE
    assert asked.begins == []


def test_6_2_try_cache_write_fork(world: World) -> None:
    """NOFORK and PURE_OVERWRITE: the read fork's answer; a miss goes to the server even with a read hit."""
    fill(world)
    asked = Recorder(world)
    cache = world.file.cache
    cache.upsert(IoDir.WRITE, Mapping(8 * B, B, NULL_ADDR, MapType.HOLE))  # the fork is in use from now on
    cache.upsert(IoDir.WRITE, pure())
    assert world.client.mapping(world.file, 0, 10, OpFlags.WRITE).type == MAPPED
    assert asked.begins == []
    world.client.mapping(world.file, B, 10, OpFlags.WRITE)
    assert asked.begins[0] == (B, 10, OpFlags.WRITE)
    assert world.client.mapping(world.file, B, 10, OpFlags.READ).type == MAPPED
    with pytest.raises(NotSupported):
        world.client.mapping(world.file, 8 * B, 10, OpFlags.WRITE)


def test_6_2_try_cache_delalloc_is_a_miss(world: World) -> None:
    world.file.cache.upsert(IoDir.READ, Mapping(0, B, NULL_ADDR, MapType.DELALLOC))
    asked = Recorder(world)
    world.client.mapping(world.file, 0, 10, OpFlags.WRITEBACK)
    assert len(asked.begins) == 1


@pytest.mark.parametrize("op", [OpFlags.ATOMIC | OpFlags.WRITE | OpFlags.DIRECT, OpFlags.SWAPFILE | OpFlags.REPORT])
def test_6_2_step_1_atomic_and_swapfile_never_look(world: World, op: int) -> None:
    fill(world)
    before = world.file.cache.seq
    asked = Recorder(world)
    for _ in range(2):
        assert world.client.mapping(world.file, 0, B, op).type == MAPPED
    assert asked.begins == [(0, B, op)] * 2
    assert all(read.type == MAPPED for read, _ in asked.replies), "no RETRY_CACHE"
    assert world.file.cache.seq == before, "nothing is pushed"


def test_6_2_step_2_an_error_is_the_answer(world: World) -> None:
    world.volume.files.free.clear()
    with pytest.raises(NoSpace):
        world.client.mapping(world.file, 0, 10, OpFlags.WRITE)


def test_6_2_step_3_both_mappings_are_checked_on_reads(world: World) -> None:
    good = Mapping(0, B, NULL_ADDR, HOLE)
    for bad in (pure(B + 1), pure()._replace(offset=B), Mapping(0, B, NULL_ADDR, 9), Mapping(0, B, 5, MAPPED)):
        answering(world, (good, bad))
        with pytest.raises(Corrupt):
            world.client.mapping(world.file, 0, 10, OpFlags.READ)


def test_6_2_step_4_retry_looks_again_and_asks_again(world: World) -> None:
    """Without an upsert every RETRY_CACHE is one more BEGIN (section 10); at last the server may not say it."""
    need_interpreted()
    world.volume.files.maps[world.inode.ino] = {0: (10, True)}
    real = world.volume.server.begin
    pushes: list[bool] = []

    def begin(inode: Any, pos: int, count: int, opflags: int, push: Any, reserve: Any) -> tuple[Mapping, Mapping]:
        pushes.append(push is not None)
        if push is None:
            return real(inode, pos, count, opflags)
        return Mapping(0, B, NULL_ADDR, MapType.RETRY_CACHE), pure()

    world.volume.server.begin = begin  # type: ignore[method-assign, assignment]
    assert world.client.mapping(world.file, 0, 10, OpFlags.READ).addr == 10 * B
    assert pushes == [True, True, True, False]
    assert world.file.counters.retries == 3 and world.file.counters.upcalls == 4


@pytest.mark.parametrize("op", [OpFlags.ATOMIC | OpFlags.WRITE, OpFlags.SWAPFILE | OpFlags.REPORT])
def test_6_2_step_4_retry_for_uncached_operations_is_refused(world: World, op: int) -> None:
    answering(world, (Mapping(0, B, NULL_ADDR, MapType.RETRY_CACHE), pure()))
    with pytest.raises(Corrupt):
        world.client.mapping(world.file, 0, B, op)


def test_6_2_step_5_unknown_devices_are_refused(world: World) -> None:
    answering(world, (Mapping(0, B, 10 * B, MAPPED, 0, 7), pure()))
    with pytest.raises(Corrupt):
        world.client.mapping(world.file, 0, 10, OpFlags.READ)


def test_6_2_step_7_replies_never_enter_the_cache(world: World) -> None:
    reply = (Mapping(0, B, 10 * B, MAPPED, 0, 1), pure())
    asked = answering(world, reply)
    for _ in range(3):
        assert world.client.mapping(world.file, 0, 10, OpFlags.READ) == reply[0]
    assert len(asked) == 3 and world.file.cache.mappings(IoDir.READ) == []


def test_6_2_validation_of_pushed_mappings_section_3(world: World) -> None:
    """UPSERT: a device that nobody registered, an end beyond the device; a device without size declines."""
    file = world.file
    last = 512 * B
    assert file.push([Mapping(0, B, last - B, MAPPED, 0, 1)])
    for bad in (Mapping(0, 2 * B, last - B, MAPPED, 0, 1), Mapping(0, B, 0, MAPPED, 0, 2)):
        with pytest.raises(Corrupt):
            file.push([bad])
    file.devices = {1: 0}
    assert not file.push([Mapping(0, B, 0, MAPPED, 0, 1)])
    assert file.cache.mappings(IoDir.READ) == [Mapping(0, B, last - B, MAPPED, 0, 1)]


# --- 6.3 operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [OpFlags.WRITE, OpFlags.WRITE | OpFlags.FAULT, OpFlags.WRITE | OpFlags.DIRECT, OpFlags.WRITEBACK,
     OpFlags.WRITE | OpFlags.NOWAIT, OpFlags.WRITE | OpFlags.DONTCACHE,
     OpFlags.WRITE | OpFlags.DIRECT | OpFlags.ATOMIC],
    ids=str,
)  # fmt: skip
def test_6_3_writes_never_get_a_hole(op: int) -> None:
    volume = FakeVolume()
    inode = volume.inode()
    read, write = volume.server.begin(inode, 4 * B, B, op)
    assert (read.type, read.offset, read.length, write.type) == (UNWRITTEN, 4 * B, B, MapType.PURE_OVERWRITE)
    # one large answer saves upcalls: it is the whole run, wherever in it somebody asks
    volume.server.begin(inode, 5 * B, 3 * B, OpFlags.WRITE)
    assert volume.server.begin(inode, 6 * B, B, op)[0][:2] == (4 * B, 4 * B)


@pytest.mark.parametrize(
    "op",
    [OpFlags.READ, OpFlags.DIRECT, OpFlags.ZERO, OpFlags.REPORT, OpFlags.UNSHARE, OpFlags.WRITE | OpFlags.UNSHARE,
     OpFlags.FAULT, OpFlags.DIRECT | OpFlags.NOWAIT],
    ids=str,
)  # fmt: skip
def test_6_3_everything_else_leaves_holes_alone(op: int) -> None:
    volume = FakeVolume()
    inode = volume.inode()
    assert volume.server.begin(inode, 4 * B, B, op)[0].type == HOLE
    assert volume.files.maps.get(inode.ino, {}) == {}


@pytest.mark.parametrize(
    ("pos", "count", "op"),
    [(0, 2 * B, OpFlags.WRITE), (0, B - 1, OpFlags.WRITE), (5, B, OpFlags.WRITE), (0, B, OpFlags.READ)],
)
def test_6_5_atomic_writes_are_one_aligned_block(pos: int, count: int, op: int) -> None:
    volume = FakeVolume()
    with pytest.raises(Invalid):
        volume.server.begin(volume.inode(), pos, count, op | OpFlags.ATOMIC | OpFlags.DIRECT)


def test_6_2_atomic_needs_the_promise_of_the_device(world: World) -> None:
    op = OpFlags.ATOMIC | OpFlags.WRITE | OpFlags.DIRECT
    mapping = world.client.mapping(world.file, 0, B, op)
    assert (mapping.type, mapping.flags) == (UNWRITTEN, MapFlags.ATOMIC_BIO)
    answering(world, (Mapping(0, B, 10 * B, MAPPED, 0, 1), pure()))
    with pytest.raises(DeviceError):
        world.client.mapping(world.file, 0, B, op)


def test_6_8_swap_files_have_no_holes(world: World) -> None:
    """As the kernel's own rule: written and unwritten blocks will do, holes will not."""
    fill(world)
    op = OpFlags.SWAPFILE | OpFlags.REPORT
    begin = world.volume.server.begin
    assert begin(world.inode, B, B, op)[0] == Mapping(B, B, world.blocks[1][0] * B, MAPPED, 0, 1)
    assert begin(world.inode, 3 * B, B, op)[0].type == UNWRITTEN
    with pytest.raises(Invalid, match="holes"):
        begin(world.inode, 2 * B, B, op)
    assert world.volume.server.complete(world.inode, 0, 0, IoendFlags.SWAPOFF) == world.inode.size


def test_6_3_operations_that_do_not_come_here(world: World) -> None:
    with pytest.raises(NotSupported):
        world.volume.server.begin(world.inode, 0, B, OpFlags.DAX | OpFlags.WRITE)


def make_inline(world: World, data: bytes) -> None:
    """The file's contents are in its inode, whose body has room for 100 bytes of them."""
    inode = world.inode
    inode.extra_isize, inode.ibody, inode.may_inline = 32, bytes(64), True
    with world.volume.operation(1) as tx:
        assert inline.prepare(tx, inode, len(data))
        inline.write(tx, inode, 0, data)
        inode.size = len(data)


def test_6_7_inline_data_is_a_block_of_its_own_type_and_a_hole(world: World) -> None:
    make_inline(world, b"inline" * 10)
    for opflags in (OpFlags.READ, OpFlags.WRITE, OpFlags.ZERO, OpFlags.REPORT):
        read, write = world.volume.server.begin(world.inode, 5, 10, opflags)
        assert read == Mapping(0, B, NULL_ADDR, MapType.INLINE) and write.type == MapType.PURE_OVERWRITE
        validate_begin(read, write, 5, block_size=B, max_file_bytes=world.volume.server.max_file_bytes)
    read, _ = world.volume.server.begin(world.inode, 3 * B, 10, OpFlags.READ)
    assert (read.offset, read.type) == (B, MapType.HOLE)
    for opflags in (OpFlags.SWAPFILE | OpFlags.REPORT, OpFlags.ATOMIC | OpFlags.WRITE):
        with pytest.raises(NotSupported):
            world.volume.server.begin(world.inode, 0, B, opflags)


@pytest.mark.parametrize("opflags", [OpFlags.WRITE | OpFlags.FAULT, OpFlags.WRITEBACK])
def test_6_5_pages_that_will_be_written_back_are_not_inline(world: World, opflags: OpFlags) -> None:
    make_inline(world, b"inline" * 10)
    read, _ = world.volume.server.begin(world.inode, 0, 10, opflags)
    assert read.type == UNWRITTEN and not world.inode.is_inline


def test_6_7_reads_take_inline_bytes_with_the_plan_and_never_touch_the_device(world: World) -> None:
    make_inline(world, b"inline" * 10)
    assert world.read() == b"inline" * 10
    assert [m.type for m in world.file.cache.mappings(IoDir.READ) or []] == [MapType.INLINE, MapType.HOLE]
    before = world.file.counters.upcalls
    plan = world.client.plan_read(world.file, 3, 10, world.inode.size)
    with world.volume.operation(1) as tx:
        inline.write(tx, world.inode, 0, b"later!" * 10)
    assert run_read(plan, None) == b"ineinlinei"  # type: ignore[arg-type]
    into = bytearray(10)
    run_read_into(plan, world.volume.device, memoryview(into))
    assert into == b"ineinlinei"
    world.client.cancel(plan)
    assert world.file.counters.upcalls == before


def test_6_7_writes_ask_each_time_and_end_in_the_inode(world: World) -> None:
    make_inline(world, b"inline")
    assert world.read() == b"inline"  # which fills the cache
    device = bytes(world.volume.device.data)
    assert world.client.write(world.file, 70, b"more") == 4
    assert world.read() == b"inline" + bytes(64) + b"more" and world.inode.is_inline
    assert bytes(world.volume.device.data) == device
    plan = world.client.plan_write(world.file, 0, 4)
    run_write(plan, world.volume.device, b"gone")
    world.volume.server.invalidate(world.inode.ino)
    with world.volume.operation(world.client.finish_credits(plan)) as tx:
        assert not world.client.finish_write(plan, tx)
    assert world.read()[:6] == b"inline"


# --- 6.4 end ---------------------------------------------------------------------------------------------------


def test_6_4_end_after_a_failed_write_only(world: World) -> None:
    asked = Recorder(world)
    world.write(0, b"x" * 100)
    world.read()
    assert asked.ends == []
    world.device.broken = True
    with pytest.raises(DeviceError):
        world.write(2 * B, b"y" * 100)
    assert asked.ends == [(2 * B, 100, 0, OpFlags.WRITE)]


# --- 6.5 writes and their completion ---------------------------------------------------------------------------


def test_6_5_gap_is_zeroed_before_the_data_is_mapped(world: World) -> None:
    world.write(0, b"x" * 100)
    world.file.cache.clear()
    asked = Recorder(world)
    world.write(3 * B + 10, b"y")
    assert [(pos, op) for pos, _, op in asked.begins] == [(100, OpFlags.ZERO), (3 * B + 10, OpFlags.WRITE)]
    assert asked.begins[0][1] == 3 * B + 10 - 100


def test_6_5_ioends(world: World) -> None:
    """One for each run that is in one piece on the device; none for data in place; APPEND where the file grows."""
    direct, unwritten, append = IoendFlags.DIRECT, IoendFlags.UNWRITTEN, IoendFlags.APPEND
    asked = Recorder(world)
    world.write(0, b"x" * (2 * B))
    assert asked.ioends == [(0, 2 * B, direct | unwritten | append)]
    asked.ioends.clear()
    world.write(10, b"x" * B)
    assert asked.ioends == []
    world.truncate(2 * B - 100)
    world.write(B + 10, b"x" * B)
    assert asked.ioends == [(2 * B, 10, direct | unwritten | append)]
    asked.ioends.clear()
    world.write(2 * B + 5, b"x" * 100)
    assert asked.ioends == [(2 * B + 5, 100, direct | append)]
    asked.ioends.clear()
    world.inode.size = 10 * B
    world.write(5 * B, b"x" * B)
    assert asked.ioends == [(5 * B, B, direct | unwritten)]


def test_6_5_adjacent_ioends_merge_where_the_device_is_contiguous(world: World) -> None:
    """Unwritten mappings side by side that differ in flags stay two records, and are one ioend all the same."""
    world.volume.files.maps[world.inode.ino] = {b: (10 + b, False) for b in range(4)}
    world.inode.size = 6 * B
    cache = world.file.cache
    cache.upsert(IoDir.READ, Mapping(0, 2 * B, 10 * B, UNWRITTEN, 0, 1))
    cache.upsert(IoDir.READ, Mapping(2 * B, 2 * B, 12 * B, UNWRITTEN, MapFlags.DIRTY, 1))
    world.volume.files.maps[world.inode.ino][4] = (90, False)
    cache.upsert(IoDir.READ, Mapping(4 * B, B, 90 * B, UNWRITTEN, 0, 1))
    asked = Recorder(world)
    world.write(100, b"x" * (4 * B))
    assert [(pos, count) for pos, count, _ in asked.ioends] == [(100, 4 * B - 100), (4 * B, 100)]
    assert world.file.counters.ioends == 2
    assert all(written for _, written in world.blocks.values())


def test_6_5_the_size_rises_only_when_the_data_is_there(world: World) -> None:
    plan = world.client.plan_write(world.file, 0, 5 * B)
    assert world.inode.size == 0
    run_write(plan, world.device, b"x" * (5 * B))
    assert world.inode.size == 0
    assert world.finish(plan)
    assert world.inode.size == 5 * B


def test_6_5_short_write_then_the_error() -> None:
    world = World(blocks=8)
    world.volume.files.free = {1, 2, 3}
    assert world.write(0, b"x" * (6 * B)) == 3 * B
    assert world.inode.size == 3 * B and world.read() == b"x" * (3 * B)
    with pytest.raises(NoSpace):
        world.write(3 * B, b"x")


# --- ioend at the server, section 6.5 and 9.5 ------------------------------------------------------------------


def test_6_5_an_ioend_of_any_length() -> None:
    """A kernel merges as much as it likes; conversion goes in bounded operations, the size rises with each."""
    volume = FakeVolume(blocks=2048, gap=iter([1] * 2000).__next__)
    inode = volume.inode()
    volume.server.begin(inode, 0, 300 * B, OpFlags.WRITE)
    assert volume.server.begin(inode, 10 * B, B, 0)[0].length == B, "every block is an extent of its own"
    volume.credits.clear()
    flags = IoendFlags.UNWRITTEN | IoendFlags.WRITEBACK
    assert volume.server.complete(inode, 10, 300 * B - 30, flags) == 300 * B - 20
    assert all(written for _, written in volume.files.maps[inode.ino].values())
    assert len(volume.credits) > 4 and max(volume.credits) < 400
    with pytest.raises(FileTooBig):
        volume.server.complete(inode, MAX - 10, 11, flags)
    with pytest.raises(Corrupt):
        volume.server.complete(inode, 0, B, IoendFlags.SHARED)


def test_9_5_a_failed_direct_write_gives_everything_back() -> None:
    """No END comes for it, and `written` says nothing: whatever the file got past its end and did not use goes."""
    volume = FakeVolume()
    inode = volume.inode()
    heard: list[tuple[int, int, int]] = []
    volume.server.subscribe(lambda *what: heard.append(what))
    volume.server.begin(inode, 0, 2 * B, OpFlags.WRITE | OpFlags.DIRECT)
    volume.server.complete(inode, 0, 2 * B, IoendFlags.DIRECT | IoendFlags.UNWRITTEN)
    volume.server.begin(inode, 2 * B, 4 * B, OpFlags.WRITE | OpFlags.DIRECT)
    volume.server.begin(inode, 9 * B, B, OpFlags.WRITE | OpFlags.DIRECT)
    size = volume.server.complete(inode, 2 * B, B, IoendFlags.DIRECT | IoendFlags.UNWRITTEN, -28)
    assert size == inode.size == 2 * B
    assert sorted(volume.files.maps[inode.ino]) == [0, 1]
    assert heard == [(inode.ino, 2 * B, 4 * B), (inode.ino, 9 * B, B)]


def test_9_5_an_error_leaves_earlier_data_alone() -> None:
    volume = FakeVolume()
    inode = volume.inode()
    volume.server.begin(inode, 0, 8 * B, OpFlags.WRITE)
    volume.server.end(inode, 0, 8 * B, 8 * B, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    volume.server.complete(inode, 0, 8 * B, IoendFlags.WRITEBACK, -5)
    assert len(volume.files.maps[inode.ino]) == 8, "the kernel has that data in its cache and may write it again"


@pytest.mark.parametrize("mapped", [False, True], ids=["extents", "block-map"])
def test_what_a_write_got_goes_back_and_nothing_else(mapped: bool) -> None:
    """Blocks that were there before (fallocate with KEEP_SIZE) stay; block maps know no unwritten state."""
    volume = FakeVolume()
    inode = volume.inode()
    volume.files.maps[inode.ino] = {2: (100, False), 3: (101, False)}
    if mapped:
        real = volume.files.allocate
        volume.files.allocate = lambda tx, inode, lblk, count, *, unwritten=True: real(  # type: ignore[method-assign]
            tx, inode, lblk, count, unwritten=False
        )
    volume.server.begin(inode, 0, 6 * B, OpFlags.WRITE)
    assert sorted(volume.files.maps[inode.ino]) == list(range(6))
    volume.server.end(inode, 0, 6 * B, 10, OpFlags.WRITE)
    assert sorted(volume.files.maps[inode.ino]) == [0, 2, 3]


def test_close_leaves_nothing_past_the_end() -> None:
    """A mapping that was handed out and never used: back when the last one closes the file."""
    volume = FakeVolume()
    inode = volume.inode()
    volume.server.begin(inode, 0, 4 * B, OpFlags.WRITE)
    volume.server.complete(inode, 0, B + 1, IoendFlags.UNWRITTEN | IoendFlags.DIRECT)
    volume.server.closed(inode)
    assert sorted(volume.files.maps[inode.ino]) == [0, 1]
    assert volume.files.settled == [inode.ino]
    # what somebody else decided about in between is not ours to free
    volume.server.begin(inode, 4 * B, 4 * B, OpFlags.WRITE)
    volume.server.invalidate(inode.ino, 5 * B, B)
    volume.server.closed(inode)
    assert sorted(volume.files.maps[inode.ino]) == [0, 1, 5]
    volume.server.begin(inode, 8 * B, B, OpFlags.WRITE)
    volume.server.forget(inode.ino)
    volume.server.closed(inode)
    assert sorted(volume.files.maps[inode.ino]) == [0, 1, 5, 8]


def test_giving_back_that_fails_is_no_error_of_the_write(world: World, log_guard: Any) -> None:
    log_guard.expect("blocks past its end could not be freed")
    plan = world.client.plan_write(world.file, 0, B)
    world.volume.transactions.refuse = lambda: DeviceError("the journal is gone")
    world.client.abort_write(plan)
    world.client.closed(world.inode)
    assert len(world.volume.pins) == 0 and world.file.writes == []


# --- 8 the portable recipe -------------------------------------------------------------------------------------


def test_8_recipe_1_and_2_numbers() -> None:
    assert (protocol.KERNEL_MINOR, protocol.INIT_IOMAP2, protocol.INIT_EXT) == (99, 0x800, 1 << 30)
    assert protocol.ATTR_FLAGS["EXCLUSIVE"] | protocol.ATTR_FLAGS["IOMAP"] == 0x0C


def test_8_recipe_3_the_write_slot_of_everything() -> None:
    """PURE_OVERWRITE over the range of the read mapping, no flags, no device."""
    volume = FakeVolume()
    inode = volume.inode()
    for op in (0, OpFlags.WRITE, OpFlags.REPORT, OpFlags.ZERO, OpFlags.WRITEBACK):
        read, write = volume.server.begin(inode, 3 * B + 5, 10, op)
        assert write == Mapping(read.offset, read.length, NULL_ADDR, MapType.PURE_OVERWRITE)


def test_8_recipe_5_a_failed_push_is_answered_directly() -> None:
    """EINVAL or ENOMEM from the kernel: no RETRY_CACHE, the mapping itself."""
    volume = FakeVolume()
    read, _ = volume.server.begin(volume.inode(), 0, B, OpFlags.WRITE, lambda mappings: False)
    assert read.type == UNWRITTEN


def test_8_recipe_6_pushed_mappings_have_no_flags_and_come_again_after_ioend(world: World) -> None:
    pushed: list[Mapping] = []
    real = world.file.push

    class Spy:
        def __call__(self, mappings: Sequence[Mapping]) -> bool:
            pushed.extend(mappings)
            return real(mappings)

    world.volume.server.begin(world.inode, 0, 4 * B, OpFlags.WRITE, Spy())
    with world.volume.operation(50) as tx:
        world.volume.server.ioend(tx, world.inode, 0, 2 * B, IoendFlags.UNWRITTEN)
    assert world.volume.server.refresh(world.inode, 0, 4 * B, Spy())
    assert not any(m.flags for m in pushed)
    assert [m.type for m in world.file.cache.mappings(IoDir.READ) or []][:2] == [MAPPED, UNWRITTEN]


def test_8_recipe_8_newsize_is_the_size_on_disk() -> None:
    volume = FakeVolume()
    inode = volume.inode()
    inode.size = 100
    assert volume.server.complete(inode, 0, 50, IoendFlags.WRITEBACK) == 100
    assert volume.server.complete(inode, 0, 150, IoendFlags.WRITEBACK | IoendFlags.APPEND) == 150
    assert volume.server.complete(inode, 0, 500, IoendFlags.WRITEBACK, -5) == 150


# --- 9 findings ------------------------------------------------------------------------------------------------


def test_9_1_append_then_stat_then_fsync_keeps_the_size() -> None:
    """The kernel forgets APPEND, or the whole IOEND; END's SIZE_CHANGED and fsync bring the size to the disk."""
    volume = FakeVolume()
    inode = volume.inode()
    server = volume.server
    server.begin(inode, 0, 3 * B, OpFlags.WRITE)
    server.complete(inode, 0, 3 * B, IoendFlags.UNWRITTEN | IoendFlags.WRITEBACK)
    inode.size = 100  # as if truncated within the written block, then appended to: no IOEND at all
    server.end(inode, 100, 1000, 1000, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    assert (inode.size, server.size(inode)) == (100, 1100)
    with volume.operation(1) as tx:
        assert server.commit_size(tx, inode) == 1100
    assert inode.size == 1100


def test_9_1_d_an_explicit_size_wins() -> None:
    """SETATTR resets both sizes, whether it makes the file shorter or longer than it is on disk."""
    volume = FakeVolume()
    inode = volume.inode()
    volume.server.end(inode, 0, 1000, 1000, OpFlags.WRITE, MapFlags.SIZE_CHANGED)
    volume.server.size_set(inode.ino)
    inode.size = 500
    with volume.operation(1) as tx:
        assert volume.server.commit_size(tx, inode) == 500


def test_open_pushes_as_much_as_it_is_told_to() -> None:
    for window, want in ((None, 4), (2, 2), (0, 0)):
        volume = FakeVolume()
        server = Ext4Iomap(volume.files, volume.operation, groups=1, open_window=window)
        inode = volume.inode()
        volume.files.maps[inode.ino] = {1: (10, True), 3: (20, True)}
        got: list[Mapping] = []
        assert server.open_push(inode, lambda mappings, got=got: not got.extend(mappings)) is bool(want)  # type: ignore[misc]
        assert len(got) == want + (window is None)


def test_9_2_length_zero_is_never_sent() -> None:
    with pytest.raises(AssertionError):
        protocol.dev_inval(1, 0, 0)
    with pytest.raises(AssertionError):
        protocol.dev_inval(1, 4096, 0)


def test_9_4_allocation_overwrites_a_cached_hole(world: World) -> None:
    world.inode.size = 8 * B
    assert world.read(0, B) == bytes(B)
    assert [m.type for m in world.file.cache.mappings(IoDir.READ) or []] == [HOLE]
    world.volume.server.begin(world.inode, 2 * B, B, OpFlags.WRITE, world.file.push)
    assert world.file.cache.lookup(IoDir.READ, 2 * B).mapping == Mapping(
        2 * B, B, world.blocks[2][0] * B, UNWRITTEN, 0, 1
    )
    assert world.file.cache.mappings(IoDir.WRITE) is None, "never a hole in the write fork"


def test_9_6_reports_start_at_the_block_asked_for() -> None:
    volume = FakeVolume()
    inode = volume.inode()
    volume.files.maps[inode.ino] = {b: (100 + b, True) for b in range(8)}
    read, write = volume.server.begin(inode, 5 * B + 9, B, OpFlags.REPORT)
    assert read == Mapping(5 * B, 3 * B, 105 * B, MAPPED, 0, 1)
    assert write.offset == 5 * B


def test_9_7_behind_the_end_there_is_one_hole_to_the_limit() -> None:
    volume = FakeVolume()
    inode = volume.inode()
    inode.size = 10
    read, _ = volume.server.begin(inode, 7 * B, MAX - 7 * B, OpFlags.REPORT)
    assert read == Mapping(7 * B, MAX - 7 * B, NULL_ADDR, HOLE)
    client = IomapClient(volume, volume.server)
    file = client.file(inode)
    inode.size = 5 * B
    client.opened(file)
    assert (file.cache.mappings(IoDir.READ) or [])[-1].end == MAX, "the tail hole is in the cache as well"


def test_9_15_retry_is_said_in_the_read_slot_only() -> None:
    volume = FakeVolume()
    inode = volume.inode()
    for op in (0, OpFlags.WRITE, OpFlags.ZERO, OpFlags.WRITEBACK):
        read, write = volume.server.begin(inode, 0, B, op, lambda mappings: True)
        assert (read.type, write.type) == (MapType.RETRY_CACHE, MapType.PURE_OVERWRITE)


def test_changes_from_this_side_reach_everybody() -> None:
    """Recipe 7: INVAL for all that changes without having been asked for; to the end where that is meant."""
    volume = FakeVolume()
    inode = volume.inode()
    heard: list[tuple[int, int, int]] = []
    volume.server.subscribe(lambda *what: heard.append(what))
    client = IomapClient(volume, volume.server)
    file = client.file(inode)
    client.write(file, 0, b"x" * (3 * B))
    heard.clear()
    volume.truncate(client, file, B + 100)
    assert heard == [(inode.ino, B, INVAL_TO_EOF)]


def test_errors_are_of_our_family(world: World) -> None:
    for call in (
        lambda: world.volume.server.begin(world.inode, -1, 1, 0),
        lambda: world.volume.server.begin(world.inode, 1 << 70, 1, 0),
        lambda: world.volume.server.complete(world.inode, -5, 1, 0),
        lambda: world.volume.server.complete(world.inode, 1 << 70, 1, 0),
    ):
        with pytest.raises(FsError):
            call()
    assert world.volume.files.run_at(world.inode, 0).state is RunState.HOLE
