"""What the life cycle of a mount needs from a session, whichever way its requests come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from py4fs.errors import NotSupported
from py4fs.fuse.clock import KernelClock
from py4fs.fuse.mount import FuseOptions, MountPoint
from py4fs.fuse.privileges import Peek
from py4fs.fuse.timings import Timings
from py4fs.vfs import Vfs


class FrontEnd(Protocol):
    """A session on a vfs, from mounting to the last request."""

    @property
    def requests(self) -> int:
        """Requests served so far."""

    def report(self) -> list[str]:
        """How the server does, in lines for a log."""

    def on_destroy(self, close: Callable[[], None]) -> None:
        """``close()`` is to be called when the kernel, which waits for that, says that it was the last request."""

    def on_peek(self, peek: Peek) -> None:
        """``peek`` is to be used to look at what a waiting process has offered."""

    def mount(self, where: MountPoint, options: FuseOptions, image: str) -> None:
        """Mount; requests wait until :meth:`serve`. Raises MountError."""

    async def serve(self) -> None:
        """Serve until the kernel says that the file system is unmounted, or :meth:`terminate`."""

    async def commit_now_and_then(self, interval: float) -> None:
        """Write changes every ``interval`` seconds, for ever."""

    async def shrink(self, part: float) -> None:
        """Keep ``part`` (0 to 1) of what is cached in memory and can be read again."""

    def thaw(self) -> None:
        """End a freeze: the mount is about to end, and writes must not wait for ever."""

    def terminate(self) -> None:
        """Let :meth:`serve` return although the file system is still mounted."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Within it nothing is served and nothing is written: the file system can be closed."""

    def close(self) -> None:
        """Let go of the connection. More than once is fine."""


def open_frontend(
    kind: str, vfs: Vfs, clock: KernelClock | None, timings: Timings | None, iomap: str = "auto"
) -> FrontEnd:
    """A front end: ``direct`` or ``pyfuse3``; ``iomap``: ``auto``, ``off`` or ``require``.

    Its requests are measured with ``timings``.
    Raises ImportError where pyfuse3 is not installed, NotSupported when it is to have iomap.
    """
    if kind == "direct":
        from py4fs.fuse.direct.frontend import DirectFrontEnd

        return DirectFrontEnd(vfs, clock, timings, iomap)
    if iomap == "require":
        raise NotSupported("iomap=require: only the direct session has it")
    from py4fs.fuse.libfuse.frontend import LibfuseFrontEnd

    return LibfuseFrontEnd(vfs, clock, timings)
