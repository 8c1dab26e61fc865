"""Block and inode bitmaps as `bitarray` (little endian: bit 0 is the lowest bit of byte 0; 1 is in use).

Pure functions; all searching is done in C (bitarray's or bytes' own search), never bit by bit, and each call
is bounded by the size of one group's bitmap. `start` and `limit` are bit numbers, `limit` exclusive.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from bitarray import bitarray
from bitarray.util import zeros

from py4fs.errors import Corrupt

_LONGEST_PATTERN: Final = 512
_BYTE_SEARCH: Final = 15  # a free run of this many bits holds at least one whole free byte
_CANDIDATES: Final = 256  # runs that one pass looks at before it settles for the longest


def from_bytes(raw: bytes | bytearray, nbits: int) -> bitarray:
    """The first `nbits` bits of a bitmap block; Corrupt when the block is too short."""
    bits = bitarray(endian="little")
    bits.frombytes(raw)
    if len(bits) < nbits:
        raise Corrupt("bitmap", "block", f"{len(bits)} bits", f"{nbits} bits")
    del bits[nbits:]
    return bits


def to_bytes(bits: bitarray, size: int) -> bytes:
    """The bitmap as a block of `size` bytes; what lies behind the last bit is set, as ext4 wants it."""
    tail = -len(bits) % 8
    if tail:
        bits = bits.copy()
        bits.extend([1] * tail)
    raw = bits.tobytes()
    assert len(raw) <= size, f"{len(raw)} bytes of bitmap in a block of {size}"
    return raw + b"\xff" * (size - len(raw))


def count_free(bits: bitarray, start: int = 0, limit: int | None = None) -> int:
    """Clear bits in [start, limit)."""
    return bits.count(0, start, len(bits) if limit is None else limit)


def is_free(bits: bitarray, start: int, count: int) -> bool:
    """Whether all of [start, start + count) is clear (and inside the bitmap)."""
    return 0 <= start <= start + count <= len(bits) and bits.find(1, start, start + count) < 0


def is_used(bits: bitarray, start: int, count: int) -> bool:
    """Whether all of [start, start + count) is set (and inside the bitmap)."""
    return 0 <= start <= start + count <= len(bits) and bits.find(0, start, start + count) < 0


def set_run(bits: bitarray, start: int, count: int) -> None:
    """Mark [start, start + count) as in use; all of it must be free."""
    assert is_free(bits, start, count), f"bits {start}+{count} are not all free"
    bits[start : start + count] = 1


def clear_run(bits: bitarray, start: int, count: int) -> None:
    """Mark [start, start + count) as free; all of it must be in use."""
    assert is_used(bits, start, count), f"bits {start}+{count} are not all in use"
    bits[start : start + count] = 0


def find_free(bits: bitarray, start: int = 0, limit: int | None = None) -> int:
    """The first clear bit in [start, limit), or -1."""
    return bits.find(0, start, len(bits) if limit is None else limit)


def run_at(bits: bitarray, start: int, limit: int) -> int:
    """How many bits from `start` on are free, up to `limit`."""
    end = bits.find(1, start, limit)
    return (limit if end < 0 else end) - start


def iter_runs(
    bits: bitarray, start: int = 0, limit: int | None = None, *, used: bool = False
) -> Iterator[tuple[int, int]]:
    """All (start, length) of free runs (or used ones) in [start, limit), ascending."""
    stop = len(bits) if limit is None else limit
    want, other = (1, 0) if used else (0, 1)
    while (first := bits.find(want, start, stop)) >= 0:
        start = bits.find(other, first, stop)
        if start < 0:
            start = stop
        yield first, start - first


@lru_cache(maxsize=64)
def _zeros(count: int) -> bitarray:
    return zeros(count, "little")


def _scan_bits(bits: bitarray, start: int, limit: int, least: int) -> Iterator[tuple[int, int]]:
    """Free runs of at least `least` bits: (start, length)."""
    pattern = _zeros(least)
    while (first := bits.find(pattern, start, limit)) >= 0:
        length = run_at(bits, first, limit)
        yield first, length
        start = first + length + 1


def _scan_bytes(raw: bytes, bits: bitarray, start: int, limit: int, least: int) -> Iterator[tuple[int, int]]:
    """As `_scan_bits`, for runs long enough to hold whole free bytes (some shorter ones come along)."""
    pattern = b"\0" * ((least - 7) // 8)
    at, end = (start + 7) // 8, limit // 8
    while (byte := raw.find(pattern, at, end)) >= 0:
        first = bits.find(1, start, byte * 8, right=True) + 1 if byte * 8 > start else start
        first = max(first, start)
        length = run_at(bits, first, limit)
        yield first, length
        start = first + length + 1
        at = start // 8


def find_free_run(bits: bitarray, start: int, limit: int, want: int) -> tuple[int, int] | None:
    """The first free run of at least `want` bits in [start, limit), else the longest that was found.

    Returns (start, length) of the whole run inside [start, limit) (it may be longer than `want`), or None
    when nothing is free. "Longest" is exact unless the bitmap is badly fragmented: the search looks at a
    bounded number of runs and is then never worse than half of the longest.
    """
    limit = min(limit, len(bits))
    first = bits.find(0, start, limit)
    if first < 0:
        return None
    start = first
    length = run_at(bits, start, limit)
    if length >= want:
        return start, length
    raw = b""
    least = min(want, _LONGEST_PATTERN)
    while least > 1:
        if least >= _BYTE_SEARCH:
            raw = raw or bits.tobytes()
            runs = _scan_bytes(raw, bits, start, limit, least)
        else:
            runs = _scan_bits(bits, start, limit, least)
        best: tuple[int, int] | None = None
        for count, run in enumerate(runs):
            if run[1] >= want:
                return run
            if best is None or run[1] > best[1]:
                best = run
            if count >= _CANDIDATES and best[1] >= least:
                break
        if best is not None and best[1] >= least:
            return best
        least //= 2
    return start, length
