"""The copies of the superblock: most of what it says never changes in them, the rest is changed here.

(ext4 docs: Super Block, sparse_super; kernel: ext4_update_superblocks_fn.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from py4fs.device.base import Device
from py4fs.device.overlay import OverlayDevice
from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import BufferCache, RawBlock
from py4fs.ext4.features import RoCompat, check_magic
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.ext4.superblock import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock
from py4fs.ext4.transaction import Operation, Transactions

log = logging.getLogger(__name__)

#: copies that one operation changes
BATCH: Final = 16
#: copies that are changed at all: without sparse_super every group has one
MAX_COPIES: Final = 1 << 18


def change_superblocks(
    transactions: Transactions, superblock: Superblock, buffers: BufferCache, geometry: Geometry, **fields: bytes
) -> None:
    """Set fields in the superblock, then in its copies. A copy that is none is left alone, with a warning.

    Raises DeviceError, Corrupt, ReadOnly; then some copies may have been changed.
    """
    with transactions.operation(1) as tx:
        tx.touch(superblock)
        superblock.put(**fields)
    copies = iter(geometry.super_groups()[1 : MAX_COPIES + 1])  # the first is the superblock itself
    while groups := list(islice(copies, BATCH)):
        with transactions.operation(BATCH) as tx:
            for group in groups:
                block = buffers.get(geometry.group_first_block(group), RawBlock, RawBlock)
                _change_copy(tx, block, superblock, fields)


def _change_copy(tx: Operation, block: RawBlock, superblock: Superblock, fields: dict[str, bytes]) -> None:
    raw = bytearray(block.data[:SUPERBLOCK_SIZE])
    try:
        check_magic(SUPERBLOCK.unpack_from(raw))
        if superblock.feature_ro_compat & RoCompat.METADATA_CSUM:
            checksum.verify_superblock(raw, f"block {block.pblk}")
    except Corrupt as exc:
        log.warning("the copy of the superblock in block %d stays as it is: %s", block.pblk, exc)
        return
    tx.touch(block)
    SUPERBLOCK.put(raw, 0, **fields)
    if superblock.feature_ro_compat & RoCompat.METADATA_CSUM:
        checksum.set_superblock(raw)
    block.data[:SUPERBLOCK_SIZE] = raw


def with_backup(device: Device, offset: int) -> Device:
    """The device as it is when its superblock is fine; else one over it, to be read only, with the copy at byte
    ``offset`` and the group descriptors behind it in place of the first ones.

    Raises Corrupt, BadChecksum (the copy is no better), DeviceError.
    """
    try:
        _checked(device, SUPERBLOCK_OFFSET)
    except Corrupt as exc:
        log.warning("%s: the copy of the superblock at byte %d is used: %s", device.name, offset, exc)
    else:
        return device
    raw = bytearray(_checked(device, offset))
    record = SUPERBLOCK.unpack_from(raw)
    geometry = Geometry.of(record, device.size)
    size = geometry.block_size
    SUPERBLOCK.put(raw, 0, s_block_group_nr=0)
    if record.s_feature_ro_compat & RoCompat.METADATA_CSUM:
        checksum.set_superblock(raw)
    pblk, at = geometry.super_block()
    block = bytearray(device.read(pblk * size, size))
    block[at : at + SUPERBLOCK_SIZE] = raw
    count = geometry.first_meta_bg if geometry.meta_bg else geometry.gdt_blocks
    return OverlayDevice(device, size, _Copies(device, size, pblk, bytes(block), offset // size + 1, count))


class _Copies(Mapping[int, bytes]):
    """The superblock's block and the descriptors' behind it, with what copies say; those are read when asked for."""

    def __init__(self, device: Device, size: int, pblk: int, block: bytes, source: int, count: int) -> None:
        """``block``: what block ``pblk`` has; the ``count`` blocks behind it are copied from block ``source`` on."""
        self._device = device
        self._size = size
        self._block = block
        self._source = source
        self._places = range(pblk, pblk + 1 + count)

    def __getitem__(self, pblk: int) -> bytes:
        index = self._places.index(pblk)
        return self._device.read((self._source + index - 1) * self._size, self._size) if index else self._block

    def __contains__(self, pblk: object) -> bool:
        return pblk in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _checked(device: Device, offset: int) -> bytes:
    """A superblock's bytes. Raises Corrupt, BadChecksum, DeviceError."""
    if offset + SUPERBLOCK_SIZE > device.size:
        raise Corrupt("superblock", f"byte {offset}", "the end of the device")
    raw = device.read(offset, SUPERBLOCK_SIZE)
    record = SUPERBLOCK.unpack_from(raw)
    check_magic(record)
    if record.s_feature_ro_compat & RoCompat.METADATA_CSUM:
        checksum.verify_superblock(raw, f"byte {offset}")
    Geometry.of(record, device.size)
    return raw
