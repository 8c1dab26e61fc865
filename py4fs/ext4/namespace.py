"""Names: create, link, unlink, rename and what they do to inodes, link counts and times (kernel: namei.c, ialloc.c).

Callers pass inodes and an operation; errors are raised before anything changes where POSIX names them, and whatever
fails later is undone with the operation.
"""

from __future__ import annotations

import random
from typing import Final

from py4fs.errors import (
    Corrupt,
    CrossDevice,
    Exists,
    Invalid,
    IsADirectory,
    NameTooLong,
    NoKey,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    NotSupported,
    TooManyLinks,
)
from py4fs.ext4 import acl, inline, nokey
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache, RawBlock
from py4fs.ext4.directory import DirContext, Directory
from py4fs.ext4.file import FileMap
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import IBLOCK_SIZE, Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.layout.dirent import mode_to_ft
from py4fs.ext4.layout.inode import (
    EXT4_APPEND_FL,
    EXT4_CASEFOLD_FL,
    EXT4_ENCRYPT_FL,
    EXT4_FL_INHERITED,
    EXT4_IMMUTABLE_FL,
    EXT4_INDEX_FL,
    EXT4_LINK_MAX,
    EXT4_OTHER_FLMASK,
    EXT4_PROJINHERIT_FL,
    EXT4_REG_FLMASK,
    EXT4_ROOT_INO,
    EXT4_TOPDIR_FL,
    S_IFCHR,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
)
from py4fs.ext4.name_rules import NameRules
from py4fs.ext4.orphan import Orphans
from py4fs.ext4.transaction import Operation
from py4fs.ext4.xattr import XattrStore

NAME_MAX: Final = 255
S_ISGID: Final = 0o2000


