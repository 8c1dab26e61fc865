"""`py4fs info IMAGE`: superblock and block groups."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from py4fs.cli.common import CommandError, about, add_image, printable, tell
from py4fs.errors import FsError

_TIMES = ("created", "last_mount", "last_write", "last_checked")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="show superblock and block groups",
        description="Show superblock and block groups, also of images that cannot be mounted or are in use.",
    )
    parser.add_argument("-s", "--superblock", action="store_true", help="the superblock only")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_image(parser)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when the image cannot be read or is not ext4 at all."""
    from py4fs.device.image import open_storage
    from py4fs.ext4.summary import Summary

    try:
        # without a lock: the image may well be mounted at this moment
        device = open_storage(args.image, readonly=True, offset=args.offset, partition=args.partition, lock=False)
    except FsError as exc:
        raise CommandError(about(args.image, exc)) from exc
    try:
        _show(args, Summary(device))
    except FsError as exc:
        raise CommandError(about(args.image, exc)) from exc
    finally:
        device.close()
    return 0


def _show(args: argparse.Namespace, summary: Any) -> None:
    superblock = summary.superblock()
    problems = summary.problems()
    if args.json:
        groups = [] if args.superblock else [asdict(group) for group in summary.groups()]
        print(json.dumps({"superblock": superblock, "problems": problems, "groups": groups}, indent=2))
        return
    width = max(map(len, superblock)) + 2
    for name, value in superblock.items():
        print(f"{(name.replace('_', ' ') + ':').capitalize():<{width}}{_value(name, value)}")
    for problem in problems:
        tell(f"{args.image}: {problem}")
    if args.superblock:
        return
    for group in summary.groups():
        flags = f" [{', '.join(group.flags)}]" if group.flags else ""
        backup = ", superblock" if group.has_super else ""
        print(f"\nGroup {group.group}: blocks {group.first_block}-{group.last_block}{backup}{flags}")
        print(
            f"  Block bitmap at {group.block_bitmap}, inode bitmap at {group.inode_bitmap}, "
            f"inode table at {group.inode_table}"
        )
        print(
            f"  {group.free_blocks} free blocks, {group.free_inodes} free inodes, {group.used_dirs} directories, "
            f"{group.itable_unused} unused inodes"
        )
        if group.problem:
            tell(f"{args.image}: {group.problem}")


def _value(name: str, value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return " ".join(value)
    if name in _TIMES:
        try:
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (ValueError, OverflowError, OSError):
            return str(value)
    return printable(str(value))
