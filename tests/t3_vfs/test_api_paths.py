"""Odd paths and values through the Python API: the errno of the system call, and nothing that a commit chokes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from py4fs.api import Filesystem, open_image
from py4fs.errors import FsError
from tests.support.image import ImageMaker


@pytest.fixture
def fs(make_image: ImageMaker) -> Iterator[Filesystem]:
    with open_image(make_image("8M", "-b", "1024")) as opened:
        opened.write_bytes("/file", b"contents")
        opened.makedirs("/directory/below")
        yield opened


@pytest.mark.parametrize(
    ("wanted", "act"),
    [
        (errno.EINVAL, lambda fs: fs.rmdir("/directory/below/.")),
        (errno.EINVAL, lambda fs: fs.rename("/directory/.", "/moved")),
        (errno.EINVAL, lambda fs: fs.rename("/directory", "/directory/below/..")),
        (errno.EINVAL, lambda fs: fs.unlink("/")),
        (errno.EINVAL, lambda fs: fs.mkdir("")),
        (errno.ENOTDIR, lambda fs: fs.unlink("/file/")),
        (errno.ENOTDIR, lambda fs: fs.rename("/file/", "/moved")),
        (errno.ENOTDIR, lambda fs: fs.link("/file", "/file/")),
        (errno.ENOTDIR, lambda fs: fs.stat("/file/")),
        (errno.EISDIR, lambda fs: fs.write_bytes("/new/", b"")),
        (errno.EISDIR, lambda fs: fs.write_bytes("/directory/", b"")),
        (errno.ENOENT, lambda fs: fs.symlink("", "/link")),
        (errno.EINVAL, lambda fs: fs.symlink("a\0b", "/link")),
    ],
)
def test_paths(wanted: int, act: Callable[[Filesystem], object], fs: Filesystem) -> None:
    before = list(fs.walk())
    with pytest.raises(FsError) as caught:
        act(fs)
    assert caught.value.errno == wanted
    assert list(fs.walk()) == before


def test_slashes_behind_directories(fs: Filesystem) -> None:
    fs.mkdir("/made//")
    fs.rename("/made/", "/moved/")
    fs.rmdir("//moved/")
    fs.mkdir("/./directory/./new")
    assert fs.listdir("/directory/") == ["below", "new"]


@pytest.mark.parametrize("name", ["mode", "uid", "gid", "size", "atime", "mtime", "ctime"])
def test_what_is_no_integer(name: str, fs: Filesystem) -> None:
    """It is refused at once, and the commit of everything else does not meet it."""
    fs.mkdir("/other")
    with pytest.raises(TypeError):
        fs.vfs.setattr(fs.stat("/file").ino, **{name: 1.5})  # type: ignore[arg-type]
    fs.sync()
    assert fs.stat("/file").size == len(b"contents")
    handle = fs.vfs.open(fs.stat("/file").ino, os.O_RDWR)
    fs.vfs.release(handle)
