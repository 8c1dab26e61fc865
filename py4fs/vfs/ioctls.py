"""What lsattr(1), chattr(1), e2label(8) and the like ask of an inode or of the whole file system by ioctl(2).

The rules are the kernel's (fs/ext4/ioctl.c, fs/file_attr.c). Permissions are checked here, because nobody else does
for an ioctl: the owner or root; immutable, append-only and journalled data are root's to change.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from py4fs.errors import Invalid, NoSuchIoctl, NotPermitted, NotSupported, Overflow
from py4fs.ext4.features import RoCompat
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import (
    EXT4_APPEND_FL,
    EXT4_CASEFOLD_FL,
    EXT4_DAX_FL,
    EXT4_EXTENTS_FL,
    EXT4_FL_USER_MODIFIABLE,
    EXT4_FL_USER_VISIBLE,
    EXT4_IMMUTABLE_FL,
    EXT4_JOURNAL_DATA_FL,
    EXT4_NOATIME_FL,
    EXT4_NODUMP_FL,
    EXT4_PROJINHERIT_FL,
    EXT4_REG_FLMASK,
    EXT4_SYNC_FL,
)
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.iomap.records import MapType
from py4fs.vfs.base import ATTR_CREDITS
from py4fs.vfs.types import ROOT, Caller
from py4fs.vfs.xattrs import Xattrs

#: bytes of s_volume_name
LABEL_MAX: Final = 16
#: FS_XFLAG_* of linux/fs.h that ext4 has a flag for
XFLAGS: Final = {
    0x00000008: EXT4_IMMUTABLE_FL,
    0x00000010: EXT4_APPEND_FL,
    0x00000020: EXT4_SYNC_FL,
    0x00000040: EXT4_NOATIME_FL,
    0x00000080: EXT4_NODUMP_FL,
    0x00000200: EXT4_PROJINHERIT_FL,
    0x00008000: EXT4_DAX_FL,
}
#: flags that the two ways of naming them share
_COMMON: Final = sum(XFLAGS.values())
_ROOT_ONLY: Final = EXT4_IMMUTABLE_FL | EXT4_APPEND_FL | EXT4_JOURNAL_DATA_FL
#: flags that are not simply stored
_SPECIAL: Final = EXT4_EXTENTS_FL | EXT4_JOURNAL_DATA_FL


class FsXattr(NamedTuple):
    """struct fsxattr: ``xflags`` are FS_XFLAG_*, the sizes bytes; ext4 has only ``xflags`` and ``projid``."""

    xflags: int = 0
    extsize: int = 0
    nextents: int = 0
    projid: int = 0
    cowextsize: int = 0


class Ioctls(Xattrs):
    """Operations that ioctl(2) leads to. They raise Stale, Corrupt and DeviceError besides what is named."""

    # -- flags (FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR) ---------------------

    def get_flags(self, ino: int) -> int:
        """The flags that lsattr(1) shows (FS_*_FL)."""
        inode = self._first(ino)
        flags = inode.flags & EXT4_FL_USER_VISIBLE
        return flags & ~EXT4_PROJINHERIT_FL if inode.is_reg else flags

    def set_flags(self, ino: int, flags: int, caller: Caller) -> None:
        """Set the flags that chattr(1) can change; others are ignored if lsattr(1) shows them.

        Raises NotPermitted, NotSupported (unknown here or for this type, or the kind of block map), ReadOnly.
        """
        inode = self._first(ino)
        self._store_flags(inode, self._settable(inode, flags, caller))

    def get_fsx(self, ino: int) -> FsXattr:
        """The same flags under the names that all file systems share, and the project."""
        inode = self._first(ino)
        flags = self.get_flags(ino)
        xflags = sum(xflag for xflag, flag in XFLAGS.items() if flags & flag)
        return FsXattr(xflags, projid=inode.projid if self._has_projects else 0)

    def set_fsx(self, ino: int, fsx: FsXattr, caller: Caller) -> None:
        """Set the flags of :meth:`get_fsx`, the others stay; sizes are ignored, as by the kernel's ext4.

        Raises as :meth:`set_flags`, and for a project (kernel: ext4_ioctl_setproject) NotSupported where there are
        none, Overflow when the inode has no room for one, QuotaExceeded.
        """
        inode = self._first(ino)
        flags = sum(flag for xflag, flag in XFLAGS.items() if fsx.xflags & xflag)
        flags = self._settable(inode, flags | self.get_flags(ino) & ~_COMMON, caller)
        if fsx.projid == self.get_fsx(ino).projid:
            self._store_flags(inode, flags)
            return
        if not self._has_projects:
            raise NotSupported(f"inode {ino}: the file system has no projects")
        if not 0 <= fsx.projid <= 0xFFFFFFFF:
            raise Invalid(f"project {fsx.projid}: 32 bits")
        if not inode.has_project:
            raise Overflow(f"inode {ino} has no room for a project")
        self._store_flags(inode, flags, fsx.projid)

    @property
    def _has_projects(self) -> bool:
        return bool(self.volume.features.ro_compat & RoCompat.PROJECT)

    def _check_owner(self, inode: Inode, caller: Caller) -> None:
        self._check_writable()
        if caller.uid not in (0, inode.uid):
            raise NotPermitted(f"inode {inode.ino} belongs to user {inode.uid}")

    def _store_flags(self, inode: Inode, flags: int, projid: int | None = None) -> None:
        # without a journal data cannot be journalled, and the kernel does not say so
        stored = EXT4_FL_USER_MODIFIABLE & ~(_SPECIAL if self.volume.journal_area is None else EXT4_EXTENTS_FL)

        def step(tx: Operation) -> None:
            if (inode.flags ^ flags) & EXT4_CASEFOLD_FL:
                self._namespace.set_casefold(tx, inode, bool(flags & EXT4_CASEFOLD_FL))
            tx.touch(inode)
            inode.flags = inode.flags & ~stored | flags & stored
            if projid is not None:
                inode.projid = projid
            inode.ctime = tx.now

        self._change(step, ATTR_CREDITS, Reserve.ROOT)

    def _settable(self, inode: Inode, flags: int, caller: Caller) -> int:
        """What of ``flags`` can be set, if it may be (kernel: ext4_fileattr_set)."""
        self._check_owner(inode, caller)
        old, where = inode.flags, f"inode {inode.ino}"
        if not (inode.is_reg or inode.is_dir):
            raise NotSupported(f"{where}: only files and directories have flags")
        if (flags ^ old) & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL) and caller.uid != 0:
            raise NotPermitted(f"{where}: immutable and append-only are for root to change")
        allowed = EXT4_REG_FLMASK if inode.is_reg else ~0
        settable = flags & EXT4_FL_USER_MODIFIABLE
        if flags & ~EXT4_FL_USER_VISIBLE or settable & ~allowed:
            raise NotSupported(f"{where}: flags {flags:#x}")
        if old & settable & EXT4_IMMUTABLE_FL and settable != old:
            raise NotPermitted(f"{where} is immutable")
        changed = settable ^ old
        if changed & EXT4_JOURNAL_DATA_FL and caller.uid != 0:
            raise NotPermitted(f"{where}: journalled data is for root to change")
        if (settable & EXT4_DAX_FL and old & EXT4_JOURNAL_DATA_FL) or (
            settable & EXT4_JOURNAL_DATA_FL and old & EXT4_DAX_FL
        ):
            raise NotSupported(f"{where}: direct access and journalled data exclude each other")
        if changed & EXT4_EXTENTS_FL:
            raise NotSupported(f"{where}: extents and block maps are not converted")
        return settable

    # -- generation (FS_IOC_GETVERSION, FS_IOC_SETVERSION) --------------------------------------------------

    def get_version(self, ino: int) -> int:
        """The inode's generation."""
        return self._first(ino).generation

    def set_version(self, ino: int, generation: int, caller: Caller) -> None:
        """Set it. Raises NotPermitted, NoSuchIoctl (metadata_csum: checksums depend on it), Invalid, ReadOnly."""
        inode = self._first(ino)
        self._check_owner(inode, caller)
        if self.volume.features.metadata_csum:
            raise NoSuchIoctl("generations cannot be set where metadata has checksums")
        if not 0 <= generation <= 0xFFFFFFFF:
            raise Invalid(f"generation {generation}: 32 bits")

        def step(tx: Operation) -> None:
            tx.touch(inode)
            old = inode.generation
            tx.on_abort(lambda: setattr(inode, "generation", old))
            inode.generation = generation
            inode.ctime = tx.now

        self._change(step, ATTR_CREDITS, Reserve.ROOT)

    # -- where data is (FIBMAP) -----------------------------------------------------------------------------

    def bmap(self, ino: int, block: int, blocksize: int) -> int:
        """Where block ``block`` of a regular file is on the device, both in blocks of ``blocksize`` bytes.

        0: nowhere, or not in one piece that is a block of that size. Raises Invalid.
        """
        inode = self._first(ino)
        if not inode.is_reg:
            raise Invalid(f"inode {ino} is not a regular file")
        if block < 0 or blocksize <= 0 or blocksize & (blocksize - 1):
            raise Invalid(f"block {block} of {blocksize} bytes: expected a power of two")
        pos = block * blocksize
        if pos >= self.volume.files.largest(inode):
            return 0
        mapping = next(self.client.report(self._file(inode), pos, pos + blocksize))
        at = mapping.addr + pos - mapping.offset
        if mapping.type != MapType.MAPPED or mapping.end < pos + blocksize or at % blocksize:
            return 0
        return at // blocksize

    # -- names of the file system (FS_IOC_GETFSUUID, FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL) ------------------

    def fs_uuid(self) -> bytes:
        """The 16 bytes of the file system's UUID."""
        return bytes(self.volume.superblock.record.s_uuid)

    def get_label(self) -> bytes:
        """The volume's name, at most 16 bytes."""
        return bytes(self.volume.superblock.record.s_volume_name).split(b"\0")[0]

    def set_label(self, label: bytes, caller: Caller = ROOT) -> None:
        """Set it, in all copies of the superblock and at once, as whoever looks at the device expects.

        Raises Invalid, NotPermitted (only root may), ReadOnly, CommitPending.
        """
        self._check_writable()
        if caller.uid != 0:
            raise NotPermitted("the label is for root to change")
        label = label.split(b"\0")[0]
        if len(label) > LABEL_MAX:
            raise Invalid(f"label of {len(label)} bytes: at most {LABEL_MAX}")
        self.volume.change_superblocks(s_volume_name=label.ljust(LABEL_MAX, b"\0"))
        self.volume.committer.rest()
