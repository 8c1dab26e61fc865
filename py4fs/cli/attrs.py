"""How `ls` and `stat` show attributes."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from py4fs.vfs import Attr

TYPES = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

# letters of chattr(1), lowest bit first
_FLAG_LETTERS = {
    0x1: "s", 0x2: "u", 0x4: "c", 0x8: "S", 0x10: "i", 0x20: "a", 0x40: "d", 0x80: "A", 0x800: "E", 0x1000: "I",
    0x4000: "j", 0x8000: "t", 0x10000: "D", 0x20000: "T", 0x80000: "e", 0x100000: "V", 0x2000000: "x",
    0x10000000: "N", 0x20000000: "P", 0x40000000: "F",
}  # fmt: skip


def type_name(mode: int) -> str:
    return TYPES.get(stat.S_IFMT(mode), f"unknown type {stat.S_IFMT(mode):#o}")


def is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def device_numbers(attr: Attr) -> str:
    return f"{os.major(attr.rdev)}, {os.minor(attr.rdev)}"


def flag_letters(flags: int) -> str:
    return "".join(letter for bit, letter in _FLAG_LETTERS.items() if flags & bit) or "-"


def time_text(ns: int | None, *, fraction: bool = False) -> str:
    """A time in UTC; years that datetime cannot hold as a number of seconds."""
    if ns is None:
        return "-"
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        text = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        text = f"@{seconds}"
    return f"{text}.{rest:09d}" if fraction else text


def as_dict(attr: Attr) -> dict[str, Any]:
    """For --json: the numbers as they are (times in ns), mode in octal and the type in words besides."""
    return {**attr.as_dict(), "mode": f"{stat.S_IMODE(attr.mode):04o}", "type": type_name(attr.mode)}
