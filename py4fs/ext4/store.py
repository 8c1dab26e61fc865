"""How a committed transaction reaches the device: the interface, and the way without a journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from py4fs.device.base import Device
from py4fs.ext4.buffers import RANK_BITMAP, RANK_DIRECTORY, RANK_INODE, RANK_NEW, RANK_SUPER


class BlockImage(NamedTuple):
    """The bytes of one metadata block at commit. ``rank``: what is pointed to goes before what points."""

    rank: int
    pblk: int
    data: bytes


class Store(Protocol):
    """One transaction at a time: :meth:`stage` and :meth:`finish` under the lock, :meth:`write` may run outside it."""

    @property
    def max_blocks(self) -> int:
        """Metadata blocks that one transaction may hold."""

    def mark_in_use(self) -> None:
        """Called once before anything is written. Raises DeviceError."""

    def stage(self, images: Sequence[BlockImage], revoked: Sequence[int]) -> None:
        """Take a transaction: its blocks, and the metadata blocks that it freed."""

    def write(self, durable: bool) -> None:
        """Bring the staged transaction to the device. Raises DeviceError."""

    def finish(self) -> None:
        """The staged transaction is on the device."""

    def latest(self, pblk: int) -> bytes | None:
        """The newest contents of a block that is not in its place yet."""

    def mark_clean(self) -> None:
        """At the end: everything in its place, the file system as it was found. Raises DeviceError."""


def write_in_place(device: Device, block_size: int, images: Iterable[BlockImage]) -> None:
    """Write blocks in the order of their rank, neighbours in one call.

    Raises DeviceError; what was written by then stays.
    """
    batch: list[bytes] = []
    first = 0
    last: tuple[int, int] | None = None
    for image in sorted(images):
        if batch and last != (image.rank, image.pblk - 1):
            device.writev(first * block_size, batch)
            batch = []
        if not batch:
            first = image.pblk
        batch.append(image.data)
        last = (image.rank, image.pblk)
    if batch:
        device.writev(first * block_size, batch)


#: blocks of one stage are durable before those of the next are written: new blocks, the inodes and map blocks that
#: point to them, the directories that point to inodes, and counts
_STAGES: Final = (RANK_NEW, RANK_INODE, RANK_DIRECTORY, RANK_SUPER)


class InPlaceStore:
    """No journal: blocks go straight to their places. The superblock's VALID flag is off meanwhile (``mark``).

    What a crash leaves needs e2fsck, but nothing ever points to a block that was not written.
    """

    max_blocks = 1 << 30

    def __init__(
        self, device: Device, block_size: int, mark: Callable[[bool], None], *, barrier: bool = True
    ) -> None:
        """``mark(in_use)`` writes the superblock with VALID cleared, or as it was found."""
        self._device = device
        self._block_size = block_size
        self._mark = mark
        self._barrier = barrier
        self._staged: dict[int, BlockImage] = {}

    def _flush(self) -> None:
        if self._barrier:
            self._device.flush()

    def mark_in_use(self) -> None:
        self._mark(True)
        self._flush()

    def stage(self, images: Sequence[BlockImage], revoked: Sequence[int]) -> None:
        self._staged = {image.pblk: image for image in images}

    def write(self, durable: bool) -> None:
        """Durable in any case: freed blocks may be used again afterwards, when nothing on disk points to them."""
        self._flush()  # file data before the metadata that shows it
        first = RANK_BITMAP
        for last in _STAGES:
            images = [image for image in self._staged.values() if first <= image.rank <= last]
            if images:
                write_in_place(self._device, self._block_size, images)
                self._flush()
            first = last + 1

    def finish(self) -> None:
        self._staged = {}

    def latest(self, pblk: int) -> bytes | None:
        image = self._staged.get(pblk)
        return None if image is None else image.data

    def mark_clean(self) -> None:
        self._mark(False)
        self._flush()
