"""Mounts that end, and clients that are interrupted, in the middle of things."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import Mounted, fuse_mounted, is_mounted, run_py4fs
from tests.t4_fuse.conftest import FuseMount

WRITER = """
import os, sys
number = sys.argv[1]
try:
    for turn in range(1 << 30):
        name = f"{number}-{turn % 7}"
        with open(name, "wb") as file:
            file.write(os.urandom(200_000))
        os.rename(name, name + ".done")
        os.mkdir(f"d{name}")
        os.rmdir(f"d{name}")
except OSError:
    pass  # the mount has gone
"""


@contextmanager
def writers(directory: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Four processes that write, rename and make directories, until the mount goes away."""
    found = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)], cwd=directory) for n in range(4)]
    try:
        deadline = time.monotonic() + 30
        while len([p for p in directory.iterdir() if p.name.endswith(".done")]) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield found
    finally:
        for writer in found:
            writer.kill()
            writer.wait()


def gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_under_load(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """The server detaches the mount, writes what it has, and ends; `make_image` runs e2fsck."""
    with fuse_mount(make_image("64M"), unmount=False) as mounted:
        mounted.expected += ["detaching it", "not connected"]
        with writers(mounted.path):
            os.kill(mounted.pid, signal.SIGTERM)
            gone(mounted.pid)
            assert not is_mounted(mounted.path)


def test_unmounted_lazily_under_load(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """The mount lives, unseen, until the last one who uses it has ended."""
    machine.need_root()
    with fuse_mount(make_image("64M"), unmount=False) as mounted:
        with writers(mounted.path):
            subprocess.run(["umount", "-l", mounted.path], check=True)
            time.sleep(0.3)
            assert Path(f"/proc/{mounted.pid}").exists()
        gone(mounted.pid)


@pytest.fixture
def mounted(make_image: ImageMaker) -> Iterator[Mounted]:
    with fuse_mounted(make_image("16M"), session="direct") as mounted:
        yield mounted


def test_clients_that_are_interrupted(mounted: Mounted) -> None:
    """Requests that wait, because the file system is frozen, are interrupted; they are done, and no others suffer."""
    assert run_py4fs("control", mounted.path, "freeze").returncode == 0
    clients = [subprocess.Popen(["mkdir", mounted.path / f"d{n}"]) for n in range(5)]
    time.sleep(0.5)
    for client, number in zip(clients, (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, 0), strict=True):
        client.send_signal(number)
    time.sleep(0.2)
    assert run_py4fs("control", mounted.path, "thaw").returncode == 0
    for client in clients:
        client.wait(timeout=20)
    assert clients[4].returncode == 0
    assert {entry.name for entry in mounted.path.iterdir()} >= {"d4"}
    (mounted.path / "f").write_bytes(b"goes on")
