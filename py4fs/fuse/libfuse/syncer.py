"""Commits of a mount: every few seconds, and whenever somebody waits for durability; many waiters share one.

Starting and finishing a commit happen in the loop, its device I/O in a thread, so that the waiting for the device holds
up no other request.
"""

from __future__ import annotations

import logging

import trio

from py4fs.errors import FsError
from py4fs.fuse.libfuse.waiting import Waiting
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)


class _Waiter:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: FsError | None = None


class Syncer:
    """One per mount; :meth:`run` is its task."""

    def __init__(self, vfs: Vfs, waiting: Waiting) -> None:
        self._vfs = vfs
        self._waiting = waiting
        self._waiters: list[_Waiter] = []
        self._wake = trio.Event()

    async def sync(self) -> None:
        """Return when everything done before this call is durable. Raises FsError when it is not."""
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._waiting.busy += 1
        self._wake.set()
        self._waiting.hand_over()
        try:
            await waiter.done.wait()
        finally:
            self._waiting.busy -= 1
        if waiter.error is not None:
            raise waiter.error

    async def run(self, interval: float) -> None:
        """Commit for ever, every ``interval`` seconds if nobody asks. The file system's last commit is its close."""
        while True:
            with trio.move_on_after(interval):
                await self._wake.wait()
            self._wake = trio.Event()
            waiters, self._waiters = self._waiters, []
            error: FsError | None = None
            # a commit that was started has to be finished, whatever ends meanwhile
            with trio.CancelScope(shield=True):
                try:
                    while not waiters and self._vfs.free_some():
                        await trio.lowlevel.checkpoint()
                    await self._commit(durable=bool(waiters))
                except FsError as exc:
                    error = exc
                    if not waiters:
                        log.error("commit failed: %s", exc)
            for waiter in waiters:
                waiter.error = error
                waiter.done.set()

    async def _commit(self, *, durable: bool) -> None:
        commit = self._vfs.start_commit(durable=durable)
        if commit is None:
            return
        self._waiting.busy += 1
        try:
            await trio.to_thread.run_sync(commit.write)
        finally:
            self._waiting.busy -= 1
            self._vfs.finish_commit(commit)
