"""Inline data: what other tools made inline, what moves into the inode and out of it, and what goes wrong there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import py4fs
from images.content import pattern
from py4fs.api import Filesystem
from py4fs.errors import Corrupt, NoSpace
from py4fs.iomap.records import MapType
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs
from tests.support.state import assert_same_tree, cool, tree_state
from tests.support.tree import assert_same, snapshot
from tests.support.worlds import ApiWorld, KernelWorld, outcome

INLINE = 0x10000000


def is_inline(fs: Filesystem, path: str) -> bool:
    return bool(fs.lstat(path).flags & INLINE)


def test_what_libext2fs_makes_inline_is_read_and_removed(make_image: ImageMaker, tmp_path: Path) -> None:
    """mke2fs -d makes small files, directories and, unlike the kernel, symlinks of 60 bytes and more inline."""
    source = tmp_path / "source"
    (source / "dir" / "sub").mkdir(parents=True)
    targets = {length: "t" * length for length in (1, 59, 60, 100, 120, 200)}
    for length, target in targets.items():
        (source / f"link-{length}").symlink_to(target)
        (source / "dir" / f"file-{length}").write_bytes(pattern("inline", length))
    image = make_image("16M", "-O", "inline_data", "-d", str(source))
    with py4fs.open_image(image) as fs:
        assert is_inline(fs, "/link-100") and is_inline(fs, "/dir/file-100") and is_inline(fs, "/dir/sub")
        for length, target in targets.items():
            assert os.fsdecode(fs.readlink(f"/link-{length}")) == target
            assert fs.read_bytes(f"/dir/file-{length}") == pattern("inline", length)
            fs.unlink(f"/link-{length}")
            fs.unlink(f"/dir/file-{length}")
        fs.rmdir("/dir/sub")
        fs.rmdir("/dir")
        assert fs.listdir("/") == ["lost+found"]


def test_a_file_grows_out_of_its_inode_and_reads_the_same(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image("16M", "-O", "inline_data")
    wanted = {}
    with py4fs.open_image(image) as fs:
        for size in (1, 60, 61, 128, 129, 160, 5000):
            for step in (1, 7, 100):
                path, data = f"/{size}-{step}", pattern(f"{size}-{step}", size)
                with fs.open(path, "wb") as file:
                    for at in range(0, size, step):
                        file.write(data[at : at + step])
                wanted[path] = data
                assert is_inline(fs, path) == (size <= 128)
                assert fs.stat(path).blocks == -(-size // 512) if size <= 128 else fs.stat(path).blocks >= 2
        cool(fs)
        for path, data in wanted.items():
            assert fs.read_bytes(path) == data
    with kernel_mount(image, "ro") as root:
        for path, data in wanted.items():
            assert (root / path[1:]).read_bytes() == data


def test_mappings_of_inline_files(make_image: ImageMaker) -> None:
    image = make_image("16M", "-O", "inline_data")
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/f", b"x" * 100)
        block = fs.volume.geometry.block_size
        (mapping,) = fs.mappings("/f")
        assert (mapping.offset, mapping.length, mapping.type) == (0, block, MapType.INLINE)
        with fs.open("/f", "r+b") as file:
            assert file.seek(0, os.SEEK_DATA) == 0 and file.seek(0, os.SEEK_HOLE) == 100
            file.seek(3 * block)
            file.write(b"y")
        kinds = [m.type for m in fs.mappings("/f")]
        assert kinds == [MapType.MAPPED, MapType.HOLE, MapType.MAPPED]
        assert fs.read_bytes("/f") == b"x" * 100 + bytes(3 * block - 100) + b"y"


@pytest.mark.parametrize("how", ["write", "truncate", "fallocate", "directory"])
def test_leaving_the_inode_without_a_free_block_changes_nothing(make_image: ImageMaker, how: str) -> None:
    image = make_image("2M", "-b", "1024", "-m", "0", "-O", "inline_data,^has_journal")
    with py4fs.open_image(image, options=py4fs.OpenOptions(atime="noatime")) as fs:
        fs.write_bytes("/file", b"x" * 100)
        fs.mkdir("/dir")
        fs.write_bytes("/dir/one", b"")
        with pytest.raises(NoSpace), fs.open("/filler", "wb") as file:
            while True:
                file.write(bytes(64 << 10))
        left = fs.volume.superblock.free_blocks
        fs.volume.alloc.conversion_reserve = left  # nothing for those who come now
        fs.volume.alloc.reserved_blocks = left
        before = tree_state(fs)
        with pytest.raises(NoSpace):
            if how == "directory":
                for number in range(20):
                    fs.link("/file", f"/dir/link-{number:020}")
                    before = tree_state(fs)
            else:
                with fs.open("/file", "r+b") as file:
                    if how == "write":
                        file.seek(5000)
                        file.write(b"y")
                    elif how == "truncate":
                        file.truncate(5000)
                    else:
                        file.fallocate(0, 0, 10)
        assert_same_tree(before, tree_state(fs))


@pytest.mark.parametrize("mode", [0, 1, 3, 0x10, 0x11, 0x08, 0x20], ids=hex)
def test_fallocate_moves_contents_out_first(make_image: ImageMaker, kernel_mount: KernelMount, mode: int) -> None:
    """Whatever it does then, and even if that is refused. What it zeroes there, the kernel's journal brings back."""
    image = make_image("16M", "-b", "4096", "-O", "inline_data")
    copy = make_image.copy(image, "ours.img")
    ranges = [(0, 10), (0, 4096), (4096, 8192), (20, 5000)]
    with kernel_mount(image) as root:
        kernel = KernelWorld(root)
        outcomes = [_grow_by_fallocate(kernel, mode, *r) for r in ranges]
    ours = ApiWorld(copy)
    try:
        assert [_grow_by_fallocate(ours, mode, *r) for r in ranges] == outcomes
    finally:
        ours.fs.close()
    with kernel_mount(image, "ro") as left, kernel_mount(copy, "ro") as right:
        lost = ("digest",) if mode & 0x12 else ()
        assert_same(snapshot(left), snapshot(right), ignore=("atime", "mtime", "ctime", "data", *lost))
        for offset, length in ranges if lost else ():
            wanted = bytearray(pattern(f"{offset}-{length}", 100))
            wanted[offset : offset + length] = bytes(len(wanted[offset : offset + length]))
            assert (right / f"{offset}-{length}").read_bytes()[:100] == wanted


