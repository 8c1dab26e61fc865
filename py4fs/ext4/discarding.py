"""Freed blocks are discarded when the commit that frees them has ended, before they are used again (-o discard)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from py4fs.device.base import Device, discard
from py4fs.errors import FsError

log = logging.getLogger(__name__)


class Discarder:
    """Discards blocks until the device says that it cannot: a failure does no harm, and is told once."""

    def __init__(self, device: Device, block_size: int) -> None:
        self._device = device
        self._block_size = block_size
        self._works = True

    def __call__(self, runs: Iterable[tuple[int, int]]) -> None:
        """These runs, (first block, count), are free. Neighbours are discarded together."""
        for first, count in _merged(runs):
            if self._works:
                self._discard(first, count)

    def _discard(self, first: int, count: int) -> None:
        try:
            discard(self._device, first * self._block_size, count * self._block_size)
        except FsError as exc:
            self._works = False
            log.warning("%s; freed blocks are not discarded any more", exc)


def _merged(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = 0
    for first, count in sorted(runs):
        if first != end:
            if end > start:
                yield start, end - start
            start = first
        end = first + count
    if end > start:
        yield start, end - start
