"""py4fs as its users run it: the command in a process of its own, mounts with their log checked at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import machine

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-W", "error", "-m", "py4fs.cli.main")

AS_USER = ("setpriv", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def run_py4fs(
    *args: str | Path, uid: int | None = None, timeout: float = 60, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a py4fs command to its end; as another user when `uid` is given.

    That user may read everything (Python may be in a directory that is closed to him), but write only what is his.
    """
    become = [] if uid is None else [*AS_USER, f"--reuid={uid}", f"--regid={uid}"]
    return subprocess.run(
        [*become, *COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
        timeout=timeout,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def start_py4fs(*args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A py4fs command (`mount -f ...`) that runs while the test goes on; it should end by itself."""
    with subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def open_directory() -> Iterator[Path]:
    """A fresh directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="py4fs-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@dataclass
class Mounted:
    """A py4fs mount that the test made."""

    path: Path
    image: Path
    log: Path
    session: str = "auto"
    expected: list[str] = field(default_factory=list)  # regular expressions of warnings that belong to the test

    @property
    def pid(self) -> int:
        """Process of the server, the last one that used this log."""
        text = self.log.read_text()
        found = re.findall(r"server (\d+)", text)
        assert found, text
        return int(found[-1])

    def check_log(self) -> None:
        """No warnings but the expected ones."""
        bad = [line for line in self.log.read_text().splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
        surplus = [line for line in bad if not any(re.search(p, line) for p in self.expected)]
        assert not surplus, "the server warned:\n  " + "\n  ".join(surplus)


def is_mounted(path: Path) -> bool:
    return f" {path} fuse.py4fs " in Path("/proc/self/mounts").read_text()


@contextmanager
def fuse_mounted(
    image: Path, options: Sequence[str] = (), *, unmount: bool = True, session: str = "auto"
) -> Iterator[Mounted]:
    """`py4fs mount IMAGE DIR`, in the background, and `py4fs umount DIR` at the end; both have to succeed."""
    machine.need_fuse()
    directory = image.parent / f"{image.name}.mnt"
    directory.mkdir(exist_ok=True)
    log = image.parent / f"{image.name}.log"
    words = ["-o", ",".join(options)] if options else []
    done = run_py4fs("mount", image, directory, "--log-file", log, "--session", session, *words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    mounted = Mounted(directory, image, log, session)
    try:
        yield mounted
    except BaseException:
        run_py4fs("umount", directory)
        if is_mounted(directory):
            subprocess.run(["umount", "-l", directory], check=False)
        print(log.read_text(), file=sys.stderr)
        raise
    if unmount:
        done = run_py4fs("umount", directory)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not is_mounted(directory)
    mounted.check_log()
