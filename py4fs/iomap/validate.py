"""The checks that every mapping and every invalidated range must pass (IOMAP.md sections 3 and 6.2).

The kernel refuses with EUCLEAN, here `Corrupt`.  The order of the checks is the kernel's.
"""

from collections.abc import Mapping as Table
from typing import Final

from py4fs.errors import Corrupt, Invalid
from py4fs.iomap.records import (
    DEV_NULL,
    INVAL_TO_EOF,
    NULL_ADDR,
    SERVER_MAP_FLAGS,
    U64_MAX,
    IoDir,
    Mapping,
    MapType,
)

Devices = Table[int, int]
"""Size in bytes by device cookie."""

_KNOWN: Final = frozenset(int(t) for t in MapType)
_DEVICE_TYPES: Final = (MapType.MAPPED, MapType.UNWRITTEN)
_MEMORY_TYPES: Final = (MapType.HOLE, MapType.DELALLOC, MapType.INLINE)
_MARKERS: Final = (MapType.RETRY_CACHE, MapType.NOCACHE, MapType.PURE_OVERWRITE)


def validate(
    mapping: Mapping,
    slot: int,
    *,
    block_size: int,
    max_file_bytes: int,
    has_cache: bool = True,
    strict: bool = False,
) -> None:
    """Check one mapping that a server sent for the read or write slot.

    `has_cache`: whether the inode has a cache, without which RETRY_CACHE makes no sense.  `strict` adds the
    rules of newer kernels: RETRY_CACHE, NOCACHE, PURE_OVERWRITE must have a legal range, no flags, no place.
    Raises Corrupt (EUCLEAN).
    """
    _, length, addr, kind, flags, dev = mapping
    if kind not in _KNOWN:
        raise _bad(mapping, slot, "type", kind, "a known type")
    if kind == MapType.RETRY_CACHE and not has_cache:
        raise _bad(mapping, slot, "type", "RETRY_CACHE", "a mapping, as the inode has no cache")
    if not strict and kind in (MapType.RETRY_CACHE, MapType.NOCACHE):
        return
    if flags & ~SERVER_MAP_FLAGS:
        raise _bad(mapping, slot, "flags", hex(flags), f"none outside {SERVER_MAP_FLAGS:#x}")
    _check_range(mapping, slot, block_size, max_file_bytes)
    _check_place(mapping, slot)
    if kind == MapType.PURE_OVERWRITE and slot != IoDir.WRITE:
        raise _bad(mapping, slot, "type", "PURE_OVERWRITE", "only in the write slot")
    if strict and kind in _MARKERS and (flags or dev != DEV_NULL or addr != NULL_ADDR):
        raise _bad(mapping, slot, "fields", f"{flags:#x}, {dev}, {addr:#x}", "flags 0, no device, no address")
    if not 0 <= dev < 1 << 32 or not 0 <= addr <= U64_MAX or (addr != NULL_ADDR and addr + length > U64_MAX):
        raise _bad(mapping, slot, "address", f"{addr:#x}+{length} of device {dev}", "an end below 2^64")


def _check_range(mapping: Mapping, slot: int, block_size: int, max_file_bytes: int) -> None:
    offset, length = mapping.offset, mapping.length
    if length == 0:
        raise _bad(mapping, slot, "length", 0, "at least one block")
    if offset < 0 or length < 0 or offset % block_size or length % block_size:
        raise _bad(mapping, slot, "range", f"{offset}+{length}", f"multiples of {block_size}")
    if offset + length > U64_MAX:
        raise _bad(mapping, slot, "range", f"{offset}+{length}", "an end below 2^64")
    if offset >= max_file_bytes:
        raise _bad(mapping, slot, "offset", offset, f"below {max_file_bytes}")


