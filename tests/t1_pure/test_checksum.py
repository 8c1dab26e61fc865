"""Every checksum against images that mke2fs, debugfs and e2fsck have filled."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import BadChecksum, Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.features import Features
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.extent import EXTENT, EXTENT_HEADER, EXTENT_INDEX
from py4fs.ext4.layout.group_desc import BG_BLOCK_UNINIT, BG_INODE_UNINIT, GROUP_DESC_32, GROUP_DESC_64
from py4fs.ext4.layout.htree import DX_COUNT_LIMIT, DX_NODE_ENTRIES_OFFSET, DX_ROOT_ENTRIES_OFFSET
from py4fs.ext4.layout.inode import EXT4_INDEX_FL, INODE
from py4fs.ext4.layout.superblock import SUPERBLOCK, SUPERBLOCK_OFFSET
from py4fs.ext4.layout.xattr import XATTR_HEADER

KINDS = {
    "1k": ["-b", "1024"],
    "1k-128": ["-b", "1024", "-I", "128"],
    "4k": ["-b", "4096"],
    "4k-seed": ["-b", "4096", "-O", "metadata_csum_seed,orphan_file"],
    "1k-32bit": ["-b", "1024", "-O", "^64bit"],
    "2k-512": ["-b", "2048", "-I", "512"],
    "1k-gdt": ["-b", "1024", "-O", "^metadata_csum,uninit_bg"],
    "4k-gdt-32bit": ["-b", "4096", "-O", "^metadata_csum,uninit_bg,^64bit"],
    "1k-plain": ["-b", "1024", "-O", "^metadata_csum"],
}
WITH_CSUM = [name for name in KINDS if "gdt" not in name and "plain" not in name]


class Image:
    """Just enough of a reader to find every checksummed structure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        self.sb = SUPERBLOCK.unpack_from(self.raw, SUPERBLOCK_OFFSET)
        self.geometry = Geometry.of(self.sb, len(self.raw))
        self.seed = checksum.superblock_seed(self.sb)
        self.codec = GROUP_DESC_64 if self.geometry.has_64bit else GROUP_DESC_32

    def block(self, pblk: int) -> bytes:
        size = self.geometry.block_size
        return self.raw[pblk * size : (pblk + 1) * size]

    def desc(self, group: int) -> bytes:
        index, at = self.geometry.desc_location(group)
        return self.block(self.geometry.gdt_block_location(index))[at : at + self.geometry.desc_size]

    def wide(self, group: int, field: str) -> int:
        desc = self.codec.unpack_from(self.desc(group))
        return int(getattr(desc, field + "_lo") | getattr(desc, field + "_hi", 0) << 32)

    def bitmap(self, group: int, field: str, bits: int) -> bytes:
        return self.block(self.wide(group, field))[: bits // 8]

    def inodes(self) -> Iterator[tuple[int, bytes]]:
        for group in range(self.geometry.groups):
            if self.codec.unpack_from(self.desc(group)).bg_flags & BG_INODE_UNINIT:
                continue
            used = self.bitmap(group, "bg_inode_bitmap", self.geometry.inodes_per_group)
            for index in range(self.geometry.inodes_per_group):
                if used[index // 8] >> index % 8 & 1:
                    block, at = self.geometry.inode_block(index)
                    table = self.wide(group, "bg_inode_table")
                    raw = self.block(table + block)[at : at + self.geometry.inode_size]
                    yield group * self.geometry.inodes_per_group + index + 1, raw

    def extents(self, node: bytes) -> Iterator[tuple[str, int, int]]:
        """("node", pblk, 0) of tree blocks, ("data", pblk, lblk) of mapped blocks."""
        head = EXTENT_HEADER.unpack_from(node)
        if head.eh_depth:
            for index in EXTENT_INDEX.iter_unpack(node, EXTENT_HEADER.size, head.eh_entries):
                pblk = index.ei_leaf_hi << 32 | index.ei_leaf_lo
                yield "node", pblk, 0
                yield from self.extents(self.block(pblk))
        else:
            for extent in EXTENT.iter_unpack(node, EXTENT_HEADER.size, head.eh_entries):
                for n in range(extent.ee_len & 0x7FFF or 0x8000):
                    yield "data", extent.ee_start_lo + n, extent.ee_block + n


def run(*command: str | Path, ok: tuple[int, ...] = (0,), stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode in ok, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that need what has a checksum: a deep extent tree, an indexed directory, a large attribute."""
    top = tmp_path_factory.mktemp("tree")
    with (top / "sparse").open("wb") as file:
        for n in range(700):
            file.seek(n * 8192)
            file.write(b"data")
    (top / "dir").mkdir()
    for n in range(1500):
        (top / "dir" / f"{n} {'a long name, to fill the blocks, ' * 4}").touch()
    (top / "small").mkdir()
    (top / "value").write_text("v" * 700)
    return top


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Callable[[str], Image]:
    made: dict[str, Image] = {}

    def get(kind: str) -> Image:
        if kind not in made:
            path = tmp_path_factory.mktemp("image") / f"{kind}.img"
            with path.open("wb") as file:
                os.truncate(file.fileno(), 48 << 20)
            run("mke2fs", "-q", "-F", "-t", "ext4", *KINDS[kind], "-d", tree, path)
            run("debugfs", "-w", "-f", "-", path, stdin=f"ea_set -f {tree / 'value'} sparse user.large\n")
            run("e2fsck", "-fyD", path, ok=(0, 1))
            run("e2fsck", "-fn", path)
            made[kind] = Image(path)
        return made[kind]

    return get


def check_both(
    raw: bytes, at: int, verify: Callable[[bytes], None], stamp: Callable[[bytearray], None]
) -> None:
    """The original verifies; with the checksum's byte `at` changed it does not, until it is stamped again."""
    verify(raw)
    copy = bytearray(raw)
    copy[at] ^= 0xFF
    with pytest.raises(BadChecksum):
        verify(bytes(copy))
    stamp(copy)
    assert copy == raw


@pytest.mark.parametrize("kind", KINDS)
def test_superblock_and_backups(images: Callable[[str], Image], kind: str) -> None:
    image = images(kind)
    raw = image.raw[SUPERBLOCK_OFFSET:][:1024]
    if kind not in WITH_CSUM:
        with pytest.raises(BadChecksum, match=r"superblock checksum \(byte 1024\)"):
            checksum.verify_superblock(raw)
        return
    check_both(raw, 1020, checksum.verify_superblock, checksum.set_superblock)
    backups = [group for group in range(1, image.geometry.groups) if image.geometry.has_super(group)]
    for group in backups:
        raw = image.block(image.geometry.group_first_block(group))[:1024]
        assert SUPERBLOCK.get(raw, 0, "s_block_group_nr") == group
        checksum.verify_superblock(raw)
    assert backups or image.geometry.groups == 1


@pytest.mark.parametrize("kind", KINDS)
def test_group_descriptors(images: Callable[[str], Image], kind: str) -> None:
    image = images(kind)
    kinds = checksum.GroupDescChecksum.of(image.sb)
    assert (kinds.compute is None) == (kind == "1k-plain")
    for group in range(image.geometry.groups):
        raw = image.desc(group)
        if kinds.compute is None:
            kinds.verify(b"\xff" * 32, group)
            continue
        check_both(raw, 0x1E, partial(kinds.verify, group=group), partial(kinds.set, group=group))
        with pytest.raises(BadChecksum, match=f"group {group + 1}"):
            kinds.verify(raw, group + 1)
        for byte in set(range(len(raw))) - {0x1E, 0x1F}:
            changed = bytearray(raw)
            changed[byte] ^= 1
            with pytest.raises(BadChecksum):
                kinds.verify(changed, group)


@pytest.mark.parametrize("kind", WITH_CSUM)
def test_bitmaps(images: Callable[[str], Image], kind: str) -> None:
    image = images(kind)
    geometry = image.geometry
    seen = Counter[str]()
    for group in range(geometry.groups):
        desc = image.codec.unpack_from(image.desc(group))
        blocks, inodes = geometry.blocks_per_group, geometry.inodes_per_group
        for field, uninit, bits, has_hi in (
            ("bg_block_bitmap", BG_BLOCK_UNINIT, blocks, checksum.has_block_bitmap_csum_hi),
            ("bg_inode_bitmap", BG_INODE_UNINIT, inodes, checksum.has_inode_bitmap_csum_hi),
        ):
            if desc.bg_flags & uninit:
                continue
            seen[field] += 1
            raw = image.bitmap(group, field, bits)
            lo = getattr(desc, f"{field}_csum_lo")
            hi = getattr(desc, f"{field}_csum_hi") if has_hi(geometry.desc_size) else None
            checksum.verify_bitmap(raw, image.seed, lo, hi, f"group {group}")
            changed = bytes([raw[0] ^ 1]) + raw[1:]
            with pytest.raises(BadChecksum, match=f"bitmap checksum .group {group}"):
                checksum.verify_bitmap(changed, image.seed, lo, hi, f"group {group}")
    assert all(seen[field] for field in ("bg_block_bitmap", "bg_inode_bitmap"))


def check_directory_block(raw: bytes, seed: int, lblk: int, indexed: bool, where: str) -> str:
    """The kind of a directory block, once its checksum is verified."""
    if not checksum.has_dir_tail(raw):
        assert indexed, where
        at = DX_NODE_ENTRIES_OFFSET if lblk else DX_ROOT_ENTRIES_OFFSET
        limit, count = DX_COUNT_LIMIT.unpack_from(raw, at)
        tail = at + 8 * limit + 4
        check_both(
            raw,
            tail,
            lambda d: checksum.verify_dx_node(d, seed, at, count, limit, where),
            lambda d: checksum.set_dx_node(d, seed, at, count, limit),
        )
        return "dx node" if lblk else "dx root"
    check_both(
        raw,
        len(raw) - 1,
        lambda d: checksum.verify_dir_leaf(d, seed, where),
        lambda d: checksum.set_dir_leaf(d, seed),
    )
    return "leaf"


def check_inode(image: Image, ino: int, raw: bytes) -> Iterator[str]:
    inode = INODE.unpack_from(raw)
    where = f"inode {ino}"
    seed = checksum.inode_seed(image.seed, ino, inode.i_generation)
    check_both(
        raw,
        0x7C,
        lambda d: checksum.verify_inode(d, seed, where),
        lambda d: checksum.set_inode(d, seed),
    )
    yield "inode"
    if inode.i_flags & 0x80000:
        for kind, pblk, lblk in image.extents(inode.i_block):
            block = image.block(pblk)
            if kind == "node":
                tail = 12 + 12 * EXTENT_HEADER.get(block, 0, "eh_max")
                check_both(
                    block,
                    tail + 3,
                    lambda d: checksum.verify_extent_block(d, seed, where),
                    lambda d: checksum.set_extent_block(d, seed),
                )
                yield "extent block"
            elif inode.i_mode & 0xF000 == 0x4000:
                yield check_directory_block(block, seed, lblk, bool(inode.i_flags & EXT4_INDEX_FL), where)
    if inode.i_file_acl_lo:
        pblk = inode.i_file_acl_lo
        check_both(
            image.block(pblk),
            XATTR_HEADER.offsets["h_checksum"],
            lambda d: checksum.verify_xattr_block(d, image.seed, pblk),
            lambda d: checksum.set_xattr_block(d, image.seed, pblk),
        )
        yield "xattr block"


@pytest.mark.parametrize("kind", WITH_CSUM)
def test_inodes_and_what_hangs_from_them(images: Callable[[str], Image], kind: str) -> None:
    image = images(kind)
    seen = Counter[str]()
    for ino, raw in image.inodes():
        if any(raw):  # mke2fs leaves unused reserved inodes empty
            seen.update(check_inode(image, ino, raw))
    assert seen["inode"] > 1500
    assert seen["extent block"] >= (9 if image.geometry.block_size == 1024 else 3)
    want = {"leaf", "dx root"} | ({"dx node"} if image.geometry.block_size == 1024 else set())
    assert want <= set(seen)
    assert seen["xattr block"] == 1


@pytest.mark.parametrize("kind", ["1k", "1k-128"])
def test_any_changed_byte_of_an_inode_is_noticed(images: Callable[[str], Image], kind: str) -> None:
    image = images(kind)
    ino, raw = next((ino, raw) for ino, raw in image.inodes() if ino >= 11)
    seed = checksum.inode_seed(image.seed, ino, INODE.get(raw, 0, "i_generation"))
    for byte in range(len(raw)):
        changed = bytearray(raw)
        changed[byte] ^= 0x80
        with pytest.raises(BadChecksum, match=f"inode checksum .inode {ino}"):
            checksum.verify_inode(changed, seed, f"inode {ino}")
    with pytest.raises(BadChecksum):
        checksum.verify_inode(raw, checksum.inode_seed(image.seed, ino + 1, 0), "")


def test_small_extra_isize_leaves_a_16_bit_checksum() -> None:
    raw = bytearray(256)
    raw[128:130] = b"\2\0"  # i_checksum_hi begins at 2: not inside
    raw[130:132] = b"\xab\xcd"
    checksum.set_inode(raw, 1)
    assert raw[130:132] == b"\xab\xcd"
    checksum.verify_inode(raw, 1, "")
    raw[131] ^= 1
    with pytest.raises(BadChecksum, match=r"found 0x[0-9a-f]{4}, expected 0x[0-9a-f]{4}$"):
        checksum.verify_inode(raw, 1, "")


def test_known_values() -> None:
    # The check values of the two algorithms; crc32c's is inverted, ours is not.
    assert checksum.crc32c(0xFFFFFFFF, b"123456789") == 0xE3069283 ^ 0xFFFFFFFF
    assert checksum.crc16(0, b"123456789") == 0xBB3D
    assert checksum.crc16(0xFFFF, b"123456789") == 0x4B37


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(0, 2**32 - 1))
def test_parts_continue(parts: list[bytes], seed: int) -> None:
    assert checksum.crc32c(seed, *parts) == checksum.crc32c(seed, b"".join(parts))
    assert checksum.crc16(seed & 0xFFFF, *parts) == checksum.crc16(seed & 0xFFFF, b"".join(parts))


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 400), st.integers(0, 400))
def test_any_bytes_give_an_answer_or_corrupt(raw: bytes, at: int, count: int, limit: int) -> None:
    checks: list[Callable[[], Any]] = [
        lambda: checksum.verify_superblock(raw),
        lambda: checksum.verify_inode(raw, 1, "x"),
        lambda: checksum.verify_extent_block(raw, 1, "x"),
        lambda: checksum.verify_dir_leaf(raw, 1, "x"),
        lambda: checksum.verify_dx_node(raw, 1, at, count, limit, "x"),
        lambda: checksum.verify_xattr_block(raw, 1, 7),
        lambda: checksum.GroupDescChecksum(checksum.group_desc_csum, 1).verify(raw, 0),
        lambda: checksum.GroupDescChecksum(checksum.group_desc_crc16, 1).verify(raw, 0),
    ]
    for check in checks:
        try:
            check()
        except Corrupt as error:
            assert str(error)


def test_new_directory_block_gets_a_tail() -> None:
    raw = bytearray(1024)
    assert not checksum.has_dir_tail(raw)
    with pytest.raises(Corrupt, match="no checksum tail"):
        checksum.verify_dir_leaf(raw, 1, "inode 2, block 0")
    checksum.init_dir_tail(raw)
    checksum.set_dir_leaf(raw, 1)
    checksum.verify_dir_leaf(raw, 1, "")


def test_seed_of_the_file_system(images: Callable[[str], Image]) -> None:
    plain, seeded = images("4k"), images("4k-seed")
    assert checksum.superblock_seed(plain.sb) == checksum.fs_seed(plain.sb.s_uuid)
    assert checksum.superblock_seed(seeded.sb) == seeded.sb.s_checksum_seed
    assert Features.of(seeded.sb).metadata_csum
