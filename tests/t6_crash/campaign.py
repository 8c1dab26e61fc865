"""A recording of a workload, and the check of a number of its crash images, by one process or by two."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from py4fs.device.recording import Crash, CrashImages, sample
from tests.t6_crash.judge import Judge, named
from tests.t6_crash.workload import Workload
from tests.t6_crash.world import CONFIGS, Recording, base_image

STEPS = 600
#: one image in so many is recovered by the kernel too
KERNEL_EVERY = 40
#: the superblock is taken to be written in one piece, as the kernel does: its checksum is 512 bytes from its fields
ATOMIC = ((1024, 2048),)


@lru_cache(maxsize=1)
def record(name: str, seed: int, steps: int = STEPS) -> Recording:
    """Run a workload to its end, the unmount. The same every time."""
    recording = Recording.start(CONFIGS[name], base_image(name))
    workload = Workload(recording, seed)
    workload.run(steps)
    workload.finish()
    return recording


def scratch_directory() -> str | None:
    """Where images are written: memory if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def check(name: str, seed: int, crashes: Sequence[Crash], *, kernel: bool) -> int:
    """Check images of one recording; returns how many. Raises Wrong, with the id of the first bad one."""
    recording = record(name, seed)
    images = CrashImages(recording.base, recording.device.log, atomic=ATOMIC)
    with TemporaryDirectory(prefix="py4fs-crash-", dir=scratch_directory()) as directory:
        judge = Judge(recording, Path(directory))
        for number, crash in enumerate(crashes):
            with named(f"{name}:{seed}:{crash}"):
                judge.check(crash, images.image(crash), kernel=kernel and number % KERNEL_EVERY == KERNEL_EVERY // 2)
    return judge.checked


def _share(job: tuple[str, int, list[Crash], bool]) -> int:
    logging.getLogger("py4fs").setLevel(logging.ERROR)
    name, seed, crashes, kernel = job
    return check(name, seed, crashes, kernel=kernel)


def campaign(name: str, seed: int, count: int, *, processes: int = 1, kernel: bool = False) -> int:
    """Check ``count`` crash images of one workload; returns how many there were. Raises Wrong."""
    crashes = sample(record(name, seed).device.log, count, seed)
    if processes == 1:
        return check(name, seed, crashes, kernel=kernel)
    step = -(-len(crashes) // processes)
    jobs = [(name, seed, crashes[at : at + step], kernel) for at in range(0, len(crashes), step)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return sum(pool.map(_share, jobs))
