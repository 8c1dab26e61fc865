"""The contained service with the restrictions of systemd/py4fs@.service, which `unit_sandbox` imitates."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import COMMAND, ROOT, is_mounted, run_py4fs

UNIT = ROOT / "systemd" / "py4fs@.service"
SANDBOX = [sys.executable, "-m", "tests.support.unit_sandbox", str(UNIT)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    """The address of what systemd/py4fs.socket would listen to."""
    machine.need_root()
    machine.need_fuse()
    machine.need_program("systemd-socket-activate", "systemd-analyze")
    address = tmp_path / "service.socket"
    words = ["systemd-socket-activate", "--seqpacket", "--accept", "-l", str(address)]
    passed = [f"-E{name}" for name in ("PYTHONPATH", "PATH", "LC_ALL", "PYTHONDONTWRITEBYTECODE")]
    with (tmp_path / "log").open("wb") as log:
        listener = subprocess.Popen(
            [*words, *passed, *SANDBOX, *COMMAND, "service"], env=ENVIRONMENT, stderr=log, cwd=ROOT
        )
        try:
            deadline = time.monotonic() + 20
            while not address.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield address
        finally:
            listener.terminate()
            listener.wait()
    print((tmp_path / "log").read_text(errors="replace"), file=sys.stderr)


def server_of(directory: Path) -> int:
    """The contained process."""
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and b"\0service\0" in _read(entry / "cmdline") and _uid(entry) == 61234
    ]
    assert len(found) == 1, found
    return found[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _uid(entry: Path) -> int:
    try:
        return entry.stat().st_uid
    except OSError:
        return -1


def test_a_mount(service: Path, make_image: ImageMaker, tmp_path: Path) -> None:
    """It mounts, reads, writes, syncs and ends; and is contained as the unit says."""
    image, directory = make_image("32M"), tmp_path / "mnt"
    image.chmod(0o600)
    directory.mkdir()
    done = run_py4fs("mount", image, directory, "-o", f"kernel,service={service}")
    assert (done.returncode, done.stderr) == (0, "")
    pid = server_of(directory)
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert (fields["NoNewPrivs"], fields["Seccomp"], fields["Umask"]) == ("1", "2", "0777")
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    for namespace in ("net", "mnt", "ipc", "uts", "user"):
        assert Path(f"/proc/{pid}/ns/{namespace}").readlink() != Path(f"/proc/self/ns/{namespace}").readlink()
    seen = Path(f"/proc/{pid}/root")
    assert not (seen / str(image)[1:]).exists() and not (seen / "dev/fuse").exists()
    python = (Path(prefix).parts for prefix in (sys.base_prefix, sys.prefix, str(ROOT)))
    needed = {parts[2] for parts in python if parts[1] == "root"}
    assert {entry.name for entry in (seen / "root").iterdir()} == needed
    path = directory / "f"
    with path.open("wb") as file:
        file.write(b"f" * 3_000_000)
        os.fsync(file.fileno())
    path.chmod(0o4755)
    os.setxattr(path, "user.a", b"value")
    subprocess.run(["chattr", "+A", path], check=True)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 5_000_000)
    os.sync()
    assert path.stat().st_size == 5_000_000 and stat.S_IMODE(path.stat().st_mode) == 0o4755
    assert run_py4fs("umount", directory).returncode == 0
    assert not is_mounted(directory)
    assert run_py4fs("mount", image, directory, "-o", f"ro,service={service}").returncode == 0
    assert path.read_bytes().startswith(b"f" * 3_000_000)
    assert run_py4fs("umount", directory).returncode == 0


FORBIDDEN = {
    "open(2) of what is not its own": "open('/etc/shadow')",
    "writing": "open('/etc/x', 'w')",
    "devices": "os.open('/dev/fuse', os.O_RDWR)",
    "other processes": "os.stat(f'/proc/{os.getppid()}')",
    "the kernel's settings": "open('/proc/sys/kernel/hostname')",
    "the network": "socket.socket(socket.AF_INET)",
    "namespaces": "call(libc.unshare(0x10000000))",
    "mounting": "call(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))",
    "becoming root": "os.setuid(0)",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "writable code": "mmap.mmap(-1, 4096, prot=7)",
    "set-user-ID": "os.mkdir('/tmp/d') or os.chmod('/tmp/d', 0o4755)",
    "watching others": "call(libc.ptrace(16, 1, 0, 0))",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_forbidden(what: str, tmp_path: Path) -> None:
    machine.need_root()
    machine.need_program("systemd-analyze")
    script = f"""
import ctypes, mmap, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
open('/tmp/mine', 'w').close()
try:
    {FORBIDDEN[what]}
except OSError as exc:
    print("refused", exc)
"""
    done = subprocess.run(
        [*SANDBOX, sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout[:7]) == (0, "refused"), done.stderr
