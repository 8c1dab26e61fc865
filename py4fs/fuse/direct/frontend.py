"""The direct session's part in the life of a mount: reading threads under trio."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import trio

from py4fs.device.file import FileDevice
from py4fs.errors import FsError
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import backing, mounting
from py4fs.fuse.direct.backing import Backing
from py4fs.fuse.direct.operations import Operations, TimedOperations
from py4fs.fuse.direct.threads import Readers
from py4fs.fuse.mount import FuseOptions, MountError, MountPoint
from py4fs.fuse.privileges import Peek
from py4fs.fuse.timings import Timings
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)

_PAGE: Final = 4096
_IN_FLIGHT: Final = 10.0
"""Seconds that reads and writes under way may take when everything ends."""
_MOMENT: Final = 0.001


class DirectFrontEnd:
    """See :class:`py4fs.fuse.frontend.FrontEnd`."""

    def __init__(
        self, vfs: Vfs, clock: KernelClock | None, timings: Timings | None = None, iomap: str = "auto"
    ) -> None:
        """`iomap`: one of `backing.MODES`."""
        if timings is None:
            self.operations = Operations(vfs, clock)
        else:
            self.operations = timed = TimedOperations(vfs, clock)
            timed.timings = timings
        self.operations.send = self._send
        self.operations.on_refused = self._refuse
        self._iomap = iomap
        self._refused: FsError | None = None
        self._fd = -1
        self._readers: Readers | None = None

    @property
    def requests(self) -> int:
        return self.operations.requests

    def report(self) -> list[str]:
        with self.operations.lock:
            return [f"{self.requests} requests", *self.operations.vfs.report()]

    def on_destroy(self, close: Callable[[], None]) -> None:
        self.operations.on_destroy = close

    def on_peek(self, peek: Peek) -> None:
        self.operations.peek = peek

    def mount(self, where: MountPoint, options: FuseOptions, image: str) -> None:
        volume = self.operations.vfs.volume
        device = volume.device
        on_device = isinstance(device, FileDevice) and device.is_block_device
        self._prepare_iomap(where)
        if on_device and isinstance(device, FileDevice) and os.geteuid() == 0 and not where.passed:
            # the kernel claims the device for the mount, as we do until then
            device.share()
            options = replace(options, block_size=min(volume.geometry.block_size, _PAGE))
        self.operations.fakeroot = not options.default_permissions
        self._fd = mounting.mount(where, options, image)

    def _prepare_iomap(self, where: MountPoint) -> None:
        """Raises MountError when it is required and cannot be had."""
        volume, mode = self.operations.vfs.volume, self._iomap
        fuse_fd = where.fd if where.passed else None
        try:
            device = backing.prepare(mode, fuse_fd, volume.device, volume.geometry.block_size)
        except FsError as exc:
            raise MountError(exc.errno or errno.EIO, f"iomap=require: {exc}") from exc
        if device is not None:
            self.operations.backing = Backing(
                lambda: backing.register(self._fd, device), device.offset, mode == "require", device.sector_size()
            )

    def _refuse(self, reason: FsError) -> None:
        """There is to be no mount: requests are answered, but :meth:`serve` ends."""
        self._refused = reason
        self.terminate()

    async def serve(self) -> None:
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def ended() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        self._readers = Readers(self.operations, self._fd, ended)
        self._readers.start()
        await over.wait()
        if self._refused is not None:
            raise MountError(self._refused.errno or errno.EIO, str(self._refused))

    async def commit_now_and_then(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            try:
                await trio.to_thread.run_sync(self.operations.commits.in_peace)
            except FsError as exc:
                log.error("commit failed: %s", exc)

    async def shrink(self, part: float) -> None:
        def run() -> None:
            with self.operations.lock:
                self.operations.vfs.shrink(part)

        await trio.to_thread.run_sync(run)

    def thaw(self) -> None:
        if self._readers is not None:
            self._readers.thaw()

    def terminate(self) -> None:
        if self._readers is not None:
            self._readers.stop()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """See :class:`py4fs.fuse.frontend.FrontEnd`. Who is being served is waited for, as long as that may be."""
        self.terminate()
        self.operations.commits.stop()
        volume, deadline = self.operations.vfs.volume, time.monotonic() + _IN_FLIGHT
        with self.operations.lock:
            # nobody may be about to use a descriptor whose number is given away
            while len(volume.pins) and time.monotonic() < deadline:
                self.operations.lock.release()
                time.sleep(_MOMENT)
                self.operations.lock.acquire()
            yield

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _send(self, message: bytes) -> int:
        """Send a notification: 0, or an errno, which says that the kernel does not know the inode, or is gone."""
        try:
            os.write(self._fd, message)
        except OSError as exc:
            log.debug("notification: %s", exc.strerror)
            return exc.errno or errno.EIO
        return 0
