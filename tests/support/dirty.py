"""Images of file systems that were never unmounted, made by the kernel, and what recovery has to lead to."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.kernel import loop_mount
from images.tools import environment
from py4fs.device.file import FileDevice
from py4fs.ext4.features import Incompat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.locate import internal_journal
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.volume import Volume, VolumeOptions
from tests.support import tree

Work = Callable[[Path], None]


def dirty_copy(image: Path, copy: Path, work: Work, *options: str) -> Path:
    """Let the kernel do ``work`` on a mount of ``image``; ``copy`` is the image as it is then, still mounted.

    No commit happens but those that ``work`` asks for, unless it takes minutes.
    """
    with loop_mount(image, "commit=300", *options) as directory:
        work(directory)
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    return copy


def fsync(path: Path) -> None:
    """fsync(2) of a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def journal_of(image: Path, *, readonly: bool = False) -> Iterator[JournalArea]:
    """The journal of an image, as it is."""
    device = FileDevice.open(image, readonly=readonly)
    try:
        superblock = Superblock.read(device)
        yield internal_journal(device, superblock.record, Geometry.of(superblock.record, device.size))
    finally:
        device.close()


def recover(image: Path, *, readonly: bool = False) -> list[str]:
    """Open the image with py4fs, which recovers it, and close it again; returns the notices."""
    device = FileDevice.open(image, readonly=readonly)
    try:
        volume = Volume.open(device, VolumeOptions(readonly=readonly, strict=True), time.time_ns)
    except BaseException:
        device.close()
        raise
    volume.close()
    return volume.notices


def recovered_view(image: Path) -> bytes:
    """The whole device as a read-only volume shows it."""
    device = FileDevice.open(image, readonly=True)
    volume = Volume.open(device, VolumeOptions(readonly=True), time.time_ns)
    try:
        return volume.device.read(0, volume.geometry.blocks_count * volume.geometry.block_size)
    finally:
        volume.close()


def e2fsck(image: Path, *options: str) -> tuple[int, str]:
    """(exit status, output)."""
    done = subprocess.run(
        ["e2fsck", "-f", *options, image],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(None),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def kernel_tree(image: Path) -> tree.Snapshot:
    """What the kernel shows in an image that needs no recovery."""
    with loop_mount(image, "ro") as directory:
        return tree.snapshot(directory)


@dataclass
class Copies:
    """A dirty image three times: for py4fs, for e2fsck, for the kernel."""

    ours: Path
    fsck: Path
    kernel: Path

    @classmethod
    def of(cls, image: Path) -> Copies:
        paths = [image.with_suffix(suffix) for suffix in (".ours", ".fsck", ".kernel")]
        for path in paths:
            shutil.copyfile(image, path)
        return cls(*paths)


def check_recovery(image: Path, *, fsck: bool = True, ignore: Collection[str] = tree.UNSTABLE) -> list[str]:
    """Recover ``image`` by py4fs, by the kernel and (``fsck``) by e2fsck: all the same tree, ours clean.

    Read-only recovery shows the same blocks and changes none. Returns the notices of ours.
    """
    copies = Copies.of(image)
    before = copies.ours.read_bytes()
    view = recovered_view(copies.ours)
    assert copies.ours.read_bytes() == before, "opening for reading changed the image"
    notices = recover(copies.ours)
    status, output = e2fsck(copies.ours, "-n")
    assert status == 0, output
    with journal_of(copies.ours, readonly=True) as area:
        assert area.start == 0
        size = area.block_size
        kept_back = {1024 // size, *(pblk for first, count in area.runs for pblk in range(first, first + count))}
    after = copies.ours.read_bytes()
    different = [
        pblk
        for pblk in range(len(after) // size)
        if pblk not in kept_back and view[pblk * size : (pblk + 1) * size] != after[pblk * size : (pblk + 1) * size]
    ]
    assert not different or "fast commit" in " ".join(notices), different
    with loop_mount(copies.kernel):
        pass
    ours = kernel_tree(copies.ours)
    tree.assert_same(kernel_tree(copies.kernel), ours, ignore)
    if fsck:
        status, output = e2fsck(copies.fsck, "-y")
        assert status <= 1, output
        tree.assert_same(kernel_tree(copies.fsck), ours, ignore)
    return notices


def patch(image: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of an image."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(image: Path, offset: int) -> None:
    """Invert one byte of an image."""
    with image.open("r+b") as file:
        file.seek(offset)
        (value,) = struct.unpack("B", file.read(1))
        file.seek(offset)
        file.write(bytes([value ^ 0xFF]))


def set_superblock(image: Path, *, recover: bool | None = None, **fields: object) -> None:
    """Change superblock fields, with a right checksum."""
    with image.open("rb") as file:
        superblock = Superblock(file.read(2048)[1024:])
    if recover is not None:
        superblock.feature_incompat &= ~int(Incompat.RECOVER)
        superblock.feature_incompat |= int(Incompat.RECOVER) * recover
    superblock.put(**fields)
    patch(image, 1024, superblock.encode())
