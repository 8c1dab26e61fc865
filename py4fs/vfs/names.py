"""Names: lookup, create, link, unlink, rename, symbolic links."""

from __future__ import annotations

from typing import Final

from py4fs.errors import Busy, Invalid, NotFound, NotPermitted, Stale
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from py4fs.ext4.transaction import Operation
from py4fs.vfs.base import ACL_SIZE, Base
from py4fs.vfs.types import ROOT, ROOT_INO, Attr, Caller

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
#: metadata objects that one operation touches at most: a directory split at every level of a three-level index,
#: allocation of an inode and of its blocks, xattr blocks
NAMESPACE_CREDITS: Final = 64


def check_rename_flags(flags: int) -> None:
    """Raises Invalid for flags that renameat2(2) does not know, or not together."""
    known = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT
    if flags & ~known or (flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE):
        raise Invalid(f"rename flags {flags:#x}")


class Names(Base):
    """Operations on names."""

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Raises NotFound, NotADirectory, NameTooLong, Corrupt, DeviceError."""
        found = self.find(parent, name)
        if found is None:
            raise NotFound(f"{name[:80]!r} not found in inode {parent}")
        return found

    def find(self, parent: int, name: bytes) -> Attr | None:
        """As :meth:`lookup`; None for a name that is not there."""
        directory = self._first(parent)
        if name in (b".", b".."):
            if not directory.is_dir:
                self._namespace.directory(directory)
            if name == b".":
                return self._attr(directory)
            return self._attr(self._get(self._namespace.directory(directory).parent()))
        ino = self._namespace.lookup(directory, name)
        return None if ino is None else self._attr(self._inodes.get(ino))

    def lookup_parent(self, ino: int) -> Attr:
        """The directory that a directory is in; the root is in itself. Raises NotFound (removed), NotADirectory, …"""
        if self._first(ino).nlink == 0:
            raise NotFound(f"directory inode {ino} was removed")
        return self.lookup(ino, b"..")

    def by_handle(self, ino: int, generation: int | None) -> Attr:
        """The inode that a file handle names (NFS, open_by_handle_at(2)); any generation with None or 0.

        Raises Stale (there is no such inode any more), Corrupt, DeviceError.
        """
        self.volume.pauses.check_alive()
        if not self.volume.geometry.valid_ino(ino) or ino in self._inodes.special:
            raise Stale(f"inode {ino} is none that a handle can name")
        if not self.volume.alloc.inode_in_use(ino):
            raise Stale(f"inode {ino} is not in use")
        inode = self._first(ino)
        if generation and inode.generation != generation:
            raise Stale(f"inode {ino} has generation {inode.generation}, the handle {generation}")
        return self._attr(inode)

    def readlink(self, ino: int) -> bytes:
        """Raises Invalid (not a symlink), Corrupt, DeviceError."""
        inode = self._first(ino)
        if not inode.is_symlink:
            raise Invalid(f"inode {ino} is not a symbolic link")
        target = self._namespace.target(inode)
        self._touch_atime(inode)
        return target

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0, caller: Caller = ROOT) -> Attr:
        """A file, device, FIFO or socket; ``mode`` with its type bits."""
        kind = mode & S_IFMT
        if kind in (S_IFDIR, S_IFLNK):
            raise NotPermitted("mknod makes no directories and symbolic links")
        if kind not in (0, S_IFREG, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK) or not 0 <= mode <= 0xFFFF:
            raise Invalid(f"mknod mode {mode:#o}")
        if not 0 <= rdev < 1 << 32:
            raise Invalid(f"device number {rdev:#x}: at most 32 bits")
        return self._attr(self._make(parent, name, mode if mode & S_IFMT else mode | 0x8000, caller, rdev=rdev))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o777, caller: Caller = ROOT) -> Attr:
        """Raises Exists, NotFound, NotADirectory, TooManyLinks, NoSpace, ReadOnly, …"""
        # set-group-ID comes from the parent only
        return self._attr(self._make(parent, name, S_IFDIR | mode & 0o1777, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller = ROOT) -> Attr:
        """Raises NameTooLong for a target that does not fit a block, NotFound for an empty one, Invalid (NUL in it)."""
        if not target:
            raise NotFound("an empty target leads nowhere")
        if b"\0" in target:
            raise Invalid(f"symbolic link to {target[:80]!r}: a NUL ends it")
        return self._attr(self._make(parent, name, S_IFLNK | 0o777, caller, target=target))

    def _make(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        self._check_writable()
        directory = self._first(parent)

        def step(tx: Operation) -> Inode:
            return self._namespace.create(tx, directory, name, mode, caller, rdev=rdev, target=target)

        # its default ACL may be of any size, and is inherited twice
        credits = NAMESPACE_CREDITS + 2 * self.volume.xattrs.credits(directory, ACL_SIZE, self.volume.geometry.groups)
        made = self._change(step, credits, self._reserve(caller))
        self._settle(directory)
        return made

    def link(self, ino: int, parent: int, name: bytes, caller: Caller = ROOT) -> Attr:
        """A further name for a file that is not a directory, or the first one of a :meth:`tmpfile`.

        Raises Exists, NotFound (its last name is gone), NotPermitted, TooManyLinks, CrossDevice, NoSpace, ReadOnly, …
        """
        self._check_writable()
        inode, directory = self._first(ino), self._get(parent)
        linkable = ino in self._linkable
        self._change(
            lambda tx: self._namespace.link(tx, inode, directory, name, linkable=linkable),
            NAMESPACE_CREDITS,
            self._reserve(caller),
        )
        self._linkable.discard(ino)
        self._settle(directory)
        return self._attr(inode)

    def unlink(self, parent: int, name: bytes, caller: Caller = ROOT) -> None:
        """Remove a name; the inode lives on while it is open or known to the kernel."""
        self._check_writable()
        directory = self._first(parent)
        self._evict_if_unused(
            self._change(
                lambda tx: self._namespace.unlink(tx, directory, name), NAMESPACE_CREDITS, self._reserve(caller)
            )
        )
        self._settle(directory)

    def rmdir(self, parent: int, name: bytes, caller: Caller = ROOT) -> None:
        """Remove an empty directory."""
        self._check_writable()
        directory = self._first(parent)
        inode = self._namespace.get(directory, name) if name != b"." else None
        if inode is not None and inode.ino == ROOT_INO:
            raise Busy("the root directory cannot be removed")
        self._evict_if_unused(
            self._change(
                lambda tx: self._namespace.rmdir(tx, directory, name), NAMESPACE_CREDITS, self._reserve(caller)
            )
        )
        self._settle(directory)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0, caller: Caller = ROOT
    ) -> None:
        """renameat2(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT, the first and last of them together.

        Raises Invalid for other flags, NotFound, Exists, NotADirectory, IsADirectory, NotEmpty, NotPermitted, NoSpace,
        ReadOnly, …
        """
        check_rename_flags(flags)
        self._check_writable()
        old_dir, new_dir = self._first(old_parent), self._get(new_parent)
        namespace = self._namespace

        def step(tx: Operation) -> Inode | None:
            if flags & RENAME_EXCHANGE:
                namespace.exchange(tx, old_dir, old_name, new_dir, new_name)
                return None
            noreplace = bool(flags & RENAME_NOREPLACE)
            whiteout = caller if flags & RENAME_WHITEOUT else None
            return namespace.rename(
                tx, old_dir, old_name, new_dir, new_name, noreplace=noreplace, whiteout=whiteout
            )

        victim = self._change(step, NAMESPACE_CREDITS, self._reserve(caller))
        if victim is not None:
            self._evict_if_unused(victim)
        self._settle(old_dir, new_dir)
