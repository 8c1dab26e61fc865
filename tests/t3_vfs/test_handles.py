"""Inodes by number and generation, and the parents of directories: what NFS and open_by_handle_at(2) ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from py4fs.api import Filesystem, open_image
from py4fs.errors import NotADirectory, NotFound, Stale
from py4fs.vfs import ROOT_INO
from tests.support.image import ImageMaker
from tests.support.volumes import Clock


@pytest.fixture
def fs(make_image: ImageMaker) -> Iterator[Filesystem]:
    fs = open_image(make_image("16M", "-O", "orphan_file"), clock=Clock())
    yield fs
    fs.close()


def test_by_handle(fs: Filesystem) -> None:
    fs.write_bytes("/f", b"contents")
    attr = fs.stat("/f")
    for generation in (attr.generation, None, 0):
        assert fs.vfs.by_handle(attr.ino, generation) == attr
    assert fs.vfs.by_handle(ROOT_INO, fs.stat("/").generation).ino == ROOT_INO
    with pytest.raises(Stale):
        fs.vfs.by_handle(attr.ino, attr.generation + 1)


def test_stale(fs: Filesystem) -> None:
    """Never in use, reserved, beyond the end, special, gone, used again."""
    special = fs.volume.superblock.record.s_orphan_file_inum
    last = fs.volume.geometry.inodes_count
    for ino in (0, 1, 8, special, last, last + 1, 1 << 40, -1):
        with pytest.raises(Stale):
            fs.vfs.by_handle(ino, None)
    fs.write_bytes("/f", b"contents")
    attr = fs.stat("/f")
    fh = fs.vfs.open(attr.ino, os.O_RDONLY)
    fs.unlink("/f")
    assert fs.vfs.by_handle(attr.ino, attr.generation).nlink == 0
    fs.vfs.release(fh)
    with pytest.raises(Stale):
        fs.vfs.by_handle(attr.ino, attr.generation)
    fs.write_bytes("/g", b"contents")
    again = fs.stat("/g")
    assert again.ino == attr.ino and again.generation != attr.generation
    with pytest.raises(Stale):
        fs.vfs.by_handle(attr.ino, attr.generation)


def test_parents(fs: Filesystem) -> None:
    fs.makedirs("/a/b")
    fs.write_bytes("/a/f", b"")
    b = fs.stat("/a/b").ino
    assert fs.vfs.lookup_parent(b) == fs.stat("/a")
    assert fs.vfs.lookup_parent(fs.stat("/a").ino).ino == fs.vfs.lookup_parent(ROOT_INO).ino == ROOT_INO
    with pytest.raises(NotADirectory):
        fs.vfs.lookup_parent(fs.stat("/a/f").ino)
    held = fs.vfs.opendir(b)
    fs.rmdir("/a/b")
    with pytest.raises(NotFound):
        fs.vfs.lookup_parent(b)
    fs.vfs.releasedir(held)
