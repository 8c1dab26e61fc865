"""Files with a Merkle tree (fs-verity): every block is compared with the tree before it is read the first time.

The tree lies behind the end of the file, its root first, and the descriptor behind it (ext4 docs: Verity files; kernel
documentation: fsverity).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from bitarray import bitarray

from py4fs.errors import BadChecksum, Corrupt, UnsupportedFeature
from py4fs.ext4.file import FileMap, RunState
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.verity import (
    FS_VERITY_HASH_ALG_SHA256,
    FS_VERITY_HASH_ALG_SHA512,
    VERITY_ALIGNMENT,
    VERITY_DESCRIPTOR,
)

Hash = Callable[[bytes], Any]

_ALGORITHMS: Final[dict[int, Hash]] = {
    FS_VERITY_HASH_ALG_SHA256: hashlib.sha256,
    FS_VERITY_HASH_ALG_SHA512: hashlib.sha512,
}
#: limits: of the descriptor with its signature in bytes, of the block size in powers of two (as the kernel's pages)
_MAX_DESCRIPTOR: Final = 16384
_LOG_BLOCK: Final = range(10, 17)
#: verified blocks of the tree that are kept
_KEPT: Final = 256


class VerityFile:
    """The tree of one file, and which blocks of the file were found to fit it."""

    def __init__(self, inode: Inode, files: FileMap, read: Callable[[int, int], bytes]) -> None:
        """`read(pblk, count)` reads blocks of the device. Raises Corrupt, UnsupportedFeature, DeviceError."""
        self._inode = inode
        self._files = files
        self._read_blocks = read
        self._where = f"inode {inode.ino}"
        self._tree_at = -(-inode.size // VERITY_ALIGNMENT) * VERITY_ALIGNMENT
        descriptor = self._descriptor()
        self._block = 1 << descriptor.log_blocksize
        self._new = _ALGORITHMS[descriptor.hash_algorithm]
        empty = self._new(b"")
        self._digest: int = empty.digest_size
        salt = descriptor.salt[: descriptor.salt_size]
        self._salt = salt + bytes(-len(salt) % empty.block_size)
        self._root: bytes = descriptor.root_hash[: self._digest]
        self._arity = self._block // self._digest
        #: blocks of the tree in front of each level, the leaves' first
        self._starts = self._levels(-(-inode.size // self._block))
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._good = bitarray(-(-inode.size // self._block))
        self._good.setall(False)

    def _levels(self, blocks: int) -> list[int]:
        counts = []
        while blocks > 1:
            blocks = -(-blocks // self._arity)
            counts.append(blocks)
        return [sum(counts[level + 1 :]) for level in range(len(counts))]

    def _descriptor(self) -> Any:
        size = self._files.block_size
        end = self._end() * size
        length = int.from_bytes(self._read(end - 4, 4), "little") if end else 0
        start = (end - 4 - length) // size * size
        if not VERITY_DESCRIPTOR.size <= length <= _MAX_DESCRIPTOR or start < self._tree_at:
            raise Corrupt("verity descriptor size", self._where, length, f"{VERITY_DESCRIPTOR.size}..{_MAX_DESCRIPTOR}")
        found = VERITY_DESCRIPTOR.unpack_from(self._read(start, VERITY_DESCRIPTOR.size))
        if found.version != 1 or found.hash_algorithm not in _ALGORITHMS or found.log_blocksize not in _LOG_BLOCK:
            got = f"version {found.version}, algorithm {found.hash_algorithm}, blocks of 2^{found.log_blocksize} bytes"
            raise UnsupportedFeature(["verity"], f"{self._where}: verity descriptor: {got}")
        if found.salt_size > len(found.salt) or found.data_size != self._inode.size:
            got = f"salt of {found.salt_size}, data of {found.data_size} bytes"
            raise Corrupt("verity descriptor", self._where, got, f"at most 32, {self._inode.size}")
        return found

    def _end(self) -> int:
        """The first block behind everything that is mapped. Raises Corrupt, DeviceError."""
        end, lblk = 0, self._tree_at // self._files.block_size
        last = self._files.max_blocks(self._inode)
        while lblk < last:
            run = self._files.run_at(self._inode, lblk)
            if run.state is not RunState.HOLE:
                end = run.end
            lblk = run.end
        return end

    def _read(self, position: int, length: int) -> bytes:
        """Bytes of the file, also behind its end; holes are zeros. Raises Corrupt, DeviceError."""
        size = self._files.block_size
        lblk, stop = position // size, -(-(position + length) // size)
        skip = position - lblk * size
        parts = []
        while lblk < stop:
            run = self._files.run_at(self._inode, lblk)
            count = min(run.end, stop) - lblk
            mapped = run.state is RunState.MAPPED
            parts.append(self._read_blocks(run.pblk + lblk - run.lblk, count) if mapped else bytes(count * size))
            lblk += count
        return b"".join(parts)[skip : skip + length]

    def check(self, offset: int, length: int) -> None:
        """Compare the blocks of a range of bytes, those that were not yet. Raises BadChecksum, Corrupt, DeviceError."""
        last = min(offset + length, self._inode.size)
        for block in range(offset // self._block, -(-last // self._block)):
            if not self._good[block]:
                data = self._read(block * self._block, min(self._block, self._inode.size - block * self._block))
                self._compare("data", block, data.ljust(self._block, b"\0"), self._wanted(0, block))
                self._good[block] = True

    def _wanted(self, level: int, index: int) -> bytes:
        """The hash that a block has to have; `level` 0 is the data, 1 the leaves of the tree."""
        if level >= len(self._starts):
            return self._root
        parent, place = divmod(index, self._arity)
        block = self._tree_block(level + 1, parent)
        return block[place * self._digest : (place + 1) * self._digest]

    def _tree_block(self, level: int, index: int) -> bytes:
        block = self._kept.get((level, index))
        if block is None:
            place = self._starts[level - 1] + index
            block = self._read(self._tree_at + place * self._block, self._block)
            self._compare(f"tree level {level}", index, block, self._wanted(level, index))
            self._kept[level, index] = block
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return block

    def _compare(self, what: str, index: int, data: bytes, want: bytes) -> None:
        found = self._new(self._salt + data).digest()
        if found != want:
            raise BadChecksum(f"verity {what} block {index}", self._where, found.hex()[:16], want.hex()[:16])
