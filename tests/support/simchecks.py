"""What the tests of the session in iomap mode share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from py4fs.fuse.direct.protocol import InitFlags
from tests.support.simfiles import SimFiles
from tests.support.simkernel import EVERYTHING, KernelError

WITHOUT_IOMAP = EVERYTHING & ~int(InitFlags.IOMAP)


def disk_size(kernel: SimFiles, fh: int) -> int:
    return kernel.vfs.getattr(kernel.handles[fh].ino).size


def fails(code: int, run: Callable[[], object]) -> None:
    with pytest.raises(KernelError) as caught:
        run()
    assert caught.value.code == code, errno.errorcode[caught.value.code]


def fill(kernel: SimFiles, fh: int) -> int:
    """Write until ENOSPC; returns the bytes written, all of which are then on the device."""
    node = kernel.handles[fh]
    at = node.size
    start = at
    while True:
        try:
            at += kernel.write(node, at, os.urandom(1) * 100_000)
        except KernelError as exc:
            assert exc.code == errno.ENOSPC
            kernel.fsync(fh)
            return at - start
