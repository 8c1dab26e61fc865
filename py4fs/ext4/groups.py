"""Block groups: descriptors and bitmaps, loaded lazily, encoded at commit (ext4 docs: group_descr, bitmaps)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from bitarray import bitarray

from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import RANK_GROUP, BufferCache, RawBlock
from py4fs.ext4.checksum import GroupDescChecksum
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.group_desc import (
    BG_BLOCK_UNINIT,
    BG_INODE_UNINIT,
    GROUP_DESC_32,
    GROUP_DESC_64,
)
from py4fs.ext4.transaction import Undoable
from py4fs.ext4.zones import SystemZones

log = logging.getLogger(__name__)

#: bitmaps kept in memory; beyond it clean ones without pending frees are dropped
BITMAP_LIMIT = 2048
#: damaged groups that allocation passes over before it gives up
MAX_DAMAGED: Final = 64


class GroupDesc(Undoable):
    """One group's descriptor. Counts are in clusters (blocks, without bigalloc) and inodes."""

    __slots__ = (
        "block_bitmap",
        "block_bitmap_csum",
        "flags",
        "free_blocks",
        "free_inodes",
        "group",
        "inode_bitmap",
        "inode_bitmap_csum",
        "inode_table",
        "itable_unused",
        "used_dirs",
    )

    def __init__(self, group: int, record: object, wide: bool) -> None:
        get = record.__getattribute__

        def joined(name: str) -> int:
            value: int = get(name + "_lo")
            return value | get(name + "_hi") << bits[name] if wide else value

        bits = {
            "bg_block_bitmap": 32, "bg_inode_bitmap": 32, "bg_inode_table": 32, "bg_free_blocks_count": 16,
            "bg_free_inodes_count": 16, "bg_used_dirs_count": 16, "bg_itable_unused": 16,
            "bg_block_bitmap_csum": 16, "bg_inode_bitmap_csum": 16,
        }  # fmt: skip
        self.group = group
        self.block_bitmap = joined("bg_block_bitmap")
        self.inode_bitmap = joined("bg_inode_bitmap")
        self.inode_table = joined("bg_inode_table")
        self.free_blocks = joined("bg_free_blocks_count")
        self.free_inodes = joined("bg_free_inodes_count")
        self.used_dirs = joined("bg_used_dirs_count")
        self.itable_unused = joined("bg_itable_unused")
        self.block_bitmap_csum = joined("bg_block_bitmap_csum")
        self.inode_bitmap_csum = joined("bg_inode_bitmap_csum")
        self.flags: int = get("bg_flags")

    def save(self) -> tuple[int, int, int, int, int]:
        return (self.free_blocks, self.free_inodes, self.used_dirs, self.flags, self.itable_unused)

    def restore(self, state: tuple[int, int, int, int, int]) -> None:
        self.free_blocks, self.free_inodes, self.used_dirs, self.flags, self.itable_unused = state


class Bitmap(Undoable):
    """A group's block or inode bitmap.

    ``bits`` is what goes to the device. ``held`` is what the allocator must avoid: ``bits`` plus the blocks whose
    freeing has not committed yet (or which an unlocked I/O still covers); it is ``bits`` itself while there are none.
    """

    __slots__ = ("bits", "group", "held", "inodes", "pblk", "pending")

    def __init__(self, group: int, pblk: int, bits: bitarray, inodes: bool) -> None:
        self.group = group
        self.pblk = pblk
        self.bits = bits
        self.held = bits
        self.pending = 0
        self.inodes = inodes

    def save(self) -> tuple[bitarray, bitarray | None, int]:
        return (self.bits.copy(), None if self.held is self.bits else self.held.copy(), self.pending)

    def restore(self, state: tuple[bitarray, bitarray | None, int]) -> None:
        bits, held, self.pending = state
        self.bits = bits
        self.held = bits if held is None else held

    def take(self, first: int, count: int) -> None:
        self.bits[first : first + count] = True
        if self.held is not self.bits:
            self.held[first : first + count] = True

    def give_back(self, first: int, count: int) -> None:
        """Clear in ``bits`` only; :meth:`release` makes the run allocatable."""
        if self.held is self.bits:
            self.held = self.bits.copy()
        self.bits[first : first + count] = False
        self.pending += count

    def release(self, first: int, count: int) -> None:
        self.held[first : first + count] = False
        self.pending -= count
        if self.pending == 0:
            self.held = self.bits


