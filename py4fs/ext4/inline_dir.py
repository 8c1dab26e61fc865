"""The entries of a directory that is in its inode (ext4 docs: Inline Directories).

i_block begins with the inode number of the parent; '.' and '..' have no entries. The rest of it is one list of
entries, the attribute system.data another one, and no entry lies in both. For reading they look like the one block
that they become when they no longer fit: offsets, and so readdir's cookies, are those of that block.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from py4fs.ext4 import inline
from py4fs.ext4.dirblock import DOTDOT_OFFSET, LEAF, MIN_ENTRY, DirBlock, Placement
from py4fs.ext4.inode import IBLOCK_SIZE, Inode
from py4fs.ext4.layout.dirent import DIR_ENTRY_2, dirent_size
from py4fs.ext4.names import Names
from py4fs.ext4.transaction import Operation

PARENT_SIZE: Final = 4
"""Bytes of i_block with the parent's number."""


class _AreaOwner(NamedTuple):
    """The directory as its areas see it: without checksums and index."""

    ino: int
    inodes_count: int
    any_bytes: bool
    hash_in_entry: bool
    seed: int | None = None
    max_levels: int = 0


class InlineEntries:
    """Only to be used while the inode is inline (but for `create`). Keeps the block that they look like."""

    __slots__ = ("_inode", "_owner", "_type", "_view", "_viewed")

    def __init__(self, inode: Inode, inodes_count: int, dir_type: int, names: Names) -> None:
        """``dir_type``: file_type of a directory in entries of this file system."""
        self._inode = inode
        self._owner = _AreaOwner(inode.ino, inodes_count, names.any_bytes, names.hash_in_entry)
        self._type = dir_type
        self._view: DirBlock | None = None
        self._viewed: tuple[bytes, bytes] = (b"", b"")

    # -- reading -------------------------------------------------------------------------------------------

    def view(self) -> DirBlock:
        """All entries as one block, for reading. Raises Corrupt."""
        now = bytes(self._inode.iblock), self._inode.ibody
        if self._view is None or now != self._viewed:
            self._view, self._viewed = self._block(self._as_block()), now
        return self._view

    def _as_block(self) -> bytes:
        stored = inline.read(self._inode)
        parent = int.from_bytes(stored[:PARENT_SIZE], "little")
        dots = bytearray()
        for name, ino in ((b".", self._inode.ino), (b"..", parent)):
            dots += DIR_ENTRY_2.pack(ino, DOTDOT_OFFSET, len(name), self._type) + name.ljust(4, b"\0")
        return bytes(dots) + stored[PARENT_SIZE:]

    def _block(self, data: bytes) -> DirBlock:
        block = DirBlock(0, self._owner, 0, data, LEAF)
        block.prepare(LEAF)
        return block

    def _areas(self) -> list[tuple[int, DirBlock]]:
        """(where it begins in what is stored, entries) of i_block and, if it is not empty, the attribute."""
        stored = inline.read(self._inode)
        areas = [(PARENT_SIZE, self._block(stored[PARENT_SIZE:IBLOCK_SIZE]))]
        if len(stored) > IBLOCK_SIZE:
            areas.append((IBLOCK_SIZE, self._block(stored[IBLOCK_SIZE:])))
        return areas

    # -- changing ------------------------------------------------------------------------------------------

    def create(self, tx: Operation, parent_ino: int) -> bool:
        """Make a new directory inline; False: it has to have a block."""
        if not inline.prepare(tx, self._inode, IBLOCK_SIZE):
            return False
        empty = DIR_ENTRY_2.pack(0, IBLOCK_SIZE - PARENT_SIZE, 0, 0)
        inline.write(tx, self._inode, 0, parent_ino.to_bytes(PARENT_SIZE, "little") + empty)
        self._inode.size = IBLOCK_SIZE
        return True

    def add(self, tx: Operation, entry: Placement) -> bool:
        """Add an entry where it fits, i_block first; False: there is no room. Raises Corrupt."""
        areas = self._areas()
        if len(areas) == 1 and areas[0][1].find_room(dirent_size(len(entry.name))) is None and self._extend(tx):
            areas = self._areas()
        for start, area in areas:
            slot = area.find_room(dirent_size(len(entry.name)))
            if slot is not None:
                area.insert(slot, entry)
                inline.write(tx, self._inode, start, bytes(area.data))
                return True
        return False

    def _extend(self, tx: Operation) -> bool:
        """Take all the room that there is for the attribute; False: too little (kernel: ext4_update_inline_dir)."""
        size = inline.capacity(self._inode)
        if size - IBLOCK_SIZE <= MIN_ENTRY or not inline.prepare(tx, self._inode, size):
            return False
        inline.write(tx, self._inode, IBLOCK_SIZE, DIR_ENTRY_2.pack(0, size - IBLOCK_SIZE, 0, 0))
        self._inode.size = size
        return True

    def _area_of(self, name: bytes) -> tuple[int, DirBlock]:
        return next((start, area) for start, area in self._areas() if name in area.names)

    def remove(self, tx: Operation, name: bytes) -> None:
        """Remove an entry that is there. Raises Corrupt."""
        start, area = self._area_of(name)
        area.remove(name)
        inline.write(tx, self._inode, start, bytes(area.data))

    def replace(self, tx: Operation, name: bytes, ino: int, ftype: int) -> None:
        """Point an entry that is there ('..' included) to another inode. Raises Corrupt."""
        if name == b"..":
            inline.write(tx, self._inode, 0, ino.to_bytes(PARENT_SIZE, "little"))
            return
        start, area = self._area_of(name)
        area.replace(area.names[name], ino, ftype)
        inline.write(tx, self._inode, start, bytes(area.data))

    def take_out(self, tx: Operation) -> bytes:
        """End being inline: returns the records of the block that takes over. Raises Corrupt."""
        records = self._as_block()
        self._block(records)  # a damaged one stays where it is
        inline.take_out(tx, self._inode)
        return records


__all__ = ["InlineEntries"]
