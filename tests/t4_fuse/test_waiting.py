"""The loop's waiting: quick while requests come, fair to the other tasks, asleep when there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import machine

pytest.importorskip("pyfuse3", reason=machine.NEEDS + "pyfuse3")

import pyfuse3
import trio

from py4fs.fuse import waiting


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def lowlevel() -> waiting.Lowlevel:
    return waiting.Lowlevel()


def test_what_pyfuse3_finds_in_its_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)
    waiting.install()
    seen = vars(pyfuse3)["trio"]
    assert seen.open_nursery is trio.open_nursery
    assert seen.ClosedResourceError is trio.ClosedResourceError
    assert seen.lowlevel.current_task is trio.lowlevel.current_task
    assert seen.lowlevel.notify_closing is trio.lowlevel.notify_closing
    assert isinstance(seen.lowlevel, waiting.Lowlevel)


def test_other_tasks_get_their_turn_while_requests_keep_coming(
    pipe: tuple[int, int], lowlevel: waiting.Lowlevel
) -> None:
    reader, writer = pipe
    os.write(writer, b"always readable")
    rounds = 0

    async def serve() -> None:
        nonlocal rounds
        while True:
            await lowlevel.wait_readable(reader)
            rounds += 1

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await trio.sleep(5 * waiting.TURN)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert rounds > 50  # and so it did not go to sleep each time


def test_wakes_up_for_what_comes_late_and_stops_when_told_to(pipe: tuple[int, int], lowlevel: waiting.Lowlevel) -> None:
    reader, writer = pipe

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                await trio.sleep(0.05)
                os.write(writer, b"x")

            for _ in range(2):  # in its turn, and out of it
                nursery.start_soon(late)
                with trio.fail_after(10):
                    await lowlevel.wait_readable(reader)
                assert os.read(reader, 1) == b"x"
        with trio.move_on_after(0.05) as scope:
            await lowlevel.wait_readable(reader)
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closing)
            with pytest.raises(trio.ClosedResourceError):
                await lowlevel.wait_readable(reader)

    async def closing() -> None:
        await trio.sleep(0.05)
        trio.lowlevel.notify_closing(reader)

    trio.run(main)


def test_a_second_reader_is_noticed() -> None:
    async def main() -> None:
        lock = waiting.OneReader()
        async with lock:
            with pytest.raises(AssertionError, match="several"):
                async with lock:
                    pass
        async with lock:
            pass

    trio.run(main)
