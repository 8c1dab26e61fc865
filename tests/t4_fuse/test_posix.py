"""What programs see on a mount: one mount for the whole module, one directory per test."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.content import ACCESS_ACL, DEFAULT_ACL
from images.tools import mke2fs
from tests.support import machine
from tests.support.image import e2fsck_clean
from tests.support.mounted import fuse_mounted, open_directory

USER = 1001  # of no importance who that is
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", params=["direct", "pyfuse3"])
def mount(request: pytest.FixtureRequest) -> Iterator[Path]:
    machine.need_fuse()
    with open_directory() as directory:
        image = directory / "posix.img"
        mke2fs(image, 256 << 20, "-b", "4096", clock=None)
        options = ["allow_other"] if machine.is_root() else []
        with fuse_mounted(image, options, session=request.param) as mounted:
            yield mounted.path
        e2fsck_clean(image)


@pytest.fixture
def d(mount: Path, request: pytest.FixtureRequest) -> Path:
    made = mount / str(request.node.originalname)
    made.mkdir()
    made.chmod(0o777)
    return made


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(OSError, match=r".*") as info:
        call()
    assert info.value.errno is not None
    return errno.errorcode[info.value.errno]


def as_user(program: str, *args: str | Path, uid: int = USER) -> str:
    """Run Python source as another user; its output, or the name of the errno that it died of."""
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", f"import os, sys, errno\na = sys.argv[1:]\n{_CATCH.format(program)}", *args],
        capture_output=True, text=True, user=uid, group=uid, extra_groups=[], check=False,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_CATCH = """
try:
    {0}
except OSError as exc:
    print(errno.errorcode[exc.errno])
