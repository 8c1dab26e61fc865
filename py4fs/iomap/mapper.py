"""The client's mapping side: per-inode state, the cache, and asking the server (IOMAP.md 6.2)."""

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Final, Protocol

from py4fs.device.base import Device
from py4fs.errors import Corrupt, DeviceError, FsError, Invalid, NotSupported
from py4fs.ext4.inode import Inode
from py4fs.ext4.pins import PlanPins
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.iomap import config
from py4fs.iomap.cache import HIT, NOFORK, RECORD_BYTES, IomapCache
from py4fs.iomap.plans import WritePlan
from py4fs.iomap.records import (
    HOLE_IS_FINE,
    UNCACHED_OPS,
    WRITE_LIKE,
    IoDir,
    MapFlags,
    Mapping,
    MapType,
    OpFlags,
    has_device,
)
from py4fs.iomap.server import Ext4Iomap
from py4fs.iomap.validate import Devices, validate_begin, validate_upsert

log = logging.getLogger(__name__)

CACHE_BUDGET: Final = 32 << 20
"""Bytes that the caches of all files may take (an empty file's cache is not counted)."""
IDLE_FILES: Final = 4096
"""Files that nobody has open and whose state is kept."""
_TRIES: Final = 3
"""Times that RETRY_CACHE is believed before the server has to answer without the cache."""

# plain numbers: the enums' own operators cost a call each
_READ: Final = int(IoDir.READ)
_WRITE: Final = int(IoDir.WRITE)
_ATOMIC: Final = int(OpFlags.ATOMIC)
_ATOMIC_BIO: Final = int(MapFlags.ATOMIC_BIO)
_HOLE: Final = int(MapType.HOLE)
_INLINE: Final = int(MapType.INLINE)
_MAPPED: Final = int(MapType.MAPPED)
_UNWRITTEN: Final = int(MapType.UNWRITTEN)


class DataVolume(Protocol):
    """What the client needs of a volume."""

    @property
    def device(self) -> Device: ...

    @property
    def pins(self) -> PlanPins: ...

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation: ...

    def note_data_written(self) -> None: ...


class Counters:
    """How the cache did: lookups answered and not, questions to the server and what came of them."""

    __slots__ = ("hits", "ioends", "misses", "retries", "upcalls", "upserts")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.upcalls = 0
        self.retries = 0
        self.upserts = 0
        self.ioends = 0

    def as_dict(self) -> dict[str, int]:
        """All of them by name."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "upcalls": self.upcalls,
            "retries": self.retries,
            "upserts": self.upserts,
            "ioends": self.ioends,
        }

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.as_dict().items())

    def __sub__(self, other: "Counters") -> "Counters":
        """What happened since `other` was taken."""
        result = Counters()
        result.add(self)
        result.add(other, -1)
        return result

    def add(self, other: "Counters", times: int = 1) -> None:
        """Add another set of counts to this one."""
        self.hits += other.hits * times
        self.misses += other.misses * times
        self.upcalls += other.upcalls * times
        self.retries += other.retries * times
        self.upserts += other.upserts * times
        self.ioends += other.ioends * times


class IomapFile:
    """The client's state of one inode.

    `content` moves whenever blocks were taken away or zeroed behind the back of plans in flight; `writes` are the
    write plans in flight.
    """

    __slots__ = ("cache", "content", "counted", "counters", "devices", "inode", "used", "writes")

    def __init__(self, inode: Inode, cache: IomapCache, devices: Devices) -> None:
        self.inode = inode
        self.cache = cache
        self.devices = devices
        self.content = 0
        self.counters = Counters()
        self.writes: list[WritePlan] = []
        self.counted = 0
        self.used = 0

    def push(self, mappings: Sequence[Mapping]) -> bool:
        """The server's way into the read fork (UPSERT, section 3); False: declined.  Raises Corrupt (EUCLEAN)."""
        cache, devices = self.cache, self.devices
        if cache.cache_maxbytes is not None:
            # at its size limit it drops everything, but never what came last
            mappings = [*mappings[1:], mappings[0]]
        for mapping in mappings:
            kind = mapping[3]
            if kind in (_MAPPED, _UNWRITTEN):
                size = devices.get(mapping[5], -1)
                if mapping[2] + mapping[1] > size:
                    return self._refuse(mapping)
            cache.upsert(_READ, mapping)
        self.counters.upserts += len(mappings)
        return True

    def _refuse(self, mapping: Mapping) -> bool:
        """A mapping that does not lie on a device: say what is wrong with it; a device without a size only declines."""
        cache = self.cache
        try:
            validate_upsert(
                mapping, _READ, block_size=cache.blocksize, max_file_bytes=cache.max_file_bytes, devices=self.devices
            )
        except Invalid:
            return False
        raise AssertionError("a mapping beyond its device is refused")


