"""ext4's side of iomap: where a range of a file is, and what becomes of it after a write.

The server turns the mapper's runs into mapping records, allocates for writes as unwritten and converts when the data
is down (`ioend`), so that stale blocks can never be read.  It answers ahead: a BEGIN pushes the mappings of a window
into the asker's cache and then says RETRY_CACHE (IOMAP.md section 8: only after a successful push, never for ATOMIC
and SWAPFILE).  ext4 never shares blocks, so the write mapping is always PURE_OVERWRITE and the write fork stays unused.

The askers are the in-process client and a session with an iomap kernel.  The server knows neither: `push` is how it
fills the cache of the one that asks, `subscribe` is how all of them hear about mappings that went away, and
`subscribe_device` about bytes of the device that are no longer metadata.  A file has one asker at a time: what its
own requests changed (allocation, conversion) is told to nobody else.

Blocks that a write got and did not use go back: after a short write (END), a failed one (IOEND with an error), and at
the latest when nobody has the file open any more.  Room for what a growing file will need next is only kept in memory
(`py4fs.ext4.windows`), so nothing is ever left behind the end of a file.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import PurePath
from typing import Final

from py4fs.errors import Corrupt, FileTooBig, Invalid, NoSpace, NotSupported
from py4fs.ext4 import inline
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_LINK_MAX
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.iomap import config
from py4fs.iomap.backing import (
    INLINE_CREDITS,
    DeviceChanged,
    Files,
    ServedVolume,
    WritePolicy,
    allocation_credits,
    conversion_credits,
    policy_for,
)
from py4fs.iomap.ranges import Ranges
from py4fs.iomap.records import (
    ALLOCATING,
    HOLE_IS_FINE,
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
"""Put mappings into the read fork of the asker's cache for this inode, in file order, the first one above all.

