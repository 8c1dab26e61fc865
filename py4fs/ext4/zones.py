"""Where no file may be: superblocks, descriptors, bitmaps and inode tables (kernel: block_validity.c).

The zones of a flex group are looked at, never those of the whole volume: its bitmaps and tables lie together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from bitarray import bitarray

from py4fs.errors import Corrupt
from py4fs.ext4.geometry import Geometry

#: the largest flex group whose metadata is looked for in one go; a nonsensical s_log_groups_per_flex must not make it
#: all groups
MAX_FLEX: Final = 1 << 16
#: damaged descriptors in a flex group with which its other groups are still believed
MAX_DAMAGED: Final = 64


class Places(Protocol):
    """What a descriptor says about where its group's metadata lies."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int


class SystemZones:
    """The zones of a volume's flex groups, found when they are first asked for."""

    def __init__(self, geometry: Geometry, desc: Callable[[int], Places]) -> None:
        self._geometry = geometry
        self._desc = desc
        self._flex = min(geometry.groups_per_flex, MAX_FLEX)
        self._zones: dict[int, list[tuple[int, int]]] = {}
        #: flex groups of which not all zones are known, each with a group whose descriptor is damaged
        self._unknown: dict[int, int] = {}

    def check_data_run(self, pblk: int, count: int, where: str) -> None:
        """Refuse block numbers that no file may own. Raises Corrupt (kernel: ext4_inode_block_valid), DeviceError.

        A group whose descriptor is damaged has no zones: the files of its neighbours stay readable.
        """
        geo = self._geometry
        end = pblk + count
        if pblk <= geo.first_data_block or end > geo.blocks_count or count <= 0:
            raise Corrupt("block out of range", where, f"{pblk}+{count}", f"below {geo.blocks_count}")
        flex = self._flex
        for index in range(geo.block_group(pblk)[0] // flex, geo.block_group(end - 1)[0] // flex + 1):
            zones = self._zones.get(index)
            for low, high in self._find(index) if zones is None else zones:
                if pblk < high and end > low:
                    raise Corrupt("block belongs to metadata", where, f"{pblk}+{count}", f"outside {low}..{high - 1}")

    def check_block_bitmap(self, group: int, bits: bitarray) -> None:
        """All zones in a group are in use, and all of them are known (kernel: ext4_valid_block_bitmap).

        The kernel does not look at it where there are flex groups. Raises Corrupt, BadChecksum, DeviceError.
        """
        geo = self._geometry
        index = group // self._flex
        zones = self._zones.get(index)
        if zones is None:
            zones = self._find(index)
        if index in self._unknown:
            self._desc(self._unknown[index])  # raises what is wrong with it
        first = geo.group_first_block(group)
        end = first + geo.group_block_count(group)
        for low, high in zones:
            if low < end and high > first:
                bit = (max(low, first) - first) >> geo.cluster_bits
                free = bits.find(False, bit, geo.clusters(min(high, end) - first))
                if free >= 0:
                    place = first + (free << geo.cluster_bits)
                    raise Corrupt("block bitmap", f"group {group}", f"block {place} free", "in use, for metadata")

    def check_places(self, group: int) -> None:
        """A group's bitmaps and its table are not in each other's place, nor in its descriptors'. Raises Corrupt.

        (kernel: ext4_check_descriptors, of the bitmaps and the descriptors; it does not mount such an image.)
        """
        geo = self._geometry
        desc = self._desc(group)
        first = geo.group_first_block(group)
        zones = {
            "its block bitmap": (desc.block_bitmap, desc.block_bitmap + 1),
            "its inode bitmap": (desc.inode_bitmap, desc.inode_bitmap + 1),
            "its inode table": (desc.inode_table, desc.inode_table + geo.itable_blocks),
            "the descriptors": (first, first + geo.base_meta_blocks(group)),
        }
        end, before = 0, ""
        for what, (low, high) in sorted(zones.items(), key=lambda item: item[1]):
            if low < end and low < high:
                raise Corrupt("group descriptor", f"group {group}", f"{what} at block {low}, where {before} is")
            if high > end:
                end, before = high, what

    def _find(self, index: int) -> list[tuple[int, int]]:
        geo = self._geometry
        zones: list[tuple[int, int]] = []
        damaged = 0
        for group in range(index * self._flex, min((index + 1) * self._flex, geo.groups)):
            first = geo.group_first_block(group)
            base = geo.base_meta_blocks(group)
            if base:
                zones.append((first, first + base))
            try:
                desc = self._desc(group)
            except Corrupt:
                damaged += 1
                if damaged > MAX_DAMAGED:
                    raise
                self._unknown[index] = group
                continue
            zones.append((desc.block_bitmap, desc.block_bitmap + 1))
            zones.append((desc.inode_bitmap, desc.inode_bitmap + 1))
            zones.append((desc.inode_table, desc.inode_table + geo.itable_blocks))
        found = self._zones[index] = merge(zones)
        return found


def merge(zones: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same [first, end) ranges, in order and without overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(zones):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
