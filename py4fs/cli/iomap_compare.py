"""`py4fs iomap --compare`: are a file's mappings those that debugfs finds in the same image?

`dump_extents -l` has the extents of a file; `stat` and `blocks` have the blocks of one with a block map.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from py4fs.cli.common import CommandError

if TYPE_CHECKING:
    from py4fs.iomap.records import Mapping
    from py4fs.vfs import Attr

_RANGE = re.compile(r"\(([^)]+)\):(\d+)(?:-(\d+))?")
_TIMEOUT = 600  # seconds


class Piece(NamedTuple):
    """``length`` blocks from ``lblk`` on lie at ``pblk``."""

    lblk: int
    length: int
    pblk: int
    unwritten: bool

    def __str__(self) -> str:
        state = "unwritten" if self.unwritten else "written"
        last = self.length - 1
        return f"{self.lblk}..{self.lblk + last} at {self.pblk}..{self.pblk + last} ({state})"


def differences(image: str, offset: int, attr: Attr, mappings: Iterable[Mapping]) -> list[str]:
    """One line for each place where ``mappings`` and debugfs do not agree. Raises CommandError without debugfs."""
    from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL
    from py4fs.iomap.records import MapType, has_device

    block = attr.blksize
    ours = [
        Piece(m.offset // block, m.length // block, m.addr // block, m.type == MapType.UNWRITTEN)
        for m in mappings
        if has_device(m.type)
    ]
    if attr.flags & EXT4_EXTENTS_FL:
        theirs = list(extents(_debugfs(image, offset, f"dump_extents -l <{attr.ino}>")))
        return list(compare(ours, theirs))
    theirs, map_blocks = block_map(_debugfs(image, offset, f"stat <{attr.ino}>"))
    found = list(compare(ours, theirs))
    listed = [int(word) for word in _debugfs(image, offset, f"blocks <{attr.ino}>").split()]
    in_order = [pblk for piece in ours for pblk in range(piece.pblk, piece.pblk + piece.length)]
    if [pblk for pblk in listed if pblk not in map_blocks] != in_order:
        found.append(f"debugfs lists {len(listed)} blocks, {len(map_blocks)} of them pointers; we {len(in_order)}")
    return found


def extents(text: str) -> Iterator[Piece]:
    """What `dump_extents -l` prints: level, number/of, logical range, physical range, length, flags."""
    for line in text.splitlines()[1:]:
        words = re.findall(r"\d+", line)
        if len(words) < 7:
            raise CommandError(f"debugfs: cannot make sense of {line!r}")
        first, last, pblk = (int(word) for word in words[4:7])
        yield Piece(first, last - first + 1, pblk, line.rstrip().endswith("Uninit"))


def block_map(text: str) -> tuple[list[Piece], set[int]]:
    """What `stat` prints about a file with a block map: its data, and the blocks of pointers."""
    pieces: list[Piece] = []
    pointers: set[int] = set()
    for what, first, last in _RANGE.findall(text.partition("BLOCKS:")[2]):
        start, end = int(first), int(last or first)
        if what[0].isdigit():
            lblk = int(what.partition("-")[0])
            pieces.append(Piece(lblk, end - start + 1, start, False))
        else:
            pointers.update(range(start, end + 1))
    return pieces, pointers


def compare(ours: Iterable[Piece], theirs: Iterable[Piece]) -> Iterator[str]:
    """Where two descriptions of a file part. How they cut a contiguous run into pieces does not matter."""
    left, right = set(_joined(ours)), set(_joined(theirs))
    for piece in sorted(left ^ right):
        who = "py4fs" if piece in left else "debugfs"
        yield f"only {who} says: blocks {piece}"


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    current: Piece | None = None
    for piece in pieces:
        if current is not None and (
            piece.unwritten == current.unwritten
            and piece.lblk == current.lblk + current.length
            and piece.pblk == current.pblk + current.length
        ):
            current = current._replace(length=current.length + piece.length)
            continue
        if current is not None:
            yield current
        current = piece
    if current is not None:
        yield current


def _debugfs(image: str, offset: int, request: str) -> str:
    """Output of a debugfs request that only reads; debugfs always exits 0, its complaints are on stderr."""
    device = f"{image}?offset={offset}" if offset else image
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            ["debugfs", "-R", request, device],
            capture_output=True, text=True, errors="replace", env=environment, timeout=_TIMEOUT, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as exc:
        raise CommandError("--compare needs debugfs (Debian package e2fsprogs)") from exc
    except subprocess.TimeoutExpired as exc:
        raise CommandError(f"debugfs took longer than {_TIMEOUT} seconds") from exc
    complaints = [line for line in done.stderr.splitlines() if line and not line.startswith("debugfs 1.")]
    if done.returncode or complaints:
        raise CommandError(f"debugfs: {complaints[0] if complaints else f'exit {done.returncode}'}")
    return done.stdout
