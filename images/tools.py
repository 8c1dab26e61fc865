"""Thin wrappers over mke2fs, debugfs, e2fsck and tune2fs with a fixed clock and clear failures."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

CLOCK = 1_600_000_000  # what e2fsprogs takes for "now", in seconds: 2020-09-13T12:26:40Z
UUID = "70793466-732d-4d61-8469-782d696d6167"
HASH_SEED = "68617368-2d73-4565-a42d-66726f6d2d75"

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class ToolError(Exception):
    """A program failed; the text holds its command line and its output."""


def environment(clock: int | None = CLOCK) -> dict[str, str]:
    """Environment for e2fsprogs: sbin in PATH, no translations, its clock fixed (None: the real one)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("E2FSPROGS_", "MKE2FS_", "LC_", "LANG"))}
    env.update(PATH=f"{env.get('PATH', '/usr/bin:/bin')}:{_SBIN}", LC_ALL="C", TZ="UTC", DEBUGFS_PAGER="cat")
    env["PAGER"] = "cat"
    if clock is not None:
        env.update(E2FSPROGS_FAKE_TIME=str(clock), E2FSCK_TIME=str(clock))
    return env


def run(
    argv: Sequence[str | Path],
    *,
    ok: Iterable[int] = (0,),
    stdin: str | None = None,
    clock: int | None = CLOCK,
) -> str:
    """Run a program and return its stdout; any exit code not in `ok` raises ToolError with all the output."""
    done = subprocess.run(
        [os.fspath(a) for a in argv],
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment(clock),
        check=False,
    )
    if done.returncode not in ok:
        line = " ".join(os.fspath(a) for a in argv)
        raise ToolError(f"{line}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def sized(path: Path, size: int) -> None:
    """An empty sparse file of `size` bytes at `path`."""
    with path.open("wb") as fp:
        fp.truncate(size)


def mke2fs(path: Path, size: int, *args: str, clock: int | None = CLOCK) -> None:
    """A new file of `size` bytes with a file system: `-t ext4` unless the arguments hold a type."""
    sized(path, size)
    fstype = () if "-t" in args else ("-t", "ext4")
    extended = f"hash_seed={HASH_SEED}"
    rest = list(args)
    if "-E" in rest:  # mke2fs takes only the last -E
        at = rest.index("-E")
        extended += "," + rest[at + 1]
        del rest[at : at + 2]
    run(["mke2fs", "-q", "-F", *fstype, "-U", UUID, "-E", extended, *rest, path], clock=clock)


_DEBUGFS_NOISE = re.compile(r"^(debugfs \d|debugfs: |Allocated inode: \d+$|\s*$)")


def debugfs(path: Path, commands: Iterable[str], *, clock: int | None = CLOCK) -> None:
    """Run debugfs commands that change the image. debugfs always exits 0, so any message is a failure."""
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", os.fspath(path)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment(clock),
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    complaints = [line for line in lines if not _DEBUGFS_NOISE.match(line)]
    if done.returncode or complaints:
        raise ToolError(f"debugfs -w {path}: exit {done.returncode}\n" + "\n".join(complaints[:20]))


def debugfs_query(path: Path, command: str, *options: str) -> str:
    """Output of one debugfs command that only reads."""
    return run(["debugfs", *options, "-R", command, path])


def fsck(path: Path, *args: str) -> str:
    """`e2fsck -f` with more arguments; it may repair (exit 1 is fine), anything worse raises."""
    return run(["e2fsck", "-f", *args, path], ok=(0, 1))


def fsck_clean(path: Path) -> None:
    """Raise ToolError with e2fsck's output unless `e2fsck -fn` finds nothing at all."""
    run(["e2fsck", "-fn", path], clock=None)
