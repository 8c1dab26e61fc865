"""Mounting, unmounting, signals: whatever ends the mount, everything is on disk and the exit code is right."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from images.tools import mke2fs
from py4fs.fuse import record
from tests.conftest import KernelMount
from tests.support import machine
from tests.support.image import ImageMaker, debugfs, e2fsck_clean
from tests.support.mounted import COMMAND, ROOT, Mounted, is_mounted, open_directory, run_py4fs, start_py4fs
from tests.t4_fuse.conftest import FuseMount


def wait_until(condition: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wants_checking(image: Path) -> bool:
    """Whether the superblock says that somebody did not finish."""
    text = run_py4fs("info", "-s", image).stdout
    return "not clean" in text or "needs_recovery" in text


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    machine.need_fuse()
    made = tmp_path / "mnt"
    made.mkdir()
    return made


def data_of(image: Path, kernel_mount: KernelMount) -> bytes:
    with kernel_mount(image, "ro,noload") as root:
        return (root / "file").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(
    number: signal.Signals, make_image: ImageMaker, directory: Path, kernel_mount: KernelMount, session: str
) -> None:
    image = make_image("16M")
    with start_py4fs("mount", "--session", session, "-f", image, directory) as server:
        wait_until(lambda: is_mounted(directory))
        data = os.urandom(3_000_000)
        (directory / "file").write_bytes(data)  # dirty pages that nobody has asked to write
        for _ in range(5):  # who is impatient must not end it in the middle of its last writes
            server.send_signal(number)
            time.sleep(0.02)
        assert server.wait(timeout=30) == 0
        assert server.stderr and server.stderr.read() == ""
        assert not is_mounted(directory)
    assert data_of(image, kernel_mount) == data


def test_a_signal_while_files_are_open(
    make_image: ImageMaker, directory: Path, kernel_mount: KernelMount, session: str
) -> None:
    """The mount is busy, so it is detached; what was written until then is on disk."""
    image = make_image("16M")
    with start_py4fs("mount", "--session", session, "-f", image, directory) as server:
        wait_until(lambda: is_mounted(directory))
        data = os.urandom(3_000_000)
        fd = os.open(directory / "file", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, data)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
        assert server.stderr and "busy; detaching it" in server.stderr.read()
        assert not is_mounted(directory)
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
    assert data_of(image, kernel_mount) == data


@pytest.mark.parametrize("how", [["umount"], ["fusermount3", "-u"]])
def test_unmounting_by_other_programs(
    how: list[str], make_image: ImageMaker, directory: Path, kernel_mount: KernelMount, session: str
) -> None:
    image = make_image("16M")
    with start_py4fs("mount", "--session", session, "-f", image, directory) as server:
        wait_until(lambda: is_mounted(directory))
        data = os.urandom(3_000_000)
        (directory / "file").write_bytes(data)
        subprocess.run([*how, str(directory)], check=True)
        assert server.wait(timeout=30) == 0
    assert data_of(image, kernel_mount) == data


def test_mount_returns_when_it_answers_and_umount_when_all_is_written(
    make_image: ImageMaker, directory: Path, kernel_mount: KernelMount, session: str
) -> None:
    image = make_image("64M")
    data = os.urandom(20_000_000)
    for _ in range(2):
        assert run_py4fs("mount", "--session", session, image, directory).returncode == 0
        (directory / "file").write_bytes(data)
        done = run_py4fs("umount", directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert data_of(image, kernel_mount) == data  # at once: the lock is gone, the bytes are there
    assert not [w for w in record.find(mountpoint=str(directory), uid=os.geteuid()) if w.alive]


def test_umount_tells_when_the_last_write_failed(kernel_mount: KernelMount, tmp_path: Path, session: str) -> None:
    """The image lies on a file system that is full by the time the changes have to be written."""
    machine.need_root()
    machine.need_fuse()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", small], check=True)
    try:
        image, directory = small / "fs.img", small / "mnt"
        directory.mkdir()
        mke2fs(image, 256 << 20, "-b", "4096", "-O", "^has_journal", clock=None)
        assert run_py4fs("mount", "--session", session, image, directory, "-o", "commit=3600").returncode == 0
        for i in range(400):
            (directory / f"d{i}").mkdir()
        with (small / "filler").open("wb", buffering=0) as fp, contextlib.suppress(OSError):
            while True:
                fp.write(bytes(1 << 20))
        done = run_py4fs("umount", directory)
        assert done.returncode == 2
        assert done.stderr.startswith(f"py4fs: {image}: unmounted, but not everything could be written: ")
        assert "No space left" in done.stderr and done.stderr.count("\n") == 1
        assert not is_mounted(directory)
        assert wants_checking(image)
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_server_keeps_nothing_that_its_caller_had_open(make_image: ImageMaker, directory: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    done = subprocess.run(
        [*COMMAND, "mount", make_image("8M"), directory],
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert os.read(reader, 1) == b"", "the server still holds the other end"
    os.close(reader)
    assert run_py4fs("umount", directory).returncode == 0


def test_umount_names_the_busy_mount(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("16M")) as mounted, (mounted.path / "open").open("wb"):
        done = run_py4fs("umount", mounted.path)
        assert done.returncode == 32
        assert done.stderr == f"py4fs: {mounted.path}: cannot unmount: target is busy\n"
        assert is_mounted(mounted.path)


def test_umount_twice_and_by_image(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("16M")
    with fuse_mount(image, unmount=False) as mounted:
        assert run_py4fs("umount", image).returncode == 0
    for target in (mounted.path, image, "/proc", "/nowhere/at/all"):
        done = run_py4fs("umount", target)
        assert done.returncode == 32
        assert done.stderr.startswith(f"py4fs: {target}: not ")
        assert done.stderr.count("\n") == 1


def test_a_killed_server(make_image: ImageMaker, fuse_mount: FuseMount, kernel_mount: KernelMount) -> None:
    """The dead mount is named as such, can be unmounted, and e2fsck repairs what was lost."""
    image = make_image("16M")
    make_image.excuse(image)
    with fuse_mount(image, ["commit=1"], unmount=False) as mounted:
        (mounted.path / "early").write_bytes(b"early")
        os.sync()
        time.sleep(2.5)
        (mounted.path / "late").write_bytes(b"late")
        os.kill(mounted.pid, signal.SIGKILL)
        done = run_py4fs("mount", image, mounted.path)
        assert done.returncode == 32
        assert "server has died" in done.stderr and done.stderr.count("\n") == 1
        done = run_py4fs("umount", mounted.path)
        assert done.returncode == 0
        assert "died before it had written everything" in done.stderr
    assert wants_checking(image)
    assert subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False).returncode in (0, 1)
    with kernel_mount(image) as root:
        assert (root / "early").read_bytes() == b"early"


def committed(image: Path) -> str:
    """The names that somebody would find after a power cut: in a copy, with its journal replayed."""
    copy = image.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    subprocess.run(["e2fsck", "-fy", copy], capture_output=True, check=False)
    return debugfs(copy, "ls -p /")


@pytest.mark.parametrize("feature", ["has_journal", "^has_journal"])
def test_commits_happen_without_being_asked(feature: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("16M", "-O", feature)
    with fuse_mount(image, ["commit=1"]) as mounted:
        (mounted.path / "name").mkdir()
        wait_until(lambda: "/name/" in committed(image), 10)
    with fuse_mount(image, ["commit=3600"]) as mounted:
        (mounted.path / "other").mkdir()
        assert "/other/" not in committed(image)
        fd = os.open(mounted.path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
        assert "/other/" in committed(image)


@pytest.mark.parametrize("word", ["dirsync", "sync"])
def test_dirsync_and_sync(word: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """Nobody asks for durability, and the time for a commit never comes; yet a power cut takes nothing away."""
    image = make_image("16M")
    with fuse_mount(image, ["commit=3600", word]) as mounted:
        root = mounted.path
        (root / "made").mkdir()
        (root / "gone").mkdir()
        (root / "gone").rmdir()
        (root / "made/link").symlink_to("target")
        (root / "made/link").rename(root / "renamed")
        (root / "file").write_bytes(b"contents")
        names = committed(image)
        assert "/made/" in names and "/gone/" not in names and "/renamed/" in names and "/file/" in names
        if word == "sync":
            assert debugfs(image.with_suffix(".copy"), "cat /file") == "contents"
        (root / "made").chmod(0o700)
        committed(image)
        assert "Mode:  0755" in debugfs(image.with_suffix(".copy"), "stat /made")


def test_read_only_writes_not_one_byte(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image.recipe("default-b4096-i256")
    before, stamp = image.read_bytes(), image.stat().st_mtime_ns
    with fuse_mount(image, ["ro"]) as mounted:
        (mounted.path / "basic" / "size-1").read_bytes()
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted.path / "new").touch()
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted.path / "basic" / "size-1").unlink()
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted.path / "basic").chmod(0o700)
    assert (image.read_bytes(), image.stat().st_mtime_ns) == (before, stamp)


def test_safe_defaults_and_what_root_may_change(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_root()
    image = make_image("16M")

    def options_of(path: Path) -> set[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return set(next(line for line in lines if f" {path} " in line).split()[3].split(","))

    with fuse_mount(image) as mounted:
        assert {"rw", "nosuid", "nodev", "default_permissions"} <= options_of(mounted.path)
        line = next(x for x in Path("/proc/self/mounts").read_text().splitlines() if str(mounted.path) in x)
        assert line.split()[:3] == [str(image), str(mounted.path), "fuse.py4fs"]
    with fuse_mount(image, ["suid,dev,noexec,allow_other", "noatime"]) as mounted:
        found = options_of(mounted.path)
        assert {"noexec", "allow_other", "default_permissions"} <= found
        assert not {"nosuid", "nodev"} & found


def test_image_names_with_odd_characters(make_image: ImageMaker, tmp_path: Path, fuse_mount: FuseMount) -> None:
    image = make_image("8M")
    odd = tmp_path / 'a,b\\ "c" é.img'
    image.rename(odd)
    with fuse_mount(odd) as mounted:
        (mounted.path / "file").write_text("x")
    image.write_bytes(odd.read_bytes())


def test_offset(make_image: ImageMaker, tmp_path: Path, fuse_mount: FuseMount) -> None:
    """A file system inside a bigger image, as in a partition."""
    image = make_image("8M")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xaa" * (1 << 20) + image.read_bytes() + b"\xbb" * 4096)
    with fuse_mount(disk, ["offset=1M"]) as mounted:
        (mounted.path / "file").write_text("hello")
    raw = disk.read_bytes()
    assert raw[: 1 << 20] == b"\xaa" * (1 << 20) and raw[-4096:] == b"\xbb" * 4096
    image.write_bytes(raw[1 << 20 : -4096])
    assert run_py4fs("cat", image, "/file").stdout == "hello"


_AS_USER = """
set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search \\
    --ambient-caps +dac_read_search sh -e -c '
    cd "$0"
    "$1" -m py4fs.cli.main mount --session "$2" user.img mnt
    mkdir mnt/d
    echo hi > mnt/d/f
    grep " $0/mnt fuse.py4fs " /proc/self/mounts
    "$1" -m py4fs.cli.main mount -o suid user.img mnt || echo "suid: exit $?"
    "$1" -m py4fs.cli.main umount mnt
    "$1" -m py4fs.cli.main umount mnt || echo "again: exit $?"
