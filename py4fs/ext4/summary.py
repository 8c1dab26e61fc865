"""What the superblock and the group descriptors say, for people and programs: read only, no volume opened.

Works on images that py4fs would refuse to mount (unknown features, a journal to replay, a bad checksum), since
finding out why is what it is for. Damage is reported beside the values, not raised, as far as values can be had.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from py4fs.device.base import Device
from py4fs.errors import BadChecksum, Corrupt, FsError
from py4fs.ext4 import checksum
from py4fs.ext4.features import Features, Incompat, RoCompat, check_magic, feature_names, gate
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.group_desc import (
    BG_BLOCK_UNINIT,
    BG_INODE_UNINIT,
    BG_INODE_ZEROED,
    GROUP_DESC_32,
    GROUP_DESC_64,
)
from py4fs.ext4.layout.superblock import (
    EXT2_FLAGS_SIGNED_HASH,
    EXT2_FLAGS_TEST_FILESYS,
    EXT2_FLAGS_UNSIGNED_HASH,
    EXT4_DYNAMIC_REV,
    EXT4_ERROR_FS,
    EXT4_ERRORS_CONTINUE,
    EXT4_ERRORS_PANIC,
    EXT4_ERRORS_RO,
    EXT4_ORPHAN_FS,
    EXT4_VALID_FS,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    wide,
    wide_time,
)

_ERRORS: Final = {EXT4_ERRORS_CONTINUE: "continue", EXT4_ERRORS_RO: "remount-ro", EXT4_ERRORS_PANIC: "panic"}
_HASHES: Final = {0: "legacy", 1: "half_md4", 2: "tea", 6: "siphash"}
_GROUP_FLAGS: Final = {
    BG_INODE_UNINIT: "INODE_UNINIT",
    BG_BLOCK_UNINIT: "BLOCK_UNINIT",
    BG_INODE_ZEROED: "ITABLE_ZEROED",
}


@dataclass(frozen=True)
class GroupSummary:
    """One block group. Counts in blocks and inodes; `problem` says what is wrong with the descriptor."""

    group: int
    first_block: int
    last_block: int
    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int
    free_inodes: int
    used_dirs: int
    itable_unused: int
    flags: tuple[str, ...]
    has_super: bool
    problem: str | None


class Summary:
    """Made from a device. Raises Corrupt when there is no ext4 superblock at all, DeviceError."""

    def __init__(self, device: Device) -> None:
        self._device = device
        if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK.size:
            size = f"{device.size} bytes"
            raise Corrupt("no room for a superblock", "byte 1024", size, "at least 2048 bytes")
        self._raw = device.read(SUPERBLOCK_OFFSET, SUPERBLOCK.size)
        self.record: Any = SUPERBLOCK.unpack_from(self._raw)
        check_magic(self.record)

    def superblock(self) -> dict[str, Any]:
        """The values people ask for, by name: strings, numbers, lists of strings; None: not set. Times in seconds."""
        sb = self.record
        is_64bit = bool(sb.s_feature_incompat & Incompat.BIT64)
        bigalloc = bool(sb.s_feature_ro_compat & RoCompat.BIGALLOC)

        def blocks(name: str) -> int:
            return wide(sb, name) if is_64bit else int(getattr(sb, name + "_lo"))

        return {
            "volume_name": _text(sb.s_volume_name),
            "last_mounted_on": _text(sb.s_last_mounted),
            "uuid": str(uuid.UUID(bytes=sb.s_uuid)),
            "revision": sb.s_rev_level,
            "features": feature_names(sb),
            "flags": _flag_names(
                sb.s_flags,
                {
                    EXT2_FLAGS_SIGNED_HASH: "signed_directory_hash",
                    EXT2_FLAGS_UNSIGNED_HASH: "unsigned_directory_hash",
                    EXT2_FLAGS_TEST_FILESYS: "test_filesystem",
                },
            ),
            "state": _state(sb.s_state),
            "errors_behavior": _ERRORS.get(sb.s_errors, f"unknown ({sb.s_errors})"),
            "error_count": sb.s_error_count,
            "inode_count": sb.s_inodes_count,
            "block_count": blocks("s_blocks_count"),
            "reserved_block_count": blocks("s_r_blocks_count"),
            "free_blocks": blocks("s_free_blocks_count"),
            "free_inodes": sb.s_free_inodes_count,
            "first_block": sb.s_first_data_block,
            "block_size": 1024 << sb.s_log_block_size if sb.s_log_block_size <= 6 else None,
            "cluster_size": 1024 << sb.s_log_cluster_size if bigalloc and sb.s_log_cluster_size <= 20 else None,
            "blocks_per_group": sb.s_blocks_per_group,
            "inodes_per_group": sb.s_inodes_per_group,
            "inode_size": sb.s_inode_size if sb.s_rev_level >= EXT4_DYNAMIC_REV else 128,
            "group_descriptor_size": sb.s_desc_size if is_64bit else 32,
            "flex_bg_size": 1 << sb.s_log_groups_per_flex if 0 < sb.s_log_groups_per_flex < 32 else None,
            "reserved_gdt_blocks": sb.s_reserved_gdt_blocks,
            "first_inode": sb.s_first_ino if sb.s_rev_level >= EXT4_DYNAMIC_REV else 11,
            "journal_inode": sb.s_journal_inum or None,
            "orphan_file_inode": sb.s_orphan_file_inum or None,
            "first_orphan_inode": sb.s_last_orphan or None,
            "default_directory_hash": _HASHES.get(sb.s_def_hash_version, f"unknown ({sb.s_def_hash_version})"),
            "directory_hash_seed": str(uuid.UUID(bytes=sb.s_hash_seed)),
            "created": wide_time(sb, "s_mkfs_time") or None,
            "last_mount": wide_time(sb, "s_mtime") or None,
            "last_write": wide_time(sb, "s_wtime") or None,
            "last_checked": wide_time(sb, "s_lastcheck") or None,
            "mount_count": sb.s_mnt_count,
            "lifetime_writes_kib": sb.s_kbytes_written,
        }

    def problems(self) -> list[str]:
        """Why py4fs would not mount it, or not for writing, or what it would do first; empty when all is well."""
        found = []
        if Features.of(self.record).metadata_csum:
            try:
                checksum.verify_superblock(self._raw)
            except BadChecksum as exc:
                found.append(str(exc))
        try:
            verdict = gate(self.record)
            Geometry.of(self.record, self._device.size)
        except FsError as exc:
            found.append(str(exc))
        else:
            if verdict.readonly_reason:
                found.append(f"read-only: {verdict.readonly_reason}")
            found.extend(verdict.notices)
            if self.record.s_feature_incompat & Incompat.RECOVER:
                found.append("needs_recovery: the journal holds changes that have not reached their places")
        return found

    def groups(self) -> Iterator[GroupSummary]:
        """All groups in order. Raises Corrupt when the superblock's numbers make no sense, DeviceError."""
        geometry = Geometry.of(self.record, self._device.size)
        verifier = checksum.GroupDescChecksum.of(self.record)
        wide_desc = geometry.desc_size >= GROUP_DESC_64.size
        codec = GROUP_DESC_64 if wide_desc else GROUP_DESC_32
        table, loaded = b"", -1
        for group in range(geometry.groups):
            index, offset = geometry.desc_location(group)
            if index != loaded:
                at = geometry.gdt_block_location(index) * geometry.block_size
                table, loaded = self._device.read(at, geometry.block_size), index
            raw = table[offset : offset + geometry.desc_size]
            problem = None
            try:
                verifier.verify(raw, group)
            except BadChecksum as exc:
                problem = str(exc)
            desc = codec.unpack_from(raw)

            def joined(name: str, bits: int, desc: Any = desc) -> int:
                high = getattr(desc, name + "_hi") << bits if wide_desc else 0
                return int(getattr(desc, name + "_lo") | high)

            first = geometry.group_first_block(group)
            yield GroupSummary(
                group=group,
                first_block=first,
                last_block=first + geometry.group_block_count(group) - 1,
                block_bitmap=joined("bg_block_bitmap", 32),
                inode_bitmap=joined("bg_inode_bitmap", 32),
                inode_table=joined("bg_inode_table", 32),
                free_blocks=joined("bg_free_blocks_count", 16) << geometry.cluster_bits,
                free_inodes=joined("bg_free_inodes_count", 16),
                used_dirs=joined("bg_used_dirs_count", 16),
                itable_unused=joined("bg_itable_unused", 16),
                flags=tuple(_flag_names(desc.bg_flags, _GROUP_FLAGS)),
                has_super=geometry.has_super(group),
                problem=problem,
            )


def _text(raw: bytes) -> str | None:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace") or None


def _flag_names(value: int, names: dict[int, str]) -> list[str]:
    found = [name for bit, name in names.items() if value & bit]
    rest = value & ~sum(names)
    return [*found, f"{rest:#x}"] if rest else found


def _state(value: int) -> str:
    words = ["clean" if value & EXT4_VALID_FS else "not clean"]
    if value & EXT4_ERROR_FS:
        words.append("with errors")
    if value & EXT4_ORPHAN_FS:
        words.append("orphans being recovered")
    return " ".join(words)
