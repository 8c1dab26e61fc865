"""What all request handlers share: the vfs under its lock, replies with attributes, what a request came with."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from py4fs.errors import Corrupt, Invalid, NoSpace, Stale
from py4fs.fuse import callers, privileges
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import notifications, structs
from py4fs.fuse.direct.commits import Commits
from py4fs.fuse.direct.extensions import split as split_extensions
from py4fs.fuse.direct.negotiate import MAX_WRITE, Agreed
from py4fs.fuse.direct.pipes import ReplyPipe
from py4fs.fuse.direct.pruning import Pruning
from py4fs.fuse.failures import Failures
from py4fs.fuse.writers import Writers
from py4fs.iomap import protocol as iomap
from py4fs.vfs import ROOT, ROOT_INO, Attr, Caller, InGroup, Vfs

log = logging.getLogger(__name__)

FUSE_ROOT: Final = 1
"""The kernel's name for the root directory; every other node id is an inode number."""
LONG: Final = 24 * 3600
"""Seconds that the kernel may cache what only its own requests can change."""
SHORT: Final = 1
"""The same for files open for writing, whose st_blocks grows when dirty pages arrive."""
HEADER: Final = iomap.IN_HEADER.size
REPLY_HEADER: Final = iomap.OUT_HEADER.size
_MASK64: Final = (1 << 64) - 1
_NS: Final = 1_000_000_000

Reply = bytes | memoryview | int | None
"""bytes: the body; memoryview: a whole reply, with room for the header at its front; int: an errno, for what is usual
and no exception; None: no reply at all."""


class Worker:
    """Buffers of one thread, and how it lets another one read while it waits."""

    __slots__ = ("hand_over", "pipe", "reply", "request")

    def __init__(self, hand_over: Callable[[], None] = lambda: None, pipe: ReplyPipe | None = None) -> None:
        #: room for the largest WRITE with its headers
        self.request = memoryview(bytearray(MAX_WRITE + 4096))
        #: room for the largest READ's reply
        self.reply = memoryview(bytearray(REPLY_HEADER + MAX_WRITE))
        #: to be called before waiting for anything that takes long; harmless more than once
        self.hand_over = hand_over
        #: for READ replies that need not be copied
        self.pipe = pipe


class Header:
    """What a request begins with: a fuse_in_header without its length and padding."""

    __slots__ = ("gid", "nodeid", "opcode", "pid", "total_extlen", "uid", "unique")

    def __init__(
        self, opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int, total_extlen: int
    ) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.total_extlen = total_extlen


class Handler(NamedTuple):
    """How a request is served: `run(header, body, worker)`, under the vfs lock unless it sees to that itself."""

    run: Callable[[Header, memoryview, Worker], Reply]
    name: str
    locked: bool
    minimum: int  # bytes of the whole request


