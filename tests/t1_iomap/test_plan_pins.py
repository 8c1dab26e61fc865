"""Pins: ordered tokens, and who hears about the oldest one's end."""

from hypothesis import given
from hypothesis import strategies as st

from py4fs.ext4.pins import PlanPins


def test_tokens_and_watchers() -> None:
    pins = PlanPins()
    calls: list[int | None] = []
    pins.on_advance(lambda: calls.append(pins.oldest()))
    assert pins.oldest() is None and pins.youngest() is None
    a, b, c = pins.acquire(), pins.acquire(), pins.acquire()
    assert a < b < c
    assert (pins.oldest(), pins.youngest(), len(pins)) == (a, c, 3)
    pins.release(b)
    assert calls == []
    pins.release(a)
    assert calls == [c]
    pins.release(c)
    assert calls == [c, None]
    assert pins.acquire() > c


@given(st.lists(st.integers(0, 5)))
def test_against_a_sorted_list(picks: list[int]) -> None:
    pins = PlanPins()
    live: list[int] = []
    for pick in picks:
        if pick < 3 or not live:
            live.append(pins.acquire())
        else:
            pins.release(live.pop(pick % len(live)))
        assert pins.oldest() == min(live, default=None)
        assert pins.youngest() == max(live, default=None)