' "$1" "$2" "$3"
"""


def test_an_ordinary_user_mounts(session: str) -> None:
    """Without root it goes through fusermount3, and py4fs umount finds that user's record. All of it in a mount
    namespace of its own, with a /dev/fuse that everybody may open."""
    machine.need_root()
    machine.need_fuse()
    machine.need_program("fusermount3", "setpriv", "unshare")
    with open_directory() as directory:
        image = directory / "user.img"
        mke2fs(image, 16 << 20, "-E", "root_owner=65534:65534", clock=None)
        (directory / "mnt").mkdir()
        for path in (image, directory / "mnt"):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", _AS_USER, "sh", directory, sys.executable, session],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "nosuid,nodev" in done.stdout and "user_id=65534" in done.stdout
        assert "suid: exit 1" in done.stdout and "again: exit 32" in done.stdout
        assert "option suid: only root may give it" in done.stderr
        e2fsck_clean(image)
        assert run_py4fs("cat", image, "/d/f").stdout == "hi\n"


def test_mount_helper_and_shorthand(make_image: ImageMaker, directory: Path) -> None:
    """`py4fs IMAGE DIR -o ...` is what mount.fuse3 runs for `mount -t fuse.py4fs`."""
    image = make_image("8M")
    assert run_py4fs(image, directory, "-o", "ro,defaults").returncode == 0
    assert is_mounted(directory)
    assert run_py4fs("umount", directory).returncode == 0


def reports(text: str) -> list[dict[str, int]]:
    """The counters of the iomap client in all reports of a log."""
    lines = re.findall(r"iomap: (\d+ hits.*)", text)
    return [{name: int(value) for value, name in re.findall(r"(\d+) (\w+)", line)} for line in lines]


def test_sigusr1_reports_and_warm_io_makes_no_upcall(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """Sequential and random I/O past the kernel's page cache: each request reaches the server, none the mapper."""
    image = make_image("64M")
    block = 4096

    def report(mounted: Mounted) -> dict[str, int]:
        before = len(reports(mounted.log.read_text()))
        os.kill(mounted.pid, signal.SIGUSR1)
        wait_until(lambda: len(reports(mounted.log.read_text())) > before)
        return reports(mounted.log.read_text())[-1]

    with fuse_mount(image) as mounted:
        path = mounted.path / "file"
        path.write_bytes(os.urandom(8 << 20))
        os.sync()
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, 1 << 17)
        try:
            for at in range(0, 8 << 20, len(buffer)):
                os.preadv(fd, [buffer], at)
            cold = report(mounted)
            assert min(cold[name] for name in ("hits", "misses", "upcalls", "retries", "upserts", "ioends")) > 0
            for at in range(0, 8 << 20, len(buffer)):
                os.preadv(fd, [buffer], at)
                os.pwritev(fd, [buffer], at)
            piece = memoryview(buffer)[:block]
            for number in range(200):
                os.preadv(fd, [piece], number * 7919 % 2048 * block)
                os.pwritev(fd, [piece], number * 6151 % 2048 * block)
            warm = report(mounted)
        finally:
            os.close(fd)
        assert warm["hits"] >= cold["hits"] + 2 * 64 + 2 * 200
        same = ("misses", "upcalls", "retries", "upserts", "ioends")
        assert {name: warm[name] for name in same} == {name: cold[name] for name in same}
        text = mounted.log.read_text()
        assert re.search(r"open: 1 file handles, 0 directory handles, \d+ inodes known", text)
        assert re.search(r"iomap cache: [1-9]\d* of \d+ records, [1-9]\d* files", text)
        assert re.search(r"\d+ requests", text)


def test_sigusr1_in_the_foreground_is_seen_and_harmless(make_image: ImageMaker, directory: Path, session: str) -> None:
    image = make_image("16M")
    with start_py4fs("mount", "--session", session, "-f", image, directory) as server:
        wait_until(lambda: is_mounted(directory))
        (directory / "file").write_bytes(b"x")
        server.send_signal(signal.SIGUSR1)
        server.send_signal(signal.SIGUSR1)
        (directory / "file").read_bytes()
        assert server.stderr
        line = server.stderr.readline()
        assert re.fullmatch(rf"py4fs: INFO: {image}: \d+ requests\n", line), line
        assert is_mounted(directory)
        subprocess.run(["umount", str(directory)], check=True)
        assert server.wait(timeout=30) == 0
