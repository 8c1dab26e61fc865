"""xz-compressed images, to be read only.

An xz file's index tells size and place of its blocks, and each of them can be decoded by itself. One that is a single
large block (what `xz` writes without -T or --block-size) goes to a spool file. Source: "The .xz File Format", 1.2.0.
"""

from __future__ import annotations

import binascii
import lzma
from dataclasses import dataclass, replace
from typing import Final

from construct import Bytes, Int32ul, Struct

from py4fs.device.base import Device
from py4fs.device.restart import Decoder, RestartView
from py4fs.device.spool import SpooledDevice
from py4fs.device.view import ReadOnlyView
from py4fs.errors import Corrupt, UnsupportedFeature

MAGIC: Final[bytes] = b"\xfd7zXZ\0"
FOOTER = Struct("crc32" / Int32ul, "backward_size" / Int32ul, "flags" / Bytes(2), "magic" / Bytes(2))
_FOOTER_MAGIC: Final = b"YZ"
_HEADER_SIZE: Final = 12
#: limits: bytes of one index, blocks in all, memory of the decoder (xz -9 needs 65 MiB), decoded bytes of a block
#: that is decoded from its start for each read
MAX_INDEX: Final = 16 << 20
MAX_BLOCKS: Final = 1 << 20
MEMORY: Final = 256 << 20
MAX_BLOCK: Final = 64 << 20
_INPUT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its place in the file, its size there, where what it decodes to begins and how long that is."""

    flags: bytes
    at: int
    stored: int
    start: int
    length: int


class XzDecoder:
    """Decodes block after block."""

    def __init__(self, base: Device, blocks: list[Block], index: int) -> None:
        self.base = base
        self.position = blocks[index].start if blocks else 0
        self._blocks = blocks
        self._next = index
        self._left = 0
        self._at = self._end = 0
        self._decoder: lzma.LZMADecompressor

    def read(self, length: int) -> bytes:
        parts = []
        while length:
            if not self._left:
                if self._next == len(self._blocks):
                    break
                self._enter(self._blocks[self._next])
                continue
            data = self._step(min(length, self._left))
            parts.append(data)
            length -= len(data)
            self._left -= len(data)
            self.position += len(data)
        return b"".join(parts)

    def _enter(self, block: Block) -> None:
        self._next += 1
        self._left = block.length
        self._at, self._end = block.at, block.at + block.stored
        self._decoder = _new_decoder(block.flags)

    def _step(self, length: int) -> bytes:
        piece = b""
        if self._decoder.needs_input:
            piece = self.base.read(self._at, min(_INPUT, self._end - self._at))
            if not piece:
                raise Corrupt("xz block", f"ends at byte {self._end}", "its end", f"{self._left} more decoded bytes")
        try:
            data = self._decoder.decompress(piece, length)
        except lzma.LZMAError as exc:
            raise Corrupt("xz block", f"byte {self._at}", str(exc)) from exc
        self._at += len(piece)
        return data


def _new_decoder(flags: bytes) -> lzma.LZMADecompressor:
    """One that has seen a stream header."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    decoder.decompress(MAGIC + flags + binascii.crc32(flags).to_bytes(4, "little"))
    return decoder


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    """(value, place behind it)."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise Corrupt("xz index", where, "a number without an end", "at most 9 bytes")


def _index(data: bytes, where: str) -> list[tuple[int, int]]:
    """(unpadded size, decoded size) of the blocks of one stream."""
    if len(data) < 8 or data[0] != 0:
        raise Corrupt("xz index", where, data[:1].hex() or "nothing", "00")
    if binascii.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Corrupt("xz index checksum", where, data[-4:].hex(), f"{binascii.crc32(data[:-4]):#x}")
    count, at = _varint(data, 1, where)
    records = []
    for _ in range(count):
        unpadded, at = _varint(data, at, where)
        length, at = _varint(data, at, where)
        records.append((unpadded, length))
    return records


def _streams(base: Device) -> list[Block]:
    """The blocks of all streams, which are found from the end of the file backwards.

    Raises Corrupt, UnsupportedFeature (more blocks than the limit), DeviceError.
    """
    streams: list[list[Block]] = []
    count, end = 0, _without_padding(base, base.size)
    while end:
        stream = _stream(base, end)
        streams.append(stream)
        count += len(stream)
        if count > MAX_BLOCKS:
            raise UnsupportedFeature(["xz"], f"xz file with more than {MAX_BLOCKS} blocks")
        end = _without_padding(base, stream[0].at - _HEADER_SIZE)
    blocks, start = [], 0
    for stream in reversed(streams):
        for block in stream:
            blocks.append(replace(block, start=start))
            start += block.length
    return blocks


def _without_padding(base: Device, end: int) -> int:
    """Groups of four zeros may lie between streams."""
    while end:
        size = min(_INPUT, end)
        data = base.read(end - size, size)
        kept = len(data.rstrip(b"\0"))
        if kept:
            return end - (size - kept) // 4 * 4
        end -= size
    return 0


def _stream(base: Device, end: int) -> list[Block]:
    """The blocks of the stream that ends at `end`; one without length stands for a stream that has none."""
    where = f"byte {end - _HEADER_SIZE}"
    if end % 4 or end < 2 * _HEADER_SIZE:
        raise Corrupt("xz stream", where, f"{end} bytes", "a multiple of 4 with a header and a footer")
    raw = base.read(end - _HEADER_SIZE, _HEADER_SIZE)
    footer = FOOTER.parse(raw)
    if footer.magic != _FOOTER_MAGIC or binascii.crc32(raw[4:10]) != footer.crc32:
        raise Corrupt("xz stream footer", where, raw.hex(), "magic YZ and a fitting checksum (is it truncated?)")
    size = (footer.backward_size + 1) * 4
    room = end - 2 * _HEADER_SIZE
    if size > min(MAX_INDEX, room):
        raise Corrupt("xz index size", where, size, f"at most {min(MAX_INDEX, room)}")
    records = _index(base.read(end - _HEADER_SIZE - size, size), where)
    stored = [-(-unpadded // 4) * 4 for unpadded, _ in records]
    at = end - _HEADER_SIZE - size - sum(stored)
    if at < _HEADER_SIZE or base.read(at - _HEADER_SIZE, len(MAGIC)) != MAGIC:
        raise Corrupt("xz stream header", f"byte {at - _HEADER_SIZE}", "something else", MAGIC.hex())
    blocks = []
    for length, (_, decoded) in zip(stored, records, strict=True):
        blocks.append(Block(footer.flags, at, length, 0, decoded))
        at += length
    return blocks or [Block(footer.flags, at, 0, 0, 0)]


class XzDevice(RestartView):
    """The decoded bytes of an xz file of blocks that are not too large."""

    def __init__(self, base: Device, blocks: list[Block]) -> None:
        super().__init__(base, "an xz-compressed image")
        self._blocks = [block for block in blocks if block.length]
        self._positions = [block.start for block in self._blocks] or [0]
        self.size = sum(block.length for block in blocks)

    def _starts(self) -> list[int]:
        return self._positions

    def _restart(self, index: int) -> Decoder:
        return XzDecoder(self.base, self._blocks, index)


def open_xz(base: Device) -> ReadOnlyView:
    """Raises Corrupt, UnsupportedFeature (beyond the limits), NoSpace (spool file), DeviceError."""
    blocks = _streams(base)
    if max((block.length for block in blocks), default=0) <= MAX_BLOCK:
        return XzDevice(base, blocks)
    return SpooledDevice(base, "an xz-compressed image", XzDecoder(base, blocks, 0))
