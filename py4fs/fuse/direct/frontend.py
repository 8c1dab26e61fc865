"""The direct session's part in the life of a mount: reading threads under trio."""

from __future__ import annotations

import contextlib
import logging
import os

import trio

from py4fs.errors import FsError
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct import mounting
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.threads import Readers
from py4fs.fuse.mount import FuseOptions, MountPoint
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)


class DirectFrontEnd:
    """See :class:`py4fs.fuse.frontend.FrontEnd`."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None) -> None:
        self.operations = Operations(vfs, clock)
        self.operations.notify = self._notify
        self._fd = -1
        self._readers: Readers | None = None

    @property
    def requests(self) -> int:
        return self.operations.requests

    def mount(self, where: MountPoint, options: FuseOptions, image: str) -> None:
        passed = mounting.passed_descriptor(where.path)
        self._fd = mounting.mount(where, options, image) if passed is None else mounting.take_descriptor(passed)

    async def serve(self) -> None:
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def ended() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        self._readers = Readers(self.operations, self._fd, ended)
        self._readers.start()
        await over.wait()

    async def commit_now_and_then(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            try:
                await trio.to_thread.run_sync(lambda: self.operations.commits.sync(durable=False))
            except FsError as exc:
                log.error("commit failed: %s", exc)

    def terminate(self) -> None:
        if self._readers is not None:
            self._readers.stop()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _notify(self, message: bytes) -> None:
        """Send a notification. That the kernel does not know the inode (any more) is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.write(self._fd, message)
