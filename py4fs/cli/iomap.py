"""`py4fs iomap IMAGE FILE ...`: where a file's data lies, as `filefrag -v` shows it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from py4fs.cli.common import about, add_image, printable, reading, tell
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.iomap.records import Mapping


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "iomap",
        help="show where a file's data lies",
        description="Show the mappings of files: logical range, place on the device, state; in blocks of the file "
        "system, with --json in bytes.",
    )
    parser.add_argument("-H", "--holes", action="store_true", help="holes, too")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and FILE, in bytes")
    add_image(parser)
    parser.add_argument("paths", metavar="FILE", nargs="+")


def run(args: argparse.Namespace) -> int:
    """0, or 1 when some FILE could not be mapped."""
    failed = False
    with reading(args.image, args.offset) as filesystem:
        for path in args.paths:
            try:
                _show(args, filesystem, path)
            except FsError as exc:
                tell(f"{args.image}: {about(path, exc)}")
                failed = True
    return 1 if failed else 0


def _show(args: argparse.Namespace, filesystem: Filesystem, path: str) -> None:
    from py4fs.iomap.records import MapType

    attr = filesystem.stat(path)
    mappings = [m for m in filesystem.mappings(path) if args.holes or m.type != MapType.HOLE]
    if args.json:
        records = [_as_dict(m) for m in mappings]
        print(json.dumps({"path": path, "size": attr.size, "block_size": attr.blksize, "mappings": records}))
        return
    block = attr.blksize
    blocks = -(-attr.size // block)
    print(f"{printable(path)}: {attr.size} bytes ({blocks} blocks of {block} bytes)")
    print(" ext:     logical_offset:        physical_offset:  length:   expected: flags:")
    expected = None
    extents = 0
    for number, mapping in enumerate(mappings):
        first, length = mapping.offset // block, mapping.length // block
        place, gap = f"{'':>22}", ""
        if _has_place(mapping):
            extents += 1
            start = mapping.addr // block
            place = f"{start:>10}..{start + length - 1:>10}"
            gap = str(expected) if expected not in (None, start) else ""
            expected = start + length
        flags = _flags(mapping)
        if mapping.end >= attr.size:
            flags.append("last,eof" if number == len(mappings) - 1 else "eof")
        line = f"{number:>4}: {first:>8}..{first + length - 1:>8}: {place}: {length:>6}: {gap:>10} {','.join(flags)}"
        print(line.rstrip())
    print(f"{printable(path)}: {extents} extent{'' if extents == 1 else 's'} found")


def _flags(mapping: Mapping) -> list[str]:
    from py4fs.iomap.records import MapType

    name = MapType(mapping.type).name.lower()
    return [] if name == "mapped" else [name]


def _has_place(mapping: Mapping) -> bool:
    from py4fs.iomap.records import has_device

    return has_device(mapping.type)


def _as_dict(mapping: Mapping) -> dict[str, Any]:
    from py4fs.iomap.records import MapFlags, MapType

    return {
        "offset": mapping.offset,
        "length": mapping.length,
        "addr": mapping.addr if _has_place(mapping) else None,
        "type": MapType(mapping.type).name.lower(),
        "flags": [flag.name.lower() for flag in MapFlags if flag & mapping.flags and flag.name],
    }
