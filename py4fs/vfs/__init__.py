"""Inode-level operations with POSIX semantics: what FUSE sessions, the Python API and the command line call.

Everything is synchronous and raises :class:`py4fs.errors.FsError` only. Inode numbers are ext4's (the root is 2).
Permission bits are not checked here: the kernel does that for a mount (``default_permissions``, ACLs), and whoever
opens an image as a library owns it. What only the server can know is checked: immutable, append-only, read-only.

File data goes through the iomap client, in three steps: *plan*, device I/O, *finish* (DESIGN: "File data").

One class, :class:`Vfs`, in layers: ``base`` (state, changes, lifetime), ``names``, ``attributes``, ``data`` (reading,
writing), ``files``, ``mapping`` (for a kernel that does file I/O by itself), ``ranges`` (fallocate), ``copying``,
``directories``, ``xattrs``, ``ioctls``, ``control`` (freeze, shut down); ``types`` has the values that go in and out.
"""

from py4fs.vfs.control import Control
from py4fs.vfs.ioctls import FsXattr
from py4fs.vfs.names import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, check_rename_flags
from py4fs.vfs.types import NOW, ROOT, ROOT_INO, Attr, Caller, DirEntry
from py4fs.vfs.xattrs import XATTR_CREATE, XATTR_REPLACE


class Vfs(Control):
    """The operations on one volume. ``atime`` is ``relatime``, ``strictatime`` or ``noatime``."""


__all__ = [
    "NOW",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "ROOT",
    "ROOT_INO",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "Attr",
    "Caller",
    "DirEntry",
    "FsXattr",
    "Vfs",
    "check_rename_flags",
]
