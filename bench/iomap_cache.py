"""Which container holds a million mappings best: `python bench/iomap_cache.py [records]`.

Compared, each with ordered insertion of N records and random lookups that return the record; CPU time of one core, the
best of three rounds:
  chunked arrays   py4fs.iomap.cache: an array of offsets beside a buffer of records, 2048 each (chosen)
  chunked tuples   the same chunks, of lists of Mapping objects beside a list of offsets
  flat list        one sorted list of offsets, one of Mapping objects
  SortedDict       sortedcontainers, offset -> Mapping (left out where it is not installed)
"""

import gc
import random
import sys
import time
import tracemalloc
from bisect import bisect_right, insort
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from py4fs.iomap.cache import IomapCache
from py4fs.iomap.records import IoDir, Mapping, MapType

LOOKUPS = 300_000
ROUNDS = 3
BLOCK = 4096


def mapping(i: int) -> Mapping:
    """Record i: one mapped block, none of them mergeable."""
    return Mapping(i * BLOCK, BLOCK, (i * 7919 + 5) * BLOCK, MapType.MAPPED, 0, 1)


class ChunkedTuples:
    def __init__(self) -> None:
        self.starts: list[int] = []
        self.keys: list[list[int]] = []
        self.values: list[list[Mapping]] = []

    def put(self, m: Mapping) -> None:
        if not self.keys or len(self.keys[-1]) == 2048:
            self.starts.append(m.offset)
            self.keys.append([])
            self.values.append([])
        self.keys[-1].append(m.offset)
        self.values[-1].append(m)

    def get(self, pos: int) -> Mapping | None:
        c = bisect_right(self.starts, pos) - 1
        m = self.values[c][bisect_right(self.keys[c], pos) - 1]
        return m if pos < m.offset + m.length else None


class FlatList:
    def __init__(self) -> None:
        self.keys: list[int] = []
        self.values: list[Mapping] = []

    def put(self, m: Mapping) -> None:
        insort(self.keys, m.offset)
        self.values.insert(len(self.keys) - 1, m)

    def get(self, pos: int) -> Mapping | None:
        m = self.values[bisect_right(self.keys, pos) - 1]
        return m if pos < m.offset + m.length else None


class Sorted:
    def __init__(self) -> None:
        self.map: Any = import_module("sortedcontainers").SortedDict()

    def put(self, m: Mapping) -> None:
        self.map[m.offset] = m

    def get(self, pos: int) -> Mapping | None:
        m: Mapping = self.map.peekitem(self.map.bisect_right(pos) - 1)[1]
        return m if pos < m.offset + m.length else None


class Chosen:
    def __init__(self) -> None:
        self.cache = IomapCache(BLOCK, 1 << 44)

    def put(self, m: Mapping) -> None:
        self.cache.upsert(IoDir.READ, m)

    def get(self, pos: int) -> Mapping | None:
        return self.cache.lookup(IoDir.READ, pos, 1).mapping


def measure(name: str, make: Callable[[], Any], count: int) -> None:
    """Print one line for a container."""
    rng = random.Random(1)
    wanted = [rng.randrange(count) * BLOCK + 7 for _ in range(LOOKUPS)]
    insertions, lookups = [], []
    for _ in range(ROUNDS):
        box = make()
        start = time.process_time()
        for i in range(count):
            box.put(mapping(i))
        insertions.append(time.process_time() - start)
        start = time.process_time()
        for pos in wanted:
            box.get(pos)
        lookups.append(time.process_time() - start)
        del box
        gc.collect()
    insertion, rate = min(insertions), LOOKUPS / min(lookups)
    tracemalloc.start()
    box = make()
    few = min(count, 100_000)
    for i in range(few):
        box.put(mapping(i))
    size = tracemalloc.get_traced_memory()[0] / few
    tracemalloc.stop()
    print(f"{name:16s} insert {insertion:6.2f} s   lookup {rate:10,.0f}/s   {size:6.1f} bytes each")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"{count:,} records of one block, {LOOKUPS:,} random lookups")
    measure("chunked arrays", Chosen, count)
    measure("chunked tuples", ChunkedTuples, count)
    measure("flat list", FlatList, count)
    try:
        measure("SortedDict", Sorted, count)
    except ImportError:
        print("SortedDict       not installed")


if __name__ == "__main__":
    main()
