"""The mapping cache against IOMAP.md section 7, and against two models that share no code with it."""

import errno
import time
import tracemalloc
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from py4fs.iomap.cache import CACHE_MAXBYTES_MAX, CHUNK, IomapCache, LookupResult
from py4fs.iomap.records import INVAL_TO_EOF, NULL_ADDR, IoDir, Mapping, MapType

R, W = IoDir.READ, IoDir.WRITE
B = 4096
MAX = 1 << 44


def mapped(offset: int, length: int, addr: int, kind: MapType = MapType.MAPPED) -> Mapping:
    return Mapping(offset * B, length * B, addr * B, kind, 0, 1)


def hole(offset: int, length: int) -> Mapping:
    return Mapping(offset * B, length * B, NULL_ADDR, MapType.HOLE, 0, 0)


def pure(offset: int, length: int) -> Mapping:
    return Mapping(offset * B, length * B, NULL_ADDR, MapType.PURE_OVERWRITE, 0, 0)


@pytest.fixture
def cache() -> IomapCache:
    return IomapCache(blocksize=B, max_file_bytes=MAX)


# --- section 7: lookup -----------------------------------------


def test_new_cache(cache: IomapCache) -> None:
    assert cache.seq == 1
    assert cache.mappings(R) == []
    assert cache.mappings(W) is None
    assert cache.lookup(R, 0, 1).result == LookupResult.MISS
    assert cache.lookup(W, 0, 1).result == LookupResult.NOFORK


def test_lookup_gives_whole_record_and_cookie(cache: IomapCache) -> None:
    m = mapped(10, 20, 500)
    cache.upsert(R, m)
    found = cache.lookup(R, 15 * B + 7, 1)
    assert (found.result, found.mapping, found.cookie) == (LookupResult.HIT, m, cache.seq)
    assert cache.lookup(R, 10 * B, 1 << 40).mapping == m
    assert cache.lookup(R, 30 * B - 1, 1).mapping == m


def test_later_record_is_a_miss(cache: IomapCache) -> None:
    cache.upsert(R, mapped(10, 1, 500))
    assert cache.lookup(R, 10 * B - 1, B).result == LookupResult.MISS
    assert cache.lookup(R, 11 * B, B).result == LookupResult.MISS
    assert cache.lookup(R, 11 * B, B).mapping is None


def test_repeated_lookup_sees_changes(cache: IomapCache) -> None:
    cache.upsert(R, mapped(0, 8, 100))
    first = cache.lookup(R, 0, 1)
    cache.remove(R, 4 * B, B)
    again = cache.lookup(R, 0, 1)
    assert again.mapping == mapped(0, 4, 100)
    assert again.cookie != first.cookie
    assert cache.lookup(R, 4 * B, 1).result == LookupResult.MISS
    # a change of the other fork moves the cookie of this one too
    cookie = cache.lookup(R, 0, 1).cookie
    cache.upsert(W, mapped(0, 1, 900))
    assert cache.lookup(R, 0, 1).cookie > cookie


# --- section 7: the write fork -----------------------------------------


def test_pure_overwrite_does_not_start_the_write_fork(cache: IomapCache) -> None:
    cache.upsert(W, pure(0, 4))
    assert cache.mappings(W) is None
    assert cache.seq == 1


def test_first_real_write_mapping_starts_it_for_good(cache: IomapCache) -> None:
    cache.upsert(W, mapped(4, 1, 50))
    assert cache.lookup(W, 0, 1).result == LookupResult.MISS
    cache.upsert(W, pure(0, 4))
    assert cache.lookup(W, 0, 1).mapping == pure(0, 4)
    cache.remove(W, 0, INVAL_TO_EOF)
    assert cache.mappings(W) == []
    assert cache.lookup(W, 0, 1).result == LookupResult.MISS
    cache.clear()
    assert cache.mappings(W) == []


def test_hole_starts_the_write_fork_too(cache: IomapCache) -> None:
    cache.upsert(W, hole(0, 1))
    assert cache.mappings(W) == [hole(0, 1)]


# --- section 7: merge -----------------------------------------


