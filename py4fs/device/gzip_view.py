"""gzip-compressed images (RFC 1952), to be read only.

The format has no index, so opening decodes everything once: that tells the size, checks the checksums, and leaves
copies of the decoder at regular distances. Their number is bounded, so the distance doubles as the image grows.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from py4fs.device.base import Device
from py4fs.device.restart import PIECE, Decoder, RestartView
from py4fs.errors import Corrupt

if TYPE_CHECKING:
    from zlib import _Decompress

MAGIC: Final[bytes] = b"\x1f\x8b\x08"
#: copies of the decoder kept; each has a window of 32 KiB and some 25 KiB more
POINTS: Final = 256
_INPUT: Final = 16 << 10
_WBITS: Final = 16 + zlib.MAX_WBITS


class GzipDecoder:
    """Stands at `position` of the decoded bytes and at `at` of the compressed ones."""

    def __init__(self, base: Device, at: int = 0, position: int = 0, inflate: _Decompress | None = None) -> None:
        self.base = base
        self.at = at
        self.position = position
        self._inflate = inflate or zlib.decompressobj(_WBITS)

    def copy(self) -> GzipDecoder:
        return GzipDecoder(self.base, self.at, self.position, self._inflate.copy())

    def read(self, length: int) -> bytes:
        parts = []
        while length:
            data = self._step(length)
            if data is None:
                break
            parts.append(data)
            length -= len(data)
            self.position += len(data)
        return b"".join(parts)

    def _step(self, length: int) -> bytes | None:
        """Some of the next bytes, maybe none; None at the end."""
        if self._inflate.eof and not self._next_member():
            return None
        piece = self.base.read(self.at, min(_INPUT, self.base.size - self.at))
        try:
            data = self._inflate.decompress(piece, length)
        except zlib.error as exc:
            raise Corrupt("gzip data", f"byte {self.at}", str(exc)) from exc
        used = len(piece) - len(self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail)
        if not used and not data and not self._inflate.eof:
            raise Corrupt("gzip data", f"byte {self.at}", "the end of the file", "more data")
        self.at += used
        return data

    def _next_member(self) -> bool:
        """Members follow each other, and zeros may follow them."""
        while self.at < self.base.size:
            piece = self.base.read(self.at, min(_INPUT, self.base.size - self.at))
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            self.at += zeros
            if zeros < len(piece):
                self._inflate = zlib.decompressobj(_WBITS)
                return True
        return False


class GzipDevice(RestartView):
    """The decoded bytes of a gzip file."""

    def __init__(self, base: Device) -> None:
        """Decodes everything once. Raises Corrupt, DeviceError."""
        super().__init__(base, "a gzip-compressed image")
        decoder = GzipDecoder(base)
        points = [decoder.copy()]
        spacing = 4 * PIECE
        while decoder.read(PIECE):
            if decoder.position >= points[-1].position + spacing:
                points.append(decoder.copy())
            if len(points) > POINTS:
                points = points[::2]
                spacing *= 2
        self.size = decoder.position
        self._points = points
        self._positions = [point.position for point in points]

    def _starts(self) -> list[int]:
        return self._positions

    def _restart(self, index: int) -> Decoder:
        return self._points[index].copy()
