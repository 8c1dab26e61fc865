"""Room kept behind growing files: long extents for writers in turns, and nothing left over of it."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import NoSpace
from py4fs.ext4.volume import Volume
from py4fs.ext4.windows import MAX_BYTES, MAX_WINDOWS, MIN_BYTES, Windows, lookahead
from py4fs.iomap.records import has_device
from py4fs.vfs import ROOT_INO, Vfs
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs
from tests.support.volumes import open_volume

WRITERS = 4
MIB = 1 << 20


def append_in_turns(vfs: Vfs, chunk: int, total: int, writers: int = WRITERS) -> list[tuple[int, int]]:
    """Files that grow together by ``chunk`` bytes at a time; returns (handle, inode number)."""
    files = [vfs.create(ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR) for number in range(writers)]
    for pos in range(0, total, chunk):
        for number, (fh, _) in enumerate(files):
            assert vfs.write(fh, pos, bytes([number + 1]) * chunk) == chunk
    return [(fh, attr.ino) for fh, attr in files]


def extents(vfs: Vfs, ino: int) -> int:
    """Pieces that are contiguous on the device, however the map stores them."""
    count, expected = 0, -1
    for mapping in vfs.mappings(ino):
        if has_device(mapping.type):
            count += mapping.addr != expected
            expected = mapping.addr + mapping.length
    return count


@pytest.mark.parametrize("chunk", [4096, 131072])
@pytest.mark.parametrize(
    "args",
    [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "^extents,^64bit"), ("-t", "ext2", "-b", "1024")],
    ids=["4k", "1k", "4k-block-map", "1k-ext2"],
)
def test_writers_in_turns_get_long_extents(make_image: ImageMaker, args: tuple[str, ...], chunk: int) -> None:
    image = make_image("128M", *args)
    total = 8 * MIB if chunk > 4096 else 4 * MIB
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        files = append_in_turns(vfs, chunk, total)
        counts = [extents(vfs, ino) for _, ino in files]
        assert len(volume.alloc.windows) == WRITERS
        # the first piece is small, the others double; groups of 8 MiB (1 KiB blocks) cut them, pointers lie between
        assert max(counts) <= 12, counts
        for number, (fh, ino) in enumerate(files):
            assert vfs.read(fh, 0, total) == bytes([number + 1]) * total
            free = volume.superblock.free_blocks
            vfs.release(fh)
            assert vfs.getattr(ino).size == total
            assert volume.superblock.free_blocks == free, "there was nothing on the device to give back"
        assert len(volume.alloc.windows) == 0


@pytest.mark.parametrize(
    ("args", "writers", "chunk", "total", "most"),
    [
        ((), 2, MIB, 48 * MIB, 1),
        ((), 4, MIB, 12 * MIB, 1),
        ((), 4, 65536, 16 * MIB, 3),
        # groups of 8 MiB: each file has two for itself, with a copy of the superblock between them at the most
        (("-b", "1024"), 3, MIB, 12 * MIB, 2),
    ],
)
def test_long_files_keep_apart(
    make_image: ImageMaker, args: tuple[str, ...], writers: int, chunk: int, total: int, most: int
) -> None:
    """Each goes where it will not meet another soon, or moves there when they have met."""
    image = make_image("1G", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        files = append_in_turns(vfs, chunk, total, writers)
        counts = [extents(vfs, ino) for _, ino in files]
        assert max(counts) <= most, counts
        for fh, _ in files:
            vfs.release(fh)


def test_long_files_one_after_the_other_lie_side_by_side(make_image: ImageMaker) -> None:
    """What is not open any more is in nobody's way; neither is a file that grows by little."""
    image = make_image("1G")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        log, attr = vfs.create(ROOT_INO, b"log", 0o644, os.O_RDWR)
        for pos in range(0, 16384, 4096):
            vfs.write(log, pos, b"l" * 4096)
        assert len(volume.alloc.windows) == 1
        end = vfs.mappings(attr.ino)[0].addr + MIN_BYTES + 16384
        for number in range(3):
            fh, attr = vfs.create(ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
            for pos in range(0, 3 * MIB, MIB):
                vfs.write(fh, pos, bytes(MIB))
            first = vfs.mappings(attr.ino)[0].addr
            assert 0 <= first - end < MIN_BYTES, (number, first, end)
            assert extents(vfs, attr.ino) == 1
            end = first + 3 * MIB
            vfs.release(fh)


def test_long_files_share_what_there_is(make_image: ImageMaker) -> None:
    """A volume of one group, and one where no group is half empty any more: there is no place apart."""
    for args in ((), ("-b", "1024")):
        image = make_image("32M", *args, name=f"small{len(args)}.img")
        with open_volume(image) as volume:
            vfs = Vfs(volume)
            rest, _ = vfs.create(ROOT_INO, b"rest", 0o644, os.O_RDWR)
            room = volume.superblock.free_blocks * volume.geometry.block_size
            for pos in range(0, room * 5 // 8 if args else 0, MIB):
                vfs.write(rest, pos, bytes(MIB))
            vfs.release(rest)
            files = append_in_turns(vfs, 65536, 3 * MIB, 2)
            for number, (fh, ino) in enumerate(files):
                assert extents(vfs, ino) <= 6
                assert vfs.read(fh, 0, 3 * MIB) == bytes([number + 1]) * 3 * MIB


def test_as_good_as_the_kernel(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """The same appends, each written through at once (else the kernel sees only whole files), counted by filefrag."""
    ours, theirs = make_image("256M", name="ours.img"), make_image("256M", name="theirs.img")
    chunk, total = 64 << 10, 8 * MIB
    with open_volume(ours) as volume:
        append_in_turns(Vfs(volume), chunk, total)
    with kernel_mount(theirs) as top:
        fds = [os.open(top / f"f{number}", os.O_CREAT | os.O_WRONLY | os.O_DSYNC) for number in range(WRITERS)]
        for _ in range(0, total, chunk):
            for fd in fds:
                os.write(fd, bytes(chunk))
        for fd in fds:
            os.close(fd)
        kernel = [filefrag(top / f"f{number}") for number in range(WRITERS)]
    with kernel_mount(ours, "ro") as top:
        mine = [filefrag(top / f"f{number}") for number in range(WRITERS)]
    print(f"extents: py4fs {mine}, kernel {kernel}")
    assert max(mine) <= max(*kernel, 8)


def filefrag(path: Path) -> int:
    text = subprocess.run(["filefrag", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) extents? found", text)
    assert found, text
    return int(found[1])


def test_files_filled_in_place_get_long_extents_too(make_image: ImageMaker) -> None:
    """As downloads do: the size is set first, then the file is filled from its start."""
    image = make_image("128M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        files = [vfs.create(ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR) for number in range(WRITERS)]
        for _, attr in files:
            vfs.setattr(attr.ino, size=4 * MIB)
        for pos in range(0, 4 * MIB, 16384):
            for fh, _ in files:
                vfs.write(fh, pos, b"x" * 16384)
        assert max(extents(vfs, attr.ino) for _, attr in files) <= 8


def test_small_files_are_packed(make_image: ImageMaker) -> None:
    """Room is kept for what grows; files written at once lie side by side, even while all of them are open."""
    image = make_image("32M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        places = []
        for number in range(50):
            fh, attr = vfs.create(ROOT_INO, b"s%d" % number, 0o644, os.O_RDWR)
            vfs.write(fh, 0, b"x" * 9000)
            places.append(vfs.mappings(attr.ino)[0].addr)
        block = volume.geometry.block_size
        step = -(-9000 // block) * block
        assert places == list(range(places[0], places[0] + 50 * step, step))
        assert len(volume.alloc.windows) == 0


def test_the_last_blocks_can_be_had(make_image: ImageMaker) -> None:
    """Windows are no reservation: a device fills up to the last block although files are open that grow."""
    image = make_image("8M", "-b", "1024", "-m", "0", "-O", "^has_journal")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        append_in_turns(vfs, 16384, 256 << 10)
        assert len(volume.alloc.windows) == WRITERS
        fh, _ = vfs.create(ROOT_INO, b"rest", 0o644, os.O_RDWR)
        size = 0
        with pytest.raises(NoSpace):
            while True:
                size += vfs.write(fh, size, b"r" * 65536)
        assert volume.superblock.free_blocks <= volume.alloc.conversion_reserve + 4
        assert vfs.read(fh, 0, size) == b"r" * size
    assert "rest" in debugfs(image, "ls -p /")


def test_windows_go_to_whoever_needs_them_last(make_image: ImageMaker) -> None:
    image = make_image("16M", "-O", "^has_journal")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        ((_, ino), *_) = append_in_turns(vfs, 131072, MIB)
        mapping = vfs.mappings(ino)[-1]
        behind = (mapping.addr + mapping.length) // volume.geometry.block_size
        assert not take(volume, behind, 8) & {behind}, "other files keep away"
        assert take(volume, behind, 8, owner=ino) == set(range(behind, behind + 8)), "it is ours"


def take(volume: Volume, goal: int, count: int, owner: int = 0) -> set[int]:
    """The blocks that an allocation would get (and does not)."""
    first = got = 0
    with pytest.raises(ZeroDivisionError), volume.operation(8) as tx:
        first, got = volume.alloc.new_blocks(tx, goal, count, owner=owner)
        raise ZeroDivisionError
    return set(range(first, first + got))


def test_lookahead_grows_with_the_file() -> None:
    least, most = MIN_BYTES // 4096, MAX_BYTES // 4096
    assert lookahead(0, 1, 4096) == 0, "a small first write says nothing"
    assert lookahead(0, 16, 4096) == least
    assert lookahead(1, 1, 4096) == least
    assert lookahead(least, 1, 4096) == 2 * least
    assert lookahead(1 << 30, 1, 4096) == most
    assert lookahead(0, 1 << 30, 4096) == most


def test_windows_are_few() -> None:
    windows = Windows()
    for ino in range(MAX_WINDOWS + 10):
        windows.put(ino + 1, ino % 3, ino * 10, ino * 10 + 5)
    assert len(windows) == MAX_WINDOWS
    bits = bitarray(40000)
    bits.setall(False)
    assert not windows.mask(0, bits, 0)[0], "the oldest are gone"
    windows.clear()
    assert windows.mask(0, bits, 0) is bits


def test_where_long_windows_are_not() -> None:
    windows = Windows()
    windows.put(1, 0, 100, 200)
    windows.put(2, 2, 0, 99)
    assert windows.crowded(0, 2, 100)
    assert not windows.crowded(0, 1, 100), "one's own is in nobody's way"
    assert not windows.crowded(2, 1, 100), "short"
    assert windows.apart(range(4), 2, 100) == 2, "the first of 0 would go on in 1"
    assert windows.apart(range(2), 2, 100) == 1, "better than with the first"
    assert windows.apart(range(1), 2, 100) is None
    assert windows.apart(range(4), 1, 100) == 0


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(0, 50), st.integers(0, 50)), max_size=30),
    st.integers(1, 6),
)
def test_masks_against_a_model(puts: list[tuple[int, int, int, int]], asker: int) -> None:
    windows = Windows()
    model: dict[int, tuple[int, int, int]] = {}
    used = random.Random(1).sample(range(50), 10)
    for ino, group, start, end in puts:
        windows.put(ino, group, start, end)
        model.pop(ino, None)
        if start < end:
            model[ino] = (group, start, end)
    for group in range(3):
        bits = bitarray(50)
        bits.setall(False)
        for bit in used:
            bits[bit] = True
        want = bits.copy()
        for ino, (where, start, end) in model.items():
            if where == group and ino != asker:
                want[start:end] = True
        before = bits.copy()
        assert windows.mask(group, bits, asker) == want
        assert bits == before, "the bitmap itself stays as it is"
    for ino in range(1, 7):
        windows.drop(ino)
    assert len(windows) == 0
