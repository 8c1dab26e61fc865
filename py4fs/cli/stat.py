"""`py4fs stat IMAGE PATH ...`: everything the inode of a name says."""

from __future__ import annotations

import argparse
import json
import os
import stat as stat_bits
from typing import TYPE_CHECKING, Any

from py4fs.cli import attrs
from py4fs.cli.common import about, add_image, printable, reading, tell
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.vfs import Attr


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("stat", help="show an inode", description="Show the inode of a name.")
    parser.add_argument("-L", "--dereference", action="store_true", help="follow symbolic links")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and PATH")
    add_image(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when some PATH could not be shown."""
    failed = False
    with reading(args.image, args.offset, args.partition) as filesystem:
        for path in args.paths:
            try:
                attr = filesystem.stat(path) if args.dereference else filesystem.lstat(path)
                (_print_json if args.json else _print_text)(filesystem, path, attr)
            except FsError as exc:
                tell(f"{args.image}: {about(path, exc)}")
                failed = True
    return 1 if failed else 0


def _print_json(filesystem: Filesystem, path: str, attr: Attr) -> None:
    found: dict[str, Any] = {"path": path, **attrs.as_dict(attr), "flag_letters": attrs.flag_letters(attr.flags)}
    if attrs.is_device(attr.mode):
        found["device"] = [os.major(attr.rdev), os.minor(attr.rdev)]
    if stat_bits.S_ISLNK(attr.mode):
        found["target"] = os.fsdecode(filesystem.vfs.readlink(attr.ino))
    found["xattrs"] = {
        os.fsdecode(name): filesystem.vfs.getxattr(attr.ino, name).hex() for name in filesystem.vfs.listxattr(attr.ino)
    }
    print(json.dumps(found))


def _print_text(filesystem: Filesystem, path: str, attr: Attr) -> None:
    shown = printable(path)
    if stat_bits.S_ISLNK(attr.mode):
        shown += f" -> {printable(filesystem.vfs.readlink(attr.ino))}"
    device = f"  Device: {attrs.device_numbers(attr)}" if attrs.is_device(attr.mode) else ""
    print(f"  File: {shown}")
    print(f"  Size: {attr.size}  Blocks: {attr.blocks}  {attrs.type_name(attr.mode)}{device}")
    print(f" Inode: {attr.ino}  Generation: {attr.generation}  Links: {attr.nlink}")
    mode = f"{stat_bits.S_IMODE(attr.mode):04o}/{stat_bits.filemode(attr.mode)}"
    print(f"Access: ({mode})  Uid: {attr.uid}  Gid: {attr.gid}  Flags: {attrs.flag_letters(attr.flags)}")
    for label, value in (
        ("Access", attr.atime),
        ("Modify", attr.mtime),
        ("Change", attr.ctime),
        (" Birth", attr.crtime),
    ):
        print(f"{label}: {attrs.time_text(value, fraction=True)}")
    for name in filesystem.vfs.listxattr(attr.ino):
        print(f" xattr: {printable(name)} = {_xattr_text(filesystem.vfs.getxattr(attr.ino, name))}")


def _xattr_text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex()
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else "0x" + value.hex()
