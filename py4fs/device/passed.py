"""Images that somebody else has opened and handed over: `/dev/fd/N`.

A contained server cannot open the image itself, so the descriptor is used as it is. Its lock (flock(2)) belongs to the
open file, so whoever hands it over has to let go of it. A block device should have been opened with O_EXCL, which keeps
the kernel's own mount away; nothing shows later whether it was.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path

from py4fs.errors import Busy, Invalid, ReadOnly

_PATH = re.compile(r"/(?:dev|proc/self)/fd/([0-9]+)")


def descriptor(path: str) -> int | None:
    """The number N of a path `/dev/fd/N`."""
    match = _PATH.fullmatch(path)
    return None if match is None else int(match[1])


def shown(path: str) -> str:
    """What is behind a path `/dev/fd/N`, for messages and /proc/mounts; every other path as it is."""
    number = descriptor(path)
    if number is None:
        return path
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return path


def take(number: int, name: str, *, readonly: bool) -> int:
    """A descriptor of our own for the same open file. Raises Invalid (not open so), ReadOnly, Busy."""
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        fd = os.dup(number)
    except OSError as exc:
        raise Invalid(f"{name}: {exc.strerror}") from exc
    try:
        if mode == os.O_WRONLY:
            raise Invalid(f"{name}: open for writing only")
        if mode == os.O_RDONLY and not readonly:
            raise ReadOnly(f"{name}: open for reading only")
        info = os.fstat(fd)
        if stat.S_ISBLK(info.st_mode) and _is_mounted(info.st_rdev):
            raise Busy(f"{name}: in use (mounted)")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_mounted(device: int) -> bool:
    """Whether a file system on this block device is mounted where this process can see it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.split(" ", 3)[2] == number for line in lines)
