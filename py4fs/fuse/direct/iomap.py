"""FUSE_IOMAP: a kernel that asks where the bytes of regular files are, and moves them by itself (IOMAP.md).

It is agreed on in INIT, and switched on in the handler of CONFIG, when the kernel has taken the block device. Where it
does not, inodes get no iomap flag, and everything goes on as without iomap.

What differs once it is on:

* size and times of regular files are the kernel's; sizes get to the disk with IOEND, FLUSH, FSYNC and RELEASE (9.1);
* FLUSH and END are never answered ENOSYS, which the kernel would remember;
* no handler touches the bytes of a file: copy_file_range is the kernel's, truncating and punching zero nothing;
* READ and WRITE come without a handle, for contents that are in the inode (6.7);
* SYNCFS and FREEZE_FS wait for conversions that are under way, with a limit (9.14);
* DESTROY always comes, and the device is closed before it is answered.

Atomic writes are not announced (FUSE_ATTR_ATOMIC): most devices below have none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from py4fs.errors import Frozen, FsError, NotSupported
from py4fs.ext4.layout.inode import (
    EXT4_APPEND_FL,
    EXT4_ENCRYPT_FL,
    EXT4_IMMUTABLE_FL,
    EXT4_SYNC_FL,
    EXT4_VERITY_FL,
    S_IFMT,
    S_IFREG,
)
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.backing import Backing
from py4fs.fuse.direct.core import REPLY_HEADER, Header, Reply, Worker
from py4fs.fuse.direct.files import Files
from py4fs.fuse.direct.kernelmaps import KernelMaps
from py4fs.fuse.direct.negotiate import Agreed
from py4fs.fuse.failures import Refused
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import WRITE_LIKE, MapType, OpFlags
from py4fs.vfs import Attr, Vfs
from py4fs.vfs.control import SHUTDOWN_NOLOGFLUSH

log = logging.getLogger(__name__)

_WRITEBACK: Final = int(OpFlags.WRITEBACK)
_UNWRITTEN: Final = int(MapType.UNWRITTEN)
_EXCLUSIVE: Final = iomap.ATTR_FLAGS["EXCLUSIVE"]
_REGULAR: Final = _EXCLUSIVE | iomap.ATTR_FLAGS["IOMAP"]
_SEALED: Final = EXT4_ENCRYPT_FL | EXT4_VERITY_FL
_INODE_FLAGS: Final = (
    (EXT4_SYNC_FL, iomap.ATTR_FLAGS["SYNC"]),
    (EXT4_IMMUTABLE_FL, iomap.ATTR_FLAGS["IMMUTABLE"]),
    (EXT4_APPEND_FL, iomap.ATTR_FLAGS["APPEND"]),
)


class Iomap(Files):
    """Handlers of the requests that the patches add, and of those they change."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None = None) -> None:
        super().__init__(vfs, clock)
        #: the device to be registered, None: iomap is not wanted; set by the front end before INIT
        self.backing: Backing | None = None
        #: told why there is to be no mount, when iomap is required and not to be had
        self.on_refused: Callable[[FsError], None] = lambda reason: None
        self.iomap_on = False
        self.kernel_maps = KernelMaps(self._tell, self.nodeid)

    def _tell(self, message: bytes) -> int:
        return self.send(message)

    def agree(self, agreed: Agreed) -> None:
        """INIT: see what the kernel has taken. Raises NotSupported where iomap is required and not offered."""
        self.agreed = agreed
        self.vfs.kernel_owns_times = agreed.writeback
        if self.backing is not None and self.backing.required and not agreed.iomap:
            raise self._refuse(NotSupported("iomap=require: the kernel does not offer FUSE_IOMAP for this mount"))

    def _refuse(self, reason: FsError) -> FsError:
        self.on_refused(reason)
        return reason

    def config(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """The first request after INIT: everything else waits for its answer."""
        asked = iomap.IOMAP_CONFIG_IN.unpack_from(body)
        if self.backing is None or self.agreed is None or not self.agreed.iomap:
            raise Refused
        try:
            cookie = self.backing.register()
        except FsError as exc:
            if self.backing.required:
                raise self._refuse(exc) from exc
            log.warning("no iomap: %s; file data goes through the server", exc)
        else:
            self._switch_on(cookie, self.backing.offset)
        return iomap.config_out(self.vfs.server.config(asked.flags, asked.maxbytes))

    def _switch_on(self, cookie: int, offset: int) -> None:
        if self.iomap_on:
            return
        server, maps = self.vfs.server, self.kernel_maps
        self.iomap_on = True
        self.vfs.kernel_owns_data = self.vfs.kernel_owns_times = True
        maps.start(cookie, offset, server.block_size, server.max_file_bytes)
        server.subscribe(maps.invalidate)
        server.subscribe_device(maps.device_changed)
        log.info("iomap: the kernel reads and writes file data by itself, device %d", cookie)

    def attr_flags(self, attr: Attr) -> int:
        """The kernel looks at them only when it makes its inode; for the root it never does (6.1).

        What is on the device is not for everybody to see where it is encrypted, nor true before it is verified.
        """
        if not self.iomap_on:
            return 0
        if attr.flags & _SEALED:
            return 0
        flags = _REGULAR if attr.mode & S_IFMT == S_IFREG else _EXCLUSIVE
        for have, flag in _INODE_FLAGS:
            if attr.flags & have:
                flags |= flag
        return flags

    def direct_alignment(self, attr: Attr) -> int:
        """What the kernel does by itself goes to the device in whole sectors."""
        if self.backing is None or attr.mode & S_IFMT != S_IFREG or not self.attr_flags(attr):
            return 0
        return self.backing.sector

    # --- mappings --------------------------------------------------------------------------------

    def begin(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = iomap.IOMAP_BEGIN_IN.unpack_from(body)
        ino, pos, op = self._mapped(header), record.pos, record.opflags
        maps = self.kernel_maps
        push = partial(maps.push, ino)
        read, write = self.vfs.map_begin(ino, pos, record.count, op, push, self.caller(header))
        if read.type == _UNWRITTEN and op & WRITE_LIKE:
            # what its cache says of this range, a hole maybe, is from before the blocks
            maps.invalidate(ino, read.offset, read.length)
            if op & _WRITEBACK:
                maps.writing(ino, pos, min(record.count, read.end - pos))
        return iomap.begin_out(maps.outgoing(read), maps.outgoing(write))

    def end(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = iomap.IOMAP_END_IN.unpack_from(body)
        ino = self._mapped(header)
        self.vfs.map_end(ino, record.pos, record.count, record.written, record.opflags, record.map_flags)
        return b""

    def ioend(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = iomap.IOMAP_IOEND_IN.unpack_from(body)
        ino = self._mapped(header)
        try:
            size = self.vfs.map_ioend(ino, record.pos, record.written, record.flags, record.error)
        except Frozen:
            raise  # it comes again
        except FsError:
            self.kernel_maps.written(ino, record.pos, record.written)
            raise
        self.kernel_maps.written(ino, record.pos, record.written)
        return iomap.IOMAP_IOEND_OUT.pack(size)

    def _mapped(self, header: Header) -> int:
        """The inode of a request about mappings. Raises NotSupported when no inode should have any, Stale."""
        if not self.iomap_on:
            raise NotSupported("iomap is not on")
        return self.ino(header.nodeid)

    # --- requests that mean something else now -----------------------------------------------------

    def open(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        reply = super().open(header, body, worker)
        if self.iomap_on:
            ino = self.ino(header.nodeid)
            if not self.vfs.getattr(ino).flags & _SEALED:
                self.vfs.map_open(ino, partial(self.kernel_maps.push, ino))
        return reply

    def read(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = structs.READ_IN.unpack_from(body)
        if record.fh or not self.iomap_on:
            return super().read(header, body, worker)
        size = min(record.size, worker.reply.nbytes - REPLY_HEADER)
        with self.lock:
            return self.vfs.read_inline(self.ino(header.nodeid), record.offset, size)

    def write(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        record = structs.WRITE_IN.unpack_from(body)
        if record.fh or not self.iomap_on:
            return super().write(header, body, worker)
        data = bytes(body[structs.WRITE_IN.size : structs.WRITE_IN.size + record.size])
        with self.lock:
            self.vfs.write_inline(self.ino(header.nodeid), record.offset, data, self.caller(header))
        return structs.WRITE_OUT.pack(len(data), 0)

    def flush(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        if not self.iomap_on:
            return super().flush(header, body, worker)
        self.vfs.data_is_down(structs.FLUSH_IN.unpack_from(body).fh)
        return b""

    def fsync(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        if self.iomap_on:
            with self.lock:
                self.vfs.data_is_down(structs.FSYNC_IN.unpack_from(body).fh)
        return super().fsync(header, body, worker)

    def syncfs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self._conversions_done(worker)
        return super().syncfs(header, body, worker)

    def _conversions_done(self, worker: Worker) -> None:
        if self.iomap_on:
            worker.hand_over()
            self.kernel_maps.wait_for_ioends()
            with self.lock:
                self.vfs.volume.note_data_written()

    def copy_file_range(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self._leave_to_kernel()
        return super().copy_file_range(header, body, worker)

    def copy_file_range_64(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self._leave_to_kernel()
        return super().copy_file_range_64(header, body, worker)

    def _leave_to_kernel(self) -> None:
        """A copy made here would pass through the page cache of the device; the kernel's passes through that of the
        files."""
        if self.iomap_on:
            raise Refused

    def forgotten(self, ino: int) -> None:
        super().forgotten(ino)
        self.kernel_maps.forget(ino)

    # --- the file system as a whole ----------------------------------------------------------------

    def freeze_fs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """Not under the lock: waits for conversions. Those that come later wait for the end of the freeze."""
        self._conversions_done(worker)
        with self.lock:
            self.vfs.freeze()
        return b""

    def unfreeze_fs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        self.vfs.thaw()
        return b""

    def shutdown_fs(self, header: Header, body: memoryview, worker: Worker) -> Reply:
        """The device is about to go: nothing is written any more, as the kernel's ext4 does it."""
        self.vfs.shutdown(SHUTDOWN_NOLOGFLUSH)
        return b""
