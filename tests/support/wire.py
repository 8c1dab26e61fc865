"""The kernel's side of /dev/fuse, as far as bytes go: requests made by hand, replies taken apart."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from py4fs.fuse.direct import protocol, structs
from py4fs.fuse.direct.core import Worker
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.protocol import InitFlags, Opcode
from py4fs.iomap import protocol as iomap
from py4fs.vfs import Vfs

EVERYTHING = sum(int(flag) for flag in InitFlags if flag is not InitFlags.IOMAP)
"""What a kernel without iomap offers."""


class Answer(NamedTuple):
    """A reply: the name of its errno ("" for success), the record and what follows it."""

    error: str
    record: Any
    rest: bytes


class Wire:
    """Talks to the operations of a direct session as the kernel would."""

    def __init__(self, vfs: Vfs, *, init: bool = True, **kwargs: Any) -> None:
        self.operations = Operations(vfs, **kwargs)
        self.worker = Worker()
        self.unique = 0
        if init:
            assert self.init().error == ""

    def init(self, flags: int = EVERYTHING, major: int = 7, minor: int = 45) -> Answer:
        body = structs.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32, bytes(44))
        return self.call(Opcode.INIT, 0, body)

    def raw(self, request: bytes) -> bytes | None:
        """Any bytes in; the reply as it would be written."""
        self.worker.request[: len(request)] = request
        reply = self.operations.serve(self.worker, len(request))
        return None if reply is None else bytes(reply)

    def request(self, opcode: int, nodeid: int, body: bytes, uid: int = 0, gid: int = 0, extensions: int = 0) -> bytes:
        self.unique += 2
        size = iomap.IN_HEADER.size + len(body)
        return iomap.IN_HEADER.pack(size, opcode, self.unique, nodeid, uid, gid, 1, extensions, 0) + body

    def call(self, opcode: int, nodeid: int, body: bytes = b"", **kwargs: int) -> Answer:
        """One request; its reply must be whole, and an answer to this one."""
        reply = self.raw(self.request(opcode, nodeid, body, **kwargs))
        assert reply is not None, "no reply"
        header = iomap.OUT_HEADER.unpack_from(reply)
        assert (header.len, header.unique) == (len(reply), self.unique)
        assert -512 < header.error <= 0
        if header.error:
            assert len(reply) == iomap.OUT_HEADER.size
            return Answer(errno.errorcode[-header.error], None, b"")
        record, rest = protocol.decode_reply(opcode, reply[iomap.OUT_HEADER.size :])
        return Answer("", record, bytes(rest))

    def lookup(self, parent: int, name: bytes) -> Answer:
        return self.call(Opcode.LOOKUP, parent, name + b"\0")

    def create(self, parent: int, name: bytes, flags: int = 2, mode: int = 0o100644, umask: int = 0) -> Answer:
        return self.call(Opcode.CREATE, parent, structs.CREATE_IN.pack(flags, mode, umask, 0) + name + b"\0")

    def read(self, fh: int, offset: int, size: int) -> bytes:
        answer = self.call(Opcode.READ, 0, structs.READ_IN.pack(fh, offset, size, 0, 0, 0, 0))
        assert answer.error == ""
        return answer.rest

    def write(self, fh: int, offset: int, data: bytes, flags: int = 0) -> Answer:
        return self.call(Opcode.WRITE, 0, structs.WRITE_IN.pack(fh, offset, len(data), flags, 0, 0, 0) + data)