def _grow_by_fallocate(world: KernelWorld | ApiWorld, mode: int, offset: int, length: int) -> str:
    path = f"{offset}-{length}"
    world.begin()
    world.write(path, 0, pattern(path, 100))
    if isinstance(world, KernelWorld):
        world.settle()
    result = outcome(world.fallocate, path, mode, offset, length)
    world.finish()
    return result


def test_a_directory_read_while_it_leaves_its_inode(make_image: ImageMaker) -> None:
    image = make_image("16M", "-O", "inline_data")
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        for number in range(4):
            fs.write_bytes(f"/d/{number}", b"")
        vfs, ino = fs.vfs, fs.stat("/d").ino
        fh = vfs.opendir(ino)
        reading = vfs.readdir(fh)
        first = [next(reading) for _ in range(3)]
        for number in range(100):
            fs.write_bytes(f"/d/new-{number}", b"")
        assert not is_inline(fs, "/d")
        names = [entry.name for entry in first] + [entry.name for entry in reading]
        again = [entry.name for entry in vfs.readdir(fh, first[-1].cookie)]
        vfs.releasedir(fh)
        assert names[:2] == [b".", b".."] and {b"0", b"1", b"2", b"3"} <= set(names) and len(names) == len(set(names))
        assert {b"1", b"2", b"3"} <= set(again)


def test_an_inline_flag_without_data_is_named(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M", "-O", "inline_data,^metadata_csum"))
    with py4fs.open_image(image) as fs:
        fs.write_bytes("/f", b"x" * 100)
        fs.mkdir("/d")
        block_size = fs.volume.geometry.block_size
    for path in ("/f", "/d"):
        place = debugfs(image, f"imap {path}")
        block, offset = place.split("located at block ")[1].split(", offset ")
        at = int(block) * block_size + int(offset, 16)
        raw = bytearray(image.read_bytes())
        assert raw[at + 160 : at + 164] == b"\0\0\x02\xea"
        raw[at + 160 : at + 164] = bytes(4)
        image.write_bytes(raw)
    with py4fs.open_image(image) as fs:
        for step in (lambda: fs.read_bytes("/f"), lambda: fs.listdir("/d"), lambda: fs.write_bytes("/d/x", b"")):
            with pytest.raises(Corrupt, match=r"system\.data"):
                step()
