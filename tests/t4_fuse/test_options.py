"""Mount options, seen through real mounts."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import KernelMount
from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import fuse_mounted, is_mounted, run_py4fs
from tests.t4_fuse.conftest import FuseMount

NOBODY = 65534


def as_nobody(*command: str | Path, gid: int = NOBODY) -> subprocess.CompletedProcess[str]:
    become = ["setpriv", "--clear-groups", f"--reuid={NOBODY}", f"--regid={gid}"]
    return subprocess.run([*become, *command], capture_output=True, text=True, check=False)


def mounted_as(path: Path) -> str:
    """The line of /proc/self/mounts."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return next(line for line in reversed(lines) if f" {path} " in line)


@contextlib.contextmanager
def reachable(directory: Path) -> Iterator[None]:
    """Other users can reach a directory of pytest's meanwhile."""
    parents = [p for p in (directory, *directory.parents) if p.stat().st_uid == os.geteuid() and p != Path("/")]
    modes = {p: p.stat().st_mode for p in parents}
    for p in parents:
        p.chmod(modes[p] | 0o011)
    try:
        yield
    finally:
        for p, mode in modes.items():
            p.chmod(mode & 0o7777)


def test_kernel_is_as_a_mount_of_the_kernels(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("16M"), ["kernel"]) as mounted:
        line = mounted_as(mounted.path)
        assert "allow_other" in line and "default_permissions" in line
        assert "nosuid" not in line and "nodev" not in line


