"""The life of a mount: mount, serve, commit now and then, and end with everything on disk.

Ways to end: somebody unmounts (umount, fusermount3 -u, py4fs umount), which the kernel completes only after
it has sent every dirty page; or SIGTERM, SIGINT or SIGHUP, on which the server unmounts by itself. The
session has to go on serving during that, because unmounting makes the kernel write; so unmounting runs in a
thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from py4fs.api import Filesystem
from py4fs.errors import FsError
from py4fs.fuse import heartbeat, mount, mountinfo, pressure, privileges, process
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.direct.pipes import MOST
from py4fs.fuse.frontend import open_frontend
from py4fs.fuse.mount import FuseOptions, MountError, MountPoint
from py4fs.fuse.privileges import Janitor
from py4fs.fuse.record import Keeper, Record
from py4fs.fuse.timings import Timings

log = logging.getLogger(__name__)
# who asks for a report wants to see it, whatever the log is set to
_report = logging.getLogger("py4fs.report")
_report.setLevel(logging.INFO)

_ANSWER_TIMEOUT = 30.0  # seconds for the first answer of a fresh mount
_QUIET = 0.2  # seconds without a request after which the kernel is taken to have nothing more to write
_QUIET_LIMIT = 10.0  # what goes on writing for ever cannot be waited for
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Serving:
    """What to serve, where, and how."""

    image: str  # absolute path
    mountpoint: MountPoint
    options: FuseOptions
    commit_interval: float = 5.0  # seconds
    clock: KernelClock | None = None  # the file system's clock, which follows the kernel's times
    session: str = "direct"  # or pyfuse3
    iomap: str = "auto"  # off, require
    timings: Timings | None = None  # filled when given, and reported
    keep_privileges: bool = False  # a server of root stays all that root is


def serve(filesystem: Filesystem, what: Serving, ready: Callable[[], None]) -> int:
    """Mount the open file system, serve it until it is unmounted, close it. Returns mount(8)'s exit code.

    `ready()` is called when the mount answers. MountError before that: nothing is mounted, the file system is
    closed. After that, errors go to the log, to the server's record and into the exit code.
    """
    try:
        server = _Server(filesystem, what, ready)
    except BaseException:
        filesystem.close()
        raise
    # Signals wait until somebody listens, and are ignored once everything is being closed: none of them may end
    # the process between the last request and the last write.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # what trio's receiver puts back when it is done
    try:
        server.mount()
    except BaseException:
        filesystem.close()
        server.dismiss()
        raise
    process.spare_the_collector()
    failure: BaseException | None = None
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # never the end of a server that is about to start or to stop
    try:
        trio.run(server.run)
    except BaseException as exc:  # noqa: BLE001  (told below, after everything is on disk)
        failure = _first_leaf(exc)
    error = server.shut_down("" if failure is None else f"the session ended by an error: {failure}")
    if failure is not None and not server.announced:
        raise failure
    return 2 if error else 0


def _first_leaf(exc: BaseException) -> BaseException:
    """trio wraps what its tasks raise in groups; one line for the user needs one exception."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _panic() -> None:
    """errors=panic: nothing is written any more, not even what waits; the journal has what was committed."""
    log.critical("errors=panic: the server stops")
    os._exit(2)


