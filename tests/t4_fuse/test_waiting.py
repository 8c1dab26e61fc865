"""The session's own waiting: quick when requests come one after the other, and fair to trio's other tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.machine import NEEDS

pyfuse3 = pytest.importorskip("pyfuse3", reason=NEEDS + "pyfuse3")
trio = pytest.importorskip("trio", reason=NEEDS + "trio")

from py4fs.fuse import waiting  # noqa: E402
from py4fs.fuse.waiting import TURN, Waiter  # noqa: E402


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_what_is_there_already_needs_no_turn_of_trio(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    os.write(writer, b"x")
    turns = []

    async def counted() -> None:
        turns.append(1)

    async def main() -> None:
        waiter = Waiter()
        await waiter.wait_readable(reader)
        monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
        waiter._turn = time.monotonic() + 60
        for _ in range(100):
            await waiter.wait_readable(reader)

    trio.run(main)
    assert not turns


def test_it_waits_in_trio_when_nothing_comes(pipe: tuple[int, int]) -> None:
    reader, writer = pipe

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Waiter().wait_readable, reader)
            await trio.sleep(0.1)
            os.write(writer, b"x")
        with trio.move_on_after(0.1) as scope:
            os.read(reader, 1)
            await Waiter().wait_readable(reader)
        assert scope.cancelled_caught, "waiting can be cancelled"

    with_limit(main)


def test_other_tasks_get_their_turn_under_load(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x")  # always readable
    turns = []

    async def other() -> None:
        while True:
            turns.append(time.monotonic())
            await trio.sleep(0)

    async def main() -> None:
        waiter = Waiter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            end = time.monotonic() + TURN * 20
            while time.monotonic() < end:
                await waiter.wait_readable(reader)
            nursery.cancel_scope.cancel()

    with_limit(main)
    assert len(turns) >= 10


def test_a_closed_other_end_wakes_it() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    trio.run(Waiter().wait_readable, reader)
    os.close(reader)


def with_limit(main: object) -> None:
    async def limited() -> None:
        with trio.fail_after(10):
            await main()  # type: ignore[operator]

    trio.run(limited)


def test_pyfuse3_gets_its_trio_back() -> None:
    with waiting.installed():
        assert vars(pyfuse3)["trio"] is not trio
    assert vars(pyfuse3)["trio"] is trio
