"""`mount -o service`: a contained service serves the mount; and `py4fs service`, that service."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from py4fs.cli import options, serving
from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError, UsageError, about, add_debug, notices, one_line
from py4fs.cli.options import MountSettings
from py4fs.errors import FsError, ReadOnly

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.fuse.mount import MountPoint

_SUPERVISION = 60.0  # seconds that the service may take for the journal's replay and all else before the mount


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "service",
        help="serve one mount for `mount -o service` (a service manager starts this)",
        description="Serve one mount that `py4fs mount -o service` makes: image and /dev/fuse come through the socket "
        "that the service manager hands over, see systemd/py4fs.socket.",
    )
    add_debug(parser)


def mount(name: str, image: str, directory: MountPoint, words: list[str], settings: MountSettings) -> int:
    """Have the service at ``settings.service`` serve the image. Exit codes as those of any mount."""
    from py4fs.fuse.direct import mounting

    if os.geteuid() != 0:
        raise UsageError("option service: only root may give it")
    if settings.lockfile is not None:
        raise UsageError("option lockfile: not with a service, which has no place for it")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(_SUPERVISION)
            channel.connect(settings.service or "")
            fuse = mounting.open_fuse()
            try:
                return _negotiate(channel, fuse, name, image, directory, words, settings)
            finally:
                os.close(fuse)
    except FsError as exc:
        raise CommandError(about(name, exc), serving.exit_code(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{settings.service}: {exc.strerror or exc}", EXIT_SYSTEM) from exc


def _negotiate(
    channel: socket.socket,
    fuse: int,
    name: str,
    image: str,
    directory: MountPoint,
    words: list[str],
    settings: MountSettings,
) -> int:
    from py4fs.device.file import FileDevice
    from py4fs.fuse import service
    from py4fs.fuse.direct import mounting

    readonly = settings.readonly or settings.norecovery
    try:
        devices = [FileDevice.open(image, readonly=readonly)]
    except ReadOnly:
        if readonly or not serving.goes_on_read_only(name, settings):
            raise
        readonly, words = True, [*words, "ro"]
        devices = [FileDevice.open(image, readonly=True)]
    try:
        if settings.journal_path is not None:
            devices.append(FileDevice.open(settings.journal_path, readonly=readonly))
        request = service.Request(name, directory.path, words, journal=len(devices) > 1)
        service.send(channel, request, [devices[0].fileno(), fuse, *(device.fileno() for device in devices[1:])])
    finally:
        for device in devices:
            device.close()
    answer, _ = service.receive(channel, service.Opened)
    if answer.error:
        raise CommandError(answer.error, answer.code)
    notices(name, answer.notices)
    wanted = serving.fuse_options(settings, readonly=answer.readonly)
    mounting.mount_as_root(fuse, directory, wanted, image)
    service.send(channel, service.Mounted())
    os.stat(directory.path)  # noqa: PTH116  (when this is answered, so is everything else)
    return 0


def run(args: argparse.Namespace) -> int:
    """Serve one mount."""
    from py4fs.fuse import daemon, service

    try:
        with service.passed_socket() as channel:
            request, fds = service.receive(channel, service.Request)
            try:
                job, settings = _job(request, fds)
            except CommandError as exc:
                service.send(channel, service.Opened(error=str(exc), code=exc.exit_code))
                raise
            daemon.setup_logging(debug=settings.trace, foreground=True, log_file=None)
            return _serve(job, channel)
    except OSError as exc:
        raise CommandError(one_line(exc), EXIT_SYSTEM) from exc


def _job(request: Any, fds: list[int]) -> tuple[serving.Job, MountSettings]:
    """What to do with what came. Raises UsageError, CommandError."""
    from py4fs.fuse.mount import take_descriptor

    if len(fds) != 2 + request.journal:
        raise UsageError(f"{len(fds)} descriptors came, not {2 + request.journal}")
    settings = options.parse(request.options, by_root=True)
    settings.journal_path = f"/dev/fd/{fds[2]}" if request.journal else None
    try:
        connection = take_descriptor(fds[1])
    except FsError as exc:
        raise CommandError(one_line(exc), EXIT_MOUNT) from exc
    return serving.Job(request.image, f"/dev/fd/{fds[0]}", connection, settings, "direct", request.directory), settings


def _serve(job: serving.Job, channel: socket.socket) -> int:
    from py4fs.fuse import process, service

    told = False

    def opened(filesystem: Filesystem) -> None:
        nonlocal told
        told = True
        volume = filesystem.volume
        service.send(channel, service.Opened(readonly=volume.readonly, notices=volume.notices))
        service.receive(channel, service.Mounted)
        channel.close()

    ready: Callable[[], None] = lambda: process.notify("READY=1")  # noqa: E731
    try:
        return serving.serve(job, ready, opened)
    except CommandError as exc:
        if not told:
            service.send(channel, service.Opened(error=str(exc), code=exc.exit_code))
        raise
