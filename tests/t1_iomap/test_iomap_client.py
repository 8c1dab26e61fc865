"""The in-process client over a block map in memory and a device in memory."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4fs.device.memory import MemoryDevice
from py4fs.errors import Busy, Corrupt, DeviceError, FileTooBig, Invalid, NoSpace
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Reserve
from py4fs.iomap.client import IomapClient, IomapFile, WritePlan, run_read, run_write
from py4fs.iomap.records import NULL_ADDR, IoDir, Mapping, MapType
from tests.support.core import need_interpreted
from tests.t1_iomap.iomap_fakes import MAX_BLOCKS, B, FakeVolume

MAX = (MAX_BLOCKS - 1) * B


class CountingDevice(MemoryDevice):
    """Notes every access; fails writes when told to."""

    def __init__(self, content: Any) -> None:
        super().__init__(content)
        self.log: list[tuple[str, int, int]] = []
        self.broken = False

    def read(self, offset: int, length: int) -> bytes:
        self.log.append(("read", offset, length))
        return super().read(offset, length)

    def write(self, offset: int, data: Any) -> None:
        self.log.append(("write", offset, len(data)))
        if self.broken:
            raise DeviceError("broken on purpose")
        super().write(offset, data)


class World:
    """A volume, a client and one file."""

    def __init__(self, **volume: Any) -> None:
        self.device = CountingDevice(b"\xee" * (512 * B))
        self.volume = FakeVolume(device=self.device, **volume)
        self.client = IomapClient(self.volume, self.volume.server)
        self.inode = self.volume.inode()
        self.file = self.client.file(self.inode)

    @property
    def blocks(self) -> dict[int, tuple[int, bool]]:
        return self.volume.files.maps.setdefault(self.inode.ino, {})

    def write(self, pos: int, data: bytes) -> int:
        return self.client.write(self.file, pos, data)

    def append(self, data: bytes) -> bool:
        return self.client.write_short(self.file, self.inode.size, memoryview(data), Reserve.ROOT, stamp=True)

    def overwrite(self, pos: int, data: bytes) -> bool:
        return self.client.write_short(self.file, pos, memoryview(data), Reserve.ROOT, stamp=False)

    def read(self, pos: int = 0, count: int = 1 << 30) -> bytes:
        return self.client.read(self.file, pos, count)

    def finish(self, plan: WritePlan) -> bool:
        with self.volume.operation(self.client.finish_credits(plan)) as tx:
            return self.client.finish_write(plan, tx)

    def truncate(self, size: int) -> None:
        self.volume.truncate(self.client, self.file, size)


@pytest.fixture
def world() -> World:
    return World()


# --- plain reads and writes ------------------------------------------------------------------------------------


def test_write_then_read(world: World) -> None:
    assert world.write(0, b"hello") == 5
    assert world.inode.size == 5
    assert world.read() == b"hello"
    assert world.inode.mtime == world.inode.ctime == 1_000_000_007
    assert world.blocks[0][1], "converted"


def test_no_stale_bytes_around_small_writes(world: World) -> None:
    world.write(5 * B + 10, b"x")
    world.write(5 * B + 300, b"y")
    world.write(9 * B + 7, b"z")
    want = bytearray(9 * B + 8)
    want[5 * B + 10], want[5 * B + 300], want[9 * B + 7] = b"xyz"
    assert world.read() == want
    assert sorted(world.blocks) == [5, 9]
    # the rest of a block past the end is zero on the device too
    at = world.blocks[9][0] * B
    assert world.device.data[at : at + B] == bytes(7) + b"z" + bytes(B - 8)


def test_gap_in_the_block_of_the_old_end_becomes_zeros(world: World) -> None:
    world.write(0, b"abc")
    # as another writer may have left it
    at = world.blocks[0][0] * B
    world.device.data[at + 3 : at + B] = b"\xaa" * (B - 3)
    world.write(500, b"def")
    assert world.read() == b"abc" + bytes(497) + b"def"
    world.device.data[at + 503 : at + B] = b"\xaa" * (B - 503)
    world.write(3 * B, b"end")
    assert world.read() == b"abc" + bytes(497) + b"def" + bytes(3 * B - 503) + b"end"


def test_partial_write_into_written_block_writes_exactly_the_bytes(world: World) -> None:
    world.write(0, bytes(4 * B))
    world.device.log.clear()
    world.write(B + 5, b"12345")
    assert world.device.log == [("write", world.blocks[0][0] * B + B + 5, 5)]


def test_contiguous_write_is_one_device_write_with_padding(world: World) -> None:
    world.device.log.clear()
    world.write(100, b"d" * (3 * B))
    assert world.device.log == [("write", world.blocks[0][0] * B, 4 * B)]


def test_read_is_one_device_read_per_run(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    world.write(8 * B, b"b" * B)
    world.device.log.clear()
    assert world.read() == b"a" * (4 * B) + bytes(4 * B) + b"b" * B
    first, second = world.blocks[0][0] * B, world.blocks[8][0] * B
    assert world.device.log == [("read", first, 4 * B), ("read", second, B)]
    world.device.log.clear()
    assert world.read(5 * B, B) == bytes(B)
    assert world.device.log == []


def test_unwritten_reads_as_zeros(world: World) -> None:
    world.volume.server.begin(world.inode, 0, 4 * B, 1)
    world.inode.size = 4 * B
    assert world.read() == bytes(4 * B)
    world.write(B, b"x")
    assert world.read() == bytes(B) + b"x" + bytes(3 * B - 1)
    assert [written for _, written in world.blocks.values()] == [False, True, False, False]


def test_reading_at_and_past_the_end(world: World) -> None:
    assert world.read() == b""
    world.write(0, b"abc")
    assert world.read(3, 10) == b""
    assert world.read(1 << 60, 10) == b""
    assert world.read(2, 10) == b"c"
    with pytest.raises(Invalid):
        world.read(-1, 10)
    assert len(world.volume.pins) == 0


def test_write_limits(world: World) -> None:
    for pos, length in ((-1, 1), (0, 0)):
        with pytest.raises(Invalid):
            world.client.plan_write(world.file, pos, length)
    with pytest.raises(FileTooBig):
        world.write(MAX, b"x")
    assert world.write(MAX - 2, b"xyz") == 2
    assert world.inode.size == MAX
    assert len(world.volume.pins) == 0


def test_short_write_for_want_of_space(world: World) -> None:
    world.volume.files.free = set()
    world.volume.files.maps[world.inode.ino] = {0: (10, True)}
    assert world.write(0, b"q" * (3 * B)) == B
    with pytest.raises(NoSpace):
        world.write(B, b"q" * (3 * B))
    assert world.inode.size == B
    assert world.read() == b"q" * B
    world.volume.files.free = {41}
    assert world.write(B, b"r" * (3 * B)) == B
    assert world.read() == b"q" * B + b"r" * B


def test_short_append_is_one_operation_and_one_device_write(world: World) -> None:
    world.device.log.clear()
    assert world.append(b"a" * B)
    assert world.append(b"b" * (B + 7))
    assert world.device.log == [("write", B, B), ("write", 2 * B, 2 * B)]
    assert [written for _, written in world.blocks.values()] == [True] * 3
    assert world.inode.size == 2 * B + 7
    assert world.inode.mtime == world.inode.ctime == 1_000_000_007
    assert world.read() == b"a" * B + b"b" * (B + 7)
    assert world.file.counters.upcalls == 0, "the mappings are known"
    world.truncate(4 * B)
    assert world.read() == b"a" * B + b"b" * (B + 7) + bytes(B - 7 + B), "nothing else was behind its end"


def test_appends_that_have_to_be_planned(world: World) -> None:
    assert not world.append(bytes((64 << 10) + 1)), "too long to keep others waiting"
    assert not world.client.write_short(world.file, B, memoryview(b"x"), Reserve.ROOT, stamp=True), "leaves a hole"
    plan = world.client.plan_write(world.file, 0, B)
    assert not world.append(b"x"), "another one is in flight"
    run_write(plan, world.device, bytes(B))
    assert world.finish(plan)
    world.volume.server.begin(world.inode, 2 * B, B, 1)
    assert not world.append(bytes(2 * B)), "there is a block already"
    assert world.append(b"x")
    assert not world.append(b"y"), "begins inside a block"
    assert world.read() == bytes(B) + b"x"


def test_short_reads_and_overwrites_make_no_plan(world: World) -> None:
    world.write(0, b"a" * 3 * B)
    pins = len(world.volume.pins)
    view = memoryview(bytearray(B))
    assert world.client.read_short(world.file, B + 5, view, world.inode.size) == B
    assert view.tobytes() == b"a" * B
    assert world.client.read_short(world.file, 3 * B - 2, view, world.inode.size) == 2, "up to the end of the file"
    assert world.overwrite(B - 1, b"bcd")
    assert world.read() == b"a" * (B - 1) + b"bcd" + b"a" * (2 * B - 2)
    assert len(world.volume.pins) == pins


def test_short_reads_that_have_to_be_planned(world: World) -> None:
    def short(pos: int, count: int) -> int:
        return world.client.read_short(world.file, pos, memoryview(bytearray(count)), world.inode.size)

    world.write(0, bytes(B))
    world.write(2 * B, bytes(B))
    assert short(0, B) == B
    assert short(0, B + 1) == -1, "goes on in a hole"
    assert short(B, B) == -1, "is a hole"
    assert short(3 * B, 1) == -1, "is behind the end"
    world.client.shrink(0)
    assert short(0, B) == -1, "is not known"


def test_short_overwrites_that_have_to_be_planned(world: World) -> None:
    world.write(0, bytes(B))
    world.write(2 * B, bytes(B))
    assert not world.overwrite(0, bytes(B + 1)), "goes on in a hole"
    assert not world.overwrite(3 * B - 1, b"xy"), "goes on behind the end"
    plan = world.client.plan_write(world.file, B, B)
    assert not world.overwrite(0, b"x"), "another one is in flight"
    run_write(plan, world.device, bytes(B))
    assert world.finish(plan)
    assert not world.client.write_short(world.file, 0, memoryview(b"x"), Reserve.ROOT, stamp=True), "has a time to set"
    assert world.read() == bytes(3 * B)
    world.device.broken = True
    with pytest.raises(DeviceError):
        world.overwrite(0, b"x")


def test_append_without_enough_room_or_with_a_broken_device_leaves_nothing(world: World) -> None:
    world.write(0, bytes(B))
    free = set(world.volume.files.free)
    world.volume.files.free = set(sorted(free)[:2])
    assert not world.append(bytes(3 * B))
    assert len(world.volume.files.free) == 2
    world.device.broken = True
    with pytest.raises(DeviceError):
        world.append(bytes(B))
    assert len(world.volume.files.free) == 2
    assert (world.inode.size, list(world.blocks)) == (B, [0])
    world.device.broken = False
    world.truncate(3 * B)
    assert world.read() == bytes(3 * B)


def test_large_fragmented_write_goes_in_several_plans() -> None:
    world = World(gap=lambda: 1)
    data = bytes(range(256)) * 4 * 200
    assert world.write(13, data) == len(data)
    assert world.read(13) == data
    assert world.file.counters.ioends > 64


def test_failed_device_write_leaves_nothing_past_the_end(world: World) -> None:
    world.write(0, b"abc")
    free = set(world.volume.files.free)
    world.device.broken = True
    with pytest.raises(DeviceError):
        world.write(5 * B, b"x" * B)
    world.device.broken = False
    assert world.inode.size == 3
    assert sorted(world.blocks) == [0]
    world.volume.reclaim()
    assert world.volume.files.free == free
    assert len(world.volume.pins) == 0 and world.file.writes == []
    world.write(5 * B, b"y")
    assert world.read(5 * B) == b"y"


def test_failed_conversion_undoes_the_operation(world: World) -> None:
    world.write(0, b"abc")
    world.volume.files.fail_convert = True
    with pytest.raises(NoSpace):
        world.write(2 * B, b"x")
    assert world.inode.size == 3
    assert len(world.volume.pins) == 0 and world.file.writes == []
    world.volume.files.fail_convert = False
    world.write(2 * B + 1, b"y")
    assert world.read() == b"abc" + bytes(2 * B - 2) + b"y"


def test_operation_undone_after_the_finish(world: World) -> None:
    """The cache may not keep what only an undone operation said."""
    plan = world.client.plan_write(world.file, 0, B)
    run_write(plan, world.device, b"n" * B)
    with pytest.raises(RuntimeError), world.volume.operation(20) as tx:
        assert world.client.finish_write(plan, tx)
        raise RuntimeError("later step of the same operation")
    assert world.inode.size == 0
    assert world.blocks[0][1] is False
    world.inode.size = B
    assert world.read() == bytes(B)


def test_pure_overwrite_without_stamp_needs_no_operation(world: World) -> None:
    world.write(0, bytes(B))
    world.volume.transactions.refuse = lambda: DeviceError("no operation expected")
    assert world.client.write(world.file, 5, b"abc", stamp=False) == 3
    with pytest.raises(DeviceError):
        world.client.write(world.file, 5, b"abc", stamp=True)
    assert len(world.volume.pins) == 0 and world.file.writes == []


# --- cache and counters ----------------------------------------------------------------------------------------


def test_warm_io_makes_no_upcall(world: World) -> None:
    for i in range(20):
        world.write(i * 3 * B, bytes([i]) * 2 * B)
    world.read()
    before = world.client.counters()
    for i in range(19, -1, -1):
        assert world.read(i * 3 * B, 3 * B)[: 2 * B] == bytes([i]) * 2 * B
        world.write(i * 3 * B + 5, b"again")
    after = world.client.counters()
    assert (after.upcalls, after.misses, after.upserts) == (before.upcalls, before.misses, before.upserts)
    assert after.hits > before.hits
    assert after.ioends == before.ioends


def test_sequential_append_makes_one_upcall_per_allocation(world: World) -> None:
    world.write(0, bytes(B))
    before = world.client.counters()
    for i in range(1, 11):
        world.write(i * B, bytes(B))
    after = world.client.counters()
    assert after.upcalls - before.upcalls == 10
    assert after.retries - before.retries == 10
    assert world.file.cache.mappings(IoDir.READ) == [Mapping(0, 11 * B, world.blocks[0][0] * B, MapType.MAPPED, 0, 1)]


def test_open_pushes_mappings(world: World) -> None:
    world.write(0, bytes(5 * B))
    world.client.forget(world.inode.ino)
    file = world.client.file(world.inode)
    assert file is not world.file
    world.client.opened(file)
    assert world.client.read(file, 0, 5 * B) == bytes(5 * B)
    assert (file.counters.misses, file.counters.upcalls, file.counters.hits) == (0, 0, 1)
    assert file.counters.upserts == 2
    # counts of forgotten files are not lost
    assert world.client.counters().upcalls == 1


def test_write_fork_stays_unused(world: World) -> None:
    world.write(0, bytes(B))
    world.write(0, bytes(B))
    assert world.file.cache.mappings(IoDir.WRITE) is None


def test_tiny_cache_limit_still_makes_progress() -> None:
    world = World(gap=lambda: 1)
    client = IomapClient(world.volume, world.volume.server, cache_maxbytes=256)
    file = client.file(world.inode)
    data = bytes(range(256)) * 4 * 40
    client.write(file, 0, data)
    for pos in (39 * B, 0, 20 * B):
        assert client.read(file, pos, B) == data[:B]
    assert client.read(file, 0, len(data)) == data


def test_budget_over_all_files() -> None:
    world = World(gap=lambda: 1, window=8)
    client = IomapClient(world.volume, world.volume.server, budget=32 * 40)
    inodes = [world.volume.inode() for _ in range(10)]
    for n, inode in enumerate(inodes):
        client.write(client.file(inode), 0, bytes([n]) * 20 * B)
    assert sum(len(client.file(i).cache) for i in inodes) <= 40 + 64
    for n, inode in enumerate(inodes):
        assert client.read(client.file(inode), 0, 20 * B) == bytes([n]) * 20 * B
    assert client._cached == sum(client.file(i).cache.nbytes for i in inodes)


def test_a_server_that_always_says_retry_is_found_out(world: World) -> None:
    need_interpreted()
    real = world.volume.server.begin
    retry = Mapping(0, B, NULL_ADDR, MapType.RETRY_CACHE)
    pure = Mapping(0, B, NULL_ADDR, MapType.PURE_OVERWRITE)
    world.volume.server.begin = lambda *a, **k: (retry, pure)  # type: ignore[method-assign]
    world.inode.size = B
    with pytest.raises(Corrupt):
        world.read()
    world.volume.server.begin = real  # type: ignore[method-assign]
    assert world.read() == bytes(B)


@pytest.mark.parametrize(
    "reply",
    [
        (Mapping(B, B, NULL_ADDR, MapType.HOLE), Mapping(0, B, NULL_ADDR, MapType.PURE_OVERWRITE)),
        (Mapping(0, B, NULL_ADDR, MapType.HOLE), Mapping(B, B, NULL_ADDR, MapType.PURE_OVERWRITE)),
        (Mapping(0, B, NULL_ADDR, MapType.MAPPED), Mapping(0, B, NULL_ADDR, MapType.PURE_OVERWRITE)),
    ],
)
def test_replies_are_validated(world: World, reply: tuple[Mapping, Mapping]) -> None:
    need_interpreted()
    world.volume.server.begin = lambda *a, **k: reply  # type: ignore[method-assign]
    world.inode.size = B
    with pytest.raises(Corrupt):
        world.read()


# --- plans against changes -------------------------------------------------------------------------------------


def test_truncate_between_plan_and_finish_of_a_read_is_caught(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    plan = world.client.plan_read(world.file, 0, 4 * B, world.inode.size)
    world.truncate(B)
    run_read(plan, world.device)
    assert not world.client.finish_read(plan)
    assert world.read() == b"a" * B


def test_truncate_of_uncached_range_is_caught_too(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    plan = world.client.plan_read(world.file, 0, 4 * B, world.inode.size)
    world.file.cache.clear()
    world.truncate(B)
    assert not world.client.finish_read(plan)


def test_truncate_between_plan_and_finish_of_a_write_is_caught(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    plan = world.client.plan_write(world.file, 2 * B, B)
    run_write(plan, world.device, b"b" * B)
    world.truncate(B)
    assert not world.finish(plan)
    assert world.inode.size == B
    world.write(2 * B, b"b" * B)
    assert world.read() == b"a" * B + bytes(B) + b"b" * B


def test_truncate_inside_the_block_of_a_write_in_flight(world: World) -> None:
    """No block is freed and the mapping stays the same, but the write's bytes were zeroed."""
    world.write(0, b"a" * B)
    plan = world.client.plan_write(world.file, 500, 100)
    run_write(plan, world.device, b"b" * 100)
    world.truncate(100)
    assert not world.finish(plan)
    world.write(500, b"b" * 100)
    assert world.read() == b"a" * 100 + bytes(400) + b"b" * 100


