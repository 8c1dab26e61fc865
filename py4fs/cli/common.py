"""What several commands share: exit codes, errors as one line, opening an image to read it."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.api import Filesystem

# mount(8)'s exit codes
EXIT_USAGE = 1
EXIT_SYSTEM = 2
EXIT_BUG = 4
EXIT_INTERRUPTED = 8
EXIT_MOUNT = 32

_SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtT]?)(?:i?[bB])?")


class CommandError(Exception):
    """A command failed; the text is the line to print, without the leading `py4fs: `."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CommandError):
    """The command line makes no sense."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_USAGE)


def one_line(exc: OSError) -> str:
    """An exception as the user reads it: `NAME: what is wrong`, on one line."""
    if isinstance(exc, FsError):
        text = str(exc)
    else:
        text = exc.strerror or str(exc) or type(exc).__name__
        if exc.filename is not None:
            text = f"{os.fsdecode(exc.filename)}: {text}"
    return " ".join(text.split())


def about(name: str, exc: OSError) -> str:
    """The line for a failure that concerns `name`; does not say the name twice."""
    text = one_line(exc)
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def printable(name: str | bytes) -> str:
    """A name that may hold any bytes, safe for a terminal: what cannot be shown becomes an escape."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    shown = []
    for char in text:
        if char.isprintable():
            shown.append(char)
        else:
            shown.extend(f"\\x{byte:02x}" for byte in os.fsencode(char))
    return "".join(shown)


def size(text: str) -> int:
    """A number of bytes: decimal or 0x, with k, M, G or T for powers of 1024. ValueError otherwise."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a number of bytes: {text}")
    number = match[1]
    return int(number, 16 if number[:2].lower() == "0x" else 10) << _SUFFIXES[match[2].lower()]


def _size_argument(text: str) -> int:
    try:
        return size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def guarded(command: Callable[[], int], *, debug: bool) -> int:
    """Run a command and return its exit code. Whatever it raises becomes one line on stderr; a traceback is
    shown with `debug` only."""
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # `py4fs ls ... | head`: nobody is left to read
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as exc:  # noqa: BLE001  (the last line of defence before a traceback)
        if debug:
            traceback.print_exc()
        if isinstance(exc, CommandError):
            tell(str(exc))
            return exc.exit_code
        if isinstance(exc, OSError):
            tell(one_line(exc))
            return 1
        tell(f"internal error, please report it: {type(exc).__name__}: {exc} (--debug shows where)")
        return EXIT_BUG
    return code


def tell(message: str) -> None:
    """One line on stderr."""
    print(f"py4fs: {printable(message)}", file=sys.stderr, flush=True)


def add_image(parser: argparse.ArgumentParser) -> None:
    """IMAGE and what every command that reads one takes."""
    parser.add_argument("image", metavar="IMAGE", help="ext4 image or block device")
    parser.add_argument(
        "--offset",
        type=_size_argument,
        default=0,
        metavar="BYTES",
        help="where the file system begins in IMAGE",
    )
    parser.add_argument(
        "--partition", type=int, metavar="N", help="the partition it is in (found by itself when only one has ext4)"
    )
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


@contextmanager
def reading(image: str, offset: int = 0, partition: int | None = None) -> Iterator[Filesystem]:
    """The image open read-only; failures to open it and everything below name it."""
    from py4fs.api import open_image

    try:
        with open_image(image, readonly=True, offset=offset, partition=partition) as filesystem:
            notices(image, filesystem.notices)
            yield filesystem
    except FsError as exc:
        raise CommandError(about(image, exc)) from exc
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise CommandError(about(image, exc)) from exc


def notices(image: str, lines: Iterable[str]) -> None:
    """What the user should know about the image, on stderr."""
    for line in lines:
        tell(f"{image}: {line}")
