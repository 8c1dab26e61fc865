"""A kernel with FUSE_IOMAP that speaks the wire protocol, and behaves as IOMAP.md sections 6, 9 and 10 say.

`as_coded`: as the patches that were run do, their mistakes included (9.1 to 9.6, 9.14, 9.15); without it as they were
meant. Here is what the kernel asks and is told; the I/O of files is in `simfiles`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from py4fs.errors import Corrupt, Invalid
from py4fs.fuse.direct import protocol, structs
from py4fs.fuse.direct.backing import Backing
from py4fs.fuse.direct.operations import Operations
from py4fs.fuse.direct.protocol import InitFlags, Opcode
from py4fs.iomap import config
from py4fs.iomap import protocol as iomap
from py4fs.iomap.cache import HIT, MISS, IomapCache
from py4fs.iomap.records import (
    HOLE_IS_FINE,
    INVAL_TO_EOF,
    UNCACHED_OPS,
    WRITE_LIKE,
    IoDir,
    Mapping,
    MapType,
    OpFlags,
    hole,
)
from py4fs.iomap.validate import validate_begin, validate_inval, validate_upsert
from py4fs.vfs import Vfs
from tests.support.simdevice import LEAD, SimDevice
from tests.support.simlink import CallLink, Link, SocketLink

ROOT = 1
EVERYTHING = sum(int(flag) for flag in InitFlags)
_EXCLUSIVE, _IOMAP = iomap.ATTR_FLAGS["EXCLUSIVE"], iomap.ATTR_FLAGS["IOMAP"]


class KernelError(OSError):
    """What a system call on the simulated kernel fails with."""

    def __init__(self, code: int) -> None:
        super().__init__(code, os.strerror(code))
        self.code = code


class Found(NamedTuple):
    """What iomap_begin gave: the mapping, where the rest of its blocks comes from, and how long both hold."""

    map: Mapping
    source: Mapping
    cookie: int


@dataclass
class Node:
    """An inode in memory: `size` is i_size, `disk_size` i_disk_size; `pages` are whole blocks."""

    nodeid: int
    ino: int
    mode: int
    flags: int
    size: int
    disk_size: int
    lookups: int = 0
    cache: IomapCache | None = None
    pages: dict[int, bytearray] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)
    error: int = 0
    new_times: bool = False
    knows_caps: bool = False

    @property
    def is_iomap(self) -> bool:
        return bool(self.flags & _IOMAP) and stat.S_ISREG(self.mode)


class SimKernel:
    """One mount."""

    def __init__(
        self,
        vfs: Vfs,
        device: SimDevice,
        *,
        as_coded: bool = True,
        sockets: bool = False,
        offer: int = EVERYTHING,
        cookie: int = 3,
        required: bool = False,
        refuse_device: Exception | None = None,
        mount: bool = True,
    ) -> None:
        self.vfs = vfs
        self.device = device
        self.as_coded = as_coded
        self.operations = Operations(vfs)
        self.refused: list[Exception] = []
        self.operations.on_refused = self.refused.append
        self.operations.backing = Backing(self._register, LEAD, required)
        self.operations.send = self.notified
        self._refuse_device = refuse_device
        self._cookie = cookie
        self.devices: dict[int, int] = {}
        self.nodes: dict[int, Node] = {}
        self.handles: dict[int, Node] = {}
        self.unique = 0
        self.sent: list[str] = []  # names of requests, in order
        self.notes: list[tuple[str, Any, int]] = []  # notifications with their outcome
        self.decline: dict[str, int] = {}  # errno by name of a notification
        self.block = 4096
        self.max_bytes = config.MAX_LFS_FILESIZE
        self.no_end = self.no_ioend = False
        self.link: Link = SocketLink(self.operations) if sockets else CallLink(self.operations)
        self.is_iomap = False
        if mount:
            self.init(offer)

    def _register(self) -> int:
        if self._refuse_device is not None:
            raise self._refuse_device
        self.devices[self._cookie] = LEAD + self.device.size
        return self._cookie

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, opcode: int, nodeid: int, body: bytes = b"", uid: int = 0) -> int:
        self.unique += 2
        size = iomap.IN_HEADER.size + len(body)
        name = iomap.Opcode(opcode).name if opcode in iomap.REQUESTS else Opcode(opcode).name
        self.sent.append(name)
        unique = self.unique
        self.link.submit(iomap.IN_HEADER.pack(size, opcode, unique, nodeid, uid, uid, 1, 0, 0) + body)
        return unique

    def finish(self, opcode: int, unique: int) -> tuple[Any, bytes]:
        """The record and the rest of a reply, which has exactly the right length. Raises KernelError."""
        reply = self.link.wait(unique)
        header = iomap.OUT_HEADER.unpack_from(reply)
        assert (header.len, header.unique) == (len(reply), unique)
        assert -512 < header.error <= 0
        if header.error:
            assert len(reply) == iomap.OUT_HEADER.size
            raise KernelError(-header.error)
        record, rest = protocol.decode_reply(opcode, reply[iomap.OUT_HEADER.size :])
        return record, bytes(rest)

    def call(self, opcode: int, nodeid: int, body: bytes = b"", uid: int = 0) -> tuple[Any, bytes]:
        return self.finish(opcode, self.submit(opcode, nodeid, body, uid))

    def init(self, offer: int = EVERYTHING, minor: int = 99) -> None:
        """INIT and, if iomap was agreed on, CONFIG with its checks (sections 1 and 2)."""
        body = structs.INIT_IN.pack(7, minor, 131072, offer & 0xFFFFFFFF, offer >> 32, bytes(44))
        out, _ = self.call(Opcode.INIT, 0, body)
        ext = bool(out.flags & iomap.INIT_EXT)
        self.is_iomap = bool(ext and out.flags2 & iomap.INIT_IOMAP2 and offer & InitFlags.IOMAP)
        if not self.is_iomap:
            return
        assert out.minor >= iomap.KERNEL_MINOR
        ask = iomap.IOMAP_CONFIG_IN.pack(config.ALL_CONFIG, config.MAX_LFS_FILESIZE, 262144, 0, bytes(40))
        record, _ = self.call(iomap.Opcode.IOMAP_CONFIG, 0, ask)
        reply = iomap.config_of(record)
        config.check(reply)
        self.block, self.max_bytes = reply.s_blocksize, reply.s_maxbytes

    # --- inodes -------------------------------------------------------------------------------------

    def _node(self, entry: Any) -> Node:
        """The inode of an entry, made with the flags it has now and never again (6.1)."""
        node = self.nodes.get(entry.nodeid)
        if node is None:
            flags = entry.attr_flags if self.is_iomap else 0
            assert not flags & _IOMAP or flags & _EXCLUSIVE
            node = Node(entry.nodeid, entry.attr_ino, entry.attr_mode, flags, entry.attr_size, entry.attr_size)
            self.nodes[entry.nodeid] = node
        else:
            self._refresh(node, entry.attr_size)
        node.lookups += 1
        return node

    def _refresh(self, node: Node, size: int) -> None:
        """Attributes came: the kernel keeps its size, and as coded takes that for the one on disk (9.1)."""
        if node.is_iomap:
            node.disk_size = node.size if self.as_coded else size
        else:
            node.size = node.disk_size = size

    def lookup(self, name: bytes, parent: int = ROOT) -> Node:
        entry, _ = self.call(Opcode.LOOKUP, parent, name + b"\0")
        if not entry.nodeid:
            raise KernelError(errno.ENOENT)
        return self._node(entry)

    def create(self, name: bytes, parent: int = ROOT, mode: int = 0o100644) -> int:
        body = structs.CREATE_IN.pack(os.O_RDWR, mode, 0, 0)
        out, _ = self.call(Opcode.CREATE, parent, body + name + b"\0")
        self.handles[out.fh] = self._node(out)
        return int(out.fh)

    def open(self, name: bytes, flags: int = os.O_RDWR, parent: int = ROOT) -> int:
        node = self.lookup(name, parent)
        out, _ = self.call(Opcode.OPEN, node.nodeid, structs.OPEN_IN.pack(flags, 0))
        if flags & os.O_TRUNC:
            node.pages.clear()
            node.dirty.clear()
            node.size = node.disk_size = 0
            self.drop_mappings(node, 0, INVAL_TO_EOF)
        self.handles[out.fh] = node
        return int(out.fh)

    def mkdir(self, name: bytes, parent: int = ROOT) -> Node:
        entry, _ = self.call(Opcode.MKDIR, parent, structs.MKDIR_IN.pack(0o755, 0) + name + b"\0")
        return self._node(entry)

    def unlink(self, name: bytes, parent: int = ROOT) -> None:
        self.call(Opcode.UNLINK, parent, name + b"\0")

    def stat(self, node: Node) -> int:
        """GETATTR; returns the size that the caller of stat(2) sees."""
        out, _ = self.call(Opcode.GETATTR, node.nodeid, structs.GETATTR_IN.pack(0, 0, 0))
        assert out.attr_ino == node.ino
        self._refresh(node, out.attr_size)
        return node.size

    def evict(self, node: Node) -> None:
        assert not node.dirty and node not in self.handles.values()
        self.submit(Opcode.FORGET, node.nodeid, structs.FORGET_IN.pack(node.lookups))
        del self.nodes[node.nodeid]

    # --- mappings (6.2) -------------------------------------------------------------------------------

    def begin(self, node: Node, pos: int, count: int, op: int) -> Found:
        """iomap_begin. Raises KernelError."""
        cached = not op & UNCACHED_OPS
        nothing = hole(0, 0)
        mapping, source = nothing, nothing
        if cached:
            done, mapping, source, cookie = self._try_cache(node, pos, op)
            if done:
                return Found(mapping, source, cookie)
        for _ in range(10):
            read, write = self._ask(node, pos, count, op)
            if read.type == MapType.RETRY_CACHE or (write.type == MapType.RETRY_CACHE and not self.as_coded):
                assert cached, "RETRY_CACHE for what is never cached"
                done, mapping, source, cookie = self._try_cache(node, pos, op)
                if done:
                    return Found(mapping, source, cookie)
                continue
            if op & WRITE_LIKE and write.type != MapType.PURE_OVERWRITE:
                if write.type == MapType.RETRY_CACHE:
                    write = hole(write.offset, write.length)  # 9.15
                return Found(write, read, 0)
            return Found(read, source if self.as_coded else nothing, 0)  # 9.4
        raise AssertionError("RETRY_CACHE again and again")

    def _ask(self, node: Node, pos: int, count: int, op: int) -> tuple[Mapping, Mapping]:
        body = iomap.IOMAP_BEGIN_IN.pack(op, 0, node.ino, pos, count)
        record, _ = self.call(iomap.Opcode.IOMAP_BEGIN, node.nodeid, body)
        read, write = iomap.mapping_of(record, "read_"), iomap.mapping_of(record, "write_")
        try:
            validate_begin(
                read,
                write,
                pos,
                block_size=self.block,
                max_file_bytes=self.max_bytes,
                has_cache=node.cache is not None,
                strict=True,
                devices=self.devices,
            )
        except Corrupt as exc:
            raise AssertionError(f"a reply that no kernel takes: {exc}") from exc
        return read, write

    def _try_cache(self, node: Node, pos: int, op: int) -> tuple[bool, Mapping, Mapping, int]:
        """Whether the cache knows, and what was filled in even if not."""
        mapping = source = hole(0, 0)
        cache = node.cache
        if cache is None:
            return False, mapping, source, 0
        redirected = False
        if op & WRITE_LIKE:
            target = cache.lookup(IoDir.WRITE, pos)
            if target.result == MISS:
                return False, mapping, source, 0
            if target.result == HIT:
                assert target.mapping is not None
                if target.mapping.type != MapType.PURE_OVERWRITE:
                    mapping, redirected = target.mapping, True
        found = cache.lookup(IoDir.READ, pos)
        if found.mapping is None:
            return False, mapping, source, 0
        if redirected:
            source = found.mapping
        else:
            mapping = found.mapping
        good = True
        if op & WRITE_LIKE:
            if mapping.type == MapType.HOLE:
                good = bool(op & HOLE_IS_FINE)
            elif mapping.type == MapType.DELALLOC:
                good = not op & (OpFlags.DIRECT | OpFlags.WRITEBACK)
        return good, mapping, source, found.cookie

    def drop_mappings(self, node: Node, pos: int, length: int) -> None:
        """The kernel's own invalidation; dropping all of a fork goes unnoticed as coded (9.3)."""
        if node.cache is None:
            return
        before = node.cache.seq
        node.cache.invalidate(pos, length)
        if self.as_coded and pos == 0 and length >= self.max_bytes:
            node.cache.seq = before

    # --- notifications (section 3) ----------------------------------------------------------------------

    def notified(self, message: bytes) -> int:
        """write(2) of a notification, as the server sees it: 0 or an errno."""
        header = iomap.OUT_HEADER.unpack_from(message)
        assert header.unique == 0 and header.len == len(message)
        body = message[iomap.OUT_HEADER.size :]
        if header.error not in iomap.NOTIFICATIONS:
            self.notes.append((protocol.Notify(header.error).name, None, 0))
            return 0
        name = iomap.Notify(header.error).name
        try:
            record = iomap.decode_notification(header.error, body)
        except Invalid:
            return errno.EINVAL
        code = self.decline.get(name) or (errno.EINVAL if not self.is_iomap else self._take(name, record))
        self.notes.append((name, record, code))
        return code

    def _take(self, name: str, record: Any) -> int:
        if name == "IOMAP_DEV_INVAL":
            return self._device_invalidated(record)
        node = self.nodes.get(record.nodeid)
        if node is None:
            return errno.ESTALE
        if node.ino != record.attr_ino or not node.is_iomap:
            return errno.EINVAL
        try:
            if name == "IOMAP_UPSERT_MAPPINGS":
                return self._upserted(node, record)
            return self._invalidated(node, record)
        except Corrupt:
            return errno.EUCLEAN

    def _upserted(self, node: Node, record: Any) -> int:
        for fork in IoDir:
            validate_upsert(
                iomap.mapping_of(record, f"{fork.name.lower()}_"),
                fork,
                block_size=self.block,
                max_file_bytes=self.max_bytes,
                devices=self.devices,
                strict=True,
            )
        if node.cache is None:
            node.cache = IomapCache(self.block, self.max_bytes, 0)
        for fork in IoDir:
            node.cache.upsert(fork, iomap.mapping_of(record, f"{fork.name.lower()}_"))
        return 0

    def _invalidated(self, node: Node, record: Any) -> int:
        for fork in IoDir:
            name = fork.name.lower()
            pos, length = getattr(record, f"{name}_offset"), getattr(record, f"{name}_length")
            validate_inval(pos, length, block_size=self.block, max_file_bytes=self.max_bytes)
            if length and node.cache is not None:
                before = node.cache.seq
                node.cache.remove(fork, pos, length)
                if self.as_coded and pos == 0 and length >= self.max_bytes:
                    node.cache.seq = before
        return 0

    def _device_invalidated(self, record: Any) -> int:
        if record.dev not in self.devices:
            return errno.ENODEV
        if record.offset >= self.devices[record.dev]:
            return errno.EINVAL
        if not record.length:
            if self.as_coded and record.offset == 0:
                self.device.invalidate(LEAD, self.device.size)  # 9.2
            return 0
        self.device.invalidate(record.offset, record.length)
        return 0

    def ioctl_names(self) -> Iterator[str]:
        """Names of the requests so far, without those that only look up and forget."""
        return (name for name in self.sent if name not in ("LOOKUP", "FORGET"))
