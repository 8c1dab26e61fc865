"""Memory pressure: what is watched, and what becomes of the caches."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
import trio

from py4fs import open_image
from py4fs.fuse import pressure
from tests.support.image import ImageMaker


def test_the_trigger_is_written_and_what_is_not_there_left_out(tmp_path: Path) -> None:
    fake = tmp_path / "memory.pressure"
    fake.touch()
    with pytest.raises(PermissionError):  # epoll's word for a regular file; poll(2) itself takes any
        select.epoll().register(os.open(fake, os.O_RDONLY))
    monitor = pressure.Monitor([tmp_path / "missing", fake])
    assert monitor.works
    assert fake.read_bytes() == b"some 202000 2000000\0"
    assert not pressure.Monitor([tmp_path / "missing"]).works


def test_the_kernels_own_file() -> None:
    if not Path("/proc/pressure/memory").exists():
        pytest.skip("no pressure stall information in this kernel")
    files = list(pressure.pressure_files())
    assert files[0] == Path("/proc/pressure/memory")
    monitor = pressure.Monitor(files[:1])
    assert monitor.works and not monitor.wait(0.01)


@pytest.mark.trio
async def test_pressure_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO in place of the kernel's file: what is written into it is the event."""
    monkeypatch.setattr(pressure, "_PAUSE", 0.01)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monitor = pressure.Monitor([fifo], events=select.POLLIN)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.read(reader, 100)  # the trigger
    asked: list[float] = []

    async def shrink(part: float) -> None:
        os.read(reader, 100)
        asked.append(part)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pressure.watch, monitor, shrink)
            for count in (1, 2):
                os.write(reader, b"!")
                while len(asked) < count:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert asked == [pressure.KEPT] * 2
    os.write(reader, b"!")  # lets the thread go
    os.close(reader)


def test_caches_shrink_and_everything_is_still_there(make_image: ImageMaker) -> None:
    """Dirty ones stay; what was dropped is read again."""
    image = make_image("64M")
    with open_image(image) as fs:
        for number in range(600):
            fs.write_bytes(f"/f{number}", b"x" * number)
        fs.sync()
        fs.write_bytes("/dirty", b"not on disk yet")
        volume = fs.volume
        before = len(volume.buffers), len(volume.inodes), fs.vfs.client.usage()[1]
        fs.vfs.shrink(0.25)
        after = len(volume.buffers), len(volume.inodes), fs.vfs.client.usage()[1]
        dirty = len(volume.transactions.running.dirty)
        assert all(now <= max(then // 4, dirty) for then, now in zip(before, after, strict=True)), (before, after)
        fs.vfs.shrink(0)
        assert fs.read_bytes("/dirty") == b"not on disk yet"
        assert all(fs.read_bytes(f"/f{number}") == b"x" * number for number in range(600))
