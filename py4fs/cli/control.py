"""`py4fs control DIR WHAT`: sync, freeze, thaw, ro, rw on a live mount."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
from typing import Any

from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError, about, add_debug

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
    from py4fs.fuse.direct.ioctls import CONTROLS, PY4FS_IOC_CONTROL, U32
    from py4fs.fuse.mount import syncfs

    try:
        fd = os.open(args.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise CommandError(about(args.directory, exc), EXIT_MOUNT) from exc
    try:
        syncfs(fd)  # what programs have written and the kernel still keeps
        fcntl.ioctl(fd, PY4FS_IOC_CONTROL, U32.pack(CONTROLS.index(args.what)))
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP):
            raise CommandError(
                f"{args.directory}: not a py4fs mount of the direct session, which alone can be told so", EXIT_MOUNT
            ) from exc
        raise CommandError(f"{args.directory}: {args.what}: {exc.strerror}", EXIT_SYSTEM) from exc
    finally:
        os.close(fd)
    return 0
