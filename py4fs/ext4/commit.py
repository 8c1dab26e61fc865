"""Committing: the running transaction becomes block images, which a store brings to the device.

A commit has three steps, so that its waiting holds up nobody: :meth:`Committer.start` (under the lock: later changes
join the next transaction), :meth:`Commit.write` (anywhere, a thread for example) and :meth:`Committer.finish` (under
the lock again). :meth:`Committer.commit` does all three.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from py4fs.device.base import Device
from py4fs.errors import CommitPending, DeviceError, FsError, ReadOnly
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import RANK_BITMAP, RANK_NEW, BufferCache, MetaBlock
from py4fs.ext4.features import RoCompat
from py4fs.ext4.groups import Bitmap, GroupDesc, Groups
from py4fs.ext4.inode import Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.store import BlockImage, Store
from py4fs.ext4.superblock import Superblock, SuperblockWriter
from py4fs.ext4.transaction import Transaction, Transactions

log = logging.getLogger(__name__)

#: a file beyond this many bytes needs the large_file feature, which is turned on then, as by the kernel
LARGE_FILE_SIZE: Final = 0x7FFFFFFF


class Commit:
    """A transaction on its way to the device."""

    def __init__(self, transaction: Transaction | None, device: Device, store: Store, durable: bool) -> None:
        self.transaction = transaction
        self._device = device
        self._store = store
        self._durable = durable
        self.error: FsError | None = None

    def write(self) -> None:
        """The device I/O; needs no lock. What fails is kept for :meth:`Committer.finish`."""
        try:
            if self.transaction is not None:
                self._store.write(self._durable)
            elif self._durable:
                self._device.flush()
        except FsError as exc:
            self.error = exc


class Committer:
    """Commits of one volume, one at a time."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        writer: SuperblockWriter,
        transactions: Transactions,
        buffers: BufferCache,
        inodes: InodeTable,
        groups: Groups,
        alloc: Allocator,
        store: Store,
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._writer = writer
        self._transactions = transactions
        self._buffers = buffers
        self._inodes = inodes
        self._groups = groups
        self._alloc = alloc
        self._in_use = False
        self.use(store)
        transactions.make_room = self.commit
        #: why nothing can be written any more
        self.failed: FsError | None = None
        self._unflushed = False
        self._stopped = False
        self._current: Commit | None = None
        #: asked before each commit; raises when nothing may be written any more
        self.guard: Callable[[], None] | None = None

    def use(self, store: Store) -> None:
        """Take a store; before anything was written."""
        assert not self._in_use, "the volume is in use"
        self._store = store
        self._buffers.latest = store.latest
        # the superblock goes along with every commit
        self._transactions.limit = store.max_blocks - 1

    @property
    def busy(self) -> bool:
        """Whether a commit has been started and not finished."""
        return self._current is not None

    @property
    def frees(self) -> bool:
        """Whether a commit is under way after which blocks can be used again."""
        current = self._current
        return current is not None and current.transaction is not None and bool(current.transaction.freed)

    @property
    def in_use(self) -> bool:
        """Whether anything was written since the volume was opened."""
        return self._in_use

    def mark_in_use(self) -> None:
        """Before anything else is written. Raises DeviceError."""
        if not self._in_use:
            self._writer.preload()
            self._in_use = True
            try:
                self._store.mark_in_use()
            except FsError as exc:
                self.failed = exc
                raise

    def note_data_written(self) -> None:
        """File data went to the device: a later durable commit has to flush even if no metadata changed."""
        self._unflushed = True

    def fail(self, exc: FsError) -> None:
        """A failed write or flush is never retried as if it had worked."""
        if self.failed is None:
            self.failed = exc
            log.error("%s: commit failed, now read-only: %s", self._device.name, exc)

    def start(self, *, durable: bool) -> Commit | None:
        """Begin a commit of everything so far; None when there is nothing to do.

        Raises ReadOnly after a failure, CommitPending when the one before is not finished, DeviceError. Where only a
        read failed nothing is lost: the transaction goes on, and the next commit tries again.
        """
        transaction = self._transactions.running
        if self._stopped and (durable or not transaction.empty):
            raise DeviceError("the file system was shut down")
        if self.failed is not None and (durable or not transaction.empty):
            # what an earlier commit could not write is lost: no later one may say that everything is fine
            raise ReadOnly(f"file system went read-only after an error: {self.failed}")
        if self._current is not None and (durable or not transaction.empty):
            # also when nothing has changed since: what is on its way is not durable yet
            raise CommitPending("a commit is under way")
        if transaction.empty and not (durable and self._unflushed):
            return None
        if self.guard is not None:
            self.guard()
        if transaction.empty:
            self._current = Commit(None, self._device, self._store, durable)
        else:
            self._preload(transaction)
            self._transactions.detach()
            try:
                self._store.stage(self._encode(transaction), transaction.forgotten)
            except FsError as exc:
                self.fail(exc)
                raise
            self._current = Commit(transaction, self._device, self._store, durable)
        self._unflushed = not durable
        return self._current

    def finish(self, commit: Commit) -> None:
        """End a commit that has been written. Raises the DeviceError that its write met."""
        assert commit is self._current, "commits are finished in order"
        self._current = None
        if commit.error is not None:
            self.fail(commit.error)
            raise commit.error
        if commit.transaction is not None:
            self._store.finish()
            self._alloc.release_freed(commit.transaction)

    def commit(self, *, durable: bool = False) -> None:
        """Bring all changes to the device; with ``durable`` wait until they would survive a power cut.

        Raises DeviceError, after which the volume is read-only, ReadOnly if it is for such a reason already,
        CommitPending.
        """
        commit = self.start(durable=durable)
        if commit is not None:
            commit.write()
            self.finish(commit)

    def close(self) -> None:
        """Commit and mark the file system clean, unless it was stopped. Raises what stands in the way of that."""
        if not self._stopped:
            self.rest()

    def rest(self) -> None:
        """Commit and mark the file system clean; the next change marks it as in use again.

        Raises what stands in the way of that.
        """
        if self.failed is not None:
            raise self.failed
        if self._in_use:
            self.commit(durable=True)
            try:
                self._store.mark_clean()
            except FsError as exc:
                self.fail(exc)
                raise
            self._in_use = False

    def stop(self) -> None:
        """Write nothing any more; what was not committed is dropped."""
        self._stopped = True
        self._transactions.detach()

    def _preload(self, transaction: Transaction) -> None:
        """Have in memory what encoding changes a part of; it may have left the cache. Raises DeviceError."""
        self._writer.preload()
        for obj in transaction.dirty:
            if isinstance(obj, Inode):
                self._inodes.preload(obj.ino)
            elif isinstance(obj, (Bitmap, GroupDesc)):
                self._groups.preload(obj.group)

    def _encode(self, transaction: Transaction) -> list[BlockImage]:
        """The blocks of all dirty objects: inodes into table blocks, bitmaps into descriptors, those into theirs.

        One per object at most, and the superblock's.
        """
        blocks: dict[int, MetaBlock] = {}
        images: list[BlockImage] = []
        descs: dict[int, GroupDesc] = {}
        for obj in transaction.dirty:
            if isinstance(obj, Inode):
                if obj.size > LARGE_FILE_SIZE:
                    self._superblock.feature_ro_compat |= int(RoCompat.LARGE_FILE)
                    self._superblock.make_dynamic()
                table = self._inodes.store(obj)
                blocks[table.pblk] = table
            elif isinstance(obj, Bitmap):
                images.append(BlockImage(RANK_BITMAP, obj.pblk, self._groups.store_bitmap(obj)))
                descs[obj.group] = self._groups.desc(obj.group)
            elif isinstance(obj, GroupDesc):
                descs[obj.group] = obj
            elif isinstance(obj, MetaBlock):
                blocks[obj.pblk] = obj
        for desc in descs.values():
            gdt = self._groups.store_desc(desc)
            blocks[gdt.pblk] = gdt
        for block in blocks.values():
            rank = RANK_NEW if block.created == transaction.tid else block.rank
            images.append(BlockImage(rank, block.pblk, bytes(block.encode())))
        images.append(self._writer.image())
        return images
