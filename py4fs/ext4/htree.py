"""The hash index of a directory (ext4 docs: Hash Tree Directories): find, split, grow, walk in its order.

Leaves cover ascending ranges of hashes. Where names with one hash fill more than a leaf, the next leaf's
range starts with that hash plus 1 (bit 0, never set in a name's hash): a lookup goes on there. Ranges are
only ever subdivided, so the hash that a leaf's range starts with stays in the index; readers rely on it.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Final, NamedTuple

from py4fs.errors import BadIndex, Corrupt, NoSpace
from py4fs.ext4.dirblock import LEAF, NODE, ROOT, DirBlock, DirEnt, Placement
from py4fs.ext4.layout.dirent import dirent_size
from py4fs.ext4.names import Names
from py4fs.ext4.transaction import Operation

UNSIGNED_OFFSET: Final = 3
"""What the unsigned variant of a hash adds to its version."""
MAX_CHAIN = 1 << 16
"""Leaves of one hash: their number has 16 bits in the cookies of readdir."""
MAX_RESTARTS: Final = 8
"""An insert makes room in the index at most once per level, then starts again."""
_HASH: Final = itemgetter(0)


class Store:
    """The blocks of one directory."""

    __slots__ = ()

    @abstractmethod
    def block(self, lblk: int, kind: int) -> DirBlock: ...
    @abstractmethod
    def new_block(self, tx: Operation) -> DirBlock: ...
    @abstractmethod
    def name_of(self) -> str: ...
    @property
    @abstractmethod
    def nblocks(self) -> int: ...
    @property
    @abstractmethod
    def hash_seed(self) -> tuple[int, int, int, int]: ...
    @property
    @abstractmethod
    def hash_unsigned(self) -> bool: ...
    @property
    @abstractmethod
    def max_levels(self) -> int: ...
    @property
    @abstractmethod
    def names(self) -> Names: ...


class Path:
    """The way from the root to a leaf: index blocks, and in each the number of the entry taken."""

    __slots__ = ("at", "blocks")

    def __init__(self) -> None:
        self.blocks: list[DirBlock] = []
        self.at: list[int] = []

    @property
    def leaf(self) -> int:
        """The leaf's logical block."""
        return self.blocks[-1].blocks[self.at[-1]]

    @property
    def low(self) -> int:
        """The hash that the leaf's range starts with."""
        for block, at in zip(reversed(self.blocks), reversed(self.at), strict=True):
            if at:
                return block.hashes[at]
        return 0

    def next_low(self) -> int | None:
        """The hash that the next leaf's range starts with; None behind the last leaf."""
        for block, at in zip(reversed(self.blocks), reversed(self.at), strict=True):
            if at + 1 < len(block.hashes):
                return block.hashes[at + 1]
        return None


class Run(NamedTuple):
    """Leaves (logical blocks) whose ranges start with one hash, and what the next leaf's starts with."""

    low: int
    leaves: list[int]
    next_low: int | None


