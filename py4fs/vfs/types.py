"""What the vfs hands out and takes: attributes, callers, directory entries, handles."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple

from py4fs.ext4.dirread import ReaderState
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_ROOT_INO
from py4fs.ext4.namespace import Owner
from py4fs.ext4.transaction import Reserve
from py4fs.iomap.client import IomapFile

ROOT_INO: Final = EXT4_ROOT_INO


class Now:
    """The type of :data:`NOW`."""

    def __repr__(self) -> str:
        return "NOW"


#: a time that :meth:`Vfs.setattr` replaces by its clock's
NOW: Final = Now()


class Attr:
    """stat(2) of an inode. Times in ns since the epoch, ``blocks`` in 512-byte units, ``flags`` as chattr(1)'s."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        *("ino", "generation", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize"),
        *("atime", "mtime", "ctime", "crtime", "flags"),
    )
    # what requests make and look at by the thousand is no named tuple: those take several times as long to make
    __slots__ = (
        *("atime", "blksize", "blocks", "crtime", "ctime", "flags", "generation", "gid", "ino", "mode", "mtime"),
        *("nlink", "rdev", "size", "uid"),
    )

    def __init__(
        self,
        ino: int,
        generation: int,
        mode: int,
        nlink: int,
        uid: int,
        gid: int,
        rdev: int,
        size: int,
        blocks: int,
        blksize: int,
        atime: int,
        mtime: int,
        ctime: int,
        crtime: int | None,
        flags: int,
    ) -> None:
        self.ino = ino
        self.generation = generation
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = size
        self.blocks = blocks
        self.blksize = blksize
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.crtime = crtime
        self.flags = flags

    def as_dict(self) -> dict[str, int | None]:
        """All of it by name."""
        return {name: getattr(self, name) for name in Attr.FIELDS}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attr) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.ino, self.generation))

    def __repr__(self) -> str:
        return f"Attr({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"


class Caller(Owner):
    """Who asks, and will own what is made. ``umask`` only where the kernel has not applied it already."""


ROOT: Final = Caller(0, 0)

InGroup = Callable[[int], bool]
"""Whether somebody belongs to a group, or has the right (CAP_FSETID) to do as if."""


def in_any_group(gid: int) -> bool:
    """An :data:`InGroup`: root's."""
    return True


class DirEntry(NamedTuple):
    """A name in a directory; ``cookie`` continues after it, ``ftype`` is the on-disk type (0 if unknown)."""

    name: bytes
    ino: int
    ftype: int
    cookie: int


class OpenFile:
    """A handle of a regular file."""

    __slots__ = ("append", "file", "inode", "readable", "reserve", "writable")

    def __init__(self, inode: Inode, file: IomapFile, flags: int, reserve: Reserve) -> None:
        """``flags`` as open(2)'s."""
        self.inode = inode
        self.file = file
        self.readable = flags & os.O_ACCMODE != os.O_WRONLY
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)
        #: writes come later and as somebody else (writeback), so the opener's right to reserved blocks counts
        self.reserve = reserve


class OpenDir:
    """A handle of a directory."""

    __slots__ = ("inode", "reader")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.reader = ReaderState()
