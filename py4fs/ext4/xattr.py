"""Extended attributes of inodes: in the inode where there is room, else in one block.

Placement, sharing of identical blocks and accounting follow the kernel, so that free counts and i_blocks come out
the same. With ea_inode, large values are in inodes of their own (`ea_inode`); without it, what does not fit one block
is refused (NoSpace).
(ext4 docs: Extended Attributes.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from py4fs.errors import Corrupt, Exists, FsError, Invalid, NoData, NoSpace, NotSupported, OutOfRange, TooBig
from py4fs.ext4 import acl as posix_acl
from py4fs.ext4 import xattr_body
from py4fs.ext4.acl import Acl
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.ea_inode import EaInodes
from py4fs.ext4.features import Compat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.xattr import (
    EXT4_XATTR_INDEX_HURD,
    EXT4_XATTR_INDEX_POSIX_ACL_ACCESS,
    EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT,
    EXT4_XATTR_INDEX_SECURITY,
    EXT4_XATTR_INDEX_TRUSTED,
    EXT4_XATTR_INDEX_USER,
    EXT4_XATTR_REFCOUNT_MAX,
    XATTR_HEADER,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    entry_size,
    join_name,
    split_name,
    value_size,
)
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr_block import SharedBlocks, XattrBlock
from py4fs.ext4.xattr_region import InodeValue, Xattr, Xattrs, block_hash, changed, find

VISIBLE: Final = (
    EXT4_XATTR_INDEX_USER,
    EXT4_XATTR_INDEX_POSIX_ACL_ACCESS,
    EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT,
    EXT4_XATTR_INDEX_TRUSTED,
    EXT4_XATTR_INDEX_SECURITY,
    EXT4_XATTR_INDEX_HURD,
)
"""Namespaces that users see; attributes of others are kept as they are."""
#: values in inodes that one operation gives up at most
RELEASE_VALUES: Final = 16
CAPABILITY: Final = b"security.capability"


class XattrStore:
    """Attributes of all inodes of a volume. Names are full (`b"user.x"`).

    The caller checks permissions and stamps ctime when a change is reported.
    """

    def __init__(
        self,
        geometry: Geometry,
        csum_seed: int | None,
        buffers: BufferCache,
        alloc: Allocator,
        superblock: Superblock,
        values: EaInodes | None = None,
    ) -> None:
        """``values``: where values can be in inodes."""
        self.values = values
        self._geometry = geometry
        self._seed = csum_seed
        self._buffers = buffers
        self._alloc = alloc
        self._superblock = superblock
        self._shared = SharedBlocks()
        self._block_size = size = geometry.block_size
        #: what is larger goes into an inode at once (kernel: EXT4_XATTR_MIN_LARGE_EA_SIZE)
        self._large = size - entry_size(3) - XATTR_HEADER.size - 4
        #: bytes that all values of a block may take: with ea_inode some of it is left to names
        self._values_room = None if values is None else size - min(size // 8, 1024)

    def credits(self, inode: Inode, size: int, groups: int) -> int:
        """Metadata objects that setting a value of ``size`` bytes can touch, beyond what it takes without ea_inode.

        Raises Corrupt, DeviceError.
        """
        if self.values is None:
            return 0
        block = self._block(inode)
        shared = 0 if block is None else sum(1 for attr in block.attrs if attr.inum)
        return shared + self.values.credits(size, groups)

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, inode: Inode, name: bytes) -> bytes:
        """The value, an ACL in its attribute form. Raises NoData, NotSupported, Invalid, Corrupt, DeviceError."""
        default = posix_acl.xattr_kind(name)
        if default is not None:
            return self.get_acl_xattr(inode, default=default)
        value = self.find(inode, name)
        if value is None:
            raise NoData(f"inode {inode.ino} has no attribute {name!r}")
        return value

    def find(self, inode: Inode, name: bytes) -> bytes | None:
        """The value of an attribute that is no ACL, None if there is none. Raises as :meth:`get`."""
        attr = self._find(inode, *self._split(name))
        return None if attr is None else self._value(inode, attr)

    def _value(self, inode: Inode, attr: Xattr) -> bytes:
        return self._inode_values(inode).read(inode, attr) if attr.inum else attr.value

    def _inode_values(self, inode: Inode) -> EaInodes:
        if self.values is None:
            raise Corrupt("attribute", f"inode {inode.ino}", "a value in an inode", "none without ea_inode")
        return self.values

    def has_capability(self, inode: Inode) -> bool:
        """Whether the file gives its users rights (`security.capability`); asked before every write.

        Attributes that make no sense give nobody any rights (kernel: cap_inode_need_killpriv). Raises DeviceError.
        """
        try:
            if not inode.file_acl and not xattr_body.attributes(inode):
                return False
            return self._find(inode, *self._split(CAPABILITY)) is not None
        except Corrupt:
            return False

    def list(self, inode: Inode) -> list[bytes]:
        """The names of all attributes that users see, in their order on disk. Raises Corrupt, DeviceError."""
        attrs = xattr_body.attributes(inode)
        block = self._block(inode)
        if block is not None:
            attrs += block.attrs
        names = [join_name(attr.name_index, attr.name) for attr in attrs if attr.name_index in VISIBLE]
        return [name for name in names if name is not None]

    def get_acl(self, inode: Inode, *, default: bool) -> Acl | None:
        """The access or default ACL; None when the inode has none. Raises Corrupt, DeviceError."""
        attr = self._find(inode, _acl_index(default), b"")
        if attr is None:
            return None
        return posix_acl.from_disk(self._value(inode, attr), f"inode {inode.ino}")

    def get_acl_xattr(self, inode: Inode, *, default: bool) -> bytes:
        """The ACL as the value of its attribute. Raises NoData, Corrupt, DeviceError."""
        acl = self.get_acl(inode, default=default)
        if acl is None:
            raise NoData(f"inode {inode.ino} has no {'default' if default else 'access'} ACL")
        return posix_acl.to_xattr(acl)

    # -- changing ------------------------------------------------------------------------------------------

    def set(
        self,
        tx: Operation,
        inode: Inode,
        name: bytes,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
    ) -> bool:
        """Set an attribute that is no ACL; False when it had that value already (nothing changed).

        Raises Exists (`create`), NoData (`replace`), NoSpace, TooBig, OutOfRange, NotSupported, Invalid, Corrupt.
        """
        index, stored = self._split(name)
        if len(value) > XATTR_SIZE_MAX:
            raise TooBig(f"attribute value of {len(value)} bytes")
        return self._set(tx, inode, index, stored, value, create=create, replace=replace)

    def remove(self, tx: Operation, inode: Inode, name: bytes) -> None:
        """Remove an attribute that is no ACL. Raises NoData, NotSupported, Invalid, Corrupt."""
        index, stored = self._split(name)
        self._set(tx, inode, index, stored, None, replace=True)

    def set_acl(self, tx: Operation, inode: Inode, acl: Acl | None, *, default: bool) -> bool:
        """Store an ACL, or remove it (None); False when nothing changed. i_mode is the caller's.

        Raises NoSpace, Corrupt.
        """
        value = None if acl is None else posix_acl.to_disk(acl)
        return self._set(tx, inode, _acl_index(default), b"", value)

    def count_values(self, inode: Inode) -> int:
        """How many attributes have their values in inodes. Raises Corrupt, DeviceError."""
        if self.values is None:
            return 0
        block = self._block(inode)
        attrs = xattr_body.attributes(inode) + (() if block is None else block.attrs)
        return sum(1 for attr in attrs if attr.inum)

    def release(self, tx: Operation, inode: Inode) -> bool:
        """The inode is going away: give up its values in inodes, and then its attribute block.

        False: there are more values than one operation can give up. Raises Corrupt, DeviceError.
        """
        body = xattr_body.attributes(inode)
        kept, left = self._release_values(tx, inode, body, RELEASE_VALUES)
        if kept != body:
            xattr_body.store(tx, inode, kept)
        block = self._block(inode)
        if block is None or not left:
            return bool(left)
        if block.refcount == 1:
            kept, left = self._release_values(tx, inode, block.attrs, left)
            if kept != block.attrs:
                tx.touch(block)
                self._unlist(tx, block)
                block.attrs = kept
            if not left:
                return False
        for attr in block.attrs:  # those that others have, too
            if attr.inum:
                self._uncount_value(tx, inode, attr)
        tx.touch(inode)
        inode.file_acl = 0
        self._drop(tx, inode, block)
        return True

    def _release_values(self, tx: Operation, inode: Inode, attrs: Xattrs, budget: int) -> tuple[Xattrs, int]:
        """Drop values in inodes; returns the attributes without those, and what is left of the budget."""
        kept = []
        for attr in attrs:
            if attr.inum and budget:
                budget -= 1
                self._uncount_value(tx, inode, attr)
                self._inode_values(inode).drop(tx, inode, attr)
            else:
                kept.append(attr)
        return tuple(kept), budget

    @staticmethod
    @lru_cache(maxsize=256)  # the kernel asks for security.capability before every write
    def _split(name: bytes) -> tuple[int, bytes]:
        assert posix_acl.xattr_kind(name) is None, "ACLs have methods of their own"
        if not name or len(name) > XATTR_NAME_MAX:
            raise OutOfRange(f"attribute name of {len(name)} bytes")
        if b"\0" in name or (name.endswith(b".") and name.count(b".") == 1):
            raise Invalid(f"attribute name {name!r}")
        parts = split_name(name)
        if parts is None or parts[0] not in VISIBLE:
            raise NotSupported(f"attribute name {name!r}: unknown namespace")
        return parts

    # -- where attributes are ------------------------------------------------------------------------------

    def _block(self, inode: Inode) -> XattrBlock | None:
        pblk = inode.file_acl
        if not pblk:
            return None
        self._alloc.check_data_run(pblk, 1, f"i_file_acl of inode {inode.ino}")
        return self._load(pblk)

    def _load(self, pblk: int) -> XattrBlock:
        return self._buffers.get(pblk, XattrBlock, self._read_block)

    def _read_block(self, pblk: int, raw: bytes) -> XattrBlock:
        block = XattrBlock.load(pblk, raw, self._seed)
        self._shared.add(block_hash(block.attrs), pblk)
        return block

    def _find(self, inode: Inode, index: int, name: bytes) -> Xattr | None:
        attr = find(xattr_body.attributes(inode), index, name)
        if attr is None and inode.file_acl:
            block = self._block(inode)
            if block is not None:
                attr = find(block.attrs, index, name)
        return attr

    # -- changing them -------------------------------------------------------------------------------------

    def _set(
        self,
        tx: Operation,
        inode: Inode,
        index: int,
        name: bytes,
        value: bytes | None,
        *,
        create: bool = False,
        replace: bool = False,
    ) -> bool:
        body = xattr_body.attributes(inode)
        in_body = find(body, index, name)
        block = None if in_body is not None else self._block(inode)
        in_block = None if block is None else find(block.attrs, index, name)
        old = in_body or in_block
        if old is None:
            if replace:
                raise NoData(f"inode {inode.ino} has no such attribute")
            if value is None:
                return False
        elif create:
            raise Exists(f"inode {inode.ino} has such an attribute")
        elif not old.inum and old.value == value:
            return False
        if old is not None and old.inum:
            self._uncount_value(tx, inode, old)
        if value is None:
            if in_body is not None:
                self._set_body(tx, inode, index, name, None)
            else:
                self._set_block(tx, inode, block, index, name, None)
            return True
        if block is None:
            block = self._block(inode)
        new: bytes | InodeValue = value
        if self._needs_inode(inode, block, index, name, value):
            new = self._inode_values(inode).acquire(tx, inode, value)
            self._count_value(tx, inode, len(value), 1)
        if self._fits_body(inode, index, name, new):
            self._set_body(tx, inode, index, name, new)
            if in_block is not None:
                self._set_block(tx, inode, block, index, name, None)
        else:
            self._set_block(tx, inode, block, index, name, new)
            if in_body is not None:
                self._set_body(tx, inode, index, name, None)
        if not self._superblock.feature_compat & Compat.EXT_ATTR:
            tx.touch(self._superblock)
            self._superblock.feature_compat |= Compat.EXT_ATTR
        return True

    def _count_value(self, tx: Operation, inode: Inode, size: int, sign: int) -> None:
        """A value in an inode counts in i_blocks of every file that has it, and for quotas as one more inode."""
        tx.touch(inode)
        tx.values[inode] = tx.values.get(inode, 0) + sign
        geo = self._geometry
        inode.count_blocks(sign * geo.clusters(-(-size // geo.block_size)) * geo.cluster_sectors)

    def _uncount_value(self, tx: Operation, inode: Inode, attr: Xattr) -> None:
        """Raises Corrupt, Stale, DeviceError."""
        self._count_value(tx, inode, self._inode_values(inode).counted_size(inode, attr), -1)

    def _needs_inode(
        self, inode: Inode, block: XattrBlock | None, index: int, name: bytes, value: bytes
    ) -> bool:
        """Whether the value goes into an inode of its own, and not beside its name. Raises NoSpace."""
        large = self.values is not None and value_size(len(value)) > self._large
        if not large:
            try:
                self._check_fits(inode, block, index, name, value)
                return False
            except NoSpace:
                if self.values is None or not value:
                    raise
        self._check_fits(inode, block, index, name, InodeValue(1, len(value), 0))
        return True

    def _check_fits(
        self, inode: Inode, block: XattrBlock | None, index: int, name: bytes, value: bytes | InodeValue
    ) -> None:
        """Raises NoSpace when there is room neither in the inode nor in its block."""
        if not self._fits_body(inode, index, name, value):
            self._changed_block(block, index, name, value)

    @staticmethod
    def _fits_body(inode: Inode, index: int, name: bytes, value: bytes | InodeValue) -> bool:
        try:
            xattr_body.with_change(inode, index, name, value)
        except NoSpace:
            return False
        return True

    def _set_body(
        self, tx: Operation, inode: Inode, index: int, name: bytes, value: bytes | InodeValue | None
    ) -> None:
        old = find(xattr_body.attributes(inode), index, name)
        xattr_body.store(tx, inode, xattr_body.with_change(inode, index, name, value))
        if old is not None and old.inum:
            self._inode_values(inode).drop(tx, inode, old)

    def _changed_block(
        self, old: XattrBlock | None, index: int, name: bytes, value: bytes | InodeValue | None
    ) -> Xattrs:
        """Raises NoSpace."""
        return changed(
            () if old is None else old.attrs,
            index,
            name,
            value,
            block=True,
            room=self._block_size - XATTR_HEADER.size,
            values_room=self._values_room,
        )

    def _set_block(
        self,
        tx: Operation,
        inode: Inode,
        old: XattrBlock | None,
        index: int,
        name: bytes,
        value: bytes | InodeValue | None,
    ) -> None:
        """Change one attribute in the inode's block: in place when nobody shares it, else in another block.

        A value in an inode comes with a reference, which is the block's then.
        """
        attrs = self._changed_block(old, index, name, value)
        tx.touch(inode)
        new = self._place(tx, inode, old, attrs, value) if attrs else None
        inode.file_acl = 0 if new is None else new.pblk
        if old is not None and old is not new:
            self._drop(tx, inode, old)

    def _place(
        self,
        tx: Operation,
        inode: Inode,
        old: XattrBlock | None,
        attrs: Xattrs,
        value: bytes | InodeValue | None,
    ) -> XattrBlock:
        """The block that holds `attrs` from now on."""
        new = self._find_shared(attrs, old)
        if new is not None:
            tx.touch(new)
            new.refcount += 1
            inode.count_blocks(self._geometry.cluster_sectors)
            if isinstance(value, InodeValue):  # the block has a reference already
                self._inode_values(inode).drop(tx, inode, next(a for a in attrs if a.inum == value.inum))
            return new
        if old is not None and old.refcount == 1:
            gone = [attr for attr in old.attrs if attr.inum and attr not in attrs]
            tx.touch(old)
            self._unlist(tx, old)
            old.attrs = attrs
            self._list(tx, old)
            for attr in gone:
                self._inode_values(inode).drop(tx, inode, attr)
            return old
        group, _ = self._geometry.inode_location(inode.ino)
        pblk = self._alloc.new_block(tx, self._geometry.group_first_block(group))
        new = XattrBlock(pblk, self._block_size, self._seed, 1, attrs)
        self._buffers.create(tx, new)
        inode.count_blocks(self._geometry.cluster_sectors)
        self._list(tx, new)
        kept = () if old is None else old.attrs
        for attr in attrs:
            if attr.inum and attr in kept:
                self._inode_values(inode).refer(tx, attr.inum)
        return new

    def _list(self, tx: Operation, block: XattrBlock) -> None:
        """A block with these attributes can be shared from now on."""
        key, pblk = block_hash(block.attrs), block.pblk
        self._shared.add(key, pblk)
        tx.on_abort(lambda: self._shared.discard(key, pblk))

    def _unlist(self, tx: Operation, block: XattrBlock) -> None:
        key, pblk = block_hash(block.attrs), block.pblk
        self._shared.discard(key, pblk)
        tx.on_abort(lambda: self._shared.add(key, pblk))

    def _find_shared(self, attrs: Xattrs, old: XattrBlock | None) -> XattrBlock | None:
        wanted = [attr._replace(offset=0) for attr in attrs]
        for pblk in self._shared.candidates(attrs):
            if old is not None and pblk == old.pblk:
                continue
            try:
                block = self._load(pblk)
            except FsError:
                self._shared.discard(block_hash(attrs), pblk)
                continue
            if block.refcount < EXT4_XATTR_REFCOUNT_MAX and wanted == [
                attr._replace(offset=0) for attr in block.attrs
            ]:
                return block
        return None

    def _drop(self, tx: Operation, inode: Inode, block: XattrBlock) -> None:
        """One inode fewer uses the block; `inode` is touched already."""
        inode.count_blocks(-self._geometry.cluster_sectors)
        if block.refcount > 1:
            tx.touch(block)
            block.refcount -= 1
            return
        for attr in block.attrs:
            if attr.inum:
                self._inode_values(inode).drop(tx, inode, attr)
        self._unlist(tx, block)
        self._buffers.forget(tx, block.pblk)
        self._alloc.free_blocks(tx, block.pblk, 1)
        tx.revoke(block.pblk)


def _acl_index(default: bool) -> int:
    return EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT if default else EXT4_XATTR_INDEX_POSIX_ACL_ACCESS
