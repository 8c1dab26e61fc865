"""What this machine can do. A test that needs more skips with a reason that says what is missing.

Where root, /dev/fuse and loop devices all exist, such a skip would hide a broken set-up, so conftest.py
turns it into a failure.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from images.tools import environment

NEEDS = "needs "  # every reason of a skip for want of something begins with this


def is_root() -> bool:
    return os.geteuid() == 0


def has_fuse() -> bool:
    """/dev/fuse can be opened, and either we may mount or fusermount3 does it for us."""
    return os.access("/dev/fuse", os.R_OK | os.W_OK) and (is_root() or shutil.which("fusermount3") is not None)


def has_loop() -> bool:
    return is_root() and Path("/dev/loop-control").exists()


def complete() -> bool:
    """Whether nothing may be skipped here."""
    return is_root() and Path("/dev/fuse").exists() and Path("/dev/loop-control").exists()


def need_root() -> None:
    if not is_root():
        pytest.skip(NEEDS + "root")


def need_loop() -> None:
    """For tests that use the kernel's ext4 as the oracle."""
    if not has_loop():
        pytest.skip(NEEDS + "root and loop devices")


def need_fuse() -> None:
    if not has_fuse():
        pytest.skip(NEEDS + "/dev/fuse")
    pytest.importorskip("pyfuse3", reason=NEEDS + "pyfuse3")


def need_program(*names: str) -> None:
    for name in names:
        if shutil.which(name, path=environment()["PATH"]) is None:
            pytest.skip(f"{NEEDS}the program {name}")
