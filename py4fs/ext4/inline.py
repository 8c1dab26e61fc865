"""Inline data: contents in the inode, the first 60 bytes in i_block, the rest in the attribute system.data.

When a file is made inline, grows, shrinks and leaves the inode follows the kernel (inline.c), so that the same
operations end in the same images. Sizes and positions are in bytes. (ext4 docs: Inline Data.)
"""

from __future__ import annotations

from typing import Final

from py4fs.errors import Corrupt
from py4fs.ext4 import xattr_body
from py4fs.ext4.inode import IBLOCK_SIZE, Inode
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL, EXT4_INLINE_DATA_FL
from py4fs.ext4.layout.xattr import EXT4_XATTR_INDEX_SYSTEM, entry_size, value_size
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr_region import Xattr, find, space

INDEX, NAME = EXT4_XATTR_INDEX_SYSTEM, b"data"
_ENTRY: Final = entry_size(len(NAME))


def _attribute(inode: Inode) -> Xattr:
    attr = find(xattr_body.attributes(inode), INDEX, NAME)
    if attr is None:
        raise Corrupt("inline data", f"inode {inode.ino}", "no attribute system.data in the inode", "one")
    if attr.inum:
        raise Corrupt("inline data", f"inode {inode.ino}", f"system.data in inode {attr.inum}", "in the inode itself")
    return attr


def stored_size(inode: Inode) -> int:
    """How much the inode holds now, which may be more than its size: i_block and the attribute. Raises Corrupt."""
    return IBLOCK_SIZE + len(_attribute(inode).value)


def read(inode: Inode) -> bytes:
    """All that is stored. Raises Corrupt."""
    return bytes(inode.iblock) + _attribute(inode).value


def capacity(inode: Inode) -> int:
    """How much the inode could hold, 0 where it cannot hold anything (kernel: ext4_get_max_inline_size).

    Raises Corrupt.
    """
    attrs = xattr_body.attributes(inode)
    free = xattr_body.room(inode) - space(attrs)
    free += value_size(len(_attribute(inode).value)) if inode.is_inline else -_ENTRY
    return IBLOCK_SIZE + free if free > 0 else 0


def prepare(tx: Operation, inode: Inode, size: int) -> bool:
    """Make room for ``size`` bytes of data, making a new file inline; False: they do not fit, nothing changed.

    Raises Corrupt.
    """
    if not inode.is_inline and not inode.may_inline:
        return False
    if capacity(inode) < size:
        return False
    if inode.is_inline:
        if size > stored_size(inode):
            _resize(tx, inode, size)
        return True
    _resize(tx, inode, size)
    inode.iblock[:] = bytes(IBLOCK_SIZE)
    inode.flags = inode.flags & ~EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL
    inode.mapper = None
    return True


def _resize(tx: Operation, inode: Inode, size: int) -> None:
    """Let the attribute hold what is beyond i_block of ``size`` bytes of data; what is new is zeros."""
    old = find(xattr_body.attributes(inode), INDEX, NAME)
    length = max(size - IBLOCK_SIZE, 0)
    value = (b"" if old is None else old.value)[:length].ljust(length, b"\0")
    xattr_body.store(tx, inode, xattr_body.with_change(inode, INDEX, NAME, value))


def write(tx: Operation, inode: Inode, pos: int, data: bytes) -> None:
    """Overwrite what is stored from ``pos`` on; :func:`prepare` has made room. Raises Corrupt."""
    tx.touch(inode)
    stored = bytearray(read(inode))
    assert pos + len(data) <= len(stored)
    stored[pos : pos + len(data)] = data
    inode.iblock[:] = stored[:IBLOCK_SIZE]
    rest = bytes(stored[IBLOCK_SIZE:])
    if rest != _attribute(inode).value:
        xattr_body.store(tx, inode, xattr_body.with_change(inode, INDEX, NAME, rest))


def truncate(tx: Operation, inode: Inode, size: int) -> None:
    """Store no more than ``size`` bytes (kernel: ext4_inline_data_truncate). Raises Corrupt."""
    stored = stored_size(inode)
    if size >= stored:
        return
    tx.touch(inode)
    if stored > IBLOCK_SIZE:
        _resize(tx, inode, size)
    if size < IBLOCK_SIZE:
        inode.iblock[size:] = bytes(IBLOCK_SIZE - size)


def take_out(tx: Operation, inode: Inode) -> bytes:
    """End being inline: returns what was stored; the inode has neither data nor a map then. Raises Corrupt."""
    data = read(inode)
    xattr_body.store(tx, inode, xattr_body.with_change(inode, INDEX, NAME, None))
    inode.iblock[:] = bytes(IBLOCK_SIZE)
    inode.flags &= ~EXT4_INLINE_DATA_FL
    inode.may_inline = False
    inode.mapper = None
    return data
