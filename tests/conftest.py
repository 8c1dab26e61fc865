"""Fixtures of all levels, the --seed option, and the rule about skips."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import settings

from images.kernel import loop_mount
from py4fs import compiled
from tests.support import machine
from tests.support.image import ImageMaker, e2fsck_clean
from tests.support.logs import LogGuard

KernelMount = Callable[..., AbstractContextManager[Path]]

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", default="1", help="seed of the random tests: a number, or `random` for a new one")


def pytest_configure(config: pytest.Config) -> None:
    given = str(config.getoption("--seed"))
    config.stash[_SEED] = random.SystemRandom().randrange(1 << 32) if given == "random" else int(given)
    settings.load_profile("random" if given == "random" else "fixed")


_SEED = pytest.StashKey[int]()


def pytest_report_header(config: pytest.Config) -> str:
    return f"core {compiled.describe()}, seed: {config.stash[_SEED]} (replay with --seed {config.stash[_SEED]})"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; a test that fails prints it."""
    value = request.config.stash[_SEED]
    print(f"--seed {value}")
    return value


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """Random numbers that depend on the seed and the test's name only."""
    return random.Random(f"{seed}:{request.node.name}")


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where images of the matrix are built once per run."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def make_image(tmp_path: Path, image_cache: Path) -> Iterator[ImageMaker]:
    """`make_image("16M", "-b", "1024")`, `make_image.recipe(name)`; all of them end in `e2fsck -fn`."""
    maker = ImageMaker(tmp_path, image_cache)
    yield maker
    maker.check_all()


@pytest.fixture
def fsck() -> Callable[[Path], None]:
    """`fsck(image)` fails the test unless `e2fsck -fn` exits 0."""
    return e2fsck_clean


@pytest.fixture
def kernel_mount() -> KernelMount:
    """`with kernel_mount(image, "ro") as directory`: the kernel's own ext4, the oracle."""
    machine.need_loop()
    return loop_mount


@pytest.fixture(autouse=True)
def log_guard() -> Iterator[LogGuard]:
    """No warning of py4fs may go unnoticed; `log_guard.expect(regex)` says which ones belong to the test."""
    guard = LogGuard()
    logger = logging.getLogger("py4fs")
    level = logger.level
    logger.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logger.addHandler(guard)
    yield guard
    logger.removeHandler(guard)
    logger.setLevel(level)
    guard.check()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for want of something, on a machine that has it all, is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = _reason(report)
        if reason.startswith(machine.NEEDS) and machine.complete():
            report.outcome = "failed"
            report.longrepr = f"skipped although root, /dev/fuse and loop devices are here: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", ()))
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"skipped: {count} x {reason}")
    if not skipped:
        terminalreporter.write_line("skipped: none")
