"""`py4fs COMMAND ...`, and `mount.py4fs IMAGE DIR ...` as mount(8) calls it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from py4fs import __version__, compiled
from py4fs.cli import cat, contained, control, info, iomap, ls, mount, stat, umount
from py4fs.cli.common import UsageError, guarded

COMMANDS = {
    "mount": mount,
    "umount": umount,
    "control": control,
    "service": contained,
    "info": info,
    "ls": ls,
    "stat": stat,
    "cat": cat,
    "iomap": iomap,
}
HELPER_NAMES = ("mount.py4fs", "mount.fuse.py4fs")


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits with 2 on a mistake; mount(8) wants 1, the user one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="py4fs", description="Mount, read and write ext4 images in user space.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"py4fs {__version__} (core {compiled.describe()})")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for module in COMMANDS.values():
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A failure is one line on stderr and an exit code; a traceback only with --debug."""
    name = Path(sys.argv[0]).name if argv is None else "py4fs"
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(name, words), debug="--debug" in words)


def _run(name: str, words: list[str]) -> int:
    if name in HELPER_NAMES:
        words = mount.helper_words(words)
    elif _is_mount_shorthand(words):
        words = ["mount", *words]
    args = build_parser().parse_args(words)
    return int(COMMANDS[args.command].run(args))


def _is_mount_shorthand(words: list[str]) -> bool:
    """`py4fs IMAGE DIR -o ...` is how mount.fuse3(8) calls the program of `mount -t fuse.py4fs`."""
    return len(words) >= 2 and words[0] not in COMMANDS and "/" in words[0] and not words[0].startswith("-")


def program() -> NoReturn:
    """The installed commands: as :func:`main`, and the process ends at once.

    Taking the interpreter apart would take 20 ms, a sixth of what a short command takes.
    """
    code = main()
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
