"""Attributes of an inode, its size among them."""

from __future__ import annotations

import stat

from py4fs.errors import FileTooBig, Invalid, IsADirectory, NoKey, NotPermitted
from py4fs.ext4 import acl
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import (
    EXT4_APPEND_FL,
    EXT4_ENCRYPT_FL,
    EXT4_IMMUTABLE_FL,
    EXT4_VERITY_FL,
    S_IFDIR,
    S_IFMT,
)
from py4fs.ext4.reclaim import REMOVE_CREDITS
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.ext4.xattr import CAPABILITY
from py4fs.iomap.records import OpFlags
from py4fs.vfs.base import ACL_SIZE, ATTR_CREDITS
from py4fs.vfs.names import Names
from py4fs.vfs.types import NOW, ROOT, Attr, Caller, Now


def without_suidgid(mode: int) -> int:
    """The mode of a file without what lets it run as somebody else (kernel: setattr_should_drop_suidgid, chown_common).

    Set-group-ID without group execution means something else, as on directories, and stays.
    """
    if mode & S_IFMT == S_IFDIR:
        return mode
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


def _check_has_size(inode: Inode, size: int) -> None:
    """Raises IsADirectory, Invalid: only regular files are truncated."""
    if inode.is_dir:
        raise IsADirectory(f"inode {inode.ino} is a directory")
    if not inode.is_reg or size < 0:
        raise Invalid(f"inode {inode.ino} cannot be truncated to {size} bytes")


