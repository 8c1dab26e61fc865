"""What a journal holds that has not reached its place: scan, revoke and replay passes (kernel: jbd2/recovery.c).

Only reads. The log is followed from its tail as long as each transaction has the number expected next and ends in
a commit block; of these transactions the newest copy of every block that no later transaction revoked is wanted.

Two kinds of damage are told apart, as the kernel does it. When nothing can be trusted, `recover` raises. When the
kernel would write what it could and then refuse to mount, the result has the same blocks, and says so in `failure`.

Memory and time are bounded by the log's length: what is kept is where in the log a block's newest copy is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from py4fs.errors import BadChecksum, Corrupt
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.format import (
    CRC32_START,
    Tag,
    commit_ok,
    commit_seconds,
    crc32_be,
    next_tid,
    parse_header,
    parse_revokes,
    parse_tags,
    restore_data,
    tag_ok,
    tail_ok,
    tid_geq,
)
from py4fs.ext4.layout.jbd2 import JBD2_COMMIT_BLOCK, JBD2_DESCRIPTOR_BLOCK, JBD2_REVOKE_BLOCK

#: bytes of log read in one call
BATCH: Final = 1 << 20
#: damaged blocks named one by one
MAX_PROBLEMS: Final = 8


class _Piece(NamedTuple):
    """A descriptor or revoke block of a committed transaction."""

    tid: int
    block: int
    revoke: bool


class ReplayBlocks(Mapping[int, bytes]):
    """The blocks to be put in place, by block number; their bytes are read from the log when asked for."""

    def __init__(self, area: JournalArea) -> None:
        self._area = area
        #: block of the file system -> (block of the log, escaped)
        self._places: dict[int, tuple[int, bool]] = {}

    def put(self, tag: Tag, block: int) -> None:
        """The newest copy so far is in log block ``block``."""
        self._places[tag.pblk] = (block, tag.escaped)

    def __getitem__(self, pblk: int) -> bytes:
        block, escaped = self._places[pblk]
        return restore_data(Tag(pblk, escaped, 0), self._area.read(block))

    def __contains__(self, pblk: object) -> bool:
        return pblk in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def runs(self) -> Iterator[tuple[int, list[bytes]]]:
        """Everything as (first block, bytes of consecutive blocks), in the order of the device. Raises DeviceError."""
        first, parts = -1, list[bytes]()
        limit = max(BATCH // self._area.block_size, 1)
        for pblk in sorted(self._places):
            if parts and (pblk != first + len(parts) or len(parts) >= limit):
                yield first, parts
                parts = []
            if not parts:
                first = pblk
            parts.append(self[pblk])
        if parts:
            yield first, parts


@dataclass(slots=True)
class Replay:
    """What a journal asks for."""

    blocks: ReplayBlocks
    #: the transaction that would have come next; fast commits with this number belong to it
    end: int
    #: log block behind the last committed transaction
    head: int
    #: committed transactions found
    transactions: int = 0
    #: blocks left out because a later transaction revoked them
    revoked: int = 0
    #: complete fast commits behind them
    fast_commits: int = 0
    #: lines for the user about what is odd or damaged
    problems: list[str] = field(default_factory=list)
    #: why the kernel would refuse the file system after this replay; None when all is well
    failure: Corrupt | None = None

    @property
    def next_sequence(self) -> int:
        """What the emptied journal continues with: not the number that an unfinished transaction has used."""
        return next_tid(self.end)

    def fail(self, problem: Corrupt) -> None:
        """Note damage that the kernel would not go on with."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(str(problem))
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append("and more of the kind")
        if self.failure is None:
            self.failure = problem


def recover(area: JournalArea, blocks_count: int) -> Replay:
    """Find what has to be replayed into a file system of ``blocks_count`` blocks; the journal's s_start is not 0.

    Raises BadChecksum and Corrupt when the log cannot be trusted at all, DeviceError.
    """
    replay = Replay(ReplayBlocks(area), area.sequence, area.start)
    pieces = _Scan(area, replay).run()
    revoked = _revoke(area, pieces)
    _replay(area, pieces, revoked, blocks_count, replay)
    return replay


