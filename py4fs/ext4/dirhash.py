"""Hashes of directory names: legacy, half-MD4 and TEA, each signed and unsigned.

Source: ext4 docs, Hash Tree Directories.

The hash is taken on every lookup in an indexed directory, so the mixing functions are unrolled over
local variables and results are cached.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final

from py4fs.errors import Corrupt
from py4fs.ext4.layout.htree import (
    DX_HASH_HALF_MD4,
    DX_HASH_HALF_MD4_UNSIGNED,
    DX_HASH_LEGACY,
    DX_HASH_LEGACY_UNSIGNED,
    DX_HASH_TEA,
    DX_HASH_TEA_UNSIGNED,
)
from py4fs.ext4.layout.superblock import EXT2_FLAGS_UNSIGNED_HASH

if TYPE_CHECKING:
    from mypy_extensions import i64

_M: Final = 0xFFFFFFFF
_DEFAULT_SEED: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_K2: Final = 0x5A827999
_K3: Final = 0x6ED9EBA1
_DELTA: Final = 0x9E3779B9
_SIGN_BITS: Final = 0x808080
_8_WORDS = Struct(">8I").unpack
_4_WORDS = Struct(">4I").unpack
_SEED: Final = Struct("<4I")

HTREE_EOF_32BIT: Final = 0x7FFFFFFF
"""End of the tree; no name hashes to it (a major hash is twice a number below it)."""


def hash_seed(raw: bytes) -> tuple[int, int, int, int]:
    """The four words of the superblock's s_hash_seed."""
    a, b, c, d = _SEED.unpack(raw)
    return a, b, c, d


def resolve_version(version: int, s_flags: int) -> int:
    """The hash version to compute for one stored on disk: the superblock's flag makes 0..2 unsigned.

    Without either flag the bytes are signed, as on the machines where such file systems were made.
    """
    if version <= DX_HASH_TEA and s_flags & EXT2_FLAGS_UNSIGNED_HASH:
        return version + DX_HASH_LEGACY_UNSIGNED
    return version


@lru_cache(maxsize=16384)
def dirhash(name: bytes, version: int, seed: tuple[int, int, int, int]) -> tuple[int, int]:
    """(major, minor) hash of a name; bit 0 of the major one is clear (it marks collisions in the index).

    `version` 0..2 are legacy, half-MD4 and TEA over signed bytes, 3..5 the same over unsigned ones; a `seed`
    of four zeros is the default one. Corrupt for a version that is none of these.
    """
    if not any(seed):
        seed = _DEFAULT_SEED
    if version in (DX_HASH_HALF_MD4, DX_HASH_HALF_MD4_UNSIGNED):
        major, minor = _half_md4(name, version == DX_HASH_HALF_MD4 and not name.isascii(), seed)
    elif version in (DX_HASH_TEA, DX_HASH_TEA_UNSIGNED):
        major, minor = _tea(name, version == DX_HASH_TEA and not name.isascii(), seed)
    elif version in (DX_HASH_LEGACY, DX_HASH_LEGACY_UNSIGNED):
        major, minor = _legacy(name, version == DX_HASH_LEGACY and not name.isascii()), 0
    else:
        raise Corrupt("htree hash_version", "", version, "0 to 5")
    major &= ~1
    if major == HTREE_EOF_32BIT << 1:
        major = (HTREE_EOF_32BIT - 1) << 1
    return major, minor


def _legacy(name: bytes, signed: bool) -> int:
    hash0, hash1 = 0x12A3FE2D, 0x37ABE8F9
    for c in name:
        if signed and c & 0x80:
            c -= 256
        value = (hash1 + (hash0 ^ ((c * 7152373) & _M))) & _M
        if value & 0x80000000:
            value -= 0x7FFFFFFF
        hash1 = hash0
        hash0 = value
    return (hash0 << 1) & _M


def _chunk(name: bytes, size: int) -> bytes:
    """The last, short piece of a name as `size` bytes, filled up with its length.

    In a word that is partly name the filling comes first.
    """
    length = len(name)
    fill = bytes((length,))
    part = length & 3
    if part:
        name = name[: length - part] + fill * (4 - part) + name[length - part :]
    return name + fill * (size - len(name))


def _sign(words: tuple[int, ...]) -> tuple[int, ...]:
    """Big-endian words of unsigned bytes as sums of signed ones: a byte above 127 borrows from the next."""
    return tuple([(w - ((w & _SIGN_BITS) << 1)) & _M for w in words])