class Attributes(Names):
    """getattr and setattr."""

    def getattr(self, ino: int) -> Attr:
        """Raises Stale, Corrupt, DeviceError."""
        return self._attr(self._first(ino))

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | Now | None = None,
        mtime: int | Now | None = None,
        ctime: int | Now | None = None,
        caller: Caller = ROOT,
        fh: int | None = None,
        kill_priv: bool = False,
        timed: bool | None = None,
    ) -> Attr:
        """Change what is given. ``mode`` is the permission bits, times are ns or NOW, ``size`` bytes.

        ``timed``: whether somebody asked for these times, other than the present (None: where they are no NOW); a
        kernel that owns the times also sends those that it has set itself.

        A new owner or size takes the file's capabilities away, and with ``kill_priv`` set-user-ID and set-group-ID.
        Raises NotPermitted (immutable, append-only), NoKey, IsADirectory, Invalid, FileTooBig, NoSpace, QuotaExceeded,
        ReadOnly, Corrupt.
        """
        self._check_writable()
        inode = self._first(ino)
        if size is not None:
            _check_has_size(inode, size)
        changes = (mode, uid, gid, size) != (None,) * 4
        # one that knows the flag has set these times by itself: that of setting the flag, of reading
        if inode.flags & EXT4_IMMUTABLE_FL and (changes or not self.kernel_owns_data):
            raise NotPermitted(f"inode {ino} is immutable")
        if timed is None:
            timed = not self.kernel_owns_times and (isinstance(atime, int) or isinstance(mtime, int))
        if inode.flags & EXT4_APPEND_FL and (timed or changes):
            raise NotPermitted(f"inode {ino} is append-only")
        for value in (mode, uid, gid, size, atime, mtime, ctime):
            if value is not None and not isinstance(value, (int, Now)):
                # not a failure to be handled, but it must not wait for the commit, which would be lost as a whole
                raise TypeError(f"expected integers, got {value!r}")
        for owner in (uid, gid):
            if owner is not None and not 0 <= owner <= 0xFFFFFFFF:
                raise Invalid(f"id {owner}: expected 0..4294967295")
        if size is not None:
            self._check_data_changes(inode)
        if (uid, gid, size) != (None, None, None) and not inode.is_dir:
            self._drop_privileges(inode, suidgid=kill_priv)
        if size is not None:
            self._set_size(inode, size, caller)
            self._settle(inode)

        def step(tx: Operation) -> None:
            tx.touch(inode)
            if uid is not None:
                inode.uid = uid
            if gid is not None:
                inode.gid = gid
            if mode is not None:
                inode.mode = inode.mode & S_IFMT | mode & 0o7777
                self._chmod_acl(tx, inode)
            if atime is not None:
                inode.atime = self._time(tx, atime)
            if mtime is not None:
                inode.mtime = self._time(tx, mtime)
            inode.ctime = self._time(tx, NOW if ctime is None else ctime)

        if (mode, uid, gid, atime, mtime, ctime) != (None,) * 6:
            credits = ATTR_CREDITS if mode is None else self._xattr_credits(inode, ACL_SIZE)
            # who is not privileged cannot give away beyond the new owner's quota
            reserve = Reserve.ROOT if uid is None and gid is None else self._reserve(caller)
            self._change(step, credits, reserve)
        return self._attr(inode)

    def note_times(self, ino: int, mtime: int, ctime: int) -> Attr:
        """The times (ns) that a kernel has set by itself and kept until now: of every file that was written.

        Raises as :meth:`setattr`, which does the same.
        """
        self._check_writable()
        inode = self._first(ino)
        if inode.flags & EXT4_IMMUTABLE_FL:
            return self.setattr(ino, mtime=mtime, ctime=ctime)
        with self.volume.operation(1) as tx:
            tx.touch(inode)
            inode.mtime = self.volume.clamp_time(mtime)
            inode.ctime = self.volume.clamp_time(ctime)
        return self._attr(inode)

    def set_casefold(self, ino: int, on: bool) -> None:
        """Let an empty directory's names differ in more than case only, or no more (`chattr +F`).

        Raises NotSupported (no casefold feature), NotADirectory, NotEmpty, NotPermitted, ReadOnly, Corrupt.
        """
        self._check_writable()
        inode = self._first(ino)
        if inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"inode {ino} is immutable or append-only")
        self._change(lambda tx: self._namespace.set_casefold(tx, inode, on), ATTR_CREDITS, Reserve.ROOT)

    def _drop_privileges(self, inode: Inode, *, suidgid: bool) -> None:
        """A file changes: what it lets its users do was not meant for other contents (kernel: file_remove_privs).

        ``suidgid``: whoever changes it has no right to keep set-user-ID and set-group-ID either. Raises DeviceError.
        """
        capability = self.volume.xattrs.has_capability(inode)
        mode = without_suidgid(inode.mode) if suidgid else inode.mode
        if mode == inode.mode and not capability:
            return

        def step(tx: Operation) -> None:
            tx.touch(inode)
            inode.mode = mode
            if capability:
                self.volume.xattrs.remove(tx, inode, CAPABILITY)
            inode.ctime = tx.now

        self._change(step, ATTR_CREDITS, Reserve.ALL)
        self.privileges_dropped(inode.ino)

    def _time(self, tx: Operation, value: int | Now) -> int:
        return tx.now if isinstance(value, Now) else self.volume.clamp_time(value)

    def _chmod_acl(self, tx: Operation, inode: Inode) -> None:
        """Kernel: posix_acl_chmod; the group bits of the mode are the ACL's mask."""
        if inode.is_symlink or not self.volume.options.acl:
            return
        old = self.volume.xattrs.get_acl(inode, default=False)
        if old is not None:
            self.volume.xattrs.set_acl(tx, inode, acl.chmod(old, inode.mode), default=False)

    @staticmethod
    def _check_data_changes(inode: Inode) -> None:
        """Raises NoKey, NotPermitted for files whose size cannot be set."""
        if inode.flags & EXT4_ENCRYPT_FL:
            raise NoKey(f"inode {inode.ino} is encrypted and its key is not here")
        if inode.flags & EXT4_VERITY_FL:
            raise NotPermitted(f"inode {inode.ino} is a verity file, its data cannot change")

    def _set_size(self, inode: Inode, size: int, caller: Caller) -> None:
        self._check_data_changes(inode)
        largest = self.volume.files.largest(inode)
        if size > largest:
            raise FileTooBig(f"{size} bytes: at most {largest}")
        self.volume.start_writing()
        file = self._file(inode)
        old = self.server.size(inode)
        tail = -size % self.volume.geometry.block_size
        if size > old:
            # what lies behind the old end in its block must read as zeros from now on
            self._zero(file, old, size - old)
        elif tail and size < old and not self.kernel_owns_data:
            # zeroed below; what has to be read for that must not fail when the size has changed
            self.client.mapping(file, size, tail, int(OpFlags.ZERO))
        done = self._change(lambda tx: self._start_size(tx, inode, old, size), REMOVE_CREDITS, self._reserve(caller))
        if size > old:
            self.server.size_set(inode.ino)
            return
        self.client.truncated(file, size)
        try:
            if size < old:
                self._zero(file, size, tail)
            if not done:
                self.volume.reclaim.finish_shrink(inode)
        finally:
            # what was looked up meanwhile may have been freed
            self.client.truncated(file, size)

    def _start_size(self, tx: Operation, inode: Inode, old: int, size: int) -> bool:
        done = True
        if size > old:
            self.volume.files.grow(tx, inode, size)
        else:
            done = self.volume.reclaim.start_shrink(tx, inode, size)
        inode.mtime = inode.ctime = tx.now
        return done
