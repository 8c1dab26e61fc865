"""One inode in memory, decoded from and encoded to its on-disk form (ext4 docs: inodes)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from py4fs.errors import Corrupt
from py4fs.ext4.layout.inode import (
    EXT4_EA_INODE_FL,
    EXT4_EPOCH_MASK,
    EXT4_EXTENTS_FL,
    EXT4_HUGE_FILE_FL,
    EXT4_INLINE_DATA_FL,
    INODE,
    INODE_EXTRA,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
)
from py4fs.ext4.transaction import Undoable

GOOD_OLD_SIZE: Final = INODE.size
IBLOCK_SIZE: Final = INODE.sizes["i_block"]
NS: Final = 1_000_000_000
#: what i_blocks can hold, in its smallest unit
MAX_BLOCKS: Final = (1 << 48) - 1

#: bytes of i_extra_isize that must be there for each optional field
_EXTRA_END: Final = {name: INODE_EXTRA.offsets[name] + INODE_EXTRA.sizes[name] for name in INODE_EXTRA.fields}
_FULL_EXTRA: Final = INODE_EXTRA.size
_CRTIME_END: Final = _EXTRA_END["i_crtime_extra"]


#: where in what `Inode.save` returns i_flags and i_projid are
_SAVED_FLAGS: Final = 6
_SAVED_PROJID: Final = 14
_OBSOLETE: Final = INODE.field("i_obso_faddr")
_RESERVED: Final = INODE.field("l_i_reserved")


class Inode(Undoable):
    """Fields of an inode that the kernel keeps in core, times in ns, ``blocks`` in 512-byte units.

    ``mapper``, ``dirindex`` and ``xattrs`` are caches derived from the other fields, owned by the modules that fill
    them and dropped when an operation is undone.
    """

    __slots__ = (
        "atime", "blocks", "crtime", "ctime", "dirindex", "dtime", "extra_isize", "file_acl", "flags", "fresh",
        "generation", "gid", "iblock", "ibody", "ino", "mapper", "may_inline", "mode", "mtime", "next_orphan", "nlink",
        "projid", "recent", "seed", "size", "uid", "version", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, generation: int) -> None:
        self.ino = ino
        self.generation = generation
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.nlink = 0
        self.blocks = 0
        self.flags = 0
        self.atime = 0
        self.mtime = 0
        self.ctime = 0
        #: birth time; None where the inode has no room for it
        self.crtime: int | None = None
        #: deletion time in s, or the next inode of the on-disk orphan list
        self.dtime = 0
        self.file_acl = 0
        self.version = 0
        self.projid = 0
        self.extra_isize = 0
        self.iblock = bytearray(IBLOCK_SIZE)
        #: what follows the extra fields: in-inode xattrs
        self.ibody = b""
        #: crc32c seed of everything that belongs to this inode (metadata_csum)
        self.seed = 0
        #: never written yet: whatever the table holds there is old
        self.fresh = False
        #: new, and nothing was said yet that would keep its data out of the inode (kernel: EXT4_STATE_MAY_INLINE_DATA)
        self.may_inline = False
        self.recent = False
        self.mapper: Any = None
        self.dirindex: Any = None
        self.xattrs: Any = None

    @property
    def is_dir(self) -> bool:
        return self.mode & S_IFMT == S_IFDIR

    @property
    def has_project(self) -> bool:
        """Whether there is room for i_projid."""
        return self.extra_isize >= _EXTRA_END["i_projid"]

    @property
    def is_reg(self) -> bool:
        return self.mode & S_IFMT == S_IFREG

    @property
    def is_symlink(self) -> bool:
        return self.mode & S_IFMT == S_IFLNK

    @property
    def is_device(self) -> bool:
        return self.mode & S_IFMT in (S_IFCHR, S_IFBLK)

    @property
    def has_blocks(self) -> bool:
        """Whether i_block maps blocks (and does not hold data, a device number or a short symlink)."""
        if self.is_inline:
            return False
        kind = self.mode & S_IFMT
        return kind in (S_IFREG, S_IFDIR) or (kind == S_IFLNK and not self.is_fast_symlink)

    @property
    def is_inline(self) -> bool:
        """Whether the contents are in the inode itself (:mod:`py4fs.ext4.inline`)."""
        return bool(self.flags & EXT4_INLINE_DATA_FL)

    @property
    def is_value(self) -> bool:
        """Whether this is no file, but the value of an attribute (ea_inode)."""
        return bool(self.flags & EXT4_EA_INODE_FL)

    @property
    def sectors(self) -> int:
        """st_blocks: i_blocks, and what inline data would take, lest somebody thinks that there is none.

        Kernel: ext4_file_getattr.
        """
        return self.blocks + (-(-self.size // 512) if self.is_inline and self.is_reg else 0)

    @property
    def is_fast_symlink(self) -> bool:
        return self.is_symlink and self.size < IBLOCK_SIZE and not self.flags & (EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL)

    @property
    def rdev(self) -> int:
        """Device number as Linux' dev_t of user space (major << 8 | minor and the extensions)."""
        if not self.is_device:
            return 0
        old = int.from_bytes(self.iblock[0:4], "little")
        if old:
            return old & 0xFFFF
        new = int.from_bytes(self.iblock[4:8], "little")
        major, minor = (new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00)
        return _make_dev(major, minor)

    def set_rdev(self, dev: int) -> None:
        major, minor = _split_dev(dev)
        if major < 256 and minor < 256:
            self.iblock[0:8] = (major << 8 | minor).to_bytes(4, "little") + bytes(4)
        else:
            new = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
            self.iblock[0:8] = bytes(4) + (new & 0xFFFFFFFF).to_bytes(4, "little")

    def count_blocks(self, delta: int) -> None:
        """Change i_blocks, by 512-byte units; what a damaged image counted wrong stays within what can be stored."""
        self.blocks = min(max(self.blocks + delta, 0), MAX_BLOCKS)

    def save(self) -> tuple[Any, ...]:
        return (
            self.mode, self.uid, self.gid, self.size, self.nlink, self.blocks, self.flags, self.atime, self.mtime,
            self.ctime, self.crtime, self.dtime, self.file_acl, self.version, self.projid, self.extra_isize,
            bytes(self.iblock), self.ibody, self.may_inline,
        )  # fmt: skip

    def restore(self, state: tuple[Any, ...]) -> None:
        (
            self.mode, self.uid, self.gid, self.size, self.nlink, self.blocks, self.flags, self.atime, self.mtime,
            self.ctime, self.crtime, self.dtime, self.file_acl, self.version, self.projid, self.extra_isize,
            iblock, self.ibody, self.may_inline,
        ) = state  # fmt: skip
        self.iblock[:] = iblock
        self.mapper = self.dirindex = self.xattrs = None

    def __repr__(self) -> str:
        return f"<Inode {self.ino} mode={self.mode:o} size={self.size} nlink={self.nlink}>"