class _Server:
    def __init__(self, filesystem: Filesystem, what: Serving, ready: Callable[[], None]) -> None:
        self._filesystem = filesystem
        self._vfs = filesystem.vfs
        self._what = what
        self._where = what.mountpoint.path
        self._ready = ready
        self._front = open_frontend(what.session, self._vfs, what.clock, what.timings, what.iomap)
        self._front.on_destroy(self._close_filesystem)
        self._closed = False
        self._close_error = ""
        self._vfs.volume.on_panic = _panic
        self._keeper: Keeper | None = None
        self._janitor: Janitor | None = None
        self._device = ""
        self.announced = False

    def mount(self) -> None:
        """Mount, and let go of root's privileges. Raises MountError."""
        what = self._what
        gives_up = os.geteuid() == 0 and what.session == "direct" and not what.keep_privileges
        if gives_up and not what.mountpoint.passed:
            self._janitor = Janitor(self._where)
            self._front.on_peek(self._janitor.peek)
        self._front.mount(what.mountpoint, what.options, what.image)
        self._pressure = pressure.Monitor(pressure.pressure_files())
        if os.geteuid() == 0:
            process.flushes_for_the_kernel()
        if gives_up:
            try:
                privileges.drop()
            except OSError as exc:
                log.warning("%s: the server keeps its privileges: %s", what.image, exc.strerror)

    def dismiss(self) -> None:
        """Let the janitor go."""
        if self._janitor is not None:
            self._janitor.close()

    def _take_away(self, *, lazy: bool = False) -> None:
        """Unmount. Raises MountError."""
        if self._janitor is not None:
            self._janitor.unmount(lazy=lazy)
        else:
            mount.unmount(self._where, lazy=lazy)

    def _ask(self) -> None:
        """Return when the mount has answered. Raises OSError."""
        if self._janitor is not None:
            self._janitor.stat()
        else:
            os.stat(self._where)  # noqa: PTH116

    def _open(self) -> int:
        """A descriptor of the mount's root. Raises OSError."""
        if self._janitor is not None:
            return self._janitor.open()
        return os.open(self._where, os.O_RDONLY | os.O_DIRECTORY)

    async def run(self) -> None:
        """Serve until the kernel says that the file system is unmounted, or a signal asks to end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._handle_signals)
            nursery.start_soon(self._report_when_asked)
            nursery.start_soon(self._announce)
            nursery.start_soon(pressure.watch, self._pressure, self._front.shrink)
            if not self._what.options.readonly and math.isfinite(self._what.commit_interval):
                nursery.start_soon(self._front.commit_now_and_then, self._what.commit_interval)
                nursery.start_soon(heartbeat.beat, self._vfs)
            await self._front.serve()
            nursery.cancel_scope.cancel()

    def shut_down(self, error: str) -> str:
        """Put everything on disk and go; returns why that failed, or an empty string."""
        with self._front.at_rest():
            self._close_filesystem()
        error = error or self._close_error
        if self._still_ours():
            try:
                self._take_away(lazy=True)
            except MountError as exc:
                log.error("%s: %s", self._what.image, exc)
        self._front.close()
        self.dismiss()
        if self._keeper is not None:
            self._keeper.finish(error)
        if self._what.timings is not None:
            for line in self._what.timings.report():
                log.info("%s: %s", self._what.image, line)
        log.info("%s: unmounted%s", self._what.image, f", but {error}" if error else "")
        return error

    def _close_filesystem(self) -> None:
        """Close it, once; what fails is kept for :meth:`shut_down`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._filesystem.close()
        except Exception as exc:
            known = isinstance(exc, (FsError, OSError))
            log.error("%s: closing failed: %s", self._what.image, exc, exc_info=None if known else exc)
            self._close_error = str(exc) or type(exc).__name__

    async def _announce(self) -> None:
        """Once the mount answers: leave the record, tell the caller."""
        if self._what.mountpoint.passed:  # where it is mounted, or will be, is not ours to know
            self.announced = True
            log.info("%s: serving %s, server %d", self._what.image, self._where, os.getpid())
            self._ready()
            return
        with trio.move_on_after(_ANSWER_TIMEOUT) as scope:
            await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        if scope.cancelled_caught:
            raise MountError(errno.ETIMEDOUT, "the kernel did not answer after mounting")
        found = mountinfo.at(self._where)
        if found is None:
            return  # unmounted again already
        self._device = found.device
        self._tune_readahead()
        self._keeper = Keeper.create(Record(os.getpid(), found.device, self._what.image, self._where))
        self.announced = True
        log.info("%s: mounted at %s, server %d", self._what.image, self._where, os.getpid())
        self._ready()

    def _tune_readahead(self) -> None:
        """Let the kernel read ahead as far as one reply without copying goes: its default is an eighth of that.

        Once iomap is on it has other settings, with the default again, under a name of their own (IOMAP.md section 10).
        """
        bdi = Path("/sys/class/bdi")
        for settings in (bdi / self._device, *bdi.glob(f"{self._device}-fuse*.iomap")):
            with contextlib.suppress(OSError):
                (settings / "read_ahead_kb").write_text(str(MOST >> 10), encoding="ascii")

    async def _handle_signals(self) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            async for number in signals:
                log.info("%s: signal %d, unmounting", self._what.image, number)
                with trio.move_on_after(_QUIET_LIMIT + 10):
                    await self._unmount()
                self._front.terminate()
                return

    async def _report_when_asked(self) -> None:
        """SIGUSR1: say in the log how the server does."""
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                times = self._what.timings.report() if self._what.timings is not None else ()
                for line in (*self._front.report(), *times):
                    _report.info("%s: %s", self._what.image, line)

    async def _unmount(self) -> None:
        """Unmount while serving, because unmounting makes the kernel write."""
        await trio.to_thread.run_sync(self._front.thaw)
        if not self._still_ours():
            return
        if sum(other.device == self._device for other in mountinfo.mounts()) > 1:
            log.warning("%s: mounted elsewhere, too; detaching it", self._what.image)
            await self._try_to_detach()
            return
        try:
            await trio.to_thread.run_sync(self._take_away, abandon_on_cancel=True)
        except MountError as exc:
            log.warning("%s: %s; detaching it", self._what.image, exc)
            await self._try_to_detach()

    async def _try_to_detach(self) -> None:
        try:
            await self._detach()
        except OSError as exc:
            log.error("%s: detaching failed: %s", self._what.image, exc)

    async def _detach(self) -> None:
        """For a mount with open files, or one of several: have its dirty pages written, take the mount away."""
        fd = await trio.to_thread.run_sync(self._open, abandon_on_cancel=True)
        try:
            await trio.to_thread.run_sync(mount.syncfs, fd, abandon_on_cancel=True)
            await trio.to_thread.run_sync(lambda: self._take_away(lazy=True), abandon_on_cancel=True)
            await trio.to_thread.run_sync(mount.syncfs, fd, abandon_on_cancel=True)
            await self._quiet()
        finally:
            await trio.to_thread.run_sync(os.close, fd, abandon_on_cancel=True)

    def _still_ours(self) -> bool:
        """Whether what is mounted at our path is us, and not a later mount over or instead of us."""
        found = mountinfo.at(self._where)
        return found is not None and found.is_py4fs and self._device in ("", found.device)

    async def _quiet(self) -> None:
        """Wait until the kernel stops sending requests: syncfs(2) only starts the writing on FUSE."""
        with trio.move_on_after(_QUIET_LIMIT):
            seen = -1
            while seen != self._front.requests:
                seen = self._front.requests
                await trio.sleep(_QUIET)
