"""Encrypted images without their key: what the kernel shows and refuses; all can be deleted, nothing is harmed."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import py4fs
from py4fs.api import open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import FsError, NoKey
from py4fs.ext4 import nokey
from py4fs.ext4.layout.inode import EXT4_ENCRYPT_FL
from tests.conftest import KernelMount
from tests.support import machine
from tests.support.image import ImageMaker


@pytest.fixture(params=["encrypted-b1024", "encrypted-b4096", "encrypted-linear", "encrypted-inline"])
def image(request: pytest.FixtureRequest, make_image: ImageMaker) -> Path:
    machine.need_loop()
    return make_image.recipe(request.param)


def encrypted_below(root: bytes) -> dict[bytes, tuple[int, int, bytes]]:
    """Path -> inode number, size, target of a link, of everything in the two encrypted directories."""
    found = {}
    for top in (b"secret", b"many"):
        for base, dirs, files in os.walk(os.path.join(root, top)):
            for name in dirs + files:
                path = os.path.join(base, name)
                info = os.lstat(path)
                target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else b""
                found[path[len(root) + 1 :]] = (info.st_ino, info.st_size, target)
    return found


def ours(fs: py4fs.Filesystem) -> dict[bytes, tuple[int, int, bytes]]:
    found = {}
    pending = [b"secret", b"many"]
    while pending:
        here = pending.pop()
        for name, ino, _ in fs.scandir(here):
            path = here + b"/" + name
            attr = fs.lstat(path)
            assert attr.ino == ino
            target = fs.readlink(path) if stat.S_ISLNK(attr.mode) else b""
            found[path] = (ino, attr.size, target)
            if stat.S_ISDIR(attr.mode):
                pending.append(path)
    return found


def test_everything_looks_as_in_the_kernel(image: Path, kernel_mount: KernelMount) -> None:
    with kernel_mount(image, "ro") as root:
        want = encrypted_below(os.fsencode(root))
    with py4fs.open_image(image, readonly=True) as fs:
        assert ours(fs) == want
        assert len(want) == 409
        assert fs.getxattr(next(path for path, node in want.items() if node[1] == 50_000), "user.seen")


def failure(step: Callable[[], object]) -> str:
    try:
        step()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "ok"


def test_what_needs_the_key_is_refused_as_by_the_kernel(
    image: Path, kernel_mount: KernelMount, make_image: ImageMaker
) -> None:
    copy = make_image.copy(image)
    with py4fs.open_image(image) as fs, kernel_mount(copy) as root:
        names = ours(fs)
        file = os.fsdecode(next(path for path, node in names.items() if node[1] == 50_000))
        directory = os.fsdecode(next(path for path in names if stat.S_ISDIR(fs.lstat(path).mode)))
        other = os.fsdecode(next(path for path in names if path.startswith(b"many/")))
        fs.write_bytes("/plain", b"")
        (root / "plain").write_bytes(b"")
        steps: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (lambda: fs.read_bytes(file), (root / file).read_bytes),
            (lambda: fs.write_bytes(file, b"x"), lambda: (root / file).write_bytes(b"x")),
            (lambda: fs.truncate(file, 5), lambda: os.truncate(root / file, 5)),
            (lambda: fs.write_bytes("secret/new", b""), lambda: (root / "secret/new").write_bytes(b"")),
            (lambda: fs.mkdir("secret/new"), (root / "secret/new").mkdir),
            (lambda: fs.mkdir(f"{directory}/new"), (root / directory / "new").mkdir),
            (lambda: fs.symlink("a", "secret/new"), lambda: (root / "secret/new").symlink_to("a")),
            (lambda: fs.rename(file, "/out"), lambda: (root / file).rename(root / "out")),
            (lambda: fs.rename("/plain", "/secret/in"), lambda: (root / "plain").rename(root / "secret/in")),
            (lambda: fs.rename(file, other), lambda: (root / file).rename(root / other)),
            (lambda: fs.link("/plain", "/secret/in"), lambda: (root / "secret/in").hardlink_to(root / "plain")),
            (lambda: fs.stat("/secret/file"), (root / "secret/file").stat),
            (lambda: fs.stat("/secret/AAAA"), (root / "secret/AAAA").stat),
            (lambda: fs.chmod(file, 0o600), lambda: (root / file).chmod(0o600)),
            (lambda: fs.link(file, "/linked"), lambda: (root / "linked").hardlink_to(root / file)),
            (lambda: fs.rename("/secret", "/renamed"), lambda: (root / "secret").rename(root / "renamed")),
            (lambda: fs.rmdir("/renamed"), (root / "renamed").rmdir),
        ]
        outcomes = [(failure(mine), failure(theirs)) for mine, theirs in steps]
        assert [mine for mine, _ in outcomes] == [theirs for _, theirs in outcomes]
        assert {"ENOKEY", "ENOENT", "ok", "ENOTEMPTY"} <= {mine for mine, _ in outcomes}


def test_all_of_it_can_be_deleted(image: Path) -> None:
    """e2fsck looks at what is left when the test ends."""
    with py4fs.open_image(image) as fs:
        for path in sorted(ours(fs), key=len, reverse=True):
            if stat.S_ISDIR(fs.lstat(path).mode):
                fs.rmdir(path)
            else:
                fs.unlink(path)
        assert not ours(fs)
        fs.rmdir("/secret")
        fs.rmdir("/many")


def test_deleting_while_reading(image: Path) -> None:
    with py4fs.open_image(image) as fs:
        for name, _, _ in fs.scandir("/many"):
            fs.unlink(b"/many/" + name)
        assert not list(fs.scandir("/many"))


@pytest.mark.parametrize("length", [1, 16, 148, 149, 150, 181, 182, 255])
def test_names_round_trip(length: int, rng: random.Random) -> None:
    stored = rng.randbytes(length)
    found = nokey.decode(nokey.encode(0x12345678, 0x9ABCDEF0, stored))
    assert found is not None and (found.major, found.minor) == (0x12345678, 0x9ABCDEF0)
    assert found.fits(stored) and not found.fits(stored + b"x") and not found.fits(stored[:-1] + b"\0\0")


NO_NAMES = [b"", b"a", b"AAAA", b"AAAAAAAAAAAA=", b"AAAAAAAAAA+A", b"AAAAAAAAAAAAB", b"\xff" * 20]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_such_name(name: bytes) -> None:
    assert nokey.decode(name) is None


def test_damaged_links(make_image: ImageMaker) -> None:
    for raw in (b"", b"\0\0", b"\0\0abc", b"\xff\xffabc", b"\4\0abc"):
        with pytest.raises(FsError, match="encrypted symbolic link"):
            nokey.symlink_target(raw, "inode 12")
    assert nokey.symlink_target(b"\3\0abc\0", "inode 12") == nokey.encode(0, 0, b"abc")


def test_flags_on_an_image_without_the_feature_mean_nothing(make_image: ImageMaker) -> None:
    with py4fs.open_image(make_image("16M")) as fs:
        fs.mkdir("/d")
        with fs.volume.operation(4) as tx:
            inode = fs.volume.inodes.get(fs.stat("/d").ino)
            tx.touch(inode)
            inode.flags |= 0x800
        fs.mkdir("/d/plain")
        assert fs.listdir("/d") == ["plain"]
        fs.rmdir("/d/plain")
        fs.rmdir("/d")


def test_encrypted_and_casefold(make_image: ImageMaker, rng: random.Random) -> None:
    """Only the key gives the hashes of such names, so they are stored behind them. A directory made by hand."""
    image = make_image.excuse(make_image("16M", "-b", "1024", "-O", "casefold,encrypt,^metadata_csum,^has_journal"))
    stored = {rng.randbytes(length): (rng.getrandbits(32), rng.getrandbits(32)) for length in (16, 31, 160, 255)}
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        fs.set_casefold("/d")
        inode = fs.volume.inodes.get(fs.stat("/d").ino)
        inos = []
        for number in range(len(stored)):
            fs.write_bytes(f"/d/{number}", b"")
            inos.append(fs.stat(f"/d/{number}").ino)
        pblk = fs.volume.files.block_of(inode, 0)
        with fs.volume.operation(4) as tx:
            tx.touch(inode)
            inode.flags |= EXT4_ENCRYPT_FL
    data = bytearray(image.read_bytes())
    block = bytearray(data[pblk * 1024 : pblk * 1024 + 24])
    for ino, (name, hashes) in zip(inos, stored.items(), strict=True):
        entry = struct.pack("<IHBB", ino, 0, len(name), 1) + name
        entry += bytes(-len(entry) % 4) + struct.pack("<II", *hashes)
        size = 1024 - len(block) if ino == inos[-1] else len(entry)
        block += struct.pack("<IH", ino, size) + entry[6:] + bytes(size - len(entry))
    struct.pack_into("<H", block, 12 + 4, 12)
    data[pblk * 1024 : (pblk + 1) * 1024] = block
    with open_device(MemoryDevice(data)) as fs:
        shown = dict(zip((name for name, _, _ in fs.scandir("/d")), stored.items(), strict=True))
        assert shown == {nokey.encode(*hashes, name): (name, hashes) for name, hashes in stored.items()}
        with pytest.raises(NoKey):
            fs.mkdir("/d/new")
        for name in shown:
            fs.unlink(b"/d/" + name)
        fs.rmdir("/d")


def test_names_in_the_inode(make_image: ImageMaker) -> None:
    """With inline_data. The kernel makes no such thing, so a directory and a file are marked by hand."""
    image = make_image.excuse(make_image("16M", "-b", "1024", "-I", "256", "-O", "inline_data,encrypt"))
    names = [b"x" * 15 + bytes([65 + number]) for number in range(3)]
    with py4fs.open_image(image) as fs:
        fs.mkdir("/d")
        for name in names:
            fs.write_bytes(b"/d/" + name, b"")
        fs.write_bytes("/file", b"small")
        for path in ("/d", "/file"):
            with fs.volume.operation(4) as tx:
                inode = fs.volume.inodes.get(fs.lstat(path).ino)
                tx.touch(inode)
                inode.flags |= EXT4_ENCRYPT_FL
                assert inode.is_inline
    with py4fs.open_image(image) as fs:
        shown = {name: fs.lstat(b"/d/" + name).ino for name, _, _ in fs.scandir("/d")}
        found = [nokey.decode(name) for name in shown]
        assert all(any(name is not None and name.fits(stored) for name in found) for stored in names)
        assert len(shown) == 3
        assert not set(names) & set(shown)
        for step in (lambda: fs.read_bytes("/file"), lambda: fs.mkdir("/d/new"), lambda: fs.write_bytes("/d/new", b"")):
            with pytest.raises(NoKey):
                step()
        for name in shown:
            fs.unlink(b"/d/" + name)
        fs.unlink("/file")
        fs.rmdir("/d")
        assert fs.listdir("/") == ["lost+found"]
