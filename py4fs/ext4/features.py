"""Feature flags, their mke2fs names, and the gate that every image passes first.

Unknown incompatible features refuse the image by name; unknown read-only-compatible ones make it read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final, NamedTuple

from py4fs.errors import Corrupt, UnsupportedFeature
from py4fs.ext4.layout.superblock import (
    EXT4_CRC32C_CHKSUM,
    EXT4_DYNAMIC_REV,
    EXT4_MAGIC,
    EXT4_OS_HURD,
)


class Compat(IntFlag):
    """s_feature_compat: safe to ignore."""

    DIR_PREALLOC = 0x0001
    IMAGIC_INODES = 0x0002
    HAS_JOURNAL = 0x0004
    EXT_ATTR = 0x0008
    RESIZE_INODE = 0x0010
    DIR_INDEX = 0x0020
    LAZY_BG = 0x0040
    EXCLUDE_INODE = 0x0080
    EXCLUDE_BITMAP = 0x0100
    SPARSE_SUPER2 = 0x0200
    FAST_COMMIT = 0x0400
    STABLE_INODES = 0x0800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """s_feature_incompat: not to be touched, nor read, by who does not know them."""

    COMPRESSION = 0x0001
    FILETYPE = 0x0002
    RECOVER = 0x0004
    JOURNAL_DEV = 0x0008
    META_BG = 0x0010
    EXTENTS = 0x0040
    BIT64 = 0x0080
    MMP = 0x0100
    FLEX_BG = 0x0200
    EA_INODE = 0x0400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(IntFlag):
    """s_feature_ro_compat: readable, but not to be written, by who does not know them."""

    SPARSE_SUPER = 0x0001
    LARGE_FILE = 0x0002
    BTREE_DIR = 0x0004
    HUGE_FILE = 0x0008
    GDT_CSUM = 0x0010
    DIR_NLINK = 0x0020
    EXTRA_ISIZE = 0x0040
    HAS_SNAPSHOT = 0x0080
    QUOTA = 0x0100
    BIGALLOC = 0x0200
    METADATA_CSUM = 0x0400
    REPLICA = 0x0800
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


# Names of mke2fs and dumpe2fs, where they are not the flag's name in lower case.
_NAMES: Final = {
    "EXCLUDE_BITMAP": "snapshot_bitmap",
    "RECOVER": "needs_recovery",
    "EXTENTS": "extent",
    "BIT64": "64bit",
    "CSUM_SEED": "metadata_csum_seed",
    "LARGEDIR": "large_dir",
    "GDT_CSUM": "uninit_bg",
    "HAS_SNAPSHOT": "snapshot",
    "READONLY": "read-only",
}

SUPPORTED_INCOMPAT: Final = (
    Incompat.FILETYPE
    | Incompat.META_BG
    | Incompat.EXTENTS
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.CSUM_SEED
    | Incompat.INLINE_DATA
    | Incompat.EA_INODE
    | Incompat.LARGEDIR
    | Incompat.ENCRYPT
    | Incompat.CASEFOLD
)
SUPPORTED_RO_COMPAT: Final = (
    RoCompat.SPARSE_SUPER
    | RoCompat.LARGE_FILE
    | RoCompat.BTREE_DIR  # no on-disk meaning; the kernel accepts it too
    | RoCompat.HUGE_FILE
    | RoCompat.GDT_CSUM
    | RoCompat.DIR_NLINK
    | RoCompat.EXTRA_ISIZE
    | RoCompat.METADATA_CSUM
    | RoCompat.BIGALLOC
    | RoCompat.QUOTA
    | RoCompat.PROJECT
    | RoCompat.VERITY
    | RoCompat.ORPHAN_PRESENT  # where there is an orphan file, see gate()
)


_READONLY: Final = {
    RoCompat.READONLY: "the image has the read-only feature",
    RoCompat.SHARED_BLOCKS: "files share blocks (shared_blocks), so none may be written",
}
"""Features that are known, and say that the image is not to be written."""


class Features(NamedTuple):
    """The three feature words of a superblock."""

    compat: Compat
    incompat: Incompat
    ro_compat: RoCompat

    @classmethod
    def of(cls, sb: Any) -> Features:
        """From a superblock record."""
        return cls(
            Compat(sb.s_feature_compat), Incompat(sb.s_feature_incompat), RoCompat(sb.s_feature_ro_compat)
        )

    @property
    def metadata_csum(self) -> bool:
        """crc32c on all metadata."""
        return bool(self.ro_compat & RoCompat.METADATA_CSUM)

    @property
    def gdt_csum(self) -> bool:
        """crc16 on group descriptors only (metadata_csum wins when both are set)."""
        return bool(self.ro_compat & RoCompat.GDT_CSUM) and not self.metadata_csum

    @property
    def uninit_groups(self) -> bool:
        """Whether the BG_*_UNINIT flags and bg_itable_unused of group descriptors count."""
        return bool(self.ro_compat & (RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM))


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the features allow: `readonly_reason` is None when the image may be written."""

    readonly_reason: str | None
    notices: tuple[str, ...] = ()


