"""Extended attributes of inodes: in the inode where there is room, else in one block.

Placement, sharing of identical blocks and accounting follow the kernel, so that free counts and i_blocks come out
the same. Values in inodes of their own (ea_inode) are refused, and so is what does not fit one block (NoSpace).
(ext4 docs: Extended Attributes.)
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

from py4fs.errors import (
    Corrupt,
    Exists,
    FsError,
    Invalid,
    NoData,
    NoSpace,
    NotSupported,
    OutOfRange,
    TooBig,
    UnsupportedFeature,
)
from py4fs.ext4 import acl as posix_acl
from py4fs.ext4 import checksum
from py4fs.ext4.acl import Acl
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache, MetaBlock
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
    EXT4_XATTR_MAGIC,
    EXT4_XATTR_REFCOUNT_MAX,
    XATTR_HEADER,
    XATTR_IBODY_HEADER,
    XATTR_NAME_MAX,
    XATTR_SIZE_MAX,
    join_name,
    split_name,
)
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr_region import END_SIZE, Xattr, Xattrs, block_hash, build, changed, find, parse

VISIBLE = (
    EXT4_XATTR_INDEX_USER,
    EXT4_XATTR_INDEX_POSIX_ACL_ACCESS,
    EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT,
    EXT4_XATTR_INDEX_TRUSTED,
    EXT4_XATTR_INDEX_SECURITY,
    EXT4_XATTR_INDEX_HURD,
)
"""Namespaces that users see; attributes of others are kept as they are."""
IBODY_HEAD = XATTR_IBODY_HEADER.pack(EXT4_XATTR_MAGIC)
CAPABILITY = b"security.capability"
KNOWN_HASHES = 4096
BLOCKS_PER_HASH = 8


class XattrBlock(MetaBlock):
    """An attribute block, shared by `refcount` inodes."""

    __slots__ = ("attrs", "refcount", "seed", "size")

    def __init__(self, pblk: int, size: int, seed: int | None, refcount: int, attrs: Xattrs) -> None:
        super().__init__(pblk)
        self.size = size
        self.seed = seed
        self.refcount = refcount
        self.attrs = attrs

    @classmethod
    def load(cls, pblk: int, raw: bytes, seed: int | None) -> XattrBlock:
        """Raises BadChecksum, Corrupt, UnsupportedFeature."""
        where = f"block {pblk}"
        head = XATTR_HEADER.unpack_from(raw)
        if head.h_magic != EXT4_XATTR_MAGIC:
            raise Corrupt("xattr block magic", where, f"{head.h_magic:#x}", f"{EXT4_XATTR_MAGIC:#x}")
        if seed is not None:
            checksum.verify_xattr_block(raw, seed, pblk)
        if head.h_blocks != 1:
            raise Corrupt("xattr block h_blocks", where, head.h_blocks, 1)
        if not 0 < head.h_refcount <= EXT4_XATTR_REFCOUNT_MAX:
            raise Corrupt("xattr block h_refcount", where, head.h_refcount, f"1..{EXT4_XATTR_REFCOUNT_MAX}")
        return cls(pblk, len(raw), seed, head.h_refcount, parse(raw, XATTR_HEADER.size, 0, f"xattr {where}"))

    def encode(self) -> bytearray:
        head = XATTR_HEADER.pack(EXT4_XATTR_MAGIC, self.refcount, 1, block_hash(self.attrs), 0, bytes(12))
        raw = bytearray(build(self.attrs, head, self.size, 0))
        if self.seed is not None:
            checksum.set_xattr_block(raw, self.seed, self.pblk)
        return raw

    def save(self) -> tuple[int, Xattrs]:
        return self.refcount, self.attrs

    def restore(self, state: tuple[int, Xattrs]) -> None:
        self.refcount, self.attrs = state


class SharedBlocks:
    """Blocks seen, by h_hash: hints where one with the same attributes may be. Every hit is checked by the user."""

    def __init__(self) -> None:
        self._by_hash: OrderedDict[int, list[int]] = OrderedDict()

    def add(self, key: int, pblk: int) -> None:
        """Note a block; `key`: its hash."""
        if not key:
            return
        pblks = self._by_hash.setdefault(key, [])
        self._by_hash.move_to_end(key)
        if pblk not in pblks:
            pblks.append(pblk)
            del pblks[:-BLOCKS_PER_HASH]
        if len(self._by_hash) > KNOWN_HASHES:
            self._by_hash.popitem(last=False)

    def discard(self, key: int, pblk: int) -> None:
        pblks = self._by_hash.get(key)
        if pblks is not None and pblk in pblks:
            pblks.remove(pblk)
            if not pblks:
                del self._by_hash[key]

    def candidates(self, attrs: Xattrs) -> list[int]:
        """Newest first."""
        key = block_hash(attrs)
        return self._by_hash.get(key, [])[::-1] if key else []


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
    ) -> None:
        self._geometry = geometry
        self._seed = csum_seed
        self._buffers = buffers
        self._alloc = alloc
        self._superblock = superblock
        self._shared = SharedBlocks()
        self._block_size = geometry.block_size

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, inode: Inode, name: bytes) -> bytes:
        """The value, an ACL in its attribute form. Raises NoData, NotSupported, Invalid, Corrupt, DeviceError."""
        default = posix_acl.xattr_kind(name)
        if default is not None:
            return self.get_acl_xattr(inode, default=default)
        attr = self._find(inode, *self._split(name))
        if attr is None:
            raise NoData(f"inode {inode.ino} has no attribute {name!r}")
        return attr.value

    def has_capability(self, inode: Inode) -> bool:
        """Whether the file gives its users rights (`security.capability`); asked before every write.

        Attributes that make no sense give nobody any rights (kernel: cap_inode_need_killpriv). Raises DeviceError.
        """
        try:
            if not inode.file_acl and not self._ibody(inode):
                return False
            return self._find(inode, *self._split(CAPABILITY)) is not None
        except (Corrupt, UnsupportedFeature):
            return False

    def list(self, inode: Inode) -> list[bytes]:
        """The names of all attributes that users see, in their order on disk. Raises Corrupt, DeviceError."""
        attrs = self._ibody(inode)
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
        return posix_acl.from_disk(attr.value, f"inode {inode.ino}")

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

    def release(self, tx: Operation, inode: Inode) -> None:
        """The inode is going away: give up its attribute block. Raises Corrupt, DeviceError."""
        block = self._block(inode)
        if block is not None:
            tx.touch(inode)
            inode.file_acl = 0
            self._drop(tx, inode, block)

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

    def _ibody(self, inode: Inode) -> Xattrs:
        """The attributes in the inode; parsed once."""
        body = inode.ibody
        cached: tuple[bytes, Xattrs] | None = inode.xattrs
        if cached is not None and cached[0] is body:
            return cached[1]
        attrs: Xattrs = ()
        if self._has_ibody(inode) and body.startswith(IBODY_HEAD):
            head = len(IBODY_HEAD)
            attrs = parse(body, head, head, f"inode {inode.ino}")
        inode.xattrs = (body, attrs)
        return attrs

    @staticmethod
    def _has_ibody(inode: Inode) -> bool:
        return len(inode.ibody) >= len(IBODY_HEAD) + END_SIZE

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
        attr = find(self._ibody(inode), index, name)
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
        body = self._ibody(inode)
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
        elif old.value == value:
            return False
        if value is None:
            if in_body is not None:
                self._set_body(tx, inode, self._changed_body(inode, index, name, None))
            else:
                self._set_block(tx, inode, block, index, name, None)
            return True
        try:
            body = self._changed_body(inode, index, name, value)
        except NoSpace:
            if block is None:
                block = self._block(inode)
            self._set_block(tx, inode, block, index, name, value)
            if in_body is not None:
                self._set_body(tx, inode, self._changed_body(inode, index, name, None))
        else:
            self._set_body(tx, inode, body)
            if in_block is not None:
                self._set_block(tx, inode, block, index, name, None)
        if not self._superblock.feature_compat & Compat.EXT_ATTR:
            tx.touch(self._superblock)
            self._superblock.feature_compat |= Compat.EXT_ATTR
        return True

    def _changed_body(self, inode: Inode, index: int, name: bytes, value: bytes | None) -> Xattrs:
        """Raises NoSpace."""
        if not self._has_ibody(inode):
            raise NoSpace(f"inode {inode.ino} has no room for attributes")
        room = len(inode.ibody) - len(IBODY_HEAD)
        return changed(self._ibody(inode), index, name, value, block=False, room=room)

    @staticmethod
    def _set_body(tx: Operation, inode: Inode, attrs: Xattrs) -> None:
        tx.touch(inode)
        size = len(inode.ibody)
        inode.ibody = build(attrs, IBODY_HEAD, size, len(IBODY_HEAD)) if attrs else bytes(size)
        inode.xattrs = (inode.ibody, attrs)

    def _set_block(
        self, tx: Operation, inode: Inode, old: XattrBlock | None, index: int, name: bytes, value: bytes | None
    ) -> None:
        """Change one attribute in the inode's block: in place when nobody shares it, else in another block."""
        attrs = changed(
            () if old is None else old.attrs,
            index,
            name,
            value,
            block=True,
            room=self._block_size - XATTR_HEADER.size,
        )
        tx.touch(inode)
        new = self._place(tx, inode, old, attrs) if attrs else None
        inode.file_acl = 0 if new is None else new.pblk
        if old is not None and old is not new:
            self._drop(tx, inode, old)

    def _place(self, tx: Operation, inode: Inode, old: XattrBlock | None, attrs: Xattrs) -> XattrBlock:
        """The block that holds `attrs` from now on."""
        new = self._find_shared(attrs, old)
        if new is not None:
            tx.touch(new)
            new.refcount += 1
            inode.count_blocks(self._block_size // 512)
            return new
        if old is not None and old.refcount == 1:
            tx.touch(old)
            self._unlist(tx, old)
            old.attrs = attrs
            self._list(tx, old)
            return old
        group, _ = self._geometry.inode_location(inode.ino)
        pblk = self._alloc.new_block(tx, self._geometry.group_first_block(group))
        new = XattrBlock(pblk, self._block_size, self._seed, 1, attrs)
        self._buffers.create(tx, new)
        inode.count_blocks(self._block_size // 512)
        self._list(tx, new)
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
        wanted = [attr[:4] for attr in attrs]
        for pblk in self._shared.candidates(attrs):
            if old is not None and pblk == old.pblk:
                continue
            try:
                block = self._load(pblk)
            except FsError:
                self._shared.discard(block_hash(attrs), pblk)
                continue
            if block.refcount < EXT4_XATTR_REFCOUNT_MAX and [attr[:4] for attr in block.attrs] == wanted:
                return block
        return None

    def _drop(self, tx: Operation, inode: Inode, block: XattrBlock) -> None:
        """One inode fewer uses the block; `inode` is touched already."""
        inode.count_blocks(-(self._block_size // 512))
        if block.refcount > 1:
            tx.touch(block)
            block.refcount -= 1
            return
        self._unlist(tx, block)
        self._buffers.forget(tx, block.pblk)
        self._alloc.free_blocks(tx, block.pblk, 1)
        tx.revoke(block.pblk)


def _acl_index(default: bool) -> int:
    return EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT if default else EXT4_XATTR_INDEX_POSIX_ACL_ACCESS
