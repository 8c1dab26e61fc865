"""What is mounted where: /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

FSTYPES = ("fuse.py4fs", "fuseblk.py4fs")

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo, the parts that matter here."""

    device: str  # "major:minor", the st_dev of everything in it
    root: str  # what part of the file system: "/" unless it is a bind mount
    mountpoint: str
    fstype: str
    source: str  # for py4fs the image's absolute path
    options: tuple[str, ...]  # of the superblock
    mount_options: tuple[str, ...] = ()  # of this mount of it

    @property
    def is_py4fs(self) -> bool:
        return self.fstype in FSTYPES

    @property
    def uid(self) -> int:
        """User who mounted it, 0 when it does not say."""
        for option in self.options:
            if option.startswith("user_id="):
                return int(option.removeprefix("user_id="))
        return 0


def _decode(field: bytes) -> str:
    """Spaces, tabs, newlines and backslashes are written as octal escapes."""
    return os.fsdecode(_ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), field))


def parse(text: bytes) -> list[Mount]:
    """All mounts in the order of mounting; lines this parser does not understand are left out."""
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(b" - ")
        head, tail = before.split(b" "), after.split(b" ")
        if not separator or len(head) < 6 or len(tail) < 3:
            continue
        options = tuple(_decode(tail[2]).split(","))
        found.append(
            Mount(
                head[2].decode(),
                _decode(head[3]),
                _decode(head[4]),
                _decode(tail[0]),
                _decode(tail[1]),
                options,
                tuple(_decode(head[5]).split(",")),
            )
        )
    return found


def mounts() -> list[Mount]:
    """What is mounted now, as this process sees it."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def at(directory: str) -> Mount | None:
    """The topmost mount at this absolute, resolved path."""
    return next((m for m in reversed(mounts()) if m.mountpoint == directory), None)


def of_image(image: str) -> list[Mount]:
    """The py4fs mounts of this image (absolute, resolved path)."""
    return [m for m in mounts() if m.is_py4fs and m.source == image]
