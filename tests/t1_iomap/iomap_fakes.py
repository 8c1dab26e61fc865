"""A volume for the iomap tests: a block map in a dict, an allocator that leaves gaps, a device in memory."""

from collections.abc import Callable
from typing import Any

from py4fs.device.memory import MemoryDevice
from py4fs.errors import NoSpace
from py4fs.ext4 import inline
from py4fs.ext4.inode import Inode
from py4fs.ext4.pins import PlanPins
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation, Reserve, Transactions
from py4fs.iomap.backing import WritePolicy
from py4fs.iomap.server import WINDOW, Ext4Iomap

B = 1024
MAX_BLOCKS = 1 << 32


class FakeFiles:
    """The mapper: logical block -> (physical block, written); only blocks of one inode number at a time matter."""

    def __init__(self, device_blocks: int, gap: Callable[[], int]) -> None:
        self.block_size = B
        self.max_size = (MAX_BLOCKS - 1) * B
        self.maps: dict[int, dict[int, tuple[int, bool]]] = {}
        self.free = set(range(1, device_blocks))
        self.gap = gap
        self.cursor = 1
        self.calls = 0
        self.fail_convert = False
        self.settled: list[int] = []
        self.inline_changed: list[Callable[[int], None]] = []

    def leave_inline(self, tx: Operation, inode: Inode) -> None:
        if inode.is_inline:
            inline.take_out(tx, inode)
        inode.may_inline = False

    def prepare_inline(self, tx: Operation, inode: Inode, size: int) -> bool:
        return inline.prepare(tx, inode, size)

    def max_blocks(self, inode: Inode) -> int:
        return MAX_BLOCKS - 1

    def settle(self, ino: int) -> None:
        self.settled.append(ino)

    def hold_tail(self, tx: Operation, inode: Inode) -> None:
        """Blocks of this mapper can be unwritten."""

    def release_tail(self, tx: Operation, inode: Inode) -> None:
        """Nothing was held."""

    def _map(self, inode: Inode) -> dict[int, tuple[int, bool]]:
        return self.maps.setdefault(inode.ino, {})

    def run_at(self, inode: Inode, lblk: int) -> Run:
        self.calls += 1
        blocks = self._map(inode)
        if lblk not in blocks:
            start = max((b + 1 for b in blocks if b < lblk), default=0)
            end = min((b for b in blocks if b > lblk), default=MAX_BLOCKS - 1)
            return Run(start, end - start, 0, RunState.HOLE)

        def continues(block: int) -> bool:
            here, there = blocks.get(block), blocks.get(block + 1)
            return here is not None and there == (here[0] + 1, here[1])

        start = end = lblk
        while continues(start - 1):
            start -= 1
        while continues(end):
            end += 1
        pblk, written = blocks[start]
        return Run(start, end + 1 - start, pblk, RunState.MAPPED if written else RunState.UNWRITTEN)

    def window(self, inode: Inode, lblk: int, limit: int) -> list[Run]:
        runs = [self.run_at(inode, lblk)]
        while len(runs) < min(limit, 7) and runs[-1].end < MAX_BLOCKS - 1:
            runs.append(self.run_at(inode, runs[-1].end))
        return runs

    def allocate(self, tx: Operation, inode: Inode, lblk: int, count: int, *, unwritten: bool = True) -> list[Run]:
        blocks = self._map(inode)
        saved, cursor = dict(blocks), self.cursor

        def undo() -> None:
            self.free |= {p for p, _ in blocks.values()} - {p for p, _ in saved.values()}
            blocks.clear()
            blocks.update(saved)
            self.cursor = cursor

        tx.on_abort(undo)
        for block in range(lblk, lblk + count):
            if block not in blocks:
                if not self.free:
                    raise NoSpace("no free blocks")
                self.cursor += self.gap()
                pblk = min((p for p in self.free if p >= self.cursor), default=min(self.free))
                self.cursor = pblk + 1
                self.free.discard(pblk)
                blocks[block] = (pblk, not unwritten)
        runs = [self.run_at(inode, lblk)]
        while runs[-1].end < lblk + count:
            runs.append(self.run_at(inode, runs[-1].end))
        return runs

    def fill(self, tx: Operation, inode: Inode, lblk: int, count: int) -> list[tuple[int, int]]:
        self.allocate(tx, inode, lblk, count, unwritten=False)
        runs: list[tuple[int, int]] = []
        for block in range(lblk, lblk + count):
            pblk = self._map(inode)[block][0]
            if runs and sum(runs[-1]) == pblk:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((pblk, 1))
        return runs

    def convert(self, tx: Operation, inode: Inode, lblk: int, count: int) -> None:
        if self.fail_convert:
            raise NoSpace("no block for the tree")
        blocks = self._map(inode)
        saved = dict(blocks)
        tx.on_abort(lambda: blocks.update(saved))
        for block in range(lblk, lblk + count):
            if block in blocks:
                blocks[block] = (blocks[block][0], True)

    def remove(self, tx: Operation, inode: Inode, lblk: int, end: int) -> bool:
        blocks = self._map(inode)
        for block in [b for b in blocks if lblk <= b < end]:
            tx.transaction.freed.append((blocks.pop(block)[0], 1))
        return True


class FakeVolume:
    """What the client needs of a volume, and truncate.  Freed blocks are reused when no plan is older."""

    def __init__(
        self,
        *,
        device: Any = None,
        blocks: int = 512,
        gap: Callable[[], int] = lambda: 0,
        window: int = WINDOW,
        max_blocks: int = 2048,
    ) -> None:
        # the device is full of something, so that stale blocks show
        self.device = device or MemoryDevice(b"\xee" * (blocks * B))
        self.pins = PlanPins()
        self.credits: list[int] = []  # of each operation
        self.files = FakeFiles(blocks, gap)
        self.transactions = Transactions(lambda: 1_000_000_007)
        self.server = Ext4Iomap(
            self.files, self.operation, groups=1, window=window, policy=WritePolicy(max_blocks=max_blocks)
        )
        self.limbo: list[tuple[int, int]] = []
        self.pins.on_advance(self.reclaim)
        self.data_written = 0
        self.next_ino = 11

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation:
        self.credits.append(credits)
        return self.transactions.operation(credits, reserve)

    def note_data_written(self) -> None:
        self.data_written += 1

    def inode(self) -> Inode:
        self.next_ino += 1
        inode = Inode(self.next_ino, 1)
        inode.mode = 0o100644
        return inode

    def reclaim(self) -> None:
        """Freed blocks come back, scribbled over as a new owner would."""
        youngest, oldest = self.pins.youngest(), self.pins.oldest()
        freed = self.transactions.running.freed
        self.limbo += [(youngest or 0, pblk) for pblk, _ in freed]
        freed.clear()
        for token, pblk in list(self.limbo):
            if oldest is None or token < oldest:
                self.limbo.remove((token, pblk))
                self.files.free.add(pblk)
                self.device.write(pblk * B, b"\xdd" * B)

    def truncate(self, client: Any, file: Any, size: int) -> None:
        """As the vfs does it."""
        inode = file.inode
        old = inode.size
        if size > old:
            client.zero_range(file, old, size - old)
        with self.operation(8) as tx:
            tx.touch(inode)
            inode.size = size
            if size < old:
                self.files.remove(tx, inode, -(-size // B), MAX_BLOCKS)
        if size < old:
            client.truncated(file, size)
            client.zero_range(file, size, -size % B)
        self.reclaim()