False: declined, nothing may be assumed.
"""
Invalidated = Callable[[int, int, int], None]
"""Told (inode number, position, length) of mappings that are no longer true; length INVAL_TO_EOF: to the end."""
StartOperation = Callable[[int, Reserve], AbstractContextManager[Operation]]
"""Start an operation with so many credits and such a claim on reserved blocks (`Volume.operation`)."""

WINDOW: Final = 512
"""Runs that one miss brings into the cache at most; a leaf of 4 KiB holds 340."""

# plain numbers: the enums' own operators cost a call each
_REPORT: Final = int(OpFlags.REPORT)
_WRITE: Final = int(OpFlags.WRITE)
_ATOMIC: Final = int(OpFlags.ATOMIC)
_SWAPFILE: Final = int(OpFlags.SWAPFILE)
_DAX: Final = int(OpFlags.DAX)
_PAGES: Final = int(OpFlags.FAULT | OpFlags.WRITEBACK)
_RARE: Final = _REPORT | _ATOMIC | _SWAPFILE | _DAX
_IOEND_SHARED: Final = int(IoendFlags.SHARED)
_IOEND_UNWRITTEN: Final = int(IoendFlags.UNWRITTEN)
_IOEND_SWAPOFF: Final = int(IoendFlags.SWAPOFF)

_STEP_RUNS: Final = 64
"""Extents that one operation makes, converts or frees."""
_END: Final = 1 << 62
"""Behind every block."""


class Ext4Iomap:
    """Answers CONFIG, BEGIN, END and IOEND for the files of one volume.  Positions and counts in bytes."""

    def __init__(
        self,
        files: Files,
        operation: StartOperation,
        *,
        groups: int,
        dev: int = 1,
        policy: WritePolicy | None = None,
        window: int = WINDOW,
        open_window: int | None = None,
        identity: config.Identity | None = None,
        device_events: Callable[[DeviceChanged], None] | None = None,
    ) -> None:
        """`groups`: number of block groups (bounds what an allocation touches); `dev`: the device's cookie.

        `window`: runs that a miss brings into the cache at most, `open_window` those that an open does (default: as
        many, 0: none); never more than one leaf of the tree.
        `identity`: what CONFIG says beyond sizes; `device_events`: how to hear about freed metadata.
        """
        self._files = files
        self._operation = operation
        self.groups = groups
        self.dev = dev
        self._policy = policy or WritePolicy()
        self._window = window
        self._open_window = window if open_window is None else open_window
        self._identity = identity or config.Identity()
        self._device_events = device_events
        self._incore: dict[int, int] = {}
        self._fresh: dict[int, Ranges] = {}
        self._listeners: list[Invalidated] = []
        self.block_size = files.block_size
        self.max_file_bytes = files.max_size
        files.inline_changed.append(self.invalidate)

    # -- asking ---------------------------------------------------------------------------------------------

    def config(
        self,
        flags: int = config.ALL_CONFIG,
        maxbytes: int = config.MAX_LFS_FILESIZE,
        cache_maxbytes: int = 0,
    ) -> config.ConfigReply:
        """CONFIG: what the file system is, as far as the asker understands it (`flags`, `maxbytes`: what it offers).

        `cache_maxbytes`: the limit of each file's cache that it shall use; 0: its own.
        """
        return config.answer(self._identity, self.block_size, self.max_file_bytes, flags, maxbytes, cache_maxbytes)

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
        Raises FileTooBig, Invalid, NoSpace, NotSupported, Corrupt, DeviceError.
        """
        if pos < 0 or count <= 0:
            raise Invalid(f"inode {inode.ino}: mapping of {count} bytes at {pos}")
        if pos >= self.max_file_bytes:
            raise FileTooBig(f"inode {inode.ino}: byte {pos} is beyond the largest file")
        lblk = pos // self.block_size
        allocating = opflags & ALLOCATING and not opflags & HOLE_IS_FINE
        if inode.is_inline or (inode.may_inline and allocating):
            answer = self._inline(inode, pos, count, opflags, push, reserve)
            if answer is not None:
                return answer
        if opflags & _RARE:
            if opflags & _REPORT:
                return self._report(inode, lblk, opflags)
            self._check_rare(inode, pos, count, opflags)
        if allocating and self._files.run_at(inode, lblk).state is RunState.HOLE:
            runs = self._files.window(inode, lblk, _STEP_RUNS)
            runs = self._allocate(inode, runs, lblk, pos + count, reserve)
        else:
            runs = self._files.window(inode, lblk, self._window)
        mappings = [self._mapping(run) for run in runs]
        first = mappings[0]
        write = placeholder(first, MapType.PURE_OVERWRITE)
        if push is not None and not opflags & UNCACHED_OPS and push(mappings):
            return placeholder(first, MapType.RETRY_CACHE), write
        if opflags & _ATOMIC:
            first = first._replace(flags=int(MapFlags.ATOMIC_BIO))
        return first, write

    # -- inline data (IOMAP.md 6.7) -------------------------------------------------------------------------

    def _inline(
        self, inode: Inode, pos: int, count: int, opflags: int, push: Push | None, reserve: Reserve
    ) -> tuple[Mapping, Mapping] | None:
        """BEGIN for contents in the inode: an INLINE block, then a hole.  None: they are in blocks now.

        What a write does not find room for in the inode leaves it, and so do files that are written through a memory
        map, whose pages could not be written back (6.5).  Writes are answered without the cache, for what is in the
        inode may have to leave it at any of them.
        """
        allocating = opflags & ALLOCATING and not opflags & HOLE_IS_FINE
        if opflags & (_ATOMIC | _SWAPFILE | _DAX):
            raise NotSupported(f"inode {inode.ino}: operation {opflags:#x} on inline data")
        if allocating:
            with self._operation(INLINE_CREDITS, reserve) as tx:
                if opflags & _PAGES:
                    self._files.leave_inline(tx, inode)
                if not self._files.prepare_inline(tx, inode, pos + count):
                    return None
        mappings = self._inline_mappings()
        mapping = mappings[pos >= self.block_size]
        write = placeholder(mapping, MapType.PURE_OVERWRITE)
        if push is not None and not allocating and not opflags & _REPORT and push(mappings):
            mapping = placeholder(mapping, MapType.RETRY_CACHE)
        return mapping, write

    def _inline_mappings(self) -> list[Mapping]:
        size = self.block_size
        return [
            Mapping(0, size, NULL_ADDR, MapType.INLINE),
            Mapping(size, self.max_file_bytes - size, NULL_ADDR, MapType.HOLE),
        ]

    def inline_data(self, inode: Inode, pos: int, count: int) -> bytes:
        """``count`` bytes of an INLINE mapping, zeros where the inode stores none.  Raises Corrupt."""
        return inline.read(inode)[pos : pos + count].ljust(count, b"\0")

    def write_inline(self, tx: Operation, inode: Inode, pos: int, data: bytes) -> bool:
        """Put bytes into an INLINE mapping and raise the size; False: there is no room any more, begin again.

        Raises Corrupt.
        """
        if not inode.is_inline or not inline.prepare(tx, inode, pos + len(data)):
            return False
        inline.write(tx, inode, pos, data)
        inode.size = max(inode.size, pos + len(data))
        return True

    def zero_inline(self, inode: Inode, pos: int, count: int) -> int:
        """Make bytes of an INLINE mapping read as zeros; returns how many had to be changed for that.

        To be called outside of operations.  Raises Corrupt.
        """
        data = inline.read(inode)[pos : pos + count]
        if not any(data):
            return 0
        with self._operation(1, Reserve.ALL) as tx:
            inline.write(tx, inode, pos, bytes(len(data)))
        return len(data)

    # -- reporting ------------------------------------------------------------------------------------------

    def _report(self, inode: Inode, lblk: int, opflags: int) -> tuple[Mapping, Mapping]:
        """For FIEMAP, SEEK_DATA/HOLE and swapon.  Never from the cache nor into it.

        Trimmed to start at the block asked for: a reporter would show the part in front of it a second time (9.6).
        """
        run = self._files.run_at(inode, lblk)
        if opflags & _SWAPFILE and run.state is RunState.HOLE:
            # as the kernel would find; unwritten blocks are fine: swap does not read what it has not written
            raise Invalid(f"inode {inode.ino}: a swap file has no holes, byte {lblk * self.block_size} is in one")
        mapping = self._mapping(_from(run, lblk))
        return mapping, placeholder(mapping, MapType.PURE_OVERWRITE)

    def _check_rare(self, inode: Inode, pos: int, count: int, opflags: int) -> None:
        if opflags & _ATOMIC and (not opflags & _WRITE or count != self.block_size or pos % self.block_size):
            raise Invalid(f"inode {inode.ino}: atomic write of {count} bytes at {pos}: one whole block only")
        if opflags & (_DAX | _SWAPFILE):
            raise NotSupported(f"inode {inode.ino}: operation {opflags:#x}")

    def _allocate(self, inode: Inode, runs: list[Run], lblk: int, end: int, reserve: Reserve) -> list[Run]:
        """Blocks for the holes among `runs` from `lblk` up to byte `end`, or for as much of it as there is room."""
        size = self.block_size
        stop = -(-min(end, self.max_file_bytes) // size)
        limit = max(self._files.max_blocks(inode), lblk + 1)
        count = min(stop, limit, runs[-1].end, lblk + self._policy.max_blocks) - lblk
        behind = -(-self.size(inode) // size)
        while True:
            try:
                with self._operation(allocation_credits(count, self.groups), reserve) as tx:
                    got = self._policy.allocate(self._files, tx, inode, lblk, count)
                    if lblk + count > behind:
                        self._files.hold_tail(tx, inode)
                break
            except NoSpace:
                # there may be room for a part: then the write is short, as the kernel's would be
                if count == 1:
                    raise
                count //= 2
        if lblk + count > behind:
            fresh = self._fresh.setdefault(inode.ino, Ranges())
            for run in runs:
                if run.state is RunState.HOLE:
                    fresh.add(max(run.lblk, lblk, behind), min(run.end, lblk + count))
        return got

    @property
    def most_blocks(self) -> int:
        """Blocks that one operation allocates at most."""
        return self._policy.max_blocks

    def extend(self, tx: Operation, inode: Inode, lblk: int, count: int) -> list[tuple[int, int]]:
        """Blocks with contents, which the caller writes in this operation, for blocks where the file has none.

        Returns their runs (first block, count); none when there are blocks in [lblk, lblk + count), or may be.
        Raises NoSpace, Corrupt, DeviceError.
        """
        run = self._files.run_at(inode, lblk)
        if run.state is not RunState.HOLE or run.end < lblk + count:
            return []
        return self._files.fill(tx, inode, lblk, count)

    def push_written(self, push: Push, lblk: int, runs: list[tuple[int, int]]) -> bool:
        """Push the mappings of runs (first block, count) with contents, the first of them at block `lblk`."""
        size, mappings = self.block_size, []
        for first, count in runs:
            mappings.append(Mapping(lblk * size, count * size, first * size, MapType.MAPPED, 0, self.dev))
            lblk += count
        return push(mappings)

    def _mapping(self, run: Run) -> Mapping:
        size = self.block_size
        if run.state is RunState.HOLE:
            return Mapping(run.lblk * size, run.count * size, NULL_ADDR, MapType.HOLE)
        kind = MapType.MAPPED if run.state is RunState.MAPPED else MapType.UNWRITTEN
        return Mapping(run.lblk * size, run.count * size, run.pblk * size, kind, 0, self.dev)

    def open_push(self, inode: Inode, push: Push) -> bool:
        """Bring the first mappings of a file to an asker that opens it; False when it did not take them.

        Raises Corrupt, DeviceError.
        """
        if not self._open_window:
            return False
        if inode.is_inline:
            return push(self._inline_mappings())
        runs = self._files.window(inode, 0, self._open_window)
        return push([self._mapping(run) for run in runs])

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

    def end(self, inode: Inode, pos: int, count: int, written: int, opflags: int, map_flags: int = 0) -> None:
        """A write of `count` bytes at `pos` got `written` of them done.

        Notes the size that the file has in core (IOMAP.md 9.1), and gives back blocks past the end of the file that
        were allocated for what was not written.  To be called outside of operations.  Raises Corrupt, DeviceError.
        """
        written = max(written, 0)
        if map_flags & MapFlags.SIZE_CHANGED and written:
            self._incore[inode.ino] = max(self.size(inode), pos + written)
        if written:
            self._used(inode.ino, pos, written)
        if written < count and opflags & ALLOCATING:
            self._give_back(inode, pos + written, pos + count)

    def _used(self, ino: int, pos: int, count: int) -> None:
        """Blocks that have data, or that somebody else answers for: no longer to be given back."""
        fresh = self._fresh.get(ino)
        if fresh is not None:
            end = _END if count == INVAL_TO_EOF else -(-(pos + count) // self.block_size)
            fresh.discard(pos // self.block_size, end)
            if not len(fresh):
                del self._fresh[ino]

    def _give_back(self, inode: Inode, start: int, end: int) -> None:
        """Free the blocks of [start, end) that writes got, did not use, and that lie past the end of the file."""
        fresh = self._fresh.get(inode.ino)
        if fresh is None:
            return
        size = self.block_size
        parts = fresh.within(max(start // size, -(-self.size(inode) // size)), -(-end // size))
        for first, stop in parts:
            fresh.discard(first, stop)
            done = False
            while not done:
                with self._operation(conversion_credits(_STEP_RUNS), Reserve.ALL) as tx:
                    done = self._files.remove(tx, inode, first, stop)
                    if done:
                        self._files.release_tail(tx, inode)
        if not len(fresh):
            self._fresh.pop(inode.ino, None)
        for first, stop in parts:
            self.invalidate(inode.ino, first * size, (stop - first) * size)

    def _check_ioend(self, inode: Inode, pos: int, written: int, flags: int) -> None:
        if flags & _IOEND_SHARED:
            raise Corrupt("iomap ioend", f"inode {inode.ino} byte {pos}", "a shared extent", "none on ext4")
        if pos < 0 or pos + written > self.max_file_bytes:
            raise FileTooBig(f"inode {inode.ino}: byte {pos + written} is beyond the largest file")

    def ioend(self, tx: Operation, inode: Inode, pos: int, written: int, flags: int, error: int = 0) -> int:
        """Data of [pos, pos + written) is on the device: convert it and raise the size.  Returns the size on disk.

        The size follows the data whatever the APPEND bit says (IOMAP.md 9.1).  With `error` (an errno, either sign)
        nothing changes.  The operation has to have credits for the extents there (`conversion_credits`).
        Raises Corrupt, NoSpace, DeviceError.
        """
        self._check_ioend(inode, pos, max(written, 0), flags)
        if error or written <= 0 or flags & _IOEND_SWAPOFF:
            return inode.size
        end = pos + written
        if flags & _IOEND_UNWRITTEN:
            first = pos // self.block_size
            self._files.convert(tx, inode, first, -(-end // self.block_size) - first)
        if end > inode.size:
            tx.touch(inode)
            inode.size = end
            self._files.release_tail(tx, inode)
        self._used(inode.ino, pos, written)
        return inode.size

    def complete(self, inode: Inode, pos: int, written: int, flags: int, error: int = 0) -> int:
        """IOEND as it comes from a kernel, of any length: in operations of its own.  Returns the size on disk.

        After an error everything that the file got past its end from `pos` on and did not use goes back: direct
        writes that fail send no END, and `written` may be anything (IOMAP.md 9.5).
        Raises Corrupt, FileTooBig, NoSpace, DeviceError.
        """
        self._check_ioend(inode, pos, max(written, 0), flags)
        if error:
            self._give_back(inode, pos, self.max_file_bytes)
            return inode.size
        if flags & _IOEND_SWAPOFF or written <= 0:
            return inode.size
        end = pos + written
        while pos < end:
            stop = end
            runs = 1
            if flags & _IOEND_UNWRITTEN:
                window = self._files.window(inode, pos // self.block_size, _STEP_RUNS)
                stop, runs = min(end, window[-1].end * self.block_size), len(window)
            with self._operation(conversion_credits(runs), Reserve.ALL) as tx:
                self.ioend(tx, inode, pos, stop - pos, flags)
            pos = stop
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
            self._files.release_tail(tx, inode)
        return size

    def size_set(self, ino: int) -> None:
        """The size was set explicitly (SETATTR, either way): forget what END reported."""
        self._incore.pop(ino, None)

    def forget(self, ino: int) -> None:
        """The inode was freed, or nobody knows it any more."""
        self._incore.pop(ino, None)
        self._fresh.pop(ino, None)

    def closed(self, inode: Inode) -> None:
        """Nobody has the file open any more: what writes got past its end and did not use goes back.

        To be called outside of operations.  Raises Corrupt, ReadOnly, DeviceError.
        """
        self._files.settle(inode.ino)
        self._give_back(inode, 0, self.max_file_bytes)

    # -- changes from this side -----------------------------------------------------------------------------

    def subscribe(self, listener: Invalidated) -> None:
        """`listener` hears about all mappings that change without having been asked for."""
        self._listeners.append(listener)

    def subscribe_device(self, listener: DeviceChanged) -> None:
        """`listener` hears about freed metadata before file data can come to lie there (DEV_INVAL, 9.2)."""
        assert self._device_events is not None, "the server was made without a source of device events"
        self._device_events(listener)

    def invalidate(self, ino: int, pos: int = 0, length: int = INVAL_TO_EOF) -> None:
        """Blocks of [pos, pos + length) were freed, moved or zeroed: to be called after any such change.

        Truncate, punch, collapse, insert, zero range, and inodes that are freed.
        """
        self._used(ino, pos, length)
        for listener in self._listeners:
            listener(ino, pos, length)


def _from(run: Run, lblk: int) -> Run:
    """The part of a run from block `lblk` on."""
    skip = lblk - run.lblk
    pblk = run.pblk + skip if run.state is not RunState.HOLE else 0
    return Run(lblk, run.count - skip, pblk, run.state)


def server_of(volume: ServedVolume) -> Ext4Iomap:
    """The server of an open volume."""
    gran, first, last = volume.time_range()
    identity = config.Identity(
        PurePath(volume.device.name).name, volume.superblock.record.s_uuid, EXT4_LINK_MAX, gran, first, last
    )
    return Ext4Iomap(
        volume.files,
        volume.operation,
        groups=volume.geometry.groups,
        policy=policy_for(volume.max_credits, volume.geometry.groups),
        identity=identity,
        device_events=volume.on_device_change,
    )
