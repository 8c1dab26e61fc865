"""Snapshots of directory trees that can be compared: kernel mount, FUSE mount, or any other directory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields

Holes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Node:
    """Everything about one name that a program can see (st_ino and st_dev aside). Times in ns."""

    type: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    blocks: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    link_of: bytes  # first name, in sorted order, of the same inode
    target: bytes | None
    digest: str | None
    xattrs: tuple[tuple[str, bytes], ...]
    data: Holes | None  # SEEK_DATA/SEEK_HOLE map: (offset, length) of the data in a regular file


Snapshot = dict[bytes, Node]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char device",
    stat.S_IFBLK: "block device",
}

ALL_FIELDS = tuple(f.name for f in fields(Node))
# not compared unless asked for: reading for the snapshot may change atime, and not everybody knows about holes
UNSTABLE = ("atime", "data")


def walk(root: bytes) -> Iterator[bytes]:
    """All names below root, root itself as b'', without following symlinks; parents first."""
    todo = [b""]
    while todo:
        rel = todo.pop()
        yield rel
        path = os.path.join(root, rel) if rel else root
        if stat.S_ISDIR(os.lstat(path).st_mode):
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries)
            todo.extend(os.path.join(rel, name) if rel else name for name in reversed(names))


def snapshot(
    root: str | bytes | os.PathLike[str],
    *,
    like: Snapshot | None = None,
    skip: Collection[bytes] = (b"lost+found",),
) -> Snapshot:
    """Read a tree completely. `skip`: names at the top left out.

    `like`: a snapshot that should be equal. Of files above 64 MiB then only its data ranges are read, and
    samples between them: a file system that does not know holes would take minutes to read terabytes of zeros.
    """
    base = os.fsencode(root)
    first: dict[tuple[int, int], bytes] = {}
    found: Snapshot = {}
    for rel in walk(base):
        if rel.split(b"/", 1)[0] in skip:
            continue
        path = os.path.join(base, rel) if rel else base
        st = os.lstat(path)
        digest, data = _contents(path, _ranges(like, rel)) if stat.S_ISREG(st.st_mode) else (None, None)
        found[rel] = Node(
            type=_TYPES.get(stat.S_IFMT(st.st_mode), oct(st.st_mode)),
            mode=stat.S_IMODE(st.st_mode),
            uid=st.st_uid,
            gid=st.st_gid,
            nlink=st.st_nlink,
            size=st.st_size,
            blocks=st.st_blocks,
            rdev=st.st_rdev,
            atime=st.st_atime_ns,
            mtime=st.st_mtime_ns,
            ctime=st.st_ctime_ns,
            link_of=first.setdefault((st.st_dev, st.st_ino), rel),
            target=os.readlink(path) if stat.S_ISLNK(st.st_mode) else None,
            digest=digest,
            xattrs=_xattrs(path),
            data=data,
        )
    return found


def _contents(path: bytes, known: Holes | None) -> tuple[str, Holes | None]:
    """Hash and map of a regular file; of an encrypted one without key, that it is one."""
    try:
        return _digest(path, known), data_map(path)
    except OSError as exc:
        if exc.errno != errno.ENOKEY:
            raise
        return "no key", None


def _ranges(like: Snapshot | None, rel: bytes) -> Holes | None:
    node = like.get(rel) if like is not None else None
    return node.data if node is not None else None


def _digest(path: bytes, known: Holes | None) -> str:
    """Hash of the contents, the same for holes and for written zeros."""
    digest = hashlib.blake2b(digest_size=16)
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME if os.geteuid() == 0 else os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        for offset, length in _to_read(fd, size, known):
            position, end = offset, offset + length
            while position < end:
                piece = os.pread(fd, min(1 << 20, end - position), position)
                if not piece:
                    break
                _hash_nonzero(digest.update, position, piece)
                position += len(piece)
    finally:
        os.close(fd)
    return digest.hexdigest()


_PAGE = 4096
_ZERO_PAGE = bytes(_PAGE)


def _hash_nonzero(update: Callable[[bytes], None], position: int, piece: bytes) -> None:
    """Feed every page that is not all zeros, with its offset: holes and written zeros hash the same."""
    position_in_page = position % _PAGE
    start = 0
    while start < len(piece):
        stop = min(len(piece), start + _PAGE - (position_in_page if start == 0 else 0))
        part = piece[start:stop]
        if part != _ZERO_PAGE[: len(part)]:
            update(b"%d:" % (position + start))
            update(part.rstrip(b"\0"))
        start = stop


def _to_read(fd: int, size: int, known: Holes | None) -> Iterator[tuple[int, int]]:
    """Ranges to hash, in order: all of a small file, so that a wrong map shows; of a big one its data."""
    if size < 64 << 20:
        yield 0, size
        return
    position = 0
    for offset, length in known if known is not None else _seek_map(fd, size):
        start = offset - offset % _PAGE
        for sample in {position, (position + start) // 2, start - _PAGE} if known is not None else ():
            at = sample - sample % _PAGE
            if position <= at <= start - _PAGE:
                yield at, _PAGE  # zeros, or the hash will differ
        position = -(-(offset + length) // _PAGE) * _PAGE
        yield start, min(position, size) - start


def _seek_map(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position - start


def data_map(path: str | bytes | os.PathLike[str]) -> Holes:
    """The SEEK_DATA/SEEK_HOLE map of a file: (offset, length) of its data ranges."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return tuple(_seek_map(fd, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def differences(left: Snapshot, right: Snapshot, ignore: Collection[str] = UNSTABLE, limit: int = 20) -> list[str]:
    """What is different, one line each, `left` being what is wanted; empty when the trees are the same."""
    found = [f"{name!r}: missing" for name in sorted(left.keys() - right.keys())]
    found += [f"{name!r}: unexpected" for name in sorted(right.keys() - left.keys())]
    compared = [name for name in ALL_FIELDS if name not in ignore]
    for name in sorted(left.keys() & right.keys()):
        for attribute in compared:
            want, got = getattr(left[name], attribute), getattr(right[name], attribute)
            if want != got:
                found.append(f"{name!r}: {attribute}: want {_show(want)}, got {_show(got)}")
    if len(found) > limit:
        found = [*found[:limit], f"... and {len(found) - limit} more"]
    return found


def assert_same(left: Snapshot, right: Snapshot, ignore: Collection[str] = UNSTABLE) -> None:
    """Fail with the list of differences; `left` is what is wanted. An empty `left` would prove nothing."""
    assert left, "the tree to compare with is empty"
    found = differences(left, right, ignore)
    assert not found, "trees differ:\n  " + "\n  ".join(found)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "..."
