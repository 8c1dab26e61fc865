"""How a committed transaction reaches the device. This writer puts blocks in place; a journal would log them first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from py4fs.device.base import Device


class BlockImage(NamedTuple):
    """The bytes of one metadata block at commit."""

    rank: int
    pblk: int
    data: bytes


def write_in_place(device: Device, block_size: int, images: Iterable[BlockImage]) -> None:
    """Write blocks in the order of their rank (what is pointed to before what points), neighbours in one call.

    Raises DeviceError; what was written by then stays.
    """
    batch: list[bytes] = []
    first = 0
    last: tuple[int, int] | None = None
    for image in sorted(images):
        if last != (image.rank, image.pblk - 1) and batch:
            device.writev(first * block_size, batch)
            batch = []
        if not batch:
            first = image.pblk
        batch.append(image.data)
        last = (image.rank, image.pblk)
    if batch:
        device.writev(first * block_size, batch)
