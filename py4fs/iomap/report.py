"""What a file looks like: its mappings one after the other, as FIEMAP would list them (IOMAP.md 6.8)."""

from collections.abc import Iterator

from py4fs.ext4.inode import Inode
from py4fs.iomap.records import Mapping, MapType, OpFlags, clip, hole
from py4fs.iomap.server import Ext4Iomap


def report(server: Ext4Iomap, inode: Inode, pos: int = 0, end: int | None = None) -> Iterator[Mapping]:
    """The mappings of [pos, end) in file order, holes included, asked of the server one by one.

    Without `end`: the whole file, and blocks past its end; a hole there is left out.  The first and last are
    cut to the range, rounded to blocks.  Raises Corrupt, DeviceError.
    """
    block, limit = server.block_size, server.max_file_bytes
    stop = limit if end is None else min(-(-end // block) * block, limit)
    size = -(-inode.size // block) * block if end is None else stop
    return join_holes(_ask(server, inode, pos - pos % block, stop), size)


def _ask(server: Ext4Iomap, inode: Inode, pos: int, stop: int) -> Iterator[Mapping]:
    while pos < stop:
        mapping, _ = server.begin(inode, pos, stop - pos, OpFlags.REPORT)
        part = clip(mapping, pos, stop)
        assert part is not None, "a mapping covers the position that was asked for"
        yield part
        pos = part.end


def join_holes(mappings: Iterator[Mapping], size: int) -> Iterator[Mapping]:
    """Join holes that the tree's leaves had split; the last one ends at `size`, or goes when it starts there."""
    pending: Mapping | None = None
    for mapping in mappings:
        if mapping.type != MapType.HOLE:
            if pending is not None:
                yield pending
                pending = None
            yield mapping
        else:
            start = mapping.offset if pending is None else pending.offset
            pending = hole(start, mapping.end - start)
    if pending is not None and pending.offset < size:
        yield hole(pending.offset, size - pending.offset)