class HashTree:
    """The index of one directory. Holds nothing but the last hash: blocks are asked for anew at every use."""

    __slots__ = ("_last", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        #: a name that was hashed, and how: whoever adds a name has looked for it before
        self._last = (b"", -1, 0)

    def root(self) -> DirBlock:
        """Raises BadIndex (damaged), Corrupt."""
        return self._store.block(0, ROOT)

    def hash_of(self, name: bytes) -> int:
        """The hash by which this directory orders `name`."""
        version = self.root().hash_version
        return self._hash(version, name)

    def _hash(self, version: int, name: bytes) -> int:
        last, last_version, hash_ = self._last
        if last != name or last_version != version:
            store = self._store
            unsigned = UNSIGNED_OFFSET if store.hash_unsigned else 0
            hash_ = store.names.hash(name, version + unsigned, store.hash_seed)
            self._last = (name, version, hash_)
        return hash_

    # -- finding -------------------------------------------------------------------------------------------

    def _descend(self, root: DirBlock, hash_: int, *, before: bool = False) -> Path:
        """The path to the last leaf whose range starts at or below (`before`: strictly below) `hash_`."""
        path = Path()
        block = root
        levels = block.levels
        low, high = 0, 0xFFFFFFFF
        choose = bisect_left if before else bisect_right
        while True:
            hashes = block.hashes
            at = choose(hashes, hash_, 1) - 1
            path.blocks.append(block)
            path.at.append(at)
            if not levels:
                return path
            levels -= 1
            if at:
                low = hashes[at]
            if at + 1 < len(hashes):
                high = hashes[at + 1]
            block = self._child(block.blocks[at], low, high)

    def _child(self, lblk: int, low: int, high: int) -> DirBlock:
        block = self.index_block(lblk)
        if len(block.hashes) > 1 and (block.hashes[1] < low or block.hashes[-1] > high):
            where = f"{self._store.name_of()}, logical block {lblk}"
            raise BadIndex("directory index", where, "hashes beyond its range")
        return block

    def index_block(self, lblk: int) -> DirBlock:
        """An inner node by its logical block, as the index names it."""
        self._check_lblk(lblk)
        return self._store.block(lblk, NODE)

    def leaf_block(self, lblk: int) -> DirBlock:
        """A leaf by its logical block, as the index names it."""
        self._check_lblk(lblk)
        return self._store.block(lblk, LEAF)

    def _check_lblk(self, lblk: int) -> None:
        if not 0 < lblk < self._store.nblocks:
            raise BadIndex(
                "directory index block", self._store.name_of(), lblk, f"1..{self._store.nblocks - 1}"
            )

    def _advance(self, path: Path) -> None:
        """Move to the next leaf, of which `next_low` has said that it exists."""
        depth = len(path.blocks)
        level = depth - 1
        while path.at[level] + 1 >= len(path.blocks[level].hashes):
            level -= 1
        path.at[level] += 1
        while level + 1 < depth:
            block = self.index_block(path.blocks[level].blocks[path.at[level]])
            level += 1
            path.blocks[level] = block
            path.at[level] = 0

    def find(self, name: bytes) -> tuple[DirBlock, bytes] | None:
        """The leaf that holds `name`, and how it is stored there. Raises BadIndex, Corrupt."""
        root = self.root()
        hash_ = self._hash(root.hash_version, name)
        path = self._descend(root, hash_)
        for _ in range(min(self._store.nblocks, MAX_CHAIN)):
            leaf = self.leaf_block(path.leaf)
            stored = self._store.names.stored(leaf, name)
            if stored is not None:
                return leaf, stored
            following = path.next_low()
            if following is None or following & ~1 != hash_:
                return None
            self._advance(path)
        raise self._endless()

    def _endless(self) -> BadIndex:
        return BadIndex("directory index", self._store.name_of(), "a hash chain longer than the directory")

    # -- inserting -----------------------------------------------------------------------------------------

    def add(self, tx: Operation, name: bytes, ino: int, ftype: int) -> None:
        """Insert an entry that is not there. Raises NoSpace (index full, disk full), Corrupt."""
        root = self.root()
        hash_ = self._hash(root.hash_version, name)
        entry = Placement(name, ino, ftype, hash_)
        need = dirent_size(len(name))
        for _ in range(MAX_RESTARTS):
            path = self._descend(root, hash_)
            leaf = self.leaf_block(path.leaf)
            slot = leaf.find_room(need)
            if slot is None:
                if self._make_room(tx, path):
                    continue
                leaf = self.split_leaf(tx, path, leaf, hash_)
                slot = leaf.find_room(need)
                if slot is None:
                    break
            else:
                tx.touch(leaf)
            leaf.insert(slot, entry)
            return
        raise NoSpace(f"{self._store.name_of()}: no room in the directory's index")

    def _make_room(self, tx: Operation, path: Path) -> bool:
        """Split full index blocks towards room in the path's last one; True when it did something."""
        level = len(path.blocks) - 1
        if not self._full(path.blocks[level]):
            return False
        while level and self._full(path.blocks[level - 1]):
            level -= 1
        if level:
            self._split_node(tx, path, level)
        elif len(path.blocks) >= self._store.max_levels:
            raise NoSpace(f"{self._store.name_of()}: directory index full")
        else:
            self._grow(tx, path.blocks[0])
        return True

    @staticmethod
    def _full(block: DirBlock) -> bool:
        return len(block.hashes) >= block.limit

    def _split_node(self, tx: Operation, path: Path, level: int) -> None:
        """Move the upper half of a full index node to a new one; its parent has room."""
        node, parent = path.blocks[level], path.blocks[level - 1]
        keep = len(node.hashes) // 2
        if not keep:
            raise BadIndex("directory index count", self._store.name_of(), len(node.hashes))
        new = self._store.new_block(tx)
        tx.touch(node)
        tx.touch(parent)
        boundary = node.hashes[keep]
        new.make_node()
        new.set_index(node.hashes[keep:], node.blocks[keep:])
        node.set_index(node.hashes[:keep], node.blocks[:keep])
        parent.insert_index(path.at[level - 1] + 1, boundary, new.lblk)

    def _grow(self, tx: Operation, root: DirBlock) -> None:
        """Move the root's entries to a new node below it."""
        new = self._store.new_block(tx)
        tx.touch(root)
        new.make_node()
        new.set_index(root.hashes, root.blocks)
        root.set_index([0], [new.lblk])
        root.add_level()

    def split_leaf(self, tx: Operation, path: Path, leaf: DirBlock, hash_: int) -> DirBlock:
        """Move a leaf's upper hashes to a new leaf (the kernel's rule); returns the one for `hash_`.

        The path's last index block has room for another entry.
        """
        entries = self._with_hashes(leaf)
        if len(entries) < 2:
            where = f"{self._store.name_of()}, logical block {leaf.lblk}"
            raise Corrupt("directory leaf", where, "neither room nor entries")
        keep = split_point([hash_ for hash_, _ in entries], [e.size for _, e in entries], len(leaf.data))
        boundary = entries[keep][0]
        chained = boundary == entries[keep - 1][0]
        new = self._store.new_block(tx)
        tx.touch(leaf)
        index = path.blocks[-1]
        tx.touch(index)
        new.fill([Placement(e.name, e.ino, e.ftype, h) for h, e in entries[keep:]])
        lower = sorted(entries[:keep], key=lambda pair: pair[1].offset)
        leaf.fill([Placement(e.name, e.ino, e.ftype, h) for h, e in lower])
        index.insert_index(path.at[-1] + 1, boundary + chained, new.lblk)
        return new if hash_ >= boundary else leaf

    def _with_hashes(self, leaf: DirBlock) -> list[tuple[int, DirEnt]]:
        """A leaf's entries with their hashes, in the order of hashes (entries of one hash by offset)."""
        version = self.root().hash_version
        known = leaf.hashes_of
        entries = []
        for entry in leaf.listing():
            value = known.get(entry.name)
            if value is None:
                value = known[entry.name] = self._hash(version, entry.name)
            entries.append((value, entry))
        entries.sort(key=_HASH)  # stable: they come by offset
        return entries

    # -- walking in hash order -----------------------------------------------------------------------------

    def run_from(self, low: int) -> Run | None:
        """The first leaf whose range starts at `low` or above, with those that start with the same hash.

        Raises BadIndex when the index does not ascend.
        """
        path = self._descend(self.root(), low, before=True)
        start = path.low
        most = min(self._store.nblocks, MAX_CHAIN)
        passed = 0
        while start < low:
            passed += 1
            if passed > most:
                raise self._endless()
            following = path.next_low()
            if following is None:
                return None
            self._advance(path)
            if following < start or path.low != following:
                raise BadIndex("directory index", self._store.name_of(), "hashes that do not ascend")
            start = following
        leaves = [path.leaf]
        while (following := path.next_low()) == start:
            self._advance(path)
            leaves.append(path.leaf)
            if len(leaves) > most:
                raise self._endless()
        return Run(start, leaves, following)


def split_point(hashes: list[int], sizes: list[int], block_size: int) -> int:
    """How many entries (in hash order) stay in the lower half when a leaf is split: 1 .. len - 1.

    Neither half gets much more than half a block; entries that do not fill that are split by count.
    """
    count = len(hashes)
    size = moved = 0
    for length in reversed(sizes):
        if size + length // 2 > block_size // 2:
            break
        size += length
        moved += 1
    else:
        return count // 2
    return min(max(count - moved, 1), count - 1)