def test_zeroing_voids_a_write_in_flight(world: World) -> None:
    world.write(0, b"a" * B)
    plan = world.client.plan_write(world.file, 10, 100)
    run_write(plan, world.device, b"b" * 100)
    world.client.zero_range(world.file, 50, 10)
    assert not world.finish(plan)
    plan = world.client.plan_write(world.file, 10, 100)
    world.client.zero_range(world.file, 2 * B, B)
    run_write(plan, world.device, b"b" * 100)
    assert world.finish(plan), "nothing was on the device there"


def test_freed_blocks_are_held_back_for_plans(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    plan = world.client.plan_read(world.file, 0, 4 * B, world.inode.size)
    mine = {p for p, _ in world.blocks.values()}
    world.truncate(0)
    assert not mine & world.volume.files.free
    assert run_read(plan, world.device) == b"a" * (4 * B)
    assert not world.client.finish_read(plan)
    assert mine <= world.volume.files.free


def test_growth_does_not_void_a_read(world: World) -> None:
    world.write(0, b"a" * (4 * B))
    plan = world.client.plan_read(world.file, 0, 4 * B, world.inode.size)
    world.write(4 * B, b"b" * B)
    assert plan.cookie != world.file.cache.seq
    assert world.client.finish_read(plan)


def test_two_small_writes_in_one_new_block(world: World) -> None:
    """Both would zero the rest of the block: the second has to wait for the first, in any order of I/O."""
    first = world.client.plan_write(world.file, 0, 100)
    second = world.client.plan_write(world.file, 200, 100)
    assert not first.blocked and second.blocked and second.runs == []
    run_write(second, world.device, b"2" * 100)
    run_write(first, world.device, b"1" * 100)
    assert not world.finish(second)
    assert world.finish(first)
    world.write(200, b"2" * 100)
    assert world.read() == b"1" * 100 + bytes(100) + b"2" * 100


def test_whole_block_write_waits_for_a_small_one_in_it(world: World) -> None:
    small = world.client.plan_write(world.file, B, 100)
    assert world.client.plan_write(world.file, 0, 3 * B).blocked
    world.client.abort_write(small)
    assert not world.client.plan_write(world.file, 0, 3 * B).blocked


def test_gap_zeroing_waits_for_a_write_in_the_gap(world: World) -> None:
    world.write(0, b"abc")
    inside = world.client.plan_write(world.file, 3, 10)
    assert not inside.zeroes
    beyond = world.client.plan_write(world.file, 100, 10)
    assert beyond.zeroes and beyond.blocked
    run_write(inside, world.device, b"i" * 10)
    assert world.finish(inside)
    world.client.cancel(beyond)
    world.write(100, b"b" * 10)
    assert world.read() == b"abc" + b"i" * 10 + bytes(87) + b"b" * 10


def test_write_in_one_go_does_not_wait_forever(world: World) -> None:
    plan = world.client.plan_write(world.file, 0, 100)
    with pytest.raises(Busy):
        world.write(200, b"2" * 100)
    run_write(plan, world.device, b"1" * 100)
    assert world.finish(plan)
    assert world.write(200, b"2" * 100) == 100
    assert world.read() == b"1" * 100 + bytes(100) + b"2" * 100


def test_writes_to_written_blocks_do_not_wait(world: World) -> None:
    world.write(0, bytes(B))
    first = world.client.plan_write(world.file, 0, 100)
    second = world.client.plan_write(world.file, 50, 100)
    assert not first.blocked and not second.blocked
    run_write(first, world.device, b"1" * 100)
    run_write(second, world.device, b"2" * 100)
    assert world.finish(second) and world.finish(first)
    assert world.read(0, 150) == b"1" * 50 + b"2" * 100


def test_forgotten_file_voids_plans(world: World) -> None:
    world.write(0, bytes(B))
    plan = world.client.plan_read(world.file, 0, B, B)
    world.client.forget(world.inode.ino)
    assert not world.client.finish_read(plan)


# --- zeroing, reporting, seeking -------------------------------------------------------------------------------


def test_zero_range_touches_only_written_blocks(world: World) -> None:
    world.write(0, b"a" * (2 * B))
    world.volume.server.begin(world.inode, 4 * B, B, 1)
    world.write(6 * B, b"b" * B)
    world.device.log.clear()
    before = dict(world.blocks)
    assert world.client.zero_range(world.file, B + 1, 1 << 40) == B - 1 + B
    assert world.device.log == [
        ("write", world.blocks[1][0] * B + 1, B - 1),
        ("write", world.blocks[6][0] * B, B),
    ]
    assert world.blocks == before
    assert world.read() == b"a" * (B + 1) + bytes(6 * B - 1)


def test_written_blocks_far_past_the_end_are_damage() -> None:
    """An image may claim terabytes of data behind a file's size: no endless zeroing."""
    world = World()
    blocks = 1 << 20
    run = Run(0, blocks, 1, RunState.MAPPED)
    world.volume.files.window = lambda inode, lblk, limit: [run]  # type: ignore[method-assign]
    world.device.write = lambda offset, data: None  # type: ignore[method-assign]
    with pytest.raises(Corrupt):
        world.client.plan_write(world.file, blocks * B - B, 1)
    with pytest.raises(Corrupt):
        world.client.zero_range(world.file, 0, blocks * B)


def test_report_and_seek(world: World) -> None:
    world.write(2 * B, b"a" * (2 * B))
    world.volume.server.begin(world.inode, 5 * B, B, 1)
    world.truncate(8 * B + 100)
    at, unwritten = world.blocks[2][0] * B, world.blocks[5][0] * B
    want = [
        Mapping(0, 2 * B, NULL_ADDR, MapType.HOLE),
        Mapping(2 * B, 2 * B, at, MapType.MAPPED, 0, 1),
        Mapping(4 * B, B, NULL_ADDR, MapType.HOLE),
        Mapping(5 * B, B, unwritten, MapType.UNWRITTEN, 0, 1),
        Mapping(6 * B, 3 * B, NULL_ADDR, MapType.HOLE),
    ]
    assert list(world.client.report(world.file)) == want
    assert list(world.client.report(world.file, 3 * B + 5, 5 * B + 1)) == [
        Mapping(3 * B, B, at + B, MapType.MAPPED, 0, 1),
        *want[2:4],
    ]
    size = world.inode.size
    assert world.client.seek_data(world.file, 0, size) == 2 * B
    assert world.client.seek_data(world.file, 3 * B + 1, size) == 3 * B + 1
    assert world.client.seek_data(world.file, 4 * B, size) is None
    assert world.client.seek_hole(world.file, 0, size) == 0
    assert world.client.seek_hole(world.file, 2 * B + 5, size) == 4 * B
    world.truncate(3 * B)
    assert world.client.seek_hole(world.file, 2 * B, 3 * B) == 3 * B
    assert list(world.client.report(world.file)) == [want[0], Mapping(2 * B, B, at, MapType.MAPPED, 0, 1)]


def test_report_shows_blocks_past_the_end(world: World) -> None:
    world.write(0, b"a")
    world.volume.server.begin(world.inode, 3 * B, B, 1)
    kinds = [m.type for m in world.client.report(world.file)]
    assert kinds == [MapType.MAPPED, MapType.HOLE, MapType.UNWRITTEN]


# --- random I/O against a bytearray ----------------------------------------------------------------------------

SPAN = 12 * B
position = st.one_of(st.integers(0, SPAN), st.integers(0, 12).map(lambda n: n * B))
length = st.one_of(st.integers(1, 3 * B), st.integers(1, 4).map(lambda n: n * B))
step = st.one_of(
    st.tuples(st.just("write"), position, length),
    st.tuples(st.just("append"), st.just(0), length),
    st.tuples(st.just("read"), position, length),
    st.tuples(st.just("truncate"), position, st.just(0)),
    st.tuples(st.just("plan_write"), position, length),
    st.tuples(st.just("plan_read"), position, length),
    st.tuples(st.just("run"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("finish"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("prealloc"), position, length),
    st.tuples(st.just("evict"), st.just(0), st.just(0)),
)


class Model:
    """A bytearray, and plans in flight whose data counts from their finish on."""

    def __init__(self, gaps: list[int], limit: int | None) -> None:
        source = iter(gaps * 1000)
        self.world = World(gap=lambda: next(source), window=5)
        if limit:
            self.world.client = IomapClient(self.world.volume, self.world.volume.server, cache_maxbytes=limit)
            self.world.file = self.world.client.file(self.world.inode)
        self.data = bytearray()
        self.plans: list[list[Any]] = []
        self.stamp = 0

    def fill(self, count: int) -> bytes:
        self.stamp = self.stamp % 250 + 1
        return bytes([self.stamp]) * count

    def put(self, pos: int, data: bytes) -> None:
        if len(self.data) < pos + len(data):
            self.data.extend(bytes(pos + len(data) - len(self.data)))
        self.data[pos : pos + len(data)] = data

    def act(self, what: str, a: int, b: int) -> None:
        world = self.world
        if what == "write":
            if self.overlaps(a, b):
                return  # order of overlapping writes is the writers' business
            data = self.fill(b)
            try:
                assert world.write(a, data) == b
            except Busy:
                assert self.writes
                return
            self.put(a, data)
        elif what == "append":
            data = self.fill(b)
            if world.append(data):
                self.put(len(self.data), data)
        elif what == "read":
            got = world.read(a, b)
            assert len(got) == len(self.data[a : a + b])
            self.check_read(a, got, [bytes(self.data)])
        elif what == "truncate":
            world.truncate(a)
            del self.data[a:]
            self.data.extend(bytes(a - len(self.data)))
        elif what == "plan_write":
            if not self.overlaps(a, b):
                plan = world.client.plan_write(world.file, a, b)
                self.plans.append([plan, self.fill(plan.count), plan.blocked])
        elif what == "plan_read":
            self.plans.append([world.client.plan_read(world.file, a, b, world.inode.size), [], False])
        elif what in ("run", "finish") and self.plans:
            self.advance(a % len(self.plans), finish=what == "finish")
        elif what == "prealloc":
            world.volume.server.begin(world.inode, a, b, 1)
            # as allocation from elsewhere would be announced
            world.volume.server.invalidate(world.inode.ino, a, b)
        elif what == "evict":
            world.file.cache.clear()

    def overlaps(self, pos: int, count: int) -> bool:
        return any(p.pos < pos + count and pos < p.pos + len(d) for p, d, _ in self.writes)

    def advance(self, index: int, *, finish: bool) -> None:
        plan, data, done = self.plans[index]
        world = self.world
        if isinstance(plan, WritePlan):
            if not done:
                run_write(plan, world.device, data)
                self.plans[index][2] = True
            if finish:
                self.plans.pop(index)
                if world.finish(plan):
                    self.put(plan.pos, data)
                else:
                    # nothing of it counts: the owner would start again; here it gives up
                    self.settle(plan.pos, len(data))
        else:
            got = run_read(plan, world.device)
            if finish:
                self.plans.pop(index)
                if world.client.finish_read(plan):
                    assert len(got) == plan.count
                    self.check_read(plan.pos, got, data)

    def settle(self, pos: int, count: int) -> None:
        """After a void write its bytes may or may not be there, where the file reaches: take what is there."""
        if pos < len(self.data):
            count = min(count, len(self.data) - pos)
            self.data[pos : pos + count] = self.world.read(pos, count)

    def check_read(self, pos: int, got: bytes, seen: list[bytes]) -> None:
        """Every byte is one that the file had while the plan was in flight, or one that is being written."""
        for i, byte in enumerate(got):
            at = pos + i
            if any(old[at] == byte for old in seen):
                continue
            writing = [d[at - p.pos] for p, d, _ in self.writes if p.pos <= at < p.pos + len(d)]
            assert byte in writing, f"byte {at}"

    @property
    def writes(self) -> list[list[Any]]:
        return [entry for entry in self.plans if isinstance(entry[0], WritePlan)]

    def note(self) -> None:
        """After every step: what reads in flight may return."""
        for _, data, _ in self.plans:
            if isinstance(data, list):
                data.append(bytes(self.data))


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(step, max_size=40),
    gaps=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    limit=st.sampled_from([None, 256]),
)
def test_random_io(steps: list[tuple[str, int, int]], gaps: list[int], limit: int | None) -> None:
    model = Model(gaps, limit)
    for what, a, b in steps:
        model.act(what, a, b)
        model.note()
        assert model.world.inode.size == len(model.data)
    while model.plans:
        model.advance(0, finish=True)
        model.note()
    world = model.world
    assert world.read() == model.data
    assert world.client.read(IomapFile(world.inode, world.file.cache, world.file.devices), 0, SPAN * 2) == model.data
    # and by the tree alone: what is in written blocks, zeros elsewhere, zeros behind the end
    raw = bytearray(-(-len(model.data) // B) * B)
    for lblk, (pblk, written) in world.blocks.items():
        if written:
            assert lblk * B < len(model.data), "written blocks past the end"
            raw[lblk * B : (lblk + 1) * B] = world.device.data[pblk * B : (pblk + 1) * B]
    assert raw[: len(model.data)] == model.data
    assert len(world.volume.pins) == 0 and world.file.writes == []
    used = [p for p, _ in world.blocks.values()]
    assert len(used) == len(set(used)) and not set(used) & world.volume.files.free
