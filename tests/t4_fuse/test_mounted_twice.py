"""One file system at several places: bound there, or a block device mounted again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.image import ImageMaker, e2fsck_clean
from tests.support.mounted import Mounted, fuse_mounted, run_py4fs


@pytest.fixture
def loop(make_image: ImageMaker) -> Iterator[str]:
    machine.need_loop()
    machine.need_fuse()
    image = make_image("16M")
    name = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


def test_a_block_device(loop: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert run_py4fs("mount", loop, one).returncode == 0
    (one / "f").write_bytes(b"through one")
    refused = run_py4fs("mount", "-o", "ro", loop, two)
    assert refused.returncode == 32 and "mounted already" in refused.stderr
    assert run_py4fs("mount", "-o", "noexec", loop, two).returncode == 0
    assert (two / "f").read_bytes() == b"through one"
    assert (one / "f").stat() == (two / "f").stat()
    assert run_py4fs("umount", one).returncode == 0
    (two / "f").write_bytes(b"through two")
    done = run_py4fs("umount", loop)
    assert done.returncode == 0 and not os.path.ismount(two)
    e2fsck_clean(Path(loop))
    assert run_py4fs("mount", loop, one).returncode == 0
    assert (one / "f").read_bytes() == b"through two"
    assert run_py4fs("umount", one).returncode == 0


@pytest.fixture
def bound(make_image: ImageMaker, tmp_path: Path) -> Iterator[tuple[Mounted, Path]]:
    machine.need_root()
    directory = tmp_path / "bound"
    directory.mkdir()
    with fuse_mounted(make_image("16M"), session="direct", unmount=False) as mounted:
        subprocess.run(["mount", "--bind", mounted.path, directory], check=True)
        yield mounted, directory


def test_bound_elsewhere(bound: tuple[Mounted, Path]) -> None:
    """Unmounting one of the two does not wait for the server, which goes on for the other one."""
    mounted, directory = bound
    assert run_py4fs("umount", mounted.path, timeout=20).returncode == 0
    (directory / "f").write_bytes(b"still here")
    assert run_py4fs("umount", directory).returncode == 0


def test_the_server_is_told_to_end(bound: tuple[Mounted, Path]) -> None:
    """What was written, through both, is on disk; what is left of the mount answers with an error."""
    mounted, directory = bound
    mounted.expected.append("mounted elsewhere, too")
    (directory / "f").write_bytes(b"f" * 100_000)
    os.kill(mounted.pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{mounted.pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(OSError, match="not connected"):
        (directory / "g").stat()
    subprocess.run(["umount", directory], check=True)
    assert run_py4fs("cat", mounted.image, "/f").stdout == "f" * 100_000
