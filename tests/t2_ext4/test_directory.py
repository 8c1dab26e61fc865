"""Directories against a dictionary, at every hash, block size and feature that changes their form."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from py4fs.errors import Corrupt, DeviceError, FsError, NameTooLong, NoSpace, NotFound
from py4fs.ext4 import htree
from py4fs.ext4 import names as names_module
from py4fs.ext4.dirhash import dirhash
from py4fs.ext4.htree import split_point
from tests.support.core import need_interpreted
from tests.support.logs import LogGuard
from tests.t2_ext4.dirworld import World

NAME = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
)

FORMS: dict[str, dict[str, Any]] = {
    "half_md4": {},
    "legacy": {"hash_version": 0},
    "tea": {"hash_version": 2},
    "half_md4_unsigned": {"hash_unsigned": True},
    "legacy_unsigned": {"hash_version": 0, "hash_unsigned": True},
    "tea_unsigned": {"hash_version": 2, "hash_unsigned": True},
    "no_csum": {"metadata_csum": False},
    "no_filetype": {"filetype": False},
    "no_index": {"dir_index": False},
    "no_index_no_csum": {"dir_index": False, "metadata_csum": False},
    "largedir": {"largedir": True},
    "4k": {"block_size": 4096},
    "64k": {"block_size": 65536},
}


def random_name(rng: random.Random) -> bytes:
    length = rng.choice((1, 2, 8, 17, 100, 255, rng.randrange(1, 256)))
    return bytes(rng.choice(range(1, 256)) for _ in range(length)).replace(b"/", b"\xff")


@pytest.mark.parametrize("form", FORMS)
def test_random_changes_equal_a_dictionary(form: str, rng: random.Random) -> None:
    world = World(**FORMS[form])
    world.mkdir()

    def look(name: bytes) -> None:
        """As whoever changes a name does before; now and then the cache loses its blocks in between."""
        assert (world.dir().lookup(name) or [None])[0] == model.get(name, [None])[0]
        if rng.random() < 0.02:
            world.commit()
            world.buffers.shrink(0)

    model: dict[bytes, tuple[int, int]] = {b".": (2, 2), b"..": (2, 2)}
    for step in range(1500):
        dice = rng.random()
        names = [name for name in model if name not in (b".", b"..")]
        if dice < 0.62 or not names:
            name = random_name(rng)
            if name in model or name in (b".", b".."):
                continue
            look(name)
            model[name] = (rng.randrange(11, 1 << 20), rng.randrange(1, 8))
            world.add(name, *model[name])
        elif dice < 0.9:
            name = rng.choice(names)
            look(name)
            del model[name]
            world.remove(name)
        else:
            name = rng.choice([*names, b".."])
            model[name] = (rng.randrange(11, 1 << 20), rng.randrange(1, 8))
            with world.operation() as tx:
                world.dir().replace(tx, name, *model[name])
        if step % 300 == 299:
            world.remount()
    if not world.options["filetype"]:
        model = {name: (ino, 0) for name, (ino, _) in model.items()}
    assert world.check() == model
    for directory in (world.dir(), world.remount()):
        assert {name: directory.lookup(name) for name in model} == model
        assert directory.lookup(b"not there") is None
        assert sorted(e.name for e in directory.entries()) == sorted(model)
        assert directory.parent() == model[b".."][0]
    assert world.indexed() == (world.options["dir_index"] and world.block_size < 65536)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAME, unique=True, max_size=60), st.data())
def test_any_names(names: list[bytes], data: st.DataObject) -> None:
    world = World(hash_version=data.draw(st.integers(0, 2)), hash_unsigned=data.draw(st.booleans()))
    world.mkdir()
    for i, name in enumerate(names):
        world.add(name, 100 + i)
    gone = set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set()
    for name in gone:
        world.remove(name)
    directory = world.remount()
    for i, name in enumerate(names):
        assert directory.lookup(name) == (None if name in gone else (100 + i, 1))
    assert len(world.check()) == 2 + len(names) - len(gone)
    assert directory.is_empty() == (len(gone) == len(names))


def test_order_of_names_in_a_linear_block_is_first_fit() -> None:
    world = World()
    world.mkdir()
    for name in (b"aaaa", b"bbbbbbbb", b"cccc"):
        world.add(name)
    world.remove(b"bbbbbbbb")
    world.add(b"d")
    world.add(b"eeeeeeeeeeeee")
    assert world.names() == [b".", b"..", b"aaaa", b"d", b"cccc", b"eeeeeeeeeeeee"]


def test_removing_the_first_entry_of_a_leaf_and_using_its_room() -> None:
    world = World(dir_index=False)
    world.mkdir()
    names = [b"%03d" % i + b"x" * 60 for i in range(30)]
    for name in names:
        world.add(name)
    first = next(name for name in names if world.dir().scan_block(1).names.get(name) == 0)
    world.remove(first)
    assert world.dir().lookup(first) is None
    world.check()
    world.add(b"y" * 63)
    assert world.dir().scan_block(1).names[b"y" * 63] == 0
    world.check()


def test_a_full_block_becomes_an_index_once() -> None:
    world = World()
    world.mkdir()
    sizes = set()
    for i in range(200):
        before = world.inodes[2].size
        world.add(b"name%06d" % i)
        sizes.add(world.inodes[2].size - before)
    assert world.indexed()
    assert sizes == {0, 1024, 2048}, "conversion adds two blocks, a split one"
    assert world.check().keys() == {b".", b".."} | {b"name%06d" % i for i in range(200)}


def weaken(monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    """A hash with few values, so that names collide in masses."""

    def weak(name: bytes, version: int, seed: tuple[int, int, int, int]) -> tuple[int, int]:
        return dirhash(name, version, seed)[0] & mask, 0

    monkeypatch.setattr(names_module, "dirhash", weak)


@pytest.mark.parametrize("mask", [0, 0x80000000, 0xE0000000, 0x00000006])
def test_hash_collisions_chain_over_leaves(mask: int, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    weaken(monkeypatch, mask)
    world = World()
    world.mkdir()
    names = [b"%05d" % rng.randrange(100000) + b"x" * rng.randrange(100) for _ in range(400)]
    model = {b".": (2, 2), b"..": (2, 2)}
    for i, name in enumerate(names):
        if name not in model:
            model[name] = (100 + i, 1)
            world.add(name, 100 + i)
            assert world.dir().lookup(name) == (100 + i, 1)
    assert world.check() == model
    directory = world.remount()
    assert all(directory.lookup(name) == value for name, value in model.items())
    assert directory.lookup(b"nobody") is None
    assert sorted(e.name for e in directory.entries()) == sorted(model)
    assert max(chains(world)) > 5
    for name in list(model)[2::2]:
        world.remove(name)
        del model[name]
    assert world.check() == model
    assert all(directory.lookup(name) == value for name, value in model.items())


def chains(world: World) -> list[int]:
    """How many leaves start at each hash."""
    lengths, low = [], 0
    tree = world.dir().tree
    while (run := tree.run_from(low)) is not None:
        lengths.append(len(run.leaves))
        if run.next_low is None:
            break
        low = run.next_low
    return lengths


# -- growth of the index ---------------------------------------------------------------------------------------


def fill_until_full(world: World, length: int = 250, limit: int = 100_000) -> list[bytes]:
    """Long names at random until the directory is full; returns those that fit."""
    names: list[bytes] = []
    for i in range(limit):
        name = b"%d." % i + b"n" * (length - len(b"%d." % i))
        try:
            world.add(name, 11 + i)
        except NoSpace:
            return names
        names.append(name)
    return names


def test_two_levels_then_directory_index_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small index blocks, so that the limit comes early: root and nodes take 4 entries here."""
    need_interpreted()
    monkeypatch.setattr(htree.HashTree, "_full", staticmethod(lambda block: len(block.hashes) >= 4))
    for largedir, levels in ((False, 2), (True, 3)):
        world = World(largedir=largedir)
        world.mkdir()
        names = fill_until_full(world)
        assert 4 ** (levels - 1) * 3 < len(names) < 4 ** (levels + 1) * 3
        assert world.dir().tree.root().levels == levels - 1
        found = world.check()
        assert found.keys() == {b".", b".."} | set(names), "the failed insert left nothing behind"
        assert sorted(world.names()) == sorted(found)
        directory = world.remount()
        assert all(directory.lookup(name) for name in names)
        with pytest.raises(NoSpace, match="directory index full"):
            fill = [b"%d-" % i + b"m" * 240 for i in range(500)]
            for name in fill:
                world.add(name)


