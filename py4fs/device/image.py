"""Finds the file system in an image: as it is, in a partition, in a sparse or compressed file.

What is recognised as something else is refused by its name; what is not recognised at all is left to the superblock's
own check.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from py4fs.device.base import Device
from py4fs.device.file import FileDevice
from py4fs.device.partition import Partition, partitions
from py4fs.device.signatures import identify
from py4fs.device.view import ReadOnlyView, WindowDevice
from py4fs.errors import Corrupt, FsError, Invalid, UnsupportedFeature

#: how deep images in images may be: a partition in a sparse image in a gzip file is three
MAX_LAYERS: Final = 4

#: where ext2/3/4 has its magic number (ext4 docs: superblock)
_EXT4_MAGIC_AT: Final = 1024 + 56
_EXT4_MAGIC: Final = b"\x53\xef"


def open_storage(
    path: str | bytes | os.PathLike[str],
    *,
    readonly: bool = False,
    offset: int = 0,
    partition: int | None = None,
    lock: bool = True,
) -> Device:
    """The device with the file system of an image; ``offset`` in bytes is where to begin to look.

    Raises what :meth:`FileDevice.open` does, Corrupt (partition table, sparse or compressed file), Invalid (no such
    partition, or several to choose from), UnsupportedFeature (another format), NoSpace (spool file).
    """
    device: Device = FileDevice.open(path, readonly=readonly, offset=offset, lock=lock)
    try:
        return find_file_system(device, partition)
    except BaseException:
        device.close()
        raise


def find_file_system(device: Device, partition: int | None = None) -> Device:
    """The part or view of ``device`` that holds the file system; closing it closes ``device``.

    Raises as :func:`open_storage`, and may have closed ``device`` then.
    """
    opened: list[Device] = []
    try:
        for _ in range(MAX_LAYERS):
            if partition is None and has_ext4(device):
                return device
            view = _view(device)
            if view is None:
                return _in_partition(device, partition)
            opened.append(view)
            device = view
        raise UnsupportedFeature(["layers"], f"images in images, more than {MAX_LAYERS} deep")
    except BaseException:
        for layer in reversed(opened):
            layer.close()
        raise


def has_ext4(device: Device) -> bool:
    """Whether the magic number of ext2/3/4 is where it belongs. Raises DeviceError."""
    end = _EXT4_MAGIC_AT + len(_EXT4_MAGIC)
    return device.size >= end and device.read(_EXT4_MAGIC_AT, len(_EXT4_MAGIC)) == _EXT4_MAGIC


def place_in_file(device: Device) -> int | None:
    """The byte of the image file where the file system begins; None when it is decoded from what is there."""
    place = 0
    while isinstance(device, WindowDevice):
        place, device = place + device.offset, device.base
    return place + device.offset if isinstance(device, FileDevice) else None


def _view(device: Device) -> ReadOnlyView | None:
    # seldom needed, and slow to import for what they decompress with
    from py4fs.device import android_sparse, gzip_view, xz_view, zstd_view

    views: tuple[tuple[bytes, Callable[[Device], ReadOnlyView]], ...] = (
        (android_sparse.MAGIC.to_bytes(4, "little"), android_sparse.AndroidSparseDevice),
        (gzip_view.MAGIC, gzip_view.GzipDevice),
        (xz_view.MAGIC, xz_view.open_xz),
        (zstd_view.MAGIC, zstd_view.open_zstd),
    )
    head = device.read(0, min(8, device.size))
    for magic, view in views:
        if head.startswith(magic):
            return view(device)
    return None


def _in_partition(device: Device, wanted: int | None) -> Device:
    table = _table(device, wanted)
    if table is None:
        if wanted is not None:
            raise Invalid(f"partition {wanted}: there is no partition table")
        kind = identify(device)
        if kind is not None:
            raise UnsupportedFeature([kind], f"not an ext4 image: {kind}")
        return device
    windows = {
        part.number: WindowDevice(device, part.offset, part.size, f"{device.name} (partition {part.number})")
        for part in table
    }
    if wanted is not None:
        if wanted not in windows:
            raise Invalid(f"partition {wanted}: there is none, only {_contents(windows)}")
        return _only_ext4(windows[wanted], wanted)
    found = [number for number, window in windows.items() if has_ext4(window)]
    if len(found) == 1:
        return windows[found[0]]
    if found:
        numbers = ", ".join(map(str, found))
        raise Invalid(f"has {len(found)} ext4 partitions, numbers {numbers}: say which with partition=N")
    kind = identify(device)
    if kind is not None:
        raise UnsupportedFeature([kind], f"not an ext4 image: {kind}")
    raise UnsupportedFeature(["partitions"], f"no ext4 partition: {_contents(windows)}")


def _table(device: Device, wanted: int | None) -> list[Partition] | None:
    try:
        return partitions(device)
    except Corrupt:
        # a boot sector of some other file system can look like a table
        kind = identify(device) if wanted is None else None
        if kind is None:
            raise
        raise UnsupportedFeature([kind], f"not an ext4 image: {kind}") from None


def _only_ext4(window: WindowDevice, number: int) -> WindowDevice:
    if not has_ext4(window):
        kind = identify(window) or "unknown contents"
        raise UnsupportedFeature([kind], f"partition {number}: not ext4, {kind}")
    return window


def _contents(windows: dict[int, WindowDevice]) -> str:
    """`1: FAT file system, 2: unknown contents`."""
    shown = []
    for number, window in windows.items():
        try:
            kind = "ext4" if has_ext4(window) else identify(window)
        except FsError as exc:
            kind = str(exc)
        shown.append(f"{number}: {kind or 'unknown contents'}")
    return ", ".join(shown) or "it has no partitions"
