"""What is done with each feature of an image, as the gate decides it: README's table is made from this."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from typing import Final, NamedTuple

from py4fs.errors import UnsupportedFeature
from py4fs.ext4.features import (
    Compat,
    Incompat,
    RoCompat,
    compat_names,
    gate,
    incompat_names,
    ro_compat_names,
)
from py4fs.ext4.layout.superblock import EXT4_CRC32C_CHKSUM, EXT4_MAGIC, SUPERBLOCK

_NOTES: Final = {
    "dir_prealloc": "no meaning on disk",
    "imagic_inodes": "no meaning on disk",
    "lazy_bg": "no meaning on disk",
    "exclude_inode": "no meaning on disk",
    "snapshot_bitmap": "no meaning on disk",
    "stable_inodes": "only matters to who shrinks or clones an image",
    "fast_commit": "replayed; py4fs commits in full",
    "needs_recovery": "the journal is replayed, in memory when the image is only read",
    "journal_dev": "a journal alone; its file system is opened with `journal_path=`",
    "casefold": "Unicode 12.1, strict and not; new names have to be UTF-8",
    "encrypt": "without key: names as the kernel shows them, deletable, contents refused; there is no `fscrypt_key=`",
    "mmp": "in both directions",
    "btree_dir": "no meaning on disk",
    "verity": "data cannot change, and is compared with the Merkle tree on read; `verify=`",
    "quota": "usage always counted; limits with `usrquota`, `grpquota`, `prjquota`",
    "project": "inherited; nothing moves or is linked across",
    "read-only": "honoured",
    "shared_blocks": "block bitmaps do not tell who uses a block",
    "compression": "never was in a released kernel",
    "dirdata": "Lustre's",
    "snapshot": "never was in a released kernel",
    "replica": "never was in a released kernel",
}


class Row(NamedTuple):
    """One feature, by its mke2fs name."""

    name: str
    read: bool
    write: bool
    note: str


def rows() -> Iterator[Row]:
    """All features that have a name, in the order of `dumpe2fs`."""
    words: tuple[tuple[type[IntFlag], str], ...] = (
        (Compat, "s_feature_compat"),
        (Incompat, "s_feature_incompat"),
        (RoCompat, "s_feature_ro_compat"),
    )
    for flags, field in words:
        for flag in flags:
            yield _row(_name(flag), **{field: int(flag)})


def _name(flag: IntFlag) -> str:
    names = {Compat: compat_names, Incompat: incompat_names, RoCompat: ro_compat_names}[type(flag)]
    return names(int(flag))[0]


def _row(name: str, **fields: int) -> Row:
    raw = bytearray(SUPERBLOCK.size)
    SUPERBLOCK.put(raw, 0, s_magic=EXT4_MAGIC, s_rev_level=1, s_checksum_type=EXT4_CRC32C_CHKSUM)
    if name == "orphan_present":
        SUPERBLOCK.put(raw, 0, s_feature_compat=int(Compat.ORPHAN_FILE))
    SUPERBLOCK.put(raw, 0, **fields)
    note = _NOTES.get(name, "")
    try:
        verdict = gate(SUPERBLOCK.unpack_from(raw))
    except UnsupportedFeature:
        return Row(name, False, False, note)
    return Row(name, True, verdict.readonly_reason is None, note)


def markdown() -> str:
    """The table of README.md; what is the same for several features is said once."""
    alike: dict[tuple[bool, bool, str], list[str]] = {}
    for row in rows():
        note = row.note or ("" if row.write else "mounted read-only" if row.read else "refused by name")
        alike.setdefault((row.read, row.write, note), []).append(row.name)
    lines = ["| feature | read | write | |", "|---|---|---|---|"]
    for (read, write, note), names in alike.items():
        may = ["yes" if allowed else "**no**" for allowed in (read, write)]
        lines.append(f"| {', '.join(names)} | {' | '.join(may)} | {note} |")
    return "\n".join(lines)
