"""What the kernel is told without having asked: mappings to keep, mappings and device bytes to drop.

Only written places and holes go into its caches. What is unwritten it has to ask for, at every write and again when
it writes the page back: so it is known whose conversion (IOEND) is still to come, which syncfs and freezing wait for
(IOMAP.md 9.14). So it has to before it writes into an inode, which may have no room for that. The write fork stays
unused: all writes go where reads come from (9.4).
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from py4fs.iomap import protocol as iomap
from py4fs.iomap.ranges import Ranges
from py4fs.iomap.records import INVAL_TO_EOF, Mapping, MapType, has_device, nocache

log = logging.getLogger(__name__)

_PAGE: Final = 4096
MOST_AT_ONCE: Final = 64
"""Mappings sent for one request at most: each takes a system call of about 0.2 ms (IOMAP.md section 11)."""
IOEND_TIMEOUT: Final = 5.0
"""Seconds; the kernel may have dropped what it was about to write."""
_SOFT: Final = frozenset({errno.EINVAL, errno.ENOMEM, errno.ESTALE, errno.ENODEV, errno.ENOTCONN})
"""The kernel may decline: no room, the inode is gone or not made yet, the connection is over."""


class KernelMaps:
    """Of one connection. To be called under the vfs lock, :meth:`wait_for_ioends` excepted."""

    def __init__(self, send: Callable[[bytes], int], nodeid: Callable[[int], int]) -> None:
        """`send(notification)` returns 0 or the errno; `nodeid(inode number)`: how the kernel calls it."""
        self._send = send
        self._nodeid = nodeid
        self._cookie = 0
        self._offset = 0
        self._block = 0
        self._limit = 0
        self._cached: set[int] = set()  # inodes that have a cache in the kernel
        self._converting: dict[int, Ranges] = {}
        self._changed = threading.Condition()
        #: seconds to wait for conversions
        self.ioend_timeout = IOEND_TIMEOUT

    def start(self, cookie: int, offset: int, block_size: int, max_file_bytes: int) -> None:
        """From now on mappings are on the device `cookie`, on which the file system starts at byte `offset`."""
        self._cookie, self._offset = cookie, offset
        self._block, self._limit = block_size, max_file_bytes

    def outgoing(self, mapping: Mapping) -> Mapping:
        """A mapping as the kernel wants it: its addresses count from the start of the registered device."""
        if not has_device(mapping.type):
            return mapping
        return mapping._replace(addr=mapping.addr + self._offset, dev=self._cookie)

    def push(self, ino: int, mappings: Sequence[Mapping]) -> bool:
        """Put mappings into the kernel's cache, the first one above all; False: that one is not there."""
        asked, *ahead = mappings
        if not _keeps(asked):
            return False
        ahead = [mapping for mapping in ahead if _keeps(mapping)][: MOST_AT_ONCE - 1]
        # it goes last: a cache at its size limit drops everything, but never what came last
        return all(self._upsert(ino, mapping) for mapping in [*ahead, asked])

    def _upsert(self, ino: int, mapping: Mapping) -> bool:
        nodeid = self._nodeid(ino)
        message = iomap.upsert_mappings(nodeid, ino, self.outgoing(mapping), nocache(self._block))
        if self._failed("upsert", ino, self._send(message)):
            return False
        self._cached.add(ino)
        return True

    def _failed(self, what: str, ino: int, code: int) -> bool:
        if code == errno.ESTALE:
            self._cached.discard(ino)
        elif code and code not in _SOFT:
            log.error("iomap %s of inode %d: the kernel says %s", what, ino, errno.errorcode.get(code, code))
        return code != 0

    def invalidate(self, ino: int, pos: int, length: int) -> None:
        """Mappings of [pos, pos + length) are not true any more; INVAL_TO_EOF: to the end."""
        if ino not in self._cached or not length:
            return
        first = pos - pos % self._block
        if first >= self._limit:
            return
        end = None if length == INVAL_TO_EOF or pos + length >= self._limit else -(-(pos + length) // self._block)
        size = INVAL_TO_EOF if end is None else end * self._block - first
        if first == 0 and end is None:
            # in one go the kernel drops the fork and does not notice that mappings in use went with it (9.3)
            self._inval(ino, self._block, INVAL_TO_EOF)
            size = self._block
        self._inval(ino, first, size)

    def _inval(self, ino: int, pos: int, length: int) -> None:
        message = iomap.inval_mappings(self._nodeid(ino), ino, (pos, length), (0, 0))
        self._failed("invalidation", ino, self._send(message))

    def device_changed(self, offset: int, length: int) -> None:
        """Bytes of the device are metadata no longer: the page cache must not write them over file data."""
        code = self._send(iomap.dev_inval(self._cookie, self._offset + offset, length))
        if code and code not in _SOFT:
            log.error("iomap device invalidation at %d: the kernel says %s", offset, errno.errorcode.get(code, code))

    def forget(self, ino: int) -> None:
        """The kernel has dropped the inode, and its cache with it."""
        self._cached.discard(ino)
        with self._changed:
            self._converting.pop(ino, None)
            self._changed.notify_all()

    # --- conversions that are to come -------------------------------------------------------------

    def writing(self, ino: int, pos: int, count: int) -> None:
        """The kernel writes pages of [pos, pos + count) to unwritten blocks now, and will say when that is done."""
        with self._changed:
            self._converting.setdefault(ino, Ranges()).add(pos, pos + count)

    def written(self, ino: int, pos: int, count: int) -> None:
        """It has said so, or that it failed."""
        with self._changed:
            ranges = self._converting.get(ino)
            if ranges is None:
                return
            # the last one ends with the file, inside of the page that was announced
            unit = max(self._block, _PAGE)
            ranges.discard(pos - pos % self._block, -(-(pos + max(count, 1)) // unit) * unit)
            if not len(ranges):
                del self._converting[ino]
                self._changed.notify_all()

    def wait_for_ioends(self) -> None:
        """Return when all is said, or after `ioend_timeout`. Without the lock, while others serve the kernel."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._converting, self.ioend_timeout):
                log.warning("iomap: %d file(s) still wait for the end of their writes", len(self._converting))
                self._converting.clear()


def _keeps(mapping: Mapping) -> bool:
    return mapping.type in (MapType.MAPPED, MapType.HOLE)
