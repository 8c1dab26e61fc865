"""What bad input gets: one clear line naming what and where, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from py4fs.ext4.checksum import set_superblock
from py4fs.ext4.layout.superblock import SUPERBLOCK
from tests.conftest import KernelMount
from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import fuse_mounted, is_mounted, open_directory, run_py4fs


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "mnt"
    made.mkdir()
    yield made
    if is_mounted(made):  # what should have been refused was not
        run_py4fs("umount", made)


def edit_superblock(image: Path, *, stamp: bool = True, **fields: int) -> None:
    with image.open("r+b") as fp:
        fp.seek(1024)
        raw = bytearray(fp.read(1024))
        SUPERBLOCK.put(raw, 0, **fields)
        if stamp:
            set_superblock(raw)
        fp.seek(1024)
        fp.write(raw)


def text_file(image: Path) -> None:
    image.write_text("This is not an image.\n" * 1000)


def empty_file(image: Path) -> None:
    image.write_bytes(b"")


def truncated(image: Path) -> None:
    os.truncate(image, 3 << 20)


def truncated_in_the_superblock(image: Path) -> None:
    os.truncate(image, 1500)


def zeros(image: Path) -> None:
    image.write_bytes(bytes(1 << 20))


def bad_magic(image: Path) -> None:
    edit_superblock(image, s_magic=0x1234)


def bad_checksum(image: Path) -> None:
    edit_superblock(image, stamp=False, s_mnt_count=77)


def unknown_incompat(image: Path) -> None:
    edit_superblock(image, s_feature_incompat=0x80000000 | 0x2C2)


def known_but_unsupported(image: Path) -> None:
    edit_superblock(image, s_feature_incompat=0x0001 | 0x2C2)


def absurd_block_size(image: Path) -> None:
    edit_superblock(image, s_log_block_size=77)


def absurd_inode_size(image: Path) -> None:
    edit_superblock(image, s_inode_size=3)


def lost_journal(image: Path) -> None:
    edit_superblock(image, s_feature_incompat=0x4 | 0x2C2, s_journal_inum=0)


DAMAGED: list[tuple[Callable[[Path], None], str]] = [
    (text_file, "s_magic"),
    (empty_file, "superblock"),
    (truncated, "truncated|device|end"),
    (truncated_in_the_superblock, "superblock"),
    (zeros, "s_magic"),
    (bad_magic, "s_magic.*0x1234"),
    (bad_checksum, "checksum"),
    (unknown_incompat, "FEATURE_I31"),
    (known_but_unsupported, "compression"),
    (absurd_block_size, "s_log_block_size"),
    (absurd_inode_size, "s_inode_size"),
    (lost_journal, "external journal.*journal_path="),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGED, ids=[damage.__name__ for damage, _ in DAMAGED])
def test_images_that_cannot_be_used(
    damage: Callable[[Path], None], words: str, make_image: ImageMaker, directory: Path
) -> None:
    import re

    image = make_image.excuse(make_image("8M"))
    damage(image)
    before, stamp = image.read_bytes(), image.stat().st_mtime_ns
    commands: tuple[tuple[list[str | Path], int], ...] = (
        (["mount", image, directory], 32),
        (["mount", image, directory, "-o", "ro"], 32),
        (["ls", image], 1),
        (["cat", image, "/x"], 1),
    )
    for arguments, code in commands:
        machine.need_fuse() if arguments[0] == "mount" else None
        done = run_py4fs(*arguments)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith(f"py4fs: {image}: ") and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.count(str(image)) == 1, done.stderr
        assert re.search(words, done.stderr), done.stderr
    assert not is_mounted(directory)
    assert (image.read_bytes(), image.stat().st_mtime_ns) == (before, stamp)


@pytest.mark.parametrize(("damage", "words"), DAMAGED, ids=[damage.__name__ for damage, _ in DAMAGED])
def test_info_shows_what_there_is(damage: Callable[[Path], None], words: str, make_image: ImageMaker) -> None:
    """info is for finding out: it shows the superblock if there is one, and says what is wrong."""
    image = make_image.excuse(make_image("8M"))
    damage(image)
    done = run_py4fs("info", "-s", image)
    assert done.stderr.startswith(f"py4fs: {image}: ") and "Traceback" not in done.stderr
    if damage in (text_file, empty_file, truncated_in_the_superblock, zeros, bad_magic):
        assert (done.returncode, done.stdout) == (1, "")
    else:
        assert done.returncode == 0 and "Block count:" in done.stdout


def mount_fails(code: int, line: str, *arguments: str | Path, uid: int | None = None) -> None:
    done = run_py4fs("mount", *arguments, uid=uid)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr == f"py4fs: {line}\n"


def test_missing_image(directory: Path, tmp_path: Path) -> None:
    missing = tmp_path / "absent.img"
    mount_fails(32, f"{missing}: No such file or directory", missing, directory)
    mount_fails(32, "absent.img: No such file or directory", "absent.img", directory)
    for command in (["info"], ["ls"], ["cat"], ["stat"], ["iomap"]):
        done = run_py4fs(*command, missing, *([] if command in (["info"], ["ls"]) else ["/x"]))
        assert done.returncode == 1
        assert done.stderr == f"py4fs: {missing}: No such file or directory\n"


def test_image_that_is_no_file(directory: Path, tmp_path: Path) -> None:
    machine.need_fuse()
    os.mkfifo(tmp_path / "fifo")
    for image in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        done = run_py4fs("mount", image, directory)
        assert done.returncode == 32
        assert done.stderr.startswith(f"py4fs: {image}: ") and done.stderr.count("\n") == 1


def test_mount_points(make_image: ImageMaker, tmp_path: Path) -> None:
    machine.need_fuse()
    image = make_image("8M")
    missing = tmp_path / "absent"
    mount_fails(32, f"{missing}: mount point does not exist", image, missing)
    mount_fails(32, f"{image}: mount point is not a directory", image, image)
    other = make_image("8M", name="other.img")
    with fuse_mounted(image) as mounted:
        mount_fails(32, f"{mounted.path}: mount point is in use: {image} is mounted there", other, mounted.path)
        mount_fails(
            32,
            f"{image}: in use already by another program (the file is locked)",
            image,
            make_directory(tmp_path / "second"),
        )
        done = run_py4fs("ls", image)
        assert done.returncode == 1 and "in use" in done.stderr
        assert run_py4fs("info", "-s", image).returncode == 0


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_directory_that_is_not_empty_can_be_mounted_on(make_image: ImageMaker, directory: Path) -> None:
    """As with any file system: its contents are hidden meanwhile."""
    machine.need_fuse()
    (directory / "hidden").write_text("x")
    assert run_py4fs("mount", make_image("8M"), directory).returncode == 0
    assert not (directory / "hidden").exists()
    assert run_py4fs("umount", directory).returncode == 0
    assert (directory / "hidden").read_text() == "x"


def test_mounted_by_the_kernel(make_image: ImageMaker, directory: Path, kernel_mount: KernelMount) -> None:
    machine.need_fuse()
    image = make_image("8M")
    with kernel_mount(image):
        done = run_py4fs("mount", image, directory)
        assert done.returncode == 32
        assert done.stderr.startswith(f"py4fs: {image}: attached to /dev/loop") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["bogus", "offset=x", "commit=never", "subtype="])
def test_unknown_and_wrong_options(option: str, make_image: ImageMaker, directory: Path) -> None:
    image = make_image("8M")
    before = image.read_bytes()
    done = run_py4fs("mount", image, directory, "-o", f"ro,{option}")
    assert done.returncode == 1
    assert option in done.stderr and done.stderr.count("\n") == 1
    assert image.read_bytes() == before


def test_wrong_offset(make_image: ImageMaker, directory: Path) -> None:
    machine.need_fuse()
    image = make_image("8M")
    for offset, words in (("1M", "s_magic"), ("9M", "behind the end")):
        done = run_py4fs("mount", image, directory, "-o", f"offset={offset}")
        assert done.returncode == 32
        assert done.stderr.startswith(f"py4fs: {image}: ") and words in done.stderr and done.stderr.count("\n") == 1


def test_no_permission() -> None:
    machine.need_root()
    machine.need_fuse()
    machine.need_program("setpriv")
    from images.tools import mke2fs

    with open_directory() as root:
        image, directory = root / "x.img", root / "mnt"
        mke2fs(image, 8 << 20)
        directory.mkdir()
        mount_fails(
            1, f"{directory}: mount point: no permission to write there, and so none to mount", image, directory,
            uid=65534,
        )  # fmt: skip
        os.chown(directory, 65534, 65534)
        if Path("/dev/fuse").stat().st_mode & stat.S_IWOTH:
            line = f"{image}: Permission denied; -o ro mounts it read-only"
            mount_fails(32, line, image, directory, uid=65534)
        else:
            mount_fails(2, "/dev/fuse: Permission denied", image, directory, uid=65534)


def test_unknown_ro_compat_features_mount_read_only(make_image: ImageMaker, tmp_path: Path, directory: Path) -> None:
    machine.need_fuse()
    image = make_image.excuse(make_image("8M"))
    raw = image.read_bytes()
    edit_superblock(image, s_feature_ro_compat=0x80000000 | SUPERBLOCK.get(raw, 1024, "s_feature_ro_compat"))
    before = image.read_bytes()
    done = run_py4fs("mount", image, directory)
    try:
        assert done.returncode == 0
        assert done.stderr.startswith(f"py4fs: {image}: read-only: ") and "FEATURE_R31" in done.stderr
        assert done.stderr.count("\n") == 1
        with pytest.raises(OSError, match="Read-only file system"):
            (directory / "x").touch()
    finally:
        assert run_py4fs("umount", directory).returncode == 0
    assert image.read_bytes() == before


def test_tracebacks_only_with_debug(make_image: ImageMaker, directory: Path) -> None:
    image = make_image.excuse(make_image("8M"))
    text_file(image)
    assert "Traceback" not in run_py4fs("ls", image).stderr
    assert "Traceback" in run_py4fs("ls", "--debug", image).stderr


def test_bugs_are_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from py4fs.cli import ls
    from py4fs.cli.main import main

    def broken(args: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(ls, "run", broken)
    assert main(["ls", "x"]) == 4
    assert capsys.readouterr().err == (
        "py4fs: internal error, please report it: ZeroDivisionError: oops (--debug shows where)\n"
    )
