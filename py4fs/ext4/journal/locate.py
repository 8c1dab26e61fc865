"""Finding the journal of a file system whose metadata may be older than its journal, or half written.

What leads to the journal never changes while a file system is in use: the place of the inode table, the journal's
inode and its map. So only those are looked at, and nothing that a crash could have torn is asked to be whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from struct import Struct
from typing import Any, Final

from py4fs.device.base import Device
from py4fs.errors import Corrupt, NeedsRecovery
from py4fs.ext4 import checksum
from py4fs.ext4.extent_node import ExtentNode, parse_node
from py4fs.ext4.features import Features, Incompat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import Inode, decode_inode
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.layout.group_desc import GROUP_DESC_32, GROUP_DESC_64
from py4fs.ext4.layout.inode import EXT4_ENCRYPT_FL, EXT4_EXTENTS_FL, EXT4_INLINE_DATA_FL
from py4fs.ext4.layout.superblock import EXT4_MAGIC, SUPERBLOCK, SUPERBLOCK_OFFSET

_POINTER: Final = Struct("<I")
_DIRECT: Final = 12
#: stretches of blocks that a journal may be in
MAX_RUNS: Final = 1 << 20


def internal_journal(device: Device, record: Any, geometry: Geometry) -> JournalArea:
    """The journal in inode s_journal_inum. Raises Corrupt, BadChecksum, UnsupportedFeature, DeviceError."""
    ino: int = record.s_journal_inum
    inode = _read_inode(device, record, geometry, ino)
    where = f"journal inode {ino}"
    if not inode.is_reg or not inode.nlink or inode.flags & (EXT4_ENCRYPT_FL | EXT4_INLINE_DATA_FL):
        raise Corrupt("journal", where, f"mode {inode.mode:#o}, {inode.nlink} links", "a regular file")
    want = inode.size // geometry.block_size
    walk = _extents if inode.flags & EXT4_EXTENTS_FL else _pointers
    runs: list[tuple[int, int]] = []
    have = 0
    for lblk, pblk, count in walk(device, geometry, inode, Features.of(record).metadata_csum):
        if have >= want:
            break
        if lblk != have or not pblk:
            raise Corrupt("journal", where, f"a hole at block {have}", f"all of {want} blocks")
        if not geometry.valid_run(pblk, count):
            raise Corrupt("journal", where, f"blocks {pblk}+{count}", f"below {geometry.blocks_count}")
        if runs and runs[-1][0] + runs[-1][1] == pblk:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        else:
            runs.append((pblk, count))
            if len(runs) > MAX_RUNS:
                raise Corrupt("journal", where, f"in more than {MAX_RUNS} pieces")
        have += count
    if have < want:
        raise Corrupt("journal", where, f"a hole at block {have}", f"all of {want} blocks")
    # else a small image could hold a log that takes days to read
    for (first, count), (other, _) in pairwise(sorted(runs)):
        if first + count > other:
            raise Corrupt("journal", where, f"block {other} twice", "each block once")
    return JournalArea.load(device, runs, geometry.block_size)


def _read_inode(device: Device, record: Any, geometry: Geometry, ino: int) -> Inode:
    group, index = geometry.inode_location(ino)
    table_index, offset = geometry.desc_location(group)
    size = geometry.block_size
    raw = device.read(geometry.gdt_block_location(table_index) * size + offset, geometry.desc_size)
    table: int = GROUP_DESC_32.get(raw, 0, "bg_inode_table_lo")
    if geometry.desc_size >= GROUP_DESC_64.size:
        table |= GROUP_DESC_64.get(raw, 0, "bg_inode_table_hi") << 32
    if not geometry.valid_run(table, geometry.itable_blocks):
        raise Corrupt("bg_inode_table", f"group {group} descriptor", table, f"below {geometry.blocks_count}")
    block, offset = geometry.inode_block(index)
    raw = device.read((table + block) * size + offset, geometry.inode_size)
    inode = decode_inode(ino, raw, size)
    if Features.of(record).metadata_csum:
        inode.seed = checksum.inode_seed(checksum.superblock_seed(record), ino, inode.generation)
        checksum.verify_inode(raw, inode.seed, f"inode {ino} (the journal)")
    return inode


def _extents(device: Device, geometry: Geometry, inode: Inode, csum: bool) -> Iterator[tuple[int, int, int]]:
    """(logical block, physical block, count) of all extents. Raises Corrupt, BadChecksum, DeviceError."""
    size = geometry.block_size

    def parse(raw: bytes, pblk: int, depth: int | None) -> ExtentNode:
        where = f"inode {inode.ino} extent block {pblk}" if pblk else f"inode {inode.ino} extent root"
        return parse_node(
            raw, pblk=pblk, depth=depth, block_size=size, seed=inode.seed if csum else None, where=where
        )

    # nodes still to be visited, the next one last; keys must rise, so that no node is visited twice
    todo = [parse(bytes(inode.iblock), 0, None)]
    reached = -1
    while todo:
        node = todo.pop()
        if node.keys and node.keys[0] < reached:
            raise Corrupt("extent order", f"inode {inode.ino} extent block {node.pblk}", node.keys[0], f">= {reached}")
        if not node.depth:
            for extent in node.extents:
                if extent.unwritten:
                    raise Corrupt("journal", f"inode {inode.ino} block {extent.lblk}", "unwritten", "written")
                yield extent.lblk, extent.pblk, extent.count
            reached = max(reached, node.extents[-1].end if node.extents else 0)
            continue
        # one child at a time: a node's entries are only as good as the children turn out to be
        head, rest = node.children[0], node.children[1:]
        if rest:
            other = ExtentNode(node.pblk, node.depth, node.limit, size, node.seed)
            other.keys, other.children = node.keys[1:], rest
            todo.append(other)
        if not geometry.valid_run(head, 1):
            raise Corrupt("extent index", f"inode {inode.ino}", head, f"below {geometry.blocks_count}")
        todo.append(parse(device.read(head * size, size), head, node.depth - 1))


def _pointers(device: Device, geometry: Geometry, inode: Inode, _csum: bool) -> Iterator[tuple[int, int, int]]:
    """The same for a block map, block by block; physical block 0 for a hole."""
    size = geometry.block_size
    per_block = size // _POINTER.size

    def below(pblk: int, level: int, lblk: int) -> Iterator[tuple[int, int, int]]:
        step = per_block**level
        if not pblk:
            yield lblk, 0, step
            return
        if not geometry.valid_run(pblk, 1):
            raise Corrupt("block map", f"inode {inode.ino}", pblk, f"below {geometry.blocks_count}")
        if not level:
            yield lblk, pblk, 1
            return
        raw = device.read(pblk * size, size)
        for index, (child,) in enumerate(_POINTER.iter_unpack(raw)):
            yield from below(child, level - 1, lblk + index * step // per_block)

    roots = [pblk for (pblk,) in _POINTER.iter_unpack(bytes(inode.iblock))]
    lblk = 0
    for index, pblk in enumerate(roots):
        level = max(index - _DIRECT + 1, 0)
        yield from below(pblk, level, lblk)
        lblk += per_block**level


def external_journal(device: Device, record: Any, block_size: int) -> JournalArea:
    """The journal of the file system ``record`` on a device of its own (mke2fs -O journal_dev).

    Raises Corrupt, BadChecksum, UnsupportedFeature, NeedsRecovery (it belongs to another file system), DeviceError.
    """
    where = device.name
    if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK.size:
        raise Corrupt("journal device", where, f"{device.size} bytes", "a journal made by mke2fs -O journal_dev")
    raw = device.read(SUPERBLOCK_OFFSET, SUPERBLOCK.size)
    sb = SUPERBLOCK.unpack_from(raw)
    features = Features.of(sb)
    if sb.s_magic != EXT4_MAGIC or not features.incompat & Incompat.JOURNAL_DEV:
        raise Corrupt("journal device", where, "something else", "a journal made by mke2fs -O journal_dev")
    if features.metadata_csum:
        checksum.verify_superblock(raw, where)
    if sb.s_uuid != record.s_journal_uuid:
        want = record.s_journal_uuid.hex()
        raise NeedsRecovery(f"{where}: not this file system's journal: its UUID is {sb.s_uuid.hex()}, not {want}")
    count = sb.s_blocks_count_lo | sb.s_blocks_count_hi << 32
    total = min(count, device.size // block_size, 0xFFFFFFFF)
    # behind the superblock's block, which with blocks of 1 KiB is not the first
    area = JournalArea.load(
        device, [(0, total)], block_size, superblock_block=SUPERBLOCK_OFFSET // block_size + 1, external=True
    )
    if area.record.s_nr_users != 1:
        raise Corrupt("s_nr_users", f"{where}: journal superblock", area.record.s_nr_users, 1)
    return area
