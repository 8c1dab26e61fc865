"""Extended attributes and ACLs."""

from __future__ import annotations

from typing import Final

from py4fs.errors import AccessDenied, Invalid, NoData, NotPermitted, NotSupported
from py4fs.ext4 import acl
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_APPEND_FL, EXT4_IMMUTABLE_FL, EXT4_SYNC_FL
from py4fs.ext4.transaction import Operation
from py4fs.vfs.directories import Directories
from py4fs.vfs.types import ROOT, Caller

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2


class Xattrs(Directories):
    """Operations on extended attributes."""

    def _acl_kind(self, name: bytes) -> bool | None:
        """Whether an attribute is a default ACL (True) or an access ACL (False). Raises NotSupported (noacl)."""
        default = acl.xattr_kind(name)
        if default is not None and not self.volume.options.acl:
            raise NotSupported("mounted without ACLs")
        return default

    def getxattr(self, ino: int, name: bytes, caller: Caller = ROOT) -> bytes:
        """The value of ``name`` (``b"user.x"``). Raises NoData, NotSupported, Corrupt, DeviceError."""
        found = self.find_xattr(ino, name)
        if found is None:
            raise NoData(f"inode {ino} has no attribute {name!r}")
        return found

    def find_xattr(self, ino: int, name: bytes) -> bytes | None:
        """As :meth:`getxattr`; None for an attribute that is not there, unless it is an ACL."""
        inode = self._first(ino)
        self._check_user(name)
        default = self._acl_kind(name)
        if default is not None:
            return self.volume.xattrs.get_acl_xattr(inode, default=default)
        return self.volume.xattrs.find(inode, name)

    def listxattr(self, ino: int, caller: Caller = ROOT) -> list[bytes]:
        """All names; those of ``trusted.`` for root only."""
        names = self.volume.xattrs.list(self._first(ino))
        if not self.volume.options.acl:
            names = [name for name in names if acl.xattr_kind(name) is None]
        hidden = () if caller.uid == 0 else (b"trusted.",)
        if not self.volume.options.user_xattr:
            hidden = (*hidden, b"user.")
        return [name for name in names if not name.startswith(hidden)] if hidden else names

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, caller: Caller = ROOT) -> None:
        """Set, with XATTR_CREATE or XATTR_REPLACE. Raises Exists, NoData, NoSpace, NotSupported, NotPermitted."""
        self._check_writable()
        inode = self._first(ino)
        self._check_xattr_change(inode, name)
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise Invalid(f"setxattr flags {flags:#x}")
        default = self._acl_kind(name)

        def step(tx: Operation) -> None:
            if default is None:
                changed = self.volume.xattrs.set(
                    tx, inode, name, value, create=bool(flags & XATTR_CREATE), replace=bool(flags & XATTR_REPLACE)
                )
            else:
                changed = self._set_acl(tx, inode, value, default)
            if changed:
                tx.touch(inode)
                inode.ctime = tx.now

        self._change(step, self._xattr_credits(inode, len(value)), self._reserve(caller))
        if inode.flags & EXT4_SYNC_FL:
            self._settle(inode)

    def _set_acl(self, tx: Operation, inode: Inode, value: bytes, default: bool) -> bool:
        """Kernel: ext4_set_acl. An access ACL sets the mode, and one that says no more than a mode is not kept.

        Returns whether anything changed.
        """
        if inode.is_symlink:
            raise NotSupported("symbolic links have no ACLs")
        if default and not inode.is_dir:
            raise AccessDenied(f"inode {inode.ino} is not a directory: it has no default ACL")
        entries = acl.from_xattr(value)
        if entries is not None and not default:
            mode, entries = acl.update_mode(entries, inode.mode)
            changed = self.volume.xattrs.set_acl(tx, inode, entries, default=default)
            if mode != inode.mode:
                tx.touch(inode)
                inode.mode = mode
                changed = True
            return changed
        return self.volume.xattrs.set_acl(tx, inode, entries, default=default)

    def removexattr(self, ino: int, name: bytes, caller: Caller = ROOT) -> None:
        """Raises NoData, NotSupported, NotPermitted, Corrupt."""
        self._check_writable()
        inode = self._first(ino)
        self._check_xattr_change(inode, name)
        default = self._acl_kind(name)

        def step(tx: Operation) -> None:
            if default is None:
                self.volume.xattrs.remove(tx, inode, name)
            elif not self.volume.xattrs.set_acl(tx, inode, None, default=default):
                return
            tx.touch(inode)
            inode.ctime = tx.now

        self._change(step, self._xattr_credits(inode, 0), self._reserve(caller))
        if inode.flags & EXT4_SYNC_FL:
            self._settle(inode)

    def _check_user(self, name: bytes) -> None:
        if name.startswith(b"user.") and not self.volume.options.user_xattr:
            raise NotSupported("user attributes are turned off (nouser_xattr)")

    def _check_xattr_change(self, inode: Inode, name: bytes) -> None:
        self._check_user(name)
        if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"inode {inode.ino} is immutable or append-only")
        if name.startswith(b"user.") and not (inode.is_reg or inode.is_dir):
            raise NotPermitted(f"inode {inode.ino}: user attributes only on files and directories")
