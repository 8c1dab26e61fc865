"""What a journal must never do to file data, and what must always fit into it."""

from __future__ import annotations

from pathlib import Path

from images.tools import fsck_clean, mke2fs, run
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.ext4.volume import VolumeOptions
from tests.support.volumes import Clock


def make(path: Path, *args: str, size: int = 8 << 20) -> MemoryDevice:
    mke2fs(path, size, "-b", "1024", *args)
    return MemoryDevice(path.read_bytes())


def open_strict(device: MemoryDevice) -> Filesystem:
    options = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))
    return open_device(device, clock=Clock(), options=options)


def take_over(fs: Filesystem, wanted: set[int]) -> dict[str, bytes]:
    """Write files until their data lies in all of the ``wanted`` blocks."""
    written: dict[str, bytes] = {}
    left = set(wanted)
    while left:
        name = f"/fill{len(written)}"
        written[name] = bytes([len(written) + 1]) * 200_000
        fs.write_bytes(name, written[name])
        for mapping in fs.mappings(name):
            first = mapping.addr // 1024
            left -= set(range(first, first + mapping.length // 1024))
    return written


def metadata_of(fs: Filesystem, path: str) -> set[int]:
    """The blocks of a directory, or the attribute block of a file."""
    inode = fs.volume.inodes.get(fs.lstat(path).ino)
    if inode.is_reg:
        return {inode.file_acl}
    return {fs.volume.files.block_of(inode, lblk) for lblk in range(inode.size // 1024)}


def test_freed_metadata_does_not_come_back(tmp_path: Path) -> None:
    """Attribute blocks, directories and symlinks, logged, freed and used again for data, in a crash and without one."""
    path = tmp_path / "fs.img"
    device = make(path)
    fs = open_strict(device)
    fs.write_bytes("/file", b"f")
    fs.setxattr("/file", "user.large", b"x" * 700)
    fs.mkdir("/dir")
    for number in range(60):
        fs.mkdir(f"/dir/{number:050}")
    fs.symlink("s" * 300, "/link")
    blocks = metadata_of(fs, "/file") | metadata_of(fs, "/dir") | metadata_of(fs, "/link")
    fs.sync()
    fs.unlink("/file")
    fs.unlink("/link")
    for number in range(60):
        fs.rmdir(f"/dir/{number:050}")
    fs.rmdir("/dir")
    fs.sync()
    written = take_over(fs, blocks)
    fs.sync()
    crashed = bytes(device.data)
    fs.close()
    path.write_bytes(device.data)
    check(path, written)
    path.write_bytes(crashed)
    run(["e2fsck", "-fy", path], ok=(0, 1))
    check(path, written)


def check(path: Path, written: dict[str, bytes]) -> None:
    fsck_clean(path)
    fs = open_device(MemoryDevice(path.read_bytes()), options=OpenOptions(readonly=True))
    for name, data in written.items():
        assert fs.read_bytes(name) == data, name
    fs.close()


def test_transactions_fit_the_journal(tmp_path: Path) -> None:
    """Far more changes without a commit than a journal of 1 MiB can hold at once."""
    path = tmp_path / "fs.img"
    device = make(path, "-J", "size=1", "-N", "6000", size=32 << 20)
    fs = open_strict(device)
    for directory in range(12):
        fs.mkdir(f"/{directory}")
        for number in range(150):
            fs.symlink("t" * 100, f"/{directory}/{number:030}")
    with fs.open("/comb", "wb") as file:
        for number in range(3000):
            file.seek(number * 2048)
            file.write(b"x")
    fs.truncate("/comb", 1)
    for directory in range(6):
        for number in range(150):
            fs.unlink(f"/{directory}/{number:030}")
        fs.rmdir(f"/{directory}")
    assert not fs.volume.readonly
    fs.close()
    path.write_bytes(device.data)
    fsck_clean(path)
