"""What is compared: py4fs, fuse2fs, and the kernel's own ext4 on a loop device.

An unmount has ended when the server has: umount(2) returns before a plain FUSE server has written everything.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from contextlib import suppress
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
    cache_size = ""
    """What the server's caches may take together, where that can be said; empty: what it takes by itself."""
    has_cache_size = False

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

    def counters(self) -> dict[str, int]:
        """What the server has counted since it began, by name: requests and those of its mapping cache, if it tells."""
        return {}

    def abandon(self) -> None:
        """Take down what is left of a mount after a failure; raises nothing."""


class FuseDriver(Driver):
    """A FUSE server: a process whose end is waited for, and whose peak memory is looked up."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._directory = Path()
        self._pid = 0
        self._peak = 0

    @abstractmethod
    def _start(self, image: Path, directory: Path) -> int:
        """Mount; returns the server's process id."""

    @abstractmethod
    def _check_end(self) -> None:
        """The server has ended: BenchError unless it says that all is well."""

    @property
    def peak_kib(self) -> int:
        return self._peak

    def mount(self, image: Path, directory: Path) -> float:
        self._directory = directory
        self._peak = 0
        self._log.write_bytes(b"")
        start = time.perf_counter()
        self._pid = self._start(image, directory)
        os.statvfs(directory)
        return time.perf_counter() - start

    def unmount(self) -> float:
        self._note_peak()
        server = os.pidfd_open(self._pid)
        try:
            start = time.perf_counter()
            done = run("umount", self._directory)
            if done.returncode:
                raise BenchError(f"{self.name}: {done.stderr.strip()}")
            while not select.select([server], [], [], _POLL)[0]:
                self._note_peak()
                if time.perf_counter() - start > EXIT_TIMEOUT:
                    raise BenchError(f"{self.name} did not end within {EXIT_TIMEOUT:.0f} s after umount")
            took = time.perf_counter() - start
        finally:
            os.close(server)
        self._pid = 0
        self._check_end()
        return took

    def _note_peak(self) -> None:
        # not ru_maxrss: that begins with the memory of the process that forked
        try:
            status = Path(f"/proc/{self._pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+)", status)
        if found:
            self._peak = max(self._peak, int(found[1]))

    def cpu_seconds(self) -> float:
        # the CPU clock of a process (clock_getcpuclockid(3)): /proc counts in ticks of 10 ms
        return time.clock_gettime(~self._pid << 3 | 2)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no message"

    def abandon(self) -> None:
        if self._pid:
            run("umount", "-l", self._directory)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = 0


class Py4fs(FuseDriver):
    """`py4fs mount`, which returns when the mount answers."""

    name = "py4fs"
    session = "direct"
    has_cache_size = True

    def _start(self, image: Path, directory: Path) -> int:
        options = ["--session", self.session, "--log-file", str(self._log)]
        if self.cache_size:
            options += ["-o", f"cache_size={self.cache_size}"]
        done = run(sys.executable, "-m", "py4fs.cli.main", "mount", image, directory, *options)
        found = re.search(r"server (\d+)$", self._log.read_text(errors="replace"), re.MULTILINE)
        if done.returncode or not found:
            raise BenchError(f"py4fs: {done.stderr.strip() or self._last_words()}")
        return int(found[1])

    def counters(self) -> dict[str, int]:
        before = self._log.stat().st_size
        os.kill(self._pid, signal.SIGUSR1)
        start = time.perf_counter()
        while True:
            with self._log.open("rb") as log:
                log.seek(before)
                text = log.read().decode(errors="replace")
            if "iomap cache:" in text and text.endswith("\n"):
                return {name: int(value) for value, name in re.findall(r"\b(\d+) (\w+)", text)}
            if time.perf_counter() - start > EXIT_TIMEOUT:
                raise BenchError(f"{self.name} does not report: {self._last_words()}")
            time.sleep(_POLL)

    def _check_end(self) -> None:
        if not self._last_words().endswith(": unmounted"):
            raise BenchError(f"py4fs: {self._last_words()}")


class Py4fsPyfuse3(Py4fs):
    """The same through libfuse."""

    name = "py4fs-pyfuse3"
    session = "pyfuse3"


class Fuse2fs(FuseDriver):
    """As Debian has it; without default_permissions, with which it is slower. In the foreground, to know its exit."""

    name = "fuse2fs"

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self._server: subprocess.Popen[bytes] | None = None

    def _start(self, image: Path, directory: Path) -> int:
        before = directory.stat().st_dev
        start = time.perf_counter()
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                ["fuse2fs", "-f", "-o", "rw", image, directory],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )
        while directory.stat().st_dev == before:
            if self._server.poll() is not None or time.perf_counter() - start > MOUNT_TIMEOUT:
                raise BenchError(f"fuse2fs did not mount {image}: {self._last_words()}")
            time.sleep(_POLL)
        return self._server.pid

    def _check_end(self) -> None:
        assert self._server is not None
        if self._server.wait():
            raise BenchError(f"fuse2fs ended with exit code {self._server.returncode}: {self._last_words()}")

    def abandon(self) -> None:
        super().abandon()
        if self._server is not None:
            self._server.wait()


class Kernel(Driver):
    name = "kernel"

    def __init__(self, log: Path, options: str = "loop") -> None:
        self._options = options
        self._image = self._directory = Path()
        self._mounted = False

    def mount(self, image: Path, directory: Path) -> float:
        self._image, self._directory = image, directory
        start = time.perf_counter()
        done = run("mount", "-t", "ext4", "-o", self._options, image, directory)
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


DRIVERS: dict[str, type[Py4fs] | type[Fuse2fs] | type[Kernel]] = {
    d.name: d for d in (Py4fs, Py4fsPyfuse3, Fuse2fs, Kernel)
}
