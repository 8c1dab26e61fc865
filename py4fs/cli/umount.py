"""`py4fs umount DIR`: unmount, then wait until the server has put everything on disk and gone."""

from __future__ import annotations

import argparse
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError, about, add_debug, tell
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.fuse.mountinfo import Mount
    from py4fs.fuse.record import Watcher

_PATIENCE = 3.0  # seconds of waiting after which the user is told for what


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "umount",
        help="unmount, and wait until everything is on disk",
        description="Unmount a py4fs mount and wait until its server has written everything and ended.",
    )
    parser.add_argument("target", metavar="DIR", help="mount point (or the image that is mounted)")
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """umount(8)'s exit codes: 0 unmounted and on disk, 2 the last write failed, 32 not unmounted."""
    from py4fs.fuse import mount, mountinfo

    target = os.path.realpath(args.target)
    found = _mount_of(args.target, target)
    if found is None:
        return _already_unmounted(args.target, target)
    watchers = mount.watchers_for(found)
    was_alive = any(watcher.alive for watcher in watchers)
    try:
        mount.unmount(found.mountpoint)
    except FsError as exc:
        raise CommandError(about(args.target, exc), int(getattr(exc, "exit_code", EXIT_MOUNT))) from exc
    if any(other.device == found.device for other in mountinfo.mounts()):
        return 0  # bound, or mounted, elsewhere too: the server goes on
    if not watchers:
        _await_image(found)
        return 0
    code = _outcome(watchers)
    if code and not was_alive:
        return 0  # it had died before; the line has said so, and unmounting is what was asked for
    return code


def _mount_of(given: str, target: str) -> Mount | None:
    """The py4fs mount that the user means: at this directory, or of this image."""
    from py4fs.fuse import mountinfo

    found = mountinfo.at(target)
    if found is not None and not found.is_py4fs:
        raise CommandError(f"{given}: not a py4fs mount (its type is {found.fstype})", EXIT_MOUNT)
    if found is None:
        by_image = mountinfo.of_image(target)
        if len(by_image) > 1:
            where = ", ".join(m.mountpoint for m in by_image)
            raise CommandError(f"{given}: mounted more than once ({where}); name the directory", EXIT_MOUNT)
        found = by_image[0] if by_image else None
    return found


def _already_unmounted(given: str, target: str) -> int:
    """Nothing is mounted there, but a server may still be writing after somebody else unmounted it."""
    from py4fs.fuse import record

    for key in ("mountpoint", "image"):
        watchers = record.find(**{key: target}, uid=os.geteuid())
        if any(watcher.alive for watcher in watchers):
            return _outcome(watchers)
    raise CommandError(f"{given}: not mounted", EXIT_MOUNT)


def _outcome(watchers: list[Watcher]) -> int:
    """Wait for the servers to end and say how the last write went."""
    code = 0
    for watcher in watchers:
        known = watcher.record
        with _patience(f"{known.image}: waiting for the server (pid {known.pid}) to finish writing"):
            last = watcher.wait()
        watcher.close()
        if last.state == "failed":
            tell(f"{last.image}: unmounted, but not everything could be written: {last.error}")
            code = EXIT_SYSTEM
        elif last.state == "serving":
            tell(f"{last.image}: the server died before it had written everything; check it with e2fsck -f")
            code = EXIT_SYSTEM
    return code


def _await_image(found: Mount) -> None:
    """A server without a record: its lock on the image shows how long it lives."""
    try:
        fd = os.open(found.source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        tell(f"{found.source}: unmounted; whether the server has finished writing cannot be seen")
        return
    try:
        with _patience(f"{found.source}: waiting for the server to finish writing"):
            fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


@contextmanager
def _patience(message: str) -> Iterator[None]:
    """Say what is being waited for, once it has taken a while."""
    timer = threading.Timer(_PATIENCE, tell, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
