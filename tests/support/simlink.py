"""How requests of the simulated kernel get to a session's operations and replies back."""

from __future__ import annotations

import os
import socket
import threading
from typing import Protocol

from py4fs.fuse.direct.core import Worker
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.protocol import Opcode
from py4fs.fuse.direct.threads import Readers
from py4fs.iomap import protocol as iomap

_PATIENCE = 20.0  # seconds


class Link(Protocol):
    """A connection."""

    def submit(self, request: bytes) -> None:
        """Send a request."""

    def wait(self, unique: int) -> bytes:
        """The reply to one that was sent."""

    def arrived(self, unique: int) -> bool:
        """Whether its reply is there."""

    def close(self) -> None:
        """The end of the connection."""


class CallLink:
    """Calls the operations, in the thread of the caller."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._worker = Worker()
        self._replies: dict[int, bytes] = {}

    def submit(self, request: bytes) -> None:
        self._serve(request)
        for waited in self._operations.thawed():
            self._serve(waited)

    def _serve(self, request: bytes) -> None:
        self._worker.request[: len(request)] = request
        reply = self._operations.serve(self._worker, len(request))
        if reply is not None:
            self._replies[iomap.OUT_HEADER.unpack_from(reply).unique] = bytes(reply)

    def wait(self, unique: int) -> bytes:
        assert unique in self._replies, "no reply"
        return self._replies.pop(unique)

    def arrived(self, unique: int) -> bool:
        return unique in self._replies

    def close(self) -> None:
        pass


class SocketLink:
    """A socket pair with the session's own threads at its other end; each message is one request or reply."""

    def __init__(self, operations: Operations) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._replies: dict[int, bytes] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._readers = Readers(operations, self._theirs.fileno(), self._ended.set)
        self._readers.start()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()

    def submit(self, request: bytes) -> None:
        self._ours.send(request)

    def _receive(self) -> None:
        while reply := os.read(self._ours.fileno(), 2 << 20):
            with self._changed:
                self._replies[iomap.OUT_HEADER.unpack_from(reply).unique] = reply
                self._changed.notify_all()

    def wait(self, unique: int) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: unique in self._replies, _PATIENCE), "no reply"
            return self._replies.pop(unique)

    def arrived(self, unique: int) -> bool:
        with self._changed:
            return unique in self._replies

    def close(self) -> None:
        self._readers.stop()
        assert self._ended.wait(_PATIENCE)
        # whoever reads gets one more request, which has no reply, and sees that it is over
        body = bytes(8)
        head = iomap.IN_HEADER.pack(iomap.IN_HEADER.size + 8, Opcode.FORGET, 2, 1 << 40, 0, 0, 0, 0, 0)
        self._ours.send(head + body)
        self._ours.shutdown(socket.SHUT_RDWR)
        readers = [thread for thread in threading.enumerate() if thread.name.startswith("py4fs-reader-")]
        for thread in (self._receiver, *readers):
            thread.join(_PATIENCE)
            assert not thread.is_alive(), thread
        self._ours.close()
        self._theirs.close()
