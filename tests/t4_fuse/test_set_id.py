"""Set-user-ID and set-group-ID end with what a process does to a file; which depends on all its groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from py4fs.fuse.callers import belongs, supplementary_groups
from tests.conftest import KernelMount
from tests.support.image import ImageMaker
from tests.support.mounted import ROOT, fuse_mounted

pytestmark = pytest.mark.skipif(not ROOT, reason="needs root")
OWNER, GROUP, USER, USERS = 1000, 2000, 3000, 3000
MODES = (0o6666, 0o2666, 0o2676, 0o4666)
CHANGES = {
    "fallocate": "os.posix_fallocate(0, 0, 9000)",
    "write": "os.pwrite(0, b'x', 1)",
    "truncate": "os.ftruncate(0, 3)",
    "copy": "os.copy_file_range(0, 0, 4, 0, 4)",
}
WHO = {
    "a stranger": (USER, USERS, []),
    "in the group": (USER, GROUP, []),
    "in the group, too": (USER, USERS, [77, GROUP, 78]),
    "root": (0, 0, []),
}
"""User, group and supplementary groups."""


def modes_after(directory: Path, change: str) -> list[tuple[str, int, int]]:
    found = []
    path = directory / "f"
    for who, (uid, gid, groups) in WHO.items():
        become = f"import os; os.setgroups({groups}); os.setgid({gid}); os.setuid({uid})"
        for mode in MODES:
            path.write_bytes(b"contents")
            os.chown(path, OWNER, GROUP)
            path.chmod(mode)
            # others cannot pass the directories above, but use what is open
            with path.open("r+b") as file:
                subprocess.run([sys.executable, "-c", f"{become}; {CHANGES[change]}"], stdin=file, check=True)
            found.append((who, mode, path.stat().st_mode & 0o7777))
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_as_the_kernel(change: str, make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    with kernel_mount(make_image("16M")) as root:
        want = modes_after(root, change)
    with fuse_mounted(make_image("16M"), ["allow_other"], session="direct") as mounted:
        assert modes_after(mounted.path, change) == want


def test_groups_that_cannot_be_seen() -> None:
    """No such thread, or it acts as somebody else: only what the request tells counts."""
    assert supplementary_groups(os.getpid(), os.geteuid()) == frozenset(os.getgroups())
    assert supplementary_groups(os.getpid(), 12345) == frozenset()
    assert supplementary_groups(0, 0) == frozenset()
    assert belongs(0, 5, 6, 6) and not belongs(0, 5, 6, 7) and belongs(0, 0, 6, 7)
