"""Mapping records: what the mapper, the cache, the server and the client exchange (IOMAP.md sections 2, 4).

All offsets, lengths and addresses are in bytes.  Values are those of the protocol, so that a record can be
put on the wire field by field.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

U64_MAX: Final = (1 << 64) - 1
NULL_ADDR: Final = U64_MAX
"""`addr` of a mapping that has no place on a device."""
INVAL_TO_EOF: Final = U64_MAX
"""As a length: everything from the offset on."""
DEV_NULL: Final = 0
"""`dev` of a mapping that has no place on a device."""
MAX_MAPPING_LENGTH: Final = 1 << 63
"""Longest record that merging may build."""


class IoDir(IntEnum):
    """Which fork of the cache: where reads come from, or where writes go when that is elsewhere."""

    READ = 0
    WRITE = 1


class MapType(IntEnum):
    """FUSE_IOMAP_TYPE_*."""

    HOLE = 0
    DELALLOC = 1
    MAPPED = 2
    UNWRITTEN = 3
    INLINE = 4
    NOCACHE = 253
    RETRY_CACHE = 254
    PURE_OVERWRITE = 255


class MapFlags(IntFlag):
    """FUSE_IOMAP_F_*; the last two come from the kernel only."""

    NEW = 1 << 0
    DIRTY = 1 << 1
    SHARED = 1 << 2
    MERGED = 1 << 3
    BOUNDARY = 1 << 4
    ANON_WRITE = 1 << 5
    ATOMIC_BIO = 1 << 6
    WANT_IOMAP_END = 1 << 7
    SIZE_CHANGED = 1 << 8
    STALE = 1 << 9


SERVER_MAP_FLAGS: Final = 0x00FF
"""The flags that a server may set."""


class OpFlags(IntFlag):
    """FUSE_IOMAP_OP_*: why a mapping is asked for.  No bit set is a plain read."""

    READ = 0
    WRITE = 1 << 0
    ZERO = 1 << 1
    REPORT = 1 << 2
    FAULT = 1 << 3
    DIRECT = 1 << 4
    NOWAIT = 1 << 5
    OVERWRITE_ONLY = 1 << 6
    UNSHARE = 1 << 7
    DAX = 1 << 8
    ATOMIC = 1 << 9
    DONTCACHE = 1 << 10
    SWAPFILE = 1 << 30
    WRITEBACK = 1 << 31


WRITE_LIKE: Final = int(OpFlags.WRITE | OpFlags.ZERO | OpFlags.UNSHARE | OpFlags.WRITEBACK)
"""Operations that may change the range."""
ALLOCATING: Final = int(OpFlags.WRITE | OpFlags.WRITEBACK)
"""Operations that must never be answered with a hole to write into."""
HOLE_IS_FINE: Final = int(OpFlags.ZERO | OpFlags.UNSHARE)
"""Operations that have nothing to do in a hole, whatever else they say."""
UNCACHED_OPS: Final = int(OpFlags.ATOMIC | OpFlags.SWAPFILE)
"""Operations that never look at the cache."""


class IoendFlags(IntFlag):
    """FUSE_IOMAP_IOEND_*."""

    SHARED = 1 << 0
    UNWRITTEN = 1 << 1
    BOUNDARY = 1 << 2
    DIRECT = 1 << 3
    APPEND = 1 << 4
    WRITEBACK = 1 << 5
    SWAPOFF = 1 << 6


class ConfigFlags(IntFlag):
    """FUSE_IOMAP_CONFIG_*: which fields of a CONFIG reply are meant."""

    SID = 1 << 0
    UUID = 1 << 1
    BLOCKSIZE = 1 << 2
    MAX_LINKS = 1 << 3
    TIME = 1 << 4
    MAXBYTES = 1 << 5
    CACHE_MAXBYTES = 1 << 6


class SupportFlags(IntFlag):
    """FUSE_IOMAP_SUPPORT_*."""

    FILEIO = 1 << 0
    ATOMIC = 1 << 1


class Mapping(NamedTuple):
    """One mapping: `length` bytes of a file from `offset` on are at `addr` of device `dev`.

    Only MAPPED and UNWRITTEN have a device; the others carry NULL_ADDR and DEV_NULL.
    """

    offset: int
    length: int
    addr: int
    type: int
    flags: int = 0
    dev: int = 0

    @property
    def end(self) -> int:
        """First byte of the file behind the mapping."""
        return self.offset + self.length


def has_device(map_type: int) -> bool:
    """Whether mappings of this type have an address on a device."""
    return MapType.MAPPED <= map_type <= MapType.UNWRITTEN


def hole(offset: int, length: int) -> Mapping:
    """A hole of `length` bytes at `offset`."""
    return Mapping(offset, length, NULL_ADDR, MapType.HOLE)


def placeholder(like: Mapping, map_type: MapType) -> Mapping:
    """PURE_OVERWRITE, NOCACHE or RETRY_CACHE over the range of `like`, in the form all versions accept."""
    return Mapping(like.offset, like.length, NULL_ADDR, map_type)


def nocache(block_size: int) -> Mapping:
    """The record that says "leave this fork alone" in an UPSERT, in the form that every version accepts."""
    return Mapping(0, block_size, NULL_ADDR, MapType.NOCACHE)


def covers(mapping: Mapping, pos: int) -> bool:
    """Whether byte `pos` of the file lies in the mapping."""
    return mapping.offset <= pos < mapping.offset + mapping.length


def clip(mapping: Mapping, start: int, end: int) -> Mapping | None:
    """The part of a mapping inside [start, end), its address moved along; None where they do not meet."""
    lo = max(mapping.offset, start)
    hi = min(mapping.offset + mapping.length, end)
    if lo >= hi:
        return None
    addr = mapping.addr if mapping.addr == NULL_ADDR else mapping.addr + lo - mapping.offset
    return mapping._replace(offset=lo, length=hi - lo, addr=addr)


def split(mapping: Mapping, at: int) -> tuple[Mapping, Mapping]:
    """Two mappings that meet at file offset `at`, which must lie strictly inside."""
    left, right = clip(mapping, 0, at), clip(mapping, at, mapping.end)
    assert left is not None and right is not None, "split point is not inside the mapping"
    return left, right


def mergeable(left: Mapping, right: Mapping) -> bool:
    """Whether two mappings are one run (IOMAP.md section 7): same kind, touching in file and on device."""
    offset, length, addr, kind, flags, dev = left
    if offset + length != right[0] or kind != right[3] or flags != right[4] or dev != right[5]:
        return False
    if MapType.MAPPED <= kind <= MapType.UNWRITTEN:
        if addr + length != right[2]:
            return False
    elif addr != NULL_ADDR or right[2] != NULL_ADDR:
        return False
    return length + right[1] <= MAX_MAPPING_LENGTH


def merge(mappings: Iterable[Mapping]) -> Iterator[Mapping]:
    """Join neighbours that are one run; the order is kept."""
    current: Mapping | None = None
    for mapping in mappings:
        if current is not None and mergeable(current, mapping):
            current = current._replace(length=current.length + mapping.length)
            continue
        if current is not None:
            yield current
        current = mapping
    if current is not None:
        yield current
