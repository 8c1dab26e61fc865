"""Fixtures of the mounted tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import Mounted, fuse_mounted
from tests.support.simfiles import SimFiles
from tests.support.simmount import sim_mount

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


@pytest.fixture
def kernel(make_image: ImageMaker) -> Iterator[SimFiles]:
    """A simulated kernel with iomap that has mounted a fresh image."""
    with sim_mount(make_image("16M", "-b", "4096")) as kernel:
        yield kernel