"""


def rename2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_names(d: Path) -> None:
    (d / ("n" * 255)).touch()
    assert error_of((d / ("n" * 256)).touch) == "ENAMETOOLONG"
    assert error_of((d / ("n" * 1000)).stat) == "ENAMETOOLONG"
    odd = os.fsencode(d) + b"/\xff\xfe\x01 \n"
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
    assert b"\xff\xfe\x01 \n" in [os.fsencode(p.name) for p in d.iterdir()]
    assert error_of((d / "absent").stat) == "ENOENT"
    (d / "absent").touch()  # after the kernel has cached that it is not there
    assert (d / "absent").stat().st_size == 0
    (d / "absent").unlink()
    assert not (d / "absent").exists()


def test_errors_of_name_operations(d: Path) -> None:
    (d / "file").touch()
    (d / "dir").mkdir()
    (d / "dir" / "x").touch()
    assert error_of((d / "dir").mkdir) == "EEXIST"
    assert error_of((d / "dir").rmdir) == "ENOTEMPTY"
    assert error_of((d / "file").rmdir) == "ENOTDIR"
    assert error_of((d / "dir").unlink) == "EISDIR"
    assert error_of((d / "file" / "below").touch) == "ENOTDIR"
    assert error_of(lambda: (d / "dir").rename(d / "dir" / "x" / "y")) == "ENOTDIR"
    assert error_of(lambda: (d / "dir").rename(d / "dir" / "inside")) == "EINVAL"
    assert error_of(lambda: (d / "file").rename(d / "dir")) == "EISDIR"
    assert error_of(lambda: (d / "dir").rename(d / "file")) == "ENOTDIR"
    assert error_of(lambda: os.link(d / "dir", d / "hard")) == "EPERM"
    assert error_of(lambda: os.link(d / "file", d / "dir" / "x")) == "EEXIST"


def test_rename_flags(d: Path) -> None:
    (d / "a").write_text("a")
    (d / "b").mkdir()
    (d / "b" / "inside").touch()
    assert error_of(lambda: rename2(d / "a", d / "b", RENAME_NOREPLACE)) == "EEXIST"
    rename2(d / "a", d / "b", RENAME_EXCHANGE)
    assert (d / "b").read_text() == "a" and (d / "a" / "inside").exists()
    rename2(d / "b", d / "c", RENAME_NOREPLACE)
    assert (d / "c").read_text() == "a" and not (d / "b").exists()
    assert error_of(lambda: rename2(d / "c", d / "absent", RENAME_EXCHANGE)) == "ENOENT"
    (d / "other").mkdir()
    before = d.stat().st_nlink
    (d / "a").rename(d / "other" / "a")
    assert d.stat().st_nlink == before - 1
    assert (d / "other" / "a" / ".." / "a" / "inside").exists()


def test_link_counts_and_ctime(d: Path) -> None:
    (d / "f").touch()
    first = (d / "f").stat()
    time.sleep(0.02)
    os.link(d / "f", d / "g")
    second = (d / "g").stat()
    assert (second.st_ino, second.st_nlink) == (first.st_ino, 2)
    assert second.st_ctime_ns > first.st_ctime_ns
    (d / "f").unlink()
    assert (d / "g").stat().st_nlink == 1
    assert d.stat().st_nlink == 2


def test_unlinked_but_open(d: Path) -> None:
    with (d / "f").open("w+b") as fp:
        fp.write(b"before")
        fp.flush()
        (d / "f").unlink()
        assert os.fstat(fp.fileno()).st_nlink == 0
        fp.write(b" and after" * 100_000)
        fp.flush()
        os.fsync(fp.fileno())
        fp.seek(0)
        assert fp.read(12) == b"before and a"
        (d / "f").write_text("another")
        assert (d / "f").stat().st_ino != os.fstat(fp.fileno()).st_ino
    assert [p.name for p in d.iterdir()] == ["f"]


def test_rename_over_an_open_file(d: Path) -> None:
    (d / "old").write_text("old")
    (d / "new").write_text("new")
    with (d / "old").open() as fp:
        (d / "new").rename(d / "old")
        assert fp.read() == "old"
    assert (d / "old").read_text() == "new"


def test_open_modes(d: Path) -> None:
    path = d / "f"
    path.write_bytes(b"0123456789")
    with path.open("ab") as one, path.open("ab") as two:
        one.write(b"A")
        one.flush()
        two.write(b"B")
    assert path.read_bytes() == b"0123456789AB"
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.pwrite(fd, b"tail", 5)  # a partial page of a write-only file: read, change, write
    os.close(fd)
    assert path.read_bytes() == b"\0\0\0\0\0tail"
    assert error_of(lambda: os.open(path, os.O_CREAT | os.O_EXCL)) == "EEXIST"
    assert error_of(lambda: os.open(d, os.O_WRONLY)) == "EISDIR"
    fd = os.open(d / "mode0", os.O_CREAT | os.O_RDWR, 0)
    os.write(fd, b"x")
    os.ftruncate(fd, 100)
    assert os.fstat(fd).st_size == 100
    os.close(fd)


def test_truncate(d: Path) -> None:
    path = d / "f"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5_000)
    os.truncate(path, 9_000)
    assert path.read_bytes() == b"x" * 5_000 + bytes(4_000)
    os.truncate(path, 1 << 40)
    assert path.stat().st_size == 1 << 40
    with path.open("rb") as fp:
        fp.seek((1 << 40) - 3)
        assert fp.read() == bytes(3)
    assert error_of(lambda: os.truncate(path, 1 << 60)) == "EFBIG"
    assert path.stat().st_size == 1 << 40
    os.truncate(path, 0)
    assert path.stat().st_blocks == 0


def test_mapped_files(d: Path) -> None:
    path = d / "f"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as fp, mmap.mmap(fp.fileno(), 0) as view:
        view[50_000:50_005] = b"hello"
        assert path.read_bytes()[50_000:50_005] == b"hello"
        view.flush()
    assert path.read_bytes()[49_999:50_006] == b"\0hello\0"


def test_random_writes_read_back(d: Path) -> None:
    rng = random.Random(5)
    model = bytearray()
    with (d / "f").open("w+b", buffering=0) as fp:
        for _ in range(300):
            offset, size = rng.randrange(400_000), rng.choice((1, 100, 4096, 30_000))
            if rng.random() < 0.05:
                size = rng.randrange(400_000)
                os.ftruncate(fp.fileno(), size)
                model = (model + bytes(size))[:size]
            elif rng.random() < 0.3:
                fp.seek(offset)
                assert fp.read(size) == bytes(model[offset : offset + size])
            else:
                data = rng.randbytes(size)
                os.pwrite(fp.fileno(), data, offset)
                model.extend(bytes(max(0, offset + size - len(model))))
                model[offset : offset + size] = data
            if rng.random() < 0.02:
                os.fsync(fp.fileno())
    drop_caches()
    assert (d / "f").read_bytes() == bytes(model)


def drop_caches() -> None:
    os.sync()
    if machine.is_root():
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def test_threads_at_once(d: Path) -> None:
    """Several programs on one server: each sees its own files and nothing of the others'."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            base = d / str(number)
            base.mkdir()
            for i in range(40):
                path = base / f"f{i}"
                path.write_bytes(bytes([number]) * (i * 1000))
                assert path.read_bytes() == bytes([number]) * (i * 1000)
                if i % 3 == 0:
                    path.unlink()
            assert len(list(base.iterdir())) == 26
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_reading_a_directory_while_deleting(d: Path) -> None:
    names = {f"{'x' * 60}-{i}" for i in range(3000)}
    for name in names:
        os.mknod(d / name)
    seen = []
    with os.scandir(d) as entries:
        for entry in entries:
            seen.append(entry.name)
            Path(entry.path).unlink()
    assert sorted(seen) == sorted(names)
    assert list(d.iterdir()) == []
    d.rmdir()
    d.mkdir()


