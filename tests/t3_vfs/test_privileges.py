"""What a file lets its users do (set-user-ID, set-group-ID, capabilities) ends when its contents or owner change."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from py4fs.api import Filesystem, OpenOptions, open_image
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import InGroup, Vfs, in_any_group
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.volumes import Clock

CAPABILITY = "security.capability"
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
USER = 1000
OTHERS = 2000
"""A group that the user is not in."""
MODES = [0o6755, 0o2644, 0o4644, 0o2711, 0o755]


@pytest.fixture
def fs(make_image: ImageMaker) -> Iterator[Filesystem]:
    options = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
    fs = open_image(make_image("16M", "-b", "1024"), clock=Clock(), options=options)
    yield fs
    fs.close()


def add_file(fs: Filesystem, path: str, mode: int, *, crowded: bool = False) -> int:
    """``crowded``: no room for the capability in the inode."""
    fs.write_bytes(path, b"contents")
    if crowded:
        fs.setxattr(path, "user.big", b"b" * 90)
    fs.setxattr(path, CAPABILITY, NET_RAW)
    fs.chmod(path, mode)
    return fs.stat(path).ino


def opened(vfs: Vfs, ino: int, step: Callable[[int], object]) -> None:
    fh = vfs.open(ino, os.O_RDWR)
    step(fh)
    vfs.release(fh)


CHANGES: dict[str, Callable[[Vfs, int, InGroup | None], object]] = {
    "write": lambda v, ino, kill: opened(v, ino, lambda fh: v.write(fh, 0, b"x", kill_priv=kill)),
    "truncate": lambda v, ino, kill: v.setattr(ino, size=3, kill_priv=kill),
    "open": lambda v, ino, kill: v.release(v.open(ino, os.O_WRONLY | os.O_TRUNC, kill_priv=kill)),
    "chown": lambda v, ino, kill: v.setattr(ino, gid=USER, kill_priv=kill),
    "fallocate": lambda v, ino, kill: opened(v, ino, lambda fh: v.fallocate(fh, 0, 0, 9000, kill_priv=kill)),
    "copy": lambda v, ino, kill: opened(v, ino, lambda fh: v.copy_file_range(fh, 0, fh, 4, 4, kill_priv=kill)),
}

UNPRIVILEGED: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.write(fd, b"x"),
    "chown": lambda fd: os.fchown(fd, -1, USER),
    "truncate": lambda fd: os.ftruncate(fd, 3),
    # the mount is in a directory that others cannot pass
    "fallocate": lambda fd: os.posix_fallocate(fd, 0, 9000),
    "copy": lambda fd: os.copy_file_range(fd, fd, 4, 0, 4),
    "open": lambda fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC)),
}


def kernel_mode(path: Path, mode: int, change: str, group: int) -> tuple[int, bool]:
    """Mode, and whether there is a capability, after the kernel's ext4 did the same for a user without rights."""
    groups = os.getgroups()
    path.write_bytes(b"contents")
    os.setxattr(path, CAPABILITY, NET_RAW)
    os.chown(path, USER, group)
    path.chmod(mode)
    fd = os.open(path, os.O_RDWR)
    try:
        os.setgroups([])
        os.setegid(USER)
        os.seteuid(USER)
        UNPRIVILEGED[change](fd)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.close(fd)
    return path.stat().st_mode, CAPABILITY in os.listxattr(path)


@pytest.mark.parametrize("group", [USER, OTHERS])
@pytest.mark.parametrize("change", CHANGES)
def test_as_the_kernel(
    change: str, group: int, fs: Filesystem, make_image: ImageMaker, kernel_mount: KernelMount
) -> None:
    with kernel_mount(make_image("16M")) as root:
        for mode in MODES:
            want = kernel_mode(root / "f", mode, change, group)
            path = f"/{mode:o}"
            ino = add_file(fs, path, mode)
            fs.vfs.setattr(ino, uid=USER, gid=group)
            fs.setxattr(path, CAPABILITY, NET_RAW)
            before = fs.stat(path)
            CHANGES[change](fs.vfs, ino, lambda gid: gid == USER)
            after = fs.stat(path)
            assert (after.mode, CAPABILITY in fs.listxattr(path)) == want, oct(mode)
            assert after.ctime > before.ctime


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_capabilities_only(change: str, crowded: bool, fs: Filesystem) -> None:
    """Without `kill_priv` the bits stay; capabilities go whoever it is, wherever they are."""
    ino = add_file(fs, "/f", 0o6755, crowded=crowded)
    assert (fs.vfs.volume.inodes.get(ino).file_acl != 0) == crowded
    CHANGES[change](fs.vfs, ino, None)
    assert fs.stat("/f").mode == 0o106755
    assert fs.listxattr("/f") == (["user.big"] if crowded else [])


def test_what_does_not_take_them(fs: Filesystem) -> None:
    """A new mode is what was asked for; bytes of a page cache took them before; directories keep theirs."""
    ino = add_file(fs, "/f", 0o6755)
    fs.vfs.setattr(ino, mode=0o4711)
    opened(fs.vfs, ino, lambda fh: fs.vfs.write(fh, 0, b"x", cached=True))
    fs.vfs.kernel_owns_times = True
    opened(fs.vfs, ino, lambda fh: fs.vfs.write(fh, 0, b"x"))
    assert (fs.stat("/f").mode, fs.listxattr("/f")) == (0o104711, [CAPABILITY])
    opened(fs.vfs, ino, lambda fh: fs.vfs.write(fh, 0, b"x", cached=False, kill_priv=in_any_group))
    assert (fs.stat("/f").mode, fs.listxattr("/f")) == (0o100711, [])
    fs.mkdir("/d")
    fs.chmod("/d", 0o6777)
    fs.vfs.setattr(fs.stat("/d").ino, uid=5, kill_priv=in_any_group)
    assert fs.stat("/d").mode == 0o046777


def test_a_new_mode_and_owner_together(fs: Filesystem) -> None:
    ino = add_file(fs, "/f", 0o6755)
    fs.vfs.setattr(ino, uid=5, mode=0o4700, kill_priv=in_any_group)
    assert fs.stat("/f").mode == 0o104700


def test_devices_too(fs: Filesystem) -> None:
    """As in the kernel, a new owner ends the bits of whatever is no directory."""
    fs.mknod("/device", 0o020755, 0x801)
    fs.chmod("/device", 0o6755)
    fs.chown("/device", 5, 6)
    assert fs.stat("/device").mode == 0o020755