class _Scan:
    """The first pass: finds the end of the log, and the descriptor and revoke blocks before it."""

    def __init__(self, area: JournalArea, replay: Replay) -> None:
        self._area = area
        self._features = area.features
        self._replay = replay
        self._tid = area.sequence
        self._at = area.start
        #: log blocks passed; more than the log has means that it was gone around
        self._used = 0
        self._pieces: list[_Piece] = []
        #: of the transaction being scanned
        self._pending: list[_Piece] = []
        self._crc = CRC32_START
        #: where a block had a bad checksum: stale, if its transaction was committed before the ones already seen
        self._suspect: BadChecksum | None = None
        self._last_commit = 0
        #: a commit block with a bad checksum, which with async_commit may just be unfinished
        self._broken: BadChecksum | None = None

    def run(self) -> list[_Piece]:
        area = self._area
        more = True
        while more and self._used < area.length:
            block = self._at
            data = area.read(block)
            header = parse_header(data)
            if header is None or header.tid != self._tid:
                break
            self._advance(1)
            if header.blocktype == JBD2_DESCRIPTOR_BLOCK:
                more = self._descriptor(block, data)
            elif header.blocktype == JBD2_REVOKE_BLOCK:
                self._revokes(block, data)
            elif header.blocktype == JBD2_COMMIT_BLOCK:
                more = self._commit(block, data)
            else:
                break
        if self._broken is None:
            self._replay.end = self._tid
        if self._suspect is not None and self._replay.failure is None:
            self._replay.problems.append(f"log ends at an unfinished or old transaction: {self._suspect}")
        return self._pieces

    def _where(self, block: int) -> str:
        return f"journal block {block}, transaction {self._tid}"

    def _advance(self, count: int) -> None:
        self._used += count
        self._at = self._area.wrap(self._at + count)

    def _descriptor(self, block: int, data: bytes) -> bool:
        features = self._features
        if not tail_ok(features, data):
            self._suspect = self._suspect or BadChecksum("descriptor checksum", self._where(block))
        count = len(parse_tags(features, data))
        if self._used + count > self._area.length:
            self._replay.problems.append(f"{self._where(block)}: a transaction longer than the log")
            return False
        if features.csum == 1 and self._broken is None:
            self._crc = crc32_be(self._crc, data)
            for _, part in _data_blocks(self._area, self._at, count):
                self._crc = crc32_be(self._crc, part)
        self._pending.append(_Piece(self._tid, block, False))
        self._advance(count)
        return True

    def _revokes(self, block: int, data: bytes) -> None:
        if not tail_ok(self._features, data):
            self._suspect = self._suspect or BadChecksum("revoke block checksum", self._where(block))
            return
        parse_revokes(self._features, data, self._where(block))
        self._pending.append(_Piece(self._tid, block, True))

    def _commit(self, block: int, data: bytes) -> bool:
        """A commit block was found; False when the log ends before it."""
        seconds = commit_seconds(data)
        if self._suspect is not None:
            if seconds >= self._last_commit:
                # committed after everything before it, so not a leftover: damaged
                raise self._suspect
            return False
        if self._broken is not None:
            # with async_commit: something came after it, so that it was not just the last, unfinished one
            self._replay.fail(self._broken)
            return False
        if not commit_ok(self._features, data, self._crc):
            problem = BadChecksum("commit block checksum", self._where(block))
            if seconds < self._last_commit:
                self._suspect = problem
                return False
            self._broken = problem
            self._replay.end = self._tid
            if not self._features.async_commit:
                self._replay.fail(problem)
                return False
            self._replay.problems.append(f"log ends at an unfinished transaction: {problem}")
        else:
            self._pieces += self._pending
            self._replay.transactions += 1
            self._replay.head = self._at
        self._last_commit = seconds
        self._pending = []
        self._crc = CRC32_START
        self._tid = next_tid(self._tid)
        return True


def _data_blocks(area: JournalArea, block: int, count: int) -> Iterator[tuple[int, bytes]]:
    """(log block, bytes) of ``count`` blocks of the log, read in large pieces."""
    size = area.block_size
    step = max(BATCH // size, 1)
    while count:
        part = min(count, step)
        data = area.read_around(block, part)
        for index in range(part):
            yield area.wrap(block + index), data[index * size : (index + 1) * size]
        block = area.wrap(block + part)
        count -= part


def _revoke(area: JournalArea, pieces: list[_Piece]) -> dict[int, int]:
    """The youngest transaction that revokes each block, as far as any descriptor names the block at all."""
    if not any(piece.revoke for piece in pieces):
        return {}
    named: set[int] = set()
    for piece in pieces:
        if not piece.revoke:
            named.update(tag.pblk for tag in parse_tags(area.features, area.read(piece.block)))
    revoked: dict[int, int] = {}
    for tid, block, revoke in pieces:
        if revoke:
            where = f"journal block {block}, transaction {tid}"
            for pblk in parse_revokes(area.features, area.read(block), where):
                if pblk in named:
                    revoked[pblk] = tid
    return revoked


def _replay(
    area: JournalArea, pieces: list[_Piece], revoked: dict[int, int], blocks_count: int, replay: Replay
) -> None:
    """The last pass: which copy of each block is the one to write."""
    features = area.features
    for tid, block, revoke in pieces:
        if revoke:
            continue
        tags = parse_tags(features, area.read(block))
        first = area.wrap(block + 1)
        # without checksums of single blocks there is nothing to look at yet
        data = _data_blocks(area, first, len(tags)) if features.has_tail else None
        for index, tag in enumerate(tags):
            at, raw = next(data) if data is not None else (area.wrap(first + index), b"")
            where = f"journal block {at}, transaction {tid}"
            if tag.pblk in revoked and tid_geq(revoked[tag.pblk], tid):
                replay.revoked += 1
            elif not tag_ok(features, tag, tid, raw):
                replay.fail(BadChecksum("journalled block checksum", where, f"a bad copy of block {tag.pblk}"))
            elif tag.pblk >= blocks_count:
                replay.fail(Corrupt("block number in a tag", where, tag.pblk, f"below {blocks_count}"))
            elif area.owns(tag.pblk):
                replay.fail(Corrupt("block number in a tag", where, tag.pblk, "not a block of the journal itself"))
            else:
                replay.blocks.put(tag, at)
        if data is not None:
            assert not list(islice(data, 1)), "one block for each tag"
