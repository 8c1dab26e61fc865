"""Android sparse images (libsparse's format, as `img2simg` and `ext2simg` write it), to be read only.

Source: AOSP, system/core/libsparse/sparse_format.h.
"""

from __future__ import annotations

import binascii
from array import array
from bisect import bisect_right
from typing import Any, Final

from construct import Int16ul, Int32ul, Struct

from py4fs.device import crc
from py4fs.device.base import Device
from py4fs.device.view import ReadOnlyView
from py4fs.errors import Corrupt, UnsupportedFeature

MAGIC: Final[int] = 0xED26FF3A
RAW, FILL, DONT_CARE, CRC32 = 0xCAC1, 0xCAC2, 0xCAC3, 0xCAC4
#: limits of what is accepted
MAX_CHUNKS = 1 << 22
MAX_BLOCK = 1 << 24

HEADER = Struct(
    "magic" / Int32ul,
    "major_version" / Int16ul,
    "minor_version" / Int16ul,
    "file_hdr_sz" / Int16ul,
    "chunk_hdr_sz" / Int16ul,
    "blk_sz" / Int32ul,  # bytes
    "total_blks" / Int32ul,
    "total_chunks" / Int32ul,
    "image_checksum" / Int32ul,
)
CHUNK = Struct("chunk_type" / Int16ul, "reserved1" / Int16ul, "chunk_sz" / Int32ul, "total_sz" / Int32ul)

_PIECE = 1 << 20


class AndroidSparseDevice(ReadOnlyView):
    """What the chunks unfold to; what nobody cares about reads as zeros."""

    def __init__(self, base: Device) -> None:
        """Reads every chunk's header, and all data where the image carries a checksum.

        Raises Corrupt, BadChecksum, UnsupportedFeature (another version), DeviceError.
        """
        super().__init__(base, "an Android sparse image")
        if base.size < HEADER.sizeof():
            raise Corrupt("sparse header", "byte 0", f"{base.size} bytes", f"{HEADER.sizeof()} bytes")
        header = HEADER.parse(base.read(0, HEADER.sizeof()))
        _check_header(header)
        self._block: int = header.blk_sz
        #: per chunk: its first block, its kind, where its data lie (RAW) or what it is filled with (FILL)
        self._first = array("Q")
        self._kind = array("H")
        self._value = array("Q")
        self._read_chunks(header)
        self.size = header.total_blks * header.blk_sz

    def _read_chunks(self, header: Any) -> None:
        base, at, block = self.base, header.file_hdr_sz, 0
        checks: list[tuple[int, int, int]] = []  # index of the next chunk, its place, the checksum
        for number in range(header.total_chunks):
            where = f"byte {at}, chunk {number} of {header.total_chunks}"
            if at + header.chunk_hdr_sz > base.size:
                raise Corrupt("sparse chunk", where, "the end of the image", "a chunk header")
            chunk = CHUNK.parse(base.read(at, CHUNK.sizeof()))
            data, length = at + header.chunk_hdr_sz, chunk.total_sz - header.chunk_hdr_sz
            self._check_chunk(chunk, where, data, length)
            if chunk.chunk_type == CRC32:
                checks.append((len(self._first), at, int.from_bytes(base.read(data, 4), "little")))
            elif chunk.chunk_sz:
                if len(self._first) >= MAX_CHUNKS:
                    raise UnsupportedFeature(["sparse"], f"{self.name}: sparse image: more than {MAX_CHUNKS} chunks")
                value = data if chunk.chunk_type == RAW else 0
                if chunk.chunk_type == FILL:
                    value = int.from_bytes(base.read(data, 4), "little")
                self._first.append(block)
                self._kind.append(chunk.chunk_type)
                self._value.append(value)
                block += chunk.chunk_sz
                if block > header.total_blks:
                    raise Corrupt("sparse chunk", where, f"{block} blocks up to here", f"{header.total_blks} in all")
            at = data + length
        if block != header.total_blks:
            raise Corrupt("sparse header total_blks", "byte 16", header.total_blks, f"{block}, the sum of the chunks")
        self._first.append(block)
        if header.image_checksum:
            checks.append((len(self._kind), 24, header.image_checksum))
        self._verify(checks)

    def _check_chunk(self, chunk: Any, where: str, data: int, length: int) -> None:
        want = {RAW: chunk.chunk_sz * self._block, FILL: 4, DONT_CARE: 0, CRC32: 4}.get(chunk.chunk_type)
        if want is None:
            raise Corrupt("sparse chunk type", where, f"{chunk.chunk_type:#06x}", f"{RAW:#06x} to {CRC32:#06x}")
        if length != want:
            raise Corrupt("sparse chunk length", where, f"{length} bytes of data", f"{want}")
        if data + length > self.base.size:
            raise Corrupt("sparse chunk", where, f"data up to byte {data + length}", f"at most {self.base.size}")

    def _verify(self, checks: list[tuple[int, int, int]]) -> None:
        """Compare with the checksums of everything in front of some chunks. Raises Corrupt."""
        found, done = 0, 0
        for stop, at, want in checks:
            for index in range(done, stop):
                found = self._add_crc(found, index)
            done = stop
            if found != want:
                raise Corrupt("sparse image checksum", f"byte {at}", f"{want:#010x}", f"{found:#010x}")

    def _add_crc(self, before: int, index: int) -> int:
        length = (self._first[index + 1] - self._first[index]) * self._block
        value = self._value[index]
        if self._kind[index] != RAW:
            return crc.combine(before, crc.repeated(value.to_bytes(4, "little"), length // 4), length)
        for done in range(0, length, _PIECE):
            before = binascii.crc32(self.base.read(value + done, min(_PIECE, length - done)), before)
        return before

    def _decode(self, offset: int, length: int) -> bytes:
        parts = []
        index = bisect_right(self._first, offset // self._block) - 1
        while length:
            start, end = self._first[index] * self._block, self._first[index + 1] * self._block
            piece = min(end - offset, length)
            parts.append(self._piece(index, offset - start, piece))
            offset, length, index = offset + piece, length - piece, index + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, index: int, skip: int, length: int) -> bytes:
        value = self._value[index]
        if self._kind[index] == RAW:
            return self.base.read(value + skip, length)
        if not value:
            return bytes(length)
        phase = skip % 4
        pattern = value.to_bytes(4, "little")
        return (pattern * (length // 4 + 2))[phase : phase + length]


def _check_header(header: Any) -> None:
    if header.major_version != 1:
        version = f"{header.major_version}.{header.minor_version}"
        raise UnsupportedFeature(["sparse"], f"Android sparse image of version {version}, only 1.x is known")
    if header.file_hdr_sz < HEADER.sizeof() or header.chunk_hdr_sz < CHUNK.sizeof():
        got = f"{header.file_hdr_sz} and {header.chunk_hdr_sz} bytes"
        raise Corrupt("sparse header sizes", "byte 8", got, f"at least {HEADER.sizeof()} and {CHUNK.sizeof()}")
    if not header.blk_sz or header.blk_sz % 4 or header.blk_sz > MAX_BLOCK:
        raise Corrupt("sparse header blk_sz", "byte 12", header.blk_sz, f"a multiple of 4, at most {MAX_BLOCK}")
