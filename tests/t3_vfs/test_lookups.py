"""The kernel's references, against a dictionary; and what they cost."""

from __future__ import annotations

import random
import tracemalloc

from py4fs.vfs.lookups import LookupCounts


def test_counts_are_those_of_a_dictionary(rng: random.Random) -> None:
    counts, model = LookupCounts(), dict[int, int]()
    for _ in range(20_000):
        ino = rng.choice((rng.randrange(200), rng.randrange(1 << 32)))
        if rng.random() < 0.5:
            more = rng.choice((1, 1, 1, 5, 1 << 40))
            counts.add(ino, more)
            model[ino] = model.get(ino, 0) + more
        else:
            ino = rng.choice((ino, *list(model)[:1]))
            less = rng.choice((0, 1, 2, 1 << 50)) if ino in model else 1
            left = max(model.get(ino, 0) - less, 0)
            assert counts.drop(ino, less) == (not left)
            model.pop(ino, None)
            if left:
                model[ino] = left
        assert (ino in counts, len(counts)) == (ino in model, len(model))
    assert dict(counts) == model
    for ino in list(model):
        assert counts.drop(ino, 1 << 60)
    assert (len(counts), dict(counts), counts._pages) == (0, {}, {})


def test_a_million_inodes_of_a_walk_take_little_room() -> None:
    tracemalloc.start()
    try:
        counts = LookupCounts()
        for ino in range(11, 1_000_011):
            counts.add(ino, 1)
        assert tracemalloc.get_traced_memory()[0] < 20 * 1_000_000
    finally:
        tracemalloc.stop()
    assert len(counts) == 1_000_000
    counts.clear()
    assert 11 not in counts and not len(counts)
