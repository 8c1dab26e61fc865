"""What a server can tell the kernel without being asked (FUSE_NOTIFY_*); whole messages, to be sent by any thread.

None of them may be sent under the vfs lock, but for `invalidate_attributes`: the kernel may wait for requests to be
answered before it takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import EXPIRE_ONLY, Notify
from py4fs.iomap import protocol as iomap


def invalidate_inode(nodeid: int, offset: int, length: int = 0) -> bytes:
    """Attributes are no longer true, nor is data from byte `offset` >= 0 on (`length` 0: to the end).

    Dirty pages of it are written first.
    """
    return iomap.notification(Notify.INVAL_INODE, structs.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length))


def invalidate_attributes(nodeid: int) -> bytes:
    """Only attributes are no longer true."""
    return invalidate_inode(nodeid, -1)


def invalidate_entry(parent: int, name: bytes, *, expire: bool = False) -> bytes:
    """A name may lead elsewhere, or nowhere; with `expire` it is looked up again, and what is mounted below stays."""
    flags = EXPIRE_ONLY if expire else 0
    return iomap.notification(
        Notify.INVAL_ENTRY, structs.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    )


def deleted(parent: int, child: int, name: bytes) -> bytes:
    """A name was removed; who watches the directory (inotify) hears of it."""
    return iomap.notification(
        Notify.DELETE, structs.NOTIFY_DELETE_OUT.pack(parent, child, len(name), 0) + name + b"\0"
    )


def store(nodeid: int, offset: int, data: bytes) -> bytes:
    """Put bytes into the page cache of a file."""
    return iomap.notification(Notify.STORE, structs.NOTIFY_STORE_OUT.pack(nodeid, offset, len(data), 0) + data)


def prune(nodeids: Sequence[int]) -> bytes:
    """Inodes had better be dropped, if nobody uses them (Linux 6.18)."""
    ids = b"".join(map(structs.PRUNE_ONE.pack, nodeids))
    return iomap.notification(Notify.PRUNE, structs.NOTIFY_PRUNE_OUT.pack(len(nodeids), 0, 0) + ids)


def new_epoch() -> bytes:
    """All names that the kernel knows are to be looked up again (Linux 6.16)."""
    return iomap.notification(Notify.INC_EPOCH, b"")
