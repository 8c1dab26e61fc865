"""The block device below a mount with iomap: loop devices for real, the ioctls on /dev/fuse by their bytes."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
from pathlib import Path

import pytest

from py4fs.api import open_image
from py4fs.device.file import FileDevice
from py4fs.device.memory import MemoryDevice
from py4fs.errors import Busy, DeviceError, NotSupported
from py4fs.ext4.volume import Volume, VolumeOptions
from py4fs.fuse.direct import backing
from py4fs.iomap import protocol as iomap
from py4fs.vfs import Vfs
from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.mounted import COMMAND
from tests.support.volumes import Clock


def loop_devices(image: Path) -> str:
    command = ["losetup", "-nlO", "NAME,OFFSET,AUTOCLEAR,DIO", "-j", str(image)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_image_goes_on_as_a_loop_device(tmp_path: Path) -> None:
    machine.need_loop()
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = FileDevice.open(image, offset=8192)
    device.write(0, b"before")
    device.use_loop_device()
    device.set_block_size(1024)
    assert device.read(0, 6) == b"before", "what was written through the file"
    assert (device.size, device.offset, device.is_block_device) == ((1 << 20) - 8192, 0, True)
    assert device.sector_size() == 512
    name, *rest = loop_devices(image).split()
    assert rest == ["8192", "1", "0"], "offset, goes with its last user, no direct I/O below"
    device.write(4096, b"after")
    device.flush()
    assert image.read_bytes()[12_288:12_293] == b"after"
    with pytest.raises(Busy, match="locked"):
        FileDevice.open(image)
    with pytest.raises(OSError, match="busy"):
        os.open(name, os.O_RDWR | os.O_EXCL)
    device.close()
    assert loop_devices(image) == ""


def test_a_volume_lives_on_its_loop_device(make_image: ImageMaker) -> None:
    machine.need_loop()
    image = make_image("16M", "-b", "1024")
    device = FileDevice.open(image)
    vfs = Vfs(Volume.open(device, VolumeOptions(strict=True), Clock(), random.Random(1)))
    vfs.mkdir(2, b"before", 0o755)
    vfs.commit()
    device.use_loop_device()
    device.set_block_size(1024)
    vfs.mkdir(2, b"after", 0o755)
    vfs.sync()
    vfs.close()
    assert loop_devices(image) == ""
    with open_image(str(image), readonly=True) as filesystem:
        assert {"before", "after"} <= set(filesystem.listdir("/"))


def test_no_loop_device_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 8192)
    device = FileDevice.open(image)

    def refuse(*args: object, **kwargs: object) -> int:
        raise DeviceError("no loop device")

    monkeypatch.setattr("py4fs.device.loop.attach", refuse)
    with pytest.raises(DeviceError):
        device.use_loop_device()
    assert device.read(0, 1) == b"x" and not device.is_block_device
    device.close()


class FakeIoctl:
    """ioctl(2) on /dev/fuse of a patched kernel."""

    def __init__(self, support: int = 3, cookie: int | OSError = 7) -> None:
        self.support = support
        self.cookie = cookie
        self.calls: list[tuple[int, bytes]] = []

    def __call__(self, fd: int, request: int, arg: bytearray | bytes = b"", mutate: bool = True) -> int | bytes:
        if request not in iomap.IOCTLS:
            return 0  # of a block device
        self.calls.append((request, bytes(arg)))
        if request == iomap.DEV_IOC_IOMAP_SUPPORT:
            assert isinstance(arg, bytearray)
            arg[:] = iomap.IOMAP_SUPPORT.pack(self.support, 0)
            return 0
        assert request == iomap.DEV_IOC_BACKING_OPEN
        if isinstance(self.cookie, OSError):
            raise self.cookie
        return self.cookie


@pytest.fixture
def null() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def test_5_a_stock_kernel_has_no_support(null: int) -> None:
    """ENOTTY, as of any other device."""
    device = MemoryDevice(4096)
    assert backing.prepare("off", null, device, 4096) is None
    assert backing.prepare("auto", null, device, 4096) is None
    with pytest.raises(NotSupported, match=r"^the kernel has no FUSE_IOMAP"):
        backing.prepare("require", null, device, 4096)
    os.close(null)


def test_5_switched_off_or_not_for_us(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", FakeIoctl(support=0))
    with pytest.raises(NotSupported, match="switched off"):
        backing.prepare("require", null, MemoryDevice(4096), 4096)
    assert backing.prepare("auto", null, MemoryDevice(4096), 4096) is None
    os.close(null)


def test_5_what_is_no_device_cannot_be_registered(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", FakeIoctl())
    with pytest.raises(NotSupported, match="replayed in memory"):
        backing.prepare("require", null, MemoryDevice(4096), 4096)
    os.close(null)


def test_5_without_a_loop_device(
    null: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_guard: LogGuard
) -> None:
    log_guard.expect("no iomap: none left")

    def refuse(*args: object, **kwargs: object) -> int:
        raise DeviceError("none left")

    monkeypatch.setattr(fcntl, "ioctl", FakeIoctl())
    monkeypatch.setattr("py4fs.device.loop.attach", refuse)
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    with image.open("r+b") as file:
        device = FileDevice(os.dup(file.fileno()), "image", readonly=False)
    assert backing.prepare("auto", null, device, 4096) is None
    with pytest.raises(DeviceError, match="none left"):
        backing.prepare("require", null, device, 4096)
    device.close()
    os.close(null)


def test_5_registering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    device = FileDevice.open(image)
    kernel = FakeIoctl()
    monkeypatch.setattr(fcntl, "ioctl", kernel)
    assert backing.register(9, device) == 7
    assert kernel.calls == [(0x4010E501, device.fileno().to_bytes(4, "little") + b"\1" + bytes(11))]
    kernel.cookie = OSError(19, "No such device")
    with pytest.raises(DeviceError, match="does not take the block device: No such device"):
        backing.register(9, device)
    device.close()


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_required_where_it_is_not_to_be_had(make_image: ImageMaker, tmp_path: Path, session: str) -> None:
    """One clear line, nothing mounted, no loop device left."""
    machine.need_fuse()
    image, directory = make_image("16M"), tmp_path / "dir"
    directory.mkdir()
    done = subprocess.run(
        [*COMMAND, "mount", "--session", session, "-o", "iomap=require", image, directory],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 32
    (line,) = done.stderr.splitlines()
    assert "iomap=require: " in line
    assert ("no FUSE_IOMAP" if session == "direct" else "only the direct session") in line
    assert str(directory) not in Path("/proc/self/mounts").read_text()
    assert not machine.has_loop() or loop_devices(image) == ""
