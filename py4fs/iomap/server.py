"""ext4's side of iomap: where a range of a file is, and what becomes of it after a write.

The server turns the mapper's runs into mapping records, allocates for writes as unwritten and converts when the data
is down (`ioend`), so that stale blocks can never be read.  It answers ahead: a BEGIN pushes the mappings of a window
into the asker's cache and then says RETRY_CACHE (IOMAP.md section 8: only after a successful push, never for ATOMIC
and SWAPFILE).  ext4 never shares blocks, so the write mapping is always PURE_OVERWRITE and the write fork stays unused.

The askers are the in-process client and a session with an iomap kernel.  The server knows neither: `push` is how it
fills the cache of the one that asks, `subscribe` is how all of them hear about mappings that went away.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from py4fs.errors import Corrupt, FileTooBig, Invalid, NoSpace
from py4fs.ext4.inode import Inode
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.iomap.records import (
    ALLOCATING,
    INVAL_TO_EOF,
    NULL_ADDR,
    UNCACHED_OPS,
    IoendFlags,
    MapFlags,
    Mapping,
    MapType,
    OpFlags,
    placeholder,
)

Push = Callable[[Sequence[Mapping]], bool]
"""Put mappings into the read fork of the asker's cache for this inode; False: declined, nothing may be assumed."""
Invalidated = Callable[[int, int, int], None]
"""Told (inode number, position, length) of mappings that are no longer true; length INVAL_TO_EOF: to the end."""
StartOperation = Callable[[int, Reserve], AbstractContextManager[Operation]]
"""Start an operation with so many credits and such a claim on reserved blocks (`Volume.operation`)."""

WINDOW: Final = 512
"""Runs that one miss brings into the cache at most; a leaf of 4 KiB holds 340."""

# plain numbers: the enums' own operators cost a call each
_REPORT: Final = int(OpFlags.REPORT)
_IOEND_SHARED: Final = int(IoendFlags.SHARED)
_IOEND_UNWRITTEN: Final = int(IoendFlags.UNWRITTEN)
_IOEND_SWAPOFF: Final = int(IoendFlags.SWAPOFF)

_EXTENTS_PER_BLOCK: Final = 84
"""Entries of an extent node in the smallest block (1 KiB)."""
_MAX_DEPTH: Final = 5


