"""What has to be durable before a call returns: the dirsync option, and the flags S and D of inodes (chattr)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from images.tools import debugfs, mke2fs
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.device.recording import RecordingDevice
from py4fs.ext4.layout.inode import EXT4_DIRSYNC_FL, EXT4_EXTENTS_FL, EXT4_SYNC_FL
from tests.support.volumes import Clock


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    path = tmp_path / "fs.img"
    mke2fs(path, 8 << 20, "-b", "1024", "-J", "size=1")
    flags = {"names": EXT4_DIRSYNC_FL, "all": EXT4_SYNC_FL, "plain": 0}
    debugfs(
        path,
        [
            *(f"mkdir {name}" for name in flags),
            *(f"set_inode_field {name} flags {value | EXT4_EXTENTS_FL:#x}" for name, value in flags.items()),
            "write /dev/null file",
            f"set_inode_field file flags {EXT4_SYNC_FL | EXT4_EXTENTS_FL:#x}",
        ],
    )
    return path.read_bytes()


def opened(image: bytes, **options: bool) -> tuple[Filesystem, RecordingDevice]:
    device = RecordingDevice(MemoryDevice(image))
    return open_device(device, clock=Clock(), options=OpenOptions(atime="noatime", **options)), device  # type: ignore[arg-type]


def is_durable(fs: Filesystem, device: RecordingDevice) -> bool:
    return fs.volume.transactions.running.empty and bool(device.log) and device.log[-1] is None


def change_names(fs: Filesystem, top: str) -> list[bool]:
    """Whether each kind of change of a directory was durable at once."""
    device = fs.volume.device
    assert isinstance(device, RecordingDevice)
    found = []
    changes: list[Callable[[], object]] = [
        lambda: fs.mkdir(f"{top}/d"),
        lambda: fs.mknod(f"{top}/n", 0o010644),
        lambda: fs.symlink("target", f"{top}/s"),
        lambda: fs.link(f"{top}/n", f"{top}/l"),
        lambda: fs.rename(f"{top}/l", f"{top}/m"),
        lambda: fs.unlink(f"{top}/m"),
        lambda: fs.rmdir(f"{top}/d"),
        lambda: fs.open(f"{top}/f", "xb").close(),
        lambda: fs.rename(f"{top}/f", "/elsewhere"),
    ]
    for change in changes:
        change()
        found.append(is_durable(fs, device))
    return found


@pytest.mark.parametrize(("top", "wanted"), [("/names", True), ("/all", True), ("/plain", False), ("", False)])
def test_flags_of_directories(top: str, wanted: bool, image: bytes) -> None:
    fs, _ = opened(image)
    assert set(change_names(fs, top)) == {wanted}
    fs.close()


def test_the_dirsync_option(image: bytes) -> None:
    fs, device = opened(image, dirsync=True)
    assert set(change_names(fs, "/plain")) == {True}
    fs.write_bytes("/plain/file", b"data")
    assert not is_durable(fs, device)
    fs.close()


def test_the_flag_of_files(image: bytes) -> None:
    fs, device = opened(image)
    with fs.open("/file", "r+b") as file:
        changes: list[Callable[[], object]] = [
            lambda: file.write(b"data" * 1000),
            lambda: file.truncate(100),
            lambda: file.fallocate(0, 0, 50_000),
            lambda: fs.setxattr("/file", "user.a", b"1"),
            lambda: fs.removexattr("/file", "user.a"),
        ]
        for change in changes:
            change()
            assert is_durable(fs, device)
        fs.chmod("/file", 0o600)
        assert not is_durable(fs, device)
    fs.close()


def test_a_session_may_wait_itself(image: bytes) -> None:
    fs, device = opened(image, dirsync=True)
    fs.vfs.defers_sync = True
    fs.chmod("/plain", 0o700)
    assert not fs.vfs.sync_due
    fs.mkdir("/plain/d")
    assert fs.vfs.sync_due and not is_durable(fs, device)
    fs.close()