def test_merge_left_right_and_both(cache: IomapCache) -> None:
    cache.upsert(R, mapped(0, 2, 100))
    cache.upsert(R, mapped(2, 2, 102))
    assert cache.mappings(R) == [mapped(0, 4, 100)]
    cache.upsert(R, mapped(8, 2, 108))
    cache.upsert(R, mapped(6, 2, 106))
    assert cache.mappings(R) == [mapped(0, 4, 100), mapped(6, 4, 106)]
    seq = cache.seq
    cache.upsert(R, mapped(4, 2, 104))
    assert cache.mappings(R) == [mapped(0, 10, 100)]
    assert cache.seq == seq + 2


@pytest.mark.parametrize(
    "second",
    [
        mapped(2, 2, 103),
        mapped(2, 2, 102, MapType.UNWRITTEN),
        mapped(2, 2, 102)._replace(dev=2),
        mapped(2, 2, 102)._replace(flags=1),
        mapped(3, 2, 103),
        hole(2, 2),
    ],
)
def test_no_merge(cache: IomapCache, second: Mapping) -> None:
    cache.upsert(R, mapped(0, 2, 100))
    cache.upsert(R, second)
    assert cache.mappings(R) == [mapped(0, 2, 100), second]


@pytest.mark.parametrize("kind", [MapType.HOLE, MapType.INLINE, MapType.DELALLOC])
def test_types_without_device_merge_by_offset(cache: IomapCache, kind: MapType) -> None:
    for at in (0, 2, 1):
        cache.upsert(R, Mapping(at * B, B, NULL_ADDR, kind))
    assert cache.mappings(R) == [Mapping(0, 3 * B, NULL_ADDR, kind)]


def test_pure_overwrite_merges_only_without_address(cache: IomapCache) -> None:
    cache.upsert(W, hole(100, 1))
    cache.upsert(W, pure(0, 1))
    cache.upsert(W, pure(1, 1))
    assert cache.mappings(W) == [pure(0, 2), hole(100, 1)]
    junk = Mapping(2 * B, B, 5 * B, MapType.PURE_OVERWRITE, 0, 1)
    cache.upsert(W, junk)
    cache.upsert(W, junk._replace(offset=3 * B))
    assert cache.mappings(W) == [pure(0, 2), junk, junk._replace(offset=3 * B), hole(100, 1)]


