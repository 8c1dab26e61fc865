"""Requests about open files: data, seeking, ranges, syncing.

Data moves outside the vfs lock: a plan is made and finished under it, and names all that is read or written between.
Short reads and writes are done at once under it (py4fs/iomap/short.py).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Final

from py4fs.device.base import Spliced
from py4fs.errors import FileTooBig, NoSpace
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import pipes, structs
from py4fs.fuse.direct.core import REPLY_HEADER, Core, Header, Reply, Worker
from py4fs.fuse.direct.protocol import FOPEN_KEEP_CACHE, OPEN_KILL_SUIDGID, WRITE_CACHE, WRITE_KILL_SUIDGID
from py4fs.fuse.failures import Refused
from py4fs.iomap import protocol as iomap
from py4fs.iomap.plans import ReadPlan, run_read_into, run_write
from py4fs.iomap.short import SHORT
from py4fs.vfs import InGroup, Vfs

log = logging.getLogger(__name__)

_LARGE: Final = 256 << 10
"""Bytes of a read or write during which another thread had better read the next request."""
_MOMENT: Final = 0.0005
"""Seconds to wait when another write in flight touches the same block."""
_COPY: Final = 16 << 20
"""Bytes that one request copies at most while others wait: callers of copy_file_range(2) go on with the rest."""


class Files(Core):
    """Handlers of requests on handles of regular files."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None = None) -> None:
        super().__init__(vfs, clock)
        # they need threads that serve the writes they wait for
        self._writing_back = threading.BoundedSemaphore(4)

    def open(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        flags, more = structs.OPEN_IN.values_from(body)
        ino = self.ino(header.nodeid)
        kill = self.kill_priv(header) if more & OPEN_KILL_SUIDGID else None
        fh = self.vfs.open(ino, flags, self.caller(header), kill)
        self.writers.opened(fh, ino, flags)
        # the kernel's FUSE leaves access times to who serves READ (S_NOATIME), which its page cache would answer
        keeps = FOPEN_KEEP_CACHE if flags & os.O_ACCMODE == os.O_WRONLY or not self.vfs.counts_every_read else 0
        return structs.OPEN_OUT.pack(fh, keeps, 0)

    def create(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        flags, mode, umask, _ = structs.CREATE_IN.values_from(body)
        name = self.name(body, structs.CREATE_IN.size)
        fh, attr = self.vfs.create(self.ino(header.nodeid), name, mode, flags, self.caller(header, umask))
        return self._created(header, body, fh, attr, flags)

    def tmpfile(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        flags, mode, umask, _ = structs.CREATE_IN.values_from(body)
        fh, attr = self.vfs.tmpfile(self.ino(header.nodeid), mode, flags, self.caller(header, umask))
        return self._created(header, body, fh, attr, flags)

    def _created(self, header: Header, body: memoryview, fh: int, attr: Any, flags: int) -> bytes:
        for label, value in self.label(header, body):
            self.vfs.setxattr(attr.ino, label, value, 0)
        self.writers.opened(fh, attr.ino, flags)
        return structs.CREATE_OUT.pack(*self.entry_values(attr), fh, FOPEN_KEEP_CACHE, 0)

    def read(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock, but for short ones: see the module."""
        fh, offset, size, _, _, _, _ = structs.READ_IN.values_from(body)
        vfs = self.vfs
        size = min(size, worker.reply.nbytes - REPLY_HEADER)
        if size <= SHORT:
            with self.lock:
                done = vfs.read_short(fh, offset, worker.reply[REPLY_HEADER : REPLY_HEADER + size])
            if done >= 0:
                return worker.reply[: REPLY_HEADER + done]
        if size >= _LARGE:
            worker.hand_over()
        while True:
            with self.lock:
                plan = vfs.plan_read(fh, offset, size)
            end = REPLY_HEADER + plan.count
            if worker.pipe is not None and pipes.LEAST <= plan.count <= pipes.MOST and self._fill(worker, header, plan):
                if self._send_filled(worker, fh, plan):
                    return None
                continue
            try:
                run_read_into(plan, vfs.volume.device, worker.reply[REPLY_HEADER:end])
            except BaseException:
                with self.lock:
                    vfs.cancel(plan)
                raise
            with self.lock:
                if vfs.finish_read(fh, plan):
                    return worker.reply[:end]

    def _fill(self, worker: Worker, header: Header, plan: ReadPlan) -> bool:
        """Put the reply to a read of one run into the worker's pipe, if that works."""
        device = self.vfs.volume.device
        (at, length), *more = plan.runs
        if more or at < 0 or worker.pipe is None or not isinstance(device, Spliced):
            return False
        return worker.pipe.fill(iomap.OUT_HEADER.pack(REPLY_HEADER + length, 0, header.unique), device, at, length)

    def _send_filled(self, worker: Worker, fh: int, plan: ReadPlan) -> bool:
        """Send what is in the pipe; False: the file changed meanwhile, plan again."""
        assert worker.pipe is not None, "filled"
        try:
            with self.lock:
                if not self.vfs.confirm_read(fh, plan):
                    worker.pipe.clear()
                    return False
        except BaseException:
            worker.pipe.clear()
            raise
        try:
            worker.pipe.send(REPLY_HEADER + plan.count)
        except OSError as exc:
            log.debug("a reply was not taken: %s", exc.strerror)  # nobody waits for it any more, or it was unmounted
        finally:
            with self.lock:
                self.vfs.cancel(plan)
        return True

    def write(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock, but for short ones: see the module."""
        fh, offset, size, how, _, _, _ = structs.WRITE_IN.values_from(body)
        data, vfs = body[structs.WRITE_IN.size : structs.WRITE_IN.size + size], self.vfs
        kill = self.kill_priv(header) if how & WRITE_KILL_SUIDGID else None
        cached = bool(how & WRITE_CACHE)
        done = 0
        if data.nbytes <= SHORT and self._write_short(fh, offset, data, kill, cached, worker):
            done = data.nbytes
        while done < data.nbytes:
            try:
                with self.lock:
                    left = data.nbytes - done
                    plan = vfs.plan_write(fh, offset + done, left, kill_priv=kill, cached=cached)
            except (NoSpace, FileTooBig):
                # a short answer to a write of dirty pages would lose the rest: the kernel does not look at it
                if done and not cached:
                    break
                if cached:
                    self.found_no_room(header.nodeid)
                raise
            if data.nbytes >= _LARGE:
                # not before blocks are chosen: the next write would overtake this one, and leave its blocks in pieces
                worker.hand_over()
            if plan.blocked:
                with self.lock:
                    vfs.abort_write(fh, plan)
                time.sleep(_MOMENT)
                continue
            try:
                run_write(plan, vfs.volume.device, data[done : done + plan.count])
            except BaseException:
                with self.lock:
                    vfs.abort_write(fh, plan)
                raise
            with self.lock:
                done += vfs.finish_write(fh, plan)
                due = self.take_sync_due()
            if due:
                self.durable(worker)
        return structs.WRITE_OUT.pack(done, 0)

    def _write_short(
        self, fh: int, offset: int, data: memoryview, kill: InGroup | None, cached: bool, worker: Worker
    ) -> bool:
        """Write all of it at once, if it can be."""
        with self.lock:
            if not data.nbytes or not self.vfs.write_short(fh, offset, data, kill_priv=kill, cached=cached):
                return False
            due = self.take_sync_due()
        if due:
            self.durable(worker)
        return True

    def flush(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Nothing is left to do at close(2): the kernel writes dirty pages first. ENOSYS: do not ask again."""
        raise Refused

    def release(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        fh = structs.RELEASE_IN.values_from(body)[0]
        self.closed(fh)
        self.vfs.release(fh)
        self.pruning.released(header.nodeid)
        return b""

    def fsync(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock: waits for the device. Also fsyncdir."""
        fh = structs.FSYNC_IN.values_from(body)[0]
        with self.lock:
            self.vfs.check_open(fh)
        return self.durable(worker)

    def syncfs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock."""
        return self.durable(worker)

    def durable(self, worker: Worker) -> bytes:
        """Wait until everything so far is durable, other requests being served meanwhile."""
        worker.hand_over()
        self.commits.sync()
        return b""

    def lseek(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock: the kernel may have to write dirty pages first."""
        fh, offset, whence, _ = structs.LSEEK_IN.values_from(body)
        clean = self._written_back(header.nodeid, worker)
        with self.lock:
            return structs.LSEEK_OUT.pack(self.vfs.seek(fh, offset, whence, clean=clean))

    def _written_back(self, nodeid: int, worker: Worker) -> bool:
        """Make the kernel write the dirty pages of a file: only then are its data and size known here.

        False: it was not done, the vfs has to answer to be on the safe side.
        """
        if nodeid not in self.writers or not self._writing_back.acquire(blocking=False):
            return False
        try:
            worker.hand_over()
            return self.invalidate_inode(nodeid, 0)
        finally:
            self._writing_back.release()

    def fallocate(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        fh, offset, length, mode, _ = structs.FALLOCATE_IN.values_from(body)
        self.vfs.fallocate(fh, mode, offset, length, kill_priv=self._unless_root(header))
        return b""

    def copy_file_range(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Also COPY_FILE_RANGE_64, whose reply has more room."""
        return structs.WRITE_OUT.pack(self._copy(header, body), 0)

    def copy_file_range_64(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        return structs.COPY_FILE_RANGE_OUT.pack(self._copy(header, body))

    def _copy(self, header: Header, body: memoryview) -> int:
        record = structs.COPY_FILE_RANGE_IN.unpack_from(body)
        length = min(record.len, _COPY)
        return self.vfs.copy_file_range(
            record.fh_in, record.off_in, record.fh_out, record.off_out, length, kill_priv=self._unless_root(header)
        )

    def _unless_root(self, header: Header) -> InGroup | None:
        """These requests do not tell, as WRITE does, whether the caller has CAP_FSETID."""
        return self.kill_priv(header) if header.uid else None
