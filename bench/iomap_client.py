"""What the iomap client adds to a read or write: `python bench/iomap_client.py [calls]`.

The device does nothing, so all of the time is the client's: plan, hand-over and finish of a warm 128 KiB read and
overwrite, a read over eight extents, and an append with its allocation and conversion left out (a mapper of one run).
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from py4fs.ext4.inode import Inode
from py4fs.ext4.pins import PlanPins
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation, Reserve, Transactions
from py4fs.iomap.client import IomapClient, run_read, run_write
from py4fs.iomap.server import Ext4Iomap

SIZE = 1 << 30
CHUNK = 128 << 10
BLOCK = 4096
DATA = bytes(CHUNK)


class NoDevice:
    """Moves nothing."""

    name, size, readonly = "nothing", 1 << 60, False

    def read(self, offset: int, length: int) -> bytes:
        return DATA

    def write(self, offset: int, data: Any) -> None:
        pass

    def writev(self, offset: int, parts: Any) -> None:
        pass


class OneExtent:
    """A mapper that needs no time: a file of written extents of `extent` blocks each, two apart on the device."""

    block_size = BLOCK
    max_size = (1 << 32) * BLOCK

    def __init__(self, extent: int) -> None:
        self.extent = extent

    def run_at(self, inode: Inode, lblk: int) -> Run:
        start = lblk - lblk % self.extent
        return Run(start, self.extent, start * 2 + 8, RunState.MAPPED)

    def window(self, inode: Inode, lblk: int, limit: int) -> list[Run]:
        return [self.run_at(inode, lblk + i * self.extent) for i in range(min(limit, 340))]


class Nothing:
    """A volume around it."""

    geometry: Any = None

    def __init__(self, extent: int) -> None:
        self.device = NoDevice()
        self.pins = PlanPins()
        self.files: Any = OneExtent(extent)
        self.transactions = Transactions(lambda: 0)

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation:
        return self.transactions.operation(credits, reserve)

    def note_data_written(self) -> None:
        pass


def best(what: str, call: Callable[[int], object], calls: int) -> None:
    """Print the best of five rounds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for i in range(calls):
            call(i)
        times.append((time.perf_counter() - start) / calls * 1e6)
    print(f"{what:42s} {min(times):6.2f} us")


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    measure("one extent", SIZE // BLOCK, calls)
    measure("extents of 128 KiB", 32, calls)
    measure("extents of 16 KiB", 4, calls)


def measure(label: str, extent: int, calls: int) -> None:
    """Print what each kind of request costs on a file made of such extents (blocks)."""
    volume: Any = Nothing(extent)
    client = IomapClient(volume, Ext4Iomap(volume.files, volume.operation, groups=1))
    inode = Inode(12, 1)
    inode.size = SIZE
    file = client.file(inode)
    device = volume.device
    for pos in range(0, SIZE, CHUNK):
        client.read(file, pos, CHUNK)

    def read(i: int) -> None:
        plan = client.plan_read(file, i * CHUNK % SIZE, CHUNK, SIZE)
        run_read(plan, device)
        client.finish_read(plan)

    def write(i: int) -> None:
        plan = client.plan_write(file, i * CHUNK % SIZE, CHUNK)
        run_write(plan, device, DATA)
        client.finish_write(plan, None)

    best(f"{label}: read 128 KiB", read, calls)
    best(f"{label}: the same in one go", lambda i: client.read(file, i * CHUNK % SIZE, CHUNK), calls)
    best(f"{label}: overwrite 128 KiB", write, calls)
    best(f"{label}: random 4 KiB", lambda i: client.read(file, i * 7919 * BLOCK % SIZE, BLOCK), calls)


if __name__ == "__main__":
    main()
