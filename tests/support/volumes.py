"""Opening volumes in tests: strict about credits, with a clock that the test can turn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from py4fs.device.file import FileDevice
from py4fs.ext4.inode import Inode
from py4fs.ext4.namespace import Owner
from py4fs.ext4.volume import Volume, VolumeOptions

START = 1_700_000_000 * 10**9


class Clock:
    """Nanoseconds since the epoch; every reading is a millisecond later than the one before."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


@contextmanager
def open_volume(image: Path, *, readonly: bool = False, seed: int = 1) -> Iterator[Volume]:
    """An open volume of an image file; closed (committed, marked clean) at the end."""
    device = FileDevice.open(str(image), readonly=readonly)
    volume = Volume.open(device, VolumeOptions(readonly=readonly, strict=True), Clock(), random.Random(seed))
    try:
        yield volume
    finally:
        volume.close()


def make_file(volume: Volume, name: bytes) -> Inode:
    """An empty file in the root directory."""
    with volume.operation(64) as tx:
        return volume.namespace.create(tx, volume.inodes.get(2), name, 0o100644, Owner(0, 0))
