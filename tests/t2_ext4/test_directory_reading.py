"""Reading a directory while it changes: what stays is returned exactly once, and every pass ends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from py4fs.errors import Corrupt
from py4fs.ext4 import names as names_module
from py4fs.ext4.directory import Entry, ReaderState
from py4fs.ext4.dirhash import dirhash
from tests.t2_ext4.dirworld import World

DOTS = {b".", b".."}


def filled(count: int, **options: Any) -> World:
    world = World(**options)
    world.mkdir()
    for i in range(count):
        world.add(b"f%06d" % i, 11 + i, 1 + i % 7)
    return world


def batches(world: World, size: int, reader: ReaderState | None = None) -> Iterator[list[Entry]]:
    """A pass in requests of at most `size` entries, each continued by the last cookie, as FUSE does it."""
    cookie = 0
    while True:
        batch = []
        for entry in world.dir().entries(cookie, reader):
            assert entry.cookie > cookie
            cookie = entry.cookie
            batch.append(entry)
            if len(batch) == size:
                break
        if not batch:
            return
        yield batch


SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "one_block": (12, {}),
    "about_to_split": (40, {}),
    "index": (500, {}),
    "two_levels": (4000, {}),
    "linear": (400, {"dir_index": False}),
    "no_csum": (500, {"metadata_csum": False}),
    "64k": (3000, {"block_size": 65536}),
}


@pytest.mark.parametrize("with_reader", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_quiet_pass(shape: str, size: int, with_reader: bool) -> None:
    count, options = SHAPES[shape]
    if size == 1:
        count = min(count, 600)
    world = filled(count, **options)
    reader = ReaderState() if with_reader else None
    entries = [entry for batch in batches(world, size, reader) for entry in batch]
    assert [e.name for e in entries[:2]] == [b".", b".."]
    assert [e.ino for e in entries[:2]] == [2, 2]
    assert Counter(e.name for e in entries) == Counter(DOTS | {b"f%06d" % i for i in range(count)})
    assert all((e.ino, e.ftype) == world.dir().lookup(e.name) for e in entries)
    cookies = [e.cookie for e in entries]
    assert cookies == sorted(set(cookies)) and cookies[0] > 0 and cookies[-1] < 1 << 63
    assert list(world.dir().entries(cookies[-1], reader)) == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 10, 100])
def test_removing_while_reading(shape: str, size: int) -> None:
    """rm -rf: every name comes once, and the directory is empty after one pass."""
    count, options = SHAPES[shape]
    world = filled(min(count, 1500), **options)
    reader = ReaderState()
    seen: Counter[bytes] = Counter()
    for batch in batches(world, size, reader):
        for entry in batch:
            seen[entry.name] += 1
            if entry.name not in DOTS:
                world.remove(entry.name)
    assert set(seen.values()) == {1} and len(seen) == 2 + min(count, 1500)
    assert world.dir().is_empty()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 50])
def test_random_changes_while_reading(shape: str, size: int, rng: random.Random) -> None:
    """What is there from start to end comes once; what never was there does not come."""
    count, options = SHAPES[shape]
    world = filled(min(count, 800), **options)
    names = [name for name in world.names() if name not in DOTS]
    stay = set(rng.sample(names, len(names) // 2))
    go = [name for name in names if name not in stay]
    gone: set[bytes] = set()
    seen: Counter[bytes] = Counter()
    number = 0
    reader = ReaderState()
    for batch in batches(world, size, reader):
        for entry in batch:
            seen[entry.name] += 1
            assert entry.name not in gone, "returned after its removal"
        for _ in range(rng.randrange(4)):
            if go and rng.random() < 0.5:
                name = go.pop(rng.randrange(len(go)))
                world.remove(name)
                gone.add(name)
            elif number < 1000:
                world.add(b"new%06d" % number + b"n" * rng.randrange(200))
                number += 1
        if rng.random() < 0.1:
            world.remount()
    assert all(seen[name] == 1 for name in stay | DOTS)
    assert max(seen.values()) == 1
    world.check()


@pytest.mark.parametrize("mask", [0, 0x80000000, 0x0000000E])
def test_collisions_and_splits_while_reading(mask: int, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Chains of leaves with one hash grow in front of the reader and behind it."""

    def weak(name: bytes, version: int, seed: tuple[int, int, int, int]) -> tuple[int, int]:
        return dirhash(name, version, seed)[0] & mask, 0

    monkeypatch.setattr(names_module, "dirhash", weak)
    for size in (1, 5, 33):
        world = filled(300)
        stay = {name for name in world.names() if rng.random() < 0.8} | DOTS
        go = [name for name in world.names() if name not in stay]
        seen: Counter[bytes] = Counter()
        reader = ReaderState()
        for step, batch in enumerate(batches(world, size, reader)):
            seen.update(entry.name for entry in batch)
            if step < 300:
                world.add(b"new%06d" % step + b"n" * rng.randrange(200))
            if go:
                world.remove(go.pop())
        assert all(seen[name] == 1 for name in stay)
        assert max(seen.values()) == 1
        world.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_renaming_everything_that_is_read_ends(shape: str) -> None:
    count, options = SHAPES[shape]
    count = min(count, 700)
    world = filled(count, **options)
    reader = ReaderState()
    steps = 0
    seen: set[bytes] = set()
    for batch in batches(world, 5, reader):
        for entry in batch:
            if entry.name in DOTS or len(entry.name) > 200:
                continue
            steps += 1
            seen.add(entry.name[-7:])
            assert steps < 20 * count, "the pass does not end"
            world.remove(entry.name)
            world.add(b"x" + entry.name, entry.ino)
    assert len(world.names()) == count + 2
    assert len(seen) == count, "every file came at least once"


