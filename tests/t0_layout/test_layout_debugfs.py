"""The same layouts against e2fsprogs: we find what debugfs sets by name, and read what dumpe2fs prints."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.extent import EXTENT, EXTENT_HEADER, EXTENT_MAGIC
from py4fs.ext4.layout.group_desc import GROUP_DESC_32, GROUP_DESC_64
from py4fs.ext4.layout.inode import INODE, INODE_EXTRA
from py4fs.ext4.layout.jbd2 import JBD2_MAGIC_NUMBER, JBD2_SUPERBLOCK_V2, JOURNAL_SUPERBLOCK
from py4fs.ext4.layout.superblock import SUPERBLOCK, SUPERBLOCK_OFFSET, wide
from py4fs.ext4.layout.xattr import EXT4_XATTR_MAGIC, XATTR_ENTRY, XATTR_HEADER, XATTR_IBODY_HEADER

UUIDS = [str(uuid.UUID(int=0x0102030405060708090A0B0C0D0E0F10 * n % (1 << 128))) for n in range(1, 5)]

# Fields of set_super_value with their width in bits; those that say how to find things keep their values.
SUPER_NUMBERS = {
    "mnt_count": 16,
    "max_mnt_count": 15,
    "minor_rev_level": 16,
    "checkinterval": 32,
    "def_resuid": 16,
    "def_resgid": 16,
    "algorithm_usage_bitmap": 32,
    "prealloc_blocks": 8,
    "prealloc_dir_blocks": 8,
    "journal_inum": 32,
    "journal_dev": 32,
    "last_orphan": 32,
    "jnl_backup_type": 8,
    "default_mount_opts": 32,
    "raid_stride": 16,
    "mmp_interval": 16,
    "mmp_block": 64,
    "raid_stripe_width": 32,
    "log_groups_per_flex": 8,
    "encryption_level": 8,
    "snapshot_inum": 32,
    "snapshot_id": 32,
    "snapshot_r_blocks_count": 64,
    "snapshot_list": 32,
    "error_count": 32,
    "first_error_ino": 32,
    "first_error_block": 64,
    "first_error_line": 32,
    "last_error_ino": 32,
    "last_error_block": 64,
    "last_error_line": 32,
    "usr_quota_inum": 32,
    "grp_quota_inum": 32,
    "prj_quota_inum": 32,
    "overhead_clusters": 32,
    "lpf_ino": 32,
    "checksum_seed": 32,
    "orphan_file_inum": 32,
}
SUPER_TIMES = ("mtime", "lastcheck", "mkfs_time", "first_error_time", "last_error_time")
SUPER_STRINGS = {
    "volume_name": 16,
    "last_mounted": 64,
    "first_error_func": 32,
    "last_error_func": 32,
    "mount_opts": 64,
}
SUPER_UUIDS = ("journal_uuid", "hash_seed", "encrypt_pw_salt", "uuid")
NAMES = {"mmp_interval": "mmp_update_interval"}


def debugfs(image: Path, commands: list[str], write: bool = True) -> str:
    done = subprocess.run(
        ["debugfs", *(["-w"] if write else []), "-f", "-", image],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def make(tmp_path: Path, *args: str, size: int = 16 << 20) -> Path:
    image = tmp_path / "fs.img"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *args, image], check=True, capture_output=True)
    return image


def superblock(image: Path) -> Any:
    return SUPERBLOCK.unpack_from(image.read_bytes()[: 4 << 10], SUPERBLOCK_OFFSET)


def value_of(index: int, bits: int) -> int:
    """A value whose bytes all differ, for this field only."""
    return int.from_bytes(bytes((index + 37 * k) % 127 + 1 for k in range(8)), "little") & ((1 << bits) - 1)


def test_superblock_fields_set_by_debugfs(tmp_path: Path) -> None:
    image = make(tmp_path, "-O", "^metadata_csum")
    want: dict[str, Any] = {}
    commands = []
    for index, (name, bits) in enumerate(SUPER_NUMBERS.items()):
        value = value_of(index, bits)
        commands.append(f"ssv {name} {value}")
        want["s_" + NAMES.get(name, name)] = value
    for index, name in enumerate(SUPER_TIMES):
        seconds = 0x11223344 + index
        commands.append(f"ssv {name} @{seconds}")
        want["s_" + name] = seconds
    for index, (name, size) in enumerate(SUPER_STRINGS.items()):
        text = f"{index}{name}"[:size]
        commands.append(f"ssv {name} {text}")
        want["s_" + name] = text.encode().ljust(size, b"\0")
    for text, name in zip(UUIDS, SUPER_UUIDS, strict=True):
        commands.append(f"ssv {name} {text}")
        want["s_" + name] = uuid.UUID(text).bytes
    for name, count in (("backup_bgs", 2), ("encrypt_algos", 4), ("jnl_blocks", 17)):
        width = SUPERBLOCK.sizes["s_" + name] // count
        values = [value_of(count + k, 8 * width) for k in range(count)]
        commands += [f"ssv {name}[{k}] {value}" for k, value in enumerate(values)]
        want["s_" + name] = b"".join(value.to_bytes(width, "little") for value in values)
    commands.append("ssv def_hash_version tea")
    want["s_def_hash_version"] = 2
    debugfs(image, commands)
    got = superblock(image)._asdict()
    assert {field: got[field] for field in want} == want


def test_superblock_as_dumpe2fs_prints_it(tmp_path: Path) -> None:
    features = "metadata_csum_seed,orphan_file"
    args = ["-O", features, "-L", "a label", "-m", "7", "-E", "stride=8,stripe_width=16"]
    image = make(tmp_path, *args, "-b", "2048", "-e", "remount-ro")
    output = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    shown = dict(re.findall(r"^([^:\n]+):\s+(.*)$", output, re.MULTILINE))
    sb = superblock(image)
    assert shown["Filesystem UUID"] == str(uuid.UUID(bytes=sb.s_uuid))
    assert shown["Filesystem magic number"] == f"0x{sb.s_magic:X}"
    assert shown["Filesystem volume name"].encode() == sb.s_volume_name.rstrip(b"\0")
    assert shown["Directory Hash Seed"] == str(uuid.UUID(bytes=sb.s_hash_seed))
    numbers = {
        "Inode count": sb.s_inodes_count,
        "Block count": wide(sb, "s_blocks_count"),
        "Reserved block count": wide(sb, "s_r_blocks_count"),
        "Overhead clusters": sb.s_overhead_clusters,
        "Free blocks": wide(sb, "s_free_blocks_count"),
        "Free inodes": sb.s_free_inodes_count,
        "First block": sb.s_first_data_block,
        "Block size": 1024 << sb.s_log_block_size,
        "Group descriptor size": sb.s_desc_size,
        "Reserved GDT blocks": sb.s_reserved_gdt_blocks,
        "Blocks per group": sb.s_blocks_per_group,
        "Inodes per group": sb.s_inodes_per_group,
        "RAID stride": sb.s_raid_stride,
        "RAID stripe width": sb.s_raid_stripe_width,
        "Flex block group size": 1 << sb.s_log_groups_per_flex,
        "Mount count": sb.s_mnt_count,
        "Inode size": sb.s_inode_size,
        "First inode": sb.s_first_ino,
        "Required extra isize": sb.s_min_extra_isize,
        "Desired extra isize": sb.s_want_extra_isize,
        "Journal inode": sb.s_journal_inum,
        "Orphan file inode": sb.s_orphan_file_inum,
    }
    assert {name: int(shown[name].split()[0]) for name in numbers} == numbers
    assert int(shown["Checksum"], 16) == sb.s_checksum
    assert int(shown["Checksum seed"], 16) == sb.s_checksum_seed
    assert (sb.s_errors, sb.s_def_hash_version, sb.s_checksum_type) == (2, 1, 1)


@pytest.mark.parametrize("wide_desc", [True, False])
def test_group_descriptor_fields_set_by_debugfs(tmp_path: Path, wide_desc: bool) -> None:
    image = make(tmp_path, "-b", "1024", "-O", "^metadata_csum," + ("64bit" if wide_desc else "^64bit"))
    geometry = Geometry.of(superblock(image), image.stat().st_size)
    codec = GROUP_DESC_64 if wide_desc else GROUP_DESC_32
    assert geometry.desc_size == codec.size
    skip = {"bg_reserved", "bg_checksum", "bg_flags"}
    if not wide_desc:
        # debugfs knows these with 64bit only.
        skip |= {"bg_exclude_bitmap_lo", "bg_block_bitmap_csum_lo", "bg_inode_bitmap_csum_lo"}
    fields = [field for field in codec.fields if field not in skip]
    want = {field: value_of(index, 8 * codec.sizes[field]) for index, field in enumerate(fields)}
    want["bg_flags"] = 5
    # Without 64bit the halves have no names of their own.
    names = [field[3:] if wide_desc else field[3:].removesuffix("_lo") for field in want]
    debugfs(image, [f"set_bg 1 {name} {value}" for name, value in zip(names, want.values(), strict=True)])
    index, at = geometry.desc_location(1)
    raw = image.read_bytes()
    got = codec.unpack_from(raw, geometry.gdt_block_location(index) * 1024 + at)._asdict()
    assert {field: got[field] for field in want} == want


INODE_FIELDS = {
    "mode": "i_mode",
    "uid_lo": "i_uid",
    "size_lo": "i_size_lo",
    "gid_lo": "i_gid",
    "links_count": "i_links_count",
    "blocks_lo": "i_blocks_lo",
    "flags": "i_flags",
    "version_lo": "l_i_version",
    "generation": "i_generation",
    "file_acl_lo": "i_file_acl_lo",
    "size_hi": "i_size_high",
    "faddr": "i_obso_faddr",
    "blocks_hi": "l_i_blocks_high",
    "file_acl_hi": "l_i_file_acl_high",
    "uid_hi": "l_i_uid_high",
    "gid_hi": "l_i_gid_high",
}
INODE_EXTRA_FIELDS = {
    "ctime_extra": "i_ctime_extra",
    "mtime_extra": "i_mtime_extra",
    "atime_extra": "i_atime_extra",
    "crtime_extra": "i_crtime_extra",
    "version_hi": "i_version_hi",
    "projid": "i_projid",
}
INODE_TIMES = {"atime": "i_atime", "ctime": "i_ctime", "mtime": "i_mtime", "dtime": "i_dtime"}


def inode_at(image: Path, ino: int) -> tuple[bytes, int]:
    """The image and the byte offset of an inode, by geometry and descriptor."""
    raw = image.read_bytes()
    geometry = Geometry.of(SUPERBLOCK.unpack_from(raw, SUPERBLOCK_OFFSET), len(raw))
    group, index = geometry.inode_location(ino)
    block, slot = geometry.desc_location(group)
    desc = geometry.gdt_block_location(block) * geometry.block_size + slot
    table = GROUP_DESC_32.get(raw, desc, "bg_inode_table_lo")
    block, at = geometry.inode_block(index)
    return raw, (table + block) * geometry.block_size + at


def test_inode_fields_set_by_debugfs(tmp_path: Path) -> None:
    image = make(tmp_path, "-I", "256", "-O", "^metadata_csum")
    want = {field: value_of(n, 8 * INODE.sizes[field]) for n, field in enumerate(INODE_FIELDS.values())}
    extra = {field: value_of(n + 50, 32) for n, field in enumerate(INODE_EXTRA_FIELDS.values())}
    extra["i_extra_isize"] = 32
    extra["i_crtime"] = value_of(80, 31)
    # Times first: setting one writes its extra field, too.
    commands = ["sif <12> extra_isize 32", f"sif <12> crtime @{extra['i_crtime']}"]
    for n, (name, field) in enumerate(INODE_TIMES.items()):
        want[field] = value_of(n + 70, 31)
        commands.append(f"sif <12> {name} @{want[field]}")
    commands += [f"sif <12> {name} {want[field]}" for name, field in INODE_FIELDS.items()]
    commands += [f"sif <12> {name} {extra[field]}" for name, field in INODE_EXTRA_FIELDS.items()]
    blocks = [value_of(90 + n, 32) for n in range(12)]
    commands += [f"sif <12> block[{n}] {value}" for n, value in enumerate(blocks)]
    debugfs(image, commands)
    raw, at = inode_at(image, 12)
    inode = INODE.unpack_from(raw, at)._asdict()
    assert {field: inode[field] for field in want} == want
    assert inode["i_block"][:48] == b"".join(value.to_bytes(4, "little") for value in blocks)
    behind = INODE_EXTRA.unpack_from(raw, at + INODE.size)._asdict()
    assert {field: behind[field] for field in extra} == extra


def test_file_with_extents_and_xattrs_as_debugfs_sees_it(tmp_path: Path) -> None:
    image = make(tmp_path, "-b", "1024", "-I", "256")
    content = tmp_path / "content"
    content.write_bytes(b"x" * 50_000)
    small, large = "small", "v" * 900
    value_file = tmp_path / "value"
    value_file.write_text(large)
    debugfs(
        image,
        [f"write {content} file", f"ea_set file user.s {small}", f"ea_set -f {value_file} file user.large"],
    )
    shown = debugfs(image, ["stat file", "dump_extents file"], write=False)
    ino = int(re.search(r"Inode: (\d+)", shown)[1])  # type: ignore[index]
    raw, at = inode_at(image, ino)
    inode = INODE.unpack_from(raw, at)
    assert f"Generation: {inode.i_generation} " in shown
    assert re.search(rf"Size: {inode.i_size_lo}\b", shown)
    blocks = inode.l_i_blocks_high << 32 | inode.i_blocks_lo
    assert re.search(rf"Links: {inode.i_links_count}\s+Blockcount: {blocks}\b", shown)
    assert f"File ACL: {inode.i_file_acl_lo}" in shown and inode.i_file_acl_lo
    assert f"ctime: {inode.i_ctime:#010x}" in shown
    checksum = inode.l_i_checksum_lo | INODE_EXTRA.get(raw, at + 128, "i_checksum_hi") << 16
    assert int(re.search(r"Inode checksum: (0x[0-9a-f]+)", shown)[1], 16) == checksum  # type: ignore[index]

    header = EXTENT_HEADER.unpack_from(inode.i_block)
    assert (header.eh_magic, header.eh_max, header.eh_depth) == (EXTENT_MAGIC, 4, 0)
    extents = EXTENT.iter_unpack(inode.i_block, EXTENT_HEADER.size, header.eh_entries)
    got = [(e.ee_block, e.ee_len, e.ee_start_hi << 32 | e.ee_start_lo) for e in extents]
    rows = re.findall(r"^\s*0/ 0\s+\d+/\s*\d+\s+(\d+) -\s+\d+\s+(\d+) -\s+\d+\s+(\d+)", shown, re.MULTILINE)
    assert got == [(int(lblk), int(length), int(pblk)) for lblk, pblk, length in rows] and got

    ibody = at + INODE.size + INODE_EXTRA.get(raw, at + 128, "i_extra_isize")
    assert XATTR_IBODY_HEADER.get(raw, ibody, "h_magic") == EXT4_XATTR_MAGIC
    first = ibody + XATTR_IBODY_HEADER.size
    entry = XATTR_ENTRY.unpack_from(raw, first)
    assert (entry.e_name_index, entry.e_value_size, entry.e_value_inum) == (1, len(small), 0)
    assert raw[first + 16 : first + 17] == b"s"
    assert raw[first + entry.e_value_offs :][: len(small)] == small.encode()

    block = raw[inode.i_file_acl_lo * 1024 :][:1024]
    head = XATTR_HEADER.unpack_from(block)
    assert (head.h_magic, head.h_refcount, head.h_blocks) == (EXT4_XATTR_MAGIC, 1, 1)
    entry = XATTR_ENTRY.unpack_from(block, XATTR_HEADER.size)
    assert (entry.e_name_index, entry.e_name_len, entry.e_value_size) == (1, 5, 900)
    assert block[entry.e_value_offs :][:900] == large.encode()


def test_journal_superblock_as_dumpe2fs_prints_it(tmp_path: Path) -> None:
    image = make(tmp_path, "-b", "1024", "-J", "size=2,fast_commit_size=256", "-O", "fast_commit")
    output = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    raw, at = inode_at(image, 8)
    inode = INODE.unpack_from(raw, at)
    start = EXTENT.unpack_from(inode.i_block, EXTENT_HEADER.size).ee_start_lo
    journal = JOURNAL_SUPERBLOCK.unpack_from(raw, start * 1024)
    assert (journal.h_magic, journal.h_blocktype) == (JBD2_MAGIC_NUMBER, JBD2_SUPERBLOCK_V2)
    assert (journal.s_blocksize, journal.s_first, journal.s_nr_users) == (1024, 1, 1)
    assert f"Journal sequence:         {journal.s_sequence:#010x}" in output
    assert f"Journal start:            {journal.s_start}\n" in output
    total = int(re.search(r"Total journal blocks:\s+(\d+)", output)[1])  # type: ignore[index]
    assert journal.s_maxlen == total
