"""Disk images with partition tables and sparse images, written from the formats' descriptions."""

from __future__ import annotations

import binascii
import struct
from pathlib import Path

SECTOR = 512
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")  # the type GUID of Linux data


def mbr_entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), first, count)


def boot_record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def put(path: Path, sector: int, data: bytes | bytearray, size: int = SECTOR) -> None:
    with path.open("r+b") as file:
        file.seek(sector * size)
        file.write(data)


def blank(path: Path, sectors: int) -> Path:
    with path.open("wb") as file:
        file.truncate(sectors * SECTOR)
    return path


def write_mbr(path: Path, parts: dict[int, tuple[int, int, int]]) -> None:
    """`parts`: number -> (type, first sector, sectors); those from 5 on become a chain in the fourth entry."""
    entries = [bytes(16)] * 4
    for number, part in parts.items():
        if number <= 4:
            entries[number - 1] = mbr_entry(*part)
    logical = [part for number, part in sorted(parts.items()) if number > 4]
    if logical:
        start, end = logical[0][1] - 8, logical[-1][1] + logical[-1][2]
        entries[3] = mbr_entry(0x0F, start, end - start)
        for index, (kind, first, count) in enumerate(logical):
            following = []
            if index + 1 < len(logical):
                place = logical[index + 1][1] - 8
                following = [mbr_entry(0x05, place - start, logical[index + 1][2] + 8)]
            put(path, first - 8, boot_record(mbr_entry(kind, 8, count), *following))
    put(path, 0, boot_record(*entries))


def write_gpt(path: Path, parts: dict[int, tuple[int, int]], size: int = SECTOR) -> None:
    """`parts`: number -> (first sector, sectors); both copies are written. `size`: bytes of a sector."""
    last = path.stat().st_size // size - 1
    entries = bytearray(128 * 128)
    for number, (first, count) in parts.items():
        fields = (LINUX, bytes([number]) * 16, first, first + count - 1, 0, bytes(72))
        struct.pack_into("<16s16sQQQ72s", entries, (number - 1) * 128, *fields)
    length = len(entries) // size
    for mine, other, place in ((1, last, 2), (last, 1, last - length)):
        fields2 = (b"EFI PART", 0x10000, 92, 0, 0, mine, other, 2 + length, last - length - 1, b"D" * 16, place)
        header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", *fields2, 128, 128, binascii.crc32(entries)))
        struct.pack_into("<I", header, 16, binascii.crc32(header))
        put(path, mine, header, size)
        put(path, place, entries, size)
    put(path, 0, boot_record(mbr_entry(0xEE, 1, min(last, 0xFFFFFFFF))))


def chunk(kind: int, blocks: int, data: bytes = b"") -> bytes:
    return struct.pack("<HHII", kind, 0, blocks, 12 + len(data)) + data


def sparse_header(block: int, blocks: int, chunks: int, checksum: int = 0) -> bytes:
    return struct.pack("<IHHHHIIII", 0xED26FF3A, 1, 0, 28, 12, block, blocks, chunks, checksum)


def to_sparse(image: bytes, block: int = 4096, *, checks: bool = False) -> bytes:
    """As img2simg has it: runs of zeros are don't-care, runs of one word are fills, the rest is raw."""
    kinds = []
    for at in range(0, len(image), block):
        data = image[at : at + block]
        repeated = data == data[:4] * (block // 4)
        kinds.append((0xCAC3 if repeated and not any(data[:4]) else 0xCAC2 if repeated else 0xCAC1, data))
    chunks, at = [], 0
    while at < len(kinds):
        end = at + 1
        same = kinds[at][1][:4]
        while end < len(kinds) and kinds[end][0] == kinds[at][0]:
            if kinds[at][0] == 0xCAC2 and kinds[end][1][:4] != same:
                break
            end += 1
        payload = {0xCAC1: b"".join(data for _, data in kinds[at:end]), 0xCAC2: same, 0xCAC3: b""}[kinds[at][0]]
        chunks.append(chunk(kinds[at][0], end - at, payload))
        if checks:
            chunks.append(chunk(0xCAC4, 0, struct.pack("<I", binascii.crc32(image[: end * block]))))
        at = end
    checksum = binascii.crc32(image) if checks else 0
    return sparse_header(block, len(kinds), len(chunks), checksum) + b"".join(chunks)