def test_node_split_keeps_everything_with_real_limits() -> None:
    world = World(block_size=1024)
    world.mkdir()
    names = [b"%d" % i + b"z" * 240 for i in range(1200)]
    for i, name in enumerate(names):
        world.add(name, 11 + i)
    assert world.dir().tree.root().levels == 1
    assert len(world.dir().tree.root().blocks) > 2
    assert world.check().keys() == {b".", b".."} | set(names)
    assert [e.name for e in world.remount().entries()][:2] == [b".", b".."]


@pytest.mark.parametrize("count", [2, 3, 10, 145])
def test_split_point(count: int) -> None:
    rng = random.Random(count)
    for _ in range(50):
        sizes = [rng.randrange(3, 4096 // count // 4 + 4) * 4 for _ in range(count)]
        keep = split_point([0] * count, sizes, 4096)
        assert 1 <= keep < count
        if sum(sizes) > 2048 + max(sizes):
            assert sum(sizes[keep:]) <= 2048 + max(sizes) // 2 + 4
        if sum(sizes) <= 2048:
            assert keep == count // 2


# -- failures --------------------------------------------------------------------------------------------------


def state(world: World) -> object:
    return world.check(), world.inodes[2].size, world.inodes[2].flags, world.names()


def test_failed_operations_leave_nothing_behind() -> None:
    """Fail at every allocation that an insert makes, for every kind of insert."""
    world = World()
    world.mkdir()
    failures = 0
    for i in range(120):
        name = b"%03d" % i + b"f" * 200
        before = state(world)
        for left in range(3):
            world.files.left = left
            try:
                with world.operation() as tx:
                    world.dir().add(tx, name, 99, 1)
                    raise KeyboardInterrupt
            except NoSpace:
                failures += 1
            except KeyboardInterrupt:
                pass
            assert state(world) == before
            assert world.dir().lookup(name) is None
        world.files.left = 1 << 40
        world.add(name, 99)
    assert failures > 40
    assert len(world.check()) == 122


def test_failed_read_leaves_nothing_behind() -> None:
    world = World()
    world.mkdir()
    for i in range(300):
        world.add(b"%03d" % i + b"f" * 50)
    before = state(world)
    world.remount()
    for fail in range(1, 6):
        world.device.reads = 0
        world.device.fail_at = fail
        with pytest.raises(DeviceError):
            for i in range(300, 330):
                with world.operation() as tx:
                    world.dir().add(tx, b"%03d" % i + b"f" * 50, 1, 1)
                    world.dir().remove(tx, b"%03d" % i + b"f" * 50)
                    raise DeviceError("after all")
        world.device.fail_at = None
        assert state(world) == before
        world.remount()


def test_abort_restores_a_conversion() -> None:
    world = World()
    world.mkdir()
    i = 0
    while not world.indexed():
        before = state(world)
        with pytest.raises(KeyboardInterrupt), world.operation() as tx:
            world.dir().add(tx, b"%05d" % i, 99, 1)
            raise KeyboardInterrupt
        assert state(world) == before and not world.indexed()
        world.add(b"%05d" % i, 99)
        i += 1
    assert len(world.check()) == i + 2


def test_errors_of_arguments() -> None:
    world = World()
    world.mkdir()
    with pytest.raises(NameTooLong):
        world.add(b"x" * 256)
    with pytest.raises(NotFound):
        world.remove(b"nobody")
    with pytest.raises(NotFound), world.operation() as tx:
        world.dir().replace(tx, b"nobody", 3, 1)


# -- damage ----------------------------------------------------------------------------------------------------


def damaged(world: World, lblk: int, offset: int, data: bytes) -> None:
    """Everything must work or raise a py4fs error."""
    directory = world.change(lblk, offset, data)
    for attempt in (
        lambda: list(directory.entries()),
        lambda: directory.lookup(b"name7"),
        lambda: directory.lookup(b"nobody"),
        lambda: directory.lookup(b".."),
        directory.parent,
        directory.is_empty,
        lambda: world.add(b"another" + b"n" * 200),
        lambda: world.remove(b"name3"),
    ):
        try:
            attempt()
        except FsError as exc:
            assert isinstance(exc, (Corrupt, NotFound, NoSpace)) and "\n" not in str(exc)


@pytest.mark.parametrize("count", [5, 400])
@pytest.mark.parametrize("csum", [False, True])
def test_random_damage_gives_errors_of_ours(count: int, csum: bool, rng: random.Random, log_guard: LogGuard) -> None:
    if count > 100:
        log_guard.expect("without its index")
    for _ in range(60):
        world = World(metadata_csum=csum)
        world.mkdir()
        for i in range(count):
            world.add(b"name%d" % i)
        blocks = world.inodes[2].size // 1024
        where = rng.choice([0, rng.randrange(blocks)])
        offset = rng.choice([0, 4, 12, 16, 24, 28, 30, 32, 34, 36, 40, rng.randrange(1020)])
        damaged(world, where, offset, rng.choice([rng.randbytes(4), b"\0", b"\xff" * 8, rng.randbytes(1)]))


@pytest.mark.parametrize(
    ("offset", "data", "what"),
    [
        (4, b"\x0e\0", "rec_len"),
        (4, b"\x08\0", "rec_len"),
        (16, b"\xff\xff", "rec_len"),
        (24, b"\xff\xff\xff\xff", "inode"),
        (32, b"a/b", "name"),
        (32, b"a\0b", "name"),
        (30, b"\0", "name"),
    ],
)
def test_damaged_entries_are_named(offset: int, data: bytes, what: str) -> None:
    world = World(metadata_csum=False)
    world.mkdir()
    world.add(b"name")
    directory = world.change(0, offset, data)
    with pytest.raises(Corrupt, match=f"{what}.*inode 2, logical block 0"):
        directory.lookup(b"name")


def test_checksums_are_verified() -> None:
    world = World()
    world.mkdir()
    for i in range(300):
        world.add(b"name%d" % i)
    for lblk in (0, 1, 5):
        world.commit()
        before = world.raw(lblk)[40:44]
        directory = world.change(lblk, 40, b"!!!!")
        with pytest.raises(Corrupt) as caught:
            for i in range(300):
                directory.lookup(b"name%d" % i)
        assert caught.value.errno in (74, 117)
        world.change(lblk, 40, before)


BAD_ROOTS = {
    "hash_version": (28, b"\x09"),
    "indirect_levels": (30, b"\x07"),
    "unused_flags": (31, b"\x01"),
    "count": (34, b"\0\0"),
    "limit": (32, b"\x01\x02"),
    "block": (36, b"\xff\xff"),
}


@pytest.mark.parametrize(("offset", "data"), BAD_ROOTS.values(), ids=BAD_ROOTS)
def test_a_damaged_index_still_reads_and_removes(
    offset: int, data: bytes, log_guard: LogGuard, caplog: pytest.LogCaptureFixture
) -> None:
    log_guard.expect("without its index")
    world = World(metadata_csum=False)
    world.mkdir()
    for i in range(300):
        world.add(b"name%d" % i, 50 + i)
    directory = world.change(0, offset, data)
    assert directory.lookup(b"name123") == (173, 1) or offset == 36
    assert all(directory.lookup(b"name%d" % i) == (50 + i, 1) for i in range(300))
    if offset != 36:
        assert len(list(directory.entries())) == 302
    world.remove(b"name5")
    assert directory.lookup(b"name5") is None
    with pytest.raises(Corrupt):
        for i in range(100):
            world.add(b"new%d" % i)
    assert len([r for r in caplog.records if "without its index" in r.message]) == 1


def test_an_index_that_names_a_block_twice_ends() -> None:
    world = World(metadata_csum=False)
    world.mkdir()
    for i in range(300):
        world.add(b"name%d" % i)
    world.commit()
    first = world.raw(0)[36:40]
    count = int.from_bytes(world.raw(0)[34:36], "little")
    for i in range(1, count):
        directory = world.change(0, 36 + i * 8, first)
    with pytest.raises(Corrupt, match="twice"):
        list(directory.entries())


def test_size_and_holes() -> None:
    world = World()
    world.mkdir()
    inode = world.inodes[2]
    for size in (0, 1000, 1 << 62):
        inode.size = size
        with pytest.raises(Corrupt, match="directory size"):
            world.dir().lookup(b"x")
    inode.size = 1 << 20
    with pytest.raises(Corrupt, match="hole"):
        world.dir().lookup(b"x")


def test_a_block_of_another_directory() -> None:
    world = World(metadata_csum=False)
    world.mkdir()
    world.mkdir(20)
    world.add(b"mine", where=20)
    world.files.maps[2] = world.files.maps[20]
    world.remount()
    assert world.dir(20).lookup(b"mine")
    with pytest.raises(Corrupt, match="in use elsewhere"):
        world.dir(2).lookup(b"mine")


def test_index_flag_without_the_feature_is_dropped_by_the_first_insert() -> None:
    world = World(metadata_csum=False)
    world.mkdir()
    for i in range(300):
        world.add(b"name%d" % i)
    world.options["dir_index"] = False
    directory = world.remount()
    assert directory.lookup(b"name250") and len(list(directory.entries())) == 302
    world.add(b"more")
    assert not world.indexed()
    found = world.check()
    assert len(found) == 303
