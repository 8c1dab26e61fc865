"""Random access to what can only be decoded forwards: from restart points on, with decoded pieces kept."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from typing import Final, Protocol

from py4fs.device.base import Device
from py4fs.device.view import ReadOnlyView
from py4fs.errors import Corrupt

#: decoded at once, and how many such pieces are kept (16 MiB)
PIECE: Final = 256 << 10
PIECES: Final = 64
#: decoders that stay where they stopped, for whoever goes on reading from there
IDLE: Final = 2


class Decoder(Protocol):
    """A decoder that stands somewhere in the decoded bytes."""

    position: int

    def read(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end only. Raises Corrupt, DeviceError."""


class RestartView(ReadOnlyView):
    """Decodes from the nearest point on.

    Several threads may read at once: every change of what is kept is a single step of the interpreter.
    """

    def __init__(self, base: Device, what: str) -> None:
        super().__init__(base, what)
        self._kept: list[tuple[int, bytes] | None] = [None] * PIECES
        self._idle: list[Decoder] = []

    @abstractmethod
    def _starts(self) -> list[int]:
        """Where decoding can begin, ascending, the first one 0."""

    @abstractmethod
    def _restart(self, index: int) -> Decoder:
        """A decoder at one of these places."""

    def _decode(self, offset: int, length: int) -> bytes:
        first, last = offset // PIECE, (offset + max(length, 1) - 1) // PIECE
        data = b"".join([self._piece(number) for number in range(first, last + 1)])
        skip = offset - first * PIECE
        return data[skip : skip + length]

    def _piece(self, number: int) -> bytes:
        slot = number % PIECES
        kept = self._kept[slot]
        if kept is not None and kept[0] == number:
            return kept[1]
        start = number * PIECE
        decoder = self._decoder_for(start)
        while decoder.position < start:
            if not decoder.read(min(start - decoder.position, PIECE)):
                break
        want = min(PIECE, self.size - start)
        data = decoder.read(want)
        if decoder.position != start + want:
            raise Corrupt(self.what, f"decoded byte {start}", f"{len(data)} bytes", f"{want}, as when it was opened")
        if len(self._idle) < IDLE:
            self._idle.append(decoder)
        self._kept[slot] = (number, data)
        return data

    def _decoder_for(self, start: int) -> Decoder:
        starts = self._starts()
        index = bisect_right(starts, start) - 1
        try:
            decoder = self._idle.pop()
        except IndexError:
            return self._restart(index)
        if starts[index] <= decoder.position <= start:
            return decoder
        return self._restart(index)
