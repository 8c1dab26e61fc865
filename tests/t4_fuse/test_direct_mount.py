"""What only the direct session can: the system calls that pyfuse3 has no requests for, through a real mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from py4fs.fuse.direct import ioctls
from py4fs.iomap import protocol as iomap
from tests.conftest import KernelMount
from tests.support import machine
from tests.support.image import ImageMaker, debugfs, e2fsck_clean
from tests.support.mounted import ROOT, Mounted, fuse_mounted, run_py4fs

_libc = ctypes.CDLL(None, use_errno=True)
FALLOC_KEEP, FALLOC_PUNCH, FALLOC_COLLAPSE, FALLOC_ZERO = 1, 2, 8, 16
BLOCK = 4096


@pytest.fixture
def mounted(make_image: ImageMaker) -> Iterator[Mounted]:
    with fuse_mounted(make_image("64M", "-b", "4096"), session="direct") as mounted:
        yield mounted


def call(name: str, *args: object) -> int:
    """A libc function; OSError as Python's own would raise it."""
    result = int(getattr(_libc, name)(*args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    call("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def error_of(function: object, *args: object) -> str:
    with pytest.raises(OSError, match=r".*") as info:
        function(*args)  # type: ignore[operator]
    return errno.errorcode[info.value.errno or 0]


RANGES = [
    (0, 3 * BLOCK, 10 * BLOCK),
    (FALLOC_KEEP, 30 * BLOCK, 5 * BLOCK),
    (FALLOC_KEEP | FALLOC_PUNCH, BLOCK + 100, 4 * BLOCK),
    (FALLOC_ZERO, 6 * BLOCK + 7, 3 * BLOCK),
    (FALLOC_ZERO | FALLOC_KEEP, 0, 20 * BLOCK),
]
"""COLLAPSE and INSERT are refused by the kernel's FUSE before anybody is asked."""


def ranges_on(directory: Path) -> list[tuple[str, int, int, bytes]]:
    """What becomes of a file in each mode, with what it holds afterwards; after a remount."""
    found = []
    for number, (mode, offset, length) in enumerate(RANGES):
        path = directory / f"range-{number}"
        if not path.exists():
            with path.open("w+b", buffering=0) as file:
                file.write(bytes(range(256)) * 16 * 16)
                os.fsync(file.fileno())  # blocks are chosen now, by the kernel too
                fallocate(file.fileno(), mode, offset, length)
        else:
            info = path.stat()
            found.append((path.name, info.st_size, info.st_blocks, path.read_bytes()))
    return found


def test_fallocate_as_the_kernel_does(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    ours, theirs = make_image("64M", "-b", "4096"), make_image("64M", "-b", "4096")
    with fuse_mounted(ours, session="direct") as mounted:
        ranges_on(mounted.path)
    with kernel_mount(theirs) as directory:
        ranges_on(directory)
    with kernel_mount(ours, "ro") as directory:
        through_kernel = ranges_on(directory)
    with kernel_mount(theirs, "ro") as directory:
        assert through_kernel == ranges_on(directory)
    with fuse_mounted(ours, ["ro"], session="direct") as mounted:
        assert ranges_on(mounted.path) == through_kernel


def test_fallocate_errors(mounted: Mounted) -> None:
    with (mounted.path / "f").open("wb") as file:
        assert error_of(fallocate, file.fileno(), 64, 0, BLOCK) == "ENOTSUP"
        assert error_of(fallocate, file.fileno(), FALLOC_COLLAPSE, 0, BLOCK) == "ENOTSUP"
        assert error_of(fallocate, file.fileno(), 0, 0, 1 << 40) == "ENOSPC"


_SEEK = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE))
"""


def seek_from_outside(path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", _SEEK, path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_seek_data_is_right_while_pages_are_dirty(mounted: Mounted) -> None:
    """Another process asks before anything of it has reached the server: no data may be called a hole."""
    path = mounted.path / "sparse"
    with path.open("wb", buffering=0) as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"x" * BLOCK, 512 << 10)
        assert seek_from_outside(path) == f"{512 << 10} 0", "the kernel was made to write its pages"
        os.pwrite(file.fileno(), b"y" * BLOCK, 2 << 20)
        assert seek_from_outside(path) == f"{512 << 10} 0"
        copy = mounted.path / "copy"
        subprocess.run(["cp", "--sparse=auto", "--reflink=never", path, copy], check=True)
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_size == (2 << 20) + BLOCK
    assert seek_from_outside(path) == f"{512 << 10} 0"
    fd = os.open(path, os.O_RDONLY)
    assert os.lseek(fd, 768 << 10, os.SEEK_DATA) == 2 << 20
    assert os.lseek(fd, 2 << 20, os.SEEK_HOLE) == (2 << 20) + BLOCK
    assert error_of(os.lseek, fd, 3 << 20, os.SEEK_DATA) == "ENXIO"
    os.close(fd)


def test_tmpfile_and_its_first_name(mounted: Mounted) -> None:
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"data")
    assert os.fstat(fd).st_nlink == 0
    call("linkat", -100, f"/proc/self/fd/{fd}".encode(), -100, os.fsencode(mounted.path / "named"), 0x400)
    assert os.fstat(fd).st_nlink == 1
    os.close(fd)
    assert (mounted.path / "named").read_bytes() == b"data"
    free = os.statvfs(mounted.path).f_ffree
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert os.statvfs(mounted.path).f_ffree == free - 1
    os.close(fd)
    deadline = time.monotonic() + 10
    while os.statvfs(mounted.path).f_ffree != free and time.monotonic() < deadline:
        time.sleep(0.01)  # RELEASE and FORGET come when the kernel likes
    assert os.statvfs(mounted.path).f_ffree == free


def test_filling_the_disk_ends(make_image: ImageMaker) -> None:
    """A program that writes until there is no more room is told by write(2), without fsync or close."""
    with fuse_mounted(make_image("32M", "-b", "4096"), session="direct") as mounted:
        path = mounted.path / "f"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        taken = 0
        with pytest.raises(OSError, match="No space left"):
            while taken < 64 << 30:
                taken += os.write(fd, b"z" * (1 << 20))
        assert path.stat().st_ino and os.read(fd, 0) == b"", "only writing is refused"
        with pytest.raises(OSError, match="No space left"):
            os.write(fd, b"z")
        os.truncate(path, 1 << 20)
        assert os.pwrite(fd, b"again", 1 << 20) == 5
        with pytest.raises(OSError, match="No space left"):
            os.fsync(fd)  # what was lost before is reported once
        os.fsync(fd)
        os.close(fd)
        assert path.read_bytes() == b"z" * (1 << 20) + b"again"


def test_set_user_id_goes_whatever_changes_the_file(make_image: ImageMaker) -> None:
    """And stat(2) shows it at once, though the kernel has the mode in its cache."""
    machine.need_root()
    block = mmap.mmap(-1, BLOCK)
    changes: dict[str, Callable[[int], object]] = {
        "buffered": lambda fd: os.pwrite(fd, b"x", 0),
        "direct": lambda fd: os.pwrite(fd, block, 0),
        "fallocate": lambda fd: fallocate(fd, 0, 0, 3 * BLOCK),
        "punch": lambda fd: fallocate(fd, FALLOC_KEEP | FALLOC_PUNCH, 0, BLOCK),
        "copy": lambda fd: os.copy_file_range(fd, fd, BLOCK, 0, BLOCK),
    }
    with fuse_mounted(make_image("64M", "-b", "4096"), ["allow_other"], session="direct") as mounted:
        for name, change in changes.items():
            path = mounted.path / name
            for uid, mode in ((1000, 0o755), (0, 0o6755)):
                path.write_bytes(b"o" * BLOCK)
                path.chmod(0o6755)
                fd = os.open(path, os.O_RDWR | (os.O_DIRECT if name == "direct" else 0))
                assert stat.S_IMODE(path.stat().st_mode) == 0o6755
                os.seteuid(uid)
                try:
                    change(fd)
                finally:
                    os.seteuid(0)
                assert stat.S_IMODE(path.stat().st_mode) == mode, (name, uid)
                os.close(fd)


def test_copy_file_range(mounted: Mounted) -> None:
    source, target = mounted.path / "from", mounted.path / "to"
    data = os.urandom(3 << 20)
    with source.open("wb") as file:
        file.write(data)
        file.truncate(8 << 20)
    with source.open("rb") as file, target.open("wb") as copy:
        done = 0
        while done < 8 << 20:
            done += os.copy_file_range(file.fileno(), copy.fileno(), (8 << 20) - done)
    assert target.read_bytes() == data + bytes(5 << 20)
    assert target.stat().st_blocks == source.stat().st_blocks, "holes stay holes"


def test_statx_birth_time(mounted: Mounted) -> None:
    path = mounted.path / "f"
    before = time.time()
    path.write_bytes(b"")
    done = subprocess.run(["stat", "-c", "%W", path], capture_output=True, text=True, check=True)
    assert abs(int(done.stdout) - before) < 10


def test_chattr_changes_the_change_time(mounted: Mounted) -> None:
    """The kernel, which owns that of files, does not see to it: it is made to ask anew when they have been closed."""
    path = mounted.path / "f"
    path.write_bytes(b"contents")
    before = path.stat().st_ctime_ns
    time.sleep(0.05)  # the kernel's time stamps have ticks of some milliseconds
    subprocess.run(["chattr", "+A", path], check=True)
    deadline = time.monotonic() + 10
    while path.stat().st_ctime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert path.read_bytes() == b"contents"


def test_chattr_and_lsattr(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.write_bytes(b"x")
    assert error_of(os.open, path / "g", os.O_RDONLY) == "ENOTDIR"
    for flag, denied in (("i", "EPERM"), ("a", "EPERM")):
        subprocess.run(["chattr", f"+{flag}", path], check=True)
        listed = subprocess.run(["lsattr", path], capture_output=True, text=True, check=True).stdout.split()[0]
        assert flag in listed
        assert error_of(os.open, path, os.O_WRONLY) == denied
        assert error_of(os.unlink, path) == denied
        assert error_of(lambda: os.utime(path, (0, 0))) == denied
        subprocess.run(["chattr", f"-{flag}", path], check=True)
    os.close(os.open(path, os.O_WRONLY))


def test_times_of_append_only_files(mounted: Mounted) -> None:
    """Their owner may say "now", and writing changes them; no other time can be set."""
    path = mounted.path / "log"
    path.write_bytes(b"x")
    subprocess.run(["chattr", "+a", path], check=True)
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path)
    assert error_of(lambda: os.utime(path, (0, 0))) == "EPERM"
    assert path.stat().st_mtime > 1e9
    subprocess.run(["chattr", "-a", path], check=True)
    os.utime(path, (0, 0))
    assert path.stat().st_mtime == 0


def test_label_uuid_and_version(mounted: Mounted) -> None:
    fd = os.open(mounted.path, os.O_RDONLY)
    fcntl.ioctl(fd, ioctls.FS_IOC_SETFSLABEL, b"a new label".ljust(256, b"\0"))
    assert fcntl.ioctl(fd, ioctls.FS_IOC_GETFSLABEL, bytes(256)).rstrip(b"\0") == b"a new label"
    assert mounted.image.read_bytes()[1024:2048].count(b"a new label\0") == 1, "blkid looks there"
    os.close(fd)
    (mounted.path / "f").touch()
    version = subprocess.run(["lsattr", "-v", mounted.path / "f"], capture_output=True, text=True, check=True)
    assert int(version.stdout.split()[0]) > 0
    assert run_py4fs("umount", mounted.path).returncode == 0
    assert "a new label" in debugfs(mounted.image, "stats")
    assert run_py4fs("mount", mounted.image, mounted.path).returncode == 0


def test_trim(mounted: Mounted) -> None:
    machine.need_root()
    path = mounted.path / "big"
    path.write_bytes(os.urandom(8 << 20))
    subprocess.run(["sync", path], check=True)
    path.unlink()
    subprocess.run(["sync", mounted.path], check=True)
    before = mounted.image.stat().st_blocks
    fd = os.open(mounted.path, os.O_RDONLY)
    deadline = time.monotonic() + 20
    while mounted.image.stat().st_blocks > before - (7 << 11) and time.monotonic() < deadline:
        trimmed = fcntl.ioctl(fd, ioctls.FITRIM, struct.pack("<QQQ", 0, (1 << 64) - 1, 0))
        assert struct.unpack("<QQQ", trimmed)[1] > 0
        time.sleep(0.1)
    os.close(fd)
    assert mounted.image.stat().st_blocks <= before - (7 << 11), "the image's file has shrunk"


def test_whiteouts(mounted: Mounted) -> None:
    old, new = mounted.path / "old", mounted.path / "new"
    old.write_bytes(b"x")
    call("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), 4)
    info = old.lstat()
    assert stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
    assert new.read_bytes() == b"x"


def test_handles_outlive_the_kernels_caches(mounted: Mounted) -> None:
    """open_by_handle_at(2): the kernel asks for an inode by number, and checks its generation."""
    machine.need_root()
    path = mounted.path / "d" / "f"
    path.parent.mkdir()
    path.write_bytes(b"by handle")
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    call("name_to_handle_at", -100, os.fsencode(path), handle, ctypes.byref(mount_id), 0)
    top = os.open(mounted.path, os.O_RDONLY)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    fd = call("open_by_handle_at", top, handle, os.O_RDONLY)
    assert os.read(fd, 100) == b"by handle"
    os.close(fd)
    path.unlink()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert error_of(call, "open_by_handle_at", top, handle, os.O_RDONLY) == "ESTALE"
    os.close(top)


def test_the_mapping_dump(make_image: ImageMaker) -> None:
    image = make_image("16M", "-b", "4096")
    with fuse_mounted(image, session="direct") as mounted, (mounted.path / "f").open("wb") as file:
        file.write(b"x" * 10 * BLOCK)
        os.fsync(file.fileno())
        raw = bytearray(ioctls.MAPPINGS_BYTES)
        fcntl.ioctl(file.fileno(), ioctls.PY4FS_IOC_MAPPINGS, raw)
    count, more = ioctls.MAPPINGS_OUT.unpack_from(raw)
    found = list(iomap.IOMAP_IO.iter_unpack(raw, ioctls.MAPPINGS_OUT.size, count))
    assert not more and found[0].type == 2 and found[0].length == 10 * BLOCK
    assert f"(0-9):{found[0].addr // BLOCK}-" in debugfs(image, "stat f")


def test_control_of_a_live_mount(mounted: Mounted, kernel_mount: KernelMount) -> None:
    def control(what: str, code: int = 0) -> str:
        done = run_py4fs("control", mounted.path, what)
        assert done.returncode == code, done.stderr
        return done.stderr

    (mounted.path / "before").write_bytes(b"1")
    control("freeze")
    late = threading.Thread(target=lambda: (mounted.path / "late").write_bytes(b"2"))
    late.start()
    time.sleep(0.3)
    assert late.is_alive(), "changes wait"
    assert (mounted.path / "before").read_bytes() == b"1", "reading does not"
    copy = mounted.image.with_suffix(".copy")
    copy.write_bytes(mounted.image.read_bytes())
    e2fsck_clean(copy)
    with kernel_mount(copy, "ro") as directory:
        assert sorted(p.name for p in directory.iterdir()) == ["before", "lost+found"]
    copy.unlink()
    assert "busy" in control("freeze", 2)
    control("thaw")
    late.join(30)
    assert (mounted.path / "late").read_bytes() == b"2"
    control("ro")
    assert error_of(os.mkdir, mounted.path / "d") == "EROFS"
    control("rw")
    (mounted.path / "d").mkdir()
    control("sync")
    done = run_py4fs("control", "/", "sync")
    assert done.returncode == 32 and done.stderr.count("\n") == 1


def test_a_frozen_mount_can_be_ended(make_image: ImageMaker) -> None:
    """Writes that wait for a thaw must not keep a server from ending."""
    image = make_image("16M")
    with fuse_mounted(image, session="direct", unmount=False) as mounted:
        with (mounted.path / "f").open("wb") as file:
            file.write(b"x" * 100_000)
            assert run_py4fs("control", mounted.path, "freeze").returncode == 0
        os.kill(mounted.pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{mounted.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{mounted.pid}").exists()
    assert run_py4fs("cat", image, "/f").stdout == "x" * 100_000


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_shutdown(make_image: ImageMaker, flags: int) -> None:
    """EXT4_IOC_SHUTDOWN, whose flags the kernel does not pass on: they are read where the caller has them."""
    machine.need_root()
    image = make_image("16M")
    with fuse_mounted(image, ["commit=300"], session="direct", unmount=False) as mounted:
        (mounted.path / "kept").mkdir()
        subprocess.run(["sync", mounted.path], check=True)
        (mounted.path / "late").mkdir()
        fd = os.open(mounted.path, os.O_RDONLY)
        argument = ctypes.c_uint32(flags)
        call("ioctl", fd, ctypes.c_ulong(ioctls.EXT4_IOC_SHUTDOWN), ctypes.byref(argument))
        os.close(fd)
        assert error_of(os.mkdir, mounted.path / "dead") == "EIO"
        mounted.expected.append("shut down")
        subprocess.run(["umount", mounted.path], check=True)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{mounted.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False)
    names = run_py4fs("ls", image, "/").stdout.split()
    assert "kept" in names
    assert ("late" in names) == (flags != 2)


def test_a_block_device_is_a_fuseblk_mount(make_image: ImageMaker) -> None:
    """umount(2) returns when everything is on the device; FIBMAP works."""
    machine.need_loop()
    image = make_image("64M", "-b", "4096")
    loop = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True).stdout.strip()
    directory = image.parent / "blk"
    directory.mkdir()
    try:
        assert run_py4fs("mount", "--session", "direct", loop, directory).returncode == 0
        line = next(x for x in Path("/proc/self/mounts").read_text().splitlines() if f" {directory} " in x)
        assert line.startswith(f"{loop} {directory} fuseblk.py4fs ")
        assert run_py4fs("mount", loop, directory).returncode == 32, "in use"
        data = os.urandom(5_000_000)
        (directory / "f").write_bytes(data)
        with (directory / "f").open("rb") as file:
            os.fsync(file.fileno())
            (physical,) = struct.unpack("i", fcntl.ioctl(file, 1, struct.pack("i", 0)))
        subprocess.run(["umount", directory], check=True)
        device = Path(loop).read_bytes()  # at once
        assert device[physical * BLOCK :][: 100 * BLOCK] == data[: 100 * BLOCK]
        e2fsck_clean(Path(loop))
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


_PASSED = """
import ctypes, os, subprocess, sys
image, directory = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
assert libc.mount(b"py4fs", directory.encode(), b"fuse.py4fs", 0, options.encode()) == 0
command = [sys.executable, "-m", "py4fs.cli.main", "mount", image, f"/dev/fd/{fd}"]
subprocess.run(command, pass_fds=[fd], check=True)
os.close(fd)
os.mkdir(directory + "/made")
assert libc.umount2(directory.encode(), 0) == 0
"""


def test_a_descriptor_handed_over(make_image: ImageMaker, tmp_path: Path) -> None:
    machine.need_root()
    image = make_image("16M")
    directory = tmp_path / "passed"
    directory.mkdir()
    subprocess.run(
        [sys.executable, "-c", _PASSED, image, directory], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    deadline = time.monotonic() + 30
    while "made" not in run_py4fs("ls", image, "/").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "made" in run_py4fs("ls", image, "/").stdout
    done = run_py4fs("mount", image, "/dev/fd/0")
    assert (done.returncode, done.stderr) == (1, "py4fs: /dev/fd/0: not an open /dev/fuse\n")


def test_an_aborted_connection(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    """/sys/fs/fuse/connections/N/abort: the server writes what it has, and ends."""
    machine.need_root()
    image = make_image("16M")
    with fuse_mounted(image, session="direct", unmount=False) as mounted:
        (mounted.path / "d").mkdir()
        number = os.minor(mounted.path.stat().st_dev)
        abort = Path(f"/sys/fs/fuse/connections/{number}/abort")
        if not abort.exists():
            subprocess.run(["mount", "-t", "fusectl", "none", "/sys/fs/fuse/connections"], check=True)
        abort.write_text("1")
        deadline = time.monotonic() + 30
        while Path(f"/proc/{mounted.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        subprocess.run(["umount", "-l", mounted.path], check=False)
    e2fsck_clean(image)
    with kernel_mount(image, "ro") as directory:
        assert (directory / "d").is_dir()


def read_what_a_killed_one_left(path: Path) -> None:
    """Killed in rename(2), when all but the file's times had been sent, it leaves an EIO for the next close(2).

    The kernel does so by itself, without asking the server, and once (fuse_flush_time_update); nothing is lost.
    """
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    try:
        os.close(fd)
    except OSError as exc:
        assert exc.errno == errno.EIO and path.name.endswith("-renamed"), path
        path.read_bytes()


@pytest.mark.parametrize("seconds", [3, pytest.param(600, marks=pytest.mark.long)])
def test_clients_that_are_killed(make_image: ImageMaker, seconds: int) -> None:
    """Ten processes at a time work on the mount and are killed in the middle of it."""
    script = """
import os, random, sys
os.chdir(sys.argv[1])
number, turn = sys.argv[2:]
rng = random.Random(turn + number)
while True:
    name = f"{number}-{rng.randrange(20)}"
    with open(name, "wb") as file:
        file.write(os.urandom(rng.randrange(200_000)))
        if rng.random() < 0.2:
            os.fsync(file.fileno())
    match rng.randrange(6):
        case 0 | 1:
            os.unlink(name)
        case 2:
            os.rename(name, f"{number}-renamed")
        case 3:
            os.makedirs(f"d{number}/{turn}", exist_ok=True)
        case 4:
            os.truncate(name, rng.randrange(100_000))
    with open("common", "ab") as file:
        file.write(b"x" * 100)
        if file.tell() > 1_000_000:
            os.truncate("common", 0)
    os.listdir()
"""
    with fuse_mounted(make_image("256M", "-b", "4096"), session="direct") as mounted:
        end = time.monotonic() + seconds
        turn = 0
        while time.monotonic() < end:
            turn += 1
            command = [sys.executable, "-c", script, str(mounted.path)]
            clients = [subprocess.Popen([*command, str(number), str(turn)]) for number in range(10)]
            time.sleep(1)
            for client in clients:
                client.kill()
            assert [client.wait() for client in clients] == [-signal.SIGKILL] * 10, "nothing else ended them"
        for path in mounted.path.iterdir():
            if path.is_file():
                read_what_a_killed_one_left(path)
