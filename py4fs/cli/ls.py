"""`py4fs ls [-laiR] IMAGE [PATH ...]`: list directories in an image."""

from __future__ import annotations

import argparse
import json
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from py4fs.cli import attrs
from py4fs.cli.common import about, add_image, printable, reading, tell
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.vfs import Attr

_MAX_DEPTH = 4096  # directories below each other; a damaged image may hold a loop


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("ls", help="list directories", description="List directories in an image.")
    parser.add_argument("-l", "--long", action="store_true", help="mode, links, owner, size, time")
    parser.add_argument("-a", "--all", action="store_true", help="names that begin with a dot too")
    parser.add_argument("-i", "--inode", action="store_true", help="inode numbers")
    parser.add_argument("-R", "--recursive", action="store_true", help="directories below, too")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and name")
    add_image(parser)
    parser.add_argument("paths", metavar="PATH", nargs="*", default=["/"], help="default: /")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when something could not be listed (the rest is listed nevertheless)."""
    with reading(args.image, args.offset, args.partition) as filesystem:
        lister = _Lister(args, filesystem)
        for path in args.paths:
            lister.show(path)
        return 1 if lister.failed else 0


class _Lister:
    def __init__(self, args: argparse.Namespace, filesystem: Filesystem) -> None:
        self._args = args
        self._filesystem = filesystem
        self._sections = 0
        self.failed = False

    def show(self, path: str) -> None:
        """One PATH argument."""
        try:
            attr = self._filesystem.lstat(path)
            if path.endswith("/") or (stat.S_ISLNK(attr.mode) and not self._args.long):
                attr = self._filesystem.stat(path)
        except FsError as exc:
            self._fail(path, exc)
            return
        if not stat.S_ISDIR(attr.mode):
            self._print(path, os.fsencode(path), attr)
            return
        todo = [(path, attr.ino, 0)]
        ancestors_seen: set[int] = set()
        while todo:
            where, ino, depth = todo.pop()
            if ino in ancestors_seen or depth > _MAX_DEPTH:
                tell(f"{self._args.image}: {where}: directory loop, not listed again")
                self.failed = True
                continue
            ancestors_seen.add(ino)
            below = self._directory(where)
            if self._args.recursive:
                todo.extend((path, ino, depth + 1) for path, ino in reversed(below))

    def _directory(self, path: str) -> list[tuple[str, int]]:
        """List one directory; the directories in it."""
        if not self._args.json and (self._args.recursive or len(self._args.paths) > 1):
            print(f"{chr(10) if self._sections else ''}{printable(path)}:")
        self._sections += 1
        below = []
        for name, attr in self._entries(path):
            child = f"{path.rstrip('/')}/{os.fsdecode(name)}"
            self._print(child, name, attr)
            if attr is not None and stat.S_ISDIR(attr.mode):
                below.append((child, attr.ino))
        return below

    def _entries(self, path: str) -> Iterator[tuple[bytes, Attr | None]]:
        """Sorted by name; None for an inode that cannot be read."""
        found = []
        try:
            for name, ino, _kind in self._filesystem.scandir(path):
                if self._args.all or not name.startswith(b"."):
                    found.append((name, ino))
        except FsError as exc:
            self._fail(path, exc)
        for name, ino in sorted(found):
            try:
                yield name, self._filesystem.vfs.getattr(ino)
            except FsError as exc:
                self._fail(f"{path.rstrip('/')}/{os.fsdecode(name)}", exc)
                yield name, None

    def _print(self, path: str, name: bytes, attr: Attr | None) -> None:
        if self._args.json:
            fields = attrs.as_dict(attr) if attr is not None else {"error": True}
            print(json.dumps({"path": path, **fields, "target": self._target(path, attr)}))
            return
        inode = f"{attr.ino if attr else '?':>8} " if self._args.inode else ""
        shown = printable(name)
        if not self._args.long:
            print(inode + shown)
            return
        if attr is None:
            print(f"{inode}?????????? {shown}")
            return
        size = attrs.device_numbers(attr) if attrs.is_device(attr.mode) else str(attr.size)
        target = self._target(path, attr)
        arrow = f" -> {printable(target)}" if target is not None else ""
        print(
            f"{inode}{stat.filemode(attr.mode)} {attr.nlink:>3} {attr.uid:>5} {attr.gid:>5} {size:>12} "
            f"{attrs.time_text(attr.mtime)} {shown}{arrow}"
        )

    def _target(self, path: str, attr: Attr | None) -> str | None:
        if attr is None or not stat.S_ISLNK(attr.mode):
            return None
        try:
            return os.fsdecode(self._filesystem.vfs.readlink(attr.ino))
        except FsError as exc:
            self._fail(path, exc)
            return None

    def _fail(self, path: str, exc: FsError) -> None:
        tell(f"{self._args.image}: {about(path, exc)}")
        self.failed = True
