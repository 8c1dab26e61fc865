"""The orphan file: a file full of slots for the numbers of orphans (ext4 docs: Orphan file; kernel: orphan.c).

Unlike the list through the inodes it is no bottleneck: entering an orphan changes one block, and no other inode. It is
made by mke2fs and keeps its size; when no slot is free, orphans go on the list.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from struct import Struct, unpack_from
from typing import Final

from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import RANK_DIRECTORY, BufferCache, RawBlock
from py4fs.ext4.file import FileMap
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.orphan import EXT4_ORPHAN_BLOCK_MAGIC, ORPHAN_BLOCK_TAIL
from py4fs.ext4.transaction import Operation

#: kernels accept 8 MiB, or 512 blocks; what one of them accepts is accepted
MAX_BYTES: Final = 8 << 20
MAX_BLOCKS: Final = 512
#: blocks read in one call
_BATCH: Final = 64
_ENTRY: Final = Struct("<I")


class OrphanBlock(RawBlock):
    """One block of slots."""

    __slots__ = ()


class OrphanFile:
    """The slots of one volume: who is in which, and which are free. Raises what its blocks raise when used."""

    def __init__(
        self, inode: Inode, files: FileMap, buffers: BufferCache, geometry: Geometry, *, metadata_csum: bool
    ) -> None:
        """``inode``: the file's. Raises Corrupt (no such file, too large, holes), UnsupportedFeature, DeviceError."""
        size = geometry.block_size
        if not inode.is_reg:
            raise Corrupt("orphan file", f"inode {inode.ino}", f"mode {inode.mode:o}", "a regular file")
        most = max(MAX_BYTES, MAX_BLOCKS * size)
        if inode.size > most:
            raise Corrupt("size of the orphan file", f"inode {inode.ino}", inode.size, f"at most {most}")
        self._buffers = buffers
        self._geometry = geometry
        self._ino = inode.ino
        self._seed = inode.seed if metadata_csum else None
        self._block_size = size
        #: slots in a block
        self.per_block = (size - ORPHAN_BLOCK_TAIL.size) // _ENTRY.size
        self._pblks = [files.block_of(inode, lblk) for lblk in range(inode.size // size)]
        if len(set(self._pblks)) != len(self._pblks):
            raise Corrupt("orphan file", f"inode {inode.ino}", "a block that is there twice", "different blocks")
        #: inode -> its slot, counted through all blocks
        self.slots: dict[int, int] = {}
        #: blocks with free slots that were not looked at more closely; their free slots are in no list
        self._unopened: set[int] = set()
        self._free: list[int] = []

    @property
    def capacity(self) -> int:
        """Slots in all blocks."""
        return len(self._pblks) * self.per_block

    # -- reading ---------------------------------------------------------------------------------------------------

    def load(self) -> list[int]:
        """Read all blocks; returns the inodes in the slots, in their order. To be called once, before anything else.

        Raises Corrupt (bad magic, inode numbers that cannot be, one that is there twice), BadChecksum, DeviceError.
        """
        nobody = bytes(self.per_block * _ENTRY.size)
        for index, raw in enumerate(self._read_all()):
            self._check(index, raw)
            if raw.startswith(nobody):
                self._unopened.add(index)
                continue
            for offset, ino in enumerate(unpack_from(f"<{self.per_block}I", raw)):
                if ino:
                    self._enter(ino, index * self.per_block + offset)
                else:
                    self._unopened.add(index)
        return list(self.slots)

    def _read_all(self) -> Iterator[bytes]:
        """The blocks in their order, neighbours read in one call."""
        size = self._block_size
        at = 0
        while at < len(self._pblks):
            first = self._pblks[at]
            count = 1
            while count < _BATCH and self._pblks[at + count : at + count + 1] == [first + count]:
                count += 1
            data = self._buffers.read(first, count)
            for start in range(0, count * size, size):
                yield data[start : start + size]
            at += count

    def _where(self, index: int) -> str:
        return f"orphan file (inode {self._ino}) block {index} (block {self._pblks[index]})"

    def _check(self, index: int, raw: bytes) -> None:
        tail = ORPHAN_BLOCK_TAIL.unpack_from(raw, self._block_size - ORPHAN_BLOCK_TAIL.size)
        if tail.ob_magic != EXT4_ORPHAN_BLOCK_MAGIC:
            raise Corrupt("ob_magic", self._where(index), f"{tail.ob_magic:#010x}", f"{EXT4_ORPHAN_BLOCK_MAGIC:#010x}")
        if self._seed is not None:
            checksum.verify_orphan_block(raw, self._seed, self._pblks[index], self._where(index))

    def _enter(self, ino: int, slot: int) -> None:
        where = f"{self._where(slot // self.per_block)} slot {slot % self.per_block}"
        geo = self._geometry
        if not geo.first_ino <= ino <= geo.inodes_count or ino == self._ino:
            raise Corrupt("inode number", where, ino, f"{geo.first_ino} to {geo.inodes_count}, not the file itself")
        if ino in self.slots:
            raise Corrupt("inode number", where, f"{ino}, which has slot {self.slots[ino]} too", "each inode once")
        self.slots[ino] = slot

    def _block(self, index: int) -> OrphanBlock:
        """A block to be changed. Raises Corrupt, BadChecksum, DeviceError."""
        pblk = self._pblks[index]

        def parse(pblk: int, raw: bytes) -> OrphanBlock:
            self._check(index, raw)
            seed = self._seed
            stamp = None if seed is None else partial(checksum.set_orphan_block, seed=seed, pblk=pblk)
            return OrphanBlock(pblk, raw, stamp, RANK_DIRECTORY)

        return self._buffers.get(pblk, OrphanBlock, parse)

    # -- changing --------------------------------------------------------------------------------------------------

    def add(self, tx: Operation, ino: int) -> bool:
        """Give the inode a slot; False when none is free. Raises Corrupt, BadChecksum, DeviceError."""
        if not self._free and not self._open_next():
            return False
        slot = self._free[-1]
        index, offset = divmod(slot, self.per_block)
        block = self._block(index)
        self._expect(block, slot, 0)
        self._free.pop()
        tx.on_abort(partial(self._free.append, slot))
        tx.touch(block)
        _ENTRY.pack_into(block.data, offset * _ENTRY.size, ino)
        self.slots[ino] = slot
        tx.on_abort(partial(self.slots.__delitem__, ino))
        return True

    def remove(self, tx: Operation, ino: int) -> None:
        """Free the slot of an inode that has one. Raises Corrupt, BadChecksum, DeviceError."""
        slot = self.slots[ino]
        index, offset = divmod(slot, self.per_block)
        block = self._block(index)
        self._expect(block, slot, ino)
        tx.touch(block)
        _ENTRY.pack_into(block.data, offset * _ENTRY.size, 0)
        del self.slots[ino]
        tx.on_abort(partial(self.slots.__setitem__, ino, slot))
        if index not in self._unopened:
            self._free.append(slot)
        # even if not: its block may be opened before the operation fails
        tx.on_abort(partial(self._taken, slot))

    def clear_block(self, tx: Operation) -> bool:
        """Free all slots of one block, whatever they say; False when all were free. Raises as :meth:`remove`."""
        slot = next(iter(self.slots.values()), None)
        if slot is None:
            return False
        index = slot // self.per_block
        # the rest of them follows, as it was loaded
        there = takewhile(lambda entry: entry[1] // self.per_block == index, self.slots.items())
        for ino, _ in list(there):
            self.remove(tx, ino)
        return True

    def _open_next(self) -> bool:
        """Look for free slots in a block that was not opened yet. Raises Corrupt, BadChecksum, DeviceError."""
        while self._unopened:
            index = min(self._unopened)
            entries = unpack_from(f"<{self.per_block}I", self._block(index).data)
            self._unopened.remove(index)
            first = index * self.per_block
            # the lowest slot is taken first
            self._free += [first + offset for offset in range(self.per_block - 1, -1, -1) if not entries[offset]]
            if self._free:
                return True
        return False

    def _expect(self, block: OrphanBlock, slot: int, ino: int) -> None:
        """The device may have changed behind our back since the block was dropped from the cache."""
        index, offset = divmod(slot, self.per_block)
        (found,) = _ENTRY.unpack_from(block.data, offset * _ENTRY.size)
        if found != ino:
            raise Corrupt("orphan file", f"{self._where(index)} slot {offset}", f"inode {found}", f"inode {ino}")

    def _taken(self, slot: int) -> None:
        if slot in self._free:
            self._free.remove(slot)
