"""The loop's waiting: quick while requests come, fair to the other tasks, asleep when there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support import machine

pytest.importorskip("pyfuse3", reason=machine.NEEDS + "pyfuse3")

import pyfuse3
import trio

from py4fs.fuse.libfuse import waiting


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def lowlevel() -> waiting.Waiting:
    return waiting.Waiting()


def test_what_pyfuse3_finds_in_its_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)
    waiting.install()
    seen = vars(pyfuse3)["trio"]
    assert seen.open_nursery is trio.open_nursery
    assert seen.ClosedResourceError is trio.ClosedResourceError
    assert seen.lowlevel.current_task is trio.lowlevel.current_task
    assert seen.lowlevel.notify_closing is trio.lowlevel.notify_closing
    assert isinstance(seen.lowlevel, waiting.Waiting)
    assert seen.Lock() is seen.lowlevel.reader


def test_other_tasks_get_their_turn_while_requests_keep_coming(
    pipe: tuple[int, int], lowlevel: waiting.Waiting
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


def test_wakes_up_for_what_comes_late_and_stops_when_told_to(pipe: tuple[int, int], lowlevel: waiting.Waiting) -> None:
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


def test_other_tasks_have_work(pipe: tuple[int, int], lowlevel: waiting.Waiting) -> None:
    """While somebody waits for durability every request gives the other tasks a turn."""
    reader, writer = pipe
    os.write(writer, b"always readable")
    lowlevel.busy = 1
    turns = rounds = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        nonlocal rounds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(50):
                await lowlevel.wait_readable(reader)
                rounds += 1
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert turns + 2 >= rounds > 40  # who starts and who ends is for trio to say


def test_one_task_reads_until_it_hands_over() -> None:
    order: list[str] = []

    async def task(name: str, lock: waiting.Reader, rounds: int, hand_over: bool) -> None:
        for _ in range(rounds):
            async with lock:
                order.append(name)
                await trio.lowlevel.checkpoint()  # as if waiting for a request
            if hand_over:
                lock.hand_over()
                await trio.sleep(0.05)  # as if waiting for durability

    async def main(hand_over: bool) -> None:
        lock = waiting.Reader()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task, "a", lock, 3, hand_over)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(task, "b", lock, 1, False)
                await trio.sleep(0.3)
                lock.close()  # whoever is parked sees for itself
        assert sorted(order) == ["a", "a", "a", "b"]

    trio.run(main, False)
    assert order == ["a", "a", "a", "b"]
    order.clear()
    trio.run(main, True)
    assert order.index("b") == 1
