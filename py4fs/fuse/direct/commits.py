"""Commits of a mount whose requests run in threads: many that wait for durability share one commit.

Starting and finishing a commit happen under the vfs lock, its device I/O outside, so that the waiting for the device
holds up no other request. Whoever asks first does the work.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from py4fs.errors import FsError
from py4fs.vfs import Vfs


class _Round:
    """A commit that has not begun yet, and all who wait for it."""

    __slots__ = ("done", "durable", "error")

    def __init__(self) -> None:
        self.durable = False
        self.done = False
        self.error: FsError | None = None


class Commits:
    """One per mount. To be called without holding the vfs lock."""

    def __init__(self, vfs: Vfs, lock: AbstractContextManager[Any]) -> None:
        self._vfs = vfs
        self._lock = lock
        self._turn = threading.Condition()
        self._running = False
        self._stopped = False
        self._next = _Round()

    def sync(self, *, durable: bool = True) -> None:
        """Return when everything done before this call is written, and durable if asked. Raises FsError."""
        with self._turn:
            mine = self._next  # a commit that has begun may lack what this caller has done
            mine.durable |= durable
            while self._running and not mine.done:
                self._turn.wait()
            leads = not mine.done
            if leads:
                self._running = True
                self._next = _Round()
        if leads:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error

    def in_peace(self) -> None:
        """Commit what nobody waits for, and do before that what was put off until then. Raises FsError."""
        more = True
        while more and not self._stopped:
            with self._lock:
                more = self._vfs.free_some()
        self.sync(durable=False)

    def stop(self) -> None:
        """Wait for the commit under way; there will be no other one: the file system is about to be closed."""
        with self._turn:
            while self._running and not self._stopped:
                self._turn.wait()
            self._stopped = self._running = True  # for ever
            self._next.done = True

    def _lead(self, mine: _Round) -> None:
        try:
            self._commit(durable=mine.durable)
        except FsError as exc:
            mine.error = exc
        finally:
            with self._turn:
                mine.done = True
                self._running = False
                self._turn.notify_all()

    def _commit(self, *, durable: bool) -> None:
        with self._lock:
            commit = self._vfs.start_commit(durable=durable)
        if commit is None:
            return
        commit.write()
        with self._lock:
            self._vfs.finish_commit(commit)
