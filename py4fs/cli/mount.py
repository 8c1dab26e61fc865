"""`py4fs mount IMAGE DIR`: check, go to the background, open the image, serve it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from py4fs.cli import contained, options, remount, serving
from py4fs.cli.common import EXIT_MOUNT, CommandError, UsageError, about, add_debug, guarded, one_line
from py4fs.cli.option_table import FLAGS, VALUED
from py4fs.device import passed
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.fuse.mount import MountPoint


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
        help=", ".join([*FLAGS, *(f"{word}={option.argument}" for word, option in VALUED.items())]),
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
    given = ",".join(args.options)
    if given.partition(",")[0] == "rw" and not options.parse([given]).remount:
        # mount(8) begins with one of ro and rw whatever it was told: that does not ask for more than can be had
        given = given[3:]
    fake = ["--fake"] if args.fake else []
    return ["mount", *fake, "-o", given, "--", args.image, args.directory]


def run(args: argparse.Namespace) -> int:
    """mount(8)'s exit codes: 0 mounted, 1 usage or permission, 2 system error, 32 mount failed."""
    settings = options.parse(args.options)
    if args.read_only:
        settings.readonly = True
        settings.given.add("readonly")
    serving.check_session(args.session, settings)
    if settings.remount:
        return 0 if args.fake else remount.run(args.directory, settings)
    image = _image_path(args.image)
    if settings.journal_path is not None:
        # the process that serves has another working directory
        settings.journal_path = _image_path(settings.journal_path)
    from py4fs.fuse import daemon, mount, process
    from py4fs.fuse.direct import again

    try:
        directory = mount.open_mountpoint(args.directory)
    except FsError as exc:
        raise CommandError(about(args.directory, exc), serving.exit_code(exc)) from exc
    try:
        if not directory.passed:
            mount.check_fuse()
    except FsError as exc:
        raise CommandError(one_line(exc), serving.exit_code(exc)) from exc
    if args.fake:
        return 0
    if not directory.passed and again.is_served(image):
        return _mount_again(args.image, image, directory, settings)
    if settings.service is not None:
        return contained.mount(args.image, image, directory, args.options, settings)
    foreground = args.foreground or args.trace
    daemon.setup_logging(
        debug=args.trace or settings.trace,
        foreground=foreground,
        log_file=os.path.realpath(args.log_file) if args.log_file else None,
    )
    job = serving.Job(args.image, image, directory, settings, args.session)

    def serve(ready: Callable[[], None]) -> int:
        return guarded(lambda: serving.serve(job, ready), debug=args.debug)

    if foreground:
        return serve(lambda: process.notify("READY=1"))
    return daemon.run_in_background(serve)


def _mount_again(name: str, image: str, directory: MountPoint, settings: options.MountSettings) -> int:
    from py4fs.fuse.direct import again

    try:
        again.mount_again(directory, serving.fuse_options(settings, readonly=settings.readonly), image)
    except FsError as exc:
        raise CommandError(about(name, exc), serving.exit_code(exc)) from exc
    return 0


def _image_path(given: str) -> str:
    """The image's path as /proc/mounts will show it; a descriptor that was handed over stays one."""
    number = passed.descriptor(given)
    try:
        if number is not None:
            os.set_inheritable(number, False)
            return given
        return os.path.realpath(given, strict=True)
    except OSError as exc:
        raise CommandError(about(given, type(exc)(exc.errno, exc.strerror)), EXIT_MOUNT) from exc
