"""Bitmap helpers against a list of booleans."""

from __future__ import annotations

import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt
from py4fs.ext4 import bitmap


@st.composite
def bitmaps(draw: st.DrawFn) -> bitarray:
    """Runs of free and used bits of very different lengths."""
    bits = bitarray(endian="little")
    value = draw(st.integers(0, 1))
    short, long = st.integers(1, 20), st.integers(1, 1500)
    for length in draw(st.lists(short | long, max_size=40)):
        bits.extend([value] * length)
        value ^= 1
    return bits


def free_runs(bits: bitarray, start: int, limit: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    first = None
    for at in range(start, limit + 1):
        free = at < limit and not bits[at]
        if free and first is None:
            first = at
        if not free and first is not None:
            runs.append((first, at - first))
            first = None
    return runs


@st.composite
def windows(draw: st.DrawFn) -> tuple[bitarray, int, int]:
    bits = draw(bitmaps())
    start = draw(st.integers(0, len(bits)))
    return bits, start, draw(st.integers(start, len(bits)))


@given(windows(), st.integers(1, 3000))
def test_find_free_run(window: tuple[bitarray, int, int], want: int) -> None:
    bits, start, limit = window
    runs = free_runs(bits, start, limit)
    enough = [run for run in runs if run[1] >= want]
    got = bitmap.find_free_run(bits, start, limit, want)
    if enough:
        assert got == enough[0]
    elif runs:
        assert got in runs
        # Few enough runs here for the search to look at all of the longer ones.
        assert got[1] * 2 >= max(length for _, length in runs)
    else:
        assert got is None


@given(windows())
def test_find_free_run_asks_for_everything(window: tuple[bitarray, int, int]) -> None:
    bits, start, limit = window
    runs = free_runs(bits, start, limit)
    got = bitmap.find_free_run(bits, start, limit, 1 << 20)
    longest = max((length for _, length in runs), default=0)
    if longest >= 512 or not runs:
        assert (got[1] if got else 0) == longest


def test_find_free_run_in_a_badly_fragmented_group() -> None:
    bits = bitarray("01", endian="little") * 16384
    assert bitmap.find_free_run(bits, 1, len(bits), 100) == (2, 1)
    bits[20000:20040] = 0
    start, length = bitmap.find_free_run(bits, 0, len(bits), 41) or (0, 0)
    assert (start, length) == (20000, 41)
    assert bitmap.find_free_run(bits, 0, len(bits), 3) == (20000, 41)
    assert bitmap.find_free_run(bits, 0, len(bits), 4000) == (20000, 41)
    bits.setall(1)
    assert bitmap.find_free_run(bits, 0, len(bits), 1) is None
    bits.setall(0)
    assert bitmap.find_free_run(bits, 5, 1 << 30, 1 << 20) == (5, 32763)


@given(windows())
def test_runs_and_counts(window: tuple[bitarray, int, int]) -> None:
    bits, start, limit = window
    runs = free_runs(bits, start, limit)
    assert list(bitmap.iter_runs(bits, start, limit)) == runs
    assert list(bitmap.iter_runs(bits, start, limit, used=True)) == free_runs(~bits, start, limit)
    assert bitmap.count_free(bits, start, limit) == sum(length for _, length in runs)
    assert bitmap.find_free(bits, start, limit) == (runs[0][0] if runs else -1)
    assert bitmap.count_free(bits) == bits.count(0)


@given(windows())
def test_set_and_clear(window: tuple[bitarray, int, int]) -> None:
    bits, start, limit = window
    for first, length in free_runs(bits, start, limit):
        before = bits.copy()
        assert bitmap.is_free(bits, first, length)
        assert bitmap.run_at(bits, first, limit) == length
        bitmap.set_run(bits, first, length)
        assert bits.count(1) == before.count(1) + length
        assert bitmap.is_used(bits, first, length) and not bitmap.is_free(bits, first, length)
        with pytest.raises(AssertionError):
            bitmap.set_run(bits, first, length)
        bitmap.clear_run(bits, first, length)
        assert bits == before
        with pytest.raises(AssertionError):
            bitmap.clear_run(bits, first, length)


def test_runs_outside_the_bitmap_are_neither_free_nor_used() -> None:
    bits = bitarray(16, endian="little")
    bits.setall(0)
    assert not bitmap.is_free(bits, 10, 7)
    assert not bitmap.is_free(bits, -1, 2)
    bits.setall(1)
    assert not bitmap.is_used(bits, 16, 1)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_bytes_round_trip(raw: bytes, data: st.DataObject) -> None:
    nbits = data.draw(st.integers(0, 8 * len(raw)))
    bits = bitmap.from_bytes(raw, nbits)
    assert [bits[n] for n in range(nbits)] == [raw[n // 8] >> n % 8 & 1 for n in range(nbits)]
    block = bitmap.to_bytes(bits, len(raw) + 8)
    assert len(bits) == nbits
    whole = int.from_bytes(block, "little")
    low = int.from_bytes(raw, "little") & ((1 << nbits) - 1)
    assert whole == low | (1 << 8 * len(block)) - (1 << nbits), "what is behind the last bit is set"


def test_short_block_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="found 16 bits, expected 17 bits"):
        bitmap.from_bytes(bytes(2), 17)
