"""CRC-32 of runs of equal bytes without looking at each: the checksum is linear over GF(2)."""

from __future__ import annotations

import binascii
from functools import cache

_POLY = 0xEDB88320

Matrix = list[int]


def _times(matrix: Matrix, vector: int) -> int:
    result = 0
    for row in matrix:
        if vector & 1:
            result ^= row
        vector >>= 1
    return result


def _square(matrix: Matrix) -> Matrix:
    return [_times(matrix, row) for row in matrix]


@cache
def _powers() -> list[Matrix]:
    """What 1, 2, 4, … zero bytes do to a checksum."""
    matrix: Matrix = [_POLY, *(1 << bit for bit in range(31))]
    for _ in range(3):  # one bit to one byte
        matrix = _square(matrix)
    powers = [matrix]
    for _ in range(63):
        powers.append(_square(powers[-1]))
    return powers


def combine(first: int, second: int, length: int) -> int:
    """The checksum of two strings one behind the other; `length` is the second's in bytes."""
    for power in _powers():
        if not length:
            break
        if length & 1:
            first = _times(power, first)
        length >>= 1
    return first ^ second


def repeated(pattern: bytes, count: int) -> int:
    """The checksum of `count` times `pattern`."""
    result, piece, length = 0, binascii.crc32(pattern), len(pattern)
    while count:
        if count & 1:
            result = combine(result, piece, length)
        piece = combine(piece, piece, length)
        length *= 2
        count >>= 1
    return result
