"""Decoded once into a temporary file without a name: for formats without random access."""

from __future__ import annotations

import os
import tempfile
from typing import Final

from py4fs.device.base import Device
from py4fs.device.file import FileDevice
from py4fs.device.restart import Decoder
from py4fs.device.view import ReadOnlyView
from py4fs.errors import DeviceError, NoSpace

_PIECE: Final = 1 << 20
_HOLE: Final = 64 << 10
#: the part of the free space of the temporary directory that may be used
SHARE: Final = 0.5


class SpooledDevice(ReadOnlyView):
    """What a decoder gives, in a file of the directory for temporary files ($TMPDIR); zeros take no room there."""

    def __init__(self, base: Device, what: str, decoder: Decoder) -> None:
        """Raises NoSpace, Corrupt, DeviceError."""
        super().__init__(base, what)
        fd = _anonymous_file(base.name)
        try:
            _fill(fd, decoder, base.name)
            self._file = FileDevice(fd, base.name, readonly=True)
        except BaseException:
            os.close(fd)
            raise
        self.size = self._file.size

    def _decode(self, offset: int, length: int) -> bytes:
        return self._file.read(offset, length)

    def close(self) -> None:
        self._file.close()
        super().close()


def _anonymous_file(name: str) -> int:
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError as exc:
        raise DeviceError(f"{name}: no spool file in the directory for temporary files: {exc.strerror}") from exc


def _fill(fd: int, decoder: Decoder, name: str) -> None:
    info = os.fstatvfs(fd)
    room = int(info.f_bavail * info.f_frsize * SHARE)
    while data := decoder.read(_PIECE):
        start = decoder.position - len(data)
        for at in range(0, len(data), _HOLE):
            piece = data[at : at + _HOLE]
            if piece.count(0) != len(piece):
                room -= len(piece)
                if room < 0:
                    raise NoSpace(f"{name}: decompressed it does not fit the directory for temporary files ($TMPDIR)")
                _write(fd, piece, start + at, name)
    os.ftruncate(fd, decoder.position)


def _write(fd: int, piece: bytes, at: int, name: str) -> None:
    try:
        done = os.pwrite(fd, piece, at)
    except OSError as exc:
        raise DeviceError(f"{name}: spool file: {exc.strerror}") from exc
    if done != len(piece):
        raise DeviceError(f"{name}: spool file: {done} of {len(piece)} bytes written")
