"""`py4fs mount IMAGE DIR`: check, go to the background, open the image, serve it."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from py4fs.cli import options
from py4fs.cli.common import (
    EXIT_MOUNT,
    EXIT_SYSTEM,
    CommandError,
    UsageError,
    about,
    add_debug,
    guarded,
    notices,
    one_line,
)
from py4fs.cli.options import MountSettings
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.fuse.mount import FuseOptions, MountPoint


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "mount",
        help="mount an image on a directory",
        description="Mount an ext4 image. Returns when the mount answers; a background process serves it.",
    )
    parser.add_argument("image", metavar="IMAGE", help="ext4 image or block device")
    parser.add_argument("directory", metavar="DIR", help="directory to mount it on")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT[,OPT...]",
        help="ro, rw, offset=BYTES, partition=N, allow_other, suid, dev, noexec, noatime, relatime, strictatime, "
        "commit=SECONDS, norecovery, journal_path=FILE, errors=, data=, nobarrier, minixdf, "
        "verify=, nouser_xattr, usrquota, grpquota, prjquota, sync, dirsync, "
        "fsname=, subtype=, max_read=BYTES, iomap=auto|off|require "
        "(nosuid,nodev unless root says otherwise)",
    )
    parser.add_argument("-r", "--read-only", action="store_true", help="same as -o ro: writes not one byte")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("-d", dest="trace", action="store_true", help="log every request to stderr (implies -f)")
    parser.add_argument(
        "--session",
        choices=("auto", "direct", "pyfuse3"),
        default="auto",
        help="how requests come: direct (the kernel's protocol, the default on Linux) or pyfuse3 (libfuse)",
    )
    parser.add_argument("--log-file", metavar="FILE", help="append the log to FILE (default: syslog)")
    parser.add_argument("--fake", action="store_true", help="check everything that can be checked, mount nothing")
    add_debug(parser)


def helper_words(words: list[str]) -> list[str]:
    """Arguments of mount.py4fs as mount(8) gives them (`-f` is *fake* there) as words of `py4fs mount`."""
    parser = argparse.ArgumentParser(prog="mount.py4fs", add_help=False, exit_on_error=False)
    parser.add_argument("image")
    parser.add_argument("directory")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-f", dest="fake", action="store_true")
    for letter in "snv":
        parser.add_argument(f"-{letter}", action="store_true")
    parser.add_argument("-t", dest="fstype")
    parser.add_argument("-N", dest="namespace")
    try:
        args, unknown = parser.parse_known_args(words)
    except (argparse.ArgumentError, SystemExit):
        raise UsageError("usage: mount.py4fs IMAGE DIR [-fnsv] [-o OPTIONS]") from None
    if unknown:
        raise UsageError(f"mount.py4fs: unknown argument: {unknown[0]}")
    fake = ["--fake"] if args.fake else []
    return ["mount", *fake, "-o", ",".join(args.options), "--", args.image, args.directory]


def run(args: argparse.Namespace) -> int:
    """mount(8)'s exit codes: 0 mounted, 1 usage or permission, 2 system error, 32 mount failed."""
    settings = options.parse(args.options)
    settings.readonly = settings.readonly or args.read_only
    image = _image_path(args.image)
    if settings.journal_path is not None:
        # the process that serves has another working directory
        settings.journal_path = _image_path(settings.journal_path)
    from py4fs.fuse import daemon, mount

    try:
        directory = mount.open_mountpoint(args.directory)
    except FsError as exc:
        raise CommandError(about(args.directory, exc), _exit_code(exc)) from exc
    try:
        if not directory.passed:
            mount.check_fuse()
    except FsError as exc:
        raise CommandError(one_line(exc), _exit_code(exc)) from exc
    if args.fake:
        return 0
    foreground = args.foreground or args.trace
    daemon.setup_logging(
        debug=args.trace,
        foreground=foreground,
        log_file=os.path.realpath(args.log_file) if args.log_file else None,
    )

    def serve(ready: Callable[[], None]) -> int:
        return guarded(lambda: _serve(args, image, directory, settings, ready), debug=args.debug)

    if foreground:
        return serve(lambda: None)
    return daemon.run_in_background(serve)


def _image_path(given: str) -> str:
    """The image's path as /proc/mounts will show it."""
    try:
        return os.path.realpath(given, strict=True)
    except OSError as exc:
        raise CommandError(about(given, type(exc)(exc.errno, exc.strerror)), EXIT_MOUNT) from exc


def _exit_code(exc: Exception) -> int:
    return int(getattr(exc, "exit_code", EXIT_MOUNT))


def _serve(
    args: argparse.Namespace, image: str, directory: MountPoint, settings: MountSettings, ready: Callable[[], None]
) -> int:
    """In the process that will serve: open the image, then mount and stay until it is unmounted."""
    name = args.image
    try:
        from py4fs.fuse import lifecycle
    except ImportError as exc:
        raise CommandError(f"cannot mount, {exc} (pip install 'py4fs[fuse]')", EXIT_SYSTEM) from exc
    from py4fs.api import OpenOptions, open_image
    from py4fs.fuse.clock import KernelClock

    clock = KernelClock()
    try:
        filesystem = open_image(
            image,
            clock=clock,
            options=OpenOptions(
                readonly=settings.readonly,
                offset=settings.offset,
                partition=settings.partition,
                minixdf=settings.minixdf,
                errors=settings.errors,
                barrier=settings.barrier,
                norecovery=settings.norecovery,
                journal_path=settings.journal_path,
                atime=settings.atime,
                verify_data=settings.verify == "merkle",
                user_xattr=settings.user_xattr,
                quota_limits=frozenset(settings.quota_limits),
                dirsync=settings.dirsync or settings.sync,  # what sync means for file data the kernel does itself
                mounted_on=os.fsencode(directory.path),
            ),
        )
    except OSError as exc:
        hint = "; -o ro mounts it read-only" if _only_reading_allowed(image, exc, settings) else ""
        raise CommandError(about(name, exc) + hint, EXIT_MOUNT) from exc
    notices(name, filesystem.notices)
    what = lifecycle.Serving(
        image=image,
        mountpoint=directory,
        options=_fuse_options(settings, readonly=filesystem.volume.readonly),
        commit_interval=settings.commit,
        clock=clock,
        session=_session(args.session),
        iomap=settings.iomap,
    )
    try:
        return lifecycle.serve(filesystem, what, ready)
    except FsError as exc:
        raise CommandError(about(name, exc), _exit_code(exc)) from exc


def _session(asked: str) -> str:
    """The session to use: the direct one speaks Linux' own protocol."""
    if asked != "auto":
        return asked
    return "direct" if sys.platform == "linux" else "pyfuse3"


def _only_reading_allowed(image: str, exc: OSError, settings: MountSettings) -> bool:
    denied = isinstance(exc, PermissionError) or exc.errno == errno.EROFS
    return denied and not settings.readonly and os.access(image, os.R_OK)


def _fuse_options(settings: MountSettings, *, readonly: bool) -> FuseOptions:
    from py4fs.fuse.mount import FuseOptions

    return FuseOptions(
        readonly=readonly,
        allow_other=settings.allow_other,
        suid=settings.suid,
        dev=settings.dev,
        exec=settings.exec,
        sync=settings.sync,
        dirsync=settings.dirsync,
        noatime=settings.atime == "noatime",
        fsname=settings.fsname,
        subtype=settings.subtype,
        max_read=settings.max_read,
    )
