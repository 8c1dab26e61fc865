"""A volume just large enough for directories: real transactions and buffers, made-up block mapping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from py4fs.errors import Corrupt, DeviceError, NoSpace
from py4fs.ext4.buffers import BufferCache, MetaBlock
from py4fs.ext4.directory import DirContext, Directory
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_INDEX_FL, S_IFDIR
from py4fs.ext4.transaction import Operation, Transactions

SEED = (0x11111111, 0x22222222, 0x33333333, 0x44444444)
INODES = 1 << 24


class Blocks:
    """A device in a dictionary; reads of blocks never written give zeros."""

    name = "memory"
    readonly = False

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.size = block_size << 30
        self.blocks: dict[int, bytes] = {}
        self.reads = 0
        self.fail_at: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        if self.fail_at is not None and self.reads >= self.fail_at:
            raise DeviceError("injected")
        assert length == self.block_size and offset % length == 0
        return self.blocks.get(offset // length, bytes(length))


class Files:
    """Block mapping by dictionary; allocation can be made to fail."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.maps: dict[int, dict[int, int]] = {}
        self.next = 100
        self.left = 1 << 40

    def block_of(self, inode: Inode, lblk: int) -> int:
        pblk = self.maps.get(inode.ino, {}).get(lblk)
        if pblk is None:
            raise Corrupt("hole", f"inode {inode.ino} block {lblk}")
        return pblk

    def init(self, inode: Inode) -> None:
        """A new inode has no blocks."""
        self.maps[inode.ino] = {}

    def append_block(self, tx: Operation, inode: Inode) -> tuple[int, int]:
        if self.left <= 0:
            raise NoSpace("injected")
        self.left -= 1
        tx.touch(inode)
        lblk = inode.size // self.block_size
        pblk = self.next
        self.next += 1
        blocks = self.maps.setdefault(inode.ino, {})
        assert lblk not in blocks
        blocks[lblk] = pblk
        tx.on_abort(lambda: blocks.__delitem__(lblk))
        inode.size += self.block_size
        inode.blocks += self.block_size // 512
        return lblk, pblk


class World:
    """Directories by inode number, and what a test does to them."""

    def __init__(self, block_size: int = 1024, **options: Any) -> None:
        self.block_size = block_size
        self.device = Blocks(block_size)
        self.files = Files(block_size)
        self.transactions = Transactions(lambda: 1_000_000_000)
        self.options: dict[str, Any] = {
            "blocks_count": 1 << 30,
            "inodes_count": INODES,
            "hash_seed": SEED,
            "hash_version": 1,
            "hash_unsigned": False,
            "metadata_csum": True,
            "filetype": True,
            "dir_index": True,
            "largedir": False,
        } | options
        self.inodes: dict[int, Inode] = {}
        self._mount()

    def _mount(self) -> None:
        self.buffers = BufferCache(cast(Any, self.device), self.block_size, self.transactions, 1 << 20)
        self.ctx = DirContext(block_size=self.block_size, buffers=self.buffers, files=self.files, **self.options)

    def operation(self) -> Operation:
        return self.transactions.operation(64)

    def mkdir(self, ino: int = 2, parent: int = 2) -> Directory:
        inode = Inode(ino, 7)
        inode.mode = S_IFDIR | 0o755
        inode.seed = 0x1234 + ino
        self.inodes[ino] = inode
        with self.operation() as tx:
            tx.touch(inode)
            self.dir(ino).init_empty(tx, parent)
            inode.nlink = 2
        return self.dir(ino)

    def dir(self, ino: int = 2) -> Directory:
        inode = self.inodes[ino]
        if inode.dirindex is None:
            inode.dirindex = Directory(self.ctx, inode)
        return cast(Directory, inode.dirindex)

    def add(self, name: bytes, ino: int = 12, ftype: int = 1, *, where: int = 2) -> None:
        with self.operation() as tx:
            self.dir(where).add(tx, name, ino, ftype)

    def remove(self, name: bytes, where: int = 2) -> None:
        with self.operation() as tx:
            self.dir(where).remove(tx, name)

    def commit(self) -> None:
        for obj in self.transactions.detach().dirty:
            if isinstance(obj, MetaBlock):
                raw = bytes(obj.encode())
                assert len(raw) == self.block_size
                self.device.blocks[obj.pblk] = raw

    def remount(self) -> Directory:
        """Write everything, forget everything, read it again (with checksums verified)."""
        self.commit()
        self._mount()
        for ino, inode in self.inodes.items():
            fresh = self.inodes[ino] = Inode(ino, inode.generation)
            fresh.restore(inode.save())
            fresh.seed = inode.seed
        return self.dir()

    def change(self, lblk: int, offset: int, data: bytes, ino: int = 2) -> Directory:
        """Damage a block of a committed directory and mount again."""
        self.commit()
        pblk = self.files.maps[ino][lblk]
        raw = bytearray(self.device.blocks[pblk])
        raw[offset : offset + len(data)] = data
        self.device.blocks[pblk] = bytes(raw)
        return self.remount()

    def raw(self, lblk: int, ino: int = 2) -> bytes:
        return self.device.blocks[self.files.maps[ino][lblk]]

    def indexed(self, ino: int = 2) -> bool:
        return bool(self.inodes[ino].flags & EXT4_INDEX_FL)

    def names(self, ino: int = 2) -> list[bytes]:
        return [entry.name for entry in self.dir(ino).entries()]

    def check(self, ino: int = 2) -> dict[bytes, tuple[int, int]]:
        """Parse the committed bytes with code of its own; every rule that e2fsck has for them. Returns the entries."""
        self.commit()
        return Checker(self, ino).run()


