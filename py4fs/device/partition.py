"""Partition tables: MBR with logical partitions, and GPT.

Sources: the UEFI specification, chapter 5 (GPT, and the legacy MBR); the chain of extended boot records as Linux
reads it. Every number is checked against the disk before it is used.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from py4fs.device.base import Device
from py4fs.errors import Corrupt

SECTOR = 512
#: a disk's sectors, for GPT: its header is in the second one
GPT_SECTORS = (512, 4096)
#: limits of what is looked at
MAX_LOGICAL = 128
MAX_GPT_BYTES = 1 << 20

MBR_SIGNATURE = 0xAA55
GPT_SIGNATURE = b"EFI PART"
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE

MBR_ENTRY = Struct(
    "boot" / Int8ul,
    "first_chs" / Bytes(3),
    "type" / Int8ul,
    "last_chs" / Bytes(3),
    "first_lba" / Int32ul,
    "sectors" / Int32ul,
)
MBR = Struct("code" / Bytes(446), "entries" / Array(4, MBR_ENTRY), "signature" / Int16ul)
GPT_HEADER = Struct(
    "signature" / Bytes(8),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "header_crc32" / Int32ul,
    "reserved" / Int32ul,
    "my_lba" / Int64ul,
    "alternate_lba" / Int64ul,
    "first_usable_lba" / Int64ul,
    "last_usable_lba" / Int64ul,
    "disk_guid" / Bytes(16),
    "entry_lba" / Int64ul,
    "entries" / Int32ul,
    "entry_size" / Int32ul,
    "entries_crc32" / Int32ul,
)
GPT_ENTRY = Struct(
    "type_guid" / Bytes(16),
    "guid" / Bytes(16),
    "first_lba" / Int64ul,
    "last_lba" / Int64ul,
    "attributes" / Int64ul,
    "name" / Bytes(72),
)


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; `number` as the kernel counts (logical ones from 5), offset and size in bytes."""

    number: int
    offset: int
    size: int


def partitions(disk: Device) -> list[Partition] | None:
    """The partitions of a disk, or None when it has no partition table. Raises Corrupt, DeviceError."""
    if disk.size < SECTOR:
        return None
    mbr = MBR.parse(disk.read(0, SECTOR))
    if mbr.signature != MBR_SIGNATURE or any(entry.boot & 0x7F for entry in mbr.entries):
        return None  # without a table there are boot sectors of other file systems, whose code is in the entries' place
    if any(entry.type == _PROTECTIVE for entry in mbr.entries):
        return list(_gpt(disk))
    found = [*_primary(disk, mbr), *_logical(disk, mbr)]
    return found or None


def _place(disk: Device, number: int, first: int, count: int, sector: int) -> Partition:
    """In sectors. Raises Corrupt for what is not on the disk."""
    offset, size = first * sector, count * sector
    if offset + size > disk.size:
        end = f"byte {offset + size} as its end"
        raise Corrupt(f"partition {number}", "partition table", end, f"at most {disk.size}, the size of the image")
    return Partition(number, offset, size)


def _primary(disk: Device, mbr: Any) -> Iterator[Partition]:
    for number, entry in enumerate(mbr.entries, 1):
        if entry.type and entry.sectors and entry.type not in _EXTENDED:
            yield _place(disk, number, entry.first_lba, entry.sectors, SECTOR)


def _logical(disk: Device, mbr: Any) -> Iterator[Partition]:
    """Each logical partition is behind a record of its own, which also says where the next record is."""
    start = next((entry.first_lba for entry in mbr.entries if entry.type in _EXTENDED and entry.sectors), 0)
    at, number, seen = start, 5, {0}
    while at:
        if at in seen or len(seen) > MAX_LOGICAL:
            raise Corrupt("extended boot record", f"sector {at}", "a chain that does not end", None)
        seen.add(at)
        if (at + 1) * SECTOR > disk.size:
            raise Corrupt("extended boot record", f"sector {at}", "beyond the end", f"below {disk.size // SECTOR}")
        record = MBR.parse(disk.read(at * SECTOR, SECTOR))
        if record.signature != MBR_SIGNATURE:
            raise Corrupt("extended boot record", f"sector {at}", f"{record.signature:#06x}", f"{MBR_SIGNATURE:#06x}")
        following = 0
        for entry in record.entries:
            if entry.type in _EXTENDED:
                following = following or entry.first_lba
            elif entry.type and entry.sectors:
                yield _place(disk, number, at + entry.first_lba, entry.sectors, SECTOR)
                number += 1
        at = start + following if following else 0


def _gpt(disk: Device) -> Iterator[Partition]:
    """From the first of the two copies that is whole. Raises what is wrong with the primary one."""
    problem: Corrupt | None = None
    for sector in GPT_SECTORS:
        for lba in (1, disk.size // sector - 1):
            try:
                table = _gpt_entries(disk, lba, sector)
            except Corrupt as exc:
                problem = problem or exc
                continue
            if table is not None:
                return _gpt_partitions(disk, table, sector)
    raise problem or Corrupt("GPT header", "sectors 1 and last", "none", GPT_SIGNATURE.decode())


def _gpt_entries(disk: Device, lba: int, sector: int) -> list[Any] | None:
    """The entries that the header at `lba` leads to; None when there is no header. Raises Corrupt."""
    if lba < 1 or (lba + 1) * sector > disk.size:
        return None
    raw = disk.read(lba * sector, sector)
    header = GPT_HEADER.parse(raw)
    if header.signature != GPT_SIGNATURE:
        return None
    where = f"byte {lba * sector}"
    if not GPT_HEADER.sizeof() <= header.header_size <= sector:
        raise Corrupt("GPT header size", where, header.header_size, f"{GPT_HEADER.sizeof()} to {sector}")
    without = raw[:16] + bytes(4) + raw[20 : header.header_size]
    if binascii.crc32(without) != header.header_crc32:
        raise Corrupt("GPT header checksum", where, f"{header.header_crc32:#x}", f"{binascii.crc32(without):#x}")
    if header.my_lba != lba:
        raise Corrupt("GPT header my_lba", where, header.my_lba, lba)
    size = header.entry_size
    length = header.entries * size
    if size < GPT_ENTRY.sizeof() or size % 8 or length > MAX_GPT_BYTES:
        got = f"{header.entries} of {size} bytes"
        raise Corrupt("GPT entries", where, got, f"of {GPT_ENTRY.sizeof()} bytes, at most {MAX_GPT_BYTES} in all")
    if header.entry_lba * sector + length > disk.size:
        raise Corrupt("GPT entries", where, f"sector {header.entry_lba}", "sectors inside the image")
    raw = disk.read(header.entry_lba * sector, length)
    if binascii.crc32(raw) != header.entries_crc32:
        raise Corrupt("GPT entries checksum", where, f"{header.entries_crc32:#x}", f"{binascii.crc32(raw):#x}")
    return [GPT_ENTRY.parse(raw[at : at + GPT_ENTRY.sizeof()]) for at in range(0, length, size)]


def _gpt_partitions(disk: Device, table: list[Any], sector: int) -> Iterator[Partition]:
    for number, entry in enumerate(table, 1):
        if any(entry.type_guid):
            if entry.last_lba < entry.first_lba:
                raise Corrupt(f"partition {number}", "GPT", f"last sector {entry.last_lba}", f">= {entry.first_lba}")
            yield _place(disk, number, entry.first_lba, entry.last_lba - entry.first_lba + 1, sector)