class Owner:
    """Who creates something: ids, and the umask that applies where no default ACL does."""

    __slots__ = ("gid", "uid", "umask")

    def __init__(self, uid: int, gid: int, umask: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.umask = umask


class Namespace:
    """Directory operations of one volume."""

    def __init__(
        self,
        geometry: Geometry,
        inodes: InodeTable,
        alloc: Allocator,
        files: FileMap,
        buffers: BufferCache,
        orphans: Orphans,
        dirs: DirContext,
        xattrs: XattrStore,
        rng: random.Random,
        *,
        dir_nlink: bool,
        project: bool,
        acl: bool = True,
        grpid: bool = False,
    ) -> None:
        """``acl``: new inodes inherit ACLs; ``grpid``: they get the group of their directory."""
        self._geometry = geometry
        self._inodes = inodes
        self._alloc = alloc
        self._files = files
        self._buffers = buffers
        self._orphans = orphans
        self._dirs = dirs
        self._xattrs = xattrs
        self._rng = rng
        self._dir_nlink = dir_nlink
        self._project = project
        self._acl = acl
        self._grpid = grpid

    # -- looking -------------------------------------------------------------------------------------------

    @property
    def rules(self) -> NameRules:
        """What names are the same, and how they are shown."""
        return self._dirs.rules

    def directory(self, inode: Inode) -> Directory:
        """The directory of ``inode``. Raises NotADirectory."""
        directory: Directory | None = inode.dirindex
        if directory is None:
            if not inode.is_dir:
                raise NotADirectory(f"inode {inode.ino} is not a directory")
            directory = inode.dirindex = Directory(self._dirs, inode)
        return directory

    def lookup(self, parent: Inode, name: bytes) -> int | None:
        """The inode number behind ``name`` or None. Raises NotADirectory, NameTooLong, Corrupt, DeviceError."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f"name of {len(name)} bytes")
        found = self.directory(parent).lookup(name)
        if found is None:
            return None
        ino = found[0]
        return ino

    def get(self, parent: Inode, name: bytes) -> Inode:
        """The inode behind ``name``. Raises NotFound and as :meth:`lookup`."""
        ino = self.lookup(parent, name)
        if ino is None:
            raise NotFound(f"{_shown(name)} not found in inode {parent.ino}")
        return self._inodes.get(ino)

    def target(self, inode: Inode) -> bytes:
        """A symlink's target. Raises Corrupt, DeviceError."""
        if inode.flags & EXT4_ENCRYPT_FL:
            # its length is told by itself, i_size may be short of it
            raw = bytes(inode.iblock) if inode.is_fast_symlink else self._block_of_link(inode)
            return nokey.symlink_target(raw, f"inode {inode.ino}")
        size = inode.size
        if size and inode.is_fast_symlink:
            return bytes(inode.iblock[:size])
        if inode.is_inline and 0 < size <= inline.stored_size(inode):
            return inline.read(inode)[:size]
        if not 0 < size < self._geometry.block_size or inode.is_inline:
            raise Corrupt("symlink length", f"inode {inode.ino}", size, f"1..{self._geometry.block_size - 1}")
        return self._block_of_link(inode)[:size]

    def _block_of_link(self, inode: Inode) -> bytes:
        return bytes(self._buffers.get(self._files.block_of(inode, 0), RawBlock, RawBlock).data)

    def shown_size(self, inode: Inode) -> int:
        """The size in bytes that users see: of an encrypted symbolic link's target. Raises Corrupt, DeviceError."""
        if inode.flags & EXT4_ENCRYPT_FL and inode.is_symlink:
            return len(self.target(inode))
        return inode.size

    # -- creating ------------------------------------------------------------------------------------------

    def _check_new(self, parent: Inode, name: bytes) -> None:
        _check_name(name)
        if self.lookup(parent, name) is not None:
            raise Exists(f"{_shown(name)} exists in inode {parent.ino}")
        self._check_can_add(parent)

    @staticmethod
    def _check_can_add(parent: Inode) -> None:
        if parent.flags & EXT4_IMMUTABLE_FL:
            raise NotPermitted(f"directory inode {parent.ino} is immutable")
        if parent.nlink == 0:
            raise NotFound(f"directory inode {parent.ino} was removed")

    def create(
        self,
        tx: Operation,
        parent: Inode,
        name: bytes,
        mode: int,
        owner: Owner,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """Make a file of any type. ``target`` is a symlink's contents.

        Raises Exists, NameTooLong, Invalid, NotPermitted, NotADirectory, TooManyLinks, NoSpace, Corrupt, DeviceError.
        """
        self._check_new(parent, name)
        is_dir = mode & S_IFMT == S_IFDIR
        if is_dir:
            self._check_room_for_subdir(parent)
        if target is not None and (not target or len(target) >= self._geometry.block_size):
            raise NameTooLong(f"symlink target of {len(target)} bytes") if target else NotFound("empty symlink target")
        inode = self._new_inode(tx, parent, name, mode, owner)
        if is_dir:
            self.directory(inode).init_empty(tx, parent.ino)
            inode.nlink = 2
            tx.touch(parent)
            self._count_up(parent)
        elif target is not None:
            self._set_target(tx, inode, target)
        elif inode.is_device:
            inode.set_rdev(rdev)
        elif inode.is_reg:
            self._files.init(inode)
        self._add_entry(tx, parent, name, inode)
        return inode

    def tmpfile(self, tx: Operation, parent: Inode, mode: int, owner: Owner) -> Inode:
        """A regular file without a name, an orphan from birth; it takes after ``parent`` as a named one would.

        Raises NotPermitted, NotADirectory, NoSpace, Corrupt, DeviceError.
        """
        self.directory(parent)
        if parent.flags & EXT4_IMMUTABLE_FL or parent.nlink == 0:
            raise NotPermitted(f"directory inode {parent.ino} is immutable or was removed")
        inode = self._new_inode(tx, parent, b"", mode, owner)
        self._files.init(inode)
        inode.nlink = 0
        self._orphans.add(tx, inode)
        return inode

    def _new_inode(self, tx: Operation, parent: Inode, name: bytes, mode: int, owner: Owner) -> Inode:
        is_dir = mode & S_IFMT == S_IFDIR
        top_level = parent.ino == EXT4_ROOT_INO or bool(parent.flags & EXT4_TOPDIR_FL)
        ino = self._alloc.new_inode(tx, parent.ino, is_dir, name, top_level)
        inode = self._inodes.new(tx, ino, self._rng.getrandbits(32))
        inode.mode = mode
        inode.nlink = 1
        inode.uid = owner.uid
        inode.gid = owner.gid
        if self._grpid:
            inode.gid = parent.gid
        elif parent.mode & S_ISGID:
            inode.gid = parent.gid
            if is_dir:
                inode.mode |= S_ISGID
        inode.atime = inode.mtime = inode.ctime = tx.now
        inherited = parent.flags & EXT4_FL_INHERITED
        if inode.is_reg:
            inherited &= EXT4_REG_FLMASK
        elif not is_dir:
            inherited &= EXT4_OTHER_FLMASK
        inode.flags = inherited
        inode.may_inline = self._files.inline_data
        if self._project and parent.flags & EXT4_PROJINHERIT_FL:
            inode.projid = parent.projid
        self._inherit_acl(tx, parent, inode, owner.umask)
        return inode

    def _inherit_acl(self, tx: Operation, parent: Inode, inode: Inode, umask: int) -> None:
        """Kernel: posix_acl_create. The umask counts only where the directory has no default ACL."""
        if inode.mode & S_IFMT == S_IFLNK:
            return
        default = self._xattrs.get_acl(parent, default=True) if self._acl else None
        if default is None:
            inode.mode &= ~umask
            return
        mode, access, inherited = acl.inherit(default, inode.mode, is_dir=inode.is_dir)
        inode.mode = mode
        if inherited is not None:
            self._xattrs.set_acl(tx, inode, inherited, default=True)
        if access is not None:
            self._xattrs.set_acl(tx, inode, access, default=False)

    def _set_target(self, tx: Operation, inode: Inode, target: bytes) -> None:
        if len(target) < IBLOCK_SIZE:
            inode.iblock[:] = target.ljust(IBLOCK_SIZE, b"\0")
        else:
            self._files.init(inode)
            _, pblk = self._files.append_block(tx, inode)
            self._buffers.create(tx, RawBlock(pblk, target.ljust(self._geometry.block_size, b"\0")))
        inode.size = len(target)

    def _add_entry(self, tx: Operation, parent: Inode, name: bytes, inode: Inode) -> None:
        self.directory(parent).add(tx, name, inode.ino, mode_to_ft(inode.mode))
        self._stamp_dir(tx, parent)

    @staticmethod
    def _stamp_dir(tx: Operation, parent: Inode) -> None:
        tx.touch(parent)
        parent.mtime = parent.ctime = tx.now

    def set_casefold(self, tx: Operation, inode: Inode, on: bool) -> None:
        """Turn the casefold flag of an empty directory on or off (`chattr +F`).

        Raises NotSupported (no casefold feature), NotADirectory, NotEmpty, Corrupt, DeviceError.
        """
        if self._dirs.rules.folded is None:
            raise NotSupported("the file system has no casefold feature")
        if not self.directory(inode).is_empty():
            raise NotEmpty(f"directory inode {inode.ino} is not empty")
        tx.touch(inode)
        inode.flags = inode.flags & ~EXT4_CASEFOLD_FL | (EXT4_CASEFOLD_FL if on else 0)
        inode.dirindex = None  # it remembers what it looked for, and how that was hashed
        inode.ctime = tx.now

    def link(self, tx: Operation, inode: Inode, parent: Inode, name: bytes, *, linkable: bool = False) -> None:
        """A further name for a file, or with ``linkable`` the first one (of a :meth:`tmpfile`).

        Raises NotPermitted, TooManyLinks, NotFound and as :meth:`create`.
        """
        self._check_new(parent, name)
        if inode.is_dir or inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"inode {inode.ino} cannot be linked")
        if inode.nlink == 0 and not linkable:
            raise NotFound(f"inode {inode.ino} has been removed")
        if inode.nlink >= EXT4_LINK_MAX:
            raise TooManyLinks(f"inode {inode.ino} has {inode.nlink} links")
        self._check_project(parent, inode)
        tx.touch(inode)
        inode.nlink += 1
        inode.ctime = tx.now
        self._add_entry(tx, parent, name, inode)
        if inode.nlink == 1 and not self._files.has_tail(inode):
            # else it is an orphan because of what has to be cut off, and whoever does that takes it off
            self._orphans.remove(tx, inode)

    # -- link counts of directories (kernel: ext4_inc_count, ext4_dec_count) -------------------------------

    def _check_room_for_subdir(self, parent: Inode) -> None:
        unlimited = self._dir_nlink and parent.flags & EXT4_INDEX_FL
        if parent.nlink >= EXT4_LINK_MAX and not unlimited:
            raise TooManyLinks(f"directory inode {parent.ino} has {parent.nlink} links")

    @staticmethod
    def _count_up(parent: Inode) -> None:
        """One more subdirectory; 1 stands for "more than 65,000" in indexed directories."""
        parent.nlink += 1
        if parent.flags & EXT4_INDEX_FL and (parent.nlink > EXT4_LINK_MAX or parent.nlink == 2):
            parent.nlink = 1

    @staticmethod
    def _count_down(parent: Inode) -> None:
        if parent.nlink > 2:
            parent.nlink -= 1

    # -- removing ------------------------------------------------------------------------------------------

    @staticmethod
    def _check_removal(parent: Inode, victim: Inode) -> None:
        if parent.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"directory inode {parent.ino} is immutable or append-only")
        if victim.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise NotPermitted(f"inode {victim.ino} is immutable or append-only")

    def unlink(self, tx: Operation, parent: Inode, name: bytes) -> Inode:
        """Remove a name; an inode without names goes on the orphan list, and whoever holds it last evicts it.

        Raises NotFound, IsADirectory, NotPermitted, Corrupt, DeviceError.
        """
        inode = self.get(parent, name)
        self._check_removal(parent, inode)
        if inode.is_dir:
            raise IsADirectory(f"{_shown(name)} is a directory")
        self.directory(parent).remove(tx, name)
        self._stamp_dir(tx, parent)
        self._drop_link(tx, inode)
        return inode

    def _drop_link(self, tx: Operation, inode: Inode) -> None:
        if inode.nlink == 1 and inode.has_blocks:
            self._files.mapper(inode)  # what could not be freed later must not be unlinked
        tx.touch(inode)
        inode.nlink -= 1
        inode.ctime = tx.now
        if inode.nlink == 0:
            self._orphans.add(tx, inode)

    def rmdir(self, tx: Operation, parent: Inode, name: bytes) -> Inode:
        """Remove an empty directory. Raises NotFound, NotADirectory, NotEmpty, Invalid, NotPermitted, Corrupt."""
        if name == b".":
            raise Invalid("cannot remove .")
        inode = self.get(parent, name)
        if name != b"..":
            self._check_removal(parent, inode)
        if name == b".." or not self.directory(inode).is_empty():
            raise NotEmpty(f"{_shown(name)} is not empty")
        self.directory(parent).remove(tx, name)
        self._stamp_dir(tx, parent)
        self._drop_dir(tx, inode)
        self._count_down(parent)
        return inode

    def _drop_dir(self, tx: Operation, inode: Inode) -> None:
        if inode.has_blocks:
            self._files.mapper(inode)
        tx.touch(inode)
        inode.nlink = 0
        inode.size = 0
        inode.ctime = tx.now
        self._orphans.add(tx, inode)

    # -- renaming ------------------------------------------------------------------------------------------

    def rename(
        self,
        tx: Operation,
        old_dir: Inode,
        old_name: bytes,
        new_dir: Inode,
        new_name: bytes,
        *,
        noreplace: bool,
        whiteout: Owner | None = None,
    ) -> Inode | None:
        """Move a name; returns the inode that it replaced, if any. All in one transaction.

        With ``whiteout`` a character device 0/0 of that owner stays behind, which hides the name in overlayfs.

        Raises NotFound, Exists, Invalid, NotADirectory, IsADirectory, NotEmpty, NotPermitted, TooManyLinks,
        CrossDevice, NoSpace, Corrupt, DeviceError.
        """
        _check_rename_name(old_name)
        _check_rename_name(new_name)
        inode = self.get(old_dir, old_name)
        found = self.lookup(new_dir, new_name)
        if found is not None and noreplace:
            raise Exists(f"{_shown(new_name)} exists")
        victim = None if found is None else self._inodes.get(found)
        if victim is inode:
            return None
        self._check_rename(old_dir, inode, new_dir, victim, new_name)
        ftype = mode_to_ft(inode.mode)
        if victim is None:
            self.directory(new_dir).add(tx, new_name, inode.ino, ftype)
        else:
            self.directory(new_dir).replace(tx, new_name, inode.ino, ftype)
        if whiteout is None:
            self.directory(old_dir).remove(tx, old_name)
        else:
            left = self._new_inode(tx, old_dir, old_name, S_IFCHR, whiteout)
            self.directory(old_dir).replace(tx, old_name, left.ino, mode_to_ft(S_IFCHR))
        self._stamp_dir(tx, old_dir)
        self._stamp_dir(tx, new_dir)
        tx.touch(inode)
        inode.ctime = tx.now
        if inode.is_dir:
            self._move_parent(tx, inode, old_dir, new_dir, replaces=victim is not None)
        if victim is not None:
            if victim.is_dir:
                self._drop_dir(tx, victim)
            else:
                self._drop_link(tx, victim)
        return victim

    def _check_rename(
        self, old_dir: Inode, inode: Inode, new_dir: Inode, victim: Inode | None, new_name: bytes
    ) -> None:
        if inode.is_dir:
            self._check_not_inside(inode, new_dir)
        self._check_removal(old_dir, inode)
        self._check_can_add(new_dir)
        self._check_key(old_dir, new_dir)
        self._check_project(new_dir, inode)
        if victim is None:
            if inode.is_dir and new_dir is not old_dir:
                self._check_room_for_subdir(new_dir)
            return
        self._check_removal(new_dir, victim)
        if victim.is_dir and self._contains(victim, old_dir):
            raise NotEmpty(f"{_shown(new_name)} is above what shall replace it")
        if inode.is_dir and not victim.is_dir:
            raise NotADirectory(f"{_shown(new_name)} is not a directory")
        if victim.is_dir and not inode.is_dir:
            raise IsADirectory(f"{_shown(new_name)} is a directory")
        if victim.is_dir and not self.directory(victim).is_empty():
            raise NotEmpty(f"{_shown(new_name)} is not empty")

    def _check_project(self, parent: Inode, inode: Inode) -> None:
        if self._project and parent.flags & EXT4_PROJINHERIT_FL and parent.projid != inode.projid:
            raise CrossDevice(f"inode {inode.ino} belongs to another project")

    def _check_key(self, *directories: Inode) -> None:
        for directory in directories:
            if directory.flags & EXT4_ENCRYPT_FL:
                raise NoKey(f"directory inode {directory.ino} is encrypted and its key is not here")

    def _move_parent(self, tx: Operation, inode: Inode, old_dir: Inode, new_dir: Inode, *, replaces: bool) -> None:
        """A directory changed its name: ``..`` and the link counts of both parents."""
        if new_dir is not old_dir:
            self.directory(inode).replace(tx, b"..", new_dir.ino, mode_to_ft(S_IFDIR))
            self._count_down(old_dir)
            if not replaces:
                self._count_up(new_dir)
        elif replaces:
            self._count_down(old_dir)

    def exchange(self, tx: Operation, dir_a: Inode, name_a: bytes, dir_b: Inode, name_b: bytes) -> None:
        """Swap what two names stand for (renameat2's RENAME_EXCHANGE). Raises as :meth:`rename`."""
        _check_rename_name(name_a)
        _check_rename_name(name_b)
        a, b = self.get(dir_a, name_a), self.get(dir_b, name_b)
        if a is b:
            return
        self._check_removal(dir_a, a)
        self._check_removal(dir_b, b)
        self._check_key(dir_a, dir_b)
        self._check_project(dir_a, b)
        self._check_project(dir_b, a)
        if a.is_dir:
            self._check_not_inside(a, dir_b)
        if b.is_dir:
            self._check_not_inside(b, dir_a)
        if dir_a is not dir_b and a.is_dir != b.is_dir:
            self._check_room_for_subdir(dir_b if a.is_dir else dir_a)
        self.directory(dir_a).replace(tx, name_a, b.ino, mode_to_ft(b.mode))
        self.directory(dir_b).replace(tx, name_b, a.ino, mode_to_ft(a.mode))
        self._stamp_dir(tx, dir_a)
        self._stamp_dir(tx, dir_b)
        for inode, source, home in ((a, dir_a, dir_b), (b, dir_b, dir_a)):
            tx.touch(inode)
            inode.ctime = tx.now
            if inode.is_dir and source is not home:
                self.directory(inode).replace(tx, b"..", home.ino, mode_to_ft(S_IFDIR))
        if dir_a is not dir_b and a.is_dir != b.is_dir:
            self._count_up(dir_b if a.is_dir else dir_a)
            self._count_down(dir_a if a.is_dir else dir_b)

    def _check_not_inside(self, inode: Inode, directory: Inode) -> None:
        """A directory must not move below itself. Raises Invalid; Corrupt when ``..`` goes in circles."""
        if inode.ino == EXT4_ROOT_INO:
            raise Invalid("the root directory cannot move")
        if self._contains(inode, directory):
            raise Invalid(f"directory inode {inode.ino} cannot move below itself")

    def _contains(self, inode: Inode, directory: Inode) -> bool:
        """Whether ``directory`` is ``inode`` or below it. Raises Corrupt when ``..`` goes in circles."""
        seen: set[int] = set()
        while directory is not inode:
            if directory.ino == EXT4_ROOT_INO:
                return False
            seen.add(directory.ino)
            directory = self._inodes.get(self.directory(directory).parent())
            if directory.ino in seen:
                raise Corrupt("parents go in circles", f"directory inode {directory.ino}")
        return True


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise NameTooLong(f"name of {len(name)} bytes")
    if not name or 0x2F in name or 0 in name:  # numbers are found several times as fast as strings
        raise Invalid(f"not a file name: {name!r}")


def _check_rename_name(name: bytes) -> None:
    _check_name(name)
    if name in (b".", b".."):
        raise Invalid(f"cannot rename {_shown(name)}")


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))


