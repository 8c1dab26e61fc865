"""The server's process itself: its lock file, what the kernel is to think of it when memory is short,
and Python's collector."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from py4fs.errors import Busy
from py4fs.fuse.mount import MountError

_PR_SET_IO_FLUSHER: Final = 57
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def lock_file(path: str) -> Iterator[None]:
    """A file that exists as long as this process serves. Raises Busy when it is there already, MountError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise Busy(f"the lock file {path} exists: another server has the image (or was killed)") from None
    except OSError as exc:
        raise MountError(exc.errno or errno.EIO, f"lock file {path}: {exc.strerror}") from exc
    try:
        os.write(fd, b"%d\n" % os.getpid())
        os.close(fd)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108


def set_oom_score(score: int) -> None:
    """How ready the kernel is to end this process when memory is short, -1000 to 1000. Raises MountError."""
    try:
        Path("/proc/self/oom_score_adj").write_text(f"{score}\n", encoding="ascii")
    except OSError as exc:
        raise MountError(exc.errno or errno.EIO, f"oom_score_adj={score}: {exc.strerror}") from exc


def flushes_for_the_kernel() -> None:
    """This process writes what the kernel wants to be rid of: making room for its memory must not wait for itself
    (prctl(2), PR_SET_IO_FLUSHER). For root only; without it the kernel is just less careful."""
    _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def notify(message: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3)). It may be gone: no harm."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(message.encode(), address)


def spare_the_collector() -> None:
    """What is here now stays, and most of what comes lives long in caches: look for garbage cycles rarely."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
