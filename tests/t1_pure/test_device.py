"""Devices: what every device does, then files, locks, loop devices, short and failing system calls."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs import errors
from py4fs.device import file as file_module
from py4fs.device.base import Device
from py4fs.device.faulty import FaultyDevice, Kind
from py4fs.device.file import FileDevice
from py4fs.device.memory import MemoryDevice

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "image"
    target.write_bytes(CONTENT)
    return target


@pytest.fixture(params=["file", "file at offset", "memory", "faulty"])
def device(request: pytest.FixtureRequest, path: Path) -> Iterator[Device]:
    made: Device
    if request.param == "file":
        made = FileDevice.open(path)
    elif request.param == "file at offset":
        path.write_bytes(b"in front" + CONTENT)
        made = FileDevice.open(path, offset=8)
    else:
        made = MemoryDevice(CONTENT)
        if request.param == "faulty":
            made = FaultyDevice(made)
    yield made
    made.close()
    made.close()


def test_reads(device: Device) -> None:
    assert (device.size, device.readonly) == (len(CONTENT), False)
    assert device.read(0, 4096) == CONTENT
    assert device.read(100, 300) == CONTENT[100:400]
    assert device.read(4096, 0) == b""
    assert type(device.read(0, 10)) is bytes


def test_writes(device: Device) -> None:
    device.write(10, b"abc")
    device.write(20, memoryview(bytearray(b"defg")))
    device.write(4096, b"")
    device.writev(30, [b"hi", bytearray(b"jkl"), memoryview(b""), b"m"])
    device.writev(40, [])
    device.flush()
    want = bytearray(CONTENT)
    want[10:13], want[20:24], want[30:36] = b"abc", b"defg", b"hijklm"
    assert device.read(0, 4096) == want


@pytest.mark.parametrize(
    ("offset", "length"), [(4090, 7), (4097, 0), (-1, 1), (1 << 62, 1), (0, 1 << 40), (5, -1)]
)
def test_out_of_range(device: Device, offset: int, length: int) -> None:
    with pytest.raises(errors.DeviceError, match="beyond the end at byte 4096"):
        device.read(offset, length)
    if 0 <= length < 100:
        with pytest.raises(errors.DeviceError):
            device.write(offset, bytes(length))
        with pytest.raises(errors.DeviceError):
            device.writev(offset, [bytes(length)])
    assert device.read(0, 4096) == CONTENT


@given(st.lists(st.tuples(st.integers(0, 99), st.lists(st.binary(max_size=20), max_size=4)), max_size=10))
def test_memory_is_like_a_bytearray(writes: list[tuple[int, list[bytes]]]) -> None:
    device = MemoryDevice(100)
    model = bytearray(100)
    for offset, parts in writes:
        data = b"".join(parts)
        if offset + len(data) <= 100:
            device.writev(offset, parts)
            model[offset : offset + len(data)] = data
        else:
            with pytest.raises(errors.DeviceError):
                device.writev(offset, parts)
    assert device.data == model and device.read(0, 100) == model


def test_offset_leaves_the_bytes_before_alone(path: Path) -> None:
    device = FileDevice.open(path, offset=1024)
    device.write(0, b"first")
    device.writev(100, [b"second"])
    device.close()
    raw = path.read_bytes()
    assert raw[:1024] == CONTENT[:1024] and raw[1024:1029] == b"first" and raw[1124:1130] == b"second"
    with pytest.raises(errors.Invalid, match="offset 4097 is behind the end at byte 4096"):
        FileDevice.open(path, offset=4097)


def test_streams_are_fetched_ahead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a long read that continues another, and nothing else."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, length, what: asked.append((at, length)))
    big = 128 << 10
    path.write_bytes(bytes(8 * big))
    device = FileDevice.open(path, offset=big)
    device.read(0, big)
    device.read(2 * big, big)
    device.read(0, 4096)
    assert not asked
    device.read(3 * big, big)
    device.read(4 * big, 2 * big)
    assert asked == [(5 * big, big), (7 * big, 2 * big)]
    device.close()


@pytest.mark.parametrize(
    "make", [lambda p: FileDevice.open(p, readonly=True), lambda p: MemoryDevice(8, readonly=True)]
)
def test_readonly_refuses_writes(path: Path, make: Callable[[Path], Device]) -> None:
    device = make(path)
    assert device.readonly
    with pytest.raises(errors.ReadOnly):
        device.write(0, b"x")
    with pytest.raises(errors.ReadOnly):
        device.writev(0, [b"x"])
    device.flush()
    device.close()
    assert path.read_bytes() == CONTENT


def test_readonly_needs_no_permission_to_write(path: Path) -> None:
    path.chmod(0o400)
    FileDevice.open(path, readonly=True).close()
    before = path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (path.stat().st_mtime_ns, path.stat().st_ctime_ns)


# What cannot be opened


def test_what_is_no_image(tmp_path: Path, path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases: list[tuple[Any, type[errors.FsError]]] = [
        (tmp_path / "missing", errors.NotFound),
        (tmp_path, errors.IsADirectory),
        (path / "x", errors.NotADirectory),
        (fifo, errors.Invalid),
        ("/dev/null", errors.Invalid),
        (loop, errors.SymlinkLoop),
        ("a\0b", errors.Invalid),
        ("n" * 300, errors.NameTooLong),
    ]
    for readonly in (True, False):
        for bad, error in cases:
            with pytest.raises(error) as caught:
                FileDevice.open(bad, readonly=readonly)
            assert "\n" not in str(caught.value)


def test_no_descriptor_is_left_behind(tmp_path: Path, path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    holder = FileDevice.open(path)
    for bad, readonly, offset in ((tmp_path, True, 0), (path, False, 0), (path, True, 1 << 40)):
        with pytest.raises(errors.FsError):
            FileDevice.open(bad, readonly=readonly, offset=offset)
    holder.close()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_permission(path: Path) -> None:
    script = "import os; os.setgid(65534); os.setuid(65534)\n" if os.geteuid() == 0 else ""
    # Imported before the identity changes, which may take away the right to read the sources.
    script = (
        "import sys\nfrom py4fs.device.file import FileDevice\nfrom py4fs.errors import AccessDenied\n"
        + script
        + "try:\n    FileDevice.open(sys.argv[1])\nexcept AccessDenied as exc:\n    print(exc)\n"
    )
    path.chmod(0o000)
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Permission denied" in done.stdout


# Locks


def test_one_writer_or_many_readers(path: Path) -> None:
    first = FileDevice.open(path, readonly=True)
    second = FileDevice.open(path, readonly=True)
    with pytest.raises(errors.Busy, match="locked"):
        FileDevice.open(path)
    first.close()
    second.close()
    writer = FileDevice.open(path)
    for readonly in (True, False):
        with pytest.raises(errors.Busy, match="locked"):
            FileDevice.open(path, readonly=readonly)
    peek = FileDevice.open(path, readonly=True, lock=False)
    assert peek.read(0, 4) == CONTENT[:4]
    peek.close()
    writer.close()
    FileDevice.open(path).close()


def test_lock_holds_against_another_process(path: Path) -> None:
    writer = FileDevice.open(path)
    script = (
        "import sys\nfrom py4fs.device.file import FileDevice\nfrom py4fs.errors import Busy\n"
        "try:\n    FileDevice.open(sys.argv[1])\nexcept Busy:\n    print('busy')\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "busy\n"
    writer.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def sysfs(top: Path, name: str, backing: bytes, ro: str, offset: int = 0, sizelimit: int = 0) -> None:
    device = top / name
    (device / "loop").mkdir(parents=True)
    (device / "loop/backing_file").write_bytes(backing + b"\n")
    (device / "loop/offset").write_text(f"{offset}\n")
    (device / "loop/sizelimit").write_text(f"{sizelimit}\n")
    (device / "ro").write_text(f"{ro}\n")


def test_loop_devices_in_sysfs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "sys"
    monkeypatch.setattr(file_module, "_SYS_BLOCK", top)
    (top / "loop0").mkdir(parents=True)  # detached
    sysfs(top, "loop1", b"/no/such/file (deleted)", "0")
    other = tmp_path / "other"
    other.touch()
    sysfs(top, "loop2", os.fsencode(other), "0")
    FileDevice.open(path).close()
    link = tmp_path / "link"
    link.hardlink_to(path)
    sysfs(top, "loop3", os.fsencode(link), "1", 0, 1024)
    FileDevice.open(path, readonly=True).close()
    with pytest.raises(errors.Busy, match=r"attached to /dev/loop3; .*losetup -d /dev/loop3`"):
        FileDevice.open(path)
    FileDevice.open(path, offset=1024).close()
    sysfs(top, "loop4", os.fsencode(path), "0", 512)
    for readonly in (True, False):
        with pytest.raises(errors.Busy, match="loop4"):
            FileDevice.open(path, readonly=readonly, offset=1024)
    FileDevice.open(path, readonly=True, lock=False).close()


needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices"
)


def losetup(path: Path, *options: str) -> str:
    command = ["losetup", "-f", "--show", *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_loop
def test_a_real_loop_device(path: Path, tmp_path: Path) -> None:
    os.truncate(path, 4 << 20)
    loop = losetup(path)
    try:
        for readonly in (True, False):
            with pytest.raises(errors.Busy, match=loop):
                FileDevice.open(path, readonly=readonly)
        device = FileDevice.open(loop)
        assert device.is_block_device and device.size == 4 << 20
        device.write(4096, b"through the loop")
        device.flush()
        for readonly in (True, False):
            with pytest.raises(errors.Busy):
                FileDevice.open(loop, readonly=readonly)
        device.close()
        subprocess.run(["mke2fs", "-q", "-t", "ext4", loop], check=True, capture_output=True)
        mount = tmp_path / "mnt"
        mount.mkdir()
        subprocess.run(["mount", loop, mount], check=True)
        try:
            with pytest.raises(errors.Busy, match="mounted"):
                FileDevice.open(loop)
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    FileDevice.open(path).close()


@needs_loop
def test_a_readonly_loop_device(path: Path) -> None:
    loop = losetup(path, "-r")
    try:
        with pytest.raises(errors.FsError) as caught:
            FileDevice.open(loop)
        assert caught.value.errno in (errno.EROFS, errno.EACCES)
        FileDevice.open(loop, readonly=True).close()
        FileDevice.open(path, readonly=True).close()
        with pytest.raises(errors.Busy):
            FileDevice.open(path)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


# System calls that do less than asked


def test_short_reads_and_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite, pwritev = os.pread, os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 7), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:5], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [memoryview(parts[0])[:3]], at))
    device = FileDevice.open(path)
    assert device.read(10, 100) == CONTENT[10:110]
    device.write(50, b"abcdefghijklmnop")
    device.writev(70, [b"1234567", b"89", b"", b"0"])
    device.close()
    raw = path.read_bytes()
    assert raw[50:66] == b"abcdefghijklmnop" and raw[70:80] == b"1234567890"
    assert raw[66:70] == CONTENT[66:70] and raw[80:] == CONTENT[80:]


def test_more_buffers_than_one_call_takes(path: Path) -> None:
    device = FileDevice.open(path)
    device.writev(1, [bytes([n % 251]) for n in range(3000)])
    assert device.read(0, 3002) == CONTENT[:1] + bytes(n % 251 for n in range(3000)) + CONTENT[3001:3002]
    device.close()


def test_a_file_that_shrinks_is_an_error(path: Path) -> None:
    device = FileDevice.open(path)
    os.truncate(path, 100)
    with pytest.raises(errors.DeviceError, match="only 50 are there"):
        device.read(50, 60)
    device.close()


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("pread", lambda d: d.read(0, 10)),
        ("pwrite", lambda d: d.write(0, b"x")),
        ("pwritev", lambda d: d.writev(0, [b"x"])),
        ("fdatasync", lambda d: d.flush()),
    ],
)
def test_failing_calls_are_device_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, use: Callable[[Device], None]
) -> None:
    device = FileDevice.open(path)

    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(errors.DeviceError, match="No space left on device") as caught:
        use(device)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    device.close()


def test_nothing_works_after_close(path: Path) -> None:
    device = FileDevice.open(path)
    device.close()
    assert device.fileno() == -1
    for use in (lambda: device.read(0, 1), lambda: device.write(0, b"x"), device.flush):
        with pytest.raises(errors.DeviceError):
            use()


# Injected failures


def test_the_nth_call_fails() -> None:
    device = FaultyDevice(MemoryDevice(CONTENT))
    device.read(0, 1)
    device.arm("read", 3)
    device.read(0, 1)
    device.read(0, 1)
    with pytest.raises(errors.DeviceError, match="injected"):
        device.read(0, 1)
    device.read(0, 1)
    assert device.calls == {"read": 5, "write": 0, "flush": 0} and device.failed == 1


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_all_calls_from_the_nth_on_fail_and_do_nothing(kind: Kind) -> None:
    device = FaultyDevice(MemoryDevice(CONTENT))
    uses: list[Callable[[], None]] = [device.flush]
    if kind == "write":
        uses = [lambda: device.write(0, b"zz"), lambda: device.writev(0, [b"zz"])]
    device.arm(kind, times=None)
    for _ in range(3):
        for use in uses:
            with pytest.raises(errors.DeviceError):
                use()
    assert device.read(0, 2) == CONTENT[:2]
    device.disarm()
    for use in uses:
        use()
    assert device.read(0, 2) == (b"zz" if kind == "write" else CONTENT[:2])