class Mapper:
    """Knows where the bytes of each file are: from its cache, or from the server."""

    def __init__(self, server: Ext4Iomap, devices: Devices, cache_maxbytes: int | None, budget: int) -> None:
        """`devices`: size in bytes by cookie; `cache_maxbytes` limits each file's cache as the kernel would.

        `budget`: bytes that all caches together may take.
        """
        self._server = server
        self._devices = devices
        answer = server.config()
        config.check(answer)
        self._block_size = answer.s_blocksize
        self._max = answer.s_maxbytes
        self._cache_maxbytes = cache_maxbytes
        self._budget = budget
        #: least recently opened first
        self._files: dict[int, IomapFile] = {}
        self._open: set[int] = set()
        self._retired = Counters()
        self._cached = 0
        self._clock = 0
        server.subscribe(self._on_invalidated)

    # -- files ----------------------------------------------------------------------------------------------

    def file(self, inode: Inode) -> IomapFile:
        """The state of an inode, made when there is none."""
        file = self._files.get(inode.ino)
        if file is None:
            if len(self._files) - len(self._open) > IDLE_FILES:
                self._retire()
            cache = IomapCache(self._block_size, self._max, self._cache_maxbytes)
            file = self._files[inode.ino] = IomapFile(inode, cache, self._devices)
        elif file.inode is not inode:
            # evicted and loaded again; what the cache knows is still true
            file.inode = inode
        return file

    def opened(self, file: IomapFile) -> None:
        """A handle was opened: bring the first mappings, unless some are known.  Raises Corrupt, DeviceError."""
        if file.inode.size and not len(file.cache):
            self._server.open_push(file.inode, file.push)
            self._account(file)
        ino = file.inode.ino
        self._files.pop(ino, None)
        self._files[ino] = file
        self._open.add(ino)

    def closed(self, inode: Inode) -> None:
        """The last handle of an inode is gone; its mappings stay until the room is needed.

        What cannot be given back now is no loss: it lies behind the end of the file, unwritten.
        """
        self._open.discard(inode.ino)
        try:
            self._server.closed(inode)
        except FsError as exc:
            log.error("inode %d: blocks past its end could not be freed: %s", inode.ino, exc)

    def _retire(self) -> None:
        """Forget an eighth of the files that nobody has open."""
        idle = (ino for ino, file in self._files.items() if ino not in self._open and not file.writes)
        for ino in list(islice(idle, IDLE_FILES // 8)):
            self._let_go(ino)

    def forget(self, ino: int) -> None:
        """Drop an inode's state: it was freed."""
        self._server.forget(ino)
        self._open.discard(ino)
        self._let_go(ino)

    def _let_go(self, ino: int) -> None:
        file = self._files.pop(ino, None)
        if file is not None:
            self._cached -= file.counted
            self._retired.add(file.counters)
            file.content += 1
            file.cache.clear()
            file.cache.touch()

    def counters(self) -> Counters:
        """Counts over all files since the start."""
        total = Counters()
        total.add(self._retired)
        for file in self._files.values():
            total.add(file.counters)
        return total

    def writing(self) -> bool:
        """Whether write plans are in flight."""
        return any(file.writes for file in self._files.values())

    def usage(self) -> tuple[int, int, int]:
        """(files with state, records in all caches, most records that there may be)."""
        records = sum(len(file.cache) for file in self._files.values())
        return len(self._files), records, self._budget // RECORD_BYTES

    # -- mappings (IOMAP.md 6.2) ----------------------------------------------------------------------------

    def _lookup(self, file: IomapFile, pos: int, count: int, opflags: int) -> Mapping | None:
        """Try the cache; None sends the caller to the server."""
        cache = file.cache
        if opflags & WRITE_LIKE:
            target = cache.lookup(_WRITE, pos, count)
            if target.result != NOFORK and (
                target.mapping is None or target.mapping.type != MapType.PURE_OVERWRITE
            ):
                if target.result == HIT:
                    raise NotSupported(f"inode {file.inode.ino}: writes that go elsewhere (copy on write)")
                return None
        mapping = cache.lookup(_READ, pos, count).mapping
        if mapping is None:
            return None
        if mapping.type in (_HOLE, _INLINE) and opflags & WRITE_LIKE and not opflags & HOLE_IS_FINE:
            return None
        return None if mapping.type == MapType.DELALLOC else mapping

    def mapping(
        self, file: IomapFile, pos: int, count: int, opflags: int, reserve: Reserve = Reserve.ROOT
    ) -> Mapping:
        """The mapping that covers `pos`, from the cache or the server; writes get blocks allocated.

        Raises FileTooBig, NoSpace, Corrupt, DeviceError.
        """
        counters = file.counters
        cached = not opflags & UNCACHED_OPS
        if cached:
            found = self._lookup(file, pos, count, opflags)
            if found is not None:
                counters.hits += 1
                return found
            counters.misses += 1
        for attempt in range(_TRIES + 1):
            self._make_room()
            push = file.push if cached and attempt < _TRIES else None
            read, write = self._server.begin(file.inode, pos, count, opflags, push, reserve)
            counters.upcalls += 1
            self._account(file)
            validate_begin(
                read, write, pos, block_size=self._block_size, max_file_bytes=self._max, devices=self._devices
            )
            if read.type != MapType.RETRY_CACHE:
                if opflags & _ATOMIC and not (has_device(read.type) and read.flags & _ATOMIC_BIO):
                    raise DeviceError(f"inode {file.inode.ino} byte {pos}: cannot be written atomically")
                if write.type != MapType.PURE_OVERWRITE:
                    raise NotSupported(f"inode {file.inode.ino}: writes that go elsewhere (copy on write)")
                return read
            if not cached:
                # newer kernels say so at once, older ones would look into a cache that may not be used (6.2)
                raise Corrupt("iomap reply", f"inode {file.inode.ino} byte {pos}", "RETRY_CACHE", "a mapping")
            counters.retries += 1
            found = self._lookup(file, pos, count, opflags)
            if found is not None:
                return found
        raise Corrupt("iomap reply", f"inode {file.inode.ino} byte {pos}", "RETRY_CACHE", "a mapping")

    def load(self, file: IomapFile) -> None:
        """Bring all mappings of a file into its cache, as reading it from start to end would.

        Raises Corrupt, UnsupportedFeature, DeviceError.
        """
        pos = allocated = 0
        while pos < self._max:
            mapping = self.mapping(file, pos, self._max - pos, 0)
            if has_device(mapping.type):
                allocated += mapping.length
                if allocated > self._devices[mapping.dev]:
                    raise Corrupt("blocks", f"inode {file.inode.ino}", "more than the device has")
            pos = mapping.end

    def _account(self, file: IomapFile) -> None:
        self._clock += 1
        file.used = self._clock
        now = file.cache.nbytes
        self._cached += now - file.counted
        file.counted = now

    def _make_room(self) -> None:
        """Keep the caches in their budget: those not asked for longest go first."""
        if self._cached > self._budget:
            self._drop_down_to(self._budget // 2)

    def shrink(self, part: float) -> None:
        """Drop caches until they hold `part` (0 to 1) of what they do now.  To be called between requests."""
        self._drop_down_to(int(self._cached * part))

    def _drop_down_to(self, target: int) -> None:
        for file in sorted(self._files.values(), key=lambda f: f.used):
            if self._cached <= target:
                return
            file.cache.clear()
            self._cached -= file.counted
            file.counted = 0

    # -- mappings that went away ----------------------------------------------------------------------------

    def _on_invalidated(self, ino: int, pos: int, length: int) -> None:
        file = self._files.get(ino)
        if file is not None:
            self._drop(file, pos, length)

    def _drop(self, file: IomapFile, pos: int, length: int) -> None:
        file.content += 1
        file.cache.invalidate(pos, length)
        # the cache may know nothing of the range while a plan does
        file.cache.touch()
        now = file.cache.nbytes
        self._cached += now - file.counted
        file.counted = now
