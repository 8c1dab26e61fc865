"""Descriptors handed over, READY=1, and the contained service: image and /dev/fuse through a socket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from py4fs.device.file import FileDevice
from py4fs.errors import Busy, Invalid, ReadOnly
from py4fs.fuse import mount, process
from py4fs.fuse.direct import mounting
from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import AS_USER, COMMAND, ROOT, is_mounted, run_py4fs

NOBODY = 65534
SYSTEMD = ROOT / "systemd"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 15
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- descriptors ---------------------------------------------------------------------------------


def test_an_image_that_was_opened_by_somebody_else(make_image: ImageMaker, tmp_path: Path) -> None:
    image = make_image("8M")
    fd = os.open(image, os.O_RDWR)
    device = FileDevice.open(f"/dev/fd/{fd}")
    os.close(fd)  # its lock belongs to the open file, which the device keeps
    with pytest.raises(Busy):
        FileDevice.open(image)
    assert device.read(1080, 2) == b"\x53\xef"
    device.close()
    FileDevice.open(image).close()


def test_descriptors_that_will_not_do(make_image: ImageMaker, tmp_path: Path) -> None:
    image = make_image("8M")
    with image.open("rb") as reader, image.open("ab") as writer:
        with pytest.raises(ReadOnly, match="open for reading only"):
            FileDevice.open(f"/dev/fd/{reader.fileno()}")
        FileDevice.open(f"/dev/fd/{reader.fileno()}", readonly=True).close()
        with pytest.raises(Invalid, match="open for writing only"):
            FileDevice.open(f"/dev/fd/{writer.fileno()}")
    with pytest.raises(Invalid, match="Bad file descriptor"):
        FileDevice.open("/dev/fd/999")
    with image.open("r+b") as other, image.open("r+b") as ours:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            FileDevice.open(f"/dev/fd/{ours.fileno()}")


def test_image_and_connection_handed_over(make_image: ImageMaker, tmp_path: Path) -> None:
    """`py4fs mount /dev/fd/N /dev/fd/M`, by a user who may open neither."""
    machine.need_root()
    machine.need_fuse()
    machine.need_program("setpriv")
    image, directory = make_image("16M"), tmp_path / "mnt"
    image.chmod(0o600)
    directory.mkdir()
    fuse, fd = mounting.open_fuse(), os.open(image, os.O_RDWR)
    where = mount.open_mountpoint(str(directory))
    mounting.mount_as_root(fuse, where, mount.FuseOptions(), str(image))
    os.close(where.fd)
    become = ["setpriv", "--no-new-privs", *AS_USER[1:], f"--reuid={NOBODY}", f"--regid={NOBODY}"]
    words = ["mount", "-f", f"/dev/fd/{fd}", f"/dev/fd/{fuse}"]
    with subprocess.Popen([*become, *COMMAND, *words], env=environment(), pass_fds=(fd, fuse)) as server:
        os.close(fd)
        os.close(fuse)
        (directory / "f").write_text("hello")
        assert "in use" in run_py4fs("ls", image).stderr
        subprocess.run(["umount", directory], check=True)
        assert server.wait(timeout=20) == 0
    assert run_py4fs("cat", image, "/f").stdout == "hello"


# --- sd_notify -----------------------------------------------------------------------------------


def test_ready_is_told_in_the_foreground(make_image: ImageMaker, tmp_path: Path, session: str) -> None:
    machine.need_fuse()
    directory = tmp_path / "mnt"
    directory.mkdir()
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(20)
        words = ["mount", "-f", "--session", session, make_image("8M"), directory]
        with subprocess.Popen([*COMMAND, *map(str, words)], env=environment(NOTIFY_SOCKET=str(address))) as server:
            assert listener.recv(100) == b"READY=1"
            assert is_mounted(directory), "not before it answers"
            assert run_py4fs("umount", directory).returncode == 0
            assert server.wait(timeout=20) == 0


def test_notify_without_a_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nobody"), "relative", "@py4fs-test-nobody"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        process.notify("READY=1")


# --- the service ---------------------------------------------------------------------------------


@contextlib.contextmanager
def manager(address: Path, servers: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """What systemd does for py4fs.socket with Accept=yes: a server for each connection, which is its descriptor 3."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(address))
    listener.listen()
    become = ["setpriv", "--no-new-privs", *AS_USER[1:], f"--reuid={NOBODY}", f"--regid={NOBODY}"]
    script = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'

    def serve() -> None:
        while True:
            try:
                channel, _ = listener.accept()
            except OSError:
                return
            with channel:
                number = channel.fileno()
                words = [*become, "bash", "-c", script, "sh", str(number), *COMMAND, "service"]
                servers.append(subprocess.Popen(words, env=environment(), pass_fds=(number,)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for server in servers:
            server.wait(timeout=20)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    machine.need_root()
    machine.need_fuse()
    machine.need_program("setpriv", "bash")
    found: list[subprocess.Popen[bytes]] = []
    with manager(tmp_path / "socket", found):
        yield found


def test_a_contained_server(make_image: ImageMaker, tmp_path: Path, servers: list[subprocess.Popen[bytes]]) -> None:
    image, directory = make_image("32M"), tmp_path / "mnt"
    image.chmod(0o600)
    directory.mkdir()
    service = f"service={tmp_path / 'socket'}"
    done = run_py4fs("mount", image, directory, "-o", f"kernel,noatime,{service}")
    assert (done.returncode, done.stderr) == (0, "")
    assert is_mounted(directory)
    (server,) = servers
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert f"Uid:\t{NOBODY}" in status and "NoNewPrivs:\t1" in status
    (directory / "f").write_bytes(os.urandom(3_000_000))
    os.chown(directory / "f", 12345, 678)
    (directory / "f").chmod(0o4755)
    data = (directory / "f").read_bytes()
    busy = run_py4fs("mount", image, tmp_path, "-o", service)
    assert busy.returncode == 32 and "in use" in busy.stderr
    assert run_py4fs("umount", directory).returncode == 0
    assert server.wait(timeout=20) == 0
    directory.chmod(0o755)
    assert run_py4fs("mount", image, directory, "-o", f"ro,{service}").returncode == 0
    info = (directory / "f").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (12345, 678, 0o4755)
    assert (directory / "f").read_bytes() == data
    subprocess.run(["umount", directory], check=True)


def test_a_contained_server_of_a_write_protected_device(
    make_image: ImageMaker, tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    machine.need_loop()
    image, directory = make_image("16M"), tmp_path / "mnt"
    directory.mkdir()
    device = subprocess.run(["losetup", "-r", "-f", "--show", image], capture_output=True, text=True, check=True)
    try:
        loop = device.stdout.strip()
        done = run_py4fs("mount", loop, directory, "-o", f"service={tmp_path / 'socket'}")
        assert (done.returncode, done.stderr) == (
            0,
            f"py4fs: {loop}: WARNING: write-protected, mounting it read-only\n",
        )
        with pytest.raises(OSError, match="Read-only"):
            (directory / "f").touch()
        subprocess.run(["umount", directory], check=True)
        assert servers[0].wait(timeout=20) == 0
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_what_the_service_cannot_open_is_told(
    make_image: ImageMaker, tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    directory, broken = tmp_path / "mnt", tmp_path / "broken.img"
    directory.mkdir()
    broken.write_bytes(bytes(1 << 20))
    service = f"service={tmp_path / 'socket'}"
    done = run_py4fs("mount", broken, directory, "-o", service)
    assert done.returncode == 32 and done.stderr.startswith(f"py4fs: {broken}: ") and done.stderr.count("\n") == 1
    assert not is_mounted(directory)
    done = run_py4fs("mount", broken, directory, "-o", f"{service},lockfile=/tmp/x")
    assert done.returncode == 1
    assert servers[0].wait(timeout=20) == 32


def test_a_service_that_nobody_manages(make_image: ImageMaker, tmp_path: Path) -> None:
    done = run_py4fs("service")
    assert done.returncode == 2 and "no socket was handed over" in done.stderr
    machine.need_fuse()
    done = run_py4fs("mount", make_image("8M"), tmp_path, "-o", f"service={tmp_path / 'nothing'}")
    assert done.returncode == 2 and "No such file" in done.stderr


def test_garbage_from_the_socket(tmp_path: Path) -> None:
    """Whatever comes: one line, and the end."""
    for message, text in ((b"", "has gone"), (b"{", "message"), (b'{"image": 1}', "field image"), (b"[]", "object")):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = f'exec 3<&{theirs.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        with subprocess.Popen(
            ["bash", "-c", script, "sh", *COMMAND, "service"],
            env=environment(),
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            theirs.close()
            if message:
                ours.send(message)
            ours.close()
            _, said = server.communicate(timeout=20)
            assert server.returncode == 2 and text in said and said.count("\n") == 1


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    machine.need_program("systemd-analyze")
    for unit in SYSTEMD.iterdir():
        text = unit.read_text().replace("/usr/local/bin/py4fs", sys.executable)
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / name) for name in ("py4fs.socket", "py4fs@.service")]
    command = [str(shutil.which("systemd-analyze")), "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "py4fs" in line]
    assert done.returncode == 0 and not said, done.stderr
