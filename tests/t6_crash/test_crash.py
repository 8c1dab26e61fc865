"""Crash images of random workloads: what was committed is there, byte for byte, and nothing else.

Each image is recovered by e2fsck, which may only replay and clear orphans, by py4fs, and some by the kernel. All have
to arrive at the same one of the trees that the crash may lead to. A failure prints the id that replays it.
"""

from __future__ import annotations

import os

import pytest

from tests.support import machine
from tests.support.logs import LogGuard
from tests.t6_crash.campaign import campaign
from tests.t6_crash.world import CONFIGS

#: images per configuration in `make test`, with a fixed seed
FEW = 28
#: and in `make test-long`: 13 configurations x 2 seeds x 200 = 5,200
MANY = 200


@pytest.mark.parametrize("name", CONFIGS)
def test_some_crashes(name: str, log_guard: LogGuard) -> None:
    machine.need_loop()
    # a crash may tear the write of a commit block, which recovery reports
    log_guard.allow("journal|orphan")
    assert campaign(name, 1, FEW, kernel=CONFIGS[name].kernel) == FEW


@pytest.mark.long
@pytest.mark.parametrize("more", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_many_crashes(name: str, more: int, seed: int, log_guard: LogGuard) -> None:
    machine.need_loop()
    log_guard.allow("journal|orphan")
    cpus, kernel = os.cpu_count() or 1, CONFIGS[name].kernel
    assert campaign(name, 1000 * seed + more, MANY, processes=cpus, kernel=kernel) == MANY