class Core:
    """State of a session's operations."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None = None) -> None:
        self.vfs = vfs
        vfs.defers_sync = True
        vfs.frees_later = True
        vfs.privileges_dropped = self.attributes_changed
        self.lock = threading.Lock()
        self.commits = Commits(vfs, self.lock)
        self.failures = Failures(vfs)
        self.agreed: Agreed | None = None
        #: looks at what a process waiting in an ioctl(2) has offered; set by the life cycle
        self.peek: Callable[[int, int, int], int | None] = privileges.peek
        #: everybody counts as root
        self.fakeroot = False
        self.requests = 0  # served so far: lets the shutdown see whether the kernel still sends any
        #: closes the file system, for a mount whose end the kernel waits for; set by the life cycle
        self.on_destroy: Callable[[], None] = lambda: None
        #: sends a notification to the kernel: 0, or the errno of its answer; set by the session
        self.send: Callable[[bytes], int] = lambda message: errno.ENOTCONN
        self._clock = clock
        self.pruning = Pruning(self.notify)
        self.writers = Writers()
        self._lost: dict[int, int] = {}  # inode -> free blocks when dirty pages of it found no room

    def take_sync_due(self) -> bool:
        """Whether what was done under the lock has to be durable before it is answered (dirsync, flags S and D)."""
        due, self.vfs.sync_due = self.vfs.sync_due, False
        return due

    # --- replies -------------------------------------------------------------------------------

    def attr_values(self, attr: Attr) -> tuple[int, ...]:
        """The fields of a fuse_attr."""
        atime, mtime, ctime = attr.atime // _NS, attr.mtime // _NS, attr.ctime // _NS
        return (
            attr.ino,
            attr.size,
            attr.blocks,
            atime & _MASK64,
            mtime & _MASK64,
            ctime & _MASK64,
            attr.atime - atime * _NS,
            attr.mtime - mtime * _NS,
            attr.ctime - ctime * _NS,
            attr.mode,
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.rdev,
            attr.blksize,
            self.attr_flags(attr),
        )

    def attr_flags(self, attr: Attr) -> int:
        """FUSE_ATTR_* of an inode; they only mean something to a kernel with iomap."""
        return 0

    def direct_alignment(self, attr: Attr) -> int:
        """Bytes that direct I/O of a file has to be aligned to; 0: that is not known, as FUSE requests need not be."""
        return 0

    @property
    def name_timeout(self) -> int:
        """Seconds that names may be cached; not at all where one can have several spellings."""
        return 0 if self.vfs.names_fold else LONG

    def attr_timeout(self, ino: int) -> int:
        """Seconds that attributes may be cached."""
        if ino in self._lost:
            return 0
        return SHORT if ino in self.writers else LONG

    def attr_out(self, attr: Attr) -> bytes:
        return structs.ATTR_OUT.pack(self.attr_timeout(attr.ino), 0, 0, *self.attr_values(attr))

    def entry_values(self, attr: Attr) -> tuple[int, ...]:
        """The fields of a fuse_entry_out; the kernel has one more reference to the inode then."""
        ino = attr.ino
        nodeid = self.nodeid(ino)
        self.vfs.ref(ino)
        return (nodeid, attr.generation, self.name_timeout, self.attr_timeout(ino), 0, 0, *self.attr_values(attr))

    def nodeid(self, ino: int) -> int:
        """The kernel's name for an inode. Raises Corrupt for the one whose number is the root's node id."""
        if ino == FUSE_ROOT:
            raise Corrupt("directory entry", f"inode {ino}", "a name for the bad blocks inode", "no name")
        return FUSE_ROOT if ino == ROOT_INO else ino

    def ino(self, nodeid: int) -> int:
        """The inode of a node id. Raises Stale for one that the kernel cannot have, which is no fault of the image."""
        ino = ROOT_INO if nodeid == FUSE_ROOT else nodeid
        if not self.vfs.known(ino):
            raise Stale(f"node {nodeid} is not known")
        return ino

    def forgotten(self, ino: int) -> None:
        """The kernel has dropped an inode."""
        self.pruning.forgotten(ino)

    def notify(self, message: bytes) -> int:
        """Send a notification by what the session has set: 0, or the errno of the kernel's answer."""
        return self.send(message)

    def invalidate_inode(self, nodeid: int, offset: int) -> bool:
        """Let the kernel ask again for attributes, and from `offset` >= 0 on for data; dirty pages are written first.

        False: it does not know the inode.
        With an offset it must be sent without the lock and with another thread that serves the kernel's writes.
        """
        return not self.send(notifications.invalidate_inode(nodeid, offset))

    def attributes_changed(self, ino: int) -> None:
        """In a way that the kernel does not expect: let it ask for them again."""
        self.send(notifications.invalidate_attributes(self.nodeid(ino)))

    # --- requests ------------------------------------------------------------------------------

    def name(self, body: memoryview, at: int = 0) -> bytes:
        """The name from byte `at` of a body on. Raises Invalid when it does not end."""
        raw, end, _ = bytes(body[at:]).partition(b"\0")
        if not end:
            raise Invalid("a name without its end")
        return raw

    def two_names(self, body: memoryview, at: int = 0) -> tuple[bytes, bytes]:
        """Two names, one behind the other. Raises Invalid."""
        parts = bytes(body[at:]).split(b"\0", 2)
        if len(parts) < 3:
            raise Invalid("two names without their ends")
        return parts[0], parts[1]

    def label(self, header: Header, body: memoryview) -> list[tuple[bytes, bytes]]:
        """Security attributes that a new inode is to get: (name, value). Raises Invalid."""
        return split_extensions(body, header.total_extlen * 8).labels if header.total_extlen else []

    def caller(self, header: Header, umask: int = 0) -> Caller:
        return Caller(header.uid, header.gid, umask)

    def actor(self, header: Header) -> Caller:
        """Who wants to do what not everybody may."""
        return ROOT if self.fakeroot else self.caller(header)

    def kill_priv(self, header: Header) -> InGroup:
        """For a change by somebody who has no right to keep set-user-ID and set-group-ID."""
        return lambda group: callers.belongs(header.pid, header.uid, header.gid, group)

    def found_no_room(self, nodeid: int) -> None:
        """Dirty pages of a file are lost for want of space: let its writers know at their next write(2).

        The kernel takes all writes to its cache and reports what became of them at close and fsync only; whoever fills
        the disk would not stop. But it asks for attributes first when they are stale (see :meth:`check_room`).
        """
        with self.lock:
            if nodeid in self.writers:
                self._lost[nodeid] = self.vfs.statfs().bfree
        self.invalidate_inode(nodeid, -1)

    def check_room(self, ino: int, fh: int) -> None:
        """Before more is written to a file with lost pages. Raises NoSpace unless there is more room than then."""
        if ino in self._lost and self.writers.inode_of(fh) == ino:
            if self.vfs.statfs().bfree <= self._lost[ino]:
                raise NoSpace(f"inode {ino}: no room for what was written to it before")
            del self._lost[ino]

    def closed(self, fh: int) -> None:
        """The last descriptor of a handle is gone."""
        ino = self.writers.closed(fh)
        if ino is not None and ino not in self.writers:
            self._lost.pop(ino, None)
