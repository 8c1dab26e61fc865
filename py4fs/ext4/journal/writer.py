"""Writing the journal: a transaction is in the log, durable, before any block of it goes to its place.

Commit: descriptors, data, revokes -> flush -> commit block -> flush. File data that the transaction shows went to the
device before, so the first flush makes it durable too (data=ordered). Committed blocks wait in memory (``latest``) and
are written in place at a checkpoint: when the log or the memory for them runs out, and at the end.

Freed metadata blocks are dropped from what waits for the checkpoint, and those that the log holds are revoked in the
transaction that frees them: they may hold file data as soon as that transaction has committed. A journal that cannot
tell of revokes (version 1) is emptied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from py4fs.device.base import Device
from py4fs.errors import Corrupt
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.format import (
    build_commit,
    build_descriptors,
    build_revokes,
    log_length,
    next_tid,
    transaction_crc,
)
from py4fs.ext4.store import BlockImage, write_in_place

#: bytes of committed blocks that wait in memory before a checkpoint is made although the log has room
CHECKPOINT_BYTES: Final = 32 << 20


class JournalStore:
    """Transactions go to the log first. The superblock has needs_recovery set meanwhile (``mark``)."""

    def __init__(
        self,
        device: Device,
        area: JournalArea,
        mark: Callable[[bool], None],
        now: Callable[[], int],
        *,
        barrier: bool = True,
    ) -> None:
        """``area`` is an empty log; ``mark(in_use)`` writes the superblock; ``now`` gives ns since the epoch."""
        self._device = device
        self._area = area
        self._features = area.features
        self._mark = mark
        self._now = now
        self._barrier = barrier
        self._tid: int = area.sequence
        self._head: int = area.first
        #: log blocks between tail and head
        self._used = 0
        self._staged: dict[int, BlockImage] = {}
        #: metadata blocks that the staged transaction frees
        self._freed: list[int] = []
        #: committed, not in its place yet: of what the log holds, what counts
        self._waiting: dict[int, BlockImage] = {}
        #: counters for reports: transactions, log blocks written, checkpoints
        self.transactions = self.log_blocks = self.checkpoints = 0
        self.max_blocks = self._largest_transaction()

    def _largest_transaction(self) -> int:
        """Blocks that fit the log when it is empty; then there is nothing to revoke."""
        room = self._area.length - 1
        blocks = room
        while log_length(self._features, blocks, 0) > room:
            blocks -= 1
        return blocks

    def mark_in_use(self) -> None:
        """Whoever finds the image after a crash has to look at the log, which begins here.

        In this order: a log that has begun in a file system without needs_recovery is damage to e2fsck, and nothing
        to the kernel.
        """
        self._mark(True)
        self._flush()
        self._area.store_superblock(sequence=self._tid, start=self._head)
        self._flush_log()

    def _flush(self) -> None:
        if self._barrier:
            self._device.flush()

    def _flush_log(self) -> None:
        if self._barrier:
            self._area.flush()

    def stage(self, images: Sequence[BlockImage], revoked: Sequence[int]) -> None:
        self._staged = {image.pblk: image for image in images}
        # a block that was freed and is in use again as metadata in the same transaction must not be revoked
        self._freed = [pblk for pblk in revoked if pblk not in self._staged]

    def write(self, durable: bool) -> None:
        """Commit to the log; without a barrier between them two commits could be replayed out of order."""
        features, tid = self._features, self._tid
        revokes = self._make_room()
        log = build_descriptors(features, tid, [(image.pblk, image.data) for image in self._staged.values()])
        crc = transaction_crc(log) if features.csum == 1 else 0
        log += build_revokes(features, tid, revokes)
        # The commit block's place is blank before: its checksum covers all of it, and so only its first sector decides
        # whether it has arrived. A commit block in pieces would be reported as damage.
        blank = [bytes(self._area.block_size)] if features.has_tail else []
        self._area.write_around(self._head, log + blank)
        if self._area.external:
            self._flush()  # the file data, which is on the other device
        self._flush_log()
        commit = build_commit(features, tid, self._now(), crc)
        self._area.write_around(self._area.wrap(self._head + len(log)), [commit])
        self._flush_log()
        used = len(log) + 1
        self._head = self._area.wrap(self._head + used)
        self._used += used
        self._tid = next_tid(tid)
        self.transactions += 1
        self.log_blocks += used

    def _make_room(self) -> list[int]:
        """Empty the log if the staged transaction does not fit it as it is; returns the blocks to revoke.

        Raises Corrupt when it does not fit an empty log either, DeviceError.
        """
        room = self._area.length - 1
        revokes = [pblk for pblk in dict.fromkeys(self._freed) if pblk in self._waiting]
        need = log_length(self._features, len(self._staged), len(revokes))
        waiting = len(self._waiting) * self._area.block_size
        if self._used + need > room or waiting > CHECKPOINT_BYTES or (revokes and not self._features.revoke):
            self._checkpoint()
            revokes = []
            need = log_length(self._features, len(self._staged), 0)
        if need > room:
            raise Corrupt("transaction", f"journal of {room} blocks", f"{need} blocks")
        return revokes

    def finish(self) -> None:
        self._waiting.update(self._staged)
        for pblk in self._freed:
            self._waiting.pop(pblk, None)
        self._staged = {}
        self._freed = []

    def latest(self, pblk: int) -> bytes | None:
        image = self._staged.get(pblk) or self._waiting.get(pblk)
        return None if image is None else image.data

    def _write_waiting(self) -> None:
        """Everything committed goes to its place, durably; the log still has it."""
        if self._waiting:
            # one rank: the log has it all, so the order does not matter and neighbours go together
            images = [BlockImage(0, image.pblk, image.data) for image in self._waiting.values()]
            write_in_place(self._device, self._area.block_size, images)
            self._flush()
            self.checkpoints += 1

    def _checkpoint(self) -> None:
        """Everything committed goes to its place; then, and only then, the log may be used again from here on."""
        self._write_waiting()
        self._area.store_superblock(sequence=self._tid, start=self._head)
        self._flush_log()
        self._waiting = {}
        self._used = 0

    def mark_clean(self) -> None:
        """Everything in its place, the log empty, needs_recovery off."""
        self._write_waiting()
        self._area.store_superblock(sequence=self._tid, start=0, head=self._head)
        self._flush_log()
        self._waiting = {}
        self._used = 0
        self._mark(False)
        self._flush()
