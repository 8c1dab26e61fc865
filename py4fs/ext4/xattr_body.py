"""The attributes that are in an inode itself, behind its fields (ext4 docs: Extended Attributes)."""

from __future__ import annotations

from typing import Final

from py4fs.errors import NoSpace
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.xattr import EXT4_XATTR_MAGIC, XATTR_IBODY_HEADER
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr_region import END_SIZE, InodeValue, Xattrs, build, changed, parse

IBODY_HEAD: Final = XATTR_IBODY_HEADER.pack(EXT4_XATTR_MAGIC)


def has_room(inode: Inode) -> bool:
    """Whether there is any place for attributes in the inode."""
    return len(inode.ibody) >= len(IBODY_HEAD) + END_SIZE


def room(inode: Inode) -> int:
    """Bytes that all attributes in the inode may take (as `xattr_region.space` counts)."""
    return len(inode.ibody) - len(IBODY_HEAD) if has_room(inode) else 0


def attributes(inode: Inode) -> Xattrs:
    """The attributes in the inode; parsed once. Raises Corrupt."""
    body = inode.ibody
    cached: tuple[bytes, Xattrs] | None = inode.xattrs
    if cached is not None and cached[0] is body:
        return cached[1]
    attrs: Xattrs = ()
    if has_room(inode) and body.startswith(IBODY_HEAD):
        head = len(IBODY_HEAD)
        attrs = parse(body, head, head, f"inode {inode.ino}")
    inode.xattrs = (body, attrs)
    return attrs


def with_change(inode: Inode, index: int, name: bytes, value: bytes | InodeValue | None) -> Xattrs:
    """The attributes with one set, or removed (None). Raises NoSpace, Corrupt."""
    if not has_room(inode):
        raise NoSpace(f"inode {inode.ino} has no room for attributes")
    return changed(attributes(inode), index, name, value, block=False, room=room(inode))


def store(tx: Operation, inode: Inode, attrs: Xattrs) -> None:
    """Put these attributes, for which there is room, into the inode in place of the old ones."""
    tx.touch(inode)
    size = len(inode.ibody)
    inode.ibody = build(attrs, IBODY_HEAD, size, len(IBODY_HEAD)) if attrs else bytes(size)
    inode.xattrs = (inode.ibody, attrs)
