"""Attributes against a dictionary; blocks and their sharing; hostile bytes."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from bitarray import bitarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images.tools import mke2fs
from py4fs.device.memory import MemoryDevice
from py4fs.errors import (
    BadChecksum,
    Corrupt,
    Exists,
    FsError,
    Invalid,
    NoData,
    NoSpace,
    NotSupported,
    OutOfRange,
    TooBig,
)
from py4fs.ext4 import acl
from py4fs.ext4.acl import AclEnt
from py4fs.ext4.buffers import BufferCache, MetaBlock
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.xattr import XATTR_ENTRY, XATTR_HEADER
from py4fs.ext4.transaction import Operation
from py4fs.ext4.volume import Volume, VolumeOptions
from py4fs.ext4.xattr import XattrStore
from py4fs.ext4.xattr_block import XattrBlock
from py4fs.ext4.xattr_region import build, entry_hash, parse, space
from tests.support.volumes import Clock
from tests.t2_ext4.dirworld import Blocks

SEED = 0xCAFEBABE


@cache
def volume_image(block_size: int) -> bytes:
    """A fresh file system, whose blocks the attributes take."""
    with TemporaryDirectory(prefix="py4fs-xattr-") as directory:
        path = Path(directory) / "fs.img"
        mke2fs(path, 4 << 20, "-b", str(block_size), "-N", "2048", "-O", "^has_journal,^resize_inode")
        return path.read_bytes()


class World:
    """Attributes of inodes in memory, blocks in a dictionary; a real volume says which blocks are free."""

    def __init__(self, block_size: int = 1024, body: int = 96, csum: bool = True) -> None:
        self.block_size = block_size
        self.body = body
        self.csum = SEED if csum else None
        self.device = Blocks(block_size)
        self.volume = Volume.open(MemoryDevice(volume_image(block_size)), VolumeOptions(), Clock(), random.Random(1))
        self.transactions = self.volume.transactions
        self.inodes: dict[int, Inode] = {}
        self._taken = self._in_use()
        self.mount()

    def mount(self) -> None:
        volume = self.volume
        self.buffers = BufferCache(cast(Any, self.device), self.block_size, self.transactions, 1 << 20)
        self.store = XattrStore(volume.geometry, self.csum, self.buffers, volume.alloc, volume.superblock)

    def _in_use(self) -> set[int]:
        groups, geometry = self.volume.groups, self.volume.geometry
        assert geometry.groups == 1
        return {geometry.first_data_block + bit for bit in groups.block_bitmap(0).bits.search(bitarray("1"))}

    @property
    def used(self) -> set[int]:
        """Blocks that were allocated and not freed."""
        return self._in_use() - self._taken

    def inode(self, ino: int = 12) -> Inode:
        if ino not in self.inodes:
            self.inodes[ino] = Inode(ino, 1)
            self.inodes[ino].ibody = bytes(self.body)
        return self.inodes[ino]

    def operation(self) -> Operation:
        return self.transactions.operation(16)

    def set(self, name: bytes, value: bytes, ino: int = 12, **how: bool) -> bool:
        with self.operation() as tx:
            return self.store.set(tx, self.inode(ino), name, value, **how)

    def remove(self, name: bytes, ino: int = 12) -> None:
        with self.operation() as tx:
            self.store.remove(tx, self.inode(ino), name)

    def all(self, ino: int = 12) -> dict[bytes, bytes]:
        inode = self.inode(ino)
        return {name: self.store.get(inode, name) for name in self.store.list(inode)}

    def remount(self) -> None:
        transaction = self.transactions.detach()
        for obj in transaction.dirty:
            if isinstance(obj, MetaBlock):
                self.device.blocks[obj.pblk] = bytes(obj.encode())
        self.volume.alloc.release_freed(transaction)
        self.mount()
        for inode in self.inodes.values():
            inode.xattrs = None

    def check(self) -> None:
        """Reference counts, i_blocks, free blocks and order on disk."""
        self.remount()
        users: dict[int, int] = {}
        for inode in self.inodes.values():
            assert inode.blocks == (self.block_size // 512 if inode.file_acl else 0)
            assert len(inode.ibody) == self.body
            if inode.file_acl:
                users[inode.file_acl] = users.get(inode.file_acl, 0) + 1
        assert set(users) == self.used
        for pblk, count in users.items():
            raw = self.device.blocks[pblk]
            assert XATTR_HEADER.get(raw, 0, "h_refcount") == count
            attrs = parse(raw, XATTR_HEADER.size, 0, "")
            keys = [(a.name_index, len(a.name), a.name) for a in attrs]
            assert keys == sorted(set(keys)) and keys
            assert all(a.hash == entry_hash(a.name, a.value) for a in attrs)


NAMES = st.tuples(
    st.sampled_from([b"user.", b"trusted.", b"security."]),
    st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name),
).map(b"".join)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 3), NAMES, st.one_of(st.none(), st.binary(max_size=300))), max_size=40),
    st.sampled_from([0, 4, 8, 32, 96]),
)
def test_any_attributes(steps: list[tuple[int, bytes, bytes | None]], body: int) -> None:
    world = World(body=body)
    models: list[dict[bytes, bytes]] = [{} for _ in range(4)]
    for which, name, value in steps:
        model, ino = models[which], 12 + which
        if value is None:
            if name in model:
                del model[name]
                world.remove(name, ino)
            else:
                with pytest.raises(NoData):
                    world.remove(name, ino)
            continue
        try:
            assert world.set(name, value, ino) == (model.get(name) != value)
            model[name] = value
        except NoSpace:
            assert sum(len(k) + len(v) + 20 for k, v in model.items()) > 300
    for _ in range(2):
        for which, model in enumerate(models):
            assert world.all(12 + which) == model
        world.check()


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_random_attributes_over_few_names(block_size: int, rng: random.Random) -> None:
    """Few names and values: replacing, moving between inode and block, sharing and unsharing."""
    world = World(block_size)
    models: dict[int, dict[bytes, bytes]] = {ino: {} for ino in range(12, 18)}
    names = [b"user.a", b"user.bb", b"trusted.c", b"security.d", b"user.e" * 9]
    values = [b"", b"x", b"y" * 30, b"z" * 33, b"w" * 100, b"v" * 400, b"u" * 900]
    for step in range(3000):
        ino, name, value = rng.choice(list(models)), rng.choice(names), rng.choice(values)
        model = models[ino]
        if rng.random() < 0.3 and name in model:
            del model[name]
            world.remove(name, ino)
        else:
            before = world.all(ino)
            try:
                world.set(name, value, ino)
                model[name] = value
            except NoSpace:
                assert world.all(ino) == before
        assert world.all(ino) == model
        if step % 500 == 499:
            world.check()


def test_small_attributes_go_into_the_inode_first() -> None:
    world = World()
    world.set(b"user.one", b"1")
    assert world.inode().file_acl == 0
    assert world.inode().ibody[:4] == bytes.fromhex("000002ea")
    world.set(b"user.big", b"b" * 90)
    assert world.inode().file_acl
    assert world.store.list(world.inode()) == [b"user.one", b"user.big"]
    world.remove(b"user.one")
    assert world.inode().ibody == bytes(96), "no header without attributes"
    world.remove(b"user.big")
    assert world.inode().file_acl == 0 and world.inode().blocks == 0
    world.check()


def test_an_attribute_moves_when_its_size_changes() -> None:
    world = World()
    world.set(b"user.a", b"1")
    world.set(b"user.a", b"1" * 200)
    assert world.inode().file_acl and not any(world.inode().ibody)
    world.set(b"user.a", b"1")
    assert not world.inode().file_acl
    world.check()


def test_identical_blocks_are_shared_and_copied_on_write() -> None:
    world = World(body=0)
    for ino in range(12, 20):
        world.set(b"user.same", b"value", ino)
        world.set(b"user.more", b"m" * 100, ino)
    assert len(world.used) == 1
    world.check()
    world.set(b"user.same", b"other", 15)
    assert len(world.used) == 2
    world.check()
    world.all(12)  # the cache knows only blocks that were seen since the mount
    world.set(b"user.same", b"value", 15)
    assert len(world.used) == 1, "the identical one is found again, its own is freed"
    for ino in range(12, 20):
        with world.operation() as tx:
            world.store.release(tx, world.inode(ino))
    assert not world.used
    assert all(inode.file_acl == inode.blocks == 0 for inode in world.inodes.values())


def test_a_block_has_at_most_1024_users() -> None:
    world = World(body=0)
    for ino in range(12, 12 + 1030):
        world.set(b"user.same", b"value", ino)
    world.check()
    counts = [XATTR_HEADER.get(world.device.blocks[pblk], 0, "h_refcount") for pblk in world.used]
    assert sorted(counts) == [6, 1024]


def test_undo() -> None:
    world = World(body=32)
    world.set(b"user.a", b"1", 12)
    world.set(b"user.b", b"b" * 100, 12)
    world.set(b"user.b", b"b" * 100, 13)
    before = world.all(12), world.all(13), world.used
    changes: list[Any] = [
        lambda tx: world.store.set(tx, world.inode(12), b"user.b", b"c"),
        lambda tx: world.store.set(tx, world.inode(12), b"user.new", b"n" * 200),
        lambda tx: world.store.set(tx, world.inode(14), b"user.b", b"b" * 100),
        lambda tx: world.store.remove(tx, world.inode(12), b"user.a"),
        lambda tx: world.store.release(tx, world.inode(13)),
    ]
    for change in [*changes, lambda tx: [one(tx) for one in changes]]:
        with pytest.raises(KeyboardInterrupt), world.operation() as tx:
            change(tx)
            raise KeyboardInterrupt
        assert (world.all(12), world.all(13), world.used) == before
        assert world.all(14) == {}
        world.check()
    world.set(b"user.new", b"n" * 200, 14)
    world.volume.alloc.conversion_reserve = world.volume.superblock.free_blocks
    with pytest.raises(NoSpace):
        world.set(b"user.other", b"o" * 200, 15)
    assert world.all(15) == {}
    world.check()


def test_errors() -> None:
    world = World()
    with pytest.raises(NoData):
        world.store.get(world.inode(), b"user.a")
    world.set(b"user.a", b"1")
    with pytest.raises(Exists):
        world.set(b"user.a", b"1", create=True)
    with pytest.raises(NoData):
        world.set(b"user.b", b"1", replace=True)
    with pytest.raises(NoData):
        world.remove(b"user.b")
    assert not world.set(b"user.a", b"1", replace=True)
    for name, error in (
        (b"", OutOfRange),
        (b"user." + b"x" * 251, OutOfRange),
        (b"user.", Invalid),
        (b"user.a\0b", Invalid),
        (b"foo.bar", NotSupported),
        (b"system.data", NotSupported),
        (b"user", NotSupported),
    ):
        with pytest.raises(error):
            world.set(name, b"1")
        with pytest.raises(error):
            world.store.get(world.inode(), name)
    with pytest.raises(TooBig):
        world.set(b"user.c", b"1" * 65537)
    with pytest.raises(NoSpace):
        world.set(b"user.c", b"1" * 2000)
    assert world.all() == {b"user.a": b"1"}
    world.set(b"user." + b"x" * 250, b"long")


def test_acls() -> None:
    world = World()
    access = (AclEnt(1, 7), AclEnt(2, 5, 100), AclEnt(4, 5), AclEnt(16, 7), AclEnt(32, 0))
    inode = world.inode()
    with world.operation() as tx:
        assert world.store.set_acl(tx, inode, access, default=False)
        assert not world.store.set_acl(tx, inode, access, default=False)
        assert not world.store.set_acl(tx, inode, None, default=True)
    assert world.store.get_acl(inode, default=False) == access
    assert world.store.get_acl(inode, default=True) is None
    assert world.store.list(inode) == [b"system.posix_acl_access"]
    assert world.store.get(inode, b"system.posix_acl_access") == acl.to_xattr(access)
    with pytest.raises(NoData):
        world.store.get(inode, b"system.posix_acl_default")
    with world.operation() as tx:
        assert world.store.set_acl(tx, inode, None, default=False)
    assert world.store.list(inode) == [] and not any(inode.ibody)


# -- hostile bytes ---------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.data())
def test_damaged_attributes_give_errors_of_ours(data: st.DataObject) -> None:
    world = World(csum=False)
    world.set(b"user.a", b"1" * 20)
    world.set(b"user.b", b"2" * 150)
    world.set(b"trusted.c", b"3" * 150)
    world.remount()
    inode = world.inode()
    for _ in range(data.draw(st.integers(1, 3))):
        junk = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(b"\xff" * 4), st.just(bytes(4))))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, 60))
            inode.ibody = (inode.ibody[:at] + junk + inode.ibody[at + len(junk) :])[:96]
        else:
            raw = bytearray(world.device.blocks[inode.file_acl])
            at = data.draw(st.one_of(st.integers(0, 90), st.integers(0, 1000)))
            raw[at : at + len(junk)] = junk
            world.device.blocks[inode.file_acl] = bytes(raw[:1024])
    attempts: list[Any] = [
        world.all,
        lambda: world.store.get(inode, b"user.b"),
        lambda: world.set(b"user.new", b"n" * 10),
        lambda: world.set(b"user.new", b"n" * 100),
        lambda: world.remove(b"user.a"),
        lambda: world.store.get_acl(inode, default=True),
    ]
    for attempt in attempts:
        with suppress(FsError):
            attempt()
    for obj in world.transactions.detach().dirty:
        if isinstance(obj, MetaBlock):
            obj.encode()


def entry(name: bytes, offset: int, size: int, inum: int = 0) -> bytes:
    head = XATTR_ENTRY.pack(len(name), 1, offset, inum, size, 0)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0")


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (entry(b"abc", 60, 4), None, ""),
        (entry(b"abc", 60, 9), Corrupt, "value.*inode 12"),
        (entry(b"abc", 16, 4), Corrupt, "value"),
        (entry(b"abc", 65532, 4), Corrupt, "value"),
        (entry(b"abc", 56, 0xFFFFFFFE), Corrupt, "value"),
        (entry(b"abc", 60, 4) + entry(b"def", 60, 4), Corrupt, "inode 12.*two"),
        (entry(b"abc", 56, 8) + entry(b"def", 60, 4), Corrupt, "inode 12.*two"),
        (entry(b"a\0c", 60, 4), Corrupt, "name"),
        (entry(b"x" * 200, 0, 0)[:60], Corrupt, "entry"),
        (entry(b"abc", 0, 65537, 77), Corrupt, "value"),
        (entry(b"abc", 0, 0, 77), Corrupt, "value"),
        (b"\1" * 64, Corrupt, "entry"),
    ],
)
def test_damaged_bodies(body: bytes, error: type[FsError] | None, text: str) -> None:
    world = World(body=68)
    inode = world.inode()
    inode.ibody = bytes.fromhex("000002ea") + body.ljust(64, b"\0")[:64]
    if error is None:
        assert world.all() == {b"user.abc": bytes(4)}
        return
    with pytest.raises(error, match=text):
        world.store.list(inode)


def test_a_value_in_an_inode_needs_the_feature() -> None:
    world = World(body=68)
    inode = world.inode()
    inode.ibody = bytes.fromhex("000002ea") + entry(b"abc", 0, 4, 77).ljust(64, b"\0")
    assert world.store.list(inode) == [b"user.abc"]
    with pytest.raises(Corrupt, match="a value in an inode"):
        world.store.get(inode, b"user.abc")


def test_damaged_headers() -> None:
    world = World(body=0)
    world.set(b"user.a", b"1")
    world.remount()
    inode = world.inode()
    good = world.device.blocks[inode.file_acl]
    for csum in (True, False):
        world.csum = SEED if csum else None
        for field, value in (("h_magic", 1), ("h_blocks", 2), ("h_refcount", 0), ("h_refcount", 1025)):
            raw = bytearray(good)
            XATTR_HEADER.put(raw, 0, **{field: value})
            world.device.blocks[inode.file_acl] = bytes(raw)
            world.mount()
            with pytest.raises(Corrupt if field == "h_magic" or not csum else BadChecksum):
                world.store.list(inode)
    inode.file_acl = 1 << 30
    with pytest.raises(Corrupt, match="i_file_acl"):
        world.store.list(inode)


def test_layout_of_values_follows_the_order_of_storing() -> None:
    """As the kernel's moving of bytes: what was stored last is lowest; what keeps its size keeps its place."""
    world = World(body=0)
    for name, value in ((b"user.c", b"C" * 8), (b"user.a", b"A" * 4), (b"user.b", b"B" * 4), (b"user.a", b"a" * 3)):
        world.set(name, value)
    world.remount()
    raw = world.device.blocks[world.inode().file_acl]
    assert raw[-16:] == b"BBBB" + b"aaa\0" + b"C" * 8
    world.set(b"user.c", b"c" * 4)
    world.remount()
    raw = world.device.blocks[world.inode().file_acl]
    assert raw[-12:] == b"cccc" + b"BBBB" + b"aaa\0"


def test_build_then_parse() -> None:
    attrs = XattrBlock(1, 1024, None, 1, ()).attrs
    assert space(attrs) == 4
    assert build(attrs, b"head", 8, 4) == b"head" + bytes(4)
