"""pyfuse3's part in the life of a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pyfuse3

from py4fs.fuse.clock import KernelClock
from py4fs.fuse.libfuse import waiting
from py4fs.fuse.libfuse.session import Session
from py4fs.fuse.libfuse.syncer import Syncer
from py4fs.fuse.mount import FuseOptions, MountError, MountPoint
from py4fs.fuse.privileges import Peek
from py4fs.fuse.timings import Timings
from py4fs.vfs import Vfs

_TASKS = 16  # requests that may wait (for durability) at a time while others are served


class LibfuseFrontEnd:
    """See :class:`py4fs.fuse.frontend.FrontEnd`."""

    def __init__(self, vfs: Vfs, clock: KernelClock | None, timings: Timings | None = None) -> None:
        self._vfs = vfs
        self._session = Session(vfs, clock)
        if timings is not None:
            timings.wrap_handlers(self._session, lambda name: hasattr(pyfuse3.Operations, name))
        self._waiting = waiting.install()
        self._session.syncer = self._syncer = Syncer(vfs, self._waiting)

    @property
    def requests(self) -> int:
        return self._session.requests

    def report(self) -> list[str]:
        return [f"{self.requests} requests", *self._vfs.report()]

    def on_destroy(self, close: Callable[[], None]) -> None:
        """libfuse does not pass the kernel's DESTROY on to pyfuse3, and mounts made this way do not get one."""

    def on_peek(self, peek: Peek) -> None:
        """No request of this session needs it."""

    def mount(self, where: MountPoint, options: FuseOptions, image: str) -> None:
        """What libfuse prints about a failure becomes the error's text."""
        # a kernel that looks at ACLs checks all permissions
        self._session.enable_acl = self._vfs.volume.options.acl and options.default_permissions
        try:
            with _stderr_text() as text:
                pyfuse3.init(self._session, where.for_libfuse(), options.for_libfuse(image))
        except RuntimeError as exc:
            why = text[0] if text else str(exc)
            raise MountError(errno.EIO, f"cannot mount on {where.path}: {why}") from exc

    async def serve(self) -> None:
        await pyfuse3.main(min_tasks=_TASKS, max_tasks=_TASKS)

    async def commit_now_and_then(self, interval: float) -> None:
        await self._syncer.run(interval)

    async def shrink(self, part: float) -> None:
        self._vfs.shrink(part)

    def thaw(self) -> None:
        """Nobody can freeze a mount of this session: it hears of no ioctl(2)."""

    def terminate(self) -> None:
        pyfuse3.terminate()
        # whoever reads may leave without another look at the lock, where the others wait
        self._waiting.reader.close()

    def at_rest(self) -> AbstractContextManager[None]:
        """It is: nothing runs besides :meth:`serve`."""
        return contextlib.nullcontext()

    def close(self) -> None:
        with _stderr_text():
            pyfuse3.close(unmount=True)


@contextlib.contextmanager
def _stderr_text() -> Iterator[list[str]]:
    """Collect what C code prints on descriptor 2, as lines that the caller can read afterwards."""
    lines: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            lines.extend(line.strip() for line in sink.read().decode(errors="replace").splitlines() if line.strip())
