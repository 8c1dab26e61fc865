"""A block device for an image file: loop(4), which goes away with its last user."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Padding, Struct

from py4fs.errors import DeviceError

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4
_TRIES: Final = 20
"""Others may take the device that was free a moment ago."""

LoopConfig = Struct(
    "fd" / Int32ul,
    "block_size" / Int32ul,
    Padding(24),
    "lo_offset" / Int64ul,
    "lo_sizelimit" / Int64ul,
    Padding(12),
    "lo_flags" / Int32ul,
    "lo_file_name" / Bytes(64),
    Padding(64 + 32 + 16),
    Padding(64),
)
"""struct loop_config of linux/loop.h; without direct I/O, so that the file's page cache stays the only one below."""


def attach(fd: int, name: str, *, offset: int, readonly: bool) -> int:
    """Make a block device of an open file from byte `offset` on; returns a descriptor that claims it (O_EXCL).

    Raises DeviceError.
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return _attach(control, fd, name, offset, readonly)
        finally:
            os.close(control)
    except OSError as exc:
        raise DeviceError(f"{name}: no loop device: {exc.strerror}") from exc


def _attach(control: int, fd: int, name: str, offset: int, readonly: bool) -> int:
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if readonly else 0)
    label = os.fsencode(name)[-63:].ljust(64, b"\0")
    wanted = LoopConfig.build(
        {"fd": fd, "block_size": 0, "lo_offset": offset, "lo_sizelimit": 0, "lo_flags": flags, "lo_file_name": label}
    )
    how = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
    for _ in range(_TRIES):
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        loop = os.open(f"/dev/loop{number}", how)
        try:
            fcntl.ioctl(loop, _LOOP_CONFIGURE, wanted)
            return os.open(f"/dev/loop{number}", how | os.O_EXCL)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
        finally:
            os.close(loop)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
