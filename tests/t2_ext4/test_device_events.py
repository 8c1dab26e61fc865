"""Freed metadata is announced before file data can lie there (IOMAP.md recipe 7 and 9.2): DEV_INVAL."""

from __future__ import annotations

import os

import pytest

from py4fs.errors import NoSpace
from py4fs.ext4.volume import Volume
from py4fs.iomap.records import MapType
from py4fs.vfs import ROOT, ROOT_INO, Vfs
from tests.support.image import ImageMaker
from tests.support.volumes import open_volume


def listen(vfs: Vfs) -> list[tuple[int, int]]:
    heard: list[tuple[int, int]] = []
    vfs.server.subscribe_device(lambda offset, length: heard.append((offset, length)))
    return heard


def blocks_of(heard: list[tuple[int, int]], block: int) -> set[int]:
    assert all(length > 0 and length % block == 0 and offset % block == 0 for offset, length in heard)
    return {number for offset, length in heard for number in range(offset // block, (offset + length) // block)}


def directory_blocks(volume: Volume, ino: int) -> set[int]:
    inode = volume.inodes.get(ino)
    count = inode.size // volume.geometry.block_size
    return {volume.files.block_of(inode, lblk) for lblk in range(count)}


@pytest.mark.parametrize("args", [("-b", "1024"), ("-b", "1024", "-O", "^extents,^64bit")], ids=["extents", "map"])
def test_directories_xattrs_and_maps(make_image: ImageMaker, args: tuple[str, ...]) -> None:
    image = make_image("32M", *args)
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        block = volume.geometry.block_size
        directory = vfs.mkdir(ROOT_INO, b"d", 0o755, ROOT).ino
        for number in range(100):
            vfs.mknod(directory, b"a-long-name-%03d" % number, 0o100644, 0, ROOT)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        for lblk in range(0, 1000, 2):
            vfs.write(fh, lblk * block, b"x")
        vfs.setxattr(attr.ino, b"user.big", b"v" * 600, 0, ROOT)
        link = vfs.symlink(ROOT_INO, b"slow", b"t" * 200, ROOT).ino
        inode = volume.inodes.get(attr.ino)
        data = {m.addr // block for m in vfs.mappings(attr.ino) if m.type == MapType.MAPPED}
        gone = directory_blocks(volume, directory) | {inode.file_acl}
        gone.add(volume.files.block_of(volume.inodes.get(link), 0))
        map_blocks = inode.blocks // (block // 512) - len(data) - 1
        assert map_blocks >= 2
        vfs.release(fh)
        volume.commit()
        heard = listen(vfs)
        for number in range(100):
            vfs.unlink(directory, b"a-long-name-%03d" % number, ROOT)
        vfs.rmdir(ROOT_INO, b"d", ROOT)
        vfs.unlink(ROOT_INO, b"f", ROOT)
        vfs.unlink(ROOT_INO, b"slow", ROOT)
        assert heard == [], "nothing can be reused before the commit"
        volume.commit()
        told = blocks_of(heard, block)
        assert told >= gone
        assert not told & data, "file data is none of this"
        assert len(told) == len(gone) + map_blocks
        heard.clear()
        volume.commit()
        assert heard == []


def test_announced_before_the_blocks_can_be_had(make_image: ImageMaker) -> None:
    """Filling the device: every block that was metadata is known to be free before a file gets it."""
    image = make_image("8M", "-b", "1024", "-O", "^has_journal", "-m", "0")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        block = volume.geometry.block_size
        old: set[int] = set()
        for number in range(400):  # more than what is kept back for conversions
            name = b"d%d" % number
            ino = vfs.mkdir(ROOT_INO, name, 0o755, ROOT).ino
            old |= directory_blocks(volume, ino)
            vfs.rmdir(ROOT_INO, name, ROOT)
        heard = listen(vfs)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        size = 0
        reused: set[int] = set()
        with pytest.raises(NoSpace):
            while True:
                size += vfs.write(fh, size, b"x" * 65536)
                mapped = [m for m in vfs.mappings(attr.ino) if m.type == MapType.MAPPED]
                runs = [(m.addr // block, m.length // block) for m in mapped]
                reused = old & {number for first, count in runs for number in range(first, first + count)}
                assert reused <= blocks_of(heard, block)
        assert reused, "the old directories' blocks were used again"


def test_an_undone_operation_announces_nothing(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        ino = vfs.symlink(ROOT_INO, b"slow", b"t" * 200, ROOT).ino
        volume.commit()
        heard = listen(vfs)
        inode = volume.inodes.get(ino)
        with pytest.raises(RuntimeError), volume.operation(64) as tx:
            assert volume.files.remove(tx, inode, 0, 1)
            raise RuntimeError
        with volume.operation(1) as tx:
            tx.touch(inode)
        volume.commit()
        assert heard == []
        assert vfs.readlink(ino) == b"t" * 200


def test_pinned_io_holds_the_announcement_back(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        vfs.mkdir(ROOT_INO, b"d", 0o755, ROOT)
        volume.commit()
        heard = listen(vfs)
        pin = volume.pins.acquire()
        vfs.rmdir(ROOT_INO, b"d", ROOT)
        volume.commit()
        assert heard == []
        volume.pins.release(pin)
        assert len(heard) == 1


def test_zeroed_blocks_of_a_block_map_are_flushed_and_announced(
    make_image: ImageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are zeroed through our own cache of the device, which must not write over what comes past it."""
    image = make_image("16M", "-b", "1024", "-t", "ext2")
    with open_volume(image) as volume:
        vfs = Vfs(volume)
        fh, attr = vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR)
        order: list[str] = []
        vfs.server.subscribe_device(lambda offset, length: order.append(f"told {offset} {length}"))
        flush = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: (order.append("flush"), flush(fd))[1])  # type: ignore[func-returns-value]
        vfs.write(fh, 1024, b"x" * 3000)
        _, mapping = vfs.mappings(attr.ino)
        assert order == ["flush", f"told {mapping.addr} 3072"]