class Checker:
    """An independent reading of a directory's bytes."""

    def __init__(self, world: World, ino: int) -> None:
        self.world = world
        self.inode = world.inodes[ino]
        self.size = world.block_size
        self.tail = 12 if world.options["metadata_csum"] else 0
        self.found: dict[bytes, tuple[int, int]] = {}
        self.seen: set[int] = set()

    def run(self) -> dict[bytes, tuple[int, int]]:
        blocks = self.inode.size // self.size
        assert sorted(self.world.files.maps[self.inode.ino]) == list(range(blocks))
        if not self.inode.flags & EXT4_INDEX_FL:
            for lblk in range(blocks):
                self.leaf(lblk, None)
        else:
            self.root()
            assert self.seen == set(range(blocks)), "blocks outside the index"
        return self.found

    def records(self, raw: bytes, end: int) -> Iterator[tuple[int, int, bytes, int, int]]:
        at = 0
        while at < end:
            ino = int.from_bytes(raw[at : at + 4], "little")
            rec_len = int.from_bytes(raw[at + 4 : at + 6], "little")
            name_len, ftype = raw[at + 6], raw[at + 7]
            if self.size == 65536 and rec_len in (0, 65535):
                rec_len = 65536
            assert rec_len >= 12 and rec_len % 4 == 0 and rec_len >= 8 + name_len
            yield at, ino, raw[at + 8 : at + 8 + name_len], ftype, rec_len
            at += rec_len
        assert at == end

    def leaf(self, lblk: int, hashes: tuple[int, int] | None) -> None:
        assert lblk not in self.seen
        self.seen.add(lblk)
        raw = self.world.raw(lblk, self.inode.ino)
        if self.tail:
            assert raw[-12:-4] == bytes.fromhex("000000000c0000de")
        for _, ino, name, ftype, _ in self.records(raw, self.size - self.tail):
            if ino:
                assert name and name not in self.found, name
                self.found[name] = (ino, ftype)
                if hashes is not None:
                    value = self.world.dir(self.inode.ino).tree.hash_of(name)
                    low, high = hashes
                    assert low & ~1 <= value and (value < high or (high & 1 and value == high & ~1)), (
                        name, hex(value), hex(low), hex(high),
                    )  # fmt: skip

    def root(self) -> None:
        self.seen.add(0)
        raw = self.world.raw(0, self.inode.ino)
        dots = list(self.records(raw, self.size))
        assert [(at, name, rec_len) for at, _, name, _, rec_len in dots] == [
            (0, b".", 12),
            (12, b"..", self.size - 12),
        ]
        for _, ino, name, ftype, _ in dots:
            self.found[name] = (ino, ftype)
        assert raw[24:28] == bytes(4) and raw[29] == 8
        self.index(raw, 32, raw[30], 0, 0xFFFFFFFF)

    def index(self, raw: bytes, base: int, levels: int, low: int, high: int) -> None:
        limit = int.from_bytes(raw[base : base + 2], "little")
        count = int.from_bytes(raw[base + 2 : base + 4], "little")
        assert limit == (self.size - base - (8 if self.tail else 0)) // 8
        assert 0 < count <= limit
        pairs = [
            (int.from_bytes(raw[at : at + 4], "little"), int.from_bytes(raw[at + 4 : at + 8], "little"))
            for at in range(base, base + count * 8, 8)
        ]
        starts = [low] + [value for value, _ in pairs[1:]]
        assert starts == sorted(starts)
        for (start, end), (_, lblk) in zip(zip(starts, [*starts[1:], high], strict=True), pairs, strict=True):
            if not levels:
                self.leaf(lblk, (start, end))
                continue
            assert lblk not in self.seen
            self.seen.add(lblk)
            node = self.world.raw(lblk, self.inode.ino)
            assert len(list(self.records(node, self.size))) == 1
            self.index(node, 8, levels - 1, start, end)
