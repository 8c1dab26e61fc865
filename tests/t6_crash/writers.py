"""Processes that load a mount until its server is gone, and what they were promised until then.

A writer appends a line to its log when something has been promised (fsync has returned), and before it takes
something back. So after a crash the log says what has to be there, whatever the writer was about to do.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from py4fs.api import Filesystem

#: files that one writer keeps at a time
KEPT = 12


def contents(name: str, size: int) -> bytes:
    """What a file of this name and size holds."""
    return random.Random(name).randbytes(min(size, 512)) * (size // 512 + 1)


class Writer:
    """One process's work below `top`, a directory of its own; `log` is a file elsewhere."""

    def __init__(self, top: Path, log: Path, seed: int) -> None:
        self._top = top
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._rng = random.Random(seed)
        self._number = 0
        self._version = 0
        self._kept: list[str] = []
        self._open: list[int] = []

    def run(self, old: Path) -> None:
        """Until the server dies. First of all, remove the tree `old`, if it is there."""
        try:
            if old.exists():
                shutil.rmtree(old)
            self._top.mkdir()
            ops = (self.keep, self.keep, self.replace, self.replace, self.drop, self.churn, self.hold, self.settle)
            while True:
                self._rng.choice(ops)()
        except OSError as exc:
            # nobody answers any more; EIO is what became of data that was on its way (one from a server that lives
            # would be in its log)
            if exc.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
                raise

    def _say(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    def _write(self, name: str, data: bytes, *, synced: bool, flags: int = 0) -> None:
        fd = os.open(self._top / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o644)
        try:
            at = 0
            while at < len(data):
                at += os.write(fd, data[at : at + self._rng.randrange(1, 40_000)])
            if synced:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _data(self, name: str) -> bytes:
        size = self._rng.choice((0, 1, 100, 4096, 20_000, self._rng.randrange(200_000)))
        return contents(name, size)[:size]

    def keep(self) -> None:
        """A file that is there for good once fsync has returned, or a write through O_SYNC."""
        self._number += 1
        name = f"kept{self._number}" + "x" * self._rng.choice((0, 0, 180))
        data = self._data(name)
        direct = self._rng.random() < 0.2
        self._write(name, data, synced=not direct or not data, flags=os.O_SYNC if direct else 0)
        self._say("keep", name, len(data))
        self._kept.append(name)
        if len(self._kept) > KEPT:
            self.drop()

    def drop(self) -> None:
        if self._kept:
            name = self._kept.pop(self._rng.randrange(len(self._kept)))
            self._say("drop", name)
            (self._top / name).unlink()

    def replace(self) -> None:
        """As editors save: written, synced, renamed over the old one."""
        self._version += 1
        data = contents(f"version{self._version}", 5000 + self._version)[: 5000 + self._version]
        self._write("temporary", data, synced=True)
        self._say("replace", self._version)
        (self._top / "temporary").rename(self._top / "current")

    def settle(self) -> None:
        """fsync of the directory: the last rename is for good."""
        fd = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._say("settled", self._version)

    def churn(self) -> None:
        """What nobody was promised: trees, links, attributes, files that grow and shrink."""
        where = self._top / f"churn{self._rng.randrange(4)}"
        if where.exists():
            shutil.rmtree(where)
            return
        where.mkdir()
        for number in range(self._rng.randrange(60)):
            path = where / f"{number}{'y' * self._rng.randrange(200)}"
            path.write_bytes(self._data(path.name))
            os.setxattr(path, "user.number", b"%d" % number * self._rng.randrange(1, 40))
            os.link(path, where / f"link{number}")
            (where / f"symlink{number}").symlink_to("target" * self._rng.randrange(1, 30))
            os.truncate(path, self._rng.randrange(50_000))

    def hold(self) -> None:
        """A file without a name, open and written to."""
        path = self._top / "unlinked"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._open.append(fd)
        path.unlink()
        os.write(fd, bytes(30_000))
        if len(self._open) > 5:
            os.close(self._open.pop(0))


@dataclass
class Promises:
    """What a log says that has to be there."""

    files: dict[str, int] = field(default_factory=dict)
    """Name -> size."""
    oldest: int = 0
    newest: int = 0
    """Versions of the file `current` that may be there; 0: none."""

    @classmethod
    def read(cls, log: Path) -> Promises:
        made = cls()
        for line in log.read_text().splitlines() if log.exists() else []:
            match line.split():
                case ["keep", name, size]:
                    made.files[name] = int(size)
                case ["drop", name]:
                    del made.files[name]
                case ["replace", version]:
                    made.newest = int(version)
                case ["settled", version]:
                    made.oldest = int(version)
                case _:
                    raise AssertionError(line)
        return made

    def check(self, fs: Filesystem, top: str) -> None:
        """AssertionError for what is missing or different."""
        for name, size in self.files.items():
            found = fs.read_bytes(f"{top}/{name}")
            assert found == contents(name, size)[:size], f"{top}/{name} has other contents"
        version = fs.stat(f"{top}/current").size - 5000 if fs.exists(f"{top}/current") else 0
        assert self.oldest <= version <= self.newest, f"{top}/current is version {version}: {self}"
        if version:
            want = contents(f"version{version}", 5000 + version)[: 5000 + version]
            assert fs.read_bytes(f"{top}/current") == want, f"{top}/current is not whole"
