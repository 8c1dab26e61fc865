"""Notifications, sent by the test itself over a mount that lives in its own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import py4fs
from py4fs.ext4.layout.inode import EXT4_NOATIME_FL
from py4fs.fuse.direct import mounting, notifications
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.threads import Readers
from py4fs.fuse.mount import FuseOptions, open_mountpoint
from py4fs.vfs import ROOT
from tests.support import machine
from tests.support.image import ImageMaker


class Server:
    """A mount served by threads of this process; only other processes may use it."""

    def __init__(self, fs: py4fs.Filesystem, top: Path) -> None:
        self.fs = fs
        self.top = top
        where = open_mountpoint(str(top))
        self.fd = mounting.mount(where, FuseOptions(), "image")
        os.close(where.fd)
        self.ended = threading.Event()
        self.operations = Operations(fs.vfs)
        Readers(self.operations, self.fd, self.ended.set).start()

    def send(self, message: bytes) -> None:
        assert os.write(self.fd, message) == len(message)

    def shell(self, command: str) -> str:
        """Run a command in the mount; this process must not wait for itself in the kernel."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.top, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def server(make_image: ImageMaker, tmp_path: Path) -> Iterator[Server]:
    machine.need_root()
    machine.need_fuse()
    top = tmp_path / "mnt"
    top.mkdir()
    with py4fs.open_image(make_image("16M")) as fs:
        fs.write_bytes("/f", b"first")
        server = Server(fs, top)
        try:
            yield server
        finally:
            subprocess.run(["umount", top], check=True)
            assert server.ended.wait(30)
            with contextlib.suppress(OSError):
                os.close(server.fd)


def test_data_and_attributes(server: Server) -> None:
    ino = server.fs.stat("/f").ino
    assert server.shell("cat f; stat -c %a f") == "first644"
    with server.operations.lock:
        server.fs.vfs.setattr(ino, mode=0o600)
    assert server.shell("stat -c %a f") == "644", "the kernel relies on what it knows"
    server.send(notifications.invalidate_attributes(ino))
    assert server.shell("stat -c %a f") == "600"
    server.send(notifications.store(ino, 0, b"FIRST"))
    assert server.shell("cat f") == "FIRST"
    server.send(notifications.invalidate_inode(ino, 0))
    assert server.shell("cat f") == "first", "asked for again"


@pytest.mark.parametrize("expire", [False, True])
def test_names(server: Server, expire: bool) -> None:
    server.shell("cat f; test ! -e g")
    with server.operations.lock:
        server.fs.rename("/f", "/g")
    server.shell("test -e f; test ! -e g")  # the kernel relies on what it knows
    server.send(notifications.invalidate_entry(1, b"f", expire=expire))
    server.send(notifications.invalidate_entry(1, b"g", expire=expire))
    assert server.shell("test ! -e f; cat g") == "first"


def test_deleted(server: Server) -> None:
    ino = server.fs.stat("/f").ino
    server.shell("cat f")
    with server.operations.lock:
        server.fs.unlink("/f")
    server.send(notifications.deleted(1, ino, b"f"))
    assert server.shell("test ! -e f && echo gone") == "gone"


def test_all_names_anew(server: Server) -> None:
    server.shell("cat f; test ! -e g")
    with server.operations.lock:
        server.fs.rename("/f", "/g")
    server.send(notifications.new_epoch())
    assert server.shell("test ! -e f; cat g") == "first"


def test_dropped(server: Server) -> None:
    """The kernel goes by its own change time until it has to ask anew; it does not drop what is in use."""
    ino = server.fs.stat("/f").ino
    before = server.shell("stat -c %z f")
    with server.operations.lock:
        server.fs.vfs.set_flags(ino, server.fs.vfs.get_flags(ino) | EXT4_NOATIME_FL, ROOT)
    server.send(notifications.invalidate_attributes(ino))
    assert server.shell("stat -c %z f") == before
    with (server.top / "f").open("rb"):
        server.send(notifications.prune([ino, 999]))
        assert server.shell("stat -c %z f") == before
    server.send(notifications.prune([ino]))
    assert server.shell("stat -c %z f") > before


def test_unknown_inodes_are_told_so(server: Server) -> None:
    with pytest.raises(FileNotFoundError):
        server.send(notifications.invalidate_attributes(999))
