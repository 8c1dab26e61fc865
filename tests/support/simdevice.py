"""A block device as two users see it: py4fs through the page cache, the kernel's file I/O past it.

What is in the page cache is not seen by the other, and is written over its bytes some day: so no block may be in the
cache when file data goes there. That is what DEV_INVAL is for (IOMAP.md section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from py4fs.errors import DeviceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

LEAD = 1 << 16
"""Bytes in front of the file system, as of a partition table: addresses on the device are not those inside."""


class SimDevice:
    """An image in memory with a page cache in blocks of `unit` bytes. `save` brings it back to the file."""

    def __init__(self, image: Path, unit: int) -> None:
        self.name = image.name
        self.image = image
        self.platter = bytearray(image.read_bytes())
        self.size = len(self.platter)
        self.readonly = False
        self.unit = unit
        self.cache: dict[int, bytearray] = {}
        self.dirty: set[int] = set()
        self.broken: range | None = None
        self._lock = threading.RLock()

    # --- py4fs' side: a Device ----------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._check(offset, length)
            first, end = offset // self.unit, -(-(offset + length) // self.unit)
            data = b"".join(self._block(number) for number in range(first, end))
            return data[offset - first * self.unit :][:length]

    def write(self, offset: int, data: Buffer) -> None:
        with self._lock:
            view = memoryview(data).cast("B")
            self._check(offset, view.nbytes)
            at = 0
            while at < view.nbytes:
                number, skip = divmod(offset + at, self.unit)
                step = min(self.unit - skip, view.nbytes - at)
                self._block(number)[skip : skip + step] = view[at : at + step]
                self.dirty.add(number)
                at += step

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(parts))

    def flush(self) -> None:
        with self._lock:
            for number in self.dirty:
                at = number * self.unit
                self.platter[at : at + self.unit] = self.cache[number]
            self.dirty.clear()

    def close(self) -> None:
        self.flush()

    def _block(self, number: int) -> bytearray:
        block = self.cache.get(number)
        if block is None:
            block = self.cache[number] = self.platter[number * self.unit : (number + 1) * self.unit]
        return block

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DeviceError(f"{self.name}: {length} bytes at {offset} of {self.size}")

    # --- the kernel's side --------------------------------------------------------------------------

    def bio_read(self, addr: int, length: int) -> bytes:
        """File data from the device; `addr` counts from the device's start. Raises OSError."""
        at = self._place(addr, length)
        with self._lock:
            self._alone(at, length, dirty_only=True)
            return bytes(self.platter[at : at + length])

    def bio_write(self, addr: int, data: bytes) -> None:
        at = self._place(addr, len(data))
        with self._lock:
            self._alone(at, len(data), dirty_only=False)
            self.platter[at : at + len(data)] = data

    def invalidate(self, offset: int, length: int) -> None:
        """DEV_INVAL: drop what is cached, dirty or not."""
        with self._lock:
            first, end = (offset - LEAD) // self.unit, -(-(offset - LEAD + length) // self.unit)
            for number in range(first, end):
                self.cache.pop(number, None)
                self.dirty.discard(number)

    def _place(self, addr: int, length: int) -> int:
        at = addr - LEAD
        assert at >= 0 and at + length <= self.size, f"file data at {addr}, {length} bytes"
        assert addr % 512 == 0 and length % 512 == 0, "whole sectors only"
        if self.broken is not None and at < self.broken.stop and at + length > self.broken.start:
            raise OSError(5, "broken")
        return at

    def _alone(self, at: int, length: int, *, dirty_only: bool) -> None:
        cached = self.dirty if dirty_only else self.cache
        for number in range(at // self.unit, -(-(at + length) // self.unit)):
            assert number not in cached, f"file data at block {number}, which is in the page cache of the device"

    def save(self) -> None:
        """What a power cut leaves, into the image file."""
        with self._lock:
            self.image.write_bytes(self.platter)
