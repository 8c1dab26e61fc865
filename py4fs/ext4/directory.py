"""Directories: names to inode numbers, linear or indexed (ext4 docs: Directory Entries).

What is written equals what the kernel writes: entries go to the first record with room, a full one-block
directory is converted to an index when the file system has dir_index, anything larger without an index grows
at its end.

A damaged index (`BadIndex`) does not hide the entries: lookup, removal and reading fall back to a linear
walk, as in the kernel. Adding does not, it raises: what is added outside the index would be lost to
everybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from py4fs.errors import BadIndex, Corrupt, FileTooBig, NameTooLong, NoSpace, NotFound
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.dirblock import (
    DOTDOT_OFFSET,
    LEAF,
    OPAQUE,
    DirBlock,
    Placement,
)
from py4fs.ext4.dirread import Entry, ReaderState, read_entries
from py4fs.ext4.htree import UNSIGNED_OFFSET, HashTree, Path, Store
from py4fs.ext4.inline_dir import InlineEntries
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.dirent import (
    DIR_ENTRY_2,
    EXT4_FT_DIR,
    EXT4_FT_MAX,
    EXT4_NAME_LEN,
    dirent_size,
    rec_len_from_disk,
)
from py4fs.ext4.layout.htree import DX_HASH_TEA
from py4fs.ext4.layout.inode import EXT4_INDEX_FL
from py4fs.ext4.name_rules import NameRules
from py4fs.ext4.names import DOTS, Names
from py4fs.ext4.transaction import Operation

log = logging.getLogger(__name__)

MAX_SIZE: Final = 0xFFFFFFFF
"""Bytes of a directory without largedir: only the low half of its size counts."""

_versions: Final = count(1)


class Blocks(Protocol):
    """The part of `FileMap` that is needed."""

    def block_of(self, inode: Inode, lblk: int) -> int: ...

    def append_block(self, tx: Operation, inode: Inode) -> tuple[int, int]: ...

    def init(self, inode: Inode) -> None: ...


@dataclass(frozen=True, slots=True)
class DirContext:
    """What the directories of a volume share."""

    block_size: int
    blocks_count: int
    inodes_count: int
    hash_seed: tuple[int, int, int, int]
    hash_version: int
    """s_def_hash_version: what new indexes use (0..2)."""
    hash_unsigned: bool
    """s_flags has EXT2_FLAGS_UNSIGNED_HASH."""
    metadata_csum: bool
    filetype: bool
    dir_index: bool
    largedir: bool
    buffers: BufferCache
    files: Blocks
    rules: NameRules = field(default_factory=NameRules)
    """What names are the same, and how they are shown."""
    max_size: int = 0
    """Bytes that no directory grows beyond; 0: no limit."""


class Directory(Store):
    """The contents of one directory. Kept in `inode.dirindex`: dropped when the inode is put back."""

    __slots__ = ("_ctx", "_in_inode", "_inode", "_last", "_pblks", "_room", "_tree", "_version", "_warned")

    def __init__(self, ctx: DirContext, inode: Inode) -> None:
        self._ctx = ctx
        self._inode = inode
        self._pblks: dict[int, int] = {}
        self._room: dict[int, int] = {}
        self._tree = HashTree(self)
        #: the entries as long as they are in the inode
        self._in_inode = InlineEntries(inode, ctx.inodes_count, self._ftype(EXT4_FT_DIR), self.names)
        self._warned = False
        self._version = next(_versions)
        #: the last name that was looked for, at which version, and where it was found
        self._last: tuple[bytes, int, tuple[DirBlock, bytes] | None] = (b"", 0, None)

    # -- what the blocks and the index need to know (Owner, Store) -----------------------------------------

    @property
    def ino(self) -> int:
        return self._inode.ino

    @property
    def seed(self) -> int | None:
        return self._inode.seed if self._ctx.metadata_csum else None

    @property
    def inodes_count(self) -> int:
        return self._ctx.inodes_count

    @property
    def max_levels(self) -> int:
        return 3 if self._ctx.largedir else 2

    @property
    def hash_seed(self) -> tuple[int, int, int, int]:
        return self._ctx.hash_seed

    @property
    def hash_unsigned(self) -> bool:
        return self._ctx.hash_unsigned

    @property
    def names(self) -> Names:
        return self._ctx.rules.of(self._inode.flags)

    @property
    def any_bytes(self) -> bool:
        return self.names.any_bytes

    @property
    def hash_in_entry(self) -> bool:
        return self.names.hash_in_entry

    def shown_names(self, block: DirBlock) -> dict[bytes, bytes] | None:
        """How the names of a leaf are shown, by what is stored; None: as they are stored. Raises Corrupt."""
        names, ctx = self.names, self._ctx
        if not names.any_bytes:
            return None
        version: int | None = None
        if self.indexed:
            version = self._tree.root().hash_version
        elif ctx.dir_index and self.nblocks == 1:
            version = ctx.hash_version
        if version is not None and ctx.hash_unsigned and version <= DX_HASH_TEA:
            version += UNSIGNED_OFFSET
        return names.shown(block, version, ctx.hash_seed)

    @property
    def nblocks(self) -> int:
        """The directory's size in blocks; one that is in the inode looks like a block. Raises Corrupt."""
        if self._inode.is_inline:
            return 1
        blocks, rest = divmod(self._inode.size, self._ctx.block_size)
        if rest or not 0 < blocks <= self._ctx.blocks_count:
            want = f"whole blocks of {self._ctx.block_size} bytes"
            raise Corrupt("directory size", self.name_of(), self._inode.size, want)
        return blocks

    @property
    def indexed(self) -> bool:
        return bool(self._inode.flags & EXT4_INDEX_FL) and self._ctx.dir_index and not self._inode.is_inline

    @property
    def alive(self) -> bool:
        """False once the directory was removed while someone still holds it."""
        return self._inode.nlink > 0

    @property
    def version(self) -> int:
        """Changes with the entries, and never the same for two objects; 0 in an outdated object."""
        return self._version if self._inode.dirindex is self else 0

    @property
    def tree(self) -> HashTree:
        return self._tree

    def name_of(self) -> str:
        return f"directory inode {self._inode.ino}"

    def block(self, lblk: int, kind: int) -> DirBlock:
        """A block, verified and parsed as `kind`. Raises Corrupt, BadChecksum, DeviceError."""
        block = self._ctx.buffers.hit(self._pblks.get(lblk, 0))
        if not isinstance(block, DirBlock):
            block = self._load(lblk, kind)
        if block.owner != self._inode.ino or block.lblk != lblk:
            raise self._stolen(block, lblk)
        if not block.ready or block.kind != kind:
            block.prepare(kind)
        return block

    def _load(self, lblk: int, kind: int) -> DirBlock:
        return self._ctx.buffers.get(
            self._pblk(lblk), DirBlock, lambda pblk, raw: DirBlock.load(pblk, self, lblk, raw, kind)
        )

    def _pblk(self, lblk: int) -> int:
        pblk = self._pblks.get(lblk)
        if pblk is None:
            pblk = self._pblks[lblk] = self._ctx.files.block_of(self._inode, lblk)
        return pblk

    def _stolen(self, block: DirBlock, lblk: int) -> Corrupt:
        """A cached block is, on a damaged image, another directory's, or twice in this one."""
        where = f"{self.name_of()}, logical block {lblk}"
        return Corrupt("directory block", where, f"block {block.pblk}, in use elsewhere")

    def new_block(self, tx: Operation) -> DirBlock:
        """A block added at the end, without contents; already touched. Raises NoSpace, FileTooBig."""
        if not self._ctx.largedir and self._inode.size + self._ctx.block_size > MAX_SIZE:
            raise FileTooBig(f"{self.name_of()}: at its largest size")
        if self._ctx.max_size and self._inode.size >= self._ctx.max_size:
            raise NoSpace(f"{self.name_of()}: at its largest size, {self._ctx.max_size} bytes (max_dir_size_kb)")
        lblk, pblk = self._ctx.files.append_block(tx, self._inode)
        self._pblks[lblk] = pblk
        tx.on_abort(self._pblks.clear)
        block = DirBlock(pblk, self, lblk, bytes(self._ctx.block_size), LEAF)
        self._ctx.buffers.create(tx, block)
        return block

    def scan_block(self, lblk: int) -> DirBlock:
        """A block for a linear walk, where index blocks look like blocks without names.

        Blocks that may belong to an index are not verified here: what they are, only the index knows.
        """
        if self._inode.is_inline:
            return self._in_inode.view()
        if not self.indexed:
            return self.block(lblk, LEAF)
        block = self._ctx.buffers.get(self._pblk(lblk), DirBlock, lambda pblk, raw: self._load_any(pblk, lblk, raw))
        if block.owner != self._inode.ino or block.lblk != lblk:
            raise self._stolen(block, lblk)
        if block.kind not in (LEAF, OPAQUE):
            # The cached object keeps the index of its kind.
            block = DirBlock(block.pblk, self, lblk, block.data, OPAQUE)
        block.prepare(block.kind)
        return block

    def _load_any(self, pblk: int, lblk: int, raw: bytes) -> DirBlock:
        size = self._ctx.block_size
        ino, rec_len, _, _ = DIR_ENTRY_2.unpack_from(raw)
        maybe_node = not ino and rec_len_from_disk(rec_len, size) == size
        return DirBlock.load(pblk, self, lblk, raw, OPAQUE if maybe_node or not lblk else LEAF)

    # -- finding -------------------------------------------------------------------------------------------

    def lookup(self, name: bytes) -> tuple[int, int] | None:
        """(inode number, file_type) of a name, None when it is not there. Raises Corrupt, DeviceError."""
        self.names.check(name)
        found = self._find(name)
        return None if found is None else self._entry(*found)

    def lookup_stored(self, name: bytes) -> tuple[int, int] | None:
        """As :meth:`lookup`, of a name as it is stored. Raises Corrupt, DeviceError."""
        if not self.names.any_bytes:
            return self.lookup(name)
        for lblk in range(self.nblocks):
            block = self.scan_block(lblk)
            if name in block.names:
                return self._entry(block, name)
        return None

    def _entry(self, block: DirBlock, name: bytes) -> tuple[int, int]:
        ino, ftype = block.at(block.names[name])
        return ino, self.known_ftype(ftype)

    def known_ftype(self, ftype: int) -> int:
        """A file_type as it may be shown: 0 for what the image does not record, or nobody knows."""
        return ftype if self._ctx.filetype and ftype < EXT4_FT_MAX else 0

    def _find(self, name: bytes) -> tuple[DirBlock, bytes] | None:
        """The block that holds a name, and how it is stored there.

        Most names are looked for twice or more: to see whether they are there, and then to change that.
        """
        last, version, found = self._last
        if last == name and version == self._version and (found is None or self._is_current(found[0])):
            return found
        found = self._look(name)
        self._last = (name, self._version, found)
        return found

    def _is_current(self, block: DirBlock) -> bool:
        return self._ctx.buffers.hit(block.pblk) is block

    def _look(self, name: bytes) -> tuple[DirBlock, bytes] | None:
        if not self.indexed or not self.names.hashable(name):
            return self._find_linear(name)
        if name in DOTS:
            block = self.scan_block(0)
            return (block, name) if name in block.names else None
        try:
            return self._tree.find(name)
        except BadIndex as exc:
            self.warn(exc)
            return self._find_linear(name)

    def _find_linear(self, name: bytes) -> tuple[DirBlock, bytes] | None:
        for lblk in range(self.nblocks):
            block = self.scan_block(lblk)
            stored = self.names.stored(block, name)
            if stored is not None:
                return block, stored
        return None

    def warn(self, exc: BadIndex) -> None:
        """Say once that the index is not used."""
        if not self._warned:
            self._warned = True
            log.warning("%s; reading the directory without its index, run e2fsck", exc)

    def parent(self) -> int:
        """The inode number of '..'. Raises Corrupt when there is none."""
        block = self.scan_block(0)
        if b".." not in block.names:
            raise Corrupt("directory", self.name_of(), "no '..'")
        return self._entry(block, b"..")[0]

    def is_empty(self) -> bool:
        """Whether there is nothing but '.' and '..'. Raises Corrupt, DeviceError."""
        for lblk in range(self.nblocks):
            names = self.scan_block(lblk).names
            if len(names) > 2 or any(name not in DOTS for name in names):
                return False
        return True

    # -- reading -------------------------------------------------------------------------------------------

    def entries(self, cookie: int = 0, reader: ReaderState | None = None) -> Iterator[Entry]:
        """The entries after `cookie` (0: all), '.' and '..' first (see `dirread`). Raises Corrupt.

        `reader` is the handle's memory; without one, cookies are exact as long as nobody adds entries.
        """
        return read_entries(self, cookie, reader)

    # -- changing ------------------------------------------------------------------------------------------

    def init_empty(self, tx: Operation, parent_ino: int) -> None:
        """Make a new directory's '.' and '..', in the inode where that can be, else in a block. Raises NoSpace."""
        self._version = next(_versions)
        if self._in_inode.create(tx, parent_ino):
            return
        self._ctx.files.init(self._inode)
        ftype = self._ftype(EXT4_FT_DIR)
        block = self.new_block(tx)
        block.fill([Placement(b".", self._inode.ino, ftype, None), Placement(b"..", parent_ino, ftype, None)])

    def _ftype(self, ftype: int) -> int:
        return ftype if self._ctx.filetype else 0

    def add(self, tx: Operation, name: bytes, ino: int, ftype: int) -> None:
        """Add an entry; that the name is free is the caller's check. Raises NoSpace, NameTooLong, Corrupt,
        Invalid (a name that strict case folding does not know).

        Grows the directory by what a split needs: at most a leaf and a block per index level.
        """
        if len(name) > EXT4_NAME_LEN:
            raise NameTooLong(f"name of {len(name)} bytes")
        assert name and 0x2F not in name and 0 not in name, name
        self.names.check_new(name)
        self._version = next(_versions)
        ftype = self._ftype(ftype)
        if self._inode.is_inline:
            if self._in_inode.add(tx, Placement(name, ino, ftype, None)):
                return
            self._leave_inline(tx)
        if self.indexed:
            self._tree.add(tx, name, ino, ftype)
        else:
            if self._inode.flags & EXT4_INDEX_FL:
                # dir_index was turned off: the first change outside the index makes it stale
                tx.touch(self._inode)
                self._inode.flags &= ~EXT4_INDEX_FL
            self._add_linear(tx, Placement(name, ino, ftype, None))

    def _leave_inline(self, tx: Operation) -> None:
        """The entries move from the inode to a block (kernel: ext4_convert_inline_data_nolock)."""
        records = self._in_inode.take_out(tx)
        self._inode.size = 0
        self._ctx.files.init(self._inode)
        self.new_block(tx).adopt(records)

    def _add_linear(self, tx: Operation, entry: Placement) -> None:
        need = dirent_size(len(entry.name))
        nblocks = self.nblocks
        room = self._room
        for lblk in range(nblocks):
            if room.get(lblk, need) < need:
                continue
            block = self.block(lblk, LEAF)
            slot = block.find_room(need)
            if slot is not None:
                tx.touch(block)
                block.insert(slot, entry)
                return
            room[lblk] = max(block.room, default=0)
        if nblocks == 1 and self._ctx.dir_index:
            self._make_indexed(tx, entry)
            return
        block = self.new_block(tx)
        block.fill([entry])

    def _make_indexed(self, tx: Operation, entry: Placement) -> None:
        """Convert a full one-block directory: its entries move to a new leaf, which is split to get room."""
        root = self.block(0, LEAF)
        listing = root.listing()
        if [e.name for e in listing[:2]] != list(DOTS) or listing[1].offset != DOTDOT_OFFSET:
            raise Corrupt("directory", self.name_of(), "first entries that are not '.' and '..'")
        leaf = self.new_block(tx)
        tx.touch(root)
        tx.touch(self._inode)
        dotdot = listing[1]
        leaf.adopt(root.data[dotdot.offset + dotdot.size : root.leaf_end])
        root.make_root(dotdot.ino, dotdot.ftype, self._ctx.hash_version, leaf.lblk)
        self._inode.flags |= EXT4_INDEX_FL
        path = Path()
        path.blocks.append(root)
        path.at.append(0)
        hash_ = self._tree.hash_of(entry.name)
        leaf = self._tree.split_leaf(tx, path, leaf, hash_)
        slot = leaf.find_room(dirent_size(len(entry.name)))
        if slot is None:
            raise NoSpace(f"{self.name_of()}: no room after the split")
        entry.hash = hash_
        leaf.insert(slot, entry)

    def remove(self, tx: Operation, name: bytes) -> None:
        """Remove an entry. Raises NotFound, Corrupt."""
        assert name not in DOTS, name
        if self._inode.is_inline:
            self._in_inode.remove(tx, self._known(name))
            return
        block, stored = self._changeable(tx, name)
        block.remove(stored)
        self._room.pop(block.lblk, None)

    def replace(self, tx: Operation, name: bytes, ino: int, ftype: int) -> None:
        """Point an entry ('..' included) to another inode. Raises NotFound, Corrupt."""
        ftype = self._ftype(ftype)
        if self._inode.is_inline:
            self._in_inode.replace(tx, self._known(name), ino, ftype)
            return
        if name == b".." and self.indexed:
            root = self._tree.root()
            tx.touch(root)
            root.replace(DOTDOT_OFFSET, ino, ftype)
            self._version = next(_versions)
            return
        block, stored = self._changeable(tx, name)
        block.replace(block.names[stored], ino, ftype)

    def _known(self, name: bytes) -> bytes:
        """How a name of an inline directory is stored, which is about to change."""
        found = self._find(name)
        if found is None:
            raise NotFound(f"{self.name_of()}: no entry {name!r}")
        self._version = next(_versions)
        return found[1]

    def _changeable(self, tx: Operation, name: bytes) -> tuple[DirBlock, bytes]:
        """The block that holds `name`, touched, and how it is stored there."""
        found = self._find(name)
        if found is None:
            raise NotFound(f"{self.name_of()}: no entry {name!r}")
        block, stored = found
        if block.kind != LEAF:
            raise Corrupt("directory", self.name_of(), f"entry {name!r} inside the index")
        self._version = next(_versions)
        tx.touch(block)
        return block, stored


__all__ = ["BadIndex", "DirContext", "Directory", "Entry", "ReaderState"]
