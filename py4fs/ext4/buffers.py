"""The cache of metadata blocks: one object per block, parsed once, encoded at commit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, TypeVar

from py4fs.device.base import Device
from py4fs.errors import Corrupt
from py4fs.ext4.transaction import Operation, Transactions, Undoable

T = TypeVar("T", bound="MetaBlock")

#: write order of blocks inside one commit: what is pointed to goes before what points. Blocks that are new in the
#: commit are reached only through others, whatever they hold
RANK_BITMAP: Final = 0
RANK_NEW: Final = 1
RANK_POINTED: Final = 2
RANK_INODE: Final = 3
RANK_DIRECTORY: Final = 4
RANK_GROUP: Final = 5
RANK_SUPER: Final = 6


class MetaBlock(Undoable):
    """A metadata block in memory. Subclasses hold the parsed or raw contents; hashed by identity."""

    __slots__ = ("created", "pblk", "recent")
    rank = RANK_POINTED

    def __init__(self, pblk: int) -> None:
        self.pblk = pblk
        self.recent = False
        #: number of the transaction that allocated the block; 0 when it was read
        self.created = 0

    @abstractmethod
    def encode(self) -> bytes | bytearray:
        """The block's bytes with its checksum stamped."""

    @abstractmethod
    def save(self) -> Any: ...

    @abstractmethod
    def restore(self, state: Any) -> None: ...


class RawBlock(MetaBlock):
    """A metadata block kept as bytes; ``stamp`` writes its checksum in place at commit."""

    __slots__ = ("data", "rank", "stamp")

    def __init__(
        self,
        pblk: int,
        data: bytes | bytearray,
        stamp: Callable[[bytearray], None] | None = None,
        rank: int = RANK_POINTED,
    ) -> None:
        super().__init__(pblk)
        self.data = bytearray(data)
        self.stamp = stamp
        self.rank = rank

    def encode(self) -> bytearray:
        if self.stamp is not None:
            self.stamp(self.data)
        return self.data

    def save(self) -> bytes:
        return bytes(self.data)

    def restore(self, state: bytes) -> None:
        self.data[:] = state


class BufferCache:
    """Metadata blocks by physical number; clean ones are dropped beyond ``limit`` blocks (second chance)."""

    def __init__(self, device: Device, block_size: int, transactions: Transactions, limit: int) -> None:
        self._device = device
        self._block_size = block_size
        self._transactions = transactions
        self._limit = limit
        #: how many there may be before it is worth looking again for some to drop
        self._trim_at = limit
        self._blocks: dict[int, MetaBlock] = {}
        #: asked first for a block that is read: committed contents that are not in their place yet
        self.latest: Callable[[int], bytes | None] = _nothing

    def read(self, pblk: int, count: int = 1) -> bytes:
        """``count`` blocks straight from the device, not cached. Raises DeviceError."""
        if count == 1 and (data := self.latest(pblk)) is not None:
            return data
        return self._device.read(pblk * self._block_size, count * self._block_size)

    def get(self, pblk: int, kind: type[T], factory: Callable[[int, bytes], T]) -> T:
        """The cached block, or ``factory(pblk, bytes)``, which verifies and parses.

        Raises DeviceError, what the factory raises, and Corrupt when the block is in use as another ``kind``: on a
        damaged image two structures may name one block.
        """
        block = self._blocks.get(pblk)
        if block is None:
            block = self._blocks[pblk] = factory(pblk, self.read(pblk))
        else:
            block.recent = True
            if not isinstance(block, kind):
                raise Corrupt("block", f"block {pblk}", f"in use as {type(block).__name__}", kind.__name__)
        return block

    def peek(self, pblk: int) -> MetaBlock | None:
        return self._blocks.get(pblk)

    def hit(self, pblk: int) -> MetaBlock | None:
        """The block if it is cached, which counts as a use of it; what kind of block it is, the caller looks."""
        block = self._blocks.get(pblk)
        if block is not None:
            block.recent = True
        return block

    def create(self, tx: Operation, block: MetaBlock) -> None:
        """Enter a block that was just allocated and so is not read; gone again if the operation fails."""
        old = self._blocks.pop(block.pblk, None)
        if old is not None:
            tx.forget(old)
        tx.on_abort(lambda: self._put_back(block.pblk, old))
        tx.touch(block)
        block.created = tx.transaction.tid
        self._blocks[block.pblk] = block

    def forget(self, tx: Operation, pblk: int) -> None:
        """The block was freed: it must be neither written nor found any more, nor replayed from the journal."""
        tx.revoke(pblk)
        old = self._blocks.pop(pblk, None)
        if old is not None:
            tx.forget(old)
            tx.on_abort(lambda: self._put_back(pblk, old))

    def _put_back(self, pblk: int, old: MetaBlock | None) -> None:
        if old is None:
            self._blocks.pop(pblk, None)
        else:
            self._blocks[pblk] = old

    def trim(self) -> None:
        """Drop clean, not recently used blocks until an eighth of the limit is free again.

        Only between operations, when nobody has a block in hand that he may still change: the cached object must
        stay the only one of its block.
        """
        if len(self._blocks) > self._trim_at:
            self._drop_down_to(self._limit - self._limit // 8)
            self._trim_at = max(self._limit, len(self._blocks) + self._limit // 8)

    def shrink(self, part: float) -> None:
        """Drop clean blocks until ``part`` of them is left (0 to 1). Only between operations."""
        target = int(len(self._blocks) * part)
        self._drop_down_to(target)
        self._drop_down_to(target)  # those that were in use lately have had their second chance

    def _drop_down_to(self, target: int) -> None:
        dirty = self._transactions.running.dirty
        for pblk in list(self._blocks):
            if len(self._blocks) <= target:
                break
            block = self._blocks[pblk]
            if block in dirty:
                continue
            if block.recent:
                block.recent = False
                self._blocks[pblk] = self._blocks.pop(pblk)
                continue
            del self._blocks[pblk]

    def __len__(self) -> int:
        return len(self._blocks)


def _nothing(_pblk: int) -> None:
    return None
