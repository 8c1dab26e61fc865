"""Random I/O of a kernel with iomap on a real image, as its patches are coded and as they are meant, against bytes.

Whatever the kernel leaves out, the size and contents have to be on the device after fsync and close (IOMAP.md 9.1).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from py4fs.api import open_image
from py4fs.iomap.records import Mapping, MapType, has_device
from tests.support.image import ImageMaker
from tests.support.simdevice import LEAD
from tests.support.simfiles import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, SimFiles
from tests.support.simkernel import Node
from tests.support.simmount import sim_mount

LARGEST = 400_000
STEPS = [
    *("write", "write", "write", "append", "append", "direct", "directread", "mmap", "read", "read", "stat", "stat"),
    *("truncate", "punch", "zero", "prealloc", "fsync", "writeback", "close", "seek", "fiemap"),
]


def blocks_of(mapping: Mapping, block: int) -> range:
    return range(mapping.offset, mapping.end, block)


class Model:
    """A file twice: in the simulated kernel and in a bytearray."""

    def __init__(self, kernel: SimFiles, name: bytes, largest: int = LARGEST) -> None:
        self.largest = largest
        self.kernel = kernel
        self.name = name
        self.fh = kernel.create(name)
        self.node: Node = kernel.handles[self.fh]
        self.data = bytearray()

    def put(self, pos: int, data: bytes) -> None:
        self.data.extend(bytes(max(pos + len(data) - len(self.data), 0)))
        self.data[pos : pos + len(data)] = data

    def step(self, rng: random.Random) -> None:
        kernel, node = self.kernel, self.node
        what = rng.choice(STEPS)
        pos = rng.choice([rng.randrange(self.largest), rng.randrange(len(self.data) + 1)])
        data = rng.randbytes(min(rng.choice([1, 100, 4096, 10_000, 50_000]), self.largest // 4))
        if not rng.randrange(8):
            data = bytes(len(data))
        if what == "append":
            pos, what = len(self.data), "write"
        if what == "write":
            assert kernel.write(node, pos, data) == len(data)
            self.put(pos, data)
        elif what == "direct":
            pos, data = pos - pos % 512, rng.randbytes(rng.choice([512, 4096, 20_480]))
            assert kernel.direct_write(node, pos, data) == len(data)
            self.put(pos, data)
        elif what == "directread":
            pos -= pos % 512
            assert kernel.direct_read(node, pos, 8192) == self.data[pos : pos + 8192]
        elif what == "mmap" and pos < len(self.data):
            data = data[: len(self.data) - pos][:5000]
            kernel.mmap_write(node, pos, data)
            self.put(pos, data)
        elif what == "read":
            assert kernel.read(node, pos, len(data)) == self.data[pos : pos + len(data)]
        elif what == "truncate":
            kernel.truncate(node, pos)
            self.data = self.data[:pos].ljust(pos, b"\0")
        elif what in ("punch", "zero", "prealloc"):
            self._fallocate(rng, what, pos, len(data))
        elif what == "fsync":
            kernel.fsync(self.fh)
            assert kernel.vfs.getattr(node.ino).size == len(self.data), "the size is on the device"
        elif what == "writeback":
            kernel.writeback(node)
        elif what == "close":
            kernel.close(self.fh)
            assert kernel.vfs.getattr(node.ino).size == len(self.data)
            if rng.randrange(2):
                kernel.evict(node)
            self.fh = kernel.open(self.name)
            self.node = kernel.handles[self.fh]
        elif what == "seek" and pos < len(self.data):
            self._seek(pos)
        elif what == "fiemap":
            self._fiemap()
        assert kernel.stat(self.node) == len(self.data)

    def _fallocate(self, rng: random.Random, what: str, pos: int, count: int) -> None:
        keep = what == "punch" or bool(rng.randrange(2))
        mode = {"punch": PUNCH_HOLE, "zero": ZERO_RANGE, "prealloc": 0}[what] | (KEEP_SIZE if keep else 0)
        self.kernel.fallocate(self.fh, mode, pos, count)
        if not keep:
            self.data.extend(bytes(max(pos + count - len(self.data), 0)))
        if what != "prealloc":
            end = min(pos + count, len(self.data))
            self.data[pos:end] = bytes(max(end - pos, 0))

    def _seek(self, pos: int) -> None:
        """No byte that is not zero lies in what SEEK_HOLE and SEEK_DATA call a hole."""
        hole = self.kernel.seek(self.node, pos, 4)
        try:
            data = self.kernel.seek(self.node, hole, 3)
        except OSError:
            data = len(self.data)
        assert not any(self.data[hole:data])

    def _fiemap(self) -> None:
        """Every block is shown where it is; what the cache has from before `pos` on is shown again (9.6)."""
        block, lead = self.kernel.block, LEAD
        shown = [m for m in self.kernel.fiemap(self.node) if m.type != MapType.INLINE]
        there = [m for m in self.kernel.vfs.mappings(self.node.ino) if has_device(m.type)]
        assert {(at, m.addr + at - m.offset) for m in shown for at in blocks_of(m, block)} == {
            (at, m.addr + lead + at - m.offset) for m in there for at in blocks_of(m, block)
        }

    def check(self) -> None:
        assert self.kernel.read(self.node, 0, len(self.data) + 1) == self.data
        self.kernel.close(self.fh)


@pytest.mark.parametrize("sockets", [False, True], ids=["calls", "sockets"])
@pytest.mark.parametrize("as_coded", [True, False], ids=["as-coded", "intended"])
@pytest.mark.parametrize(
    ("block", "args"), [(4096, ()), (1024, ("-t", "ext2"))], ids=["4k-extents", "1k-block-map"]
)
def test_random_io(
    make_image: ImageMaker,
    rng: random.Random,
    block: int,
    args: tuple[str, ...],
    as_coded: bool,
    sockets: bool,
) -> None:
    image = make_image("24M", "-b", str(block), *args)
    extents = not args
    with sim_mount(image, block, as_coded=as_coded, sockets=sockets) as kernel:
        models = [Model(kernel, b"one"), Model(kernel, b"two")]
        for number in range(200 if sockets else 400):
            model = rng.choice(models)
            if extents:
                model.step(rng)
            else:
                step_without_ranges(model, rng)
            if number % 50 == 49:
                metadata_comes_and_goes(kernel, number)
        for model in models:
            model.check()
    assert_contents(image, {model.name: bytes(model.data) for model in models})


@pytest.mark.parametrize("as_coded", [True, False], ids=["as-coded", "intended"])
def test_random_io_on_contents_in_the_inode(make_image: ImageMaker, rng: random.Random, as_coded: bool) -> None:
    """Files that go in and out of their inodes (6.7)."""
    image = make_image("24M", "-b", "4096", "-I", "512", "-O", "inline_data")
    with sim_mount(image, 4096, as_coded=as_coded) as kernel:
        models = [Model(kernel, b"f%d" % number, largest=rng.choice([150, 400, 900])) for number in range(12)]
        for _ in range(600):
            rng.choice(models).step(rng)
        for model in models:
            model.check()
        assert {"READ", "WRITE"} <= set(kernel.sent)
    assert_contents(image, {model.name: bytes(model.data) for model in models})


def step_without_ranges(model: Model, rng: random.Random) -> None:
    """fallocate is for extents only."""
    try:
        model.step(rng)
    except OSError as exc:
        assert exc.errno == 95, exc


def metadata_comes_and_goes(kernel: SimFiles, number: int) -> None:
    """Directories are made and removed, so that their blocks become file data (DEV_INVAL)."""
    name = b"d%d" % number
    directory = kernel.mkdir(name)
    for entry in range(60):
        kernel.close(kernel.create(b"%d" % entry + b"x" * 200, directory.nodeid))
    kernel.vfs.commit()
    for entry in range(60):
        kernel.unlink(b"%d" % entry + b"x" * 200, directory.nodeid)
    for node in [n for n in kernel.nodes.values() if n.nodeid != directory.nodeid and n not in kernel.handles.values()]:
        kernel.evict(node)
    kernel.call(11, 1, name + b"\0")
    kernel.evict(directory)
    kernel.vfs.commit()


def assert_contents(image: Path, files: dict[bytes, bytes]) -> None:
    with open_image(str(image), readonly=True) as filesystem:
        for name, data in files.items():
            assert filesystem.read_bytes("/" + name.decode()) == data

