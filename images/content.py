"""What goes into the images: generators of debugfs commands. No root needed.

A filler takes the staging directory (for host files that debugfs copies in) and yields commands.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from images.tools import CLOCK

Filler = Callable[[Path], Iterator[str]]

LATIN1_NAME = "nom-\udce9t\udce9"  # bytes >= 0x80 and not UTF-8: signed and unsigned hashes differ
UTF8_NAME = "Ünïcödé-名前"
LONG_NAME = "n" * 255

ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER = 1, 2, 4, 8, 16, 32
_NO_ID = 0xFFFFFFFF


def pattern(seed: str, size: int) -> bytes:
    """`size` bytes that depend on the seed only and do not compress."""
    return random.Random(seed).randbytes(size)


def posix_acl(*entries: tuple[int, int, int | None]) -> bytes:
    """Value of system.posix_acl_* as getxattr(2) gives it: version 2, then (tag, permissions, id)."""
    head = struct.pack("<I", 2)
    return head + b"".join(struct.pack("<HHI", t, p, _NO_ID if i is None else i) for t, p, i in entries)


ACCESS_ACL = posix_acl(
    (ACL_USER_OBJ, 6, None),
    (ACL_USER, 4, 1001),
    (ACL_GROUP_OBJ, 4, None),
    (ACL_GROUP, 6, 1002),
    (ACL_MASK, 6, None),
    (ACL_OTHER, 0, None),
)
DEFAULT_ACL = posix_acl(
    (ACL_USER_OBJ, 7, None),
    (ACL_USER, 5, 1001),
    (ACL_GROUP_OBJ, 5, None),
    (ACL_MASK, 7, None),
    (ACL_OTHER, 0, None),
)


def _stage(stage: Path, name: str, data: bytes) -> Path:
    path = stage / name
    path.write_bytes(data)
    return path


def _stage_sparse(stage: Path, name: str, size: int, pieces: list[tuple[int, bytes]]) -> Path:
    path = stage / name
    with path.open("wb") as fp:
        fp.truncate(size)
        for offset, data in pieces:
            fp.seek(offset)
            fp.write(data)
    return path


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _owner(path: str, mode: int, uid: int, gid: int) -> Iterator[str]:
    yield f"sif {path} mode 0{mode:o}"
    for field, value in (("uid", uid), ("gid", gid)):
        yield f"sif {path} {field} {value}"


def sample(stage: Path) -> Iterator[str]:
    """What `make run` shows."""
    welcome = b"This file lives in an ext4 image and reaches you through py4fs.\n"
    notes = "".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(1000)).encode()
    yield f"write {_stage(stage, 'welcome', welcome)} welcome.txt"
    yield "mkdir docs"
    yield "mkdir docs/deep"
    yield f"write {_stage(stage, 'notes', notes)} docs/notes.txt"
    yield "ln docs/notes.txt docs/deep/notes-again.txt"
    yield "sif docs/notes.txt links_count 2"
    yield "symlink latest docs/notes.txt"
    end = (1 << 30) - 4
    yield f"write {_stage_sparse(stage, 'sparse', end + 4, [(0, b'first'), (end, b'last')])} sparse-1GiB"
    yield "ea_set welcome.txt user.comment hello"


def basic(stage: Path) -> Iterator[str]:
    """One of everything: all file types, hard links, odd names, modes, owners, times, xattrs, ACLs."""
    yield "mkdir basic"
    yield "cd basic"
    for size in (0, 1, 1023, 1024, 4096, 4097, 65536, 300_001):
        yield f"write {_stage(stage, f'size-{size}', pattern(f'size-{size}', size))} size-{size}"
    yield f"write {stage / 'size-1'} {_quote(LATIN1_NAME)}"
    yield f"write {stage / 'size-1'} {_quote(UTF8_NAME)}"
    yield f"write {stage / 'size-1'} {LONG_NAME}"
    yield f"write {stage / 'size-1'} {_quote('with space')}"
    yield "mkdir dir"
    yield "mkdir dir/sub"
    yield "mkdir dir/sub/empty"
    yield f"write {stage / 'size-1023'} linked"
    yield "ln linked dir/link"
    yield "sif linked links_count 2"
    yield "symlink fast-symlink size-1"
    yield f"symlink symlink-59 {'t' * 59}"
    yield f"symlink slow-symlink-60 {'t' * 60}"
    yield f"symlink slow-symlink-999 {'/'.join(['t' * 199] * 5)}"
    for name, kind in (("fifo", "p"), ("char", "c 4 64"), ("block", "b 8 17"), ("char-big", "c 300 40000")):
        yield f"mknod {name} {kind}"
    yield from _owner("size-4096", 0o104755, 1001, 1002)
    yield "sif size-4097 uid 0x11170"  # 32-bit ids: the high halves live elsewhere in the inode
    yield "sif size-4097 gid 0x21171"
    yield from _owner("dir/sub", 0o42775, 1001, 1002)
    yield "sif size-1024 mtime 20380119031408"  # one second past 31 bits; with 128-byte inodes that is 1901
    yield from xattrs(stage)


def xattrs(stage: Path) -> Iterator[str]:
    """xattrs in the inode and in a block, every namespace, ACLs; in the current directory."""
    yield f"write {_stage(stage, 'x', b'x')} xattr-inode"
    yield "ea_set xattr-inode user.a 1"
    yield f"write {stage / 'x'} xattr-block"
    for i in range(10):
        value = _stage(stage, f"value-{i}", pattern(f"value-{i}", 60))
        yield f"ea_set -f {value} xattr-block user.name{i}"
    yield f"write {stage / 'x'} xattr-spaces"
    for name in ("user.u", "trusted.t", "security.s"):
        yield f"ea_set xattr-spaces {name} {name}"
    yield "mkdir xattr-dir"
    yield "ea_set xattr-dir user.on-a-directory yes"
    yield f"write {stage / 'x'} acl-file"
    yield "sif acl-file mode 0100660"  # the group bits are the mask
    yield f"ea_set -f {_stage(stage, 'acl', ACCESS_ACL)} acl-file system.posix_acl_access"
    yield "mkdir acl-dir"
    yield f"ea_set -f {_stage(stage, 'dacl', DEFAULT_ACL)} acl-dir system.posix_acl_default"


def sparse(stage: Path) -> Iterator[str]:
    """Holes everywhere, a file beyond 4 GiB, an empty big one, and one with unwritten extents."""
    top = (5 << 30) + 123
    piece = pattern("sparse", 70_000)
    yield "mkdir sparse"
    yield "cd sparse"
    pieces = [(1 << 20, piece), ((4 << 30) - 35_000, piece)]
    yield f"write {_stage_sparse(stage, 'beyond', top, pieces)} beyond-4GiB"
    yield f"write {_stage_sparse(stage, 'hole', 10 << 20, [])} all-hole"
    yield f"write {_stage_sparse(stage, 'tail', 1 << 20, [((1 << 20) - 10, b'0123456789')])} only-the-end"
    yield f"write {_stage(stage, 'unwritten', b'data')} unwritten"
    yield "fallocate unwritten 16 99"  # 1.47's debugfs leaves the size alone: blocks beyond the end
    yield "sif unwritten size 40960"


def extents(count: int) -> Filler:
    """A file of `count` one-block extents (every other 4 KiB), so its tree has depth 2 with 1 KiB blocks."""

    def fill(stage: Path) -> Iterator[str]:
        pieces = [(i * 8192, struct.pack("<Q", i) * 512) for i in range(count)]
        yield "mkdir extents"
        yield f"write {_stage_sparse(stage, 'comb', count * 8192, pieces)} extents/comb"

    return fill


def indirect(block: int) -> Filler:
    """Files that need direct, indirect, double and triple indirect blocks, with holes of every size between.

    ``ends`` has data on both sides of each border; the others have one kind of block each.
    """
    per = block // 4
    borders = (12, 12 + per, 12 + per + per**2)

    def fill(stage: Path) -> Iterator[str]:
        yield "mkdir indirect"
        yield "cd indirect"
        ends = [(border * block - 2 * block, pattern(f"border-{border}", 5 * block)) for border in borders]
        far = borders[2] + per**2 + per + 7  # in the second double indirect block of the triple one
        top = (far + 3) * block - 100
        ends.append((far * block, pattern("far", top - far * block)))
        yield f"write {_stage_sparse(stage, 'ends', top, [(0, b'start'), *ends])} ends"
        for name, start, count in (
            ("direct", 0, 12),
            ("single", borders[0], per),
            ("double", borders[1] + 3, per + 5),
            ("triple", borders[2], 3),
        ):
            data = pattern(name, count * block)
            yield f"write {_stage_sparse(stage, name, (start + count) * block, [(start * block, data)])} {name}"
        comb = [(lblk * block, pattern(f"comb-{lblk}", block)) for lblk in range(0, 40, 2)]
        yield f"write {_stage_sparse(stage, 'comb', 40 * block, comb)} comb"

    return fill


def big_directory(entries: int) -> Filler:
    """A directory that e2fsck -D turns into an htree; a few names need unsigned or signed hashing right."""

    def fill(stage: Path) -> Iterator[str]:
        empty = _stage(stage, "empty", b"")
        yield "mkdir big"
        yield "cd big"
        for i in range(entries):
            yield f"write {empty} file-{i:06d}"
        for name in (LATIN1_NAME, UTF8_NAME, LONG_NAME, "\udcff\udcfe\udc80" * 20):
            yield f"write {empty} {_quote(name)}"

    return fill


def modes_and_times(stage: Path) -> Iterator[str]:
    """Many small files with distinct modes, owners and times."""
    one = _stage(stage, "one", b"1")
    yield "mkdir modes"
    yield "cd modes"
    for mode in (0o0, 0o400, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o7777):
        name = f"m{mode:04o}"
        yield f"write {one} {name}"
        yield from _owner(name, 0o100000 | mode, mode, mode + 1)
        yield f"sif {name} mtime @{CLOCK + mode}"
