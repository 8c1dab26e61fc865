"""Fixtures of the mounted tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.support import machine
from tests.support.mounted import Mounted, fuse_mounted

FuseMount = Callable[..., AbstractContextManager[Mounted]]


@pytest.fixture
def fuse_mount() -> FuseMount:
    """`with fuse_mount(image, ["ro"]) as mounted: mounted.path ...`"""
    machine.need_fuse()
    return fuse_mounted
