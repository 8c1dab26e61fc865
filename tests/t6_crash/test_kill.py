"""A real mount under load, its server killed: what was fsynced is there, the rest is consistent.

The image goes from round to round, so a recovered file system is used and killed again.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images.kernel import loop_mount
from py4fs.api import open_image
from tests.support import machine
from tests.support.dirty import recover
from tests.support.image import ImageMaker
from tests.support.mounted import fuse_mounted, is_mounted, run_py4fs
from tests.t6_crash.judge import fsck_clean, fsck_recover
from tests.t6_crash.writers import Promises, Writer

WRITERS = 4

IMAGES = {
    "4k": ("-b", "4096"),
    "1k": ("-b", "1024", "-J", "size=1"),
    "orphan-file": ("-b", "4096", "-O", "orphan_file", "-J", "size=4"),
}


def by_kernel(image: Path) -> None:
    with loop_mount(image):
        pass


def by_e2fsck(image: Path) -> None:
    fsck_recover(image, only_replay=True)


def by_py4fs(image: Path) -> None:
    recover(image)


RECOVERIES: tuple[Callable[[Path], None], ...] = (by_e2fsck, by_py4fs, by_kernel)


def load_and_kill(image: Path, logs: Path, number: int, rng: random.Random) -> None:
    """Mount, let the writers work, kill the server at some time, and take the dead mount away."""
    with fuse_mounted(image, [f"commit={rng.choice((1, 5))}"], unmount=False) as mounted:
        processes = []
        for which in range(WRITERS):
            old = mounted.path / f"r{number - 1}w{which}"
            log = logs / f"r{number}w{which}"
            writer = Writer(mounted.path / log.name, log, rng.randrange(1 << 30))
            process = multiprocessing.get_context("fork").Process(target=writer.run, args=(old,))
            process.start()
            processes.append(process)
        time.sleep(rng.uniform(0.05, 1.2))
        os.kill(mounted.pid, signal.SIGKILL)
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        assert "died before it had written everything" in run_py4fs("umount", mounted.path).stderr
        assert not is_mounted(mounted.path)


def kill_rounds(image: Path, logs: Path, rounds: int, rng: random.Random) -> int:
    """Returns how many files had been promised, all in all."""
    promised = 0
    for number in range(rounds):
        load_and_kill(image, logs, number, rng)
        RECOVERIES[number % len(RECOVERIES)](image)
        fsck_clean(image)
        with open_image(image, readonly=True) as fs:
            for which in range(WRITERS):
                name = f"r{number}w{which}"
                promises = Promises.read(logs / name)
                promised += len(promises.files)
                try:
                    promises.check(fs, f"/{name}")
                except (AssertionError, OSError) as exc:
                    raise AssertionError(f"round {number}: {exc}") from exc
    return promised


def run(kind: str, make_image: ImageMaker, tmp_path: Path, rng: random.Random, rounds: int) -> None:
    machine.need_loop()
    machine.need_fuse()
    image = make_image("96M", *IMAGES[kind])
    logs = tmp_path / "logs"
    logs.mkdir()
    assert kill_rounds(image, logs, rounds, rng) > rounds


@pytest.mark.parametrize("kind", IMAGES)
def test_killed_under_load(kind: str, make_image: ImageMaker, tmp_path: Path, rng: random.Random) -> None:
    run(kind, make_image, tmp_path, rng, 3)


@pytest.mark.long
@pytest.mark.parametrize("kind", IMAGES)
def test_killed_under_load_often(kind: str, make_image: ImageMaker, tmp_path: Path, rng: random.Random) -> None:
    """102 rounds in all."""
    run(kind, make_image, tmp_path, rng, 34)
