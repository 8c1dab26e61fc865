"""One node of an extent tree, parsed: sorted entries beside their keys (ext4 docs: extent tree)."""

from __future__ import annotations

from typing import Final

from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import MetaBlock
from py4fs.ext4.layout.extent import (
    EXT_INIT_MAX_LEN,
    EXT_MAX_DEPTH,
    EXTENT,
    EXTENT_HEADER,
    EXTENT_INDEX,
    EXTENT_MAGIC,
    EXTENT_TAIL,
)

ENTRY_SIZE: Final = EXTENT.size
HEADER_SIZE: Final = EXTENT_HEADER.size


class Extent:
    """``count`` blocks of a file from ``lblk`` on, at ``pblk`` on the device. Never changed: nodes share them."""

    __slots__ = ("count", "lblk", "pblk", "unwritten")

    def __init__(self, lblk: int, count: int, pblk: int, unwritten: bool) -> None:
        self.lblk = lblk
        self.count = count
        self.pblk = pblk
        self.unwritten = unwritten

    def sized(self, count: int) -> Extent:
        """The same with another length."""
        return Extent(self.lblk, count, self.pblk, self.unwritten)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Extent)
            and self.lblk == other.lblk
            and self.count == other.count
            and self.pblk == other.pblk
            and self.unwritten == other.unwritten
        )

    def __hash__(self) -> int:
        return hash((self.lblk, self.pblk))

    def __repr__(self) -> str:
        return f"Extent({self.lblk}, {self.count}, {self.pblk}, {self.unwritten})"

    @property
    def end(self) -> int:
        return self.lblk + self.count


class ExtentNode(MetaBlock):
    """A leaf (depth 0: ``extents``) or an index node (``children``); ``keys`` are their first logical blocks.

    The root has ``pblk`` 0 and lives in the inode, every other node in a block of its own.
    """

    __slots__ = ("block_size", "children", "depth", "extents", "keys", "limit", "seed")

    def __init__(self, pblk: int, depth: int, limit: int, block_size: int, seed: int | None) -> None:
        super().__init__(pblk)
        self.depth = depth
        self.limit = limit
        self.block_size = block_size
        #: checksum seed of the owning inode; None without metadata_csum
        self.seed = seed
        self.keys: list[int] = []
        self.extents: list[Extent] = []
        self.children: list[int] = []

    @property
    def last(self) -> int:
        """The last logical block that an entry here covers, or (index) starts at; -1 when there is none."""
        if not self.keys:
            return -1
        return self.keys[-1] if self.depth else self.extents[-1].end - 1

    @property
    def full(self) -> bool:
        return len(self.keys) >= self.limit

    def save(self) -> tuple[int, list[int], list[Extent], list[int]]:
        return (self.depth, self.keys.copy(), self.extents.copy(), self.children.copy())

    def restore(self, state: tuple[int, list[int], list[Extent], list[int]]) -> None:
        self.depth, self.keys, self.extents, self.children = state

    def put_extent(self, index: int, extent: Extent) -> None:
        self.keys.insert(index, extent.lblk)
        self.extents.insert(index, extent)

    def set_extent(self, index: int, extent: Extent) -> None:
        self.keys[index] = extent.lblk
        self.extents[index] = extent

    def put_child(self, index: int, key: int, pblk: int) -> None:
        self.keys.insert(index, key)
        self.children.insert(index, pblk)

    def pop(self, index: int) -> None:
        del self.keys[index]
        del (self.children if self.depth else self.extents)[index]

    def move_tail(self, index: int, other: ExtentNode) -> None:
        """Give the entries from ``index`` on to the (empty) node ``other``."""
        other.keys, self.keys = self.keys[index:], self.keys[:index]
        other.extents, self.extents = self.extents[index:], self.extents[:index]
        other.children, self.children = self.children[index:], self.children[:index]

    def pack(self, size: int) -> bytearray:
        """The node's bytes in ``size`` bytes of space (60 in the inode), without checksum."""
        buf = bytearray(size)
        EXTENT_HEADER.pack_into(buf, 0, EXTENT_MAGIC, len(self.keys), self.limit, self.depth, 0)
        if self.depth:
            flat = [
                value
                for key, child in zip(self.keys, self.children, strict=True)
                for value in (key, child & 0xFFFFFFFF, child >> 32, 0)
            ]
            codec = EXTENT_INDEX
        else:
            flat = [
                value
                for e in self.extents
                for value in (
                    e.lblk,
                    e.count + EXT_INIT_MAX_LEN if e.unwritten else e.count,
                    e.pblk >> 32,
                    e.pblk & 0xFFFFFFFF,
                )
            ]
            codec = EXTENT
        codec.pack_many_into(buf, HEADER_SIZE, flat)
        return buf

    def encode(self) -> bytearray:
        buf = self.pack(self.block_size)
        if self.seed is not None:
            checksum.set_extent_block(buf, self.seed)
        return buf


def parse_node(
    raw: bytes | bytearray,
    *,
    pblk: int,
    depth: int | None,
    block_size: int,
    seed: int | None,
    where: str,
) -> ExtentNode:
    """Parse and check a node; ``depth`` is what its parent says (None for the root). Raises Corrupt, BadChecksum."""
    magic, entries, most, its_depth, _ = EXTENT_HEADER.values_from(raw)
    if magic != EXTENT_MAGIC:
        raise Corrupt("extent header magic", where, hex(magic), hex(EXTENT_MAGIC))
    if depth is None and its_depth > EXT_MAX_DEPTH:
        raise Corrupt("extent tree depth", where, its_depth, f"at most {EXT_MAX_DEPTH}")
    if depth is not None and its_depth != depth:
        raise Corrupt("extent node depth", where, its_depth, depth)
    room = (len(raw) - HEADER_SIZE) // ENTRY_SIZE
    if not 0 < most <= room:
        raise Corrupt("eh_max", where, most, f"1..{room}")
    if entries > most or (not entries and (depth is not None or its_depth)):
        raise Corrupt("eh_entries", where, entries, f"1..{most}")
    if seed is not None and depth is not None:
        tail = HEADER_SIZE + ENTRY_SIZE * most
        if tail + EXTENT_TAIL.size > len(raw):
            raise Corrupt("eh_max", where, most, "room for a checksum behind the entries")
        checksum.verify_extent_block(raw, seed, where)
    node = ExtentNode(pblk, its_depth, most, block_size, seed)
    if node.depth:
        for key, low, high, _ in EXTENT_INDEX.iter_values(raw, HEADER_SIZE, entries):
            node.keys.append(key)
            node.children.append(low | high << 32)
        for before, after in zip(node.keys, node.keys[1:], strict=False):
            if after <= before:
                raise Corrupt("extent index order", where, after, f"above {before}")
    else:
        end = 0
        for lblk, length, high, low in EXTENT.iter_values(raw, HEADER_SIZE, entries):
            unwritten = length > EXT_INIT_MAX_LEN
            count = length - EXT_INIT_MAX_LEN if unwritten else length
            extent = Extent(lblk, count, low | high << 32, unwritten)
            if not count or lblk < end or lblk + count > 1 << 32:
                raise Corrupt("extent order", where, f"{lblk}+{count}", f"a non-empty extent from block {end} on")
            end = lblk + count
            node.keys.append(lblk)
            node.extents.append(extent)
    return node
