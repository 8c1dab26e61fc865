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
from typing import TYPE_CHECKING, NamedTuple

from py4fs.errors import Corrupt
from py4fs.ext4.dirblock import BadIndex, DirBlock
from py4fs.ext4.layout.dirent import EXT4_FT_DIR

if TYPE_CHECKING:
    from py4fs.ext4.directory import Directory

SLOT_BITS = 15
SLOT_MASK = (1 << SLOT_BITS) - 1
CHAIN_BITS = 16
CHAIN_MAX = (1 << CHAIN_BITS) - 1
FIRST_SLOT = 3
COOKIE_DOT, COOKIE_DOTDOT = 1, 2
COOKIE_MAX = (1 << 63) - 1
KEPT_SNAPSHOTS = 8
"""Leaves that a reader remembers, so that seekdir to a recent position is exact."""


class Snapshot:
    """A leaf as it was when the reader came to it."""

    __slots__ = ("base", "entries", "follow", "lblk", "slots", "version")

    def __init__(self, base: int, follow: int, block: DirBlock, version: int) -> None:
        self.base = base
        self.follow = follow
        """The base of the leaf to go on with; -1 at the end."""
        self.lblk = block.lblk
        self.version = version
        listing = block.listing()
        self.slots = [(entry.offset >> 2) + FIRST_SLOT for entry in listing]
        self.entries = [(entry.name, entry.ino, entry.ftype) for entry in listing]


class ReaderState:
    """What one directory handle remembers; bounded."""

    __slots__ = ("blocks", "linear", "snapshots", "started", "visits")

    def __init__(self) -> None:
        self.started = False
        self.linear = True
        self.blocks = 0
        """Blocks of a linear directory when the pass began."""
        self.visits = 0
        """Leaves visited one after the other; more than there are blocks means a circle."""
        self.snapshots: OrderedDict[int, Snapshot] = OrderedDict()

    def start(self, linear: bool, blocks: int) -> None:
        self.started = True
        self.linear = linear
        self.blocks = blocks
        self.visits = 0
        self.snapshots.clear()

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


class Found(NamedTuple):
    """name, inode number, file_type, cookie after the entry"""

    name: bytes
    ino: int
    ftype: int
    cookie: int


def read_entries(directory: Directory, cookie: int, reader: ReaderState | None) -> Iterator[Found]:
    """The entries behind `cookie`. Any number is a valid cookie; an unknown one continues nearby."""
    if reader is None:
        reader = ReaderState()
    if not directory.alive:
        return
    cookie = min(max(cookie, 0), COOKIE_MAX)
    if cookie == 0 or not reader.started:
        _start(directory, reader)
    if not reader.linear and cookie < COOKIE_DOTDOT:
        if cookie < COOKIE_DOT:
            yield Found(b".", directory.ino, EXT4_FT_DIR, COOKIE_DOT)
        yield Found(b"..", directory.parent(), EXT4_FT_DIR, COOKIE_DOTDOT)
        cookie = COOKIE_DOTDOT
    base, slot = (0, 0) if cookie < FIRST_SLOT else (cookie & ~SLOT_MASK, cookie & SLOT_MASK)
    snapshot = reader.recall(base)
    if snapshot is None:
        reader.visits = 0
        snapshot = _seek(directory, reader, base)
        if snapshot is not None and snapshot.base != base:
            slot = 0
    while snapshot is not None:
        yield from _rest(directory, snapshot, slot, reader.linear)
        slot = 0
        if snapshot.follow < 0:
            return
        reader.visits += 1
        if reader.visits > directory.nblocks:
            raise Corrupt("directory index", directory.name_of(), "leaves that are met twice")
        follow = snapshot.follow
        snapshot = reader.recall(follow) or _seek(directory, reader, follow)
        if snapshot is not None and snapshot.base < follow:
            raise Corrupt("directory index", directory.name_of(), "hashes that do not ascend")


def _start(directory: Directory, reader: ReaderState) -> None:
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


def _rest(directory: Directory, snapshot: Snapshot, slot: int, linear: bool) -> Iterator[Found]:
    """The entries of a leaf behind `slot` that are still there."""
    slots, entries, base = snapshot.slots, snapshot.entries, snapshot.base
    for i in range(bisect_right(slots, slot), len(slots)):
        name, ino, ftype = entries[i]
        version = directory.version
        if not version or version != snapshot.version:
            now = _entry_now(directory, snapshot, name, linear)
            if now is None:
                continue
            ino, ftype = now
        yield Found(name, ino, ftype, base | slots[i])


def _entry_now(directory: Directory, snapshot: Snapshot, name: bytes, linear: bool) -> tuple[int, int] | None:
    if not directory.alive:
        return None
    if snapshot.lblk or not directory.indexed:
        block = directory.scan_block(snapshot.lblk)
        offset = block.names.get(name)
        if offset is not None:
            return block.at(offset)
        if linear:
            return None  # nothing moves there
    return directory.lookup(name)


def _seek(directory: Directory, reader: ReaderState, base: int) -> Snapshot | None:
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
        # The first of the chain that starts there: however many leaves it has when we come to it.
        following = directory.tree.run_from(run.next_low)
        follow = -1 if following is None else _base(following.low, len(following.leaves) - 1)
    block = directory.tree.leaf_block(run.leaves[number])
    return reader.keep(Snapshot(_base(run.low, last - number), follow, block, directory.version))


def _base(low: int, behind: int) -> int:
    return (low << (SLOT_BITS + CHAIN_BITS)) | ((CHAIN_MAX - min(behind, CHAIN_MAX)) << SLOT_BITS)


def _seek_linear(directory: Directory, reader: ReaderState, lblk: int) -> Snapshot | None:
    if lblk >= min(reader.blocks, directory.nblocks):
        return None
    follow = -1 if lblk + 1 >= reader.blocks else (lblk + 1) << SLOT_BITS
    block = directory.scan_block(lblk)
    return reader.keep(Snapshot(lblk << SLOT_BITS, follow, block, directory.version))
