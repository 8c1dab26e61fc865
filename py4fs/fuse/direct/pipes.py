"""READ replies whose data goes from the image's page cache to the client's without passing through this process.

A pipe takes the reply's header and then pages of the image (splice(2)); /dev/fuse takes all of it in one call. The
pages are not moved (FUSE_SPLICE_MOVE): that would take them out of the image's page cache.

What is in the pipe are references to pages: until /dev/fuse has copied them the plan of the read has to stay pinned, so
that no block of it gets other contents. Where anything does not go as it should, the pipe is thrown away.
"""

from __future__ import annotations

import fcntl
import logging
import os
from typing import Final

from py4fs.device.base import Spliced

log = logging.getLogger(__name__)

LEAST: Final = 256 << 10
"""Bytes of data below which copying costs no more than the system calls that splicing takes."""
_SIZE: Final = 1 << 20
"""Of a pipe, in bytes: what everybody may have (/proc/sys/fs/pipe-max-size)."""
_PAGE: Final = 4096
MOST: Final = _SIZE - 2 * _PAGE
"""Bytes of data at most: such a pipe has a place for each page, of which the header takes one, and data that begins
within a page another."""


class ReplyPipe:
    """One reading thread's pipe to /dev/fuse; made when it is needed first."""

    def __init__(self, fuse: int) -> None:
        """`fuse`: descriptor of /dev/fuse."""
        self._fuse = fuse
        self._ends: tuple[int, int] | None = None
        self._usable = hasattr(os, "splice")

    def fill(self, header: bytes, device: Spliced, offset: int, length: int) -> bool:
        """Put a reply into the pipe: header, and `length` (LEAST to MOST) bytes of the device.

        False: it did not work, there is nothing in the pipe, and the data had better be read, which tells why.
        """
        if not self._usable:
            return False
        try:
            _, enter = self._ends = self._ends or self._open()
            os.write(enter, header)
            if device.splice(offset, length, enter) == length:
                return True
        except OSError as exc:
            log.debug("splice: %s", exc.strerror)
        self.clear()
        return False

    def send(self, length: int) -> None:
        """Let /dev/fuse take the reply that is in the pipe, `length` bytes with its header. Raises OSError."""
        assert self._ends is not None, "filled before"
        try:
            done = os.splice(self._ends[0], self._fuse, length)
        except OSError:
            self.clear()
            raise
        if done != length:
            self.clear()

    def clear(self) -> None:
        """Throw away what is in the pipe."""
        ends, self._ends = self._ends, None
        for fd in ends or ():
            os.close(fd)

    def _open(self) -> tuple[int, int]:
        """Raises OSError; then splicing is given up: there are more pipes than a user may have."""
        leave, enter = os.pipe()
        try:
            if fcntl.fcntl(enter, fcntl.F_SETPIPE_SZ, _SIZE) < _SIZE:
                raise OSError(0, "small pipes only")
        except OSError:
            self._usable = False
            os.close(leave)
            os.close(enter)
            raise
        return leave, enter
