"""A server of root reads what strangers have written: before it does, it gives up all that root may.

What it cannot do without is done by a small process of its own, made before, that never sees a byte of the image: the
janitor. It unmounts and opens the one directory that it was made for, and tells the flags of an EXT4_IOC_SHUTDOWN that
a process is waiting in (see :meth:`Janitor.peek`). It ends with the server.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from py4fs.fuse import mount
from py4fs.fuse.mount import MountError

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAP_LAST: Final = 63
_CAP_DAC_READ_SEARCH, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 2, 19, 21
_CAPABILITY_VERSION_3: Final = 0x20080522
_MESSAGE: Final = 4096
_U32: Final = 0xFFFFFFFF
_libc = ctypes.CDLL(None, use_errno=True)

Peek = Callable[[int, int, int], int | None]
"""(thread, ioctl's number, address) -> the number (32 bits) there, None when it cannot be seen."""


def drop(keep: tuple[int, ...] = ()) -> None:
    """Give up every capability but those of ``keep``, and the chance to get any by running a program.

    For the calling thread and those that it starts, so it comes before all of them. Raises OSError.
    """
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for number in range(_CAP_LAST + 1):
        if number not in keep:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails for those that this kernel does not have
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    bits = sum(1 << number for number in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice
    _checked(_libc.capset(header, data))


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Janitor:
    """The server's end. Its methods may be called from any thread."""

    def __init__(self, directory: str) -> None:
        """Start it for a mount at this (resolved) path; before there are any threads."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            _run(theirs, directory)
        theirs.close()
        self._socket.recv(_MESSAGE)  # from now on it has nothing open of what is ours

    def unmount(self, *, lazy: bool = False) -> None:
        """As :func:`py4fs.fuse.mount.unmount`. Raises MountError."""
        self._ask("lazy" if lazy else "unmount")

    def stat(self) -> None:
        """Return when the mount answers a stat(2). Raises MountError."""
        self._ask("stat")

    def open(self) -> int:
        """A descriptor of the directory. Raises MountError."""
        fds = self._ask("open")
        if not fds:
            raise MountError(errno.EIO, "no descriptor came")
        return fds[0]

    def peek(self, thread: int, command: int, address: int) -> int | None:
        """The number (32 bits) at an address of a thread that waits in ioctl(fd, command, address); None: it does not,
        or the janitor is unmounting, which may wait for the caller."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._socket.send(f"peek {thread} {command} {address}".encode())
            text = self._socket.recv(_MESSAGE).decode()
        except OSError:
            return None
        finally:
            self._lock.release()
        return int(text) if text.isdecimal() else None

    def _ask(self, request: str) -> list[int]:
        with self._lock:
            try:
                self._socket.send(request.encode())
                data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, 1)
            except OSError as exc:
                raise MountError(exc.errno or errno.EIO, f"the janitor has gone: {exc.strerror}") from exc
        code, _, text = data.decode(errors="replace").partition(" ")
        if code != "0":
            raise MountError(int(code or errno.EIO), text or "the janitor has gone")
        for fd in fds:
            os.set_inheritable(fd, False)
        return fds

    def close(self) -> None:
        """Let it end, and wait for that. More than once is fine."""
        self._socket.close()
        if self._pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


def _run(channel: socket.socket, directory: str) -> NoReturn:
    """The janitor's process, until the server has gone."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # they mean the server, which needs us to end
        _let_go_of_everything_but(channel.fileno())
        drop((_CAP_DAC_READ_SEARCH, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN))
        channel.send(b"0 ")
        while request := channel.recv(_MESSAGE):
            _answer(channel, request.decode(), directory)
    finally:
        os._exit(0)


def _let_go_of_everything_but(kept: int) -> None:
    """An image or a connection that stays open here would outlive the server."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _answer(channel: socket.socket, request: str, directory: str) -> None:
    word, *arguments = request.split()
    if word == "peek":
        thread, command, address = map(int, arguments)
        found = peek(thread, command, address)
        channel.send(b"none" if found is None else b"%d" % found)
        return
    actions: dict[str, Callable[[], object]] = {
        "unmount": lambda: mount.unmount(directory),
        "lazy": lambda: mount.unmount(directory, lazy=True),
        "stat": lambda: os.stat(directory),  # noqa: PTH116
    }
    try:
        if word == "open":
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            channel.sendmsg([b"0 "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            os.close(fd)
            return
        actions[word]()
    except OSError as exc:
        channel.send(f"{exc.errno or errno.EIO} {exc.strerror or exc}".encode())
    else:
        channel.send(b"0 ")


def peek(thread: int, command: int, address: int) -> int | None:
    """As :meth:`Janitor.peek`, by this process itself.

    Nothing is read but what the thread has offered: it has to be waiting in just that system call.
    """
    try:
        # number, then its arguments in hexadecimal; "running" where it does not wait (proc(5))
        fields = Path(f"/proc/{thread}/syscall").read_text(encoding="ascii").split()
        if len(fields) < 4 or (int(fields[2], 16) & _U32, int(fields[3], 16)) != (command, address):
            return None
        fd = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int.from_bytes(os.pread(fd, 4, address), "little")
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None
