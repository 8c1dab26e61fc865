"""What is compared: py4fs, fuse2fs, and the kernel's own ext4 on a loop device.

A FUSE server runs in the foreground as our child, so that the moment of its end and its peak memory are known:
umount(2) returns before a plain FUSE server has written everything.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOUNT_TIMEOUT = 120.0  # seconds; fuse2fs reads every bitmap of a big image first
EXIT_TIMEOUT = 300.0
_POLL = 0.001


class BenchError(Exception):
    """Something did not work; the text says what, with the program's own words."""


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with its output captured."""
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", env=environment(), check=False)


def environment() -> dict[str, str]:
    """Environment of all programs: sbin in PATH, this tree's py4fs."""
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    return {**os.environ, "PATH": path, "LC_ALL": "C", "PYTHONPATH": str(ROOT)}


class Driver:
    """Mounts an image and takes it down again, saying how long each took (seconds)."""

    name: str

    @abstractmethod
    def mount(self, image: Path, directory: Path) -> float:
        """Mount; the time is until statfs of the mount point answers. Raises BenchError."""

    @abstractmethod
    def unmount(self) -> float:
        """Unmount; the time is until the image is free again. Raises BenchError."""

    @property
    def peak_kib(self) -> int | None:
        """Peak resident memory of the last server, None where there is none."""
        return None

    def cpu_seconds(self) -> float:
        """CPU time that the server has used so far; 0 where there is none."""
        return 0.0

    def abandon(self) -> None:
        """Take down what is left of a mount after a failure; raises nothing."""


class FuseDriver(Driver):
    """A FUSE server that is our child."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._peak = 0

    @abstractmethod
    def command(self, image: Path, directory: Path) -> list[str]:
        """The server's command line, for the foreground."""

    @property
    def peak_kib(self) -> int:
        return self._peak

    def mount(self, image: Path, directory: Path) -> float:
        before = directory.stat().st_dev
        self._directory = directory
        self._peak = 0
        start = time.perf_counter()
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                self.command(image, directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )
        while directory.stat().st_dev == before:
            if self._server.poll() is not None or time.perf_counter() - start > MOUNT_TIMEOUT:
                raise BenchError(f"{self.name} did not mount {image}: {self._last_words()}")
            time.sleep(_POLL)
        os.statvfs(directory)
        return time.perf_counter() - start

    def unmount(self) -> float:
        server = self._server
        assert server is not None
        self._note_peak(server.pid)
        start = time.perf_counter()
        done = run("umount", self._directory)
        if done.returncode:
            raise BenchError(f"{self.name}: {done.stderr.strip()}")
        while server.poll() is None:
            self._note_peak(server.pid)
            if time.perf_counter() - start > EXIT_TIMEOUT:
                raise BenchError(f"{self.name} did not end within {EXIT_TIMEOUT:.0f} s after umount")
            time.sleep(_POLL)
        took = time.perf_counter() - start
        self._server = None
        if server.returncode:
            raise BenchError(f"{self.name} ended with exit code {server.returncode}: {self._last_words()}")
        return took

    def _note_peak(self, pid: int) -> None:
        # not ru_maxrss: that begins with the memory of the process that forked
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+)", status)
        if found:
            self._peak = max(self._peak, int(found[1]))

    def cpu_seconds(self) -> float:
        assert self._server is not None
        text = Path(f"/proc/{self._server.pid}/stat").read_text(encoding="ascii", errors="replace")
        utime, stime = text.rpartition(")")[2].split()[11:13]
        return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no message"

    def abandon(self) -> None:
        if self._server is None:
            return
        run("umount", "-l", self._directory)
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
        self._server = None


class Py4fs(FuseDriver):
    name = "py4fs"

    def command(self, image: Path, directory: Path) -> list[str]:
        return [sys.executable, "-m", "py4fs.cli.main", "mount", "-f", str(image), str(directory)]


class Fuse2fs(FuseDriver):
    """As Debian has it; without default_permissions, with which it is slower."""

    name = "fuse2fs"

    def command(self, image: Path, directory: Path) -> list[str]:
        return ["fuse2fs", "-f", "-o", "rw", str(image), str(directory)]


class Kernel(Driver):
    name = "kernel"

    def __init__(self, log: Path) -> None:
        self._image = self._directory = Path()
        self._mounted = False

    def mount(self, image: Path, directory: Path) -> float:
        self._image, self._directory = image, directory
        start = time.perf_counter()
        done = run("mount", "-t", "ext4", "-o", "loop", image, directory)
        if done.returncode:
            raise BenchError(f"kernel: {done.stderr.strip()}")
        self._mounted = True
        os.statvfs(directory)
        return time.perf_counter() - start

    def unmount(self) -> float:
        start = time.perf_counter()
        done = run("umount", self._directory)
        if done.returncode:
            raise BenchError(f"kernel: {done.stderr.strip()}")
        self._mounted = False
        while run("losetup", "-j", self._image).stdout:
            if time.perf_counter() - start > EXIT_TIMEOUT:
                raise BenchError("kernel: the loop device stays attached")
            time.sleep(_POLL)
        return time.perf_counter() - start

    def abandon(self) -> None:
        if self._mounted:
            run("umount", self._directory)
            self._mounted = False


DRIVERS: dict[str, type[Py4fs] | type[Fuse2fs] | type[Kernel]] = {d.name: d for d in (Py4fs, Fuse2fs, Kernel)}
