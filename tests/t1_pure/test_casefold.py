"""Case folding: every code point as libext2fs (the kernel's table) folds it, and random strings."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import random
from collections.abc import Callable
from functools import cache

import pytest

from py4fs.errors import Invalid, UnsupportedFeature
from py4fs.ext4.casefold import Encoding, fold


class Operations(ctypes.Structure):
    """The beginning of struct nls_ops of e2fsprogs' lib/ext2fs."""

    _fields_ = (("casefold", ctypes.c_void_p),)


class Table(ctypes.Structure):
    _fields_ = (("version", ctypes.c_int), ("ops", ctypes.POINTER(Operations)))


CASEFOLD = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
)


@cache
def oracle() -> Callable[[bytes], bytes | None]:
    library = ctypes.util.find_library("ext2fs")
    if library is None:
        pytest.skip("needs the library libext2fs")
    load = ctypes.CDLL(library).ext2fs_load_nls_table
    load.restype, load.argtypes = ctypes.POINTER(Table), (ctypes.c_int,)
    table = load(1)
    casefold = CASEFOLD(table.contents.ops.contents.casefold)
    room = ctypes.create_string_buffer(4096)

    def folded(name: bytes) -> bytes | None:
        length = casefold(ctypes.cast(table, ctypes.c_void_p), name, len(name), room, len(room))
        return None if length < 0 else room.raw[:length]

    return folded


def test_every_code_point() -> None:
    theirs = oracle()
    wrong = []
    for code in range(1, 0x110000):
        name = chr(code).encode("utf-8", "surrogatepass")
        if fold.__wrapped__(name) != theirs(name):
            wrong.append(f"{code:04X}: {fold(name)!r}, expected {theirs(name)!r}")
    assert not wrong, "\n".join(wrong[:20])


INTERESTING = (
    "aAzZ09\u00c0\u00df\u0130\u0131\u0307\u0301\u0316\u0345\u0308\u034f\u00ad\u200d\u1e9e\u212b\u1fb3\u1f88\uac00\uac01"
    "\u1100\u1161\u11a8\ufb03\u0958\u0f73\u0390\u03c2\u03a3\u13a0\uab70\u2126\U0001e900\U00010400\U0001d15e\u32ff\u31bb"
)


@pytest.mark.parametrize("number", range(20))
def test_random_strings(number: int, rng: random.Random) -> None:
    """Marks of all classes, things to be ignored between them, newer code points.

    Of bytes that are not UTF-8 nothing can be said: the kernel takes some of them for other code points.
    """
    theirs = oracle()
    for _ in range(2000):
        name = "".join(rng.choices(INTERESTING, k=rng.randrange(1, 12))).encode()
        if not rng.randrange(5):
            place = rng.randrange(len(name))
            name = name[:place] + bytes([rng.randrange(128, 256)]) + name[place + rng.randrange(2) :]
            with contextlib.suppress(UnicodeDecodeError):
                name.decode()
                continue
            assert fold(name) is None
        else:
            assert fold(name) == theirs(name), name


def test_both_sides_of_the_boundary() -> None:
    """What Unicode 12.1 does not know stays as it is, the rest of the name is folded; strict mode takes it too."""
    known, upper, lower = "\u32ff", "\u2c2f", "\u2c5f"  # 12.1: the era Reiwa; 14.0: a letter in both cases
    assert fold(f"A{known}".encode()) == f"a{known}".encode()
    assert fold(f"A{upper}".encode()) == f"a{upper}".encode() != f"a{lower}".encode()
    Encoding(True).check(upper.encode())


def test_strict_mode_is_that_of_libext2fs() -> None:
    """Which takes code points that are newer than 12.1, and such that nobody has assigned yet."""
    oracle()
    library = ctypes.CDLL(ctypes.util.find_library("ext2fs"))
    load, check = library.ext2fs_load_nls_table, library.ext2fs_check_encoded_name
    load.restype, load.argtypes = ctypes.c_void_p, (ctypes.c_int,)
    check.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_char_p))
    table, place = load(1), ctypes.c_char_p()
    codes = [*range(1, 0xD800, 37), 0x32FF, 0x2C2F, 0x0378, *range(0xE000, 0x110000, 997), 0x1FAE0]
    for name in [*(f"A{chr(code)}".encode() for code in codes), b"a\xff", b"\xc3"]:
        valid = not check(table, name, len(name), ctypes.byref(place))
        if valid:
            Encoding(True).check(name)
        else:
            with pytest.raises(Invalid):
                Encoding(True).check(name)


def test_strict_mode_takes_utf8_only() -> None:
    for name in (b"\xff", b"a\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        with pytest.raises(Invalid):
            Encoding(True).check(name)
        Encoding(False).check(name)
        with pytest.raises(Invalid):
            Encoding(False).check_new(name)


def test_encodings() -> None:
    assert Encoding.of(1, 0) == Encoding(False) and Encoding.of(1, 1) == Encoding(True)
    with pytest.raises(UnsupportedFeature, match="s_encoding 2"):
        Encoding.of(2, 0)
