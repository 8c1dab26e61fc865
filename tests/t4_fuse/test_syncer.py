"""Durability in a mount: many wait for one commit, whose device I/O holds up nobody, and whose failure all hear of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.support import machine

pytest.importorskip("trio", reason=machine.NEEDS + "trio")
pytest.importorskip("pyfuse3", reason=machine.NEEDS + "pyfuse3")

import trio

from images.tools import fsck_clean, mke2fs
from py4fs.api import Filesystem, open_device
from py4fs.device.faulty import FaultyDevice, Kind
from py4fs.device.memory import MemoryDevice
from py4fs.errors import CommitPending, FsError
from py4fs.fuse.libfuse.syncer import Syncer
from py4fs.fuse.libfuse.waiting import Waiting
from py4fs.vfs import ROOT_INO
from tests.support.logs import LogGuard
from tests.support.volumes import Clock

WAITERS = 20


class SlowDevice(MemoryDevice):
    """A device whose flushes, once asked to, wait until they are let go."""

    def __init__(self, image: bytes) -> None:
        super().__init__(image)
        self.go = threading.Event()
        self.go.set()
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        assert self.go.wait(20)


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    path = tmp_path / "fs.img"
    mke2fs(path, 16 << 20, "-b", "1024")
    return path.read_bytes()


def drive(fs: Filesystem, script: Callable[[Syncer], Coroutine[Any, Any, None]], interval: float = 3600) -> None:
    """Run ``script`` beside a syncer."""

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                syncer = Syncer(fs.vfs, Waiting())
                nursery.start_soon(syncer.run, interval)
                await script(syncer)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_others_go_on_while_a_commit_waits_and_all_share_the_next(image: bytes, tmp_path: Path) -> None:
    device = SlowDevice(image)
    fs = open_device(device, clock=Clock())
    vfs = fs.vfs
    vfs.mkdir(ROOT_INO, b"warm")
    fs.sync()

    async def script(syncer: Syncer) -> None:
        done: list[int] = []

        async def change_and_wait(number: int) -> None:
            vfs.mkdir(ROOT_INO, b"%d" % number)
            await syncer.sync()
            done.append(number)

        device.go.clear()
        start, log = device.flushes, fs.volume.committer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_and_wait, 0)
            while device.flushes == start:
                await trio.sleep(0.001)
            assert log.busy
            # the device is busy; everything else goes on
            for number in range(1, WAITERS):
                nursery.start_soon(change_and_wait, number)
            await trio.sleep(0.05)
            assert vfs.lookup(ROOT_INO, b"%d" % (WAITERS - 1)).nlink == 2
            vfs.rename(ROOT_INO, b"warm", ROOT_INO, b"renamed")
            with pytest.raises(CommitPending):
                vfs.sync()
            assert not done
            device.go.set()
        assert sorted(done) == list(range(WAITERS))
        # two commits of two flushes each: the first one's, and one for all who came meanwhile
        assert device.flushes == start + 4

    drive(fs, script)
    fs.close()
    path = tmp_path / "after.img"
    path.write_bytes(device.data)
    fsck_clean(path)


@pytest.mark.parametrize("kind", ["write", "flush"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_is_told_to_all_who_wait(kind: Kind, nth: int, image: bytes, log_guard: LogGuard) -> None:
    log_guard.expect("now read-only")
    device = FaultyDevice(MemoryDevice(image))
    fs = open_device(device, clock=Clock())
    fs.mkdir("/before")
    device.arm(kind, nth)

    async def script(syncer: Syncer) -> None:
        failures: list[str] = []

        async def wait() -> None:
            with pytest.raises(FsError) as caught:
                await syncer.sync()
            failures.append(str(caught.value))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
        assert len(failures) == 6
        assert fs.volume.readonly

    drive(fs, script)
    with pytest.raises(FsError):
        fs.mkdir("/after")
    with pytest.raises(FsError):
        fs.close()


def test_commits_come_by_themselves(image: bytes) -> None:
    fs = open_device(MemoryDevice(image), clock=Clock())
    fs.mkdir("/new")

    async def script(syncer: Syncer) -> None:
        while not fs.volume.transactions.running.empty:
            await trio.sleep(0.01)

    drive(fs, script, interval=0.05)
    fs.close()