def _half_md4(  # noqa: PLR0915 - unrolled on purpose
    name: bytes, signed: bool, seed: tuple[int, int, int, int]
) -> tuple[int, int]:
    # Bits above 31 are garbage everywhere but in t, which is shifted right, and in the results.
    # (as machine words they have room for it: 52 bits, where this is compiled)
    sa: i64
    sb: i64
    sc: i64
    sd: i64
    a: i64
    b: i64
    c: i64
    d: i64
    t: i64
    sa, sb, sc, sd = seed
    at = 0
    length = len(name)
    while at < length:
        if length - at >= 32:
            words = _8_WORDS(name[at : at + 32])
        else:
            words = _8_WORDS(_chunk(name[at:] if at else name, 32))
        at += 32
        if signed:
            words = _sign(words)
        w0: i64
        w1: i64
        w2: i64
        w3: i64
        w4: i64
        w5: i64
        w6: i64
        w7: i64
        w0, w1, w2, w3, w4, w5, w6, w7 = words
        a, b, c, d = sa, sb, sc, sd

        t = (a + (d ^ (b & (c ^ d))) + w0) & _M
        a = t << 3 | t >> 29
        t = (d + (c ^ (a & (b ^ c))) + w1) & _M
        d = t << 7 | t >> 25
        t = (c + (b ^ (d & (a ^ b))) + w2) & _M
        c = t << 11 | t >> 21
        t = (b + (a ^ (c & (d ^ a))) + w3) & _M
        b = t << 19 | t >> 13
        t = (a + (d ^ (b & (c ^ d))) + w4) & _M
        a = t << 3 | t >> 29
        t = (d + (c ^ (a & (b ^ c))) + w5) & _M
        d = t << 7 | t >> 25
        t = (c + (b ^ (d & (a ^ b))) + w6) & _M
        c = t << 11 | t >> 21
        t = (b + (a ^ (c & (d ^ a))) + w7) & _M
        b = t << 19 | t >> 13

        t = (a + (b & c) + ((b ^ c) & d) + w1 + _K2) & _M
        a = t << 3 | t >> 29
        t = (d + (a & b) + ((a ^ b) & c) + w3 + _K2) & _M
        d = t << 5 | t >> 27
        t = (c + (d & a) + ((d ^ a) & b) + w5 + _K2) & _M
        c = t << 9 | t >> 23
        t = (b + (c & d) + ((c ^ d) & a) + w7 + _K2) & _M
        b = t << 13 | t >> 19
        t = (a + (b & c) + ((b ^ c) & d) + w0 + _K2) & _M
        a = t << 3 | t >> 29
        t = (d + (a & b) + ((a ^ b) & c) + w2 + _K2) & _M
        d = t << 5 | t >> 27
        t = (c + (d & a) + ((d ^ a) & b) + w4 + _K2) & _M
        c = t << 9 | t >> 23
        t = (b + (c & d) + ((c ^ d) & a) + w6 + _K2) & _M
        b = t << 13 | t >> 19

        t = (a + (b ^ c ^ d) + w3 + _K3) & _M
        a = t << 3 | t >> 29
        t = (d + (a ^ b ^ c) + w7 + _K3) & _M
        d = t << 9 | t >> 23
        t = (c + (d ^ a ^ b) + w2 + _K3) & _M
        c = t << 11 | t >> 21
        t = (b + (c ^ d ^ a) + w6 + _K3) & _M
        b = t << 15 | t >> 17
        t = (a + (b ^ c ^ d) + w1 + _K3) & _M
        a = t << 3 | t >> 29
        t = (d + (a ^ b ^ c) + w5 + _K3) & _M
        d = t << 9 | t >> 23
        t = (c + (d ^ a ^ b) + w0 + _K3) & _M
        c = t << 11 | t >> 21
        t = (b + (c ^ d ^ a) + w4 + _K3) & _M
        b = t << 15 | t >> 17

        sa = (sa + a) & _M
        sb = (sb + b) & _M
        sc = (sc + c) & _M
        sd = (sd + d) & _M
    return sb, sc


def _tea(name: bytes, signed: bool, seed: tuple[int, int, int, int]) -> tuple[int, int]:
    s0, s1 = seed[0], seed[1]
    for at in range(0, len(name), 16):
        piece = name[at : at + 16]
        words = _4_WORDS(piece if len(piece) == 16 else _chunk(piece, 16))
        if signed:
            words = _sign(words)
        a, b, c, d = words
        b0, b1 = s0, s1
        total = 0
        for _ in range(16):
            total += _DELTA
            b0 = (b0 + (((b1 << 4) + a) ^ (b1 + total) ^ ((b1 >> 5) + b))) & _M
            b1 = (b1 + (((b0 << 4) + c) ^ (b0 + total) ^ ((b0 >> 5) + d))) & _M
        s0 = (s0 + b0) & _M
        s1 = (s1 + b1) & _M
    return s0, s1
