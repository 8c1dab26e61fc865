"""The running transaction and the operations that join it: the one funnel for dirty metadata.

Every change of metadata happens inside an :class:`Operation`, in memory only::

    with transactions.operation(credits=8) as tx:
        tx.touch(inode)
        inode.nlink += 1

``touch`` comes *before* the first mutation of an object: it keeps an undo copy, so an operation that
raises leaves memory exactly as it found it, and it puts the object on the running transaction's dirty list.
Nothing is encoded before the transaction commits (late serialisation).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Any, Final

from py4fs.errors import FsError, NoSpace


class Reserve(IntEnum):
    """How far an operation may dip into the free blocks (kernel: ext4_has_free_clusters)."""

    #: neither root's reserve nor the one for conversions
    NONE = 0
    #: the blocks that s_r_blocks_count keeps for root
    ROOT = 1
    #: whatever is there: work that must not fail, such as converting extents after the data is written
    ALL = 2


class Undoable:
    """An object of metadata that can be put back to an earlier state; hashed by identity."""

    # no protocol: what every change calls by the dozen is quicker found in a class
    __slots__ = ()

    @abstractmethod
    def save(self) -> Any:
        """A copy of all mutable state; opaque to the transaction."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Put back what :meth:`save` returned and drop whatever was derived from the newer state."""


class Transaction:
    """What has changed since the last commit."""

    __slots__ = ("dirty", "forgotten", "freed", "tid")

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.dirty: dict[Undoable, None] = {}
        #: block runs (first block, count) that this transaction frees; they may be reused only after it commits
        self.freed: list[tuple[int, int]] = []
        #: metadata blocks that it frees (what the journal has to revoke)
        self.forgotten: list[int] = []

    @property
    def empty(self) -> bool:
        return not self.dirty and not self.freed


class Operation:
    """One bounded change of the file system, all or nothing in memory. Called ``tx`` where it is passed."""

    __slots__ = ("_joined", "_owner", "_undo", "before", "credits", "now", "reserve", "transaction", "values")

    def __init__(self, owner: Transactions, credits: int, now: int, reserve: Reserve) -> None:
        self._owner = owner
        self.credits = credits
        #: nanoseconds since the epoch; one clock reading for the whole operation
        self.now = now
        #: which reserves of free blocks the operation may use
        self.reserve = reserve
        self.transaction = owner.running
        #: what was touched, with its state before
        self.before: dict[Undoable, Any] = {}
        #: how many more attributes' values in inodes (ea_inode) an object refers to than before
        self.values: dict[Undoable, int] = {}
        self._joined: list[Undoable] = []
        #: what to restore, to what: objects, and steps of other kinds
        self._undo: list[tuple[Undoable, Any]] = []

    def touch(self, obj: Undoable) -> None:
        """Announce that ``obj`` is about to change. Raises NoSpace when a transaction cannot hold so much."""
        if obj in self.before:
            return
        dirty = self.transaction.dirty
        if obj not in dirty:
            if len(dirty) >= self._owner.limit:
                raise NoSpace(f"the journal has no room for more than {self._owner.limit} changed blocks at a time")
            dirty[obj] = None
            self._joined.append(obj)
        state = self.before[obj] = obj.save()
        self._undo.append((obj, state))

    def on_abort(self, step: Callable[[], None]) -> None:
        """Run ``step`` if the operation fails, in reverse order of all undo steps."""
        self._undo.append((_CALL, step))

    def forget(self, obj: Undoable) -> None:
        """``obj`` is gone (its block was freed): nothing of it needs to be written."""
        dirty = self.transaction.dirty
        if obj in dirty:
            del dirty[obj]
            self.on_abort(lambda: dirty.__setitem__(obj, None))

    def free_run(self, first: int, count: int) -> None:
        """Note a freed run of blocks; it becomes allocatable when the transaction has committed."""
        freed = self.transaction.freed
        freed.append((first, count))
        self._undo.append((_POP, freed))

    def revoke(self, pblk: int) -> None:
        """Note a freed metadata block, which must not be replayed from an older transaction."""
        forgotten = self.transaction.forgotten
        forgotten.append(pblk)
        self._undo.append((_POP, forgotten))

    @property
    def touched_count(self) -> int:
        return len(self.before)

    def __enter__(self) -> Operation:
        if self._owner.current is not None:
            raise AssertionError("operations do not nest")
        self._owner.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None and self._owner.settle is not None:
            try:
                self._owner.settle(self)
            except BaseException:
                self._undo_all()
                raise
        self._owner.current = None
        if kind is None:
            if self._owner.strict and self.touched_count > self.credits:
                raise AssertionError(f"operation touched {self.touched_count} objects, reserved {self.credits}")
            return
        self._undo_all()

    def _undo_all(self) -> None:
        self._owner.current = None
        for what, state in self._undo[::-1]:
            what.restore(state)
        dirty = self.transaction.dirty
        for obj in self._joined:
            dirty.pop(obj, None)


def _nothing() -> None:
    """There is nothing to give back."""


class _Step(Undoable):
    """What is undone otherwise than by putting an object's state back."""

    __slots__ = ()

    def save(self) -> Any:
        return None


class _Call(_Step):
    __slots__ = ()

    def restore(self, state: Callable[[], None]) -> None:
        state()


class _Pop(_Step):
    __slots__ = ()

    def restore(self, state: list[Any]) -> None:
        state.pop()


_CALL: Final = _Call()
_POP: Final = _Pop()


class Transactions:
    """Hands out operations and swaps the running transaction at commit."""

    def __init__(self, clock: Callable[[], int], *, strict: bool = False) -> None:
        self.clock = clock
        #: tests set this: an operation that touches more objects than it reserved is a programming error
        self.strict = strict
        self.running = Transaction(1)
        self.current: Operation | None = None
        #: asked before every operation; what it returns is raised (read-only, failed, closed)
        self.refuse: Callable[[], FsError | None] | None = None
        #: does what every operation ends with; when it raises the operation is undone
        self.settle: Callable[[Operation], None] | None = None
        #: metadata objects that it touches at most
        self.settle_credits = 0
        #: metadata objects that one transaction may change
        self.limit = 1 << 30
        #: commits the running transaction, which has not enough room left for the next operation
        self.make_room: Callable[[], None] | None = None
        #: gives memory back; called by what needs many operations, between two of them
        self.breathe: Callable[[], None] = _nothing

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation:
        """Start an operation that touches at most ``credits`` metadata objects, all of them in one transaction.

        Raises what ``refuse`` says, and what a commit raises that has to make room first.
        """
        refusal = self.refuse() if self.refuse is not None else None
        if refusal is not None:
            raise refusal
        dirty = self.running.dirty
        credits += self.settle_credits
        if dirty and len(dirty) + credits > self.limit and self.make_room is not None:
            self.make_room()
        return Operation(self, credits, self.clock(), reserve)

    def detach(self) -> Transaction:
        """The running transaction, to be committed; later operations join the next one."""
        if self.current is not None:
            raise AssertionError("commit inside an operation")
        transaction = self.running
        self.running = Transaction(transaction.tid + 1)
        return transaction

    def is_dirty(self, obj: Undoable) -> bool:
        return obj in self.running.dirty
