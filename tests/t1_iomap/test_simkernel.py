"""The simulated kernel itself: its answers to notifications (IOMAP.md section 3), and its mistakes (section 9)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import NULL_ADDR, IoDir, Mapping, MapType, OpFlags, hole, nocache
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.simdevice import LEAD
from tests.support.simfiles import SimFiles
from tests.support.simkernel import Node
from tests.support.simmount import sim_mount

BLOCK = 4096
EOF = (1 << 64) - 1


@pytest.fixture(params=[True, False], ids=["as-coded", "intended"])
def kernel(request: pytest.FixtureRequest, make_image: ImageMaker) -> Iterator[SimFiles]:
    with sim_mount(make_image("16M", "-b", "4096"), as_coded=request.param) as kernel:
        yield kernel


@pytest.fixture
def node(kernel: SimFiles) -> Node:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 20_000)
    kernel.fsync(fh)
    kernel.begin(node, 0, BLOCK, 0)
    assert node.cache is not None
    return node


def pure(offset: int, length: int) -> Mapping:
    return Mapping(offset, length, NULL_ADDR, MapType.PURE_OVERWRITE)


def test_3_errnos(kernel: SimFiles, node: Node) -> None:
    here = Mapping(0, BLOCK, LEAD, MapType.MAPPED, 0, 3)
    none = nocache(BLOCK)

    def upsert(mapping: Mapping, nodeid: int = node.nodeid, ino: int = node.ino) -> int:
        return kernel.notified(iomap.upsert_mappings(nodeid, ino, mapping, none))

    def inval(pos: int, length: int) -> int:
        return kernel.notified(iomap.inval_mappings(node.nodeid, node.ino, (pos, length), (0, 0)))

    assert upsert(here) == 0
    assert upsert(here, nodeid=999) == errno.ESTALE
    assert upsert(here, ino=999) == errno.EINVAL
    assert upsert(here._replace(dev=4)) == errno.EUCLEAN
    assert upsert(here._replace(length=100)) == errno.EUCLEAN
    assert upsert(here._replace(addr=LEAD + kernel.device.size)) == errno.EUCLEAN
    assert upsert(here._replace(type=MapType.RETRY_CACHE)) == errno.EUCLEAN
    assert inval(0, BLOCK) == inval(7, 0) == inval(BLOCK, EOF) == 0
    assert inval(1, BLOCK) == inval(0, 1) == errno.EUCLEAN
    assert kernel.notified(iomap.dev_inval(4, 0, 1)) == errno.ENODEV
    assert kernel.notified(iomap.dev_inval(3, LEAD + kernel.device.size, 1)) == errno.EINVAL
    assert kernel.notified(iomap.notification(iomap.Notify.IOMAP_DEV_INVAL, b"short")) == errno.EINVAL
    kernel.vfs.server.invalidate(node.ino)


def test_9_2_device_invalidation_of_nothing(kernel: SimFiles) -> None:
    kernel.mkdir(b"d")
    kernel.vfs.commit()
    block = next(iter(kernel.device.cache))
    kernel.device.flush()
    message = iomap.notification(iomap.Notify.IOMAP_DEV_INVAL, struct.pack("<IIQQ", 3, 0, 0, 0))
    assert kernel.notified(message) == 0
    assert (block in kernel.device.cache) != kernel.as_coded


def test_9_1_a_stat_takes_append_away(kernel: SimFiles, node: Node) -> None:
    kernel.write(node, 20_000, b"y" * 100)
    kernel.stat(node)
    before = kernel.sent.count("IOMAP_IOEND")
    kernel.writeback(node)
    assert (kernel.sent.count("IOMAP_IOEND") == before) == kernel.as_coded


def test_9_3_dropping_a_whole_fork_is_not_noticed(kernel: SimFiles, node: Node) -> None:
    found = kernel.begin(node, 0, BLOCK, 0)
    assert node.cache is not None
    kernel.notified(iomap.inval_mappings(node.nodeid, node.ino, (0, EOF), (0, 0)))
    assert node.cache.mappings(IoDir.READ) == []
    assert (node.cache.seq == found.cookie) == kernel.as_coded


def test_9_4_the_source_of_a_failed_lookup_is_kept(
    kernel: SimFiles, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.cache is not None
    there = Mapping(0, BLOCK, LEAD + 10 * BLOCK, MapType.MAPPED, 0, 3)
    node.cache.upsert(IoDir.WRITE, hole(0, BLOCK))
    node.cache.upsert(IoDir.READ, there)
    monkeypatch.setattr(kernel, "_ask", lambda *args: (there._replace(addr=LEAD), pure(0, BLOCK)))
    found = kernel.begin(node, 0, 100, int(OpFlags.WRITE))
    assert (found.source == there) == kernel.as_coded
    node.cache.clear()


def test_9_15_retry_in_the_write_slot(kernel: SimFiles, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.cache is not None
    there = Mapping(0, BLOCK, LEAD, MapType.MAPPED, 0, 3)
    node.cache.clear()
    answers = iter([(there, pure(0, BLOCK)._replace(type=MapType.RETRY_CACHE)), (there, pure(0, BLOCK))])
    monkeypatch.setattr(kernel, "_ask", lambda *args: next(answers))
    found = kernel.begin(node, 0, 100, int(OpFlags.WRITE))
    assert (found.map.type == MapType.HOLE) == kernel.as_coded, "the data would be dropped without a word"


def test_9_14_syncfs_does_not_wait(kernel: SimFiles, node: Node, log_guard: LogGuard) -> None:
    if kernel.as_coded:
        log_guard.expect("still wait for the end of their writes")
    kernel.operations.kernel_maps.ioend_timeout = 0
    kernel.write(node, 50_000, b"y" * 100)
    kernel.hold_ioends = True
    kernel.syncfs()
    assert bool(kernel.held) == kernel.as_coded
    kernel.release_ioends()
