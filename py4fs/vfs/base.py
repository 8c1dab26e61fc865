"""What all operations share: inodes at hand, changes in operations, lifetime, the volume as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeVar

from py4fs.errors import BadHandle, CommitPending, Frozen, FsError, Invalid, NoSpace, ReadOnly
from py4fs.ext4.commit import Commit
from py4fs.ext4.features import Incompat
from py4fs.ext4.inode import NS, Inode
from py4fs.ext4.layout.inode import EXT4_DIRSYNC_FL, EXT4_NOATIME_FL, EXT4_SYNC_FL
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.ext4.volume import StatFs, Volume
from py4fs.iomap.backing import SIZE_CREDITS
from py4fs.iomap.client import IomapClient, IomapFile
from py4fs.iomap.server import server_of
from py4fs.vfs.lookups import LookupCounts
from py4fs.vfs.types import ROOT_INO, Attr, Caller, OpenDir, OpenFile

T = TypeVar("T")
log = logging.getLogger(__name__)

DAY: Final = 86400 * NS
#: metadata objects that a change of one inode and its attributes touches at most
ATTR_CREDITS: Final = 16
#: bytes that an ACL takes at most
ACL_SIZE: Final = 65536
#: deleted inodes that wait to be freed at most
MOST_LATER: Final = 4096
#: of them, those that are freed before somebody else gets a turn
AT_A_TIME: Final = 128
#: times that who needs space waits for the kernel to forget a deleted file
PATIENCE: Final = 20


class Base:
    """State of a vfs; the other modules of this folder add the operations."""

    def __init__(self, volume: Volume, *, atime: str = "relatime", dirsync: bool = False) -> None:
        if atime not in ("relatime", "strictatime", "noatime"):
            raise Invalid(f"atime mode {atime!r}: expected relatime, strictatime or noatime")
        self.volume = volume
        self.server = server_of(volume)
        self.client = IomapClient(volume, self.server, budget=volume.limits.mappings)
        #: set by a session whose kernel keeps size and times of regular files (writeback cache)
        self.kernel_owns_times = False
        #: set by a session whose kernel reads and writes regular files on the device by itself (iomap): nothing here
        #: may touch their bytes, not even to zero some
        self.kernel_owns_data = False
        #: told the inode whose mode, or capability, went because its contents or owner changed
        self.privileges_dropped: Callable[[int], None] = lambda ino: None
        self._atime = "noatime" if volume.readonly else atime
        self._dirsync = dirsync
        #: set by a session that waits for durability itself, outside the vfs, whenever a call leaves `sync_due` behind
        self.defers_sync = False
        self.sync_due = False
        #: set by a session that commits from time to time: deleted inodes may wait for that to be freed
        self.frees_later = False
        #: whether one name can have several spellings, so that an adapter must not remember any
        self.names_fold = bool(volume.features.incompat & Incompat.CASEFOLD)
        self._namespace = volume.namespace
        self._inodes = volume.inodes
        record, options = volume.superblock.record, volume.options
        self._resuid: int = record.s_def_resuid if options.resuid is None else options.resuid
        self._resgid: int = record.s_def_resgid if options.resgid is None else options.resgid
        #: lookup counts of the kernel
        self._refs = LookupCounts()
        #: open handles per inode
        self._opens: dict[int, int] = {}
        volume.inodes.holders.append(self._opens)
        #: handles open for writing per inode
        self._writers: dict[int, int] = {}
        self._files: dict[int, OpenFile] = {}
        self._dirs: dict[int, OpenDir] = {}
        self._next_fh = 1
        #: files made without a name that may still get one
        self._linkable: set[int] = set()
        #: inodes to be let go when a commit that is under way has made room for that, or the volume is thawed, or
        #: nobody waits for it; the eldest first
        self._later: dict[int, None] = {}
        #: deleted inodes that only the kernel holds -> how often space was waited for
        self._waited_for: dict[int, int] = {}
        volume.inodes.holders.append(self._later)

    def _attr(self, inode: Inode) -> Attr:
        return Attr(
            inode.ino,
            inode.generation,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            self._namespace.shown_size(inode),
            inode.sectors,
            self.volume.geometry.block_size,
            inode.atime,
            inode.mtime,
            inode.ctime,
            inode.crtime,
            inode.flags,
        )

    def _get(self, ino: int) -> Inode:
        """An inode that may be open although its last name is gone."""
        if ino in self.volume.orphans:
            return self._inodes.get_orphan(ino)
        return self._inodes.get(ino)

    def _first(self, ino: int) -> Inode:
        """As :meth:`_get`, at the start of a request, when nobody holds an object of the caches."""
        self.volume.pauses.check_alive()
        self.volume.trim()
        return self._get(ino)

    def _reserve(self, caller: Caller) -> Reserve:
        root = caller.uid in (0, self._resuid) or (self._resgid != 0 and caller.gid == self._resgid)
        return Reserve.ROOT if root else Reserve.NONE

    def _change(self, step: Callable[[Operation], T], credits: int, reserve: Reserve) -> T:
        """Run ``step`` in an operation; when blocks freed before only await a commit to be had, commit and retry."""
        volume = self.volume
        try:
            with volume.operation(credits, reserve) as tx:
                result = step(tx)
        except NoSpace:
            if not self._freed_for_use():
                raise
            with volume.operation(credits, reserve) as tx:
                result = step(tx)
        self._evict_values()
        return result

    def _xattr_credits(self, inode: Inode, size: int) -> int:
        """Metadata objects that setting an attribute to a value of ``size`` bytes touches at most."""
        return ATTR_CREDITS + self.volume.xattrs.credits(inode, size, self.volume.geometry.groups)

    def _evict_values(self) -> None:
        """Free what large values of attributes were kept in, when nothing refers to it any more."""
        values = self.volume.ea_inodes
        while values is not None and values.dropped:
            self._evict_if_unused(self._inodes.get_orphan(values.dropped.pop()))

    def _freed_for_use(self) -> bool:
        """After NoSpace: whether there is more now, of what was deleted before or only awaited a commit.

        Raises CommitPending (a commit under way frees some, I/O under way still covers some, or the kernel is about to
        forget who has them), DeviceError.
        """
        deleted = bool(self._later)
        self._catch_up()
        if self._forget_is_due():
            raise CommitPending("deleted files have the blocks that are needed, and only the kernel knows them still")
        committer = self.volume.committer
        if committer.frees:
            raise CommitPending("a commit under way gives back blocks that are needed")
        freed = bool(self.volume.transactions.running.freed)
        if freed:
            self.volume.commit()
        if self.volume.alloc.in_limbo:
            raise CommitPending("I/O under way covers freed blocks that are needed")
        return freed or deleted

    def _forget_is_due(self) -> bool:
        """Whether the kernel may be about to let go of a deleted file (it sends up to 8 requests before a FORGET).

        For each file only so often: somebody may hold it without having it open (O_PATH).
        """
        if not self.frees_later:
            return False
        for ino in self.volume.orphans:
            if ino in self._refs and ino not in self._opens and self._waited_for.get(ino, 0) < PATIENCE:
                self._waited_for[ino] = self._waited_for.get(ino, 0) + 1
                return True
        return False

    def _settle(self, *inodes: Inode) -> None:
        """After a change of these: durable before the call returns, where dirsync or their flags ask for that.

        Kernel: IS_SYNC, IS_DIRSYNC. Raises DeviceError, CommitPending.
        """
        for inode in inodes:
            names = inode.is_dir and (self._dirsync or inode.flags & EXT4_DIRSYNC_FL)
            if names or inode.flags & EXT4_SYNC_FL:
                if self.defers_sync:
                    self.sync_due = True
                else:
                    self.volume.commit(durable=True)
                return

    def _check_writable(self) -> None:
        refusal = self.volume.pauses.refusal()
        if refusal is not None:
            raise refusal
        if self.volume.readonly:
            raise ReadOnly(f"file system is read-only: {self.volume.readonly_reason or 'after an error'}")

    def _held(self, ino: int) -> bool:
        return ino in self._refs or ino in self._opens

    def _evict_if_unused(self, inode: Inode) -> None:
        """Free an inode that nobody can reach any more.

        What fails here fails nobody's request: the name is gone already. The inode stays on the orphan list, and is
        tried again at the end, or freed when the image is opened the next time.
        """
        if inode.nlink or self._held(inode.ino) or self.volume.readonly:
            return
        self.client.forget(inode.ino)
        self._linkable.discard(inode.ino)
        try:
            self.volume.reclaim.evict(inode)
        except (CommitPending, Frozen):
            self._later[inode.ino] = None
        except FsError as exc:
            log.error("inode %d could not be freed and stays on the orphan list: %s", inode.ino, exc)
        self._evict_values()

    def ref(self, ino: int, count: int = 1) -> None:
        """The kernel has learned of an inode ``count`` times more."""
        self._refs.add(ino, count)

    def known(self, ino: int) -> bool:
        """Whether the kernel may name this inode: it is the root, or there are references that it did not drop."""
        return ino in self._refs or ino == ROOT_INO

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """The kernel has dropped (inode, count) references. An inode without names, holders and references is freed."""
        for ino, count in forgotten:
            if not self._refs.drop(ino, count):
                continue
            if self._waited_for:
                self._waited_for.pop(ino, None)
            if ino in self.volume.orphans and ino not in self._opens:
                if self.frees_later and not self.volume.options.discard:  # who discards waits for that
                    self._evict_later(ino)
                else:
                    self._evict_if_unused(self._inodes.get_orphan(ino))

    def _evict_later(self, ino: int) -> None:
        """Free an inode when somebody asks for free space, or the next commit that nobody waits for begins.

        That is half of the work of deleting a file, and whoever deletes many need not wait for it. The inode is an
        orphan all the while.
        """
        self._later[ino] = None
        if len(self._later) > MOST_LATER:
            self._catch_up(2)

    def _file(self, inode: Inode) -> IomapFile:
        return self.client.file(inode)

    def _commit_size(self, inode: Inode) -> None:
        """The size that a kernel with iomap has in core is true now that its data is down (IOMAP.md 9.1)."""
        if self.server.size(inode) > inode.size:
            with self.volume.operation(SIZE_CREDITS) as tx:
                self.server.commit_size(tx, inode)

    def _zero(self, file: IomapFile, pos: int, count: int) -> None:
        """Make bytes read as zeros that are on the device, unless the kernel sees to that (IOMAP.md 6.6)."""
        if not self.kernel_owns_data:
            self.client.zero_range(file, pos, count)

    def _new_handle(self, ino: int) -> int:
        fh = self._next_fh
        self._next_fh += 1
        self._opens[ino] = self._opens.get(ino, 0) + 1
        return fh

    def _close(self, inode: Inode) -> None:
        left = self._opens[inode.ino] - 1
        if left:
            self._opens[inode.ino] = left
            return
        del self._opens[inode.ino]
        if self.volume.pauses.frozen:
            self._later[inode.ino] = None
        elif not self.volume.pauses.shut:
            self.client.closed(inode)
            self._evict_if_unused(inode)

    @property
    def counts_every_read(self) -> bool:
        """Whether each read has to be seen here, since it changes the access time (strictatime)."""
        return self._atime == "strictatime"

    def _touch_atime(self, inode: Inode) -> None:
        """relatime: only when the old one is not newer than the last change, or is a day old."""
        if self._atime == "noatime" or inode.flags & EXT4_NOATIME_FL or self.volume.refuses_changes:
            return
        now = self.volume.now()
        if self._atime == "relatime" and inode.atime > max(inode.mtime, inode.ctime) and now - inode.atime < DAY:
            return
        if inode.atime != now:
            with self.volume.operation(1) as tx:
                tx.touch(inode)
                inode.atime = now

    def statfs(self) -> StatFs:
        """statvfs(3) of the volume."""
        self.volume.pauses.check_alive()
        if not self.volume.refuses_changes:
            self._catch_up()
        return self.volume.statfs()

    def shrink(self, part: float) -> None:
        """Memory is scarce: keep ``part`` (0 to 1) of what is cached and can be read again. Between requests."""
        self.client.shrink(part)
        self.volume.shrink(part)

    def report(self) -> list[str]:
        """How things are, in lines for a log: what is open, what the mapping caches hold and how they do."""
        files, records, most = self.client.usage()
        return [
            f"open: {len(self._files)} file handles, {len(self._dirs)} directory handles, "
            f"{len(self._refs)} inodes known to the kernel",
            f"iomap: {self.client.counters()}",
            f"iomap cache: {records} of {most} records, {files} files",
        ]

    def commit(self) -> None:
        """Bring changes to the device; the periodic task calls this. Raises DeviceError."""
        self.volume.commit()

    def start_commit(self, *, durable: bool) -> Commit | None:
        """The first step of a commit whose I/O (``Commit.write``) is done elsewhere; None: nothing to do.

        Until :meth:`finish_commit`, what needs a commit itself raises CommitPending. Raises ReadOnly, DeviceError.
        """
        if not durable and not self.volume.refuses_changes:
            self._catch_up()
        return self.volume.committer.start(durable=durable)

    def finish_commit(self, commit: Commit) -> None:
        """The last step. Raises the DeviceError that the I/O met."""
        self.volume.committer.finish(commit)
        if not self.frees_later and not self.volume.pauses.frozen:
            self._catch_up()

    def free_some(self) -> bool:
        """Free some of the deleted inodes that wait for that; whether it is worth coming back for others."""
        before = len(self._later)
        if before and not self.volume.refuses_changes:
            self._catch_up(AT_A_TIME)
        return 0 < len(self._later) < before

    def _catch_up(self, most: int | None = None) -> None:
        """Let go of what was not let go of before, ``most`` of it (None: all)."""
        for ino in list(islice(self._later, most)):
            del self._later[ino]
            inode = self._inodes.peek(ino)
            if inode is not None and ino not in self._opens:
                if inode.nlink:
                    self.client.closed(inode)
                self._evict_if_unused(inode)

    @property
    def mmp_interval(self) -> int | None:
        """Seconds between calls of :meth:`mmp_refresh`; None where none is needed."""
        mmp = self.volume.mmp
        return None if mmp is None else mmp.interval

    def mmp_refresh(self) -> None:
        """Show other hosts that the image is in use; may be called in another thread than everything else.

        Raises Busy when another host has taken it over, DeviceError, Corrupt; then nothing is written any more.
        """
        self.volume.mmp_refresh()

    def note_error(self, exc: FsError) -> None:
        """An adapter passes a failure on: damage is recorded, and may turn the volume read-only."""
        self.volume.note_error(exc)

    def check_open(self, fh: int) -> None:
        """Raises BadHandle unless ``fh`` is a handle of a file or directory."""
        if fh not in self._files and fh not in self._dirs:
            raise BadHandle(f"handle {fh} is not open")

    def sync(self) -> None:
        """Return when everything is durable. Raises DeviceError."""
        self.volume.commit(durable=True)

    def close(self) -> None:
        """Everything on the device, unlinked files freed, the volume clean. Raises DeviceError.

        A volume that was shut down is left as it is.
        """
        if self.volume.pauses.frozen and not self.volume.pauses.shut:
            self.volume.pauses.thaw()
        still_open = {handle.inode.ino: handle.inode for handle in self._files.values()}
        self._files.clear()
        self._dirs.clear()
        self._opens.clear()
        self._writers.clear()
        self._refs.clear()
        try:
            if not self.volume.pauses.shut:
                self._catch_up()
                for inode in still_open.values():
                    self._commit_size(inode)
                    self.client.closed(inode)
            for ino in list(self.volume.orphans):
                inode = self._inodes.get_orphan(ino)
                self._evict_if_unused(inode)
                if inode.nlink and not self.volume.readonly:
                    self._finish_shrink(inode)
        finally:
            self.volume.close()

    def _finish_shrink(self, inode: Inode) -> None:
        """A truncation that failed half-way; what fails again is left to the next one who opens the image."""
        try:
            self.volume.reclaim.finish_shrink(inode)
        except FsError as exc:
            log.error("inode %d could not be truncated and stays on the orphan list: %s", inode.ino, exc)
