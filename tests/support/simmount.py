"""Mounts by the simulated kernel."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from py4fs.ext4.volume import Volume, VolumeOptions
from py4fs.vfs import Vfs
from tests.support.simdevice import SimDevice
from tests.support.simfiles import SimFiles
from tests.support.volumes import Clock


def sim_open(image: Path, block: int = 4096, **kwargs: Any) -> SimFiles:
    """Mount; the image has blocks of `block` bytes. The caller unmounts."""
    device = SimDevice(image, block)
    volume = Volume.open(device, VolumeOptions(strict=True), Clock(), random.Random(1))
    return SimFiles(Vfs(volume), device, **kwargs)


@contextmanager
def sim_mount(image: Path, block: int = 4096, **kwargs: Any) -> Iterator[SimFiles]:
    """A mount; unmounted, and the image saved, at the end."""
    kernel = sim_open(image, block, **kwargs)
    try:
        yield kernel
    except BaseException:
        kernel.link.close()  # its threads must not outlive a test that failed
        raise
    kernel.umount()
