"""Inodes that the kernel had better forget, so that it asks for them anew.

With the writeback cache the kernel goes by its own change time of a regular file for as long as it has the inode
(fuse_change_attributes), whatever it is told; but its FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR and FS_IOC_SETVERSION do not
change that time (fuse_fileattr_set). FUSE_NOTIFY_PRUNE (Linux 6.18) makes it drop an inode that nobody uses, so it is
sent when the descriptor of such an ioctl has been closed.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from py4fs.fuse.direct import notifications

_DELAYS: Final[Sequence[float]] = (0.001, 0.02, 0.2, 1.0, 5.0)
"""Seconds before each attempt: the kernel lets go of a descriptor's inode after it has sent RELEASE."""


class Pruning:
    """Which inodes they are. To be called under the vfs lock."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        """`send(message)` gives the errno of the kernel's answer to a notification, 0 for none; in a thread."""
        self._send = send
        self._nodeids: set[int] = set()

    def add(self, nodeid: int) -> None:
        self._nodeids.add(nodeid)

    def forgotten(self, nodeid: int) -> None:
        """The kernel has dropped it."""
        self._nodeids.discard(nodeid)

    def released(self, nodeid: int) -> None:
        """A descriptor was closed, maybe not the last one."""
        if nodeid in self._nodeids:
            # in a thread, since the kernel waits for READs under way before it drops their pages
            threading.Thread(target=self._prune, args=(nodeid,), name="py4fs-prune", daemon=True).start()

    def _prune(self, nodeid: int) -> None:
        for delay in _DELAYS:
            time.sleep(delay)
            if nodeid not in self._nodeids:
                return
            if self._send(notifications.prune([nodeid])) == errno.EINVAL:
                self._nodeids.clear()  # a kernel before 6.18, which keeps its time
                return
