"""zstd-compressed images, to be read only: decoded into a spool file. Needs the Python package `zstandard`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from py4fs.device.base import Device
from py4fs.device.spool import SpooledDevice
from py4fs.errors import Corrupt, UnsupportedFeature

if TYPE_CHECKING:
    import zstandard

MAGIC: Final[bytes] = b"\x28\xb5\x2f\xfd"
#: memory of the decoder: `zstd --long` needs 128 MiB
WINDOW: Final = 128 << 20
#: compressed bytes decoded at once; the worst they can become is 128 KiB for each four of them
_INPUT: Final = 512


class ZstdDecoder:
    """Decodes frame after frame."""

    def __init__(self, base: Device, library: zstandard.ZstdDecompressor, error: type[Exception]) -> None:
        self.base = base
        self.position = 0
        self._library = library
        self._error = error
        self._frame = library.decompressobj()
        self._at = 0
        self._ready = bytearray()

    def read(self, length: int) -> bytes:
        while len(self._ready) < length and self._step():
            pass
        data = bytes(self._ready[:length])
        del self._ready[:length]
        self.position += len(data)
        return data

    def _step(self) -> bool:
        piece = self.base.read(self._at, min(_INPUT, self.base.size - self._at))
        if not piece:
            if not self._frame.eof:
                raise Corrupt("zstd data", f"byte {self._at}", "the end of the file", "more data")
            return False
        if self._frame.eof:
            self._frame = self._library.decompressobj()
        try:
            self._ready += self._frame.decompress(piece)
        except self._error as exc:
            raise Corrupt("zstd data", f"byte {self._at}", str(exc)) from exc
        self._at += len(piece) - (len(self._frame.unused_data) if self._frame.eof else 0)
        return True


def open_zstd(base: Device) -> SpooledDevice:
    """Raises UnsupportedFeature without the package, Corrupt, NoSpace (spool file), DeviceError."""
    try:
        import zstandard
    except ImportError:
        text = "zstd-compressed image: the Python package zstandard is missing (pip install 'py4fs[zstd]')"
        raise UnsupportedFeature(["zstd"], text) from None
    library = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    return SpooledDevice(base, "a zstd-compressed image", ZstdDecoder(base, library, zstandard.ZstdError))
