"""copy_file_range: contents, holes, what is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from py4fs.api import Filesystem, OpenOptions, open_image
from py4fs.errors import BadHandle, Busy, FileTooBig, Invalid, NoSpace, NotPermitted, Overflow
from py4fs.ext4.layout.inode import EXT4_IMMUTABLE_FL
from py4fs.ext4.volume import VolumeOptions
from py4fs.iomap.records import MapType
from py4fs.vfs import ROOT
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.volumes import Clock
from tests.support.worlds import outcome

BLOCK = 1024


def open_fs(image: Path) -> Filesystem:
    options = OpenOptions(atime="strictatime", volume=VolumeOptions(strict=True))
    return open_image(image, clock=Clock(), options=options)


@pytest.fixture(params=["extents", "map"])
def fs(request: pytest.FixtureRequest, make_image: ImageMaker) -> Iterator[Filesystem]:
    args = () if request.param == "extents" else ("-O", "^extent,^64bit,^flex_bg")
    fs = open_fs(make_image("16M", "-b", str(BLOCK), *args))
    yield fs
    fs.close()


def sparse(fs: Filesystem, path: str, rng: random.Random) -> bytes:
    """A file with data, holes, unwritten blocks; returns its contents."""
    content = bytearray(rng.randrange(20, 60) * BLOCK + rng.randrange(BLOCK))
    with fs.open(path, "wb") as file:
        file.truncate(len(content))
        for _ in range(6):
            start = rng.randrange(len(content))
            data = rng.randbytes(min(rng.randrange(1, 8 * BLOCK), len(content) - start))
            file.seek(start)
            file.write(data)
            content[start : start + len(data)] = data
    return bytes(content)


def test_random_copies(fs: Filesystem, rng: random.Random) -> None:
    """Between files with holes, at any offset, also in one file: the contents are those of a model."""
    for number in range(60):
        names = ["/a", "/b"]
        contents = {name: bytearray(sparse(fs, name, rng)) for name in names}
        source, target = rng.choice(names), rng.choice(names)
        unit = rng.choice([1, BLOCK])
        start = rng.randrange(len(contents[source])) // unit * unit
        at = rng.randrange(90 * BLOCK) // unit * unit
        length = rng.randrange(1, 70 * BLOCK)
        want = bytes(contents[source][start : start + length])
        if source == target and at < start + len(want) and start < at + len(want):
            continue
        with fs.open(source) as origin, fs.open(target, "r+b") as copy:
            assert copy.copy_range(origin, start, at, length) == len(want), number
        model = contents[target]
        model.extend(bytes(max(0, at + len(want) - len(model))))
        model[at : at + len(want)] = want
        for name in names:
            assert fs.read_bytes(name) == contents[name], number


def test_holes_stay(fs: Filesystem) -> None:
    """Also where the target had data, and at its end."""
    with fs.open("/from", "wb") as file:
        file.write(b"a" * BLOCK)
        file.seek(100 * BLOCK)
        file.write(b"z" * BLOCK)
        file.truncate(200 * BLOCK)
    fs.write_bytes("/old", b"o" * 50 * BLOCK)
    before = fs.stat("/old")
    fs.copy("/from", "/new")
    with fs.open("/from") as origin, fs.open("/old", "r+b") as copy:
        assert copy.copy_range(origin, 0, 0, 1 << 40) == 200 * BLOCK
    for name in ("/new", "/old"):
        assert fs.read_bytes(name) == fs.read_bytes("/from")
        mapped = [m for m in fs.mappings(name) if m.type == MapType.MAPPED]
        assert [(m.offset, m.length) for m in mapped] == [(0, BLOCK), (100 * BLOCK, BLOCK)]
        assert fs.stat(name).size == 200 * BLOCK
    after = fs.stat("/old")
    assert after.mtime == after.ctime > before.mtime
    assert fs.stat("/from").atime > before.mtime


def test_large(fs: Filesystem) -> None:
    """In more pieces than one."""
    data = os.urandom(3_500_001)
    fs.write_bytes("/from", data)
    fs.copy("/from", "/to")
    assert fs.read_bytes("/to") == data


def test_without_space(make_image: ImageMaker) -> None:
    """What there was room for is a short copy; the next one meets the error."""
    fs = open_fs(make_image("8M", "-b", str(BLOCK), "-O", "^has_journal"))
    fs.write_bytes("/from", os.urandom(1 << 20) * 5)
    with fs.open("/from") as origin, fs.open("/to", "wb") as copy:
        size = fs.stat("/from").size
        done = copy.copy_range(origin, 0, 0, size)
        assert 0 < done < size == 5 << 20
        with pytest.raises(NoSpace):
            copy.copy_range(origin, done, done, size)
    assert fs.read_bytes("/to") == fs.read_bytes("/from")[:done]
    fs.close()


def test_refused(fs: Filesystem) -> None:
    vfs = fs.vfs
    fs.write_bytes("/a", b"a" * 5000)
    fs.write_bytes("/b", b"b" * 5000)
    a, b = fs.stat("/a").ino, fs.stat("/b").ino
    reading, writing = vfs.open(a, os.O_RDONLY), vfs.open(b, os.O_WRONLY)
    both, appending = vfs.open(a, os.O_RDWR), vfs.open(b, os.O_WRONLY | os.O_APPEND)
    assert vfs.copy_file_range(reading, 5000, writing, 0, 10) == 0
    assert vfs.copy_file_range(reading, 0, writing, 0, 0) == 0
    refusals: list[tuple[type[OSError], tuple[int, int, int, int, int]]] = [
        (BadHandle, (writing, 0, writing, 0, 10)),
        (BadHandle, (reading, 0, reading, 0, 10)),
        (BadHandle, (reading, 0, appending, 0, 10)),
        (BadHandle, (999, 0, writing, 0, 10)),
        (Invalid, (reading, -1, writing, 0, 10)),
        (Invalid, (reading, 0, both, 9, 10)),
        (Invalid, (reading, 9, both, 0, 10)),
        (Overflow, (reading, 0, writing, (1 << 63) - 5, (1 << 64) - 1)),
        (FileTooBig, (reading, 0, writing, 1 << 50, 10)),
    ]
    for error, arguments in refusals:
        with pytest.raises(error):
            vfs.copy_file_range(*arguments)
    assert vfs.copy_file_range(reading, 0, both, 10, 10) == 10
    vfs.set_flags(b, fs.stat("/b").flags | EXT4_IMMUTABLE_FL, ROOT)
    with pytest.raises(NotPermitted):
        vfs.copy_file_range(reading, 0, writing, 0, 10)
    vfs.set_flags(b, fs.stat("/b").flags & ~EXT4_IMMUTABLE_FL, ROOT)
    assert fs.read_bytes("/b") == b"b" * 5000
    for fh in (reading, writing, both, appending):
        vfs.release(fh)


def test_a_write_in_flight(make_image: ImageMaker) -> None:
    """One that nobody can tell apart from the copy is waited for."""
    fs = open_fs(make_image("16M", "-b", "4096"))
    vfs = fs.vfs
    fs.write_bytes("/a", b"a" * 5000)
    origin, (target, _) = vfs.open(fs.stat("/a").ino, os.O_RDONLY), vfs.create(2, b"b", 0o644, os.O_RDWR)
    plan = vfs.plan_write(target, 100, 100)
    with pytest.raises(Busy):
        vfs.copy_file_range(origin, 0, target, 0, 50)
    vfs.abort_write(target, plan)
    assert vfs.copy_file_range(origin, 0, target, 0, 50) == 50
    vfs.release(origin)
    vfs.release(target)
    fs.close()


def test_outcomes_of_the_kernel(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """The same calls on the kernel's ext4: results, errors, contents."""
    image = make_image("16M", "-b", str(BLOCK))
    fs = open_fs(make_image.copy(image))
    calls: list[tuple[str, str, int, int, int]] = [
        ("a", "b", 0, 100, 3000), ("a", "b", 4000, 0, 3000), ("a", "b", 5000, 0, 10), ("a", "a", 0, 1000, 2000),
        ("a", "a", 0, 3000, 2000), ("a", "b", 0, 1 << 44, 10), ("a", "b", 0, (1 << 63) - 9, 10), ("b", "a", 3, 9, 0),
    ]  # fmt: skip
    with kernel_mount(image) as root:
        for name in "ab":
            (root / name).write_bytes(name.encode() * 5000)
            fs.write_bytes(name, name.encode() * 5000)
        for source, target, off_in, off_out, length in calls:
            results: list[Any] = []
            with (root / source).open("rb") as origin, (root / target).open("r+b") as copy:
                fds = origin.fileno(), copy.fileno()
                results.append(outcome(os.copy_file_range, *fds, length, off_in, off_out))
            with fs.open(source) as ours, fs.open(target, "r+b") as our_copy:
                results.append(outcome(our_copy.copy_range, ours, off_in, off_out, length))
            assert results[0] == results[1], (source, target, off_in, off_out, length)
            for name in "ab":
                assert fs.read_bytes(name) == (root / name).read_bytes()
    fs.close()
