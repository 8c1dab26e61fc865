"""Sets of block ranges against Python's own sets."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from py4fs.iomap.ranges import Ranges

bounds = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(st.tuples(st.booleans(), bounds), max_size=30), bounds)
def test_against_sets(steps: list[tuple[bool, tuple[int, int]]], window: tuple[int, int]) -> None:
    ranges = Ranges()
    model: set[int] = set()
    for adding, (first, end) in steps:
        if adding:
            ranges.add(first, end)
            model |= set(range(first, end))
        else:
            ranges.discard(first, end)
            model -= set(range(first, end))
        found = list(ranges)
        assert {block for low, high in found for block in range(low, high)} == model
        assert all(low < high for low, high in found)
        assert all(before[1] < after[0] for before, after in pairwise(found)), "sorted, joined"
        assert len(ranges) == len(found)
    inside = ranges.within(*window)
    assert {block for low, high in inside for block in range(low, high)} == model & set(range(*window))