def test_merged_length_is_limited() -> None:
    cache = IomapCache(blocksize=B, max_file_bytes=(1 << 63) - 1)
    half = 1 << 62
    cache.upsert(R, hole(0, half // B))
    cache.upsert(R, hole(half // B, half // B))
    assert cache.mappings(R) == [Mapping(0, 1 << 63, NULL_ADDR, MapType.HOLE)]
    cache.upsert(R, Mapping(half, (1 << 63) - half, NULL_ADDR, MapType.HOLE))
    # three ways: left and right fit, the total does not: left merge only
    cache = IomapCache(blocksize=B, max_file_bytes=(1 << 63) - 1)
    cache.upsert(R, Mapping(0, half, NULL_ADDR, MapType.HOLE))
    cache.upsert(R, Mapping(half + B, half + B, NULL_ADDR, MapType.HOLE))
    seq = cache.seq
    cache.upsert(R, Mapping(half, B, NULL_ADDR, MapType.HOLE))
    assert cache.mappings(R) == [
        Mapping(0, half + B, NULL_ADDR, MapType.HOLE),
        Mapping(half + B, half + B, NULL_ADDR, MapType.HOLE),
    ]
    assert cache.seq == seq + 1


# --- section 7: remove, trim, split -----------------------------------------


def test_trim_and_split_move_addresses(cache: IomapCache) -> None:
    cache.upsert(R, mapped(10, 10, 100))
    cache.remove(R, 12 * B, 2 * B)
    assert cache.mappings(R) == [mapped(10, 2, 100), mapped(14, 6, 104)]
    cache.remove(R, 0, 11 * B)
    assert cache.mappings(R) == [mapped(11, 1, 101), mapped(14, 6, 104)]
    cache.remove(R, 18 * B, 100 * B)
    assert cache.mappings(R) == [mapped(11, 1, 101), mapped(14, 4, 104)]
    cache.remove(R, 5 * B, 20 * B)
    assert cache.mappings(R) == []


def test_split_keeps_null_address(cache: IomapCache) -> None:
    cache.upsert(R, hole(0, 10))
    cache.remove(R, 4 * B, B)
    assert cache.mappings(R) == [hole(0, 4), hole(5, 5)]


def test_sequence_counts_changes(cache: IomapCache) -> None:
    def bumps(act: str, start: int, count: int, addr: int = 0) -> int:
        before = cache.seq
        if act == "put":
            cache.upsert(R, mapped(start, count, addr))
        else:
            cache.remove(R, start * B, count * B)
        return cache.seq - before

    assert bumps("put", 0, 4, 100) == 1
    assert bumps("put", 4, 4, 104) == 1  # merge
    assert bumps("cut", 2, 2) == 2  # middle split
    assert bumps("cut", 0, 1) == 1  # head
    assert bumps("cut", 7, 5) == 1  # tail
    assert bumps("cut", 20, 4) == 0
    assert bumps("cut", 2, 2) == 0  # the gap
    assert bumps("cut", 0, 0) == 0
    assert bumps("cut", 1, 7) == 2  # two records
    assert bumps("put", 0, 8, 100) == 1
    assert bumps("put", 2, 2, 102) == 4  # split +2, three-way merge +2
    assert cache.mappings(R) == [mapped(0, 8, 100)]


def test_sequence_skips_zero(cache: IomapCache) -> None:
    cache.seq = (1 << 64) - 1
    cache.upsert(R, mapped(0, 1, 9))
    assert cache.seq == 1


def test_dropping_a_fork_moves_the_sequence(cache: IomapCache) -> None:
    """The deliberate difference from the kernel, whose lookups outlive an "invalidate all" (9.3)."""
    cache.upsert(R, mapped(0, 8, 100))
    before = cache.lookup(R, 0, 1).cookie
    cache.remove(R, 0, INVAL_TO_EOF)
    assert cache.seq != before
    assert cache.mappings(R) == []
    quiet = cache.seq
    cache.remove(R, 0, INVAL_TO_EOF)
    assert cache.seq == quiet


def test_remove_to_eof_ends_at_the_largest_file() -> None:
    cache = IomapCache(blocksize=B, max_file_bytes=10 * B + 5)
    cache.upsert(R, hole(0, 100))
    cache.remove(R, 2 * B, INVAL_TO_EOF)
    assert cache.mappings(R) == [hole(0, 2), hole(11, 89)]
    cache.remove(R, 0, 11 * B)
    assert cache.mappings(R) == []


def test_invalidate_rounds_to_blocks_in_both_forks(cache: IomapCache) -> None:
    cache.upsert(R, mapped(0, 8, 100))
    cache.upsert(W, mapped(0, 8, 200))
    cache.invalidate(B + 5, B)
    assert cache.mappings(R) == [mapped(0, 1, 100), mapped(3, 5, 103)]
    assert cache.mappings(W) == [mapped(0, 1, 200), mapped(3, 5, 203)]
    cache.invalidate(4 * B + 1, INVAL_TO_EOF)
    assert cache.mappings(R) == [mapped(0, 1, 100), mapped(3, 1, 103)]
    cache.invalidate(0, 0)
    assert len(cache) == 4


@pytest.mark.parametrize(("offset", "length"), [(1, B), (0, B + 1), (-B, B), (0, -B)])
def test_remove_wants_blocks(cache: IomapCache, offset: int, length: int) -> None:
    with pytest.raises(OSError) as info:
        cache.remove(R, offset, length)
    assert info.value.errno == errno.EUCLEAN


@pytest.mark.parametrize(
    ("fork", "mapping"),
    [
        (R, Mapping(0, 0, NULL_ADDR, 0)),
        (R, Mapping(1, B, NULL_ADDR, 0)),
        (R, Mapping(0, B + 1, NULL_ADDR, 0)),
        (R, Mapping(MAX, B, NULL_ADDR, 0)),
        (R, Mapping(0, B, NULL_ADDR, 5)),
        (R, Mapping(0, B, NULL_ADDR, 0, 0x100)),
        (R, Mapping(0, B, NULL_ADDR, 0, 0, 1)),
        (R, Mapping(0, B, 0, 0)),
        (R, Mapping(0, B, B, 2, 0, 0)),
        (R, Mapping(0, B, NULL_ADDR, 2, 0, 1)),
        (R, Mapping(0, B, (1 << 64) - B + 1, 2, 0, 1)),
        (R, Mapping(0, (1 << 64), NULL_ADDR, 0)),
        (R, Mapping(B, (1 << 64) - B, NULL_ADDR, 0)),
        (R, pure(0, 1)),
        (W, Mapping(0, B, 0, MapType.PURE_OVERWRITE)),
        (W, Mapping(0, B, NULL_ADDR, MapType.PURE_OVERWRITE, 0, 1)),
        (R, Mapping(0, B, NULL_ADDR, MapType.RETRY_CACHE)),
        (W, Mapping(0, B, NULL_ADDR, MapType.RETRY_CACHE)),
        (R, Mapping(-B, B, B, 2, 0, 1)),
        (R, Mapping(0, B, -B, 2, 0, 1)),
        (R, Mapping(0, B, B, 2, 0, 1 << 32)),
    ],
)
def test_upsert_refuses(cache: IomapCache, fork: IoDir, mapping: Mapping) -> None:
    with pytest.raises(OSError) as info:
        cache.upsert(fork, mapping)
    assert info.value.errno == errno.EUCLEAN
    assert cache.seq == 1
    assert cache.mappings(W) is None


def test_upsert_nocache_leaves_the_fork_alone(cache: IomapCache) -> None:
    cache.upsert(R, mapped(0, 1, 7))
    for m in (Mapping(0, B, NULL_ADDR, MapType.NOCACHE), Mapping(0, 0, 0, MapType.NOCACHE)):
        cache.upsert(R, m)
        cache.upsert(W, m)
    assert cache.mappings(R) == [mapped(0, 1, 7)]
    assert cache.mappings(W) is None


def test_address_needs_no_alignment(cache: IomapCache) -> None:
    cache.upsert(R, Mapping(0, B, 513, MapType.MAPPED, 0, 1))
    assert cache.lookup(R, 0, 1).result == LookupResult.HIT


# --- section 7: size limit -----------------------------------------


def test_limit_purges_the_fork() -> None:
    cache = IomapCache(blocksize=B, max_file_bytes=MAX, cache_maxbytes=262144)
    for i in range(8193):
        cache.upsert(R, mapped(i, 1, 3 * i))
    assert len(cache) == 8193
    seq = cache.seq
    cache.upsert(R, mapped(8193, 1, 3 * 8193))
    assert cache.mappings(R) == [mapped(8193, 1, 3 * 8193)]
    assert cache.seq == seq + 2


def test_limit_is_per_fork_and_clamped() -> None:
    cache = IomapCache(blocksize=B, max_file_bytes=MAX, cache_maxbytes=1)
    for i in range(9):
        cache.upsert(R, mapped(i, 1, 3 * i))
        cache.upsert(W, mapped(i, 1, 3 * i))
    assert len(cache) == 18
    cache.upsert(W, mapped(100, 1, 1))
    assert len(cache) == 10
    assert IomapCache(B, MAX, cache_maxbytes=1 << 40).cache_maxbytes == CACHE_MAXBYTES_MAX
    assert IomapCache(B, MAX, cache_maxbytes=0).cache_maxbytes == 262144


# --- models -----------------------------------------


@dataclass
class ListModel:
    """Section 7 done naively: one list per fork, records as lists, everything rebuilt for every change."""

    max_file: int
    limit: int | None
    forks: list[list[Mapping] | None] = field(default_factory=lambda: [[], None])
    seq: int = 1

    def remove(self, fork: int, start: int, length: int) -> None:
        old = self.forks[fork]
        if not old or not length:
            return
        if start == 0 and length >= self.max_file:
            self.forks[fork] = []
            self.seq += 1
            return
        end = -(-self.max_file // B) * B if length == INVAL_TO_EOF else start + length
        new: list[Mapping] = []
        for m in old:
            device = m.type in (2, 3)
            parts = []
            if m.offset < start:
                parts.append(m._replace(length=min(m.length, start - m.offset)))
            if m.offset + m.length > end:
                skip = max(0, end - m.offset)
                addr = m.addr + skip if device else m.addr
                parts.append(m._replace(offset=m.offset + skip, length=m.length - skip, addr=addr))
            if m in parts:
                parts = [m]
            elif parts:
                self.seq += len(parts)
            else:
                self.seq += 1
            new.extend(parts)
        self.forks[fork] = new

    def upsert(self, fork: int, m: Mapping) -> None:
        if self.forks[fork] is None:
            if m.type == MapType.PURE_OVERWRITE:
                return
            self.forks[fork] = []
        self.remove(fork, m.offset, m.length)
        records = self.forks[fork]
        assert records is not None
        if self.limit is not None and len(records) * 32 > self.limit:
            records.clear()
            self.seq += 1
        left = [x for x in records if self.joins(x, m)]
        right = [x for x in records if self.joins(m, x)]
        self.seq += 2 if left and right else 1
        for x in left + right:
            records.remove(x)
        group = [*left, m, *right]
        records.append(group[0]._replace(length=sum(x.length for x in group)))
        records.sort()

    @staticmethod
    def joins(a: Mapping, b: Mapping) -> bool:
        if (a.type, a.flags, a.dev) != (b.type, b.flags, b.dev) or a.offset + a.length != b.offset:
            return False
        return a.addr + a.length == b.addr if a.type in (2, 3) else a.addr == b.addr == NULL_ADDR


class BlockModel:
    """What the read fork says about every single block; records are the longest runs."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int, int, int, int]] = {}

    def upsert(self, m: Mapping) -> None:
        for i in range(m.length // B):
            addr = m.addr + i * B if m.type in (2, 3) else m.addr
            self.blocks[m.offset // B + i] = (addr, m.type, m.flags, m.dev)

    def remove(self, start: int, length: int) -> None:
        first, last = start // B, (start + length) // B
        self.blocks = {k: v for k, v in self.blocks.items() if not first <= k < last}

    def records(self) -> list[Mapping]:
        out: list[Mapping] = []
        for block in sorted(self.blocks):
            addr, kind, flags, dev = self.blocks[block]
            m = Mapping(block * B, B, addr, kind, flags, dev)
            if out and ListModel.joins(out[-1], m):
                out[-1] = out[-1]._replace(length=out[-1].length + B)
            else:
                out.append(m)
        return out


SPACE = 40
kinds = st.sampled_from([MapType.HOLE, MapType.MAPPED, MapType.MAPPED, MapType.UNWRITTEN, MapType.INLINE])


@st.composite
def mappings(draw: st.DrawFn, fork: IoDir) -> Mapping:
    start = draw(st.integers(0, SPACE - 1))
    length = draw(st.integers(1, 6))
    kind = draw(st.one_of(kinds, st.just(MapType.PURE_OVERWRITE))) if fork == W else draw(kinds)
    if kind in (MapType.MAPPED, MapType.UNWRITTEN):
        # a constant distance between file and device makes merges common
        addr = start + draw(st.sampled_from([1000, 1000, 1000, 2000]))
        return Mapping(start * B, length * B, addr * B, kind, draw(st.sampled_from([0, 0, 0, 4])), 1)
    return Mapping(start * B, length * B, NULL_ADDR, kind, 0, 0)


forks = st.sampled_from([R, W])
upserts = forks.flatmap(lambda f: st.tuples(st.just("upsert"), st.just(f), mappings(f)))
ranges = st.tuples(st.integers(0, SPACE), st.integers(0, 12))
removes = st.tuples(st.just("remove"), forks, ranges)
invalidates = st.tuples(st.just("invalidate"), st.just(R), ranges)
to_eof = st.tuples(st.just("to_eof"), forks, ranges)
lookups = st.tuples(st.just("lookup"), forks, ranges)
steps = st.lists(st.one_of(upserts, upserts, upserts, removes, invalidates, to_eof, lookups), max_size=60)


def check_lookups(cache: IomapCache, model: ListModel, fork: IoDir, around: int) -> None:
    records = model.forks[fork]
    for pos in (around, around + B // 2, around + 3 * B):
        found = cache.lookup(fork, pos, B)
        assert found.cookie == model.seq
        if records is None:
            assert found.result == LookupResult.NOFORK
            continue
        want = next((m for m in records if m.offset <= pos < m.offset + m.length), None)
        assert found.mapping == want
        assert found.result == (LookupResult.MISS if want is None else LookupResult.HIT)


@settings(max_examples=400, deadline=None)
@given(steps=steps, limited=st.booleans(), chunk=st.sampled_from([4, 16, CHUNK]))
def test_against_models(steps: list[tuple[str, IoDir, object]], limited: bool, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("py4fs.iomap.cache.CHUNK", chunk)
        run_against_models(steps, 256 if limited else None)


def run_against_models(steps: list[tuple[str, IoDir, object]], limit: int | None) -> None:
    cache = IomapCache(blocksize=B, max_file_bytes=MAX, cache_maxbytes=limit)
    model = ListModel(MAX, limit)
    blocks = BlockModel()
    for act, fork, arg in steps:
        if act == "upsert":
            assert isinstance(arg, Mapping)
            cache.upsert(fork, arg)
            model.upsert(fork, arg)
            if fork == R:
                blocks.upsert(arg)
        else:
            assert isinstance(arg, tuple)
            start, length = arg[0] * B, arg[1] * B
            if act == "lookup":
                check_lookups(cache, model, fork, start)
                continue
            if act == "invalidate":
                cache.invalidate(start, length)
            else:
                length = INVAL_TO_EOF if act == "to_eof" else length
                cache.remove(fork, start, length)
            for changed in (R, W) if act == "invalidate" else (fork,):
                model.remove(changed, start, length)
                if changed == R:
                    blocks.remove(start, length)
        check_invariants(cache)
        assert cache.mappings(R) == model.forks[R]
        assert cache.mappings(W) == model.forks[W]
        assert cache.seq == model.seq
        if limit is None:
            assert cache.mappings(R) == blocks.records()
    for at in range(SPACE + 4):
        for fork in (R, W):
            check_lookups(cache, model, fork, at * B)


def check_invariants(cache: IomapCache) -> None:
    total = 0
    for fork in (R, W):
        records = cache.mappings(fork) or []
        total += len(records)
        for m in records:
            assert m.length > 0
        for a, b in pairwise(records):
            assert a.offset + a.length <= b.offset
            assert not ListModel.joins(a, b)
    assert len(cache) == total


def test_many_records_in_any_order() -> None:
    """Enough records for many chunks, put in from both ends and the middle, then thinned out."""
    cache = IomapCache(blocksize=B, max_file_bytes=MAX)
    order = [i * 617 % 5003 for i in range(5003)]
    for i in order:
        cache.upsert(R, mapped(2 * i, 1, 3 * i))
    assert cache.mappings(R) == [mapped(2 * i, 1, 3 * i) for i in range(5003)]
    cache.remove(R, 2 * 100 * B, 2 * 4000 * B)
    left = [*range(100), *range(4100, 5003)]
    assert cache.mappings(R) == [mapped(2 * i, 1, 3 * i) for i in left]
    for i in left:
        assert cache.lookup(R, 2 * i * B, 1).mapping == mapped(2 * i, 1, 3 * i)
    for i in left[::2]:
        cache.remove(R, 2 * i * B, B)
    assert cache.mappings(R) == [mapped(2 * i, 1, 3 * i) for i in left[1::2]]


def test_memory_per_record() -> None:
    count = 50_000
    tracemalloc.start()
    try:
        cache = IomapCache(blocksize=B, max_file_bytes=MAX)
        for i in range(count):
            cache.upsert(R, mapped(i, 1, 7919 * i))
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(cache) == count
    assert used / count < 80


@pytest.mark.long
def test_speed_at_a_million_records() -> None:
    """CPU time, with room for a slow or busy machine; `bench/iomap_cache.py` has the real numbers."""
    count = 1_000_000
    cache = IomapCache(blocksize=B, max_file_bytes=MAX)
    records = (mapped(i, 1, 7919 * i) for i in range(count))
    start = time.process_time()
    cache.upsert_all(R, records)
    assert time.process_time() - start < 15
    wanted = [i * 7919 % count * B + 5 for i in range(300_000)]
    start = time.process_time()
    for pos in wanted:
        cache.lookup(R, pos, 1)
    assert len(wanted) / (time.process_time() - start) > 100_000
