"""Memory pressure: what is watched, and what becomes of the caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from py4fs import open_image
from py4fs.fuse import pressure
from tests.support.image import ImageMaker


class Fake:
    """A pressure file and a clock that tests move."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 1000.0
        self.waited(11_744_681)
        self.monitor = pressure.Monitor([path.with_name("missing"), path], lambda: self.seconds)

    def waited(self, total: int) -> None:
        self.path.write_text(
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=99999999\n"
        )
        self.total = total

    def passes(self, seconds: float, waiting: float) -> None:
        self.seconds += seconds
        self.waited(self.total + int(waiting * 1e6))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    fake = Fake(tmp_path / "memory.pressure")
    yield fake
    fake.monitor.close()


def test_a_tenth_of_the_time_is_a_shortage(fake: Fake) -> None:
    assert fake.monitor.works
    for seconds, waiting, short in ((2, 0, False), (2, 0.19, False), (2, 0.21, True), (60, 5, False), (2, 0, False)):
        fake.passes(seconds, waiting)
        assert fake.monitor.is_short() == short, (seconds, waiting)


def test_what_is_no_pressure_file_is_left_out(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\xff some total=\n")
    assert not pressure.Monitor([tmp_path / "missing", other, tmp_path]).works


def test_a_control_group_that_goes_is_not_asked_again(fake: Fake) -> None:
    fake.path.write_bytes(b"")
    assert not fake.monitor.is_short()
    assert not fake.monitor.works


def test_the_kernels_own_file() -> None:
    if not Path("/proc/pressure/memory").exists():
        pytest.skip("no pressure stall information in this kernel")
    files = list(pressure.pressure_files())
    assert files[0] == Path("/proc/pressure/memory")
    seconds = [0.0, 1e6]
    monitor = pressure.Monitor(files[:1], lambda: seconds.pop(0))
    assert monitor.works and not monitor.is_short()
    monitor.close()


@pytest.mark.trio
async def test_pressure_shrinks(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "_PAUSE", 0.01)
    asked: list[float] = []

    async def shrink(part: float) -> None:
        asked.append(part)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pressure.watch, fake.monitor, shrink)
            for count in (1, 2):
                fake.passes(2, 1)
                while len(asked) < count:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert asked == [pressure.KEPT] * 2


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
