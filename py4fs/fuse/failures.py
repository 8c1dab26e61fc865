"""What a request that failed is answered with, for both sessions: an errno, and a line in the log where it matters."""

from __future__ import annotations

import errno
import logging

from py4fs.errors import Corrupt, DeviceError, FsError
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)

_REMEMBERED = 1000


class Refused(FsError):
    """An answer that is no failure, and so not logged: ENOSYS for what the kernel shall do by itself."""

    def __init__(self, code: int = errno.ENOSYS) -> None:
        super().__init__(code, "refused")


class Failures:
    """Errnos of exceptions. Damage, device failures and bugs are logged, each text once."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._complaints: set[str] = set()

    def errno_of(self, request: str, exc: Exception) -> int:
        """The errno to answer with. Damage is passed on to the vfs, which may turn read-only."""
        if isinstance(exc, FsError):
            if isinstance(exc, (Corrupt, DeviceError)):
                self.complain("%s: %s", request, exc)
                self._vfs.note_error(exc)
            return exc.errno or errno.EIO
        if isinstance(exc, MemoryError):
            self.complain("%s: out of memory", request)
            return errno.ENOMEM
        log.error("%s: unexpected %s: %s", request, type(exc).__name__, exc, exc_info=exc)
        return errno.EIO

    def complain(self, text: str, *args: object) -> None:
        """Log an error, unless the same line was logged before."""
        line = text % args
        if line not in self._complaints and len(self._complaints) < _REMEMBERED:
            self._complaints.add(line)
            log.error("%s", line)
