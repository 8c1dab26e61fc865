"""Feature names as dumpe2fs prints them, and the gate."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt, FsError, UnsupportedFeature
from py4fs.ext4 import features
from py4fs.ext4.features import Compat, Features, Incompat, RoCompat, gate
from py4fs.ext4.layout.superblock import EXT4_MAGIC, SUPERBLOCK, SUPERBLOCK_OFFSET

BASE: dict[str, int] = {
    "s_magic": EXT4_MAGIC,
    "s_rev_level": 1,
    "s_checksum_type": 1,
    "s_feature_incompat": Incompat.EXTENTS | Incompat.FILETYPE,
}


def record(**changes: int) -> Any:
    raw = bytearray(1024)
    SUPERBLOCK.put(raw, 0, **{**BASE, **changes})
    return SUPERBLOCK.unpack_from(raw)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "fs.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path, "8M"], check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("word", "value", "unnamed"),
    [
        # e2fsprogs has no name for these bits, the kernel has.
        ("compat", 0xFFFFFFFF, {"exclude_inode": "FEATURE_C7"}),
        ("incompat", 0xFFFFFFFF - Incompat.JOURNAL_DEV, {}),
        ("ro_compat", 0xFFFFFFFF, {"btree_dir": "FEATURE_R2", "snapshot": "FEATURE_R7"}),
    ],
)
def test_names_are_those_of_dumpe2fs(image: Path, word: str, value: int, unnamed: dict[str, str]) -> None:
    command = ["debugfs", "-w", "-R", f"set_super_value feature_{word} {value}", str(image)]
    subprocess.run(command, check=True, capture_output=True)
    sb = SUPERBLOCK.unpack_from(image.read_bytes()[:4096], SUPERBLOCK_OFFSET)
    assert getattr(sb, f"s_feature_{word}") == value
    shown = subprocess.run(["dumpe2fs", "-h", "-f", image], capture_output=True, text=True, check=False)
    want = re.search(r"Filesystem features:\s+(.*)", shown.stdout)
    assert want is not None
    assert [unnamed.get(name, name) for name in features.feature_names(sb)] == want[1].split()


def test_what_mke2fs_makes_is_writable(image: Path) -> None:
    sb = SUPERBLOCK.unpack_from(image.read_bytes()[:4096], SUPERBLOCK_OFFSET)
    assert gate(sb) == features.GateResult(None)
    assert Features.of(sb).metadata_csum and Features.of(sb).uninit_groups and not Features.of(sb).gdt_csum


SUPPORTED = {"filetype", "needs_recovery", "meta_bg", "extent", "64bit", "flex_bg", "metadata_csum_seed"}
SUPPORTED |= {"inline_data", "ea_inode", "large_dir"}
SUPPORTED |= {"mmp", "casefold", "encrypt"}


@pytest.mark.parametrize("bit", range(32))
def test_incompatible_features_refuse_by_name(bit: int) -> None:
    sb = record(s_feature_incompat=BASE["s_feature_incompat"] | 1 << bit)
    name = features.incompat_names(1 << bit)[0]
    if name in SUPPORTED:
        assert gate(sb).readonly_reason is None
    else:
        with pytest.raises(UnsupportedFeature, match=re.escape(name)) as caught:
            gate(sb)
        assert caught.value.features == (name,)


WRITABLE = {"sparse_super", "large_file", "btree_dir", "huge_file", "uninit_bg", "dir_nlink"}
WRITABLE |= {"extra_isize", "metadata_csum", "bigalloc", "quota", "project", "verity"}


@pytest.mark.parametrize("bit", range(32))
def test_read_only_compatible_features_make_it_read_only(bit: int) -> None:
    sb = record(s_feature_ro_compat=1 << bit)
    name = features.ro_compat_names(1 << bit)[0]
    if name in WRITABLE:
        assert gate(sb).readonly_reason is None
    else:
        assert name in (gate(sb).readonly_reason or "")


def test_orphan_present_belongs_to_an_orphan_file() -> None:
    present = RoCompat.ORPHAN_PRESENT
    assert gate(record(s_feature_ro_compat=present, s_feature_compat=Compat.ORPHAN_FILE)).readonly_reason is None
    reason = gate(record(s_feature_ro_compat=present)).readonly_reason or ""
    assert "orphan_present is set without orphan_file" in reason


@pytest.mark.parametrize("bit", range(32))
def test_compatible_features_are_all_fine(bit: int) -> None:
    assert gate(record(s_feature_compat=1 << bit)).readonly_reason is None


def test_all_reasons_are_named_at_once() -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        gate(record(s_feature_incompat=0xFFFFFFFF))
    assert {"compression", "dirdata", "FEATURE_I31"} <= set(caught.value.features)
    result = gate(record(s_feature_ro_compat=RoCompat.REPLICA | RoCompat.HAS_SNAPSHOT, s_rev_level=2))
    reason = result.readonly_reason or ""
    assert "snapshot, replica" in reason and "s_rev_level 2" in reason


def test_unsupported_comes_before_recovery() -> None:
    with pytest.raises(UnsupportedFeature):
        gate(record(s_feature_incompat=Incompat.EXTENTS | Incompat.RECOVER | Incompat.COMPRESSION))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"s_magic": 0}, Corrupt, r"s_magic .*found 0x0000, expected 0xef53"),
        ({"s_creator_os": 1}, UnsupportedFeature, "Hurd"),
        (
            {"s_feature_ro_compat": RoCompat.METADATA_CSUM, "s_checksum_type": 7},
            UnsupportedFeature,
            "s_checksum_type 7, expected 1",
        ),
    ],
)
def test_other_refusals(changes: dict[str, int], error: type[FsError], text: str) -> None:
    with pytest.raises(error, match=text):
        gate(record(**changes))


def test_both_kinds_of_descriptor_checksum() -> None:
    sb = record(s_feature_ro_compat=RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM)
    assert gate(sb).readonly_reason is None
    assert "uninit_bg" in gate(sb).notices[0]
    assert Features.of(sb).metadata_csum and not Features.of(sb).gdt_csum
    assert Features.of(sb).compat == Compat(0)


@given(st.binary(min_size=1024, max_size=1024), st.booleans())
def test_any_superblock_gets_an_answer(raw: bytes, magic: bool) -> None:
    copy = bytearray(raw)
    if magic:
        SUPERBLOCK.put(copy, 0, s_magic=EXT4_MAGIC)
    try:
        gate(SUPERBLOCK.unpack_from(copy))
    except (Corrupt, UnsupportedFeature) as error:
        assert "\n" not in str(error)