def test_dot_entries_and_inode_numbers(d: Path) -> None:
    (d / "sub").mkdir()
    listing = subprocess.run(["ls", "-ai", d / "sub"], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(listing[1::2], listing[::2], strict=True)) == {
        ".": str((d / "sub").stat().st_ino),
        "..": str(d.stat().st_ino),
    }


def test_special_files(d: Path) -> None:
    machine.need_root()
    os.mkfifo(d / "fifo", 0o640)
    os.mknod(d / "char", 0o600 | stat.S_IFCHR, os.makedev(300, 70_000))
    os.mknod(d / "block", 0o600 | stat.S_IFBLK, os.makedev(8, 1))
    os.mknod(d / "socket", 0o600 | stat.S_IFSOCK)
    assert stat.S_ISFIFO((d / "fifo").stat().st_mode)
    assert (d / "char").stat().st_rdev == os.makedev(300, 70_000)
    assert stat.S_ISBLK((d / "block").stat().st_mode) and stat.S_ISSOCK((d / "socket").stat().st_mode)
    assert error_of((d / "char").read_bytes) in ("EACCES", "ENXIO"), "nodev"
    for target in ("t", "t" * 59, "t" * 60, "t" * 4095):
        (d / "link").symlink_to(target)
        assert (d / "link").readlink() == Path(target)
        assert (d / "link").lstat().st_size == len(target)
        (d / "link").unlink()


