"""Reading a directory while it changes: what was there all the time is returned exactly once.

An indexed directory is read in the order of its index, leaf by leaf, so no name is hashed. A cookie is

    bits 62..31  the hash that the leaf's range starts with (its low bit marks a chain of leaves of one hash)
    bits 30..15  65535 minus the number of leaves behind this one that start with the same hash
    bits 14..0   byte offset of the entry / 4, plus 3 (1 and 2 are the cookies of '.' and '..')

and in a linear one

    bits 62..15  logical block
    bits 14..0   byte offset of the entry / 4, plus 3

Both grow within a pass and stay valid while entries are removed: removal moves nothing. A split does move
entries: so the reader keeps a snapshot of the leaf it is in and of a few before, and what it reads next is
found by the hash at which that leaf's range *ended* when the snapshot was taken. New leaves of a chain are
put in front of the older ones, hence the count from behind. Before an entry of a snapshot is handed out after
the directory has changed, it is looked up again: a removed one is passed over, a replaced one is returned as
it is now.

A pass over a linear directory ends with the block that was last when it began, and a directory of one block
is kept as a whole, for it may become an index. So a pass ends even if every entry read is renamed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from py4fs.errors import BadIndex, Corrupt
from py4fs.ext4.dirblock import DirBlock
from py4fs.ext4.htree import HashTree
from py4fs.ext4.layout.dirent import EXT4_FT_DIR

SLOT_BITS: Final = 15
SLOT_MASK: Final = (1 << SLOT_BITS) - 1
CHAIN_BITS: Final = 16
CHAIN_MAX: Final = (1 << CHAIN_BITS) - 1
FIRST_SLOT: Final = 3
COOKIE_DOT, COOKIE_DOTDOT = 1, 2
COOKIE_MAX: Final = (1 << 63) - 1
KEPT_SNAPSHOTS: Final = 8
"""Leaves that a reader remembers, so that seekdir to a recent position is exact."""
KEPT_LEAVES: Final = 1 << 20
"""Leaves of a pass whose numbers are kept, so that an index that names a leaf twice is noticed."""


class Entry(NamedTuple):
    """A directory entry; `cookie` is where to continue after it, `ftype` 0 when the image records none."""

    name: bytes
    ino: int
    ftype: int
    cookie: int


class Readable(Protocol):
    """What reading needs of a directory."""

    @property
    def ino(self) -> int: ...

    @property
    def alive(self) -> bool: ...

    @property
    def indexed(self) -> bool: ...

    @property
    def nblocks(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def tree(self) -> HashTree: ...

    def name_of(self) -> str: ...

    def known_ftype(self, ftype: int) -> int: ...

    def parent(self) -> int: ...

    def lookup_stored(self, name: bytes) -> tuple[int, int] | None: ...

    def scan_block(self, lblk: int) -> DirBlock: ...

    def shown_names(self, block: DirBlock) -> dict[bytes, bytes] | None: ...

    def warn(self, exc: BadIndex) -> None: ...


class Snapshot:
    """A leaf as it was when the reader came to it."""

    __slots__ = ("base", "cookies", "entries", "follow", "lblk", "shown", "version")

    def __init__(self, base: int, follow: int, block: DirBlock, directory: Readable) -> None:
        self.base = base
        self.follow = follow
        """The base of the leaf to go on with; -1 at the end."""
        self.lblk = block.lblk
        self.version = directory.version
        known = directory.known_ftype
        self.entries = [
            Entry(entry.name, entry.ino, known(entry.ftype), base | (entry.offset >> 2) + FIRST_SLOT)
            for entry in block.listing()
        ]
        self.cookies = [entry.cookie for entry in self.entries]
        self.shown = directory.shown_names(block)


class ReaderState:
    """What one directory handle remembers; bounded."""

    __slots__ = ("blocks", "linear", "met", "snapshots", "started")

    def __init__(self) -> None:
        self.started = False
        self.linear = True
        self.blocks = 0
        """Blocks of a linear directory when the pass began."""
        self.snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self.met: set[int] = set()
        """Leaves (logical blocks) read one after the other, of an indexed directory."""

    def start(self, linear: bool, blocks: int) -> None:
        self.started = True
        self.linear = linear
        self.blocks = blocks
        self.snapshots.clear()
        self.met.clear()

    def keep(self, snapshot: Snapshot) -> Snapshot:
        self.snapshots[snapshot.base] = snapshot
        if len(self.snapshots) > KEPT_SNAPSHOTS:
            self.snapshots.popitem(last=False)
        return snapshot

    def recall(self, base: int) -> Snapshot | None:
        snapshot = self.snapshots.get(base)
        if snapshot is not None:
            self.snapshots.move_to_end(base)
        return snapshot


def read_entries(directory: Readable, cookie: int, reader: ReaderState | None) -> Iterator[Entry]:
    """The entries behind `cookie`. Any number is a valid cookie; an unknown one continues nearby."""
    if reader is None:
        reader = ReaderState()
    if not directory.alive:
        return
    cookie = min(max(cookie, 0), COOKIE_MAX)
    if cookie == 0 or not reader.started:
        _start(directory, reader)
    if not reader.linear and cookie < COOKIE_DOTDOT:
        ftype = directory.known_ftype(EXT4_FT_DIR)
        if cookie < COOKIE_DOT:
            yield Entry(b".", directory.ino, ftype, COOKIE_DOT)
        yield Entry(b"..", directory.parent(), ftype, COOKIE_DOTDOT)
        cookie = COOKIE_DOTDOT
    base = 0 if cookie < FIRST_SLOT else cookie & ~SLOT_MASK
    snapshot = reader.recall(base)
    if snapshot is None:
        reader.met.clear()
        snapshot = _seek(directory, reader, base)
        if snapshot is not None:
            reader.met.add(snapshot.lblk)
            if snapshot.base != base:
                cookie = 0
    while snapshot is not None:
        yield from _rest(directory, snapshot, cookie, reader.linear)
        cookie = 0
        if snapshot.follow < 0:
            return
        last = snapshot
        snapshot = reader.recall(last.follow)
        if snapshot is None:
            snapshot = _seek(directory, reader, last.follow)
            if snapshot is None:
                return
            if not reader.linear:
                if snapshot.lblk in reader.met:
                    raise Corrupt("directory index", directory.name_of(), f"leaf {snapshot.lblk} twice", "once")
                if len(reader.met) < KEPT_LEAVES:
                    reader.met.add(snapshot.lblk)
        if snapshot.base <= last.base:
            raise Corrupt("directory index", directory.name_of(), "hashes that do not ascend")


def _start(directory: Readable, reader: ReaderState) -> None:
    linear = not directory.indexed
    if not linear:
        try:
            directory.tree.root()
        except BadIndex as exc:
            directory.warn(exc)
            linear = True
    reader.start(linear, directory.nblocks)
    if linear and reader.blocks == 1:
        _seek(directory, reader, 0)


def _rest(directory: Readable, snapshot: Snapshot, cookie: int, linear: bool) -> Iterator[Entry]:
    """The entries of a leaf behind `cookie` that are still there."""
    first = bisect_right(snapshot.cookies, cookie)
    for entry in snapshot.entries[first:] if first else snapshot.entries:
        version = directory.version
        if not version or version != snapshot.version:
            now = _entry_now(directory, snapshot, entry.name, linear)
            if now is None:
                continue
            entry = entry._replace(ino=now[0], ftype=directory.known_ftype(now[1]))
        yield entry if snapshot.shown is None else entry._replace(name=snapshot.shown[entry.name])


def _entry_now(directory: Readable, snapshot: Snapshot, name: bytes, linear: bool) -> tuple[int, int] | None:
    """(inode number, file_type) of a name that was in the snapshot; None when it is gone."""
    if not directory.alive:
        return None
    if snapshot.lblk or not directory.indexed:
        block = directory.scan_block(snapshot.lblk)
        offset = block.names.get(name)
        if offset is not None:
            return block.at(offset)
        if linear:
            return None  # nothing moves there
    return directory.lookup_stored(name)


def _seek(directory: Readable, reader: ReaderState, base: int) -> Snapshot | None:
    """The leaf at `base`, or the next one where that is gone; None behind the last."""
    if reader.linear:
        return _seek_linear(directory, reader, base >> SLOT_BITS)
    run = directory.tree.run_from(base >> (SLOT_BITS + CHAIN_BITS))
    if run is None:
        return None
    behind = CHAIN_MAX - ((base >> SLOT_BITS) & CHAIN_MAX)
    last = len(run.leaves) - 1
    if last > CHAIN_MAX:
        raise Corrupt("directory index", directory.name_of(), f"{last + 1} leaves of one hash")
    if run.low != base >> (SLOT_BITS + CHAIN_BITS):
        behind = last
    number = max(last - behind, 0)
    if number < last:
        follow = _base(run.low, last - number - 1)
    elif run.next_low is None:
        follow = -1
    else:
        # The first of the chain that starts there now; leaves that it gets later hold what this one does.
        following = directory.tree.run_from(run.next_low)
        follow = -1 if following is None else _base(following.low, len(following.leaves) - 1)
    block = directory.tree.leaf_block(run.leaves[number])
    return reader.keep(Snapshot(_base(run.low, last - number), follow, block, directory))


def _base(low: int, behind: int) -> int:
    return (low << (SLOT_BITS + CHAIN_BITS)) | ((CHAIN_MAX - min(behind, CHAIN_MAX)) << SLOT_BITS)


def _seek_linear(directory: Readable, reader: ReaderState, lblk: int) -> Snapshot | None:
    if lblk >= min(reader.blocks, directory.nblocks):
        return None
    follow = -1 if lblk + 1 >= reader.blocks else (lblk + 1) << SLOT_BITS
    block = directory.scan_block(lblk)
    return reader.keep(Snapshot(lblk << SLOT_BITS, follow, block, directory))
