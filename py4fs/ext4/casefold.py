"""Names that differ in case only are one name: the kernel's folding (fs/unicode, Unicode 12.1, NFDI and casefold).

Decompositions, foldings and combining classes of a code point never change once it is assigned (Unicode's stability
policies), so any later version has them right; what version 12.1 does not know is in :mod:`py4fs.ext4.unicode_12_1`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

from py4fs.errors import Invalid, UnsupportedFeature
from py4fs.ext4.layout.superblock import EXT4_ENC_STRICT_MODE_FL, EXT4_ENC_UTF8_12_1
from py4fs.ext4.unicode_12_1 import ASSIGNED, IGNORABLE


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for word in text.split():
        first, _, last = word.partition("-")
        found.append((int(first, 16), int(last or first, 16)))
    return found


@cache
def _opaque() -> re.Pattern[str]:
    """What marks are not sorted across: code points that can be ignored, and those that nobody knows."""
    return re.compile(f"([{_class(IGNORABLE)}]+|[^{_class(ASSIGNED)}]+)")


@cache
def _ignorable() -> re.Pattern[str]:
    return re.compile(f"[{_class(IGNORABLE)}]+")


def _class(text: str) -> str:
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in _ranges(text))


@lru_cache(maxsize=65536)
def fold(name: bytes) -> bytes | None:
    """What a name is compared and hashed as; None when it is not UTF-8.

    Code points that are newer than Unicode 12.1 stay as they are, what can be ignored is left out, and combining marks
    are not sorted across either (kernel: utf8byte).
    """
    if name.isascii():
        return name.lower()
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    pieces = _opaque().split(text)
    pieces[::2] = map(_fold_piece, pieces[::2])
    pieces[1::2] = [_ignorable().sub("", piece) for piece in pieces[1::2]]
    return "".join(pieces).encode()


def _fold_piece(text: str) -> str:
    """Until nothing changes: the decomposition of an upper-case letter has one too."""
    while True:
        folded = unicodedata.normalize("NFD", text.casefold())
        if folded == text:
            return folded
        text = folded


@dataclass(frozen=True, slots=True)
class Encoding:
    """The superblock's encoding of names in directories with the casefold flag."""

    strict: bool

    @classmethod
    def of(cls, s_encoding: int, s_encoding_flags: int) -> Encoding:
        """Raises UnsupportedFeature for an encoding that is not known."""
        if s_encoding != EXT4_ENC_UTF8_12_1:
            text = f"superblock: unknown encoding s_encoding {s_encoding}, expected {EXT4_ENC_UTF8_12_1} (UTF-8 12.1)"
            raise UnsupportedFeature(["casefold"], text)
        return cls(bool(s_encoding_flags & EXT4_ENC_STRICT_MODE_FL))

    def check(self, name: bytes) -> None:
        """Raises Invalid for what strict mode does not allow as a name."""
        if self.strict:
            self.check_new(name)

    @staticmethod
    def check_new(name: bytes) -> None:
        """Raises Invalid for what is not UTF-8.

        Without strict mode the kernel makes such names, but hashes them by what its table takes some bytes for.
        """
        if fold(name) is None:
            raise Invalid(f"not a name in UTF-8: {name!r}")
