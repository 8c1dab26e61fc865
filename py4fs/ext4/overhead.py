"""What can never hold data, as statfs counts it: superblocks, descriptors, bitmaps, inode tables, the journal."""

from __future__ import annotations

import logging
from typing import Any, Final

from py4fs.errors import Corrupt, Stale
from py4fs.ext4.features import Compat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import Groups
from py4fs.ext4.inode import Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.layout.inode import EXT4_JOURNAL_INO
from py4fs.ext4.zones import MAX_FLEX, merge

log = logging.getLogger(__name__)

#: groups whose descriptors are looked at; beyond it clusters that are shared by metadata of several kinds count twice
MAX_GROUPS: Final = 1 << 20


def overhead_blocks(record: Any, geometry: Geometry, groups: Groups, inodes: InodeTable) -> int:
    """Blocks, from the superblock's ``record`` if it says (kernel: ext4_calculate_overhead). Raises DeviceError."""
    stored: int = record.s_overhead_clusters << geometry.cluster_bits
    if 0 < stored < geometry.blocks_count:
        return stored
    inode = _journal(record, inodes)
    journal = 0 if inode is None else inode.size // geometry.block_size
    if geometry.cluster_bits and geometry.groups <= MAX_GROUPS:
        found = metadata_clusters(geometry, groups) + geometry.clusters(journal) << geometry.cluster_bits
    else:
        found = geometry.overhead_blocks(journal)
    return min(found, geometry.blocks_count)


def _journal(record: Any, inodes: InodeTable) -> Inode | None:
    if not record.s_feature_compat & Compat.HAS_JOURNAL or record.s_journal_inum != EXT4_JOURNAL_INO:
        return None
    try:
        return inodes.get(EXT4_JOURNAL_INO, reserved=True)
    except (Corrupt, Stale) as exc:
        log.warning("the journal is not counted as overhead: %s", exc)
        return None


def metadata_clusters(geometry: Geometry, groups: Groups) -> int:
    """Clusters with metadata in them, in one pass over all descriptors (kernel: count_overhead). Raises DeviceError.

    As in the kernel, the reserve for descriptors is not part of it, and a group's superblock is at its beginning.
    Groups of one flex group have their metadata together, so clusters that they share are seen.
    """
    flex = min(geometry.groups_per_flex, MAX_FLEX)
    zones: list[tuple[int, int]] = []
    total = 0

    def add(first: int, count: int) -> None:
        if geometry.first_data_block <= first < geometry.blocks_count and count:
            low, end = first - geometry.first_data_block, first + count - geometry.first_data_block
            zones.append((low >> geometry.cluster_bits, geometry.clusters(end)))

    for desc in groups.descriptors():
        supers = int(geometry.has_super(desc.group)) + geometry.group_gdt_blocks(desc.group)
        add(geometry.group_first_block(desc.group), supers)
        add(desc.block_bitmap, 1)
        add(desc.inode_bitmap, 1)
        add(desc.inode_table, geometry.itable_blocks)
        if not (desc.group + 1) % flex or desc.group + 1 == geometry.groups:
            total += sum(high - low for low, high in merge(zones))
            zones.clear()
    return total
