"""The direct session in iomap mode: sizes, contents in the inode, copies.

The numbers are sections of IOMAP.md.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import Opcode
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import MapType, OpFlags
from tests.support.image import ImageMaker
from tests.support.simchecks import disk_size, fails
from tests.support.simfiles import SimFiles
from tests.support.simkernel import ROOT
from tests.support.simmount import sim_mount

# --- sizes (9.1) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fsync", "close", "umount"])
def test_9_1_appends_survive_a_stat_before_the_data_is_written(make_image: ImageMaker, how: str) -> None:
    """The block is written already, so that after the stat the kernel says nothing at all."""
    image = make_image("16M", "-b", "4096")
    with sim_mount(image, as_coded=True) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"a" * 100)
        kernel.fsync(fh)
        kernel.write(node, 100, b"b" * 500)
        assert kernel.stat(node) == 600
        before = kernel.sent.count("IOMAP_IOEND")
        if how == "fsync":
            kernel.fsync(fh)
        elif how == "close":
            kernel.close(fh)
        else:
            kernel.umount()
        assert kernel.sent.count("IOMAP_IOEND") == before, "nobody told"
        if how == "umount":
            break_free(kernel)
    with sim_mount(image) as kernel:
        assert kernel.read(kernel.lookup(b"f"), 0, 1000) == b"a" * 100 + b"b" * 500


def break_free(kernel: SimFiles) -> None:
    """Unmounted already: let the fixture's own umount find nothing to do."""
    kernel.umount = lambda: None  # type: ignore[method-assign]


def test_9_1_c_syncfs_does_not_commit_the_size_but_flush_does(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 100)
    kernel.fsync(fh)
    kernel.write(node, 100, b"b" * 500)
    kernel.stat(node)
    kernel.syncfs()
    assert disk_size(kernel, fh) == 100
    kernel.call(Opcode.FLUSH, node.nodeid, structs.FLUSH_IN.pack(fh, 0, 0, 0))
    assert disk_size(kernel, fh) == 600


def test_9_1_d_truncation_wins(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 9000)
    kernel.truncate(node, 50)
    kernel.close(fh)
    assert kernel.vfs.getattr(node.ino).size == 50


def test_6_4_what_cannot_be_is_never_answered_with_enosys(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    mapping = kernel.begin(node, 0, 4096, int(OpFlags.WRITE)).map
    body = [int(OpFlags.WRITE), 0, node.ino, 0, 4096, -5, *mapping]
    kernel.call(iomap.Opcode.IOMAP_END, node.nodeid, iomap.IOMAP_END_IN.pack(*body))
    fails(errno.ESTALE, lambda: kernel.call(iomap.Opcode.IOMAP_END, 999, iomap.IOMAP_END_IN.pack(*body)))
    fails(errno.EINVAL, lambda: kernel.call(iomap.Opcode.IOMAP_END, ROOT, iomap.IOMAP_END_IN.pack(*body)))
    fails(errno.EINVAL, lambda: kernel.call(iomap.Opcode.IOMAP_BEGIN, ROOT, iomap.IOMAP_BEGIN_IN.pack(0, 0, 2, 0, 1)))


# --- copies, contents in the inode (6.6, 6.7) ---------------------------------------------------------------


def test_6_6_the_server_copies_nothing(kernel: SimFiles) -> None:
    source, target = kernel.create(b"a"), kernel.create(b"b")
    kernel.write(kernel.handles[source], 0, b"x" * 9000)
    kernel.fsync(source)
    body = structs.COPY_FILE_RANGE_IN.pack(source, 0, kernel.handles[target].nodeid, target, 0, 9000, 0)
    node = kernel.handles[source]
    fails(errno.ENOSYS, lambda: kernel.call(Opcode.COPY_FILE_RANGE, node.nodeid, body))
    fails(errno.ENOSYS, lambda: kernel.call(Opcode.COPY_FILE_RANGE_64, node.nodeid, body))


def inline_image(make_image: ImageMaker) -> Path:
    return make_image("16M", "-b", "4096", "-I", "256", "-O", "inline_data")


def test_6_7_contents_in_the_inode(make_image: ImageMaker) -> None:
    """Read with zeros behind their end, written, cut; zeros that are appended count, those of a truncation do not."""
    with sim_mount(inline_image(make_image)) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"a" * 50)
        assert kernel.begin(node, 0, 1, 0).map.type == MapType.INLINE
        body = structs.READ_IN.pack(0, 100, 20, 0, 0, 0, 0)
        assert kernel.call(Opcode.READ, node.nodeid, body)[1] == bytes(20)
        kernel.write(node, 50, bytes(20))
        assert disk_size(kernel, fh) == 70
        kernel.call(Opcode.WRITE, node.nodeid, structs.WRITE_IN.pack(0, 30, 4066, 0, 0, 0, 0) + bytes(4066))
        assert disk_size(kernel, fh) == 70, "clipped"
        kernel.truncate(node, 30)
        kernel.truncate(node, 40)
        kernel.close(fh)
        kernel.evict(node)
        fh = kernel.open(b"f")
        assert kernel.read(kernel.handles[fh], 0, 100) == b"a" * 30 + bytes(10)


def test_6_7_contents_leave_the_inode(make_image: ImageMaker) -> None:
    """Growing, by a memory map, by truncation: what had been read before does not lead to a write that cannot be."""
    with sim_mount(inline_image(make_image)) as kernel:
        expected = {}
        for name in (b"write", b"map", b"truncate"):
            fh = kernel.create(name)
            node = kernel.handles[fh]
            kernel.write(node, 0, b"small")
            kernel.close(fh)
            fh = kernel.open(name)
            assert kernel.read(node, 0, 10) == b"small"
            if name == b"write":
                kernel.write(node, 5, b"L" * 9000)
                expected[name] = b"small" + b"L" * 9000
            elif name == b"map":
                kernel.mmap_write(node, 1, b"M")
                expected[name] = b"sMall"
            else:
                kernel.truncate(node, 9000)
                expected[name] = b"small" + bytes(8995)
            kernel.fsync(fh)
            assert kernel.vfs.getattr(node.ino).size == len(expected[name])
            kernel.close(fh)
            kernel.evict(node)
        for name, data in expected.items():
            assert kernel.read(kernel.lookup(name), 0, 10_000) == data


def test_6_7_without_a_handle_only_contents_in_the_inode_are_read(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 9000)
    kernel.fsync(fh)
    body = structs.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)
    fails(errno.EOPNOTSUPP, lambda: kernel.call(Opcode.READ, node.nodeid, body))
    body = structs.WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"y"
    fails(errno.EOPNOTSUPP, lambda: kernel.call(Opcode.WRITE, node.nodeid, body))
