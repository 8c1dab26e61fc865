"""Short reads and writes: one step under the lock, where others are planned, moved without it, and finished.

Plans keep the device I/O out of the lock.  What is short does not keep others waiting, and moved under the lock it
needs no plan: nothing can change meanwhile.  That is most of the work of a read or an overwrite of known blocks.

A write to a hole gains besides: planned, its blocks are allocated unwritten, and converted when the data is there.
With the data written under the same lock they can be allocated as written.  On the device nothing refers to them
before the operation is committed, and a commit flushes what was written before it.
"""

from typing import Final

from py4fs.device.base import Device, ReadInto
from py4fs.errors import NoSpace
from py4fs.ext4.transaction import Reserve
from py4fs.iomap.backing import allocation_credits
from py4fs.iomap.mapper import DataVolume, IomapFile
from py4fs.iomap.plans import blank
from py4fs.iomap.records import IoDir, Mapping, MapType
from py4fs.iomap.server import Ext4Iomap

SHORT: Final = 64 << 10
"""Bytes that are read or written under the lock at most."""

# plain numbers: the enums' own operators cost a call each
_READ: Final = int(IoDir.READ)
_WRITE: Final = int(IoDir.WRITE)
_MAPPED: Final = int(MapType.MAPPED)


def read(read_into: ReadInto, file: IomapFile, pos: int, view: memoryview, size: int) -> int:
    """Read up to `view.nbytes` bytes at `pos` of a file of `size` bytes; how many, or -1: it has to be planned.

    Those are reads of what is not known to lie in one piece on the device.  Raises DeviceError.
    """
    end = min(pos + view.nbytes, size)
    if not 0 <= pos < end:
        return -1
    found = _written(file, pos, end)
    if found is None:
        return -1
    count = end - pos
    read_into(found.addr + pos - found.offset, view if count == view.nbytes else view[:count])
    return count


def overwrite(device: Device, file: IomapFile, pos: int, data: memoryview) -> bool:
    """Write all of `data` over what a file has at `pos`; False, with nothing done: it has to be planned.

    Those are writes of what is not known to lie in one piece on the device, and any while another write to the file
    is in flight.  Raises DeviceError.
    """
    end = pos + data.nbytes
    if file.writes or end > file.inode.size or file.cache.mappings(_WRITE) is not None:
        return False
    found = _written(file, pos, end)
    if found is None:
        return False
    device.write(found.addr + pos - found.offset, data)
    return True


def _written(file: IomapFile, pos: int, end: int) -> Mapping | None:
    """The cached mapping of written blocks that covers all of [pos, end), if there is one."""
    found = file.cache.lookup(_READ, pos, end - pos).mapping
    if found is None or found.type != _MAPPED or end > found.offset + found.length:
        return None
    file.counters.hits += 1
    return found


def append(
    volume: DataVolume, server: Ext4Iomap, file: IomapFile, pos: int, data: memoryview, reserve: Reserve, *, stamp: bool
) -> bool:
    """Write all of `data` to new blocks behind the end of the file; False, with nothing done: it has to be planned.

    Those are writes that are longer than SHORT, that do not begin at the end of the file and a block, or for
    which there are blocks already or not enough of them; and any while another write to the file is in flight.
    With `stamp` the file's mtime and ctime become the operation's time.  Raises ReadOnly, Corrupt, DeviceError.
    """
    inode = file.inode
    size, length = server.block_size, data.nbytes
    lblk, count = pos // size, -(-length // size)
    if (
        length > SHORT
        or pos % size
        or pos != inode.size
        or file.writes
        or count > server.most_blocks
        or inode.is_inline
        or inode.may_inline
    ):
        return False
    try:
        with volume.operation(allocation_credits(count, server.groups), reserve) as tx:
            runs = server.extend(tx, inode, lblk, count)
            if not runs:
                return False
            _write(volume, runs, data, size)
            inode.size = pos + length
            if stamp:
                inode.mtime = inode.ctime = tx.now
    except NoSpace:
        return False
    volume.note_data_written()
    server.push_written(file.push, lblk, runs)
    return True


def _write(volume: DataVolume, runs: list[tuple[int, int]], data: memoryview, size: int) -> None:
    """The data, and zeros behind it up to the end of its last block, to runs of (first block, count)."""
    at = 0
    for first, count in runs:
        part = data[at : at + count * size]
        rest = count * size - part.nbytes
        if rest:
            volume.device.writev(first * size, [part, *blank(rest)])
        else:
            volume.device.write(first * size, part)
        at += count * size