def test_adding_without_end_while_reading_ends() -> None:
    for dir_index in (True, False):
        world = filled(5, dir_index=dir_index)
        reader = ReaderState()
        number = 0
        for _ in batches(world, 1, reader):
            for _ in range(3):
                world.add(b"more%06d" % number)
                number += 1
            assert number < 3000


def test_conversion_to_an_index_while_reading() -> None:
    world = filled(30)
    assert not world.indexed()
    reader = ReaderState()
    passes = batches(world, 4, reader)
    seen = [entry.name for entry in next(passes)]
    number = 0
    while not world.indexed():
        world.add(b"new%06d" % number)
        number += 1
    for name in (b"f000020", b"f000001"):
        world.remove(name)
    seen += [entry.name for batch in passes for entry in batch]
    assert len(seen) == len(set(seen))
    assert set(seen) >= DOTS | {b"f%06d" % i for i in range(30)} - {b"f000020", b"f000001"}
    assert b"f000020" not in seen
    again = [entry.name for entry in world.dir().entries(0, reader)]
    assert sorted(again) == sorted(world.check()), "rewinddir sees the directory as it is"


@pytest.mark.parametrize("shape", SHAPES)
def test_seekdir(shape: str, rng: random.Random) -> None:
    """Any cookie of a pass continues behind its entry, in any order, with and without the reader."""
    count, options = SHAPES[shape]
    world = filled(min(count, 600), **options)
    reader = ReaderState()
    entries = list(world.dir().entries(0, reader))
    for memory in (reader, ReaderState(), None):
        for number in rng.sample(range(len(entries)), min(40, len(entries))):
            rest = [e.name for e in world.dir().entries(entries[number].cookie, memory)]
            assert rest == [e.name for e in entries[number + 1 :]]


def test_seekdir_back_after_a_split_is_exact_with_the_reader() -> None:
    world = filled(30, hash_version=2)
    while not world.indexed():
        world.add(b"g%06d" % len(world.names()))
    reader = ReaderState()
    before = list(world.dir().entries(0, reader))
    for i in range(60):
        world.add(b"new%06d" % i)
    for number in range(2, len(before)):
        rest = {e.name for e in world.dir().entries(before[number].cookie, reader)}
        assert rest >= {e.name for e in before[number + 1 :]}
        assert not rest & {e.name for e in before[: number + 1]}


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(0, (1 << 63) - 1), st.sampled_from(["one_block", "index", "linear"]))
def test_any_number_is_a_cookie(cookie: int, shape: str) -> None:
    world = _world(shape)
    for reader in (None, ReaderState()):
        names = [entry.name for entry in world.dir().entries(cookie, reader)]
        assert len(names) == len(set(names)) <= 502


_worlds: dict[str, World] = {}


def _world(shape: str) -> World:
    if shape not in _worlds:
        count, options = SHAPES[shape]
        _worlds[shape] = filled(count, **options)
    return _worlds[shape]


def test_an_entry_that_was_replaced_comes_as_it_is_now() -> None:
    world = filled(40)
    reader = ReaderState()
    entries = world.dir().entries(0, reader)
    first = next(e for e in entries if e.name not in DOTS)
    with world.operation() as tx:
        world.dir().replace(tx, b"f000039", 4242, 2)
        world.dir().replace(tx, first.name, 4243, 2)
    found = {e.name: (e.ino, e.ftype) for e in entries}
    assert found[b"f000039"] == (4242, 2)
    assert first.name not in found


def test_a_pass_survives_an_operation_that_fails() -> None:
    world = filled(200)
    reader = ReaderState()
    entries = world.dir().entries(0, reader)
    seen = [next(entries).name for _ in range(20)]
    with pytest.raises(KeyboardInterrupt), world.operation() as tx:
        for i in range(100):
            world.dir().add(tx, b"gone%06d" % i, 9, 1)
        world.dir().remove(tx, b"f000150")
        raise KeyboardInterrupt
    seen += [entry.name for entry in entries]
    assert sorted(seen) == sorted(world.names())
    assert world.dir().lookup(b"gone000001") is None


def test_a_removed_directory_has_no_entries() -> None:
    world = filled(3)
    reader = ReaderState()
    list(world.dir().entries(0, reader))
    world.inodes[2].nlink = 0
    world.inodes[2].size = 0
    assert list(world.dir().entries(0, reader)) == list(world.dir().entries(5, reader)) == []


def test_unknown_file_types_are_zero() -> None:
    world = World()
    world.mkdir()
    world.add(b"odd", 11, 1)
    block = world.dir().scan_block(0)
    with world.operation() as tx:
        tx.touch(block)
        block.replace(block.names[b"odd"], 11, 0x77)
    assert [e.ftype for e in world.dir().entries()] == [2, 2, 0]
    assert world.dir().lookup(b"odd") == (11, 0)


def test_damage_met_on_the_way() -> None:
    world = filled(500)
    directory = world.change(3, 50, b"????")
    with pytest.raises(Corrupt, match="inode 2, logical block 3"):
        list(directory.entries())
