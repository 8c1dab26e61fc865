"""Attributes' values in inodes of their own (ea_inode): made, shared by whoever has the same value, counted, dropped.

Such an inode has no name. Its times and version hold what the value needs: atime in seconds the value's hash, ctime
in seconds and i_version the number of attributes that refer to it (kernel: xattr.c). Values are metadata: they go
through the journal like the attributes that refer to them.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Final

from py4fs.errors import Corrupt, FsError
from py4fs.ext4 import checksum
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache, RawBlock
from py4fs.ext4.file import FileMap
from py4fs.ext4.inode import NS, Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.layout.inode import EXT4_EA_INODE_FL, S_IFREG
from py4fs.ext4.orphan import Orphans
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr_region import InodeValue, Xattr, entry_hash

KNOWN_VALUES: Final = 4096
_M: Final = 0xFFFFFFFF


class EaInodes:
    """The values of one volume that are kept in inodes."""

    def __init__(
        self,
        seed: int,
        inodes: InodeTable,
        alloc: Allocator,
        files: FileMap,
        buffers: BufferCache,
        orphans: Orphans,
        rng: random.Random,
    ) -> None:
        """``seed``: the file system's checksum seed, which hashes begin with."""
        self._seed = seed
        self._inodes = inodes
        self._alloc = alloc
        self._files = files
        self._buffers = buffers
        self._orphans = orphans
        self._rng = rng
        #: inodes seen, by the hash of their values: hints, every hit is compared
        self._known: OrderedDict[int, list[int]] = OrderedDict()
        #: numbers of inodes that nothing refers to any more: orphans, to be evicted between operations
        self.dropped: list[int] = []

    def credits(self, size: int, groups: int) -> int:
        """Metadata objects that storing a value of ``size`` bytes, and dropping another one, can touch."""
        blocks = -(-size // self._files.block_size) + 2
        return 2 * min(blocks, groups) + blocks + 12

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, parent: Inode, attr: Xattr) -> bytes:
        """The value of an attribute of ``parent``. Raises Corrupt, Stale, DeviceError."""
        where = f"inode {attr.inum}, attribute {attr.name!r} of inode {parent.ino}"
        inode = self._inodes.get_value(attr.inum)
        if inode.size != attr.size:
            raise Corrupt("attribute's inode", where, f"{inode.size} bytes", f"{attr.size} bytes")
        value = self._contents(inode)
        if self._is_old_form(parent, inode):
            return value
        digest = self._hash(value)
        raw = digest.to_bytes(4, "little")
        if digest != _stored_hash(inode):
            raise Corrupt("hash of attribute's value", where, f"{digest:#010x}", f"{_stored_hash(inode):#010x}")
        if attr.hash not in (entry_hash(attr.name, raw), entry_hash(attr.name, raw, signed=True)):
            raise Corrupt("hash of attribute", where, f"{attr.hash:#010x}", f"{entry_hash(attr.name, raw):#010x}")
        self._note(digest, attr.inum)
        return value

    def counted_size(self, parent: Inode, attr: Xattr) -> int:
        """Bytes that count in i_blocks of ``parent``: none of the old form. Raises Corrupt, Stale, DeviceError."""
        inode = self._inodes.get_value(attr.inum)
        return 0 if self._is_old_form(parent, inode) else attr.size

    def _is_old_form(self, parent: Inode, inode: Inode) -> bool:
        """Without hashes and references, as Lustre made them: the inode belongs to one file."""
        return self._lustre_parent(inode) == parent.ino and inode.generation == parent.generation

    @staticmethod
    def _lustre_parent(inode: Inode) -> int:
        return inode.mtime // NS & _M

    def _contents(self, inode: Inode) -> bytes:
        parts = []
        for lblk in range(-(-inode.size // self._files.block_size)):
            pblk = self._files.block_of(inode, lblk)
            parts.append(bytes(self._buffers.get(pblk, RawBlock, RawBlock).data))
        return b"".join(parts)[: inode.size]

    def _hash(self, value: bytes) -> int:
        return checksum.crc32c(self._seed, value)

    # -- referring to values -------------------------------------------------------------------------------

    def acquire(self, tx: Operation, parent: Inode, value: bytes) -> InodeValue:
        """A reference to an inode that holds ``value``, one that exists where there is one.

        ``parent``: whose attribute it is. Raises NoSpace, Corrupt, DeviceError.
        """
        digest = self._hash(value)
        for ino in list(self._known.get(digest, ())):
            if self._holds(ino, digest, value):
                self.refer(tx, ino)
                return InodeValue(ino, len(value), digest)
        inode = self._create(tx, parent, value, digest)
        self._note(digest, inode.ino)
        tx.on_abort(lambda: self._forget(digest, inode.ino))
        return InodeValue(inode.ino, len(value), digest)

    def _holds(self, ino: int, digest: int, value: bytes) -> bool:
        try:
            inode = self._inodes.get_value(ino)
            same = inode.size == len(value) and self._contents(inode) == value and _stored_hash(inode) == digest
        except FsError:
            same = False
        if not same:
            self._forget(digest, ino)
        return same

    def _create(self, tx: Operation, parent: Inode, value: bytes, digest: int) -> Inode:
        ino = self._alloc.new_inode(tx, parent.ino, False, b"", False)
        inode = self._inodes.new(tx, ino, self._rng.getrandbits(32))
        inode.mode = S_IFREG | 0o600
        inode.nlink = 1
        inode.uid, inode.gid = parent.uid, parent.gid
        inode.mtime = tx.now
        inode.flags = EXT4_EA_INODE_FL
        self._files.init(inode)
        _set_references(inode, 1)
        inode.atime = digest * NS
        size = self._files.block_size
        for run in self._files.allocate(tx, inode, 0, -(-len(value) // size), unwritten=False):
            for lblk in range(run.lblk, run.end):
                part = value[lblk * size : (lblk + 1) * size].ljust(size, b"\0")
                self._buffers.create(tx, RawBlock(run.pblk + lblk - run.lblk, part))
        inode.size = len(value)
        return inode

    def refer(self, tx: Operation, ino: int) -> None:
        """One more attribute has this value. Raises Corrupt, Stale, DeviceError."""
        inode = self._inodes.get_value(ino)
        tx.touch(inode)
        _set_references(inode, _references(inode) + 1)

    def drop(self, tx: Operation, parent: Inode, attr: Xattr) -> None:
        """One attribute fewer has its value; after the last one the inode is an orphan, and in `dropped`.

        Raises Corrupt, Stale, DeviceError.
        """
        inode = self._inodes.get_value(attr.inum)
        tx.touch(inode)
        left = 0 if self._is_old_form(parent, inode) else max(_references(inode) - 1, 0)
        _set_references(inode, left)
        if left:
            return
        self._forget(_stored_hash(inode), attr.inum)
        inode.nlink = 0
        self._orphans.add(tx, inode)
        self.dropped.append(attr.inum)
        tx.on_abort(lambda: self.dropped.remove(attr.inum))

    # -- hints ---------------------------------------------------------------------------------------------

    def _note(self, digest: int, ino: int) -> None:
        inos = self._known.setdefault(digest, [])
        self._known.move_to_end(digest)
        if ino not in inos:
            inos.append(ino)
        if len(self._known) > KNOWN_VALUES:
            self._known.popitem(last=False)

    def _forget(self, digest: int, ino: int) -> None:
        inos = self._known.get(digest, [])
        if ino in inos:
            inos.remove(ino)
            if not inos:
                del self._known[digest]


def _stored_hash(inode: Inode) -> int:
    return inode.atime // NS & _M


def _references(inode: Inode) -> int:
    return (inode.ctime // NS & _M) << 32 | inode.version & _M


def _set_references(inode: Inode, count: int) -> None:
    inode.ctime = (count >> 32) * NS
    inode.version = count & _M