def _bit_names(value: int, flags: type[IntFlag], letter: str) -> Iterator[str]:
    for bit in range(value.bit_length()):
        if value >> bit & 1:
            flag = flags(1 << bit).name
            yield _NAMES.get(flag, flag.lower()) if flag else f"FEATURE_{letter}{bit}"


def compat_names(value: int) -> list[str]:
    """mke2fs names of the bits of s_feature_compat; unknown ones are FEATURE_C<bit>, as dumpe2fs has it."""
    return list(_bit_names(value, Compat, "C"))


def incompat_names(value: int) -> list[str]:
    """mke2fs names of the bits of s_feature_incompat; unknown ones are FEATURE_I<bit>."""
    return list(_bit_names(value, Incompat, "I"))


def ro_compat_names(value: int) -> list[str]:
    """mke2fs names of the bits of s_feature_ro_compat; unknown ones are FEATURE_R<bit>."""
    return list(_bit_names(value, RoCompat, "R"))


def feature_names(sb: Any) -> list[str]:
    """All features of a superblock record in the order of `dumpe2fs`: compat, incompat, ro_compat."""
    return [
        *compat_names(sb.s_feature_compat),
        *incompat_names(sb.s_feature_incompat),
        *ro_compat_names(sb.s_feature_ro_compat),
    ]


def check_magic(sb: Any) -> None:
    """Corrupt unless the record is an ext2/3/4 superblock at all."""
    if sb.s_magic != EXT4_MAGIC:
        raise Corrupt("s_magic", "superblock, byte 1080", f"{sb.s_magic:#06x}", f"{EXT4_MAGIC:#06x} (ext4)")


def gate(sb: Any) -> GateResult:
    """Whether py4fs can serve the image, and whether it may write it.

    Raises Corrupt (no ext4 superblock) or UnsupportedFeature (named as by mke2fs). A journal that has to be
    replayed is not its business.
    """
    check_magic(sb)
    features = Features.of(sb)
    # int(): the inverse of a flag has known bits only.
    unknown = incompat_names(sb.s_feature_incompat & ~int(SUPPORTED_INCOMPAT | Incompat.RECOVER))
    if unknown == ["journal_dev"]:
        text = "a journal of another file system (journal_dev), which is mounted with journal_path="
        raise UnsupportedFeature(unknown, text)
    if unknown:
        raise UnsupportedFeature(unknown)
    if sb.s_creator_os == EXT4_OS_HURD:
        raise UnsupportedFeature(("hurd",), "superblock: s_creator_os is GNU/Hurd: its inodes are different")
    if features.metadata_csum and sb.s_checksum_type != EXT4_CRC32C_CHKSUM:
        raise UnsupportedFeature(
            (f"s_checksum_type {sb.s_checksum_type}",),
            f"superblock: unknown checksum algorithm s_checksum_type {sb.s_checksum_type}, "
            f"expected {EXT4_CRC32C_CHKSUM} (crc32c)",
        )

    reasons = [text for flag, text in _READONLY.items() if features.ro_compat & flag]
    readonly = ro_compat_names(sb.s_feature_ro_compat & ~int(SUPPORTED_RO_COMPAT | RoCompat(sum(_READONLY))))
    if readonly:
        reasons.append(f"ro_compat feature(s) not supported for writing: {', '.join(readonly)}")
    if features.ro_compat & RoCompat.ORPHAN_PRESENT and not features.compat & Compat.ORPHAN_FILE:
        reasons.append("orphan_present is set without orphan_file: run e2fsck")
    if sb.s_rev_level > EXT4_DYNAMIC_REV:
        reasons.append(f"s_rev_level {sb.s_rev_level} is newer than {EXT4_DYNAMIC_REV}")
    notices: list[str] = []
    if features.metadata_csum and features.ro_compat & RoCompat.GDT_CSUM:
        notices.append("metadata_csum and uninit_bg are both set, metadata_csum counts; e2fsck repairs this")
    return GateResult("; ".join(reasons) or None, tuple(notices))
