"""What the iomap server needs of the file system below it, and how it allocates there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from py4fs.device.base import Device
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import Inode
from py4fs.ext4.runs import Run
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation, Reserve

DeviceChanged = Callable[[int, int], None]
"""Told (device offset, length > 0) of bytes that are metadata no longer: whoever has them cached must drop them."""

_EXTENTS_PER_BLOCK: Final = 84
"""Entries of an extent node in the smallest block (1 KiB)."""
_MAX_DEPTH: Final = 5


class Files(Protocol):
    """The part of `FileMap` that is needed; numbers are file system blocks."""

    block_size: int
    max_size: int

    def run_at(self, inode: Inode, lblk: int) -> Run: ...

    def window(self, inode: Inode, lblk: int, limit: int) -> list[Run]: ...

    def allocate(self, tx: Operation, inode: Inode, lblk: int, count: int, *, unwritten: bool = True) -> list[Run]: ...

    def fill(self, tx: Operation, inode: Inode, lblk: int, count: int) -> list[tuple[int, int]]: ...

    def convert(self, tx: Operation, inode: Inode, lblk: int, count: int) -> None: ...

    def remove(self, tx: Operation, inode: Inode, lblk: int, end: int) -> bool: ...

    def max_blocks(self, inode: Inode) -> int: ...

    @property
    def inline_changed(self) -> list[Callable[[int], None]]: ...

    def leave_inline(self, tx: Operation, inode: Inode) -> None: ...

    def prepare_inline(self, tx: Operation, inode: Inode, size: int) -> bool: ...

    def settle(self, ino: int) -> None: ...

    def hold_tail(self, tx: Operation, inode: Inode) -> None: ...

    def release_tail(self, tx: Operation, inode: Inode) -> None: ...


MAX_BLOCKS: Final = 2048


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """How writes allocate: as unwritten, to be converted in the ioend, a bounded number of blocks at a time."""

    max_blocks: int = MAX_BLOCKS
    """Blocks that one operation allocates at most."""

    def allocate(self, files: Files, tx: Operation, inode: Inode, lblk: int, count: int) -> list[Run]:
        """Fill the holes of a range of blocks; returns the whole runs that cover it.  Raises NoSpace, Corrupt."""
        return files.allocate(tx, inode, lblk, count, unwritten=True)


class ServedVolume(Protocol):
    """What a server is made from (`server_of`)."""

    @property
    def files(self) -> Files: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def device(self) -> Device: ...

    @property
    def superblock(self) -> Superblock: ...

    @property
    def max_credits(self) -> int: ...

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation: ...

    def time_range(self) -> tuple[int, int, int]: ...

    def on_device_change(self, listener: DeviceChanged) -> None: ...


SIZE_CREDITS: Final = 2
"""Metadata objects that raising a size can touch: the inode and, where its tail made it an orphan, what led to it."""


INLINE_CREDITS: Final = 24
"""Metadata objects that a write to an inline file can touch: the inode, and a first block if it does not fit."""


def allocation_credits(blocks: int, groups: int) -> int:
    """Metadata objects that mapping `blocks` new blocks can touch, each in an extent of its own at worst.

    Bitmap and descriptor of every group used, leaves with their splits, inode, superblock and orphan file.
    """
    nodes = 2 * (-(-blocks // _EXTENTS_PER_BLOCK)) + 2 * _MAX_DEPTH
    return 2 * min(blocks + nodes, groups) + nodes + 3


def policy_for(max_credits: int, groups: int) -> WritePolicy:
    """Allocations so small that a transaction, which holds `max_credits` at most, has room for two of them."""
    blocks = MAX_BLOCKS
    while blocks > 1 and 2 * allocation_credits(blocks, groups) > max_credits:
        blocks //= 2
    return WritePolicy(blocks)


def conversion_credits(runs: int) -> int:
    """Metadata objects that an ioend over `runs` unwritten extents can touch.

    Each conversion splits an extent twice at most, which may split its leaf: a new node, its bitmap and descriptor.
    """
    return 4 * (runs + _MAX_DEPTH) + 4
