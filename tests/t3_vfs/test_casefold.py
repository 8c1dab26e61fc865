"""Directories whose names differ in more than case: what e2fsck finds in them, strict mode, what is refused."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

import py4fs
from py4fs.errors import Exists, Invalid, NotADirectory, NotEmpty, NotFound, NotSupported, UnsupportedFeature
from py4fs.ext4.layout.inode import EXT4_CASEFOLD_FL
from py4fs.ext4.layout.superblock import SUPERBLOCK
from py4fs.vfs import ROOT
from tests.support.image import ImageMaker, debugfs


@pytest.fixture(params=["casefold", "casefold-strict-b1024"])
def image(request: pytest.FixtureRequest, make_image: ImageMaker) -> Path:
    return make_image.recipe(request.param)


def test_one_file_under_many_spellings(image: Path) -> None:
    with py4fs.open_image(image) as fs:
        fs.mkdir("/D")
        fs.set_casefold("/D")
        fs.write_bytes("/D/Größe", b"1")
        ino = fs.stat("/D/Größe").ino
        for name in ("GRÖSSE", "gro\u0308sse", "Gr\u00adöße", "Größe"):
            assert fs.stat(f"/D/{name}").ino == ino
        with pytest.raises(Exists):
            fs.mkdir("/D/GRÖSSE")
        fs.write_bytes("/D/GRÖSSE", b"2")
        assert fs.listdir("/D") == ["Größe"] and fs.read_bytes("/D/größe") == b"2"
        fs.rename("/D/größe", "/D/GRÖSSE")  # the same name: nothing to do, as in the kernel
        assert fs.listdir("/D") == ["Größe"]
        fs.write_bytes("/D/other", b"3")
        fs.rename("/D/OTHER", "/D/GRÖSSE")
        assert fs.listdir("/D") == ["Größe"] and fs.read_bytes("/D/größe") == b"3"
        fs.mkdir("/D/Sub")
        fs.write_bytes("/d", b"")
        assert fs.stat("/D/sub").flags & EXT4_CASEFOLD_FL
        fs.write_bytes("/D/SUB/File", b"")
        fs.link("/D/sub/FILE", "/D/sub/Link")
        fs.unlink("/D/sub/link")
        fs.unlink("/D/GRÖSSE")
        assert not fs.exists("/D/Größe")
        assert not fs.stat("/D/sub/file").flags & EXT4_CASEFOLD_FL
    assert "Sub" in debugfs(image, "ls /D")


def names(rng: random.Random, count: int) -> list[str]:
    alphabet = "aAbBßẞöÖÉéİıſKkΣσςᾳᾼ한글㋿\u2c2f\U0001faf0\u0301\u0316\u200d-_.0"
    return ["".join(rng.choices(alphabet, k=rng.randrange(3, 40))) for _ in range(count)]


def test_large_directories_are_ordered_as_e2fsck_wants(image: Path, rng: random.Random) -> None:
    """A model of folded names says which operations succeed; e2fsck checks every hash when the test ends."""
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        fs.set_casefold("/d")
        from py4fs.ext4.casefold import fold

        model: dict[bytes | None, str] = {}
        for name in names(rng, 1500):
            key = fold(name.encode())
            if len(name.encode()) > 255:
                continue
            if key in model:
                with pytest.raises(Exists):
                    fs.mkdir(f"/d/{name}")
                if rng.random() < 0.5:
                    fs.unlink(f"/d/{name}")
                    del model[key]
            else:
                fs.mknod(f"/d/{name}", 0o100644)
                model[key] = name
        assert sorted(fs.listdir("/d")) == sorted(model.values()) and len(model) > 1000
        for name in model.values():
            lower = "".join(char if char == "\u2c2f" else char.lower() for char in name)  # newer than 12.1
            assert fs.exists(f"/d/{lower}")
    assert "Flags: 0x40081000" in debugfs(image, "stat /d")


@pytest.mark.parametrize("version", ["half_md4", "tea", "legacy"])
def test_hashes_are_those_of_debugfs(image: Path, version: str, rng: random.Random) -> None:
    with py4fs.open_image(image, readonly=True) as fs:
        rules = fs.volume.namespace.rules.folded
        assert rules is not None
        number = {"legacy": 0, "half_md4": 1, "tea": 2}[version]
        for name in names(rng, 30):
            if not name.startswith("-"):
                shown = debugfs(image, f'dx_hash -h {version} -c -e utf8 "{name}"')
                want = int(shown.split("0x")[1].split()[0], 16)
                assert rules.hash(name.encode(), number, (0, 0, 0, 0)) == want, name


def test_chattr(image: Path) -> None:
    """The flag through FS_IOC_SETFLAGS."""
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        ino = fs.stat("/d").ino
        fs.vfs.set_flags(ino, fs.vfs.get_flags(ino) | EXT4_CASEFOLD_FL, ROOT)
        fs.write_bytes("/d/Name", b"")
        assert fs.stat("/d/nAME").ino == fs.stat("/d/Name").ino
        with pytest.raises(NotEmpty):
            fs.vfs.set_flags(ino, fs.vfs.get_flags(ino) & ~EXT4_CASEFOLD_FL, ROOT)


def test_only_empty_directories_change(image: Path) -> None:
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        fs.write_bytes("/d/a", b"")
        with pytest.raises(NotEmpty):
            fs.set_casefold("/d")
        with pytest.raises(NotADirectory):
            fs.set_casefold("/d/a")
        fs.unlink("/d/a")
        fs.set_casefold("/d")
        fs.set_casefold("/d", False)
        fs.write_bytes("/d/a", b"")
        fs.write_bytes("/d/A", b"")
        assert len(fs.listdir("/d")) == 2


def test_what_was_looked_for_before_the_flag_changed(image: Path) -> None:
    """An index stays when its directory is empty again; the hash of a name is another one then."""
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        for number in range(400):
            fs.write_bytes(f"/d/{number:0100}", b"")
        for number in range(400):
            fs.unlink(f"/d/{number:0100}")
        assert not fs.exists("/d/Name")
        fs.set_casefold("/d")
        fs.write_bytes("/d/Name", b"")
    with py4fs.open_image(image) as fs:
        assert fs.exists("/d/nAME")


def test_without_the_feature(make_image: ImageMaker) -> None:
    with py4fs.open_image(make_image("16M")) as fs:
        fs.mkdir("/d")
        with pytest.raises(NotSupported):
            fs.set_casefold("/d")
        assert not fs.vfs.names_fold


def test_names_that_are_not_utf8(image: Path) -> None:
    """Strict mode knows none; else those that are there are found, and none are made: the kernel's hash is unknown."""
    strict = "strict" in image.name
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        fs.set_casefold("/d")
        with pytest.raises(Invalid):
            fs.mkdir(b"/d/\xff\xfe")
        with pytest.raises(Invalid if strict else NotFound):
            fs.stat(b"/d/\xff\xfe")
        fs.mkdir(b"/\xff\xfe")  # not a casefold directory
    commands = b"cd /d\nmknod plain p\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=commands, check=True, capture_output=True)
    with py4fs.open_image(image) as fs:
        assert fs.exists("/d/PLAIN")


def test_unknown_encodings_are_refused(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M", "-O", "casefold,^metadata_csum"))
    raw = bytearray(image.read_bytes())
    SUPERBLOCK.put(raw, 1024, s_encoding=7)
    image.write_bytes(raw)
    with pytest.raises(UnsupportedFeature, match="unknown encoding s_encoding 7"):
        py4fs.open_image(image)
