"""Times at which a volume that could be written is not to be: frozen, shut down, read-only for a while."""

from __future__ import annotations

from py4fs.errors import Busy, DeviceError, Frozen, FsError, Invalid, ReadOnly
from py4fs.ext4.commit import Committer


class Pauses:
    """Of one volume. Changes ask :meth:`refusal` before they begin."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self.frozen = False
        #: for good: nothing is read or written any more
        self.shut = False
        #: made read-only, and maybe writable again, although the volume is not
        self.readonly = False

    def check_alive(self) -> None:
        """Raises DeviceError once the volume is shut down."""
        if self.shut:
            raise DeviceError("the file system was shut down")

    def refusal(self) -> FsError | None:
        """Why nothing can be changed now."""
        if self.shut:
            return DeviceError("the file system was shut down")
        if self.frozen:
            return Frozen("the file system is frozen: changes have to wait until it is thawed")
        if self.readonly:
            return ReadOnly("file system is read-only: remounted so")
        return None

    def freeze(self) -> None:
        """Everything in its place and the superblock as after a clean end, until :meth:`thaw` (kernel: ext4_freeze).

        Raises Busy (is frozen), CommitPending, ReadOnly (an earlier commit failed), DeviceError.
        """
        self.check_alive()
        if self.frozen:
            raise Busy("the file system is frozen already")
        self._committer.rest()
        self.frozen = True

    def thaw(self) -> None:
        """Changes are possible again. Raises Invalid when it is not frozen."""
        if not self.frozen:
            raise Invalid("the file system is not frozen")
        self.frozen = False

    def remount(self, *, readonly: bool) -> None:
        """Everything in its place and no changes from now on, or as before again.

        Raises Frozen, CommitPending, ReadOnly (an earlier commit failed), DeviceError.
        """
        self.check_alive()
        if self.frozen:
            raise Frozen("the file system is frozen")
        if readonly and not self.readonly:
            self._committer.rest()
        self.readonly = readonly

    def shutdown(self, *, flush: bool, rest: bool) -> None:
        """Stop for good. Before that, bring changes to the journal (``flush``), or all in its place (``rest``).

        Otherwise what the device has now stays, a journal to be replayed included. Raises CommitPending, ReadOnly (an
        earlier commit failed), DeviceError; then nothing is shut.
        """
        if rest and not self.frozen:
            self._committer.rest()
        elif flush and not self.frozen:
            self._committer.commit(durable=True)
        self.shut = True
        self._committer.stop()