class Groups:
    """All descriptors and bitmaps of a volume. Nothing here visits every group."""

    def __init__(
        self, geometry: Geometry, buffers: BufferCache, desc_csum: GroupDescChecksum, fs_seed: int | None
    ) -> None:
        self._geometry = geometry
        self._buffers = buffers
        self._desc_csum = desc_csum
        #: whether the UNINIT flags of descriptors count: not without a checksum over them
        self._uninit = desc_csum.compute is not None
        #: seed of the bitmaps' checksums, None without metadata_csum
        self._seed = fs_seed
        self._codec = GROUP_DESC_64 if geometry.desc_size >= 64 else GROUP_DESC_32
        self._descs: dict[int, GroupDesc] = {}
        self._block_bitmaps: dict[int, Bitmap] = {}
        self._inode_bitmaps: dict[int, Bitmap] = {}
        self._zones = SystemZones(geometry, self.desc)
        self.check_data_run = self._zones.check_data_run
        #: groups whose bitmaps were found damaged; nothing is allocated there (as the kernel does)
        self.damaged: set[int] = set()
        #: told of each damaged descriptor that is met
        self.desc_damaged: Callable[[Corrupt], None] = _ignore

    @property
    def blocks_per_group(self) -> int:
        return self._geometry.blocks_per_group

    # -- descriptors ---------------------------------------------------------------------------------------

    def desc(self, group: int) -> GroupDesc:
        """The group's descriptor. Raises BadChecksum, Corrupt (and tells `desc_damaged`), DeviceError."""
        desc = self._descs.get(group)
        if desc is None:
            try:
                desc = self._load_desc(group)
            except Corrupt as exc:
                self.desc_damaged(exc)
                raise
        return desc

    def sound_desc(self, group: int) -> GroupDesc | None:
        """The descriptor, None when nothing is to be allocated there. Raises as :meth:`condemn`, DeviceError."""
        if group in self.damaged:
            return None
        try:
            return self.desc(group)
        except Corrupt as exc:
            self.condemn(group, exc)
            return None

    def _load_desc(self, group: int) -> GroupDesc:
        geo = self._geometry
        block, offset = self._desc_block(group)
        pblk = block.pblk
        where = f"group {group} descriptor (block {pblk}, byte {offset})"
        raw = bytes(block.data[offset : offset + geo.desc_size])
        self._desc_csum.verify(raw, group)
        desc = GroupDesc(group, self._codec.unpack_from(raw), self._codec is GROUP_DESC_64)
        last = geo.blocks_count
        for name, first, count in (
            ("bg_block_bitmap", desc.block_bitmap, 1),
            ("bg_inode_bitmap", desc.inode_bitmap, 1),
            ("bg_inode_table", desc.inode_table, geo.itable_blocks),
        ):
            if first <= geo.first_data_block or first + count > last:
                raise Corrupt(f"{name} out of range", where, first, f"{geo.first_data_block + 1}..{last - count}")
        # free counts are compared with the bitmaps before they are used for more than statistics
        desc.used_dirs = min(desc.used_dirs, geo.inodes_per_group)
        self._descs[group] = desc
        return desc

    def count_free(self) -> tuple[int, int]:
        """Free blocks and inodes as the descriptors say: one pass over all of them. Raises DeviceError.

        Descriptors that make no sense count as full.
        """
        geo = self._geometry
        blocks = inodes = 0
        wide = self._codec is GROUP_DESC_64
        for group, desc in self._records():
            free_blocks, free_inodes = desc.bg_free_blocks_count_lo, desc.bg_free_inodes_count_lo
            if wide:
                free_blocks |= desc.bg_free_blocks_count_hi << 16
                free_inodes |= desc.bg_free_inodes_count_hi << 16
            if free_blocks <= geo.group_cluster_count(group) and free_inodes <= geo.inodes_per_group:
                blocks += free_blocks
                inodes += free_inodes
        return blocks << geo.cluster_bits, inodes

    def descriptors(self) -> Iterator[GroupDesc]:
        """The descriptors as they are on the device, unchecked; none of them is kept. Raises DeviceError."""
        wide = self._codec is GROUP_DESC_64
        return (GroupDesc(group, record, wide) for group, record in self._records())

    def _records(self) -> Iterator[tuple[int, Any]]:
        geo = self._geometry
        for index in range(geo.gdt_blocks):
            raw = self._buffers.read(geo.gdt_block_location(index))
            if raw.count(0) == len(raw):
                continue  # no descriptor is all zeros, but a large sparse image may be
            first = index * geo.desc_per_block
            for slot in range(min(geo.desc_per_block, geo.groups - first)):
                yield first + slot, self._codec.unpack_from(raw, slot * geo.desc_size)

    def condemn(self, group: int, exc: Corrupt) -> None:
        """Allocate nothing in this group any more. Raises ``exc`` when that has been said of too many groups."""
        self.damaged.add(group)
        if len(self.damaged) > MAX_DAMAGED:
            raise exc
        log.error("group %d is not used for allocation: %s", group, exc)

    def preload(self, group: int) -> None:
        """Have the block with a group's descriptor in memory. Raises DeviceError."""
        self._desc_block(group)

    def _desc_block(self, group: int) -> tuple[RawBlock, int]:
        index, offset = self._geometry.desc_location(group)
        return self._buffers.get(self._geometry.gdt_block_location(index), RawBlock, _gdt_block), offset

    def store_desc(self, desc: GroupDesc) -> RawBlock:
        """Encode into the descriptor table block, which is returned."""
        geo = self._geometry
        block, offset = self._desc_block(desc.group)
        fields = {
            "bg_free_blocks_count_lo": desc.free_blocks & 0xFFFF,
            "bg_free_inodes_count_lo": desc.free_inodes & 0xFFFF,
            "bg_used_dirs_count_lo": desc.used_dirs & 0xFFFF,
            "bg_itable_unused_lo": desc.itable_unused & 0xFFFF,
            "bg_block_bitmap_csum_lo": desc.block_bitmap_csum & 0xFFFF,
            "bg_inode_bitmap_csum_lo": desc.inode_bitmap_csum & 0xFFFF,
            "bg_flags": desc.flags,
        }
        if self._codec is GROUP_DESC_64:
            fields.update(
                bg_free_blocks_count_hi=desc.free_blocks >> 16,
                bg_free_inodes_count_hi=desc.free_inodes >> 16,
                bg_used_dirs_count_hi=desc.used_dirs >> 16,
                bg_itable_unused_hi=desc.itable_unused >> 16,
                bg_block_bitmap_csum_hi=desc.block_bitmap_csum >> 16,
                bg_inode_bitmap_csum_hi=desc.inode_bitmap_csum >> 16,
            )
        self._codec.put(block.data, offset, **fields)
        raw = block.data[offset : offset + geo.desc_size]
        self._desc_csum.set(raw, desc.group)
        block.data[offset : offset + geo.desc_size] = raw
        return block

    # -- bitmaps -------------------------------------------------------------------------------------------

    def block_bitmap(self, group: int) -> Bitmap:
        """Raises BadChecksum, Corrupt, DeviceError."""
        bitmap = self._block_bitmaps.get(group)
        if bitmap is None:
            with self._condemned_if_damaged(group):
                desc = self.desc(group)
                self._zones.check_places(group)
                if self._uninit and desc.flags & BG_BLOCK_UNINIT:
                    bits = self._fresh_block_bits(group)
                else:
                    bits = self._read_bits(group, desc.block_bitmap, False)
                free = bits.count(False, 0, self._geometry.group_cluster_count(group))
                if free != desc.free_blocks:
                    want = f"{desc.free_blocks} (descriptor)"
                    raise Corrupt("free blocks", f"group {group} block bitmap", free, want)
                self._zones.check_block_bitmap(group, bits)
            bitmap = self._keep(self._block_bitmaps, Bitmap(group, desc.block_bitmap, bits, False))
        return bitmap

    def inode_bitmap(self, group: int) -> Bitmap:
        """Raises BadChecksum, Corrupt, DeviceError."""
        bitmap = self._inode_bitmaps.get(group)
        if bitmap is None:
            bits = self._load_inode_bits(group)
            bitmap = self._keep(self._inode_bitmaps, Bitmap(group, self.desc(group).inode_bitmap, bits, True))
        return bitmap

    def inode_bits(self, group: int) -> bitarray:
        """The inode bitmap, to look at only; one that is not in memory is not kept. Raises as :meth:`inode_bitmap`."""
        bitmap = self._inode_bitmaps.get(group)
        return self._load_inode_bits(group) if bitmap is None else bitmap.bits

    def _load_inode_bits(self, group: int) -> bitarray:
        geo = self._geometry
        with self._condemned_if_damaged(group):
            desc = self.desc(group)
            self._zones.check_places(group)
            if self._uninit and desc.flags & BG_INODE_UNINIT:
                bits = _ones(geo.block_size * 8)
                bits[: geo.inodes_per_group] = False
            else:
                bits = self._read_bits(group, desc.inode_bitmap, True)
            free = bits.count(False, 0, geo.inodes_per_group)
            if free != desc.free_inodes:
                want = f"{desc.free_inodes} (descriptor)"
                raise Corrupt("free inodes", f"group {group} inode bitmap", free, want)
        return bits

    @contextmanager
    def _condemned_if_damaged(self, group: int) -> Iterator[None]:
        try:
            yield
        except Corrupt:
            self.damaged.add(group)
            raise

    def _keep(self, cache: dict[int, Bitmap], bitmap: Bitmap) -> Bitmap:
        cache[bitmap.group] = bitmap
        return bitmap

    def shrink(self, in_use: Iterable[object], limit: int = BITMAP_LIMIT) -> None:
        """Between operations: drop clean bitmaps beyond the limit."""
        if len(self._block_bitmaps) <= limit and len(self._inode_bitmaps) <= limit:
            return
        for cache in (self._block_bitmaps, self._inode_bitmaps):
            if len(cache) > limit:
                busy = set(map(id, in_use))
                for group in list(cache)[: len(cache) - limit * 3 // 4]:
                    if id(cache[group]) not in busy and not cache[group].pending:
                        del cache[group]

    def _read_bits(self, group: int, pblk: int, inodes: bool) -> bitarray:
        raw = self._buffers.read(pblk)
        desc = self.desc(group)
        kind = "inode" if inodes else "block"
        where = f"group {group} {kind} bitmap (block {pblk})"
        if self._seed is not None:
            stored = desc.inode_bitmap_csum if inodes else desc.block_bitmap_csum
            wide = self._codec is GROUP_DESC_64
            high = stored >> 16 if wide else None
            checksum.verify_bitmap(raw[: self._bitmap_bytes(inodes)], self._seed, stored & 0xFFFF, high, where)
        bits = bitarray(endian="little")
        bits.frombytes(raw)
        return bits

    def _fresh_block_bits(self, group: int) -> bitarray:
        """The bitmap of a BLOCK_UNINIT group: only its own metadata is in use (kernel: ext4_init_block_bitmap)."""
        geo = self._geometry
        desc = self.desc(group)
        first = geo.group_first_block(group)
        count = geo.group_block_count(group)
        bits = _ones(geo.block_size * 8)
        bits[: geo.clusters(count)] = False
        bits[: geo.clusters(geo.base_meta_blocks(group))] = True
        for start, length in ((desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, geo.itable_blocks)):
            low, high = max(start - first, 0), min(start + length - first, count)
            if low < high:
                bits[low >> geo.cluster_bits : geo.clusters(high)] = True
        return bits

    def store_bitmap(self, bitmap: Bitmap) -> bytes:
        """The bitmap's bytes; its checksum goes to the group descriptor (which the caller stores next)."""
        raw = bitmap.bits.tobytes()
        if self._seed is not None:
            low, high = checksum.bitmap_csum(raw[: self._bitmap_bytes(bitmap.inodes)], self._seed)
            desc = self.desc(bitmap.group)
            if bitmap.inodes:
                desc.inode_bitmap_csum = low | high << 16
            else:
                desc.block_bitmap_csum = low | high << 16
        return raw

    def _bitmap_bytes(self, inodes: bool) -> int:
        """How much of a bitmap's block its checksum covers."""
        return (self._geometry.inodes_per_group if inodes else self._geometry.clusters_per_group) // 8


def _ignore(_exc: Corrupt) -> None:
    """Nobody wants to know."""


def _gdt_block(pblk: int, data: bytes) -> RawBlock:
    return RawBlock(pblk, data, None, RANK_GROUP)


def _ones(count: int) -> bitarray:
    bits = bitarray(count, endian="little")
    bits.setall(True)
    return bits
