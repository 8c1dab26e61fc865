"""Large READs are answered through a pipe; whatever goes wrong there, the client gets what is in the file."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from py4fs.api import open_device
from py4fs.device.faulty import FaultyDevice
from py4fs.device.file import FileDevice
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.pipes import LEAST, MOST, ReplyPipe
from py4fs.fuse.direct.protocol import Opcode
from tests.support.image import ImageMaker
from tests.support.wire import Wire
from tests.t4_fuse.test_direct_notifications import Server, server

__all__ = ["server"]
HEADER = b"the header is he"


class Source:
    """A device that may fail."""

    def __init__(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        self.path = path
        self.less = 0

    def splice(self, offset: int, length: int, pipe: int) -> int:
        if self.less < 0:
            raise OSError(errno.EIO, "broken")
        device = FileDevice(os.open(self.path, os.O_RDONLY), "source", readonly=True)
        try:
            return device.splice(offset, length - self.less, pipe)
        finally:
            device.close()


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[int]:
    """What takes replies, in place of /dev/fuse."""
    fd = os.open(tmp_path / "taken", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def taken(fd: int) -> bytes:
    size = os.lseek(fd, 0, os.SEEK_END)
    data = os.pread(fd, size, 0)
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return data


def test_replies_whole_and_in_order(taker: int, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 << 20)
    source, pipe = Source(tmp_path / "source", data), ReplyPipe(taker)
    for at, length in ((0, LEAST), (1024, MOST), (4095, MOST), (4096, MOST), (5, MOST - 5)):
        assert pipe.fill(HEADER, source, at, length)
        pipe.send(len(HEADER) + length)
        assert taken(taker) == HEADER + data[at : at + length]
    pipe.clear()


@pytest.mark.parametrize("less", [-1, 1, 50_000])
def test_what_fails_leaves_nothing_behind(taker: int, less: int, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1 << 20)
    source, pipe = Source(tmp_path / "source", data), ReplyPipe(taker)
    source.less = less
    assert not pipe.fill(HEADER, source, 0, LEAST)
    source.less = 0
    assert not pipe.fill(HEADER, source, (1 << 20) - 5000, LEAST), "behind the end"
    assert pipe.fill(HEADER, source, 0, LEAST)
    pipe.clear()
    assert pipe.fill(HEADER, source, LEAST, LEAST)
    pipe.send(len(HEADER) + LEAST)
    assert taken(taker) == HEADER + data[LEAST : 2 * LEAST]
    pipe.clear()


def test_a_taker_that_refuses(tmp_path: Path) -> None:
    source = Source(tmp_path / "source", bytes(LEAST))
    with Path("/dev/full").open("wb") as full:  # takes nothing from a pipe
        pipe = ReplyPipe(full.fileno())
        for _ in range(2):
            assert pipe.fill(HEADER, source, 0, LEAST)
            with pytest.raises(OSError, match="Invalid argument"):
                pipe.send(len(HEADER) + LEAST)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_more_pipes_to_be_had(taker: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EPERM, "no more")

    source = Source(tmp_path / "source", bytes(LEAST))
    before = open_descriptors()
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = ReplyPipe(taker)
    assert not pipe.fill(HEADER, source, 0, LEAST)
    monkeypatch.undo()
    assert not pipe.fill(HEADER, source, 0, LEAST), "given up"
    assert open_descriptors() == before


class Changing(FaultyDevice):
    """An image file; calls back once, when something is put into a pipe."""

    def __init__(self, image: Path) -> None:
        self._file = FileDevice.open(str(image))
        super().__init__(self._file)
        self.change: Callable[[], None] | None = None
        self.splices: list[int] = []

    def splice(self, offset: int, length: int, pipe: int) -> int:
        self.splices.append(offset)
        change, self.change = self.change, None
        if change is not None:
            change()
        return self._file.splice(offset, length, pipe)


def test_a_file_that_changes_meanwhile(make_image: ImageMaker, taker: int) -> None:
    """Between the planning of a read and its reply: it is planned again, and nothing stays pinned."""
    device = Changing(make_image("16M"))
    with open_device(device) as fs:
        wire = Wire(fs.vfs)
        made = wire.create(1, b"f")
        ino, fh = made.record.nodeid, made.record.fh
        wire.write(fh, 0, b"old" * LEAST)
        vfs = fs.vfs
        vfs.commit()

        def change() -> None:
            vfs.setattr(ino, size=0)
            vfs.write(fh, 0, b"new" * LEAST)

        device.change = change
        wire.worker.pipe = ReplyPipe(taker)
        request = wire.request(Opcode.READ, ino, structs.READ_IN.pack(fh, 0, 2 * LEAST, 0, 0, 0, 0))
        assert wire.raw(request) is None, "sent"
        assert len(device.splices) == len(set(device.splices)) == 2, "what was there, and what is there"
        assert taken(taker)[16:] == (b"new" * LEAST)[: 2 * LEAST]
        wire.worker.pipe.clear()
        wire.worker.pipe = None
        assert vfs.volume.pins.oldest() is None


@pytest.mark.parametrize("broken", [False, True])
def test_a_mount(server: Server, monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    sent: list[int] = []
    splice, from_device = os.splice, FileDevice.splice

    def count(src: int, dst: int, length: int, **how: Any) -> int:
        done = splice(src, dst, length, **how)
        if dst == server.fd:
            sent.append(done)
        return done

    monkeypatch.setattr(os, "splice", count)
    if broken:
        monkeypatch.setattr(FileDevice, "splice", lambda self, at, length, fd: from_device(self, at, length // 2, fd))
    data = random.Random(3).randbytes(4 << 20)
    with server.operations.lock:
        server.fs.write_bytes("/large", data)
        server.fs.vfs.sync()
    check = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout.decode().split()[0]
    assert server.shell("md5sum < large").split()[0] == check
    assert server.shell("dd if=large iflag=direct bs=1M status=none | md5sum").split()[0] == check
    assert server.shell("dd if=large iflag=direct bs=260k status=none | md5sum").split()[0] == check
    assert bool(sent) != broken
