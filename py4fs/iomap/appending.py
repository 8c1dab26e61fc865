"""Short writes that add blocks to a file: one operation, where others need two.

A write to a hole is planned and finished, so that its data can go to the device without the lock: blocks are allocated
unwritten first, and converted when the data is there.  What is short does not keep others waiting: with the data
written under the same lock the blocks can be allocated as written, which is half of the work.  On the device nothing
refers to them before the operation is committed, and a commit flushes what was written before it.
"""

from typing import Final

from py4fs.errors import NoSpace
from py4fs.ext4.transaction import Reserve
from py4fs.iomap.backing import allocation_credits
from py4fs.iomap.mapper import DataVolume, IomapFile
from py4fs.iomap.plans import blank
from py4fs.iomap.server import Ext4Iomap

MAX_APPEND: Final = 64 << 10
"""Bytes that are written under the lock at most."""


def append(
    volume: DataVolume, server: Ext4Iomap, file: IomapFile, pos: int, data: memoryview, reserve: Reserve, *, stamp: bool
) -> bool:
    """Write all of `data` to new blocks behind the end of the file; False, with nothing done: it has to be planned.

    Those are writes that are longer than MAX_APPEND, that do not begin at the end of the file and a block, or for
    which there are blocks already or not enough of them; and any while another write to the file is in flight.
    With `stamp` the file's mtime and ctime become the operation's time.  Raises ReadOnly, Corrupt, DeviceError.
    """
    inode = file.inode
    size, length = server.block_size, data.nbytes
    lblk, count = pos // size, -(-length // size)
    if (
        length > MAX_APPEND
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
        volume.device.writev(first * size, [part, *blank(count * size - part.nbytes)])
        at += count * size