class Files(Protocol):
    """The part of `FileMap` that is needed; numbers are file system blocks."""

    block_size: int
    max_size: int

    def run_at(self, inode: Inode, lblk: int) -> Run: ...

    def window(self, inode: Inode, lblk: int, limit: int) -> list[Run]: ...

    def allocate(
        self, tx: Operation, inode: Inode, lblk: int, count: int, *, unwritten: bool = True
    ) -> list[Run]: ...

    def convert(self, tx: Operation, inode: Inode, lblk: int, count: int) -> None: ...

    def remove(self, tx: Operation, inode: Inode, lblk: int, end: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """How writes allocate: as unwritten, to be converted in the ioend, a bounded number of blocks at a time."""

    max_blocks: int = 2048
    """Blocks that one operation allocates at most."""

    def allocate(self, files: Files, tx: Operation, inode: Inode, lblk: int, count: int) -> list[Run]:
        """Fill the holes of a range of blocks; returns the whole runs that cover it.  Raises NoSpace, Corrupt."""
        return files.allocate(tx, inode, lblk, count, unwritten=True)


def allocation_credits(blocks: int, groups: int) -> int:
    """Metadata objects that mapping `blocks` new blocks can touch, each in an extent of its own at worst.

    Bitmap and descriptor of every group used, leaves with their splits, inode and superblock.
    """
    nodes = 2 * (-(-blocks // _EXTENTS_PER_BLOCK)) + 2 * _MAX_DEPTH
    return 2 * min(blocks + nodes, groups) + nodes + 2


def conversion_credits(runs: int) -> int:
    """Metadata objects that an ioend over `runs` unwritten extents can touch.

    Each conversion splits an extent twice at most, which may split its leaf: a new node, its bitmap and descriptor.
    """
    return 4 * (runs + _MAX_DEPTH) + 4


class Ext4Iomap:
    """Answers BEGIN, END and IOEND for the files of one volume.  Positions and counts in bytes."""

    def __init__(
        self,
        files: Files,
        operation: StartOperation,
        *,
        groups: int,
        dev: int = 1,
        policy: WritePolicy | None = None,
        window: int = WINDOW,
    ) -> None:
        """`groups`: number of block groups (bounds what an allocation touches); `dev`: the device's cookie."""
        self._files = files
        self._operation = operation
        self._groups = groups
        self._dev = dev
        self._policy = policy or WritePolicy()
        self._window = window
        self._incore: dict[int, int] = {}
        self._listeners: list[Invalidated] = []
        self.block_size = files.block_size
        self.max_file_bytes = files.max_size

    # -- asking ---------------------------------------------------------------------------------------------

    def begin(
        self,
        inode: Inode,
        pos: int,
        count: int,
        opflags: int,
        push: Push | None = None,
        reserve: Reserve = Reserve.ROOT,
    ) -> tuple[Mapping, Mapping]:
        """The (read, write) mappings at `pos`; both cover it and may reach beyond pos + count, or end before.

        Writes get blocks allocated over [pos, pos + count), a bounded part of it at a time.  With `push` a window
        goes into the asker's cache and the read mapping says RETRY_CACHE.
        Raises FileTooBig, Invalid, NoSpace, Corrupt, DeviceError.
        """
        if pos < 0 or count <= 0:
            raise Invalid(f"inode {inode.ino}: mapping of {count} bytes at {pos}")
        if pos >= self.max_file_bytes:
            raise FileTooBig(f"inode {inode.ino}: byte {pos} is beyond the largest file")
        lblk = pos // self.block_size
        if opflags & _REPORT:
            # not trimmed, a reporter would show the part in front of pos a second time (IOMAP.md 9.6)
            mapping = self._mapping(_from(self._files.run_at(inode, lblk), lblk))
            return mapping, placeholder(mapping, MapType.PURE_OVERWRITE)
        if opflags & ALLOCATING and self._files.run_at(inode, lblk).state is RunState.HOLE:
            runs = self._allocate(inode, lblk, pos + count, reserve)
        else:
            runs = self._files.window(inode, lblk, self._window)
        mappings = [self._mapping(run) for run in runs]
        first = mappings[0]
        write = placeholder(first, MapType.PURE_OVERWRITE)
        if push is not None and not opflags & UNCACHED_OPS and self._push(push, mappings):
            return placeholder(first, MapType.RETRY_CACHE), write
        return first, write

    def _allocate(self, inode: Inode, lblk: int, end: int, reserve: Reserve) -> list[Run]:
        count = min(-(-min(end, self.max_file_bytes) // self.block_size) - lblk, self._policy.max_blocks)
        while True:
            try:
                with self._operation(allocation_credits(count, self._groups), reserve) as tx:
                    return self._policy.allocate(self._files, tx, inode, lblk, count)
            except NoSpace:
                # there may be room for a part: then the write is short, as the kernel's would be
                if count == 1:
                    raise
                count //= 2

    def _push(self, push: Push, mappings: list[Mapping]) -> bool:
        # the first one goes last: a cache at its size limit drops everything, but never what came last
        return push([*mappings[1:], mappings[0]])

    def _mapping(self, run: Run) -> Mapping:
        size = self.block_size
        if run.state is RunState.HOLE:
            return Mapping(run.lblk * size, run.count * size, NULL_ADDR, MapType.HOLE)
        kind = MapType.MAPPED if run.state is RunState.MAPPED else MapType.UNWRITTEN
        return Mapping(run.lblk * size, run.count * size, run.pblk * size, kind, 0, self._dev)

    def open_push(self, inode: Inode, push: Push) -> bool:
        """Bring the first mappings of a file to an asker that opens it.  Raises Corrupt, DeviceError."""
        runs = self._files.window(inode, 0, self._window)
        return self._push(push, [self._mapping(run) for run in runs])

    def refresh(self, inode: Inode, pos: int, count: int, push: Push) -> bool:
        """Push what [pos, pos + count) is now, after an ioend say.  Raises Corrupt, DeviceError."""
        lblk, end = pos // self.block_size, -(-(pos + count) // self.block_size)
        while lblk < end:
            runs = self._files.window(inode, lblk, self._window)
            stop = 0
            while stop < len(runs) and runs[stop].lblk < end:
                stop += 1
            if not push([self._mapping(run) for run in runs[:stop]]):
                return False
            lblk = runs[stop - 1].end
        return True

    # -- after the I/O --------------------------------------------------------------------------------------

    def end(
        self, inode: Inode, pos: int, count: int, written: int, opflags: int, map_flags: int = 0
    ) -> None:
        """A write of `count` bytes at `pos` got `written` of them done.

        Notes the size that the file has in core (IOMAP.md 9.1), and gives back blocks past the end of the file that
        were allocated for what was not written.  Raises Corrupt, DeviceError.
        """
        if map_flags & MapFlags.SIZE_CHANGED and written > 0:
            self._incore[inode.ino] = max(self.size(inode), pos + written)
        if written < count and opflags & ALLOCATING:
            self._give_back(inode, pos + max(written, 0), pos + count)

    def _give_back(self, inode: Inode, start: int, end: int) -> None:
        """Free the unwritten blocks of [start, end) that lie wholly past the end of the file."""
        size = self.block_size
        lblk, stop = -(-max(start, self.size(inode)) // size), -(-end // size)
        freed = False
        while lblk < stop:
            run = self._files.run_at(inode, lblk)
            until = min(run.end, stop)
            if run.state is RunState.UNWRITTEN:
                freed = True
                done = False
                while not done:
                    with self._operation(conversion_credits(64), Reserve.ALL) as tx:
                        done = self._files.remove(tx, inode, lblk, until)
            lblk = until
        if freed:
            self.invalidate(inode.ino, start - start % size, stop * size - (start - start % size))

    def ioend(
        self, tx: Operation, inode: Inode, pos: int, written: int, flags: int, error: int = 0
    ) -> int:
        """Data of [pos, pos + written) is on the device: convert it and raise the size.  Returns the size on disk.

        The size follows the data whatever the APPEND bit says (IOMAP.md 9.1).  With `error` (an errno, either sign)
        nothing changes.  Raises Corrupt, NoSpace, DeviceError.
        """
        if flags & _IOEND_SHARED:
            raise Corrupt("iomap ioend", f"inode {inode.ino} byte {pos}", "a shared extent", "none on ext4")
        if error or written <= 0 or flags & _IOEND_SWAPOFF:
            return inode.size
        end = pos + written
        if pos < 0 or end > self.max_file_bytes:
            raise FileTooBig(f"inode {inode.ino}: byte {end} is beyond the largest file")
        if flags & _IOEND_UNWRITTEN:
            first = pos // self.block_size
            self._files.convert(tx, inode, first, -(-end // self.block_size) - first)
        if end > inode.size:
            tx.touch(inode)
            inode.size = end
        return inode.size

    # -- sizes of files whose owner is the asker (IOMAP.md 9.1) ---------------------------------------------

    def size(self, inode: Inode) -> int:
        """The size in core: what END reported, if that is more than what is on disk."""
        return max(inode.size, self._incore.get(inode.ino, 0))

    def commit_size(self, tx: Operation, inode: Inode) -> int:
        """FLUSH, FSYNC, RELEASE: the data is down, so the size on disk becomes the one in core."""
        size = self.size(inode)
        self._incore.pop(inode.ino, None)
        if size > inode.size:
            tx.touch(inode)
            inode.size = size
        return size

    def size_set(self, ino: int) -> None:
        """The size was set explicitly (truncate): forget what END reported."""
        self._incore.pop(ino, None)

    # -- changes from this side -----------------------------------------------------------------------------

    def subscribe(self, listener: Invalidated) -> None:
        """`listener` hears about all mappings that change without having been asked for."""
        self._listeners.append(listener)

    def invalidate(self, ino: int, pos: int = 0, length: int = INVAL_TO_EOF) -> None:
        """Blocks of [pos, pos + length) were freed, moved or zeroed: to be called after any such change.

        Truncate, punch, collapse, insert, zero range, and inodes that are freed.
        """
        for listener in self._listeners:
            listener(ino, pos, length)


def _from(run: Run, lblk: int) -> Run:
    """The part of a run from block `lblk` on."""
    skip = lblk - run.lblk
    pblk = run.pblk + skip if run.state is not RunState.HOLE else 0
    return Run(lblk, run.count - skip, pblk, run.state)
