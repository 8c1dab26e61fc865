"""Images that are not to be written, journals that are no file systems, attributes that are turned off."""

from __future__ import annotations

from pathlib import Path

import pytest

import py4fs
from images.tools import run
from py4fs.cli import options
from py4fs.errors import NotSupported, ReadOnly, UnsupportedFeature
from tests.support.image import ImageMaker


@pytest.mark.parametrize(
    ("feature", "reason"),
    [("read-only", "the image has the read-only feature"), ("shared_blocks", "files share blocks (shared_blocks)")],
)
def test_not_to_be_written(make_image: ImageMaker, feature: str, reason: str) -> None:
    image = make_image.recipe("default-b4096-i256")
    run(["debugfs", "-w", "-R", f"feature {feature}", image])
    before = image.read_bytes()
    with py4fs.open_image(image) as fs:
        assert [line for line in fs.notices if line.startswith(f"read-only: {reason}")]
        with pytest.raises(ReadOnly, match="read-only"):
            fs.mkdir("/d")
        assert list(fs.walk())
    assert image.read_bytes() == before
    make_image.excuse(image)


def test_journal_device(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    run(["mke2fs", "-q", "-O", "journal_dev", "-b", "4096", str(path), "4096"])
    with pytest.raises(UnsupportedFeature, match=r"a journal of another file system .journal_dev., .* journal_path="):
        py4fs.open_image(path)


def test_nouser_xattr(make_image: ImageMaker) -> None:
    image = make_image("16M")
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/f", b"")
        fs.setxattr("/f", "user.a", b"1", 0)
        fs.setxattr("/f", "trusted.a", b"1", 0)
    with py4fs.open_image(image, options=py4fs.OpenOptions(user_xattr=False)) as fs:
        assert fs.listxattr("/f") == ["trusted.a"]
        for step in (
            lambda: fs.getxattr("/f", "user.a"),
            lambda: fs.setxattr("/f", "user.a", b"2", 0),
            lambda: fs.removexattr("/f", "user.a"),
        ):
            with pytest.raises(NotSupported, match="nouser_xattr"):
                step()
    with py4fs.open_image(image) as fs:
        assert fs.getxattr("/f", "user.a") == b"1"
    assert not options.parse(["nouser_xattr"]).user_xattr and options.parse(["nouser_xattr,user_xattr"]).user_xattr
