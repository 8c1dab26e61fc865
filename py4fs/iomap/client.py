"""The in-process client: it plays the kernel's part, and all file data of py4fs goes through it.

The order of things is the kernel's (IOMAP.md 6.2-6.6): look the cache up, on a miss ask the server, who fills the
cache and says to look again; move the data; tell the server (ioend).  A read or write is *planned* and *finished*
under the file system's lock, the device I/O between needs none; plans pin what they name, and the validity cookie
tells at the end whether the mappings still held.  Departures from the kernel:

* after an ioend the mappings are refreshed instead of dropped, and pure overwrites drop nothing, so that warm
  sequential and random I/O makes no upcall;
* a cookie that moved only because mappings were *added* or converted does not void a plan: whatever takes blocks
  away or zeroes them also moves `IomapFile.content`.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from py4fs.device.base import reader_into
from py4fs.errors import Corrupt, FileTooBig, FsError, Invalid, NoSpace, NotSupported
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.iomap import short
from py4fs.iomap.backing import conversion_credits
from py4fs.iomap.mapper import CACHE_BUDGET, Counters, DataVolume, IomapFile, Mapper
from py4fs.iomap.plans import (
    INLINE,
    ZEROS,
    ReadPlan,
    WritePlan,
    WriteRun,
    read_through,
    run_read,
    run_write,
    write_through,
)
from py4fs.iomap.records import (
    INVAL_TO_EOF,
    IoDir,
    IoendFlags,
    Mapping,
    MapType,
    OpFlags,
)
from py4fs.iomap.report import report
from py4fs.iomap.server import Ext4Iomap

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

PLAN_RUNS: Final = 64
"""Mappings that one write plan covers at most, which bounds its ioend."""
PLAN_BYTES: Final = 16 << 20
"""Bytes that one write plan covers at most."""
STALE_BYTES: Final = 64 << 20
"""Written blocks that an image may have past the end of a file before a write there calls it damaged."""
_ZERO_PIECE: Final = 1 << 20

# plain numbers: the enums' own operators cost a call each
_READ: Final = int(IoDir.READ)
_OP_WRITE: Final = int(OpFlags.WRITE)
_OP_ZERO: Final = int(OpFlags.ZERO)
_OP_REPORT: Final = int(OpFlags.REPORT)
_MAPPED: Final = int(MapType.MAPPED)
_UNWRITTEN: Final = int(MapType.UNWRITTEN)
_HOLE: Final = int(MapType.HOLE)
_INLINE: Final = int(MapType.INLINE)
_IOEND_DIRECT: Final = int(IoendFlags.DIRECT)
_IOEND_UNWRITTEN: Final = int(IoendFlags.DIRECT | IoendFlags.UNWRITTEN)
_IOEND_APPEND: Final = int(IoendFlags.APPEND)


class IomapClient(Mapper):
    """Reads and writes file data of one volume.  Not safe to enter from several threads, `run_*` excepted."""

    def __init__(
        self,
        volume: DataVolume,
        server: Ext4Iomap,
        *,
        cache_maxbytes: int | None = None,
        budget: int = CACHE_BUDGET,
    ) -> None:
        """`cache_maxbytes` limits each file's cache as the kernel would, `budget` all of them together (bytes)."""
        super().__init__(server, {server.dev: volume.device.size}, cache_maxbytes, budget)
        self._volume = volume
        self._device = volume.device
        self._read_into = reader_into(volume.device)
        self._pins = volume.pins

    # -- reading --------------------------------------------------------------------------------------------

    def plan_read(self, file: IomapFile, pos: int, count: int, size: int) -> ReadPlan:
        """Plan to read up to `count` bytes at `pos` of a file of `size` bytes.  Raises Corrupt, DeviceError.

        Every plan must be finished, with `finish_read` or `cancel`.
        """
        if pos < 0 or count < 0:
            raise Invalid(f"inode {file.inode.ino}: read of {count} bytes at {pos}")
        end = min(pos + count, size)
        if end <= pos:
            return ReadPlan(file, pos, 0, [], self._pins.acquire())
        found = file.cache.lookup(_READ, pos, count).mapping
        if found is not None and found.type == _MAPPED and end <= found.offset + found.length:
            file.counters.hits += 1
            runs = [(found.addr + pos - found.offset, end - pos)]
        else:
            runs = self._read_runs(file, pos, end)
        plan = ReadPlan(file, pos, end - pos, runs, self._pins.acquire())
        if runs[0][0] == INLINE:
            plan.inline = self._server.inline_data(file.inode, pos, runs[0][1])
        return plan

    def read_short(self, file: IomapFile, pos: int, view: memoryview, size: int) -> int:
        """Read at once what is known to lie together (`short.read`): bytes of `view` filled; -1: plan it."""
        return short.read(self._read_into, file, pos, view, size)

    def _read_runs(self, file: IomapFile, pos: int, end: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        while pos < end:
            mapping = self.mapping(file, pos, end - pos, 0)
            stop = min(mapping.offset + mapping.length, end)
            if mapping.type == _MAPPED:
                at = mapping.addr + pos - mapping.offset
                joins = bool(runs) and runs[-1][0] >= 0 and runs[-1][0] + runs[-1][1] == at
            elif mapping.type in (_HOLE, _UNWRITTEN):
                at = ZEROS
                joins = bool(runs) and runs[-1][0] == ZEROS
            elif mapping.type == _INLINE:
                at, joins = INLINE, False
            else:
                raise NotSupported(f"inode {file.inode.ino}: mapping of type {mapping.type}")
            if joins:
                runs[-1] = (runs[-1][0], runs[-1][1] + stop - pos)
            else:
                runs.append((at, stop - pos))
            pos = stop
        return runs

    def finish_read(self, plan: ReadPlan) -> bool:
        """End a read plan; False: the file changed under it, what was read is worth nothing, plan again."""
        self._pins.release(plan.pin)
        return self.is_true(plan)

    def is_true(self, plan: ReadPlan) -> bool:
        """Whether the file is where it was when the read was planned."""
        file = plan.file
        return plan.cookie == file.cache.seq or plan.content == file.content

    def cancel(self, plan: ReadPlan | WritePlan) -> None:
        """End a plan whose I/O was not done or failed."""
        if isinstance(plan, WritePlan):
            self._leave(plan)
        else:
            self._pins.release(plan.pin)

    def read(self, file: IomapFile, pos: int, count: int) -> bytes:
        """Plan, read and finish in one go: up to `count` bytes at `pos`.  Raises Corrupt, DeviceError."""
        return read_through(
            self._device, lambda: self.plan_read(file, pos, count, file.inode.size), self.finish_read, self.cancel
        )

    # -- writing --------------------------------------------------------------------------------------------

    def plan_write(self, file: IomapFile, pos: int, length: int, reserve: Reserve = Reserve.ROOT) -> WritePlan:
        """Plan to write `length` bytes at `pos`; blocks are allocated as unwritten where there are none.

        The plan's `count` says how much it covers, at least one byte.  Every plan must be finished, with
        `finish_write`, `abort_write` or `cancel`.  Raises FileTooBig, NoSpace, Corrupt, DeviceError.
        """
        if pos < 0 or length <= 0:
            raise Invalid(f"inode {file.inode.ino}: write of {length} bytes at {pos}")
        if pos >= self._max:
            raise FileTooBig(f"inode {file.inode.ino}: byte {pos} is beyond the largest file")
        plan = WritePlan(file, pos)
        if pos > file.inode.size:
            self._plan_gap(plan, file.inode.size)
        self._plan_data(plan, min(pos + length, self._max, pos + PLAN_BYTES), reserve)
        block = self._block_size
        plan.lo -= plan.lo % block
        plan.hi = -(-plan.end // block) * block
        if file.writes and any(plan.clashes(other) for other in file.writes):
            plan.blocked = True
            plan.runs.clear()
        plan.cookie = file.cache.seq
        plan.content = file.content
        plan.pin = self._pins.acquire()
        file.writes.append(plan)
        return plan

    def _plan_gap(self, plan: WritePlan, size: int) -> None:
        """A write past the end: bytes between the old end and the data that are on the device become zeros.

        That is the rest of the block of the old end, and the start of the data's block if that is written already.
        """
        budget = STALE_BYTES
        pos = size
        while pos < plan.pos:
            mapping = self.mapping(plan.file, pos, plan.pos - pos, _OP_ZERO)
            stop = min(mapping.end, plan.pos)
            if mapping.type == _MAPPED:
                plan.lo = min(plan.lo, pos)
                plan.add(WriteRun(mapping.addr + pos - mapping.offset, stop - pos, 0, 0, 0))
                budget -= stop - pos
                if budget < 0:
                    raise _stale(plan.file, stop)
            pos = stop

    def _plan_data(self, plan: WritePlan, end: int, reserve: Reserve) -> None:
        block = self._block_size
        pos = start = plan.pos
        limit = len(plan.runs) + PLAN_RUNS
        while pos < end and len(plan.runs) < limit and len(plan.unwritten) < PLAN_RUNS:
            try:
                mapping = self.mapping(plan.file, pos, end - pos, _OP_WRITE, reserve)
            except NoSpace:
                if pos == start:
                    raise
                # what there was room for is a short write; the next one meets the error
                break
            stop = min(mapping.offset + mapping.length, end)
            at = mapping.addr + pos - mapping.offset
            if mapping.type == _MAPPED:
                plan.add(WriteRun(at, 0, pos - start, stop - start, 0))
            elif mapping.type == _UNWRITTEN:
                # the rest of the first and last block becomes zeros: it will count as written too
                head, tail = pos % block, -stop % block
                plan.add(WriteRun(at - head, head, pos - start, stop - start, tail))
                plan.add_unwritten(pos, stop - pos, at)
            elif mapping.type == _INLINE:
                plan.inline = True
                stop = end  # the server has made room for all of it
            else:
                raise Corrupt("iomap reply", f"inode {plan.file.inode.ino} byte {pos}", mapping, "blocks")
            pos = stop
        plan.count = pos - start

    def _leave(self, plan: WritePlan) -> None:
        self._pins.release(plan.pin)
        plan.file.writes.remove(plan)

    def finish_credits(self, plan: WritePlan) -> int:
        """Credits that the operation given to `finish_write` needs for it (the inode included)."""
        return conversion_credits(len(plan.unwritten))

    def needs_operation(self, plan: WritePlan) -> bool:
        """Whether finishing changes metadata (other than times)."""
        return bool(plan.unwritten) or plan.inline or plan.end > plan.file.inode.size

    def finish_write(self, plan: WritePlan, tx: Operation | None) -> bool:
        """The data is on the device: convert what was unwritten and raise the size, in the operation `tx`.

        False: the file changed under the plan; plan again and write again.  `tx` may be None where
        `needs_operation` is false.  Raises Corrupt, NoSpace, DeviceError (the plan is over all the same).
        """
        self._leave(plan)
        file = plan.file
        if plan.blocked or (plan.cookie != file.cache.seq and plan.content != file.content):
            return False
        inode = file.inode
        if tx is None:
            assert not self.needs_operation(plan), "an operation is needed"
            return True
        if plan.inline:
            return self._server.write_inline(tx, inode, plan.pos, plan.data)
        for pos, length in plan.unwritten:
            self._ioend(tx, file, pos, length, _IOEND_UNWRITTEN)
        if plan.end > inode.size:
            self._ioend(tx, file, plan.pos, plan.count, _IOEND_DIRECT)
        if plan.unwritten:
            # if the operation is undone, what is pushed now is wrong
            tx.on_abort(lambda: self._drop(file, plan.pos, plan.count))
            first, last = plan.unwritten[0], plan.unwritten[-1]
            self._server.refresh(inode, first[0], last[0] + last[1] - first[0], file.push)
        return True

    def _ioend(self, tx: Operation, file: IomapFile, pos: int, length: int, flags: int) -> None:
        """Tell the server, as the kernel does once for each run that lies together on the device (6.5)."""
        if pos + length > file.inode.size:
            flags |= _IOEND_APPEND
        file.counters.ioends += 1
        self._server.ioend(tx, file.inode, pos, length, flags)

    def abort_write(self, plan: WritePlan) -> None:
        """The device I/O failed: nothing counts, blocks allocated past the end of the file go back.

        To be called outside of operations.  That they cannot go back now is no error of the write: they do when the
        file is closed.  Of a blocked plan nothing goes back: the blocks are those of the plan in its way.
        """
        self._leave(plan)
        if plan.blocked:
            return
        try:
            self._server.end(plan.file.inode, plan.pos, plan.count, 0, _OP_WRITE)
        except FsError as exc:
            log.error("inode %d: blocks past its end could not be freed: %s", plan.file.inode.ino, exc)

    def write_short(
        self, file: IomapFile, pos: int, data: memoryview, reserve: Reserve, *, stamp: bool
    ) -> bool:
        """A short write over what is there, or of new blocks at the end of the file, at once; False: plan it.

        With `stamp` the file's mtime and ctime become the operation's time; an overwrite has none, and is planned then.
        Raises ReadOnly, CommitPending, Corrupt, DeviceError.
        """
        if pos == file.inode.size:
            done = short.append(self._volume, self._server, file, pos, data, reserve, stamp=stamp)
            if done:
                self._account(file)
            return done
        if stamp or not short.overwrite(self._device, file, pos, data):
            return False
        self._volume.note_data_written()
        return True

    def write(
        self,
        file: IomapFile,
        pos: int,
        data: "Buffer",
        *,
        reserve: Reserve = Reserve.ROOT,
        stamp: bool = True,
    ) -> int:
        """Plan, write and finish in one go; returns the bytes written, fewer than given only for want of space.

        With `stamp` the file's mtime and ctime become the operation's time.
        Raises FileTooBig, NoSpace (nothing was written), ReadOnly, Corrupt, DeviceError, and Busy when a plan that
        others have in flight is in the way.
        """
        return write_through(
            self._device,
            pos,
            data,
            lambda at, length: self.plan_write(file, at, length, reserve),
            lambda plan: self.end_write(plan, stamp=stamp),
            self.abort_write,
        )

    def end_write(self, plan: WritePlan, *, stamp: bool) -> int:
        """:meth:`finish_write` in an operation of its own: bytes that count as written, 0 to plan and write again.

        With `stamp` the file's mtime and ctime become the operation's time.  The plan is over whatever is raised:
        ReadOnly, CommitPending, NoSpace, Corrupt, DeviceError.
        """
        self._volume.note_data_written()
        if not stamp and not self.needs_operation(plan):
            return plan.count if self.finish_write(plan, None) else 0
        try:
            operation = self._volume.operation(self.finish_credits(plan), Reserve.ALL)
        except BaseException:
            self.cancel(plan)
            raise
        with operation as tx:
            if not self.finish_write(plan, tx):
                return 0
            if stamp:
                inode = plan.file.inode
                tx.touch(inode)
                inode.mtime = inode.ctime = tx.now
        return plan.count

    # -- changes that are not writes ------------------------------------------------------------------------

    def zero_range(self, file: IomapFile, pos: int, count: int) -> int:
        """Make [pos, pos + count) read as zeros where it is on the device; returns the bytes zeroed there.

        Holes and unwritten blocks are left alone.  Raises Corrupt, DeviceError.
        """
        end = min(pos + count, self._max)
        past_end = pos >= file.inode.size
        zeroed = 0
        while pos < end:
            mapping = self.mapping(file, pos, end - pos, _OP_ZERO)
            stop = min(mapping.end, end)
            if mapping.type == _INLINE:
                zeroed += self._server.zero_inline(file.inode, pos, stop - pos)
            elif mapping.type == _MAPPED:
                zeroed += stop - pos
                if past_end and zeroed > STALE_BYTES:
                    raise _stale(file, stop)
                self._zero_device(mapping.addr + pos - mapping.offset, stop - pos)
            pos = stop
        if zeroed:
            # a write in flight may have put its bytes there before: it has to do so again
            file.content += 1
            file.cache.touch()
            self._volume.note_data_written()
        return zeroed

    def _zero_device(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, _ZERO_PIECE)))
        while length:
            piece = min(length, _ZERO_PIECE)
            self._device.write(offset, zeros[:piece])
            offset, length = offset + piece, length - piece

    def truncated(self, file: IomapFile, size: int) -> None:
        """The file now ends at `size`: what was known behind it is gone, in every cache."""
        self._server.size_set(file.inode.ino)
        self._server.invalidate(file.inode.ino, size - size % self._block_size, INVAL_TO_EOF)

    def invalidate(self, file: IomapFile, pos: int, length: int) -> None:
        """Blocks of [pos, pos + length) were freed, moved or zeroed on disk: forget them, in every cache."""
        self._server.invalidate(file.inode.ino, pos, length)

    # -- reporting (IOMAP.md 6.8) ---------------------------------------------------------------------------

    def report(self, file: IomapFile, pos: int = 0, end: int | None = None) -> Iterator[Mapping]:
        """The mappings of [pos, end) in file order, holes included (`report.report`)."""
        return report(self._server, file.inode, pos, end)

    def seek_data(self, file: IomapFile, pos: int, size: int) -> int | None:
        """The first byte from `pos` on that is data (SEEK_DATA), or None.  Unwritten blocks are a hole."""
        while pos < size:
            mapping = self.mapping(file, pos, size - pos, _OP_REPORT)
            if mapping.type in (_MAPPED, _INLINE):
                return pos
            pos = mapping.end
        return None

    def seek_hole(self, file: IomapFile, pos: int, size: int) -> int:
        """The first byte from `pos` on that is in a hole (SEEK_HOLE); the end of the file counts as one."""
        while pos < size:
            mapping = self.mapping(file, pos, size - pos, _OP_REPORT)
            if mapping.type not in (_MAPPED, _INLINE):
                return pos
            pos = mapping.end
        return size


def _stale(file: IomapFile, end: int) -> Corrupt:
    size = file.inode.size
    return Corrupt("file size", f"inode {file.inode.ino}", f"{size}, written blocks up to byte {end}")


__all__ = [
    "CACHE_BUDGET",
    "Counters",
    "DataVolume",
    "IomapClient",
    "IomapFile",
    "ReadPlan",
    "WritePlan",
    "run_read",
    "run_write",
]
