"""`py4fs iomap IMAGE FILE ...`: where a file's data lies, as `filefrag -v` shows it; drawn, compared, counted."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py4fs.cli.common import CommandError, UsageError, about, add_image, printable, reading, tell
from py4fs.errors import FsError

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.iomap.mapper import Counters
    from py4fs.iomap.records import Mapping
    from py4fs.vfs import Attr

PLOT_KINDS = (".svg", ".png")
_MOST_DIFFERENCES = 20  # lines shown per file


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "iomap",
        help="show where a file's data lies",
        description="Show the mappings of files, the read and the write fork of the cache: logical range, place on "
        "the device, state; in blocks of the file system, with --json in bytes.",
    )
    parser.add_argument("-H", "--holes", action="store_true", help="holes, too")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and FILE, in bytes")
    parser.add_argument(
        "--plot", type=_plot_path, metavar="OUT.svg|OUT.png", help="draw logical against physical place (one FILE)"
    )
    parser.add_argument("--compare", action="store_true", help="check against debugfs; differences end in exit code 1")
    parser.add_argument("--stats", action="store_true", help="what filling and using the cache cost")
    add_image(parser)
    parser.add_argument("paths", metavar="FILE", nargs="+")


def _plot_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PLOT_KINDS:
        raise argparse.ArgumentTypeError(f"{text}: the name has to end in {' or '.join(PLOT_KINDS)}")
    return path


def run(args: argparse.Namespace) -> int:
    """0, or 1 when some FILE could not be mapped or is not what debugfs says."""
    if args.plot is not None and len(args.paths) != 1:
        raise UsageError("--plot draws one FILE")
    failed = False
    with reading(args.image, args.offset, args.partition) as filesystem:
        for path in args.paths:
            try:
                failed |= not _show(args, filesystem, path)
            except FsError as exc:
                tell(f"{args.image}: {about(path, exc)}")
                failed = True
    return 1 if failed else 0


def _show(args: argparse.Namespace, filesystem: Filesystem, path: str) -> bool:
    """One FILE; False when debugfs does not agree."""
    attr = filesystem.stat(path)
    steps = _open_and_fill(filesystem, attr.ino) if args.stats else []
    fork, write_fork = filesystem.vfs.forks(attr.ino)
    whole = _up_to_the_end(fork, attr)
    mappings = [m for m in whole if args.holes or not _is_hole(m)]
    if args.json:
        _print_json(args, path, attr, mappings, write_fork, steps)
    else:
        print(f"{printable(path)}: {attr.size} bytes ({-(-attr.size // attr.blksize)} blocks of {attr.blksize} bytes)")
        _print_table(attr, mappings)
        _print_write_fork(write_fork, attr.blksize)
        _print_stats(steps)
        extents = sum(map(_has_place, mappings))
        print(f"{printable(path)}: {extents} extent{'' if extents == 1 else 's'} found")
    if args.plot is not None:
        from py4fs.cli.iomap_plot import plot

        plot(args.plot, f"{printable(Path(args.image).name)}: {printable(path)}", attr, whole)
    return not args.compare or _compare(args, filesystem, path, attr, whole)


def _is_hole(mapping: Mapping) -> bool:
    from py4fs.iomap.records import MapType

    return mapping.type == MapType.HOLE


def _up_to_the_end(fork: list[Mapping], attr: Attr) -> list[Mapping]:
    """The fork without the hole that follows the file: that one goes on to the largest offset there is."""
    end = max([-(-attr.size // attr.blksize) * attr.blksize, *(m.end for m in fork if not _is_hole(m))])
    return [m._replace(length=min(m.length, end - m.offset)) for m in fork if m.offset < end]


# -- the tables ---------------------------------------------------------------------------------------------


def _print_table(attr: Attr, mappings: list[Mapping]) -> None:
    block = attr.blksize
    print(" ext:     logical_offset:        physical_offset:  length:   expected: flags:")
    expected = None
    for number, mapping in enumerate(mappings):
        first, length = mapping.offset // block, mapping.length // block
        place, gap = f"{'':>22}", ""
        if _has_place(mapping):
            start = mapping.addr // block
            place = f"{start:>10}..{start + length - 1:>10}"
            gap = str(expected) if expected not in (None, start) else ""
            expected = start + length
        flags = _flags(mapping)
        if mapping.end >= attr.size:
            flags.append("last,eof" if number == len(mappings) - 1 else "eof")
        line = f"{number:>4}: {first:>8}..{first + length - 1:>8}: {place}: {length:>6}: {gap:>10} {','.join(flags)}"
        print(line.rstrip())


def _print_write_fork(write_fork: list[Mapping] | None, block: int) -> None:
    """On ext4 there never is one: nothing is shared, every write goes where reads come from."""
    if write_fork is None:
        print("write fork: not in use, writes go where reads come from")
        return
    print("write fork:")
    for mapping in write_fork:
        first, length = mapping.offset // block, mapping.length // block
        print(f"      {first:>8}..{first + length - 1:>8}: {','.join(_flags(mapping)) or 'mapped'}")


def _flags(mapping: Mapping) -> list[str]:
    from py4fs.iomap.records import MapType

    name = MapType(mapping.type).name.lower()
    return [] if name == "mapped" else [name]


def _has_place(mapping: Mapping) -> bool:
    from py4fs.iomap.records import has_device

    return has_device(mapping.type)


def _print_json(
    args: argparse.Namespace,
    path: str,
    attr: Attr,
    mappings: list[Mapping],
    write_fork: list[Mapping] | None,
    steps: list[tuple[str, Counters]],
) -> None:
    found: dict[str, Any] = {
        "path": path,
        "size": attr.size,
        "block_size": attr.blksize,
        "mappings": [_as_dict(m) for m in mappings],
        "write_fork": None if write_fork is None else [_as_dict(m) for m in write_fork],
    }
    if args.stats:
        found["stats"] = {name: counters.as_dict() for name, counters in steps}
    print(json.dumps(found))


def _as_dict(mapping: Mapping) -> dict[str, Any]:
    from py4fs.iomap.records import MapFlags, MapType

    return {
        "offset": mapping.offset,
        "length": mapping.length,
        "addr": mapping.addr if _has_place(mapping) else None,
        "type": MapType(mapping.type).name.lower(),
        "flags": [flag.name.lower() for flag in MapFlags if flag & mapping.flags and flag.name],
    }


# -- what it costs ------------------------------------------------------------------------------------------


def _open_and_fill(filesystem: Filesystem, ino: int) -> list[tuple[str, Counters]]:
    """Open a file, look up all of it, look up all of it again: what each step did to the counters."""
    vfs = filesystem.vfs
    steps = []
    before = vfs.client.counters()
    fh = vfs.open(ino, os.O_RDONLY)
    for name in ("open", "first pass", "second pass"):
        if name != "open":
            vfs.forks(ino)
        after = vfs.client.counters()
        steps.append((name, after - before))
        before = after
    vfs.release(fh)
    return steps


def _print_stats(steps: list[tuple[str, Counters]]) -> None:
    if not steps:
        return
    names = list(steps[0][1].as_dict())
    print(f"{'cache':<12}" + "".join(f"{name:>9}" for name in names))
    for step, counters in steps:
        print(f"{step:<12}" + "".join(f"{value:>9}" for value in counters.as_dict().values()))


# -- debugfs ------------------------------------------------------------------------------------------------


def _compare(
    args: argparse.Namespace, filesystem: Filesystem, path: str, attr: Attr, mappings: list[Mapping]
) -> bool:
    from py4fs.cli.iomap_compare import differences
    from py4fs.device.image import place_in_file

    offset = place_in_file(filesystem.volume.device)
    if offset is None:
        raise CommandError(f"{args.image}: --compare: debugfs cannot read such an image")
    found = differences(args.image, offset, attr, mappings)
    for line in found[:_MOST_DIFFERENCES]:
        tell(f"{args.image}: {path}: {line}")
    if len(found) > _MOST_DIFFERENCES:
        tell(f"{args.image}: {path}: {len(found) - _MOST_DIFFERENCES} more differences")
    if not found and not args.json:
        print(f"{printable(path)}: debugfs says the same")
    return not found