def test_fakeroot_checks_no_permissions(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_root()
    machine.need_program("setpriv")
    image = make_image("16M")
    for word, code in (("allow_other", 1), ("fakeroot,allow_other,suid,dev,fakeroot", 0)):
        with fuse_mount(image, [word]) as mounted, reachable(image.parent):
            secret = mounted.path / "secret"
            secret.write_text("x")
            secret.chmod(0o600)
            assert as_nobody("cat", secret).returncode == code
            assert as_nobody("mkdir", mounted.path / "new").returncode == code
            if not code:
                assert "nosuid,nodev" in mounted_as(mounted.path)
                assert (mounted.path / "new").stat().st_uid == NOBODY
                assert "default_permissions" not in mounted_as(mounted.path)


def test_noacl(make_image: ImageMaker, fuse_mount: FuseMount, kernel_mount: KernelMount) -> None:
    """As under the kernel's noacl: not shown, not to be set, not inherited; what is there stays."""
    machine.need_program("setfacl")
    image = make_image("16M")
    with kernel_mount(image) as root:
        (root / "d").mkdir()
        subprocess.run(["setfacl", "-m", "d:u:1000:rwx,u:1000:rwx", root / "d"], check=True)
    with fuse_mount(image, ["noacl"]) as mounted:
        assert os.listxattr(mounted.path / "d") == []
        with pytest.raises(OSError) as info:
            os.getxattr(mounted.path / "d", "system.posix_acl_default")
        assert info.value.errno == errno.EOPNOTSUPP
        old = os.umask(0o027)
        try:
            (mounted.path / "d/new").mkdir()
        finally:
            os.umask(old)
        assert (mounted.path / "d/new").stat().st_mode & 0o777 == 0o750
    with fuse_mount(image, ["acl"]) as mounted:
        assert "system.posix_acl_default" in os.listxattr(mounted.path / "d")
        assert os.listxattr(mounted.path / "d/new") == []


@pytest.mark.parametrize("word", ["grpid", "bsdgroups", "nogrpid", "sysvgroups"])
def test_groups_of_new_files(word: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("16M")
    with fuse_mount(image, [word]) as mounted:
        directory = mounted.path / "d"
        directory.mkdir()
        os.chown(directory, 0, 70001)
        (directory / "f").touch()
        (directory / "sub").mkdir()
        want = 70001 if word in ("grpid", "bsdgroups") else 0
        assert {(directory / name).stat().st_gid for name in ("f", "sub")} == {want}
        assert not (directory / "sub").stat().st_mode & 0o2000


def test_default_mount_options_of_the_superblock(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("16M")
    subprocess.run(["tune2fs", "-o", "bsdgroups", image], check=True, capture_output=True)
    for options, want in (([], 70001), (["nogrpid"], 0)):
        with fuse_mount(image, options) as mounted:
            directory = mounted.path / f"d{want}"
            directory.mkdir()
            os.chown(directory, 0, 70001)
            (directory / "f").touch()
            assert (directory / "f").stat().st_gid == want


@pytest.mark.parametrize("word", ["", "resuid=65534", "resgid=1234"])
def test_who_may_use_the_reserve(word: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_root()
    machine.need_program("setpriv")
    image = make_image("16M", "-m", "20")
    with fuse_mount(image, ["allow_other", *([word] if word else [])]) as mounted, reachable(image.parent):
        mounted.path.chmod(0o777)
        before = os.statvfs(mounted.path)
        reserve = before.f_bfree - before.f_bavail
        assert reserve > 1000
        length = (before.f_bavail + 500) * before.f_bsize
        words = ("if=/dev/zero", f"of={mounted.path}/f", f"bs={length}", "count=1", "conv=fsync")
        done = as_nobody("dd", *words, gid=1234)
        assert (done.returncode == 0) == bool(word), done.stderr


def test_max_dir_size(make_image: ImageMaker, fuse_mount: FuseMount, kernel_mount: KernelMount) -> None:
    """The kernel's own limit, met at the same name."""
    ours, theirs = make_image("16M", "-b", "1024"), make_image("16M", "-b", "1024")

    def fill(root: Path) -> int:
        (root / "d").mkdir()
        for number in range(10000):
            try:
                (root / "d" / f"name-{number:04}").touch()
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                return number
        raise AssertionError("no limit")

    with kernel_mount(theirs, "max_dir_size_kb=4") as root:
        want = fill(root)
    with fuse_mount(ours, ["max_dir_size_kb=4"]) as mounted:
        assert fill(mounted.path) == want


@pytest.mark.parametrize("word", ["discard", "nodiscard"])
def test_discard_at_commit(word: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("64M")
    with fuse_mount(image, [word, "commit=3600"]) as mounted:
        (mounted.path / "f").write_bytes(os.urandom(20 << 20))
        os.sync()
        full = image.stat().st_blocks
        (mounted.path / "f").unlink()
        time.sleep(0.2)
        assert image.stat().st_blocks > full - 4096, "nothing is discarded before the commit that frees it"
        fd = os.open(mounted.path, os.O_RDONLY)
        os.fsync(fd)
        os.fsync(fd)
        os.close(fd)
        given_back = (full - image.stat().st_blocks) * 512
        assert (given_back > 18 << 20) == (word == "discard"), given_back
        (mounted.path / "g").write_bytes(b"again" * 1000)
        assert (mounted.path / "g").read_bytes() == b"again" * 1000


def test_a_backup_superblock(make_image: ImageMaker, tmp_path: Path, fuse_mount: FuseMount) -> None:
    """Needed: used, and read-only. Not needed: not used."""
    image = make_image("64M", "-b", "1024")
    with fuse_mount(image, ["sb=8193"]) as mounted:
        (mounted.path / "f").write_text("hello")
    broken = tmp_path / "broken.img"
    data = bytearray(image.read_bytes())
    data[1024:4096] = bytes(3072)  # the superblock, and the descriptors
    broken.write_bytes(data)
    directory = tmp_path / "mnt"
    directory.mkdir()
    assert run_py4fs("mount", broken, directory).returncode == 32
    done = run_py4fs("mount", broken, directory, "-o", "sb=8193")
    assert done.returncode == 0, done.stderr
    try:
        assert "the superblock's copy at byte 8389632 is used" in done.stderr
        assert (directory / "f").read_text() == "hello"
        with pytest.raises(OSError) as info:
            (directory / "g").touch()
        assert info.value.errno == errno.EROFS
    finally:
        assert run_py4fs("umount", directory).returncode == 0
    assert broken.read_bytes() == data
    assert run_py4fs("mount", broken, directory, "-o", "sb=8192").returncode == 32


def test_a_small_cache(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """Everything works, and goes on to, when little may be kept."""
    with fuse_mount(make_image("128M"), ["cache_size=1M"]) as mounted:
        for number in range(3000):
            (mounted.path / f"f{number}").write_text(str(number))
        subprocess.run(["sync", "-f", mounted.path], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert all((mounted.path / f"f{number}").read_text() == str(number) for number in range(0, 3000, 7))
        os.kill(mounted.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while "iomap cache" not in mounted.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = re.search(r"of (\d+) records", mounted.log.read_text())
        assert found and int(found[1]) == (1 << 18) // 32


def test_the_lock_file(make_image: ImageMaker, tmp_path: Path, fuse_mount: FuseMount) -> None:
    lock = tmp_path / "the.lock"
    other, directory = make_image("16M"), tmp_path / "other"
    directory.mkdir()
    with fuse_mount(make_image("16M"), [f"lockfile={lock}"]) as mounted:
        assert lock.read_text() == f"{mounted.pid}\n"
        done = run_py4fs("mount", other, directory, "-o", f"lockfile={lock}")
        assert done.returncode == 32 and f"the lock file {lock} exists" in done.stderr
    assert not lock.exists()


def test_timing(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("16M"), ["timing"]) as mounted:
        for number in range(5):
            (mounted.path / f"d{number}").mkdir()
        os.kill(mounted.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while "timing: mkdir: 5 requests" not in mounted.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert mounted.log.read_text().count("timing: mkdir: 5 requests") == 2  # once more at the end


def test_debug_logs_requests(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("16M"), ["debug"]) as mounted:
        (mounted.path / "d").mkdir()
    assert re.search("mkdir", mounted.log.read_text())


def test_oom_score(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("16M"), ["oom_score_adj=77"]) as mounted:
        assert Path(f"/proc/{mounted.pid}/oom_score_adj").read_text() == "77\n"


def test_flush_interval_zero_is_never(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("16M")
    with fuse_mount(image, ["flush_interval=0"]) as mounted:
        (mounted.path / "d").mkdir()
        time.sleep(1)
        found = subprocess.run(["debugfs", "-R", "stat /d", image], capture_output=True, text=True, check=False)
        assert "File not found" in found.stderr


def test_flags_for_the_kernel(make_image: ImageMaker) -> None:
    """lazytime keeps times, though late; nosymfollow follows nothing."""
    machine.need_root()
    image = make_image("16M")
    with fuse_mounted(image, ["lazytime,nosymfollow,noexec,max_read=65536"], session="direct") as mounted:
        line = mounted_as(mounted.path)
        assert "lazytime" in line and "nosymfollow" in line and "noexec" in line and "max_read=65536" in line
        (mounted.path / "f").write_text("x")
        os.utime(mounted.path / "f", (1e9, 1e9))
        with (mounted.path / "f").open("a") as file:
            file.write("y")
        written = (mounted.path / "f").stat().st_mtime_ns
        (mounted.path / "link").symlink_to("f")
        with pytest.raises(OSError) as info:
            (mounted.path / "link").read_text()
        assert info.value.errno == errno.ELOOP
    with fuse_mounted(image, session="direct") as mounted:
        assert (mounted.path / "f").stat().st_mtime_ns == written
    for word in ("lazytime", "nosymfollow", "max_read=65536"):
        done = run_py4fs("mount", "--session", "pyfuse3", image, image.parent, "-o", word)
        assert done.returncode == 1 and "--session direct only" in done.stderr


def test_remount(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """ro: the image is clean at once; rw: back again; busy files say so; other flags are the kernel's."""
    machine.need_root()
    image = make_image("16M")
    with fuse_mounted(image, session="direct") as mounted:
        path = mounted.path
        (path / "f").write_text("x")
        with (path / "f").open("a"):
            done = run_py4fs("mount", image, path, "-o", "remount,ro")
            assert (done.returncode, "files are open for writing" in done.stderr) == (32, True)
        (path / "still").touch()
        assert run_py4fs("mount", image, path, "-o", "remount,ro").returncode == 0
        assert " ro," in mounted_as(path)
        with pytest.raises(OSError) as info:
            (path / "g").touch()
        assert info.value.errno == errno.EROFS
        copy = image.parent / "copy.img"
        copy.write_bytes(image.read_bytes())
        with kernel_mount(copy, "ro,noload") as root:
            assert (root / "f").read_text() == "x"
        assert "needs_recovery" not in run_py4fs("info", "-s", copy).stdout
        assert run_py4fs("mount", image, path, "-o", "remount,rw,noexec,noatime").returncode == 0
        line = mounted_as(path)
        assert " rw," in line and "noexec" in line and "noatime" in line and "nosuid" in line
        (path / "g").touch()
        assert run_py4fs("mount", image, path, "-o", "remount,rw,exec").returncode == 0
        assert "noexec" not in mounted_as(path)
    done = run_py4fs("mount", image, mounted.path, "-o", "remount,ro")
    assert done.returncode == 32 and "not a py4fs mount" in done.stderr
    assert not is_mounted(mounted.path)


def test_strictatime(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """Whatever the kernel has in its page cache: each time that something is opened and read counts."""
    with fuse_mount(make_image("16M"), ["strictatime"]) as mounted:
        path = mounted.path / "d" / "f"
        path.parent.mkdir()
        path.write_bytes(b"f" * 10_000)
        for read in (path.read_bytes, lambda: list(path.parent.iterdir())) * 2:
            before = path.stat().st_atime_ns, path.parent.stat().st_atime_ns
            time.sleep(0.02)
            read()
            after = path.stat().st_atime_ns, path.parent.stat().st_atime_ns
            assert [new > old for old, new in zip(before, after, strict=True)] == [
                read == path.read_bytes,
                read != path.read_bytes,
            ]