def _check_place(mapping: Mapping, slot: int) -> None:
    place = f"device {mapping.dev} address {mapping.addr:#x}"
    if mapping.type in _DEVICE_TYPES:
        if mapping.dev == DEV_NULL or mapping.addr == NULL_ADDR:
            raise _bad(mapping, slot, "place", place, "a device and an address")
    elif mapping.type in _MEMORY_TYPES and (mapping.dev != DEV_NULL or mapping.addr != NULL_ADDR):
        raise _bad(mapping, slot, "place", place, "none")


def validate_begin(
    read: Mapping,
    write: Mapping,
    pos: int,
    *,
    block_size: int,
    max_file_bytes: int,
    has_cache: bool = True,
    strict: bool = False,
    devices: Devices | None = None,
) -> None:
    """Check both mappings of a BEGIN reply for position `pos`.  Raises Corrupt (EUCLEAN).

    `devices`: the registered cookies, if they are to be checked too.
    """
    for slot, mapping in ((IoDir.READ, read), (IoDir.WRITE, write)):
        validate(
            mapping,
            slot,
            block_size=block_size,
            max_file_bytes=max_file_bytes,
            has_cache=has_cache,
            strict=strict,
        )
        if mapping.type == MapType.NOCACHE:
            raise _bad(mapping, slot, "type", "NOCACHE", "a mapping")
        if not mapping.offset <= pos < mapping.offset + mapping.length:
            raise _bad(mapping, slot, "range", f"{mapping.offset}+{mapping.length}", f"one that covers {pos}")
        if devices is not None and mapping.type in _DEVICE_TYPES and mapping.dev not in devices:
            raise _bad(mapping, slot, "device", mapping.dev, "a registered one")


def validate_upsert(
    mapping: Mapping,
    slot: int,
    *,
    block_size: int,
    max_file_bytes: int,
    strict: bool = False,
    devices: Devices | None = None,
) -> None:
    """Check a mapping that is to enter the cache (section 3).

    `devices` has the size in bytes of each registered device by its cookie; without it any cookie is taken for a
    device without end.  Raises Corrupt (EUCLEAN), and Invalid (EINVAL) for a device that has no size (yet).
    """
    if mapping.type == MapType.RETRY_CACHE:
        raise _bad(mapping, slot, "type", "RETRY_CACHE", "a mapping to keep")
    validate(mapping, slot, block_size=block_size, max_file_bytes=max_file_bytes, strict=strict)
    if mapping.type == MapType.NOCACHE:
        return
    known = mapping.dev != DEV_NULL and (devices is None or mapping.dev in devices)
    if not known and mapping.type in _DEVICE_TYPES:
        raise _bad(mapping, slot, "device", mapping.dev, "a registered one")
    if known == (mapping.addr == NULL_ADDR):
        raise _bad(mapping, slot, "place", f"device {mapping.dev} address {mapping.addr:#x}", "both or none")
    if known and devices is not None:
        size = devices[mapping.dev]
        if size == 0:
            raise Invalid(f"iomap upsert: device {mapping.dev} has no size")
        if mapping.addr + mapping.length > size:
            raise _bad(mapping, slot, "address", f"{mapping.addr:#x}+{mapping.length}", f"an end up to {size:#x}")


def validate_inval(offset: int, length: int, *, block_size: int, max_file_bytes: int) -> None:
    """Check a range that a server wants dropped from a fork; length 0 means "leave it".  Raises Corrupt."""
    if length == 0:
        return
    if not 0 <= offset < max_file_bytes or offset % block_size:
        raise Corrupt("iomap invalidation", f"at {offset}", None, f"a block of {block_size} in the limit")
    if length != INVAL_TO_EOF and (length < 0 or length % block_size):
        raise Corrupt("iomap invalidation", f"at {offset}", f"length {length}", f"blocks of {block_size}")


def _bad(mapping: Mapping, slot: int, what: str, got: object, want: object) -> Corrupt:
    return Corrupt(f"iomap {what}", f"{IoDir(slot).name.lower()} mapping at {mapping.offset}", got, want)
