"""Multiple mount protection of a mount: the periodic sign of life."""

from __future__ import annotations

import logging

import trio

from py4fs.errors import FsError
from py4fs.vfs import Vfs

log = logging.getLogger(__name__)


async def beat(vfs: Vfs) -> None:
    """Refresh the mmp block for as long as the mount lives; a task. Its I/O holds up no request.

    When another host has taken the image over nothing is written any more, and the task ends.
    """
    while vfs.mmp_interval is not None:
        await trio.sleep(vfs.mmp_interval)
        try:
            await trio.to_thread.run_sync(vfs.mmp_refresh)
        except FsError as exc:
            log.error("%s", exc)
            return
