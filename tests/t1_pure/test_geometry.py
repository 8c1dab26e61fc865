"""Geometry: against dumpe2fs for real images, against a slow model, and field by field for bad ones."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from py4fs.errors import Corrupt
from py4fs.ext4.features import Compat, Incompat, RoCompat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.superblock import EXT4_MAGIC, SUPERBLOCK, SUPERBLOCK_OFFSET

IMAGES = {
    "1k": (300, ["-b", "1024"]),
    "4k": (900, ["-b", "4096"]),
    "4k-32bit": (900, ["-b", "4096", "-O", "^64bit"]),
    "1k-meta_bg": (300, ["-b", "1024", "-O", "meta_bg,^resize_inode"]),
    "1k-meta_bg-32bit": (400, ["-b", "1024", "-O", "meta_bg,^resize_inode,^64bit", "-g", "1024"]),
    "1k-small-groups": (60, ["-b", "1024", "-g", "256", "-N", "4096"]),
    "2k-sparse2": (200, ["-b", "2048", "-O", "sparse_super2,^resize_inode", "-g", "2048"]),
    "2k-no-sparse": (100, ["-b", "2048", "-O", "^sparse_super,^resize_inode", "-g", "4096"]),
    "1k-odd-end": (33, ["-b", "1024", "-I", "128"]),
    "64k": (600, ["-b", "65536"]),
    "4k-clusters": (900, ["-b", "4096", "-O", "bigalloc", "-C", "16384"]),
    "1k-clusters": (300, ["-b", "1024", "-O", "bigalloc", "-C", "8192"]),
    "1k-clusters-of-1m": (2000, ["-b", "1024", "-O", "bigalloc", "-C", "1048576"]),
}


def open_image(path: Path) -> tuple[Any, Geometry]:
    with path.open("rb") as file:
        sb = SUPERBLOCK.unpack_from(file.read(4096), SUPERBLOCK_OFFSET)
    return sb, Geometry.of(sb, path.stat().st_size)


@pytest.mark.parametrize("kind", IMAGES)
def test_agrees_with_dumpe2fs(tmp_path: Path, kind: str) -> None:
    size, options = IMAGES[kind]
    path = tmp_path / "fs.img"
    path.touch()
    os.truncate(path, (size << 20) + 5000)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", *options, "-E", "lazy_itable_init=1", str(path)]
    subprocess.run(command, check=True, capture_output=True, input=b"y\n")
    _, geometry = open_image(path)
    output = subprocess.run(["dumpe2fs", path], capture_output=True, text=True, check=True).stdout
    groups = re.split(r"^Group (?=\d+: )", output, flags=re.MULTILINE)[1:]
    assert len(groups) == geometry.groups
    assert int(re.search(r"Inode blocks per group:\s+(\d+)", output)[1]) == geometry.itable_blocks  # type: ignore[index]
    for number, text in enumerate(groups):
        first, last = map(int, re.match(rf"{number}: \(Blocks (\d+)-(\d+)\)", text).groups())  # type: ignore[union-attr]
        assert geometry.group_first_block(number) == first
        assert geometry.group_block_count(number) == last - first + 1
        assert geometry.block_group(first) == (number, 0)
        assert geometry.block_group(last) == (number, last - first)
        has_super = re.search(r"(Primary|Backup) superblock at (\d+)", text)
        assert geometry.has_super(number) == bool(has_super)
        if has_super:
            assert int(has_super[2]) == (first if number else geometry.super_block()[0])
        descs = re.search(r"Group descriptors? at (\d+)(?:-(\d+))?", text)
        assert geometry.group_gdt_blocks(number) == (
            0 if descs is None else int(descs[2] or descs[1]) - int(descs[1]) + 1
        )
        reserve = re.search(r"Reserved GDT blocks at (\d+)-(\d+)", text)
        reserved = int(reserve[2]) - int(reserve[1]) + 1 if reserve else 0
        boot = 0 if number else geometry.super_block()[0] - geometry.first_data_block
        want = boot + bool(has_super) + geometry.group_gdt_blocks(number) + reserved
        assert geometry.base_meta_blocks(number) == want
        index, _ = geometry.desc_location(number)
        if not geometry.meta_bg or number % geometry.desc_per_block == 0:
            at = geometry.gdt_block_location(index)
            primary = groups[number if geometry.meta_bg else 0]
            found = re.search(r"Group descriptors? at (\d+)", primary)
            assert found is not None and int(found[1]) + (0 if geometry.meta_bg else index) == at
    slow = sum(
        geometry.has_super(g) + geometry.group_gdt_blocks(g) + geometry.itable_blocks + 2
        for g in range(geometry.groups)
    )
    assert geometry.overhead_blocks(7) == slow + geometry.first_data_block + 7


def good(**changes: Any) -> bytearray:
    """A superblock of 10 groups of 8192 blocks of 1 KiB."""
    raw = bytearray(1024)
    fields: dict[str, Any] = {
        "s_magic": EXT4_MAGIC,
        "s_rev_level": 1,
        "s_inodes_count": 10 * 2048,
        "s_blocks_count_lo": 10 * 8192 - 100,
        "s_first_data_block": 1,
        "s_blocks_per_group": 8192,
        "s_inodes_per_group": 2048,
        "s_inode_size": 256,
        "s_first_ino": 11,
        "s_desc_size": 64,
        "s_reserved_gdt_blocks": 256,
        "s_min_extra_isize": 32,
        "s_want_extra_isize": 32,
        "s_log_groups_per_flex": 4,
        "s_feature_compat": Compat.RESIZE_INODE,
        "s_feature_incompat": Incompat.EXTENTS | Incompat.BIT64 | Incompat.FLEX_BG,
        "s_feature_ro_compat": RoCompat.SPARSE_SUPER | RoCompat.EXTRA_ISIZE,
    }
    SUPERBLOCK.put(raw, 0, **{**fields, **changes})
    return raw


def of(device_size: int | None = None, **changes: Any) -> Geometry:
    return Geometry.of(SUPERBLOCK.unpack_from(good(**changes)), device_size)


def test_a_good_one() -> None:
    geometry = of(device_size=(10 * 8192 - 100) * 1024)
    assert (geometry.groups, geometry.gdt_blocks, geometry.itable_blocks) == (10, 1, 512)
    assert geometry.group_block_count(9) == 8192 - 101
    assert geometry.groups_per_flex == 16 and geometry.flex_group(9) == 0
    assert geometry.inode_location(1) == (0, 0) and geometry.inode_location(2049) == (1, 0)
    assert geometry.inode_block(5) == (1, 256)
    assert [g for g in range(10) if geometry.has_super(g)] == [0, 1, 3, 5, 7, 9]
    assert geometry.valid_ino(2) and geometry.valid_ino(11) and geometry.valid_ino(20480)
    assert not any(geometry.valid_ino(ino) for ino in (0, 1, 3, 10, 20481, 1 << 40))
    assert geometry.valid_run(2, 10) and geometry.valid_run(81819, 1)
    assert not any(geometry.valid_run(*run) for run in ((1, 1), (0, 1), (81819, 2), (5, 0), (1 << 50, 1)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"s_log_block_size": 7, "s_log_cluster_size": 7}, "s_log_block_size"),
        ({"s_log_block_size": 0xFFFFFFFF}, "s_log_block_size"),
        ({"s_log_cluster_size": 2}, "s_log_cluster_size"),
        ({"s_inode_size": 0}, "s_inode_size"),
        ({"s_inode_size": 64}, "s_inode_size"),
        ({"s_inode_size": 200}, "s_inode_size"),
        ({"s_inode_size": 2048}, "s_inode_size"),
        ({"s_first_ino": 10}, "s_first_ino"),
        ({"s_first_ino": 20481}, "s_first_ino"),
        ({"s_desc_size": 32}, "s_desc_size"),
        ({"s_desc_size": 0}, "s_desc_size"),
        ({"s_desc_size": 96}, "s_desc_size"),
        ({"s_desc_size": 2048}, "s_desc_size"),
        ({"s_blocks_per_group": 0}, "s_blocks_per_group"),
        ({"s_blocks_per_group": 8193}, "s_blocks_per_group"),
        ({"s_blocks_per_group": 8200}, "s_blocks_per_group"),
        ({"s_inodes_per_group": 0}, "s_inodes_per_group"),
        ({"s_inodes_per_group": 2}, "s_inodes_per_group"),
        ({"s_inodes_per_group": 8200}, "s_inodes_per_group"),
        ({"s_inodes_per_group": 2044}, "s_inodes_per_group"),
        ({"s_inodes_count": 10 * 2048 + 1}, "s_inodes_count"),
        ({"s_inodes_count": 9 * 2048}, "s_inodes_count"),
        ({"s_first_data_block": 0}, "s_first_data_block"),
        ({"s_first_data_block": 0xFFFFFFFF}, "s_first_data_block"),
        ({"s_blocks_count_lo": 1}, "s_blocks_count"),
        ({"s_blocks_count_lo": 0}, "s_blocks_count"),
        ({"s_blocks_count_hi": 1}, "s_blocks_count"),
        ({"s_r_blocks_count_hi": 1}, "s_r_blocks_count"),
        ({"s_reserved_gdt_blocks": 257}, "s_reserved_gdt_blocks"),
        ({"s_want_extra_isize": 132}, "s_want_extra_isize"),
        ({"s_min_extra_isize": 130}, "s_min_extra_isize"),
        ({"s_min_extra_isize": 33}, "s_min_extra_isize"),
        (
            {"s_first_meta_bg": 2, "s_feature_incompat": Incompat.META_BG | Incompat.BIT64},
            "s_first_meta_bg",
        ),
    ],
)
def test_bad_fields_are_named(changes: dict[str, int], field: str) -> None:
    with pytest.raises(Corrupt, match=rf"^{field} \(superblock\): found .*, expected ") as caught:
        of(device_size=1 << 30, **changes)
    assert caught.value.kind == field


def test_the_device_must_hold_all_blocks() -> None:
    want = r"s_blocks_count .* expected at most 81819 \(the device has 83783679 bytes\)"
    with pytest.raises(Corrupt, match=want):
        of(device_size=(10 * 8192 - 100) * 1024 - 1)


def test_high_halves_count_with_64bit_only() -> None:
    narrow = Incompat.EXTENTS
    geometry = of(s_feature_incompat=narrow, s_blocks_count_hi=9, s_r_blocks_count_hi=9, s_desc_size=0)
    assert (geometry.blocks_count, geometry.reserved_blocks, geometry.desc_size) == (81820, 0, 32)


def test_the_oldest_revision_has_no_inode_size() -> None:
    geometry = of(s_rev_level=0, s_inode_size=0, s_first_ino=0)
    assert (geometry.inode_size, geometry.first_ino, geometry.want_extra_isize) == (128, 11, 0)


def test_no_such_block_or_inode() -> None:
    geometry = of()
    for pblk in (0, 81820, 1 << 60, -1):
        with pytest.raises(Corrupt, match="block number: found"):
            geometry.block_group(pblk)
    for ino in (0, 20481, -1):
        with pytest.raises(Corrupt, match="inode number: found"):
            geometry.inode_location(ino)


@given(
    groups=st.integers(1, 700),
    meta_bg=st.booleans(),
    first_meta_bg=st.integers(0, 30),
    sparse=st.sampled_from(["no", "sparse_super", "sparse_super2"]),
    backups=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    cut=st.integers(0, 1023),
)
def test_blocks_of_descriptors(
    groups: int, meta_bg: bool, first_meta_bg: int, sparse: str, backups: tuple[int, int], cut: int
) -> None:
    """Every primary descriptor block is at the beginning of a group that says it has one; sums agree."""
    blocks = groups * 1024 + 1 - cut
    incompat = Incompat.EXTENTS | Incompat.BIT64 | (Incompat.META_BG if meta_bg else 0)
    sb = SUPERBLOCK.unpack_from(
        good(
            s_blocks_per_group=1024,
            s_inodes_per_group=16,
            s_inodes_count=groups * 16,
            s_blocks_count_lo=blocks,
            s_reserved_gdt_blocks=0,
            s_feature_incompat=incompat,
            s_feature_compat=Compat.SPARSE_SUPER2 if sparse == "sparse_super2" else 0,
            s_feature_ro_compat=RoCompat.SPARSE_SUPER if sparse == "sparse_super" else 0,
            s_backup_bgs=b"".join(b.to_bytes(4, "little") for b in backups),
            s_first_meta_bg=first_meta_bg,
        )
    )
    try:
        geometry = Geometry.of(sb)
    except Corrupt:
        assume(False)
        return
    seen = set()
    for index in range(geometry.gdt_blocks):
        pblk = geometry.gdt_block_location(index)
        assert pblk not in seen
        seen.add(pblk)
        if meta_bg and index >= first_meta_bg:
            group, bit = geometry.block_group(pblk)
            assert group == index * geometry.desc_per_block
            assert bit == geometry.has_super(group) and geometry.group_gdt_blocks(group) == 1
        else:
            assert pblk == geometry.first_data_block + 1 + index
    slow = sum(geometry.has_super(g) + geometry.group_gdt_blocks(g) for g in range(groups))
    slow += groups * (geometry.itable_blocks + 2)
    assert geometry.overhead_blocks() == slow + geometry.first_data_block
    assert sum(geometry.group_block_count(g) for g in range(groups)) == blocks - 1


@given(st.binary(min_size=1024, max_size=1024), st.integers(0, 1 << 50))
def test_any_superblock_is_good_or_corrupt(raw: bytes, device_size: int) -> None:
    try:
        geometry = Geometry.of(SUPERBLOCK.unpack_from(raw), device_size)
    except Corrupt:
        return
    assert geometry.blocks_count * geometry.block_size <= device_size


@given(st.dictionaries(st.sampled_from(SUPERBLOCK.fields[:75]), st.integers(0, 0xFFFFFFFF), max_size=2))
def test_a_nearly_good_superblock_is_good_or_corrupt(changes: dict[str, int]) -> None:
    fields = {
        name: value & ((1 << 8 * SUPERBLOCK.sizes[name]) - 1)
        for name, value in changes.items()
        if type(SUPERBLOCK.get(bytes(1024), 0, name)) is int
    }
    try:
        geometry = Geometry.of(SUPERBLOCK.unpack_from(good(**fields)))
    except Corrupt:
        return
    geometry.overhead_blocks()
    geometry.gdt_block_location(geometry.gdt_blocks - 1)
    assert geometry.group_block_count(geometry.groups - 1) > 0


@given(
    blocks=st.integers(1 << 32, (1 << 48) - (1 << 20)),
    meta_bg=st.booleans(),
    data=st.data(),
)
def test_places_up_to_2_to_the_48(blocks: int, meta_bg: bool, data: st.DataObject) -> None:
    """Blocks, groups, inodes and descriptors lead to each other; the largest groups that blocks of 64 KiB can have."""
    per_group, inodes = 1 << 19, 8
    groups = -(-blocks // per_group)
    sb = SUPERBLOCK.unpack_from(
        good(
            s_log_block_size=6,
            s_log_cluster_size=6,
            s_first_data_block=0,
            s_blocks_per_group=per_group,
            s_clusters_per_group=per_group,
            s_inodes_per_group=inodes,
            s_inode_size=32768,
            s_inodes_count=groups * inodes,
            s_blocks_count_lo=blocks & 0xFFFFFFFF,
            s_blocks_count_hi=blocks >> 32,
            s_reserved_gdt_blocks=0,
            s_desc_size=64,
            s_feature_incompat=Incompat.EXTENTS | Incompat.BIT64 | (Incompat.META_BG if meta_bg else 0),
            s_feature_compat=0,
            s_feature_ro_compat=RoCompat.SPARSE_SUPER,
        )
    )
    geometry = Geometry.of(sb)
    assert (geometry.blocks_count, geometry.groups) == (blocks, groups)
    group = data.draw(st.integers(0, groups - 1))
    first, count = geometry.group_first_block(group), geometry.group_block_count(group)
    assert first == group * per_group and first + count == min((group + 1) * per_group, blocks)
    offset = data.draw(st.integers(0, count - 1))
    assert geometry.block_group(first + offset) == (group, offset)
    ino = group * inodes + data.draw(st.integers(1, inodes))
    assert geometry.inode_location(ino) == (group, (ino - 1) % inodes)
    index, at = geometry.desc_location(group)
    assert index * geometry.desc_per_block + at // 64 == group
    place = geometry.gdt_block_location(index)
    if meta_bg:
        assert geometry.block_group(place)[0] == index * geometry.desc_per_block
    else:
        assert place == geometry.super_block()[0] + 1 + index
    with pytest.raises(Corrupt):
        geometry.block_group(blocks)
