"""The file system as a whole, while it is mounted: trim, freeze and thaw, remount, shut down."""

from __future__ import annotations

from py4fs.device.base import discard
from py4fs.errors import Busy, CommitPending, Invalid, NotPermitted
from py4fs.ext4.trim import free_runs
from py4fs.vfs.ioctls import Ioctls
from py4fs.vfs.types import ROOT, Caller

#: EXT4_IOC_SHUTDOWN: everything in its place first; the journal first; at once
SHUTDOWN_DEFAULT, SHUTDOWN_LOGFLUSH, SHUTDOWN_NOLOGFLUSH = range(3)


class Control(Ioctls):
    """Operations on the whole volume."""

    def trim(self, start: int, length: int, minlen: int, caller: Caller = ROOT) -> int:
        """FITRIM: discard the free runs of at least ``minlen`` bytes in a range (bytes); returns the bytes discarded.

        Raises NotPermitted (only root may), Invalid, NotSupported (the device cannot), ReadOnly, Frozen, CommitPending,
        DeviceError.
        """
        _check_root(caller)
        self._check_writable()
        volume = self.volume
        volume.commit(durable=True)  # nothing that a crash could bring back may be discarded
        size = volume.geometry.block_size
        done = 0
        for first, count in free_runs(volume.geometry, volume.groups, start, length, minlen):
            discard(volume.device, first * size, count * size)
            done += count * size
        return done

    def freeze(self) -> None:
        """Until :meth:`thaw` the image is as after a clean unmount, and stays so: changes raise Frozen.

        Open files without a name are left in it as orphans. Raises Busy (is frozen), CommitPending (also: writes are
        in flight), ReadOnly (an earlier commit failed), DeviceError.
        """
        self._quiesce()
        self.volume.pauses.freeze()

    def _quiesce(self) -> None:
        """Before the image is to be clean: files with names are no orphans, whatever writes left behind their ends.

        Raises CommitPending, DeviceError.
        """
        if self.volume.refuses_changes:
            return
        if self.client.writing():
            raise CommitPending("writes are in flight: they have to end first")
        self._catch_up()
        for ino in list(self.volume.orphans):
            inode = self._inodes.get_orphan(ino)
            if inode.nlink:
                self.server.closed(inode)
            if inode.nlink and ino in self.volume.orphans:
                self._finish_shrink(inode)

    def thaw(self) -> None:
        """Changes are possible again. Raises Invalid when it is not frozen."""
        self.volume.pauses.thaw()
        self._catch_up()

    def remount(self, readonly: bool) -> None:
        """Make the volume read-only (the image is clean then), or writable again if it was opened for writing.

        Raises Busy (files are open for writing, or have no name any more), ReadOnly (nothing can make it writable),
        Frozen, CommitPending, DeviceError.
        """
        self.volume.pauses.check_alive()
        if self.volume.never_writable:
            if not readonly:
                self._check_writable()
            return
        if readonly and not self.volume.refuses_changes:
            if self._writers:
                raise Busy(f"{len(self._writers)} file(s) are open for writing")
            self._quiesce()
            if len(self.volume.orphans):
                raise Busy(f"{len(self.volume.orphans)} file(s) without a name are in use")
        self.volume.pauses.remount(readonly=readonly)

    def shutdown(self, flags: int, caller: Caller = ROOT) -> None:
        """EXT4_IOC_SHUTDOWN: every operation fails from now on (DeviceError), and nothing is written, also at the end.

        ``flags``: 0, what has changed goes to its place first; 1, to the journal, if there is one; 2, nowhere.
        Raises NotPermitted (only root may), Invalid, CommitPending (for 0 also: writes are in flight), ReadOnly,
        DeviceError; then nothing is shut.
        """
        _check_root(caller)
        if flags not in (SHUTDOWN_DEFAULT, SHUTDOWN_LOGFLUSH, SHUTDOWN_NOLOGFLUSH):
            raise Invalid(f"shutdown flags {flags:#x}")
        if self.volume.pauses.shut:
            return
        live = not self.volume.readonly
        if flags == SHUTDOWN_DEFAULT:
            self._quiesce()
        journal = self.volume.journal_area is not None
        self.volume.pauses.shutdown(
            rest=live and flags == SHUTDOWN_DEFAULT, flush=live and flags == SHUTDOWN_LOGFLUSH and journal
        )


def _check_root(caller: Caller) -> None:
    if caller.uid != 0:
        raise NotPermitted("only root may do this to the file system")
