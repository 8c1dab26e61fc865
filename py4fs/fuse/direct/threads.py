"""The threads that read requests: one reads, serves and reads again, the others are parked.

One thread that serves request after request needs no wake-ups, which cost more than most requests. Before one of them
waits for something that takes long it hands over: a parked thread (or a new one) reads on, and the one that waited
is parked when it is done.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from py4fs.fuse.direct.core import Worker
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.pipes import ReplyPipe

log = logging.getLogger(__name__)

_MOST: Final = 32
"""Threads at most; when all of them wait, requests wait too."""
_AGAIN: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})
"""Errors of reading after which one reads again; ENOENT: the request was interrupted before it was read."""
_ENDED: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
"""Unmounted, or aborted."""


class Readers:
    """The threads of one connection."""

    def __init__(self, operations: Operations, fd: int, ended: Callable[[], None]) -> None:
        """`fd`: of /dev/fuse; `ended()` is called once, by one of the threads, when no more requests will come."""
        self._operations = operations
        self._fd = fd
        self._ended = ended
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._threads = 0
        self._parked = 0
        self._over = False

    def start(self) -> None:
        """Begin to read."""
        self._start_one()

    def stop(self) -> None:
        """Serve nothing any more, whatever the kernel still asks."""
        self._finish()

    def _start_one(self) -> None:
        with self._state:
            self._threads += 1
            number = self._threads
        threading.Thread(target=self._run, name=f"py4fs-reader-{number}", daemon=True).start()

    def _run(self) -> None:
        worker = Worker(pipe=ReplyPipe(self._fd))
        holds = False

        def hand_over() -> None:
            nonlocal holds
            if holds:
                holds = False
                with self._state:
                    another = self._parked == 0 and self._threads < _MOST
                self._turn.release()
                if another:
                    self._start_one()

        worker.hand_over = hand_over
        serve, fd, request = self._operations.serve, self._fd, [worker.request]
        while True:
            with self._state:
                self._parked += 1
            self._turn.acquire()
            with self._state:
                self._parked -= 1
            holds = True
            while holds:
                if self._over:
                    self._turn.release()
                    return
                try:
                    length = os.readv(fd, request)
                except OSError as exc:
                    if exc.errno not in _AGAIN:
                        self._lost(exc)
                    continue
                if self._over:
                    continue  # the end of the connection answers
                reply = serve(worker, length)
                if reply is not None:
                    self._send(reply)
                for waited in self._operations.thawed():
                    self._serve_again(worker, waited)

    def _serve_again(self, worker: Worker, waited: bytes) -> None:
        worker.request[: len(waited)] = waited
        reply = self._operations.serve(worker, len(waited))
        if reply is not None:
            self._send(reply)

    def thaw(self) -> None:
        """Let go on what waits for a frozen file system."""
        with self._operations.lock:
            if self._operations.vfs.volume.pauses.frozen:
                self._operations.vfs.thaw()
        worker = Worker()
        for waited in self._operations.thawed():
            self._serve_again(worker, waited)

    def _send(self, reply: bytes | memoryview) -> None:
        try:
            os.write(self._fd, reply)
        except OSError as exc:
            # ENOENT: the request was interrupted and nobody waits for the answer any more
            if exc.errno != errno.ENOENT and exc.errno not in _ENDED:
                log.error("a reply of %d bytes was not taken: %s", len(reply), exc.strerror)

    def _lost(self, exc: OSError) -> None:
        if exc.errno not in _ENDED:
            log.error("/dev/fuse: %s", exc.strerror)
        self._finish()

    def _finish(self) -> None:
        with self._state:
            first = not self._over
            self._over = True
        if first:
            self._ended()
