"""The mapping cache of one inode: two forks and a validity sequence (IOMAP.md section 7).

The semantics are those of the kernel patch, whole-record lookup included.  One deliberate difference: *every*
change bumps the sequence, dropping a whole fork too (there the kernel hands out mappings that outlive an
"invalidate all").

A fork is a list of chunks of up to 2048 records in file order: an array of offsets to search and a buffer of
the records themselves in wire format (40 bytes a record, two binary searches in C and one unpacking per
lookup).  The containers that this was compared with are in `bench/iomap_cache.py`.  The shape of the kernel's
tree is not part of the semantics.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

from py4fs.errors import Corrupt
from py4fs.iomap.records import (
    INVAL_TO_EOF,
    MAX_MAPPING_LENGTH,
    NULL_ADDR,
    SERVER_MAP_FLAGS,
    U64_MAX,
    Mapping,
    MapType,
    has_device,
    mergeable,
)
from py4fs.iomap.validate import validate_upsert

RECORD_BYTES: Final = 32
"""What one record counts against the size limit."""
CACHE_MAXBYTES_DEFAULT: Final = 262144
CACHE_MAXBYTES_MIN: Final = 256
CACHE_MAXBYTES_MAX: Final = 2 << 20
CHUNK: Final = 2048
"""Records per chunk at most; halves of it result from splits."""

# fuse_iomap_io, the record of the protocol; its codec is pinned against this one by a test
_RECORD: Final = struct.Struct("<QQQHHI")
_SIZE: Final = _RECORD.size
_pack: Final = _RECORD.pack
_pack_into: Final = _RECORD.pack_into
_unpack: Final = _RECORD.unpack_from
_tuple_new: Final = tuple.__new__
# plain numbers: comparing with a member of an enum costs a call
_MAPPED: Final = int(MapType.MAPPED)
_UNWRITTEN: Final = int(MapType.UNWRITTEN)
_HOLE: Final = int(MapType.HOLE)
_U32_MAX: Final = (1 << 32) - 1


class LookupResult(IntEnum):
    """What a lookup found."""

    HIT = 0
    MISS = 1
    NOFORK = 2
    """The write fork was never used: all writes are pure overwrites of what the read fork says."""


class Lookup:
    """Answer of `IomapCache.lookup`: the whole record on a hit, and the sequence at the time of looking."""

    __slots__ = ("cookie", "mapping", "result")

    def __init__(self, result: LookupResult, mapping: Mapping | None, cookie: int) -> None:
        self.result = result
        self.mapping = mapping
        self.cookie = cookie


HIT: Final = LookupResult.HIT
MISS: Final = LookupResult.MISS
NOFORK: Final = LookupResult.NOFORK


class _Fork:
    """Sorted, disjoint records.  Chunk c: `offsets[c]`, `records[c]`, first offset `starts[c]`; not empty."""

    __slots__ = ("active", "count", "hi", "hit", "lo", "offsets", "records", "starts", "tail")

    def __init__(self, active: bool) -> None:
        self.active = active
        self.starts: list[int] = []
        self.offsets: list[array[int]] = []
        self.records: list[bytearray] = []
        self.count = 0
        # the last hit and its range [lo, hi), good until the sequence moves; hi is 0 when there is none
        self.lo = self.hi = 0
        self.hit: Lookup | None = None
        # the last record, if it came by `append`
        self.tail: Mapping | None = None

    def drop(self) -> None:
        self.starts.clear()
        self.offsets.clear()
        self.records.clear()
        self.count = 0
        self.tail = None

    def get(self, c: int, i: int) -> Mapping:
        return _tuple_new(Mapping, _unpack(self.records[c], i * _SIZE))

    def all(self) -> Iterator[Mapping]:
        for chunk in self.records:
            for fields in _RECORD.iter_unpack(chunk):
                yield _tuple_new(Mapping, fields)

    def find(self, offset: int) -> tuple[int, int]:
        """Where the last record that starts at or before `offset` is; (0, -1) if there is none."""
        c = bisect_right(self.starts, offset) - 1
        if c < 0:
            return 0, -1
        return c, bisect_right(self.offsets[c], offset) - 1

    def put(self, c: int, i: int, mapping: Mapping) -> None:
        """Change the record at (c, i)."""
        self.tail = None
        _pack_into(self.records[c], i * _SIZE, *mapping)
        self.offsets[c][i] = mapping[0]
        if i == 0:
            self.starts[c] = mapping[0]

    def insert(self, c: int, i: int, mapping: Mapping) -> None:
        """Put a new record at index `i` of chunk `c` (which exists, unless the fork is empty)."""
        self.count += 1
        self.tail = None
        raw = _pack(*mapping)
        if not self.starts:
            self.starts.append(mapping[0])
            self.offsets.append(array("Q", (mapping[0],)))
            self.records.append(bytearray(raw))
            return
        if len(self.offsets[c]) >= CHUNK:
            # appending leaves full chunks behind, anything else halves
            at = CHUNK if i == CHUNK and c == len(self.starts) - 1 else CHUNK // 2
            offsets, records = self.offsets[c], self.records[c]
            self.offsets.insert(c + 1, offsets[at:])
            self.records.insert(c + 1, records[at * _SIZE :])
            self.starts.insert(c + 1, offsets[at] if at < CHUNK else mapping[0])
            del offsets[at:]
            del records[at * _SIZE :]
            if i >= at:
                c, i = c + 1, i - at
        self.offsets[c].insert(i, mapping[0])
        self.records[c][i * _SIZE : i * _SIZE] = raw
        if i == 0:
            self.starts[c] = mapping[0]

    def append(self, mapping: Mapping) -> None:
        """Put a new record behind all others of a fork that is not empty."""
        offsets = self.offsets[-1]
        if len(offsets) < CHUNK:
            self.count += 1
            offsets.append(mapping[0])
            self.records[-1] += _pack(*mapping)
        else:
            self.insert(len(self.starts) - 1, len(offsets), mapping)
        self.tail = mapping

    def delete(self, c: int, i: int, d: int, j: int) -> int:
        """Delete the records from (c, i) up to but without (d, j); returns how many."""
        before = self.count
        self.tail = None
        if c == d:
            self._cut(c, i, j)
        else:
            self._cut(d, 0, j)
            self.count -= sum(map(len, self.offsets[c + 1 : d]))
            self._cut(c, i, len(self.offsets[c]))
            # only now may chunks vanish: from the right, so that the indexes stay good
            self._tidy(d)
            del self.starts[c + 1 : d], self.offsets[c + 1 : d], self.records[c + 1 : d]
        self._tidy(c)
        return before - self.count

    def _cut(self, c: int, i: int, j: int) -> None:
        self.count -= j - i
        del self.offsets[c][i:j]
        del self.records[c][i * _SIZE : j * _SIZE]

    def _tidy(self, c: int) -> None:
        """Keep chunk `c` well filled and its start right after deletions."""
        size = len(self.offsets[c])
        if size and size < CHUNK // 8 and c + 1 < len(self.starts):
            following = len(self.offsets[c + 1])
            if size + following <= CHUNK // 2:
                self.offsets[c].extend(self.offsets[c + 1])
                self.records[c] += self.records[c + 1]
                del self.starts[c + 1], self.offsets[c + 1], self.records[c + 1]
        if size:
            self.starts[c] = self.offsets[c][0]
        else:
            del self.starts[c], self.offsets[c], self.records[c]


class IomapCache:
    """The mappings of one inode that are known.  Offsets, lengths and limits in bytes."""

    __slots__ = ("_forks", "_limit", "_mask", "blocksize", "cache_maxbytes", "max_file_bytes", "seq")

    def __init__(self, blocksize: int, max_file_bytes: int, cache_maxbytes: int | None = None) -> None:
        """`cache_maxbytes` limits each fork (32 bytes a record; clamped as the kernel does; 0 = its default).

        None: no limit.
        """
        assert blocksize >= 512 and blocksize & (blocksize - 1) == 0, "block size must be a power of two"
        self.blocksize = blocksize
        self._mask = blocksize - 1
        self.max_file_bytes = max_file_bytes
        if cache_maxbytes == 0:
            cache_maxbytes = CACHE_MAXBYTES_DEFAULT
        if cache_maxbytes is not None:
            cache_maxbytes = min(max(cache_maxbytes, CACHE_MAXBYTES_MIN), CACHE_MAXBYTES_MAX)
        self.cache_maxbytes = cache_maxbytes
        self._limit = U64_MAX if cache_maxbytes is None else cache_maxbytes
        self.seq = 1
        """Validity sequence: a mapping is good while this equals the cookie it was handed out with."""
        self._forks = (_Fork(True), _Fork(False))

    def __len__(self) -> int:
        """Records in both forks."""
        return self._forks[0].count + self._forks[1].count

    @property
    def nbytes(self) -> int:
        """What the records count against a memory budget, in bytes."""
        return (self._forks[0].count + self._forks[1].count) * RECORD_BYTES

    # `fork` is an IoDir everywhere; plain numbers are quicker on the path of every request

    def mappings(self, fork: int) -> list[Mapping] | None:
        """All records of a fork in file order; None while the fork was never used."""
        f = self._forks[fork]
        return list(f.all()) if f.active else None

    def lookup(self, fork: int, offset: int, length: int = 1) -> Lookup:
        """The whole record that contains byte `offset` (`length` is not looked at, as in the kernel)."""
        f = self._forks[fork]
        if f.lo <= offset < f.hi:
            assert f.hit is not None
            return f.hit
        c = bisect_right(f.starts, offset) - 1
        if c >= 0:
            i = bisect_right(f.offsets[c], offset) - 1
            mapping = _tuple_new(Mapping, _unpack(f.records[c], i * _SIZE))
            end = mapping[0] + mapping[1]
            if offset < end:
                f.lo = mapping[0]
                f.hi = end
                f.hit = hit = Lookup(HIT, mapping, self.seq)
                return hit
        return Lookup(MISS if f.active else NOFORK, None, self.seq)

    def upsert(self, fork: int, mapping: Mapping) -> None:
        """Make the cache say `mapping` for its range.  Raises Corrupt (EUCLEAN) on what the kernel refuses.

        NOCACHE leaves the fork alone; PURE_OVERWRITE does too while the write fork was never used, any other
        write mapping activates that fork for good.
        """
        offset, length, addr, kind, flags, dev = mapping
        if not (
            (_MAPPED <= kind <= _UNWRITTEN and 0 < dev <= _U32_MAX and 0 <= addr <= U64_MAX - length)
            or (kind == _HOLE and addr == NULL_ADDR and not dev)
        ) or not (
            0 <= offset < self.max_file_bytes
            and 0 < length <= U64_MAX - offset
            and not (offset | length) & self._mask
            and not flags & ~SERVER_MAP_FLAGS
        ):
            # anything but the common case goes through the full list of rules
            validate_upsert(mapping, fork, block_size=self.blocksize, max_file_bytes=self.max_file_bytes)
            if kind == MapType.NOCACHE:
                return
        f = self._forks[fork]
        if not f.active:
            if kind == MapType.PURE_OVERWRITE:
                return
            f.active = True
        bumps = 0
        if f.count:
            last = f.tail or _tuple_new(Mapping, _unpack(f.records[-1], len(f.records[-1]) - _SIZE))
            gap = offset - last[0] - last[1]
            if gap < 0:
                bumps = self._remove(f, offset, length)
            if f.count * RECORD_BYTES > self._limit:
                f.drop()
                bumps += 1
            elif gap > 0 or (gap == 0 and not mergeable(last, mapping)):
                # in file order, as windows come
                f.append(mapping)
                self._bump(1)
                return
        self._bump(bumps + self._add(f, mapping))

    def upsert_all(self, fork: int, mappings: Iterable[Mapping]) -> int:
        """Upsert many mappings; returns how many there were.  Raises as `upsert`; what came before stays."""
        count = 0
        for mapping in mappings:
            self.upsert(fork, mapping)
            count += 1
        return count

    def remove(self, fork: int, offset: int, length: int) -> None:
        """Forget [offset, offset+length) of a fork; length 2^64-1 means to the end of the largest file.

        Raises Corrupt (EUCLEAN) when the range is not made of blocks.
        """
        self._check_range(offset, length)
        self._bump(self._remove(self._forks[fork], offset, length))

    def invalidate(self, offset: int, length: int) -> None:
        """Forget the blocks that [offset, offset+length) touches, in both forks."""
        if length == 0:
            return
        if length != INVAL_TO_EOF:
            head = offset % self.blocksize
            length = -(-(length + head) // self.blocksize) * self.blocksize
        offset -= offset % self.blocksize
        self._check_range(offset, length)
        read, write = self._forks
        self._bump(self._remove(read, offset, length) + self._remove(write, offset, length))

    def clear(self) -> None:
        """Drop all records (memory is wanted elsewhere).  A used write fork stays used."""
        for f in self._forks:
            self._bump(1 if f.count else 0)
            f.drop()

    def touch(self) -> None:
        """Bump the sequence: what was handed out is no longer good although no record changed."""
        self._bump(1)

    # -- internals ---------------------------------------------------------------------------------------

    def _check_range(self, offset: int, length: int) -> None:
        if length == INVAL_TO_EOF:
            length = 0
        if offset < 0 or length < 0 or (offset | length) & self._mask:
            raise Corrupt("iomap range", f"at {offset}", f"length {length}", f"blocks of {self.blocksize}")

    def _bump(self, count: int) -> None:
        if count:
            seq = self.seq + count
            # 0 means "always valid" in the protocol, so the sequence never is 0
            self.seq = seq if seq <= U64_MAX else seq - U64_MAX
            read, write = self._forks
            read.hi = write.hi = 0

    def _remove(self, f: _Fork, offset: int, length: int) -> int:
        """Remove a range; returns the number of changes (one per record deleted, changed or made)."""
        if not f.count or not length:
            return 0
        if offset == 0 and length >= self.max_file_bytes:
            f.drop()
            return 1
        if length == INVAL_TO_EOF:
            end = max(offset, -(-self.max_file_bytes // self.blocksize) * self.blocksize)
        else:
            end = offset + length
        c, i = f.find(offset)
        bumps = 0
        # where all records start behind the offset, the first one is looked at in vain
        i = max(i, 0)
        record = f.get(c, i)
        if record.offset < offset < record.end:
            f.put(c, i, record._replace(length=offset - record.offset))
            bumps += 1
            if record.end > end:
                f.insert(c, i + 1, _tail(record, end))
                return bumps + 1
        if record.offset < offset:
            i += 1
        # (c, i) is the first record that starts in or behind the range, (d, j) will be the first behind it
        d, j = f.find(end - 1)
        j += 1
        if d < c or (d == c and j <= i):
            return bumps
        record = f.get(d, j - 1)
        if record.end > end:
            j -= 1
            f.put(d, j, _tail(record, end))
            bumps += 1
        if d > c or j > i:
            bumps += f.delete(c, i, d, j)
        return bumps

    def _add(self, f: _Fork, mapping: Mapping) -> int:
        """Insert a record into a gap, merged with its neighbours; returns the number of changes."""
        c, i = f.find(mapping[0])
        length = mapping[1]
        left = right = None
        if i >= 0:
            before = f.get(c, i)
            if before.end > mapping[0]:
                raise Corrupt("iomap cache", f"offset {mapping[0]}", "a record", "a gap")
            if mergeable(before, mapping):
                left = before
        # the next record: (c, i + 1), or the first one of the next chunk
        n, k = (c, i + 1) if c < len(f.starts) and i + 1 < len(f.offsets[c]) else (c + 1, 0)
        if n < len(f.starts):
            after = f.get(n, k)
            if after.offset < mapping[0] + length:
                raise Corrupt("iomap cache", f"offset {mapping[0]}", "a record", "a gap")
            if mergeable(mapping, after):
                right = after
        if left and right and left.length + length + right.length <= MAX_MAPPING_LENGTH:
            f.put(c, i, left._replace(length=left.length + length + right.length))
            f.delete(n, k, n, k + 1)
            return 2
        if left:
            f.put(c, i, left._replace(length=left.length + length))
        elif right:
            f.put(n, k, mapping._replace(length=length + right.length))
        else:
            f.insert(c, i + 1, mapping)
        return 1


def _tail(record: Mapping, at: int) -> Mapping:
    """What is left of a record from `at` on."""
    addr = record.addr + at - record.offset if has_device(record.type) else record.addr
    return record._replace(offset=at, length=record.end - at, addr=addr)
