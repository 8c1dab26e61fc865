"""Deleted inodes that wait to be freed: nobody sees that they do, and whoever needs what they hold gets it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from py4fs.api import Filesystem, open_image
from py4fs.errors import CommitPending, NoSpace
from py4fs.vfs import ROOT_INO
from py4fs.vfs.base import AT_A_TIME, MOST_LATER, PATIENCE
from tests.support.image import ImageMaker, e2fsck_clean


@pytest.fixture
def fs(make_image: ImageMaker) -> Iterator[Filesystem]:
    with open_image(make_image("16M", "-N", "2048", "-b", "1024")) as fs:
        fs.vfs.frees_later = True
        yield fs


def make(fs: Filesystem, name: bytes, size: int) -> int:
    """A file that the kernel knows."""
    fh, attr = fs.vfs.create(ROOT_INO, name, 0o644, os.O_WRONLY)
    fs.vfs.ref(attr.ino)
    try:
        written = 0
        while written < size:
            written += fs.vfs.write(fh, written, bytes(min(size - written, 1 << 20)))
    finally:
        fs.vfs.release(fh)
    return attr.ino


def fill(fs: Filesystem, name: bytes) -> int:
    """A file that the kernel knows, of all free blocks."""
    fh, attr = fs.vfs.create(ROOT_INO, name, 0o644, os.O_WRONLY)
    fs.vfs.ref(attr.ino)
    with pytest.raises(NoSpace):
        while True:
            fs.vfs.write(fh, fs.vfs.getattr(attr.ino).size, bytes(1 << 20))
    fs.vfs.release(fh)
    return attr.ino


def delete(fs: Filesystem, name: bytes, ino: int) -> None:
    """As a kernel does: the name, then what it knows of the inode."""
    fs.vfs.unlink(ROOT_INO, name)
    fs.vfs.forget([(ino, 1)])


def test_free_space_counts_what_is_still_to_be_freed(fs: Filesystem) -> None:
    before = fs.vfs.statfs()
    ino = make(fs, b"f", 1 << 20)
    delete(fs, b"f", ino)
    assert ino in fs.volume.orphans
    assert (fs.vfs.statfs().bfree, fs.vfs.statfs().ffree) == (before.bfree, before.ffree)
    assert ino not in fs.volume.orphans


def test_a_commit_that_somebody_waits_for_does_not_free(fs: Filesystem) -> None:
    ino = make(fs, b"f", 1000)
    delete(fs, b"f", ino)
    commit = fs.vfs.start_commit(durable=True)
    assert commit is not None
    commit.write()
    fs.vfs.finish_commit(commit)
    assert ino in fs.volume.orphans
    commit = fs.vfs.start_commit(durable=False)
    assert commit is not None
    commit.write()
    fs.vfs.finish_commit(commit)
    assert ino not in fs.volume.orphans


def test_blocks_and_inodes_are_had_when_there_are_no_others(fs: Filesystem) -> None:
    size = fs.vfs.statfs().bavail * 1024 * 2 // 3
    for round_ in range(4):
        name = b"f%d" % round_
        delete(fs, name, make(fs, name, size))
    free = fs.vfs.statfs().ffree
    for number in range(free):
        fs.vfs.ref(fs.vfs.mknod(ROOT_INO, b"n%d" % number, 0o100644).ino)
    with pytest.raises(NoSpace) as refused:
        fs.vfs.mknod(ROOT_INO, b"one too many", 0o100644)
    assert refused.value.errno == errno.ENOSPC
    delete(fs, b"n7", fs.vfs.lookup(ROOT_INO, b"n7").ino)
    fs.vfs.mknod(ROOT_INO, b"one too many", 0o100644)


def test_who_needs_space_waits_for_the_kernel_to_forget(fs: Filesystem) -> None:
    """FORGET comes after what the kernel has to say besides: a deleted file may have all blocks until then."""
    ino = fill(fs, b"f")
    fs.vfs.unlink(ROOT_INO, b"f")
    fh, _ = fs.vfs.create(ROOT_INO, b"again", 0o644, os.O_WRONLY)
    with pytest.raises(CommitPending):
        fs.vfs.write(fh, 0, bytes(1 << 20))
    fs.vfs.forget([(ino, 1)])
    assert fs.vfs.write(fh, 0, bytes(1 << 20)) == 1 << 20


def test_nobody_waits_for_ever(fs: Filesystem) -> None:
    fill(fs, b"f")
    fs.vfs.unlink(ROOT_INO, b"f")  # and somebody has it without having it open
    fh, _ = fs.vfs.create(ROOT_INO, b"again", 0o644, os.O_WRONLY)
    for _ in range(PATIENCE):
        with pytest.raises(CommitPending):
            fs.vfs.write(fh, 0, bytes(1 << 20))
    with pytest.raises(NoSpace):
        fs.vfs.write(fh, 0, bytes(1 << 20))


def test_only_so_many_wait(make_image: ImageMaker) -> None:
    with open_image(make_image("16M", "-N", str(MOST_LATER + 1000), "-b", "1024")) as fs:
        fs.vfs.frees_later = True
        made = [fs.vfs.mknod(ROOT_INO, b"%d" % number, 0o100644).ino for number in range(MOST_LATER + 500)]
        for number, ino in enumerate(made):
            fs.vfs.ref(ino)
            delete(fs, b"%d" % number, ino)
            assert len(fs.volume.orphans) <= MOST_LATER + 1


def test_they_are_freed_some_at_a_time(fs: Filesystem) -> None:
    made = [fs.vfs.mknod(ROOT_INO, b"%d" % number, 0o100644).ino for number in range(2 * AT_A_TIME + 1)]
    for number, ino in enumerate(made):
        fs.vfs.ref(ino)
        delete(fs, b"%d" % number, ino)
    left = []
    for more in (True, True, False):
        assert fs.vfs.free_some() == more
        left.append(len(fs.volume.orphans))
    assert left == [AT_A_TIME + 1, 1, 0]
    assert not fs.vfs.free_some()


def test_what_cannot_be_freed_now_is_not_tried_for_ever(fs: Filesystem) -> None:
    delete(fs, b"f", make(fs, b"f", 100_000))
    fs.volume.pauses.frozen = True
    assert not fs.vfs.free_some()
    fs.volume.pauses.frozen = False
    commit = fs.vfs.start_commit(durable=True)
    assert commit is not None
    assert not fs.vfs.free_some(), "or it was freed all the same"
    commit.write()
    fs.vfs.finish_commit(commit)


def test_frozen_and_remounted_images_are_clean(fs: Filesystem) -> None:
    delete(fs, b"f", make(fs, b"f", 100_000))
    fs.vfs.freeze()
    e2fsck_clean(Path(fs.volume.device.name))
    fs.vfs.thaw()
    delete(fs, b"g", make(fs, b"g", 100_000))
    fs.vfs.remount(readonly=True)
    e2fsck_clean(Path(fs.volume.device.name))
