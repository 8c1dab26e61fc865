"""Plans: what unlocked device I/O has to do for one read or write of a file.

A plan is made and finished under the file system's lock; between the two it only names device bytes, so the I/O
itself (`run_read`, `run_write`) needs no lock and knows nothing of files.  Offsets and lengths in bytes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from py4fs.device.base import Device, reader_into
from py4fs.errors import Busy, FileTooBig, NoSpace

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from py4fs.iomap.mapper import IomapFile

ZEROS: Final = -1
"""In place of a device offset: the run reads as zeros and is not on the device."""
INLINE: Final = -2
"""In place of a device offset: the run's bytes were in the inode, and are in the plan."""
_BLANK: Final = memoryview(bytes(65536))
"""As many zeros as the largest block can need on either side of the data."""


class ReadPlan:
    """Where the bytes of a read are: `runs` of (device offset, ZEROS or INLINE, length), `count` bytes in all.

    `inline`: the bytes of the INLINE run, if there is one.
    """

    __slots__ = ("content", "cookie", "count", "file", "inline", "pin", "pos", "runs")

    def __init__(self, file: "IomapFile", pos: int, count: int, runs: list[tuple[int, int]], pin: int) -> None:
        self.file = file
        self.pos = pos
        self.count = count
        self.runs = runs
        self.inline = b""
        self.pin = pin
        self.cookie = file.cache.seq
        self.content = file.content


class WriteRun:
    """One device write: zeros, the data of [start, stop) of the request, zeros."""

    __slots__ = ("head", "offset", "start", "stop", "tail")

    def __init__(self, offset: int, head: int, start: int, stop: int, tail: int) -> None:
        self.offset = offset
        self.head = head
        self.start = start
        self.stop = stop
        self.tail = tail

    @property
    def end(self) -> int:
        """Device offset behind the run."""
        return self.offset + self.head + self.stop - self.start + self.tail


class WritePlan:
    """What a write of `count` bytes at `pos` does; `count` may be less than was asked for.

    `unwritten`: file ranges (pos, length) that must be converted when the data is down, each of them in one piece on
    the device.  `blocked`: another write
    in flight touches the same block in a way that cannot be told apart; nothing is to be done but to plan again.
    `inline`: the data goes into the inode; no runs then, the I/O only keeps the `data` for the plan's end.
    `lo`, `hi`: the blocks touched, in bytes of the file; `zeroes`: whether bytes around the data are zeroed.
    """

    __slots__ = (
        "_behind", "blocked", "content", "cookie", "count", "data", "file", "hi", "inline", "lo", "pin", "pos", "runs",
        "unwritten", "zeroes",
    )  # fmt: skip

    def __init__(self, file: "IomapFile", pos: int) -> None:
        self.file = file
        self.pos = pos
        self.count = 0
        self.runs: list[WriteRun] = []
        self.unwritten: list[tuple[int, int]] = []
        self._behind = -1
        self.blocked = False
        self.inline = False
        self.data = b""
        self.zeroes = False
        self.lo = self.hi = pos
        self.pin = 0
        self.cookie = 0
        self.content = 0

    @property
    def end(self) -> int:
        """File offset behind the last byte written."""
        return self.pos + self.count

    def add(self, run: WriteRun) -> None:
        """Append a run, joined with the one before where the device bytes touch."""
        if run.head or run.tail:
            self.zeroes = True
        if self.runs:
            last = self.runs[-1]
            if last.end == run.offset and last.stop == run.start and not last.tail and not run.head:
                last.stop, last.tail = run.stop, run.tail
                return
        self.runs.append(run)

    def add_unwritten(self, pos: int, length: int, at: int) -> None:
        """Note bytes at device offset `at` to be converted, joined with those before where they continue them."""
        if self.unwritten and at == self._behind:
            first, before = self.unwritten[-1]
            if first + before == pos:
                self.unwritten[-1] = (first, before + length)
                self._behind += length
                return
        self.unwritten.append((pos, length))
        self._behind = at + length

    def clashes(self, other: "WritePlan") -> bool:
        """Whether both touch a block and one of them zeroes bytes in it that the other may be writing."""
        if other.blocked or not (self.zeroes or other.zeroes):
            return False
        return self.lo < other.hi and other.lo < self.hi


def run_read(plan: ReadPlan, device: Device) -> bytes:
    """Do a read plan's I/O: one device read per run, none for zeros.  Raises DeviceError.  Takes no lock."""
    runs = plan.runs
    if len(runs) == 1:
        offset, length = runs[0]
        if offset >= 0:
            return device.read(offset, length)
    parts = [
        device.read(offset, length) if offset >= 0 else plan.inline if offset == INLINE else bytes(length)
        for offset, length in runs
    ]
    return b"".join(parts)


def run_read_into(plan: ReadPlan, device: Device, view: memoryview) -> None:
    """As `run_read`, into the `plan.count` bytes of `view`."""
    at, read_into = 0, reader_into(device)
    for offset, length in plan.runs:
        part = view[at : at + length]
        if offset >= 0:
            read_into(offset, part)
        else:
            part[:] = plan.inline if offset == INLINE else bytes(length)
        at += length


def run_write(plan: WritePlan, device: Device, data: "Buffer") -> None:
    """Do a write plan's I/O: one device write per run.  Raises DeviceError.  Takes no lock."""
    runs = plan.runs
    if plan.inline:
        plan.data = bytes(memoryview(data).cast("B")[: plan.count])
        return
    if len(runs) == 1 and runs[0].start == 0 and not runs[0].head and not runs[0].tail:
        view = memoryview(data)
        device.write(runs[0].offset, view if runs[0].stop == view.nbytes else view[: runs[0].stop])
        return
    view = memoryview(data).cast("B")
    for run in runs:
        parts: list[Buffer] = blank(run.head)
        if run.stop > run.start:
            parts.append(view[run.start : run.stop])
        parts += blank(run.tail)
        device.writev(run.offset, parts)


def blank(length: int) -> "list[Buffer]":
    """Buffers of zeros, `length` bytes together."""
    parts: list[Buffer] = [_BLANK] * (length // len(_BLANK))
    if length % len(_BLANK):
        parts.append(_BLANK[: length % len(_BLANK)])
    return parts


def read_through(
    device: Device,
    plan: Callable[[], ReadPlan],
    finish: Callable[[ReadPlan], bool],
    cancel: Callable[[ReadPlan], None],
) -> bytes:
    """Plan, read and finish until the file did not change under the plan.  Raises what the steps raise."""
    while True:
        current = plan()
        try:
            data = run_read(current, device)
        except BaseException:
            cancel(current)
            raise
        if finish(current):
            return data


def write_through(
    device: Device,
    pos: int,
    data: "Buffer",
    plan: Callable[[int, int], WritePlan],
    finish: Callable[[WritePlan], int],
    abort: Callable[[WritePlan], None],
) -> int:
    """Plan, write and finish until all of `data` is in the file at `pos`; returns the bytes written.

    Those are fewer than given only when space or the largest size end it.  Raises what the steps raise, and Busy when
    a plan that others have in flight is in the way.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < view.nbytes:
        try:
            current = plan(pos + done, view.nbytes - done)
        except (NoSpace, FileTooBig):
            if done:
                break
            raise
        try:
            if current.blocked:
                # waiting is for those who do their I/O without the lock; whoever holds it would wait forever
                raise Busy(f"inode {current.file.inode.ino} byte {current.pos}: another write touches the block")
            run_write(current, device, view[done : done + current.count])
        except BaseException:
            abort(current)
            raise
        done += finish(current)
    return done
