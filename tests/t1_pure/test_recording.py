"""The recording device and the images that it makes of crashes."""

from __future__ import annotations

import random

import pytest

from py4fs.device.faulty import FaultyDevice
from py4fs.device.memory import MemoryDevice
from py4fs.device.recording import (
    SECTOR,
    Crash,
    CrashImages,
    RecordingDevice,
    Write,
    arrived,
    last_flush,
    prefixes,
    sample,
)
from py4fs.errors import DeviceError

SIZE = 64 * SECTOR


def recorded(seed: int = 1, entries: int = 60) -> tuple[bytes, RecordingDevice, list[bytes]]:
    """A base image, a device with a random log over it, and the device's contents after every entry."""
    rng = random.Random(seed)
    base = rng.randbytes(SIZE)
    memory = MemoryDevice(base)
    device = RecordingDevice(memory)
    states = [base]
    for _ in range(entries):
        if rng.random() < 0.2:
            device.flush()
        else:
            start = rng.randrange(SIZE - 1)
            length = rng.randrange(1, min(SIZE - start, 6 * SECTOR) + 1)
            half = length // 2
            device.writev(start, [rng.randbytes(half), rng.randbytes(length - half)])
        states.append(bytes(memory.data))
    return base, device, states


def test_log_is_in_order() -> None:
    device = RecordingDevice(MemoryDevice(4096))
    device.write(5, b"abc")
    device.flush()
    device.writev(9, [b"d", memoryview(b"ef")])
    assert device.log == [Write(5, b"abc"), None, Write(9, b"def")]
    assert device.read(4, 9) == b"\0abc\0def\0"
    assert (device.size, device.readonly, device.name) == (4096, False, "memory")


def test_log_keeps_its_own_bytes() -> None:
    device = RecordingDevice(MemoryDevice(4096))
    data = bytearray(b"abc")
    device.write(0, data)
    data[:] = b"xyz"
    assert device.log == [Write(0, b"abc")]


def test_failed_calls_are_not_in_the_log() -> None:
    faulty = FaultyDevice(MemoryDevice(4096))
    device = RecordingDevice(faulty)
    faulty.arm("write")
    faulty.arm("flush")
    with pytest.raises(DeviceError):
        device.write(0, b"abc")
    with pytest.raises(DeviceError):
        device.flush()
    assert device.log == []


def test_prefixes_are_what_the_device_held() -> None:
    base, device, states = recorded()
    images = CrashImages(base, device.log)
    found = list(prefixes(device.log))
    assert len(found) == 1 + sum(entry is not None for entry in device.log)
    for crash in found:
        assert images.image(crash) == states[crash.cut]
    for crash in reversed(found):
        assert images.image(crash) == states[crash.cut], "going back"


def test_what_was_flushed_is_there() -> None:
    base, device, states = recorded()
    images = CrashImages(base, device.log)
    for crash in sample(device.log, 300, 1):
        durable = last_flush(device.log, crash.cut)
        assert durable == 0 or device.log[durable - 1] is None
        image = images.image(crash)
        allowed = [states[durable], *(states[n + 1] for n in range(durable, crash.cut))]
        pending = [entry for entry in device.log[durable : crash.cut] if entry is not None]
        for at in range(0, SIZE, SECTOR):
            now = image[at : at + SECTOR]
            if now == allowed[0][at : at + SECTOR]:
                continue
            # a sector is old, or holds some of the writes that were on their way to it
            bytes_of = [write for write in pending if write.offset < at + SECTOR and write.end > at]
            assert bytes_of, f"{crash}: sector at {at} changed by nothing"
            for index, byte in enumerate(now):
                choices = {state[at + index] for state in allowed}
                choices |= {w.data[at + index - w.offset] for w in bytes_of if w.offset <= at + index < w.end}
                assert byte in choices


def test_subsets_are_reproducible_and_differ() -> None:
    _, device, _ = recorded()
    cut = max(range(len(device.log) + 1), key=lambda n: n - last_flush(device.log, n))
    assert cut - last_flush(device.log, cut) > 4
    crashes = [Crash(cut, seed) for seed in range(50)]
    found = [arrived(device.log, crash) for crash in crashes]
    assert found == [arrived(device.log, crash) for crash in crashes]
    assert len({tuple(writes) for writes in found}) > 30
    whole = arrived(device.log, Crash(cut))
    assert any(set(writes) < set(whole) and writes for writes in found), "writes missing"
    assert any(set(writes) - set(whole) for writes in found), "writes torn"


def test_tearing_keeps_sectors_and_atomic_ranges_whole() -> None:
    data = random.Random(3).randbytes(8 * SECTOR)
    log = [Write(SECTOR // 2, data)]
    seen = set()
    for seed in range(200):
        for write in arrived(log, Crash(1, seed), atomic=[(2 * SECTOR, 4 * SECTOR)]):
            seen.add((write.offset, write.end))
            assert data[write.offset - SECTOR // 2 : write.end - SECTOR // 2] == write.data
    whole = (SECTOR // 2, 8 * SECTOR + SECTOR // 2)
    assert seen == {
        whole,
        (SECTOR // 2, SECTOR),
        (SECTOR, 2 * SECTOR),
        (2 * SECTOR, 4 * SECTOR),
        *((n * SECTOR, n * SECTOR + SECTOR) for n in range(4, 8)),
        (8 * SECTOR, 8 * SECTOR + SECTOR // 2),
    }


def test_sample() -> None:
    _, device, _ = recorded()
    chosen = sample(device.log, 100, 5)
    assert len(chosen) == len(set(chosen)) == 100
    assert chosen == sample(device.log, 100, 5)
    assert chosen != sample(device.log, 100, 6)
    assert [crash.cut for crash in chosen] == sorted(crash.cut for crash in chosen)
    assert sample([], 10, 1) == [Crash(0)]


@pytest.mark.parametrize("crash", [Crash(0), Crash(120), Crash(7, 0), Crash(7, 123)])
def test_names(crash: Crash) -> None:
    assert Crash.parse(str(crash)) == crash
