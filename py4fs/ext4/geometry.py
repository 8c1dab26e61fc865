"""Where things are: pure arithmetic over a superblock that has been validated field by field.

`Geometry.of` checks what the kernel checks at mount (Corrupt names the field, what was found and what is
allowed); after that every method is total for arguments in range. Units are file system blocks unless said. A cluster
is what block bitmaps have a bit for: with bigalloc a power of two of blocks, else a block.
(ext4 docs: Layout, Super Block, Meta Block Groups.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from py4fs.errors import Corrupt
from py4fs.ext4.features import Compat, Features, Incompat, RoCompat
from py4fs.ext4.layout.group_desc import EXT4_MIN_DESC_SIZE, EXT4_MIN_DESC_SIZE_64BIT
from py4fs.ext4.layout.inode import EXT4_ROOT_INO
from py4fs.ext4.layout.superblock import (
    EXT4_GOOD_OLD_FIRST_INO,
    EXT4_GOOD_OLD_INODE_SIZE,
    EXT4_GOOD_OLD_REV,
    EXT4_MAX_BLOCK_LOG_SIZE,
    EXT4_MAX_CLUSTER_LOG_SIZE,
    EXT4_MIN_BLOCK_LOG_SIZE,
    SUPERBLOCK_OFFSET,
)

_MAX_DESC_SIZE: Final = 1024
_MAX_GROUPS_LOG: Final = 31


def _bad(field: str, got: object, want: object) -> Corrupt:
    return Corrupt(field, "superblock", got, want)


def _power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and places of one file system; made by `of`."""

    block_size: int  # bytes
    block_bits: int  # log2 of it
    blocks_count: int
    first_data_block: int
    blocks_per_group: int
    cluster_bits: int  # log2 of the blocks in a cluster
    inodes_per_group: int
    inodes_count: int
    inode_size: int  # bytes
    first_ino: int  # first inode that is not reserved
    desc_size: int  # bytes
    groups: int
    gdt_blocks: int  # blocks of all group descriptors
    desc_per_block: int
    inodes_per_block: int
    itable_blocks: int  # inode table blocks of one group
    reserved_gdt_blocks: int
    groups_per_flex: int  # 1 without flex_bg
    reserved_blocks: int  # s_r_blocks_count: for root
    min_extra_isize: int  # bytes
    want_extra_isize: int  # bytes; what new inodes get
    has_64bit: bool
    meta_bg: bool
    first_meta_bg: int
    sparse_super: bool
    backup_groups: tuple[int, int] | None  # with sparse_super2: the only groups with backups, 0 for none

    @classmethod
    def of(cls, sb: Any, device_size: int | None = None) -> Geometry:
        """From a superblock record; `device_size` in bytes, when known, must hold all blocks.

        Raises Corrupt naming the first field that breaks a rule.
        """
        features = Features.of(sb)
        bits = _block_bits(sb)
        block_size = 1 << bits
        cluster_bits = _cluster_bits(sb, bool(features.ro_compat & RoCompat.BIGALLOC))
        has_64bit = bool(features.incompat & Incompat.BIT64)
        inode_size, first_ino = _inode_size(sb, block_size)
        extra = _extra_isize(sb, inode_size, bool(features.ro_compat & RoCompat.EXTRA_ISIZE))
        desc_size = _desc_size(sb, has_64bit)
        inodes_per_block = block_size // inode_size
        _check_per_group(sb, block_size, inodes_per_block, cluster_bits)
        high = 32 if has_64bit else None
        blocks_count = sb.s_blocks_count_lo | (sb.s_blocks_count_hi << high if high else 0)
        reserved = sb.s_r_blocks_count_lo | (sb.s_r_blocks_count_hi << high if high else 0)
        _check_blocks(sb, blocks_count, bits, device_size, cluster_bits)
        groups = -(-(blocks_count - sb.s_first_data_block) // sb.s_blocks_per_group)
        if groups * sb.s_inodes_per_group != sb.s_inodes_count:
            want = f"{groups * sb.s_inodes_per_group} ({groups} groups of {sb.s_inodes_per_group})"
            raise _bad("s_inodes_count", sb.s_inodes_count, want)
        if reserved > blocks_count:
            raise _bad("s_r_blocks_count", reserved, f"at most {blocks_count}")
        desc_per_block = block_size // desc_size
        gdt_blocks = -(-groups // desc_per_block)
        meta_bg = bool(features.incompat & Incompat.META_BG)
        if meta_bg and sb.s_first_meta_bg > gdt_blocks:
            raise _bad("s_first_meta_bg", sb.s_first_meta_bg, f"at most {gdt_blocks}")
        flex = sb.s_log_groups_per_flex if features.incompat & Incompat.FLEX_BG else 0
        backups = None
        if features.compat & Compat.SPARSE_SUPER2:
            raw = sb.s_backup_bgs
            backups = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))
        geometry = cls(
            block_size=block_size,
            block_bits=bits,
            blocks_count=blocks_count,
            first_data_block=sb.s_first_data_block,
            blocks_per_group=sb.s_blocks_per_group,
            cluster_bits=cluster_bits,
            inodes_per_group=sb.s_inodes_per_group,
            inodes_count=sb.s_inodes_count,
            inode_size=inode_size,
            first_ino=first_ino,
            desc_size=desc_size,
            groups=groups,
            gdt_blocks=gdt_blocks,
            desc_per_block=desc_per_block,
            inodes_per_block=inodes_per_block,
            itable_blocks=-(-sb.s_inodes_per_group // inodes_per_block),
            reserved_gdt_blocks=sb.s_reserved_gdt_blocks,
            # As in the kernel, a nonsensical value means no flex groups rather than a refusal.
            groups_per_flex=1 << flex if flex <= _MAX_GROUPS_LOG else 1,
            reserved_blocks=reserved,
            min_extra_isize=extra[0],
            want_extra_isize=extra[1],
            has_64bit=has_64bit,
            meta_bg=meta_bg,
            first_meta_bg=sb.s_first_meta_bg if meta_bg else 0,
            sparse_super=bool(features.ro_compat & RoCompat.SPARSE_SUPER),
            backup_groups=backups,
        )
        if geometry.gdt_block_location(gdt_blocks - 1) >= blocks_count:
            raise _bad("s_blocks_count", blocks_count, f"room for {gdt_blocks} blocks of group descriptors")
        return geometry

    # Groups and blocks

    def group_first_block(self, group: int) -> int:
        """The first block of a group."""
        return self.first_data_block + group * self.blocks_per_group

    def group_block_count(self, group: int) -> int:
        """Blocks in a group; only the last one may have fewer than blocks_per_group."""
        return min(self.blocks_per_group, self.blocks_count - self.group_first_block(group))

    def block_group(self, pblk: int) -> tuple[int, int]:
        """(group, number in it) of a block; Corrupt when the block is outside the file system."""
        if not self.first_data_block <= pblk < self.blocks_count:
            want = f"{self.first_data_block} to {self.blocks_count - 1}"
            raise Corrupt("block number", "", pblk, want)
        return divmod(pblk - self.first_data_block, self.blocks_per_group)

    # Clusters

    @property
    def cluster_ratio(self) -> int:
        """Blocks in a cluster."""
        return 1 << self.cluster_bits

    @property
    def cluster_sectors(self) -> int:
        """What a cluster counts in i_blocks: its size in units of 512 bytes."""
        return self.block_size << self.cluster_bits >> 9

    @property
    def clusters_per_group(self) -> int:
        """Bits of a block bitmap."""
        return self.blocks_per_group >> self.cluster_bits

    def group_cluster_count(self, group: int) -> int:
        """Clusters in a group; of the very last one a part may be missing."""
        return self.clusters(self.group_block_count(group))

    def clusters(self, blocks: int) -> int:
        """How many clusters hold so many blocks that start at a cluster's first."""
        return blocks + self.cluster_ratio - 1 >> self.cluster_bits

    def cluster_location(self, pblk: int) -> tuple[int, int]:
        """(group, bit in its bitmap) of a block; Corrupt when the block is outside the file system."""
        group, block = self.block_group(pblk)
        return group, block >> self.cluster_bits

    def whole_clusters(self, pblk: int, count: int) -> tuple[int, int]:
        """(first block, count) of the clusters that a run of blocks touches."""
        mask = self.cluster_ratio - 1
        first = pblk & ~mask if mask else pblk
        return first, (pblk + count + mask & ~mask) - first

    def valid_run(self, pblk: int, count: int) -> bool:
        """Whether [pblk, pblk + count) can be a file's or its metadata's: inside, and not the superblock."""
        return count > 0 and self.first_data_block < pblk and pblk + count <= self.blocks_count

    def flex_group(self, group: int) -> int:
        """The number of the flex group that a group belongs to."""
        return group // self.groups_per_flex

    # Inodes

    def inode_location(self, ino: int) -> tuple[int, int]:
        """(group, index in its table and bitmap) of an inode; Corrupt when there is no such inode."""
        if not 0 < ino <= self.inodes_count:
            raise Corrupt("inode number", "", ino, f"1 to {self.inodes_count}")
        index = ino - 1
        group = index // self.inodes_per_group
        return group, index - group * self.inodes_per_group

    def inode_block(self, index: int) -> tuple[int, int]:
        """(block of the group's inode table, byte offset in it) of the inode with this index."""
        block = index // self.inodes_per_block
        slot = index - block * self.inodes_per_block
        return block, slot * self.inode_size

    def valid_ino(self, ino: int) -> bool:
        """Whether a directory entry may name this inode: the root, or one that is not reserved."""
        return ino == EXT4_ROOT_INO or self.first_ino <= ino <= self.inodes_count

    # Superblock and descriptors

    def has_super(self, group: int) -> bool:
        """Whether the group begins with a superblock (and, without meta_bg, the descriptors)."""
        if group == 0:
            return True
        if self.backup_groups is not None:
            return group in self.backup_groups
        if group == 1 or not self.sparse_super:
            return True
        return group in _sparse_groups(self.groups)

    def super_block(self) -> tuple[int, int]:
        """(block, byte offset in it) of the primary superblock."""
        return divmod(SUPERBLOCK_OFFSET, self.block_size)

    def gdt_block_location(self, index: int) -> int:
        """The block that holds the `index`-th block of (primary) group descriptors."""
        assert 0 <= index < self.gdt_blocks, index
        if not self.meta_bg or index < self.first_meta_bg:
            return self.super_block()[0] + 1 + index
        group = index * self.desc_per_block
        return self.group_first_block(group) + self.has_super(group)

    def desc_location(self, group: int) -> tuple[int, int]:
        """(index of the descriptor block, byte offset in it) of a group's descriptor."""
        index, slot = divmod(group, self.desc_per_block)
        return index, slot * self.desc_size

    def group_gdt_blocks(self, group: int) -> int:
        """Blocks of descriptors (primary or backup) at the beginning of a group."""
        meta_group, slot = divmod(group, self.desc_per_block)
        if not self.meta_bg:
            return self.gdt_blocks if self.has_super(group) else 0
        if meta_group < self.first_meta_bg:
            return self.first_meta_bg if self.has_super(group) else 0
        return int(slot in (0, 1, self.desc_per_block - 1))

    def base_meta_blocks(self, group: int) -> int:
        """Blocks at a group's beginning that its superblock, descriptors and their reserve take."""
        blocks = self.group_gdt_blocks(group)
        if self.has_super(group):
            blocks += 1
            if not self.meta_bg or group // self.desc_per_block < self.first_meta_bg:
                blocks += self.reserved_gdt_blocks
        if not group:
            # blocks of 1 KiB in clusters: the group begins with the boot block
            blocks += self.super_block()[0] - self.first_data_block
        return blocks

    def overhead_blocks(self, journal_blocks: int = 0) -> int:
        """Blocks that can never hold data, as statfs counts them (s_overhead_clusters has priority there).

        Counted without visiting all groups. As in the kernel the reserve for descriptors is not part of it.
        """
        supers = self.super_groups()
        total = self.first_data_block + len(supers) + self.groups * (self.itable_blocks + 2) + journal_blocks
        if not self.meta_bg:
            return total + len(supers) * self.gdt_blocks
        old = self.first_meta_bg * self.desc_per_block
        early = range(min(old, self.groups)) if isinstance(supers, range) else [g for g in supers if g < old]
        total += len(early) * self.first_meta_bg
        if self.groups > old:
            full, rest = divmod(self.groups - old, self.desc_per_block)
            # A last, partial meta group has its first two groups at most.
            total += full * min(3, self.desc_per_block) + min(rest, 2)
        return total

    def super_groups(self) -> range | list[int]:
        """The groups that begin with a superblock, in order."""
        if self.backup_groups is not None:
            return sorted({0, *(group for group in self.backup_groups if group < self.groups)})
        if not self.sparse_super:
            return range(self.groups)
        return sorted({0, *_sparse_groups(self.groups), *([1] if self.groups > 1 else [])})


@lru_cache(maxsize=16)
def _sparse_groups(groups: int) -> frozenset[int]:
    """Powers of 3, 5 and 7 below `groups`: the groups with backups under sparse_super, besides 0 and 1."""
    found = set()
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return frozenset(found)


def _block_bits(sb: Any) -> int:
    most = EXT4_MAX_BLOCK_LOG_SIZE - EXT4_MIN_BLOCK_LOG_SIZE
    if sb.s_log_block_size > most:
        raise _bad("s_log_block_size", sb.s_log_block_size, f"at most {most} (64 KiB)")
    return EXT4_MIN_BLOCK_LOG_SIZE + int(sb.s_log_block_size)


def _cluster_bits(sb: Any, bigalloc: bool) -> int:
    block, cluster = int(sb.s_log_block_size), int(sb.s_log_cluster_size)
    if not bigalloc:
        if cluster != block:
            raise _bad("s_log_cluster_size", cluster, f"{block} (= s_log_block_size)")
        return 0
    most = EXT4_MAX_CLUSTER_LOG_SIZE - EXT4_MIN_BLOCK_LOG_SIZE
    if not block <= cluster <= most:
        raise _bad("s_log_cluster_size", cluster, f"{block} (s_log_block_size) to {most}")
    return cluster - block


def _inode_size(sb: Any, block_size: int) -> tuple[int, int]:
    """(s_inode_size, s_first_ino), which the oldest revision does not store."""
    if sb.s_rev_level == EXT4_GOOD_OLD_REV:
        return EXT4_GOOD_OLD_INODE_SIZE, EXT4_GOOD_OLD_FIRST_INO
    size, first = int(sb.s_inode_size), int(sb.s_first_ino)
    if not EXT4_GOOD_OLD_INODE_SIZE <= size <= block_size or not _power_of_two(size):
        raise _bad("s_inode_size", size, f"a power of two from {EXT4_GOOD_OLD_INODE_SIZE} to {block_size}")
    if not EXT4_GOOD_OLD_FIRST_INO <= first <= sb.s_inodes_count:
        raise _bad("s_first_ino", first, f"{EXT4_GOOD_OLD_FIRST_INO} to {sb.s_inodes_count} (s_inodes_count)")
    return size, first


def _extra_isize(sb: Any, inode_size: int, stored: bool) -> tuple[int, int]:
    """(min, want) bytes of i_extra_isize; without the feature new inodes get room for all known fields."""
    room = inode_size - EXT4_GOOD_OLD_INODE_SIZE
    if not room:
        return 0, 0
    want = 32
    if not stored:
        return 0, want
    for field in ("s_min_extra_isize", "s_want_extra_isize"):
        value = getattr(sb, field)
        if value > room or value & 3:
            raise _bad(field, value, f"a multiple of 4 up to {room}")
    return sb.s_min_extra_isize, max(want, sb.s_min_extra_isize, sb.s_want_extra_isize)


def _desc_size(sb: Any, has_64bit: bool) -> int:
    if not has_64bit:
        return EXT4_MIN_DESC_SIZE
    size = int(sb.s_desc_size)
    if not EXT4_MIN_DESC_SIZE_64BIT <= size <= _MAX_DESC_SIZE or not _power_of_two(size):
        raise _bad("s_desc_size", size, f"a power of two from {EXT4_MIN_DESC_SIZE_64BIT} to {_MAX_DESC_SIZE}")
    return size


def _check_per_group(sb: Any, block_size: int, inodes_per_block: int, cluster_bits: int) -> None:
    blocks, inodes = sb.s_blocks_per_group, sb.s_inodes_per_group
    if cluster_bits:
        if blocks != sb.s_clusters_per_group << cluster_bits:
            raise _bad("s_blocks_per_group", blocks, f"{sb.s_clusters_per_group} clusters of {1 << cluster_bits}")
        blocks = sb.s_clusters_per_group
    bits = block_size * 8
    # A group has at least its own bitmaps and a block of inodes; mke2fs's least is 256 blocks.
    if not 8 <= blocks <= bits or blocks & 7:
        raise _bad("s_blocks_per_group", blocks, f"a multiple of 8 up to {bits}")
    if not inodes_per_block <= inodes <= bits or inodes & 7:
        raise _bad("s_inodes_per_group", inodes, f"a multiple of 8 from {inodes_per_block} to {bits}")
    if sb.s_reserved_gdt_blocks > block_size // 4:
        raise _bad("s_reserved_gdt_blocks", sb.s_reserved_gdt_blocks, f"at most {block_size // 4}")


def _check_blocks(sb: Any, blocks_count: int, bits: int, device_size: int | None, cluster_bits: int) -> None:
    first = 1 if bits == EXT4_MIN_BLOCK_LOG_SIZE and not cluster_bits else 0
    if sb.s_first_data_block != first:
        raise _bad("s_first_data_block", sb.s_first_data_block, f"{first} for blocks of {1 << bits} bytes")
    if blocks_count <= first:
        raise _bad("s_blocks_count", blocks_count, f"more than {first}")
    if device_size is not None and blocks_count << bits > device_size:
        want = f"at most {device_size >> bits} (the device has {device_size} bytes)"
        raise _bad("s_blocks_count", blocks_count, want)
