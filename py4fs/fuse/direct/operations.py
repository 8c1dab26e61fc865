"""All requests: which handler serves which opcode, and what becomes of those that fail. Bytes in, bytes out."""

from __future__ import annotations

import errno
import logging
import time
from typing import Any, Final

from py4fs.errors import CommitPending, Frozen, FsError
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.core import HEADER, REPLY_HEADER, Handler, Header, Reply, Worker
from py4fs.fuse.direct.ioctls import Ioctls
from py4fs.fuse.direct.negotiate import answer
from py4fs.fuse.direct.protocol import REQUESTS, Opcode
from py4fs.fuse.failures import Refused
from py4fs.fuse.timings import Timings
from py4fs.iomap import protocol as iomap
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)

_UNLOCKED: Final = frozenset(
    {Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.FSYNCDIR, Opcode.SYNCFS, Opcode.LSEEK, Opcode.INTERRUPT}
    | {Opcode.DESTROY, iomap.Opcode.FREEZE_FS}
)
"""Requests whose handlers take the lock themselves, if at all."""


class Operations(Ioctls):
    """Serves requests: :meth:`serve` takes one and gives the reply to send."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None = None) -> None:
        super().__init__(vfs, clock)
        self.trace = log.isEnabledFor(logging.DEBUG)
        self._table: dict[int, Handler] = {}
        self._waiting: list[bytes] = []  # requests that came while the file system was frozen
        for opcode, run in self.handlers().items():
            codec = REQUESTS.get(opcode) or iomap.REQUESTS.get(opcode)
            name = Opcode(opcode).name if opcode in REQUESTS else iomap.Opcode(opcode).name
            minimum = HEADER + (codec.size if codec else 0)
            self._table[opcode] = Handler(run, name.lower(), opcode not in _UNLOCKED, minimum)

    def handlers(self) -> dict[int, Any]:
        """The handler of each opcode; what is not here is answered with ENOSYS."""
        return {
            Opcode.LOOKUP: self.lookup,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
            Opcode.GETATTR: self.getattr,
            Opcode.SETATTR: self.setattr,
            Opcode.STATX: self.statx,
            Opcode.READLINK: self.readlink,
            Opcode.SYMLINK: self.symlink,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
            Opcode.LINK: self.link,
            Opcode.OPEN: self.open,
            Opcode.CREATE: self.create,
            Opcode.TMPFILE: self.tmpfile,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.FLUSH: self.flush,
            Opcode.RELEASE: self.release,
            Opcode.FSYNC: self.fsync,
            Opcode.FSYNCDIR: self.fsync,
            Opcode.SYNCFS: self.syncfs,
            Opcode.LSEEK: self.lseek,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self.copy_file_range_64,
            Opcode.OPENDIR: self.opendir,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.RELEASEDIR: self.releasedir,
            Opcode.STATFS: self.statfs,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.SETXATTR: self.setxattr,
            Opcode.REMOVEXATTR: self.removexattr,
            Opcode.BMAP: self.bmap,
            Opcode.IOCTL: self.ioctl,
            Opcode.INIT: self.init,
            Opcode.INTERRUPT: self.interrupt,
            Opcode.DESTROY: self.destroy,
            iomap.Opcode.IOMAP_CONFIG: self.config,
            iomap.Opcode.IOMAP_BEGIN: self.begin,
            iomap.Opcode.IOMAP_END: self.end,
            iomap.Opcode.IOMAP_IOEND: self.ioend,
            iomap.Opcode.FREEZE_FS: self.freeze_fs,
            iomap.Opcode.UNFREEZE_FS: self.unfreeze_fs,
            iomap.Opcode.SHUTDOWN_FS: self.shutdown_fs,
        }

    def init(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        gran, _, _ = self.vfs.volume.time_range()
        wanted = self.backing is not None
        # a kernel that looks at ACLs checks all permissions
        acl = self.vfs.volume.options.acl and not self.fakeroot
        init = structs.INIT_IN.unpack_from(body)
        reply, agreed = answer(init, time_gran=gran, want_iomap=wanted, acl=acl)
        if agreed is not None:
            self.agree(agreed)
        return reply

    def interrupt(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Every request here ends by itself, so the kernel need not send these."""
        raise Refused

    def bmap(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        block, blocksize, _ = structs.BMAP_IN.unpack_from(body)
        return structs.BMAP_OUT.pack(self.vfs.bmap(self.ino(header.nodeid), block, blocksize))

    def destroy(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """The end of a fuseblk mount, which umount(2) waits for: everything is on the device when this is answered."""
        self.commits.stop()
        with self.lock:
            self.on_destroy()
        return b""

    # --- one request -----------------------------------------------------------------------------

    def serve(self, worker: Worker, length: int) -> bytes | memoryview | None:
        """Serve the request in the first `length` bytes of `worker.request`; the whole reply, None if there is none.

        Never raises: what cannot be done, or be understood, is answered with an errno. What cannot be done while the
        file system is frozen waits: :meth:`thawed`.
        """
        request = worker.request
        if length < HEADER:
            log.error("request of %d bytes: the header alone has %d", length, HEADER)
            return None
        size, opcode, unique, nodeid, uid, gid, pid, total_extlen, _ = iomap.IN_HEADER.values_from(request)
        self.requests += 1
        handler = self._table.get(opcode)
        if handler is None:
            return iomap.error_reply(unique, errno.ENOSYS)
        if size != length or length < handler.minimum:
            return iomap.error_reply(unique, errno.EIO)
        header = Header(opcode, unique, nodeid, uid, gid, pid, total_extlen)
        try:
            reply = self._run(handler, header, request[HEADER:length], worker)
        except Frozen:
            self._waiting.append(bytes(request[:length]))
            return None
        except Exception as exc:  # noqa: BLE001  (mapped and logged by errno_of)
            code = exc.errno or errno.EIO if isinstance(exc, Refused) else self._failed(handler.name, exc)
            if self.trace:
                log.debug("%s(%d): %s", handler.name, header.nodeid, errno.errorcode.get(code, code))
            return None if handler.name in _SILENT else iomap.error_reply(unique, code)
        if self.trace:
            told = errno.errorcode.get(reply, reply) if isinstance(reply, int) else f"{len(reply or b'')} bytes"
            log.debug("%s(%d) for %d: %s", handler.name, nodeid, uid, told)
        if isinstance(reply, bytes):
            return iomap.OUT_HEADER.pack(REPLY_HEADER + len(reply), 0, unique) + reply
        if isinstance(reply, memoryview):
            iomap.OUT_HEADER.pack_into(reply, 0, reply.nbytes, 0, unique)
            return reply
        return None if reply is None else iomap.error_reply(unique, reply)

    def thawed(self) -> list[bytes]:
        """Requests that waited and can be served now; to be asked for after each request."""
        if not self._waiting or self.vfs.volume.pauses.frozen:
            return []
        found, self._waiting = self._waiting, []
        return found

    def _failed(self, request: str, exc: Exception) -> int:
        if isinstance(exc, FsError):
            with self.lock:
                return self.failures.errno_of(request, exc)
        return self.failures.errno_of(request, exc)

    def _run(self, handler: Handler, header: Header, body: memoryview, worker: Worker) -> Reply:
        while True:
            try:
                if not handler.locked:
                    return handler.run(header, body, worker)
                with self.lock:
                    reply = handler.run(header, body, worker)
                    due = self.take_sync_due()
            except CommitPending:
                # others may begin the next commit before this request gets its turn: then it waits for that, too
                worker.hand_over()
                self.commits.sync(durable=False)
                time.sleep(_MOMENT)  # it may also be I/O that has to end
            else:
                if due:
                    self.durable(worker)
                return reply


class TimedOperations(Operations):
    """The same, measured."""

    timings: Timings

    def serve(self, worker: Worker, length: int) -> bytes | memoryview | None:
        started = time.perf_counter_ns()
        opcode = iomap.IN_HEADER.values_from(worker.request)[1] if length >= HEADER else -1
        try:
            return super().serve(worker, length)
        finally:
            handler = self._table.get(opcode)
            self.timings.add(handler.name if handler is not None else "others", time.perf_counter_ns() - started)


_MOMENT: Final = 0.0005
"""Seconds to wait for what another thread is doing."""
_SILENT: Final = frozenset({"forget", "batch_forget"})
"""Requests that are never answered."""