def test_xattrs(d: Path) -> None:
    path = d / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    assert error_of(lambda: os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)) == "EEXIST"
    assert error_of(lambda: os.setxattr(path, "user.b", b"2", os.XATTR_REPLACE)) == "ENODATA"
    os.setxattr(path, "user.a", b"\0" * 2000, os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.a") == b"\0" * 2000
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty"]
    assert error_of(lambda: os.setxattr(path, "user.big", bytes(60_000))) in ("ENOSPC", "E2BIG")
    os.removexattr(path, "user.a")
    assert error_of(lambda: os.removexattr(path, "user.a")) == "ENODATA"
    assert error_of(lambda: os.getxattr(path, "user.a")) == "ENODATA"
    assert error_of(lambda: os.setxattr(path, "nonsense.a", b"")) == errno.errorcode[errno.EOPNOTSUPP]


def test_access_by_other_users(d: Path) -> None:
    machine.need_root()
    path = d / "f"
    path.write_text("secret")
    path.chmod(0o600)
    assert as_user("print(open(a[0]).read())", path) == "EACCES"
    os.setxattr(path, "system.posix_acl_access", ACCESS_ACL)  # user 1001 may read
    assert as_user("print(open(a[0]).read())", path) == "secret"
    assert as_user("open(a[0], 'a')", path) == "EACCES"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660, "the mask shows as the group's bits"
    path.chmod(0o600)  # sets the mask to nothing
    assert as_user("print(open(a[0]).read())", path) == "EACCES"
    d.chmod(0o1777)
    assert as_user("os.unlink(a[0])", path) == "EPERM", "sticky directory, somebody else's file"
    assert as_user("os.chmod(a[0], 0o777)", path) == "EPERM"
    assert as_user("os.chown(a[0], 0, 0)", path) == "EPERM"
    assert as_user("os.utime(a[0], (1, 1))", path) == "EPERM"


def test_acl_inheritance(d: Path) -> None:
    machine.need_root()
    os.setxattr(d, "system.posix_acl_default", DEFAULT_ACL)
    (d / "sub").mkdir()
    (d / "file").touch()
    assert os.getxattr(d / "sub", "system.posix_acl_default") == DEFAULT_ACL
    assert "system.posix_acl_access" in os.listxattr(d / "file")
    assert "system.posix_acl_default" not in os.listxattr(d / "file")


def test_setgid_directories_and_suid(d: Path) -> None:
    machine.need_root()
    os.chown(d, 0, 140_001)
    d.chmod(0o2777)
    (d / "f").touch()
    (d / "sub").mkdir()
    assert (d / "f").stat().st_gid == 140_001, "all 32 bits of it"
    assert (d / "sub").stat().st_gid == 140_001 and (d / "sub").stat().st_mode & stat.S_ISGID
    (d / "f").chmod(0o6777)
    as_user("os.write(os.open(a[0], os.O_WRONLY), b'x')", d / "f")
    assert stat.S_IMODE((d / "f").stat().st_mode) == 0o777, "a write by somebody else takes set-user-ID away"
    (d / "f").chmod(0o6755)
    os.chown(d / "f", USER, USER)
    assert stat.S_IMODE((d / "f").stat().st_mode) == 0o755


def test_owner_and_umask_of_new_files(d: Path) -> None:
    machine.need_root()
    as_user("os.umask(0o027); os.close(os.open(a[0], os.O_CREAT, 0o666)); os.mkdir(a[1])", d / "f", d / "s")
    found = (d / "f").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (USER, USER, 0o640)
    assert stat.S_IMODE((d / "s").stat().st_mode) == 0o750


def test_times(d: Path) -> None:
    path = d / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    before = path.stat()
    assert (before.st_atime_ns, before.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    time.sleep(0.02)  # the kernel's clock for files ticks every few milliseconds
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ctime_ns > before.st_ctime_ns
    time.sleep(0.02)
    with path.open("ab") as fp:
        fp.write(b"y")
    assert path.stat().st_mtime_ns > before.st_mtime_ns
    changed = d.stat().st_mtime_ns
    time.sleep(0.02)
    (d / "other").touch()
    assert d.stat().st_mtime_ns > changed
    drop_caches()
    assert path.stat().st_size == 2 and path.stat().st_mtime_ns > before.st_mtime_ns


def test_blocks_are_right_after_close(d: Path) -> None:
    path = d / "f"
    path.touch()
    assert path.stat().st_blocks == 0
    with path.open("wb") as fp:
        fp.write(bytes(range(256)) * 400)
    assert path.stat().st_blocks == 200, "25 blocks of 4096 bytes"
    with path.open("r+b") as fp:
        fp.truncate(4096)
    assert path.stat().st_blocks == 8


def test_fsync_of_files_and_directories(d: Path) -> None:
    with (d / "f").open("wb") as fp:
        fp.write(b"x" * 100_000)
        fp.flush()
        os.fsync(fp.fileno())
        os.fdatasync(fp.fileno())
    fd = os.open(d, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_no_space_is_told(tmp_path: Path, session: str) -> None:
    """The kernel has taken the data already, so the error comes at fsync or close: it must not get lost."""
    image = tmp_path / "small.img"
    mke2fs(image, 8 << 20, "-b", "1024", clock=None)
    with fuse_mounted(image, session=session) as mounted:
        fd = os.open(mounted.path / "f", os.O_WRONLY | os.O_CREAT)
        codes = set()
        try:
            for _ in range(16):
                os.write(fd, b"z" * (1 << 20))
            os.fsync(fd)
        except OSError as exc:
            codes.add(errno.errorcode[exc.errno or 0])
        try:
            os.close(fd)
        except OSError as exc:
            codes.add(errno.errorcode[exc.errno or 0])
        assert codes == {"ENOSPC"}
        (mounted.path / "f").unlink()
        (mounted.path / "again").write_bytes(b"z" * (4 << 20))
        assert (mounted.path / "again").read_bytes() == b"z" * (4 << 20)
    e2fsck_clean(image)


class _FileHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_char * 128))


def test_file_handles_survive_the_kernels_caches(d: Path) -> None:
    """name_to_handle_at, caches dropped, open_by_handle_at: what an NFS server does."""
    machine.need_root()
    (d / "sub").mkdir()
    path = d / "sub" / "f"
    path.write_text("by handle")
    handle, mount_id = _FileHandle(bytes=128), ctypes.c_int()
    assert _libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0) == 0
    drop_caches()
    root = os.open(d, os.O_RDONLY)
    fd = _libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    assert os.read(fd, 100) == b"by handle"
    os.close(fd)
    path.unlink()
    drop_caches()
    assert _libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY) < 0
    assert ctypes.get_errno() == errno.ESTALE
    os.close(root)
