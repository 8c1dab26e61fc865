"""Fixtures of the mounted tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest

from tests.support import machine
from tests.support.mounted import Mounted, fuse_mounted

FuseMount = Callable[..., AbstractContextManager[Mounted]]


@pytest.fixture(params=["direct", "pyfuse3"])
def session(request: pytest.FixtureRequest) -> str:
    """The session to mount with: every mounted test runs over both."""
    return str(request.param)


@pytest.fixture
def fuse_mount(session: str) -> FuseMount:
    """`with fuse_mount(image, ["ro"]) as mounted: mounted.path ...`"""
    machine.need_fuse()
    return partial(fuse_mounted, session=session)
