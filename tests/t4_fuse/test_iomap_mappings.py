"""The direct session in iomap mode: mappings, and the hazards of the kernel that has them.

The numbers are sections of IOMAP.md.
"""

from __future__ import annotations

import errno
import os

import pytest

from py4fs.fuse.direct.protocol import Opcode
from py4fs.iomap.records import IoDir, MapFlags, MapType, OpFlags
from tests.support.simchecks import fails, fill
from tests.support.simfiles import KEEP_SIZE, PUNCH_HOLE, SimFiles
from tests.support.simkernel import ROOT

# --- mappings (3, 6.2, 8) -----------------------------------------------------------------------------------


def test_8_open_brings_mappings_and_reading_asks_nothing(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    kernel.write(kernel.handles[fh], 0, b"x" * 100_000)
    kernel.close(fh)
    kernel.sent.clear()
    fh = kernel.open(b"f")
    assert kernel.read(kernel.handles[fh], 0, 100_000) == b"x" * 100_000
    assert kernel.sent == ["LOOKUP", "OPEN"]
    for name, record, code in kernel.notes:
        if name == "IOMAP_UPSERT_MAPPINGS":
            assert code == 0 and record.write_type == MapType.NOCACHE, "9.4: the write fork stays unused"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.ESTALE])
def test_8_5_declined_upserts_mean_plain_answers(kernel: SimFiles, code: int) -> None:
    kernel.decline["IOMAP_UPSERT_MAPPINGS"] = code
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    node.pages.clear()
    assert kernel.read(node, 0, 50_000) == b"x" * 50_000
    assert node.cache is None and any(note[2] == code for note in kernel.notes)


def test_8_7_what_the_kernel_did_not_do_itself_is_invalidated(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    kernel.begin(node, 0, 4096, 0)
    assert node.cache is not None and node.cache.lookup(IoDir.READ, 0).mapping
    kernel.vfs.fallocate(fh, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
    assert node.cache.lookup(IoDir.READ, 4096).mapping is None
    node.pages.clear()
    assert kernel.read(node, 0, 50_000) == b"x" * 4096 + bytes(8192) + b"x" * (50_000 - 12_288)


def test_3_invalidations_of_inodes_that_are_gone_are_harmless(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 5000)
    kernel.fsync(fh)
    kernel.begin(node, 0, 4096, 0)
    kernel.close(fh)
    kernel.decline["IOMAP_INVAL_MAPPINGS"] = errno.ESTALE
    kernel.vfs.setattr(node.ino, size=0)
    kernel.notes.clear()
    kernel.vfs.setattr(node.ino, size=10)
    kernel.vfs.setattr(node.ino, size=0)
    assert kernel.notes == [], "told once"
    del kernel.decline["IOMAP_INVAL_MAPPINGS"]
    kernel.evict(node)


# --- hazards of the kernel (9.2 to 9.7, 9.15) ---------------------------------------------------------------


def test_9_2_device_invalidations_have_a_length_and_come_in_time(kernel: SimFiles) -> None:
    """The device asserts that no cached metadata lies under file data: here a directory becomes file data."""
    directory = kernel.mkdir(b"dir")
    for number in range(100):
        kernel.close(kernel.create(b"%d" % number + b"n" * 200, directory.nodeid))
    kernel.vfs.commit()
    for number in range(100):
        kernel.unlink(b"%d" % number + b"n" * 200, directory.nodeid)
    kernel.call(Opcode.RMDIR, ROOT, b"dir\0")
    kernel.evict(directory)
    kernel.vfs.commit()
    fh = kernel.create(b"big")
    written = fill(kernel, fh)
    assert written > 5 << 20
    ranges = [record for name, record, _ in kernel.notes if name == "IOMAP_DEV_INVAL"]
    assert ranges and all(record.length > 0 and record.dev == 3 for record in ranges)
    kernel.truncate(kernel.handles[fh], 0)


def test_9_3_all_of_a_file_is_dropped_in_two_steps(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    found = kernel.begin(node, 0, 4096, 0)
    assert found.cookie
    kernel.operations.kernel_maps.invalidate(node.ino, 0, (1 << 64) - 1)
    assert node.cache is not None and node.cache.seq != found.cookie, "what was handed out is noticed to be gone"
    assert node.cache.mappings(IoDir.READ) == []


@pytest.mark.parametrize("written", [0, 4096])
def test_9_5_failed_direct_writes_give_their_blocks_back(kernel: SimFiles, written: int) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 4096)
    kernel.fsync(fh)
    before = kernel.vfs.getattr(node.ino).blocks
    kernel.device.broken = range(kernel.device.size)
    fails(errno.EIO, lambda: kernel.direct_write(node, 8192, b"d" * (4096 + written)))
    kernel.device.broken = None
    assert kernel.vfs.getattr(node.ino).blocks == before
    assert kernel.stat(node) == kernel.vfs.getattr(node.ino).size == 4096


def test_9_6_and_9_7_reports_are_trimmed_and_end_in_one_hole(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 40_000)
    kernel.fsync(fh)
    mapping = kernel.begin(node, 20_000, 1, int(OpFlags.REPORT)).map
    assert mapping.offset in (0, 16_384), "from the cache whole, else from the block asked for"
    node.cache = None
    assert kernel._ask(node, 20_000, 1, int(OpFlags.REPORT))[0].offset == 16_384
    tail, _ = kernel._ask(node, 1 << 20, 1, int(OpFlags.REPORT))
    assert (tail.type, tail.end) == (MapType.HOLE, kernel.max_bytes)
    assert sum(m.length for m in kernel.fiemap(node)) == 40_960


def test_seek_data_sees_pages_over_what_was_a_hole(kernel: SimFiles) -> None:
    """A hole in the kernel's cache is dropped when blocks are allocated there: copies would lose the pages."""
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.truncate(node, 1 << 20)
    assert kernel.read(node, 0, 4096) == bytes(4096)
    assert node.cache is not None and node.cache.lookup(IoDir.READ, 65_536).mapping
    kernel.write(node, 65_536, b"data")
    assert kernel.seek(node, 0, os.SEEK_DATA) == 65_536
    kernel.fsync(fh)
    assert kernel.seek(node, 0, os.SEEK_DATA) == 65_536


def test_6_3_atomic_writes_and_swap_files_are_not_retried(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.fallocate(fh, 0, 0, 65_536)
    op = int(OpFlags.WRITE | OpFlags.DIRECT | OpFlags.ATOMIC)
    found = kernel.begin(node, 4096, 4096, op)
    assert found.cookie == 0 and found.map.flags == MapFlags.ATOMIC_BIO
    assert kernel.begin(node, 4096, 4096, int(OpFlags.REPORT | OpFlags.SWAPFILE)).map.offset == 4096
