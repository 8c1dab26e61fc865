"""Mounting what was never unmounted: read-only, read-only without its journal, and for writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from images.tools import run
from tests.support import machine, tree
from tests.support.dirty import dirty_copy, e2fsck, fsync
from tests.support.image import ImageMaker
from tests.support.mounted import fuse_mounted, run_py4fs


@pytest.fixture
def dirty(make_image: ImageMaker, tmp_path: Path) -> tuple[Path, tree.Snapshot]:
    """An image with transactions and fast commits in its journal, and the tree that they make."""
    machine.need_loop()
    image = make_image("48M", "-b", "4096", "-J", "size=8")
    run(["tune2fs", "-O", "fast_commit", image])
    found: tree.Snapshot = {}

    def work(directory: Path) -> None:
        (directory / "full").mkdir()
        (directory / "full/file").write_bytes(os.urandom(50_000))
        os.sync()
        (directory / "fast").write_bytes(os.urandom(50_000))
        fsync(directory / "fast")
        found.update(tree.snapshot(directory))

    return dirty_copy(image, tmp_path / "dirty.img", work), found


#: what a fast commit does not hold (directories), and how a server may round (blocks of the root)
IGNORE = (*tree.UNSTABLE, "mtime", "ctime")


def test_read_only(dirty: tuple[Path, tree.Snapshot]) -> None:
    image, want = dirty
    before = image.read_bytes()
    with fuse_mounted(image, ["ro"]) as mounted:
        tree.assert_same(want, tree.snapshot(mounted.path), IGNORE)
    assert image.read_bytes() == before
    assert b"fast" in run_py4fs("ls", image).stdout.encode()
    assert image.read_bytes() == before


@pytest.mark.parametrize("word", ["norecovery", "noload"])
def test_norecovery(word: str, dirty: tuple[Path, tree.Snapshot], tmp_path: Path) -> None:
    """The image as it is, which is from before all of it; not a byte is written."""
    image, _ = dirty
    before = image.read_bytes()
    directory = tmp_path / "mnt"
    directory.mkdir()
    done = run_py4fs("mount", image, directory, "-o", word)
    assert done.returncode == 0 and "the journal was not replayed (norecovery)" in done.stderr
    try:
        assert not (directory / "fast").exists()
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
    finally:
        assert run_py4fs("umount", directory).returncode == 0
    assert image.read_bytes() == before


def test_for_writing(dirty: tuple[Path, tree.Snapshot]) -> None:
    image, want = dirty
    with fuse_mounted(image) as mounted:
        tree.assert_same(want, tree.snapshot(mounted.path), IGNORE)
        (mounted.path / "new").write_bytes(b"new")
    status, output = e2fsck(image, "-n")
    assert status == 0, output
    with fuse_mounted(image, ["ro"]) as mounted:
        assert (mounted.path / "new").read_bytes() == b"new"
