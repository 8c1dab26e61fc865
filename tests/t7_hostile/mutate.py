"""Damages images on purpose: one field of one structure, with the checksum made right again.

A checksum that does not match is found at once; what must be survived is nonsense with a good checksum.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from struct import error as StructError
from typing import Any, Literal

from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.features import Compat, Incompat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import Inode, decode_inode
from py4fs.ext4.journal.area import superblock_csum
from py4fs.ext4.layout.codec import Codec
from py4fs.ext4.layout.dirent import DIR_ENTRY_2, rec_len_from_disk
from py4fs.ext4.layout.extent import EXTENT, EXTENT_HEADER, EXTENT_INDEX
from py4fs.ext4.layout.group_desc import GROUP_DESC_32, GROUP_DESC_64
from py4fs.ext4.layout.htree import DX_COUNT_LIMIT, DX_ENTRY, DX_ROOT
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL, EXT4_INDEX_FL, INODE, INODE_EXTRA
from py4fs.ext4.layout.jbd2 import JOURNAL_SUPERBLOCK
from py4fs.ext4.layout.mmp import MMP_BLOCK
from py4fs.ext4.layout.orphan import ORPHAN_BLOCK_TAIL
from py4fs.ext4.layout.quota import QUOTA_BLOCK_SIZE, QUOTA_HEADER, QUOTA_INFO
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.ext4.layout.xattr import XATTR_ENTRY, XATTR_HEADER
from py4fs.ext4.runs import RunState

SB = 1024
IBLOCK = INODE.offsets["i_block"]
HIGH = {2: 0x8000, 4: 0x80000000, 8: 1 << 63, 1: 0x80}


@dataclass(frozen=True)
class Spot:
    """Something to damage: a field of ``size`` bytes at byte ``at``; ``mend`` makes the checksums right."""

    kind: str
    name: str
    at: int
    size: int
    mend: Callable[[bytearray], None]
    order: Literal["little", "big"] = "little"


def _nothing(_image: bytearray) -> None:
    """There is no checksum to make right."""


class Mutator:
    """Knows where the structures of an image are."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.sb = SUPERBLOCK.unpack_from(image, SB)
        self.geo = Geometry.of(self.sb, len(image))
        self.has_csum = bool(self.sb.s_feature_ro_compat & 0x400)
        self.seed = checksum.superblock_seed(self.sb) if self.has_csum else 0
        self.desc_csum = checksum.GroupDescChecksum.of(self.sb)
        self.desc = GROUP_DESC_64 if self.geo.desc_size >= 64 else GROUP_DESC_32
        self.spots: dict[str, list[Spot]] = {}
        self.numbers: list[int] = [0, 1, 2, 7, 8, 11, self.geo.blocks_count, self.geo.inodes_count]
        self._find()

    # -- where things are ----------------------------------------------------------------------------------

    def _add(self, kind: str, at: int, codec: Codec, mend: Callable[[bytearray], None], label: str = "") -> None:
        for field in codec.fields:
            size = codec.sizes[field]
            if size in HIGH:
                spot = Spot(kind, f"{label} {field}", at + codec.offsets[field], size, mend)
                self.spots.setdefault(kind, []).append(spot)

    def _bytes(self, kind: str, at: int, length: int, mend: Callable[[bytearray], None], label: str) -> None:
        for offset in range(at, at + length):
            self.spots.setdefault(kind, []).append(Spot(kind, f"{label} byte {offset - at}", offset, 1, mend))

    def _find(self) -> None:
        self._add("superblock", SB, SUPERBLOCK, self._mend_super)
        for group in range(self.geo.groups):
            self._add("descriptor", self._desc_at(group), self.desc, self._mender(self._mend_desc, group), f"{group}")
        fs = open_device(MemoryDevice(self.image), options=OpenOptions(readonly=True))
        volume = fs.volume
        for group in range(self.geo.groups):
            desc = volume.groups.desc(group)
            for inodes, pblk in ((False, desc.block_bitmap), (True, desc.inode_bitmap)):
                mend = self._mender(self._mend_bitmap, group, inodes)
                label = f"group {group} {'inodes' if inodes else 'blocks'}"
                self._bytes("bitmap", pblk * self.geo.block_size, 40, mend, label)
                self.numbers.append(pblk)
            self.numbers.append(desc.inode_table)
            bits = volume.groups.inode_bitmap(group).bits
            for index in range(self.geo.inodes_per_group):
                ino = group * self.geo.inodes_per_group + index + 1
                if bits[index] and (ino >= self.geo.first_ino or ino in (2, self.sb.s_journal_inum)):
                    self._find_inode(fs, ino)
        if self.sb.s_journal_inum:
            first = volume.files.block_of(volume.inodes.get(self.sb.s_journal_inum, reserved=True), 0)
            self._find_journal(first * self.geo.block_size)
        self._find_special(fs)
        fs.close()

    def _find_special(self, fs: Filesystem) -> None:
        """The mmp block, the orphan file, the quota files."""
        size = self.geo.block_size
        if self.sb.s_feature_incompat & Incompat.MMP:
            self._add("mmp", self.sb.s_mmp_block * size, MMP_BLOCK, self._mend_mmp)
            self.numbers.append(self.sb.s_mmp_block)
        if self.sb.s_feature_compat & Compat.ORPHAN_FILE:
            inode = fs.volume.inodes.get(self.sb.s_orphan_file_inum, reserved=True)
            for lblk in range(min(inode.size // size, 4)):
                pblk = fs.volume.files.block_of(inode, lblk)
                mend = self._mender(self._mend_orphans, inode.ino, pblk)
                for at in (*range(0, 32, 4), size - ORPHAN_BLOCK_TAIL.size):
                    self._spot("orphan file", f"block {lblk} byte {at}", pblk * size + at, mend)
        for kind in fs.volume.quotas.kinds:
            file = fs.volume.quotas._file(kind)
            for number in range(file.info.dqi_blocks):
                block, at = file._block(number)
                place = block.pblk * size + at
                if not number:
                    self._add("quota", place, QUOTA_HEADER, _nothing, f"{kind.name}")
                    self._add("quota", place + QUOTA_HEADER.size, QUOTA_INFO, _nothing, f"{kind.name}")
                for word in range(0, QUOTA_BLOCK_SIZE, 4):
                    if number and (word < 16 or any(self.image[place + word : place + word + 4])):
                        self._spot("quota", f"{kind.name} block {number} byte {word}", place + word, _nothing)

    def find_verity(self, fs: Filesystem, path: str, start: int) -> None:
        """The tree and descriptor of a file, from byte `start` of it on."""
        inode = fs.volume.inodes.get(fs.stat(path).ino)
        size = self.geo.block_size
        lblk = start // size
        while (run := fs.volume.files.run_at(inode, lblk)).state is RunState.MAPPED:
            place = (run.pblk + lblk - run.lblk) * size
            self._bytes("verity", place, 32, _nothing, f"block {lblk}")
            self._bytes("verity", place + size - 4, 4, _nothing, f"block {lblk} end")
            lblk += 1

    def _mend_mmp(self, image: bytearray) -> None:
        at = self.sb.s_mmp_block * self.geo.block_size
        raw = image[at : at + MMP_BLOCK.size]
        checksum.set_mmp(raw, self.seed)
        image[at : at + MMP_BLOCK.size] = raw

    def _find_journal(self, at: int) -> None:
        def mend(image: bytearray) -> None:
            raw = image[at : at + JOURNAL_SUPERBLOCK.size]
            JOURNAL_SUPERBLOCK.put(raw, 0, s_checksum=superblock_csum(bytes(raw)))
            image[at : at + JOURNAL_SUPERBLOCK.size] = raw

        for field in JOURNAL_SUPERBLOCK.fields:
            size = JOURNAL_SUPERBLOCK.sizes[field]
            if size in HIGH:
                spot = Spot("journal", field, at + JOURNAL_SUPERBLOCK.offsets[field], size, mend, "big")
                self.spots.setdefault("journal", []).append(spot)

    @staticmethod
    def _mender(function: Callable[..., None], *args: Any) -> Callable[[bytearray], None]:
        return lambda image: function(image, *args)

    def _desc_at(self, group: int) -> int:
        index, offset = self.geo.desc_location(group)
        return self.geo.gdt_block_location(index) * self.geo.block_size + offset

    def _inode_at(self, image: bytes | bytearray, ino: int) -> int:
        group, index = self.geo.inode_location(ino)
        block, offset = self.geo.inode_block(index)
        desc = self.desc.unpack_from(image, self._desc_at(group))
        table: int = desc.bg_inode_table_lo
        return (table + block) * self.geo.block_size + offset

    def _find_inode(self, fs: Filesystem, ino: int) -> None:
        at = self._inode_at(self.image, ino)
        mend = self._mender(self._mend_inode, ino)
        self._add("inode", at, INODE, mend, f"{ino}")
        if self.geo.inode_size > INODE.size:
            self._add("inode", at + INODE.size, INODE_EXTRA, mend, f"{ino}")
            extra = INODE_EXTRA.get(self.image, at + INODE.size, "i_extra_isize")
            body = at + INODE.size + extra
            if any(self.image[body : at + self.geo.inode_size]):
                self._bytes("inode xattr", body, 48, mend, f"{ino}")
        inode = decode_inode(ino, self.image[at : at + self.geo.inode_size], self.geo.block_size)
        inode.seed = checksum.inode_seed(self.seed, ino, inode.generation)
        self.numbers.append(ino)
        if inode.file_acl:
            block = inode.file_acl * self.geo.block_size
            mend = self._mender(self._mend_xattr, inode.file_acl)
            self._add("xattr block", block, XATTR_HEADER, mend, f"inode {ino}")
            self._add("xattr block", block + XATTR_HEADER.size, XATTR_ENTRY, mend, f"inode {ino}")
            self._bytes("xattr block", block + XATTR_HEADER.size, 64, mend, f"inode {ino}")
            self.numbers.append(inode.file_acl)
        if inode.is_inline:
            self._bytes("inline data", at + IBLOCK, 60, self._mender(self._mend_inode, ino), f"{ino}")
        if inode.has_blocks and inode.size:
            if inode.flags & EXT4_EXTENTS_FL:
                self._find_node(fs, inode, at + IBLOCK, 0, self._mender(self._mend_inode, ino))
            else:
                for slot in range(15):
                    here = at + IBLOCK + 4 * slot
                    self._spot("block map", f"inode {ino} {slot}", here, self._mender(self._mend_inode, ino))
                    pblk = int.from_bytes(self.image[here : here + 4], "little")
                    if slot >= 12 and pblk:
                        self._find_pointers(ino, pblk, slot - 12)
            if inode.is_dir:
                self._find_dir(fs, inode)

    def _spot(self, kind: str, label: str, at: int, mend: Callable[[bytearray], None]) -> None:
        self.spots.setdefault(kind, []).append(Spot(kind, label, at, 4, mend))

    def _find_pointers(self, ino: int, pblk: int, level: int) -> None:
        self.numbers.append(pblk)
        for slot in range(self.geo.block_size // 4):
            at = pblk * self.geo.block_size + 4 * slot
            child = int.from_bytes(self.image[at : at + 4], "little")
            if child or slot < 3:
                self._spot("pointer block", f"inode {ino} level {level} {slot}", at, lambda image: None)
            if child and level:
                self._find_pointers(ino, child, level - 1)

    def _find_node(self, fs: Filesystem, inode: Inode, at: int, pblk: int, mend: Callable[[bytearray], None]) -> None:
        kind = "extent node" if pblk else "extent root"
        head = EXTENT_HEADER.unpack_from(self.image, at)
        self._add(kind, at, EXTENT_HEADER, mend, f"inode {inode.ino}")
        for number in range(head.eh_entries):
            here = at + EXTENT_HEADER.size + number * EXTENT.size
            if number < 3 or number == head.eh_entries - 1:
                self._add(kind, here, EXTENT_INDEX if head.eh_depth else EXTENT, mend, f"inode {inode.ino} {number}")
            if head.eh_depth:
                child = EXTENT_INDEX.unpack_from(self.image, here).ei_leaf_lo
                self.numbers.append(child)
                self._find_node(
                    fs, inode, child * self.geo.block_size, child, self._mender(self._mend_node, inode.ino, child)
                )

    def _find_dir(self, fs: Filesystem, inode: Inode) -> None:
        tree = fs.volume.files.mapper(inode)
        size = self.geo.block_size
        levels = 0
        for lblk in range(inode.size // size):
            run = tree.run_at(lblk)
            if run.state is not RunState.MAPPED:
                continue
            pblk = run.pblk + lblk - run.lblk
            at = pblk * size
            self.numbers.append(pblk)
            indexed = bool(inode.flags & EXT4_INDEX_FL)
            if indexed and not lblk:
                mend = self._mender(self._mend_dx, inode.ino, pblk, 32)
                self._add("htree", at, DX_ROOT, mend, f"inode {inode.ino} root")
                self._dx_entries(at + 32, mend, f"inode {inode.ino} root")
                levels = self.image[at + 24 + 6]
            elif indexed and levels and DIR_ENTRY_2.get(self.image, at, "rec_len") == size:
                mend = self._mender(self._mend_dx, inode.ino, pblk, 8)
                self._dx_entries(at + 8, mend, f"inode {inode.ino} block {lblk}")
            else:
                mend = self._mender(self._mend_leaf, inode.ino, pblk)
                self._dir_entries(at, mend, f"inode {inode.ino} block {lblk}")

    def _dx_entries(self, at: int, mend: Callable[[bytearray], None], label: str) -> None:
        self._add("htree", at, DX_COUNT_LIMIT, mend, label)
        count = DX_COUNT_LIMIT.get(self.image, at, "count")
        for number in range(1, count):
            self._add("htree", at + number * DX_ENTRY.size, DX_ENTRY, mend, f"{label} entry {number}")

    def _dir_entries(self, at: int, mend: Callable[[bytearray], None], label: str) -> None:
        end = at + self.geo.block_size
        while at < end:
            self._add("directory", at, DIR_ENTRY_2, mend, label)
            self._bytes("directory", at + 8, 2, mend, label)
            at += rec_len_from_disk(DIR_ENTRY_2.get(self.image, at, "rec_len"), self.geo.block_size)

    # -- checksums -----------------------------------------------------------------------------------------

    def _mend_super(self, image: bytearray) -> None:
        raw = image[SB : SB + 1024]
        checksum.set_superblock(raw)
        image[SB : SB + 1024] = raw

    def _mend_desc(self, image: bytearray, group: int) -> None:
        at = self._desc_at(group)
        raw = image[at : at + self.geo.desc_size]
        self.desc_csum.set(raw, group)
        image[at : at + self.geo.desc_size] = raw

    def _mend_bitmap(self, image: bytearray, group: int, inodes: bool) -> None:
        """The checksum in the descriptor, and the count of free ones, or nothing would look at the bitmap twice."""
        at = self._desc_at(group)
        desc = self.get_desc(self.image, group)
        pblk = desc.bg_inode_bitmap_lo if inodes else desc.bg_block_bitmap_lo
        per_group = self.geo.inodes_per_group if inodes else self.geo.clusters_per_group
        raw = bytes(image[pblk * self.geo.block_size :][: per_group // 8])
        count = per_group if inodes else self.geo.group_cluster_count(group)
        free = sum(not raw[bit // 8] >> bit % 8 & 1 for bit in range(count))
        what = "inode" if inodes else "block"
        self.desc.put(image, at, **{f"bg_free_{what}s_count_lo": free})
        if self.has_csum:
            low, high = checksum.bitmap_csum(raw, self.seed)
            self.desc.put(image, at, **{f"bg_{what}_bitmap_csum_lo": low})
            if self.desc is GROUP_DESC_64:
                self.desc.put(image, at, **{f"bg_{what}_bitmap_csum_hi": high})
        self._mend_desc(image, group)

    def _inode_seed(self, image: bytearray, ino: int) -> int:
        generation = INODE.get(image, self._inode_at(self.image, ino), "i_generation")
        return checksum.inode_seed(self.seed, ino, generation)

    def _mend_inode(self, image: bytearray, ino: int) -> None:
        if self.has_csum:
            at = self._inode_at(self.image, ino)
            raw = image[at : at + self.geo.inode_size]
            checksum.set_inode(raw, self._inode_seed(image, ino))
            image[at : at + self.geo.inode_size] = raw

    def _block(self, image: bytearray, pblk: int, stamp: Callable[[bytearray], None]) -> None:
        if self.has_csum:
            at = pblk * self.geo.block_size
            raw = image[at : at + self.geo.block_size]
            try:
                stamp(raw)
            except (Corrupt, StructError, AssertionError):
                return  # no room for a checksum any more: that is the damage
            image[at : at + self.geo.block_size] = raw

    def _mend_node(self, image: bytearray, ino: int, pblk: int) -> None:
        self._block(image, pblk, lambda raw: checksum.set_extent_block(raw, self._inode_seed(image, ino)))

    def _mend_leaf(self, image: bytearray, ino: int, pblk: int) -> None:
        self._block(image, pblk, lambda raw: checksum.set_dir_leaf(raw, self._inode_seed(image, ino)))

    def _mend_dx(self, image: bytearray, ino: int, pblk: int, base: int) -> None:
        def stamp(raw: bytearray) -> None:
            limit, count = DX_COUNT_LIMIT.unpack_from(raw, base)
            checksum.set_dx_node(raw, self._inode_seed(image, ino), base, count, limit)

        self._block(image, pblk, stamp)

    def _mend_orphans(self, image: bytearray, ino: int, pblk: int) -> None:
        seed = self._inode_seed(image, ino)
        self._block(image, pblk, lambda raw: checksum.set_orphan_block(raw, seed, pblk))

    def _mend_xattr(self, image: bytearray, pblk: int) -> None:
        self._block(image, pblk, lambda raw: checksum.set_xattr_block(raw, self.seed, pblk))

    # -- changing on purpose --------------------------------------------------------------------------------

    def put_super(self, image: bytearray, **fields: Any) -> None:
        """Set fields of the superblock."""
        SUPERBLOCK.put(image, SB, **fields)
        self._mend_super(image)

    def put_desc(self, image: bytearray, group: int, **fields: int) -> None:
        """Set fields of a group descriptor."""
        self.desc.put(image, self._desc_at(group), **fields)
        self._mend_desc(image, group)

    def get_desc(self, image: bytes | bytearray, group: int) -> Any:
        """A group descriptor."""
        return self.desc.unpack_from(image, self._desc_at(group))

    def put_inode(self, image: bytearray, ino: int, **fields: Any) -> None:
        """Set fields of an inode."""
        INODE.put(image, self._inode_at(image, ino), **fields)
        self._mend_inode(image, ino)

    def get_inode(self, image: bytes | bytearray, ino: int) -> Any:
        """An inode's first 128 bytes."""
        return INODE.unpack_from(image, self._inode_at(image, ino))

    def put_bits(
        self, image: bytearray, group: int, first: int, count: int, used: bool, *, inodes: bool = False
    ) -> None:
        """Set or clear bits of a bitmap; the descriptor agrees afterwards."""
        desc = self.get_desc(image, group)
        at = (desc.bg_inode_bitmap_lo if inodes else desc.bg_block_bitmap_lo) * self.geo.block_size
        for bit in range(first, first + count):
            mask = 1 << bit % 8
            image[at + bit // 8] = image[at + bit // 8] | mask if used else image[at + bit // 8] & ~mask
        self._mend_bitmap(image, group, inodes)

    # -- damaging ------------------------------------------------------------------------------------------

    def _value(self, rng: random.Random, old: int, size: int) -> int:
        top = (1 << 8 * size) - 1
        choices = [
            0,
            1,
            top,
            top - 1,
            HIGH[size],
            HIGH[size] - 1,
            old + 1,
            old - 1,
            old ^ 1 << rng.randrange(8 * size),
            rng.randrange(top + 1),
            rng.choice(self.numbers),
            old * 2,
            self.geo.block_size,
        ]
        return rng.choice(choices) & top

    def _overwrite(self, rng: random.Random, image: bytearray) -> str:
        """One block of metadata becomes another one's copy, noise, or nothing; checksums stay as they are."""
        size = self.geo.block_size
        blocks = [number for number in self.numbers if 2 < number < self.geo.blocks_count]
        target, source = rng.choice(blocks), rng.choice(blocks)
        what = rng.choice(["copy", "noise", "zeros"])
        data = {"copy": image[source * size :][:size], "noise": rng.randbytes(size), "zeros": bytes(size)}[what]
        image[target * size : target * size + size] = data
        return f"block {target}: {what} of {source}"

    def mutate(self, rng: random.Random, count: int = 1) -> tuple[bytearray, str]:
        """A damaged copy, and what was done to it."""
        image = bytearray(self.image)
        done = []
        for _ in range(count):
            if rng.random() < 0.06:
                done.append(self._overwrite(rng, image))
                continue
            spot = rng.choice(self.spots[rng.choice(sorted(self.spots))])
            old = int.from_bytes(image[spot.at : spot.at + spot.size], spot.order)
            new = self._value(rng, old, spot.size)
            image[spot.at : spot.at + spot.size] = new.to_bytes(spot.size, spot.order)
            spot.mend(image)
            done.append(f"{spot.kind}: {spot.name}: {old:#x} -> {new:#x}")
        return image, "; ".join(done)
