"""`py4fs cat IMAGE FILE ...`: contents of files on stdout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from py4fs.cli.common import about, add_image, reading, tell
from py4fs.errors import FsError

_PIECE = 1 << 20  # bytes


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("cat", help="write files to stdout", description="Write files to stdout.")
    add_image(parser)
    parser.add_argument("paths", metavar="FILE", nargs="+")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when some FILE could not be read."""
    failed = False
    out = sys.stdout.buffer
    with reading(args.image, args.offset, args.partition) as filesystem:
        for path in args.paths:
            try:
                with filesystem.open(path) as file:
                    while piece := file.read(_PIECE):
                        out.write(piece)
            except FsError as exc:
                out.flush()
                tell(f"{args.image}: {about(path, exc)}")
                failed = True
        out.flush()
    return 1 if failed else 0