class Charge(NamedTuple):
    """What an inode counts for in quotas: ids of user, group and project, and bytes."""

    ids: tuple[int, int, int]
    space: int


def charge_of(state: tuple[Any, ...]) -> Charge | None:
    """From what :meth:`Inode.save` returned; None for an inode that is not in use (yet).

    None also for a value of attributes: whoever refers to it is charged.
    """
    mode, uid, gid, _, _, blocks, *_ = state
    if not mode or state[_SAVED_FLAGS] & EXT4_EA_INODE_FL:
        return None
    return Charge((uid, gid, state[_SAVED_PROJID]), blocks * 512)


def _make_dev(major: int, minor: int) -> int:
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def _split_dev(dev: int) -> tuple[int, int]:
    return (dev >> 8 & 0xFFF) | (dev >> 32 & ~0xFFF), (dev & 0xFF) | (dev >> 12 & ~0xFF & 0xFFFFFFFF)


def _seconds(raw: int) -> int:
    return raw - (1 << 32) if raw & 0x80000000 else raw


def _decode_time(raw: int, extra: int) -> int:
    return (_seconds(raw) + ((extra & EXT4_EPOCH_MASK) << 32)) * NS + (extra >> 2)


def _encode_time(ns: int) -> tuple[int, int]:
    seconds = ns // NS
    nanos = ns - seconds * NS
    low = seconds & 0xFFFFFFFF
    return low, (seconds - _seconds(low)) >> 32 & EXT4_EPOCH_MASK | nanos << 2


def decode_inode(ino: int, raw: bytes, block_size: int) -> Inode:
    """Decode ``raw`` (one inode, s_inode_size bytes). Raises Corrupt for impossible fields."""
    # plain values: a record with names is slow to make and to look at, and this is done once for every cold inode
    (
        i_mode, i_uid, i_size_lo, i_atime, i_ctime, i_mtime, i_dtime, i_gid, i_links_count, i_blocks_lo, i_flags,
        l_i_version, i_block, i_generation, i_file_acl_lo, i_size_high, _, l_i_blocks_high, l_i_file_acl_high,
        l_i_uid_high, l_i_gid_high, _, _,
    ) = INODE.values_from(raw)  # fmt: skip
    inode = Inode(ino, i_generation)
    inode.mode = i_mode
    inode.uid = i_uid | l_i_uid_high << 16
    inode.gid = i_gid | l_i_gid_high << 16
    inode.size = i_size_lo | i_size_high << 32
    inode.nlink = i_links_count
    inode.flags = i_flags
    inode.dtime = i_dtime
    inode.file_acl = i_file_acl_lo | l_i_file_acl_high << 32
    inode.blocks = i_blocks_lo | l_i_blocks_high << 32
    if i_flags & EXT4_HUGE_FILE_FL:
        inode.blocks *= block_size // 512
    inode.iblock[:] = i_block
    inode.version = l_i_version
    atime_extra = ctime_extra = mtime_extra = 0
    if len(raw) > GOOD_OLD_SIZE:
        atime_extra, ctime_extra, mtime_extra = _decode_extra(inode, raw)
    inode.atime = _decode_time(i_atime, atime_extra)
    inode.ctime = _decode_time(i_ctime, ctime_extra)
    inode.mtime = _decode_time(i_mtime, mtime_extra)
    if inode.size >> 63:
        raise Corrupt("i_size", f"inode {ino}", inode.size, "below 2^63")
    return inode


