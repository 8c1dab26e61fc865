"""What stands behind the `=` of a mount option: text in, a value out, ValueError with the reason otherwise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from py4fs.cli.common import size

_MOST_CACHE = 2 << 30
_ID_LIMIT = (1 << 32) - 2


def number(least: int, most: int) -> Callable[[str], int]:
    """A decimal number in a range."""

    def convert(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or not least <= int(text) <= most:
            raise ValueError(f"must be a number from {least} to {most}")
        return int(text)

    return convert


#: a user or group id; -1 is none
ident = number(0, _ID_LIMIT)


#: which partition of a disk image
partition = number(1, 1024)


def iomap(text: str) -> str:
    """iomap=: also the words of fuse4fs."""
    return one_of("auto", "off", "require")({"default": "auto", "0": "off", "1": "require"}.get(text, text))


def seconds(text: str) -> float:
    """commit=: seconds; 0 means the default, as in ext4(5)."""
    return float(_seconds(text) or 5)


def seconds_or_never(text: str) -> float:
    """flush_interval=: seconds; 0 means never."""
    return float(_seconds(text) or math.inf)


def _seconds(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 3600:
        raise ValueError("must be a number of seconds, from 0 to 3600")
    return value


def read_size(text: str) -> int:
    value = size(text)
    if not 4096 <= value <= 1 << 20:
        raise ValueError("must be from 4096 to 1048576")
    return value


def cache_size(text: str) -> int:
    value = size(text)
    if not 1024 <= value <= _MOST_CACHE:
        raise ValueError(f"must be from 1024 to {_MOST_CACHE} bytes")
    return value


def kibibytes(text: str) -> int:
    """A number of KiB as bytes."""
    return number(0, 1 << 40)(text) << 10


def backup(text: str) -> int | None:
    """sb=: the block of a superblock's copy in units of 1 KiB, as bytes; 1 is the first superblock itself."""
    block = number(1, 1 << 50)(text)
    return None if block == 1 else block << 10


def device_number(text: str) -> str:
    """journal_dev=: the number of a block device (as stat(1) prints it, or 0x...), as a path."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 32:
        raise ValueError("must be the number of a block device")
    # as new_decode_dev of the kernel
    return f"/dev/block/{(value & 0xFFF00) >> 8}:{(value & 0xFF) | (value >> 12 & 0xFFF00)}"


def one_of(*allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return check


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def nonempty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def absolute(text: str) -> str:
    """A path, which the process that serves will look up from another working directory."""
    return os.path.abspath(nonempty(text))  # noqa: PTH100  (Path.resolve would follow a symbolic link)


def anything(text: str) -> str:
    return text
