"""Everything that a user can do to a damaged image. Only FsError may come out of it, and soon."""

from __future__ import annotations

import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from py4fs.api import Filesystem
from py4fs.errors import FsError
from py4fs.vfs import RENAME_EXCHANGE, RENAME_WHITEOUT, ROOT, ROOT_INO, Attr, Caller, Vfs

MOST_NAMES = 3000


class Hang(BaseException):
    """Not an Exception, so that nothing swallows it."""


@contextmanager
def soon(seconds: float = 10) -> Iterator[None]:
    """Raise Hang when it takes longer. Main thread only."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(step: Callable[..., Any], *args: Any) -> Any:
    """The result, or None when it fails in the way it may."""
    try:
        return step(*args)
    except FsError as exc:
        assert exc.errno and str(exc) and "\n" not in str(exc), repr(exc)
        return None


class Found:
    """What a walk came across."""

    def __init__(self) -> None:
        self.dirs: list[int] = []
        self.files: list[int] = []
        self.names: list[tuple[int, bytes]] = []


def walk(fs: Filesystem, most: int = MOST_NAMES) -> Found:
    """Look at everything that can be reached, until there are more than ``most`` names."""
    vfs = fs.vfs
    found = Found()
    attempt(vfs.statfs)
    seen = {ROOT_INO}
    todo = [ROOT_INO]
    while todo and len(found.names) < most:
        ino = todo.pop()
        look(vfs, ino)
        fh = attempt(vfs.opendir, ino)
        if fh is None:
            continue
        found.dirs.append(ino)
        for name, child in attempt(names, vfs, fh, most) or ():
            attr: Attr | None = attempt(vfs.lookup, ino, name)
            found.names.append((ino, name))
            if name in (b".", b".."):
                continue
            if child not in seen:
                seen.add(child)
                attempt(vfs.getattr, child)
                if attr is not None:
                    (todo if stat.S_ISDIR(attr.mode) else found.files).append(attr.ino)
                    look(vfs, attr.ino)
        attempt(vfs.lookup, ino, b"no such name")
        vfs.releasedir(fh)
    return found


def names(vfs: Vfs, fh: int, most: int) -> list[tuple[bytes, int]]:
    listed = []
    try:
        for entry in vfs.readdir(fh):
            listed.append((entry.name, entry.ino))
            assert len(listed) < most, "readdir does not end"
    except FsError:
        pass
    return listed


def look(vfs: Vfs, ino: int) -> None:
    attr: Attr | None = attempt(vfs.getattr, ino)
    if attr is None:
        return
    for name in attempt(vfs.listxattr, ino) or ():
        attempt(vfs.getxattr, ino, name)
    attempt(vfs.getxattr, ino, b"user.missing")
    attempt(vfs.getxattr, ino, b"system.posix_acl_access")
    attempt(vfs.by_handle, ino, attr.generation)
    attempt(vfs.get_fsx, ino)
    if stat.S_ISLNK(attr.mode):
        attempt(vfs.readlink, ino)
    if stat.S_ISDIR(attr.mode):
        attempt(vfs.lookup_parent, ino)
    if not stat.S_ISREG(attr.mode):
        return
    attempt(vfs.mappings, ino)
    attempt(vfs.bmap, ino, 5, 1024)
    fh = attempt(vfs.open, ino, os.O_RDONLY)
    if fh is not None:
        for offset in (0, 5000, 1 << 20, max(attr.size - 100, 0), 1 << 41, (1 << 63) - 10):
            attempt(vfs.read, fh, offset, 9000)
        vfs.release(fh)


def copy_some(vfs: Vfs, handles: list[int], ino: int, rng: random.Random) -> None:
    """From a file to one that is open, or to itself."""
    fh = attempt(vfs.open, ino, os.O_RDWR)
    if fh is not None:
        target = rng.choice([*handles, fh])
        attempt(vfs.copy_file_range, fh, rng.choice([0, 3000]), target, rng.choice([0, 100_000]), 70_000)
        vfs.release(fh)


def name_later(vfs: Vfs, handles: list[int], directory: int, other: int, name: bytes) -> None:
    """A file without a name, which gets one."""
    made = attempt(vfs.tmpfile, directory, 0o644, os.O_RDWR, ROOT)
    if made:
        handles.append(made[0])
        attempt(vfs.write, made[0], 0, b"data" * 700)
        attempt(vfs.link, made[1].ino, other, name)


def own_and_fold(vfs: Vfs, ino: int, parent: int, new: bytes, rng: random.Random) -> None:
    """What quotas and case folding see, and the label."""
    attempt(vfs.set_label, b"label")
    if rng.random() < 0.5:
        attempt(lambda ino, uid: vfs.setattr(ino, uid=uid, gid=uid), ino, rng.choice([0, 7, 1000, 1 << 31]))
    else:
        attempt(vfs.set_casefold, parent, rng.random() < 0.7)
        attempt(vfs.mkdir, parent, "ÄÖß".encode() + new, 0o755, Caller(1000, 7))


def change(fs: Filesystem, found: Found, rng: random.Random, count: int) -> None:  # noqa: PLR0912
    """Operations of all kinds on what was found."""
    vfs = fs.vfs
    handles: list[int] = []
    for number in range(count):
        parent = rng.choice(found.dirs) if found.dirs else ROOT_INO
        other = rng.choice(found.dirs) if found.dirs else ROOT_INO
        ino = rng.choice(found.files + found.dirs) if found.files or found.dirs else ROOT_INO
        home, name = rng.choice(found.names) if found.names else (ROOT_INO, b"x")
        new = b"new%d" % number + b"n" * rng.choice([0, 0, 100, 200])
        match rng.randrange(19):
            case 0:
                made = attempt(vfs.create, parent, new, 0o644, os.O_RDWR)
                if made:
                    handles.append(made[0])
                    attempt(vfs.write, made[0], rng.choice([0, 100_000]), b"data" * 700)
                    found.names.append((parent, new))
            case 1:
                attempt(vfs.mkdir, parent, new)
            case 2:
                attempt(vfs.unlink, home, name)
            case 3:
                attempt(vfs.rmdir, home, name)
            case 4 | 5:
                attempt(vfs.rename, home, name, other, rng.choice([new, rng.choice(found.names or [(2, b"y")])[1]]))
            case 6:
                target_home, target = rng.choice(found.names) if found.names else (ROOT_INO, b"y")
                attempt(vfs.rename, home, name, target_home, target, RENAME_EXCHANGE)
            case 7:
                attempt(vfs.link, ino, parent, new)
            case 8 | 9:
                fh = attempt(vfs.open, ino, os.O_RDWR)
                if fh is not None:
                    handles.append(fh)
                    attr = attempt(vfs.getattr, ino)
                    size = attr.size if attr else 0
                    attempt(vfs.write, fh, rng.choice([0, 3000, 40_000, size, size + 5000, 1 << 35]), b"w" * 5000)
            case 10:
                sizes = [0, 1, 3000, 100_000, 1 << 40, (1 << 44) - 1]
                attempt(lambda ino, size: vfs.setattr(ino, size=size), ino, rng.choice(sizes))
            case 11:
                attempt(vfs.setxattr, ino, b"user.x", b"v" * rng.choice([0, 3, 90, 500]))
                attempt(vfs.setxattr, ino, b"user.large", b"v" * 700)
            case 12:
                attempt(vfs.symlink, parent, new, b"t" * rng.choice([10, 100]))
                attempt(lambda ino: vfs.setattr(ino, mode=0o640, mtime=10**18), ino)
            case 14:
                name_later(vfs, handles, parent, other, new)
            case 15:
                attempt(vfs.rename, home, name, other, new, RENAME_WHITEOUT)
                attempt(vfs.set_flags, ino, rng.choice([0x80080, 0x80, 0x80010]), ROOT)
            case 16:
                copy_some(vfs, handles, ino, rng)
                attempt(vfs.trim, 0, 1 << 40, rng.choice([0, 1 << 20]))
            case 13:
                for listed in attempt(vfs.listxattr, ino) or ():
                    attempt(vfs.removexattr, ino, listed)
            case 17 | 18:
                own_and_fold(vfs, ino, parent, new, rng)
        if handles and rng.random() < 0.5:
            attempt(vfs.release, handles.pop(rng.randrange(len(handles))))
        if rng.random() < 0.1:
            attempt(vfs.sync)
