"""A small file per running server: who serves which mount, and how it ended.

umount(2) of a FUSE mount returns before its server has written everything and gone, so something must tell
`py4fs umount` when that is the case and whether the last write worked. The server keeps an exclusive flock(2)
on its record for as long as it lives; before it goes it writes the outcome into the record and removes the
name. Who has the record open waits for the lock and then reads the outcome: no polling, and a server that
dies without a word releases the lock as well, with the outcome still saying "serving".

Records lie in /run/py4fs (root) or in a directory that only the user may write, named after the device number
of the mount, which is unique while the mount exists.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

State = Literal["serving", "done", "failed"]
_LIMIT = 1 << 16  # bytes; a record is a few hundred


@dataclass(frozen=True)
class Record:
    """Contents of the file. `error` is the line to print when `state` is "failed"."""

    pid: int
    device: str
    image: str
    mountpoint: str
    state: State = "serving"
    error: str = ""


def directories(uid: int) -> list[Path]:
    """Where the servers of this user put their records, best place first."""
    temporary = Path(f"/tmp/.py4fs-{uid}")
    if uid == 0:
        return [Path("/run/py4fs"), temporary]
    return [Path(f"/run/user/{uid}/py4fs"), temporary]


def _trusted(directory: Path, uid: int) -> bool:
    """Whether nobody but this user can have put something into the directory."""
    try:
        st = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(st.st_mode) and st.st_uid == uid and not st.st_mode & 0o022


class Keeper:
    """The server's side: holds the record until the server is done."""

    def __init__(self, record: Record, path: Path, fd: int) -> None:
        self._record = record
        self._path = path
        self._fd = fd

    @classmethod
    def create(cls, record: Record) -> Keeper | None:
        """Write and lock the record; None (with a line in the log) where no place for it can be found."""
        uid = os.geteuid()
        for directory in directories(uid):
            try:
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(mode=0o755)
                if not _trusted(directory, uid):
                    continue
                path = directory / record.device
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()  # left over by a server that was killed: device numbers are used again
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as exc:
                log.debug("%s: %s", directory, exc)
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            keeper = cls(record, path, fd)
            keeper._write(record)
            return keeper
        log.info("no directory for the server's record; `py4fs umount` will not see how the last write went")
        return None

    def finish(self, error: str = "") -> None:
        """Write how it ended and remove the name. The lock goes when the process does."""
        try:
            state: State = "failed" if error else "done"
            self._write(Record(**{**asdict(self._record), "state": state, "error": error}))
            # the mount is gone, so its device number may be another one's by now, and so may the name
            if os.path.samestat(os.fstat(self._fd), self._path.stat(follow_symlinks=False)):
                self._path.unlink()
        except OSError as exc:
            log.debug("%s: %s", self._path, exc)

    def _write(self, record: Record) -> None:
        data = json.dumps(asdict(record)).encode()
        # never empty in between: ext4 would take that for a file to be replaced, and write it to the disk at close
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))


class Watcher:
    """The other side: waits until the server of a record has gone."""

    def __init__(self, fd: int, record: Record) -> None:
        self._fd = fd
        self.record = record

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def wait(self) -> Record:
        """Block until the server has gone; its last words ("serving": it died without any)."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self.record = _read(self._fd) or self.record
        return self.record

    def close(self) -> None:
        os.close(self._fd)


def find(
    *, device: str | None = None, mountpoint: str | None = None, image: str | None = None, uid: int
) -> list[Watcher]:
    """Records of this user's servers that match everything given. The caller closes the watchers."""
    found = []
    for directory in directories(uid):
        if not _trusted(directory, uid):
            continue
        for path in sorted(directory.iterdir()) if device is None else [directory / device]:
            watcher = _watch(path)
            if watcher is None:
                continue
            record = watcher.record
            if (mountpoint in (None, record.mountpoint)) and (image in (None, record.image)):
                found.append(watcher)
            else:
                watcher.close()
    return found


def _watch(path: Path) -> Watcher | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    record = _read(fd)
    if record is None:
        os.close(fd)
        return None
    return Watcher(fd, record)


def _read(fd: int) -> Record | None:
    """The record in an open file, None when it is not one."""
    try:
        fields = json.loads(os.pread(fd, _LIMIT, 0))
        record = Record(**fields)
    except (OSError, ValueError, TypeError):
        return None
    return record