def _decode_extra(inode: Inode, raw: bytes) -> tuple[int, int, int]:
    """What follows the first 128 bytes; returns the extra parts of access, change and modification time."""
    (
        end, _, i_ctime_extra, i_mtime_extra, i_atime_extra, i_crtime, i_crtime_extra, i_version_hi, i_projid,
    ) = INODE_EXTRA.values_from(raw, GOOD_OLD_SIZE)  # fmt: skip
    if end & 3 or GOOD_OLD_SIZE + end > len(raw):
        want = f"a multiple of 4 up to {len(raw) - GOOD_OLD_SIZE}"
        raise Corrupt("i_extra_isize", f"inode {inode.ino}", end, want)
    inode.extra_isize = end
    if end:
        inode.ibody = raw[GOOD_OLD_SIZE + end :]
    if end < _FULL_EXTRA:
        # some of these bytes are attributes
        i_ctime_extra = i_ctime_extra if end >= _EXTRA_END["i_ctime_extra"] else 0
        i_mtime_extra = i_mtime_extra if end >= _EXTRA_END["i_mtime_extra"] else 0
        i_atime_extra = i_atime_extra if end >= _EXTRA_END["i_atime_extra"] else 0
        i_version_hi = i_version_hi if end >= _EXTRA_END["i_version_hi"] else 0
        i_projid = i_projid if end >= _EXTRA_END["i_projid"] else 0
    if end >= _CRTIME_END:
        inode.crtime = _decode_time(i_crtime, i_crtime_extra)
    inode.version |= i_version_hi << 32
    inode.projid = i_projid
    return i_atime_extra, i_ctime_extra, i_mtime_extra


def set_blocks_flags(inode: Inode) -> None:
    """Choose the unit of i_blocks (kernel: ext4_inode_blocks_set)."""
    if inode.blocks > 0xFFFFFFFFFFFF:
        inode.flags |= EXT4_HUGE_FILE_FL
    else:
        inode.flags &= ~EXT4_HUGE_FILE_FL


def encode_inode(inode: Inode, buf: bytearray, off: int, inode_size: int, block_size: int) -> None:
    """Write the inode into its slot of the table block, all but the checksum."""
    if inode.fresh:
        buf[off : off + inode_size] = bytes(inode_size)
    atime, atime_extra = _encode_time(inode.atime)
    ctime, ctime_extra = _encode_time(inode.ctime)
    mtime, mtime_extra = _encode_time(inode.mtime)
    blocks = inode.blocks // (block_size // 512) if inode.flags & EXT4_HUGE_FILE_FL else inode.blocks
    INODE.pack_into(
        buf, off,
        inode.mode, inode.uid & 0xFFFF, inode.size & 0xFFFFFFFF, atime, ctime, mtime, inode.dtime, inode.gid & 0xFFFF,
        inode.nlink, blocks & 0xFFFFFFFF, inode.flags, inode.version & 0xFFFFFFFF, inode.iblock, inode.generation,
        inode.file_acl & 0xFFFFFFFF, inode.size >> 32, _OBSOLETE.get(buf, off), blocks >> 32,
        inode.file_acl >> 32, inode.uid >> 16, inode.gid >> 16, 0, _RESERVED.get(buf, off),
    )  # fmt: skip
    if inode_size > GOOD_OLD_SIZE:
        at = off + GOOD_OLD_SIZE
        end = inode.extra_isize
        crtime, crtime_extra = _encode_time(inode.crtime or 0)
        values = (
            end, 0, ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra, inode.version >> 32, inode.projid,
        )  # fmt: skip
        if end >= _FULL_EXTRA:
            INODE_EXTRA.pack_into(buf, at, *values)
        else:
            fields = zip(INODE_EXTRA.fields, values, strict=True)
            INODE_EXTRA.put(buf, at, **{k: v for k, v in fields if _EXTRA_END[k] <= max(end, 2)})
        if end:
            buf[at + end : off + inode_size] = inode.ibody
