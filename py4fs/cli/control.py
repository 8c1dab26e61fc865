"""`py4fs control DIR WHAT`: sync, freeze, thaw, ro, rw on a live mount."""

from __future__ import annotations

import argparse
from typing import Any

from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError, add_debug
from py4fs.errors import NotSupported

WHAT = {
    "sync": "return when everything is on the device",
    "freeze": "bring the image into the state of a clean unmount and keep it so: changes wait",
    "thaw": "end a freeze",
    "ro": "make the mount read-only, the image clean",
    "rw": "make it writable again",
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "control",
        help="sync, freeze, thaw, ro or rw a live mount",
        description="Tell the server of a mount: " + "; ".join(f"{word}: {text}" for word, text in WHAT.items()) + ".",
    )
    parser.add_argument("directory", metavar="DIR", help="where the image is mounted")
    parser.add_argument("what", choices=list(WHAT), help="what to do")
    add_debug(parser)


def run(args: argparse.Namespace) -> int:
    """0 done, 2 the server could not, 32 not a mount that can be told so."""
    from py4fs.fuse.remount import control

    try:
        control(args.directory, args.what)
    except NotSupported as exc:
        raise CommandError(f"{args.directory}: {exc}", EXIT_MOUNT) from exc
    except OSError as exc:
        code = EXIT_MOUNT if exc.filename is not None else EXIT_SYSTEM
        raise CommandError(f"{args.directory}: {args.what}: {exc.strerror}", code) from exc
    return 0
