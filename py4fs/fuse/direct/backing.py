"""The block device below a mount whose kernel reads and writes file data by itself (IOMAP.md section 5)."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from py4fs.device.base import Device
from py4fs.device.file import FileDevice
from py4fs.errors import DeviceError, FsError, NotSupported
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import SupportFlags

log = logging.getLogger(__name__)

MODES: Final = ("auto", "off", "require")
"""Values of `-o iomap=`."""


@dataclass(frozen=True, slots=True)
class Backing:
    """A device that can be registered; `offset`: the byte of it at which the file system starts."""

    register: Callable[[], int]
    """Registers it with the kernel, once INIT is answered; returns its cookie. Raises FsError."""
    offset: int
    required: bool
    """Whether there is to be no mount without iomap."""
    sector: int = 512
    """Bytes of the smallest piece that can be read or written."""


def check_support(fd: int) -> None:
    """Raises NotSupported unless the kernel behind this /dev/fuse would let us have iomap; no mount is needed."""
    arg = bytearray(iomap.IOMAP_SUPPORT.size)
    try:
        fcntl.ioctl(fd, iomap.DEV_IOC_IOMAP_SUPPORT, arg, True)
    except OSError as exc:
        raise NotSupported(f"the kernel has no FUSE_IOMAP ({exc.strerror})") from exc
    if not iomap.IOMAP_SUPPORT.unpack_from(arg).flags & SupportFlags.FILEIO:
        raise NotSupported("the kernel's FUSE_IOMAP is switched off, or not for this user")


def register(fd: int, device: FileDevice) -> int:
    """Give the kernel a block device, through a connection whose INIT is answered; returns its cookie.

    Raises DeviceError.
    """
    arg = bytearray(iomap.BACKING_MAP.pack(device.fileno(), iomap.BackingType.IOMAP, 0))
    try:
        cookie: int = fcntl.ioctl(fd, iomap.DEV_IOC_BACKING_OPEN, arg, True)
    except OSError as exc:
        raise DeviceError(f"{device.name}: the kernel does not take the block device: {exc.strerror}") from exc
    return cookie


def prepare(mode: str, fuse_fd: int | None, device: Device, block_size: int) -> FileDevice | None:
    """A block device to register: the image's, or a loop device on it through which all I/O goes from now on.

    `fuse_fd`: a connection that was handed over, None: any. `block_size`: the file system's, in bytes.
    None: iomap is off, or not to be had and not required. Raises NotSupported, DeviceError where it is required.
    """
    if mode == "off":
        return None
    try:
        _probe(fuse_fd)
        if not isinstance(device, FileDevice):
            raise NotSupported("what is read is not what is on the device: its journal is replayed in memory only")
    except NotSupported as exc:
        if mode == "require":
            raise
        log.debug("no iomap: %s", exc)
        return None
    try:
        if not device.is_block_device:
            device.use_loop_device()
        device.set_block_size(block_size)
    except FsError as exc:
        if mode == "require":
            raise
        log.warning("no iomap: %s", exc)
        return None
    return device


def _probe(fuse_fd: int | None) -> None:
    if fuse_fd is not None:
        check_support(fuse_fd)
        return
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise NotSupported(f"/dev/fuse: {exc.strerror}") from exc
    try:
        check_support(fd)
    finally:
        os.close(fd)
