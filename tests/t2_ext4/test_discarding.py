"""Freed runs on their way to the device: joined, and given up on when it cannot."""

from __future__ import annotations

from py4fs.device.memory import MemoryDevice
from py4fs.device.overlay import OverlayDevice
from py4fs.errors import DeviceError
from py4fs.ext4.discarding import Discarder
from tests.support.logs import LogGuard


class Recorder(MemoryDevice):
    """Notes what is discarded; fails when told to."""

    def __init__(self) -> None:
        super().__init__(bytes(1 << 20))
        self.seen: list[tuple[int, int]] = []
        self.broken = False

    def discard(self, offset: int, length: int) -> None:
        self.seen.append((offset, length))
        if self.broken:
            raise DeviceError("recorder: discard: no")


def test_neighbours_are_joined() -> None:
    device = Recorder()
    Discarder(device, 1024)([(50, 2), (10, 5), (15, 1), (52, 8), (70, 1)])
    assert device.seen == [(10 << 10, 6 << 10), (50 << 10, 10 << 10), (70 << 10, 1 << 10)]
    Discarder(device, 1024)([])
    assert len(device.seen) == 3


def test_a_failure_is_told_once_and_the_end(log_guard: LogGuard) -> None:
    log_guard.expect("recorder: discard: no; freed blocks are not discarded any more")
    device = Recorder()
    device.broken = True
    discarder = Discarder(device, 4096)
    discarder([(1, 1), (3, 1)])
    discarder([(5, 1)])
    assert device.seen == [(4096, 4096)]


def test_a_device_that_cannot(log_guard: LogGuard) -> None:
    log_guard.expect("cannot discard; freed blocks are not discarded any more")
    Discarder(OverlayDevice(MemoryDevice(bytes(8192)), 4096, {}), 4096)([(0, 1), (1, 1)])
