"""File data in three steps: plan (under the lock), device I/O (anywhere), finish (under the lock again).

A session runs the middle step outside of its lock::

    plan = vfs.plan_read(fh, offset, size)      # plan.count bytes, maybe none
    data = run_read(plan, vfs.volume.device)    # or vfs.cancel(plan), if that fails
    vfs.finish_read(fh, plan)                   # False: plan again

    plan = vfs.plan_write(fh, offset, length)   # plan.count bytes, at least one
    run_write(plan, vfs.volume.device, data[:plan.count])   # or vfs.abort_write(fh, plan)
    vfs.finish_write(fh, plan)                  # the bytes that count; 0: plan again

A write plan that is ``blocked`` has nothing to run: ``abort_write`` it, and plan again when another write has finished.
:meth:`Data.read` and :meth:`Data.write` do all three.
"""

from __future__ import annotations

from typing import Final

from py4fs.errors import BadHandle, DeviceError, FileTooBig, NoSpace, NotPermitted
from py4fs.ext4.features import RoCompat
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import EXT4_IMMUTABLE_FL, EXT4_VERITY_FL
from py4fs.ext4.verity import VerityFile
from py4fs.ext4.volume import Volume
from py4fs.iomap.plans import ReadPlan, WritePlan, read_through, write_through
from py4fs.iomap.short import SHORT
from py4fs.vfs.attributes import Attributes
from py4fs.vfs.types import InGroup, OpenFile

#: files with a Merkle tree whose state is kept
_TREES: Final = 256


class Data(Attributes):
    """Reading and writing handles of regular files."""

    def __init__(self, volume: Volume, *, atime: str = "relatime", dirsync: bool = False) -> None:
        super().__init__(volume, atime=atime, dirsync=dirsync)
        self._trees: dict[tuple[int, int], VerityFile] = {}

    def _open_file(self, fh: int) -> OpenFile:
        handle = self._files.get(fh)
        if handle is None:
            raise BadHandle(f"file handle {fh} is not open")
        return handle

    def _handle(self, fh: int) -> OpenFile:
        """At the start of a request, when nobody holds an object of the caches."""
        handle = self._open_file(fh)
        self.volume.pauses.check_alive()
        self.volume.trim()
        return handle

    def _writable_handle(self, fh: int) -> OpenFile:
        handle = self._handle(fh)
        if not handle.writable:
            raise BadHandle(f"file handle {fh} is not open for writing")
        return handle

    def plan_read(self, fh: int, offset: int, size: int) -> ReadPlan:
        """Where up to ``size`` bytes from byte ``offset`` on are; fewer at the end of the file, none behind it.

        Every plan has to be ended, with :meth:`finish_read` or :meth:`cancel`. Raises BadHandle, Invalid, Corrupt,
        DeviceError.
        """
        handle = self._handle(fh)
        if handle.inode.flags & EXT4_VERITY_FL:
            self._verify(handle.inode, offset, size)
        return self.client.plan_read(handle.file, offset, size, handle.inode.size)

    def read_short(self, fh: int, offset: int, view: memoryview) -> int:
        """A short read of what is known to lie together: bytes of ``view`` filled, at once and without a plan.

        -1: nothing was done, plan it; so at the end of the file. Raises BadHandle, CommitPending, DeviceError.
        """
        handle = self._open_file(fh)
        self.volume.pauses.check_alive()  # nothing comes into the caches, so nothing is trimmed
        inode = handle.inode
        if view.nbytes > SHORT or inode.flags & EXT4_VERITY_FL:
            return -1
        done = self.client.read_short(handle.file, offset, view, inode.size)
        if done > 0 and self._atime != "noatime":
            self._touch_atime(inode)
        return done

    def _verify(self, inode: Inode, offset: int, size: int) -> None:
        """Data of a file with a Merkle tree has to fit it. Raises BadChecksum, Corrupt, DeviceError."""
        volume = self.volume
        if not volume.options.verify_data or not volume.features.ro_compat & RoCompat.VERITY:
            return
        key = (inode.ino, inode.generation)
        tree = self._trees.get(key)
        if tree is None:
            while len(self._trees) >= _TREES:
                del self._trees[next(iter(self._trees))]
            tree = self._trees[key] = VerityFile(inode, volume.files, volume.buffers.read)
        tree.check(offset, size)

    def finish_read(self, fh: int, plan: ReadPlan) -> bool:
        """The bytes were read. False: the file changed meanwhile, they are worth nothing, plan again.

        The plan is over whatever is raised: BadHandle, CommitPending, Corrupt, DeviceError.
        """
        inode = self._handle_at_end(fh, plan).inode
        if not self.client.finish_read(plan):
            return False
        if self._atime != "noatime":
            self._touch_atime(inode)
        return True

    def confirm_read(self, fh: int, plan: ReadPlan) -> bool:
        """As :meth:`finish_read`, but if it is true the plan goes on until :meth:`cancel`: the bytes stay there.

        Otherwise, and whatever is raised, the plan is over.
        """
        inode = self._handle_at_end(fh, plan).inode
        try:
            if self.client.is_true(plan):
                if self._atime != "noatime":
                    self._touch_atime(inode)
                return True
        except BaseException:
            self.client.cancel(plan)
            raise
        self.client.cancel(plan)
        return False

    def _handle_at_end(self, fh: int, plan: ReadPlan | WritePlan) -> OpenFile:
        """Whatever becomes of a handle, a plan must not stay behind: what it pins could never be used again."""
        try:
            return self._handle(fh)
        except (BadHandle, DeviceError):
            self.client.cancel(plan)
            raise

    def cancel(self, plan: ReadPlan | WritePlan) -> None:
        """End a plan of which nothing was run. Where a write failed half-way, :meth:`abort_write` is the one."""
        self.client.cancel(plan)

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from byte ``offset`` on; fewer at the end of the file. Raises Corrupt, DeviceError."""
        if not size:
            self._handle(fh)
            return b""
        return read_through(
            self.volume.device,
            lambda: self.plan_read(fh, offset, size),
            lambda plan: self.finish_read(fh, plan),
            self.client.cancel,
        )

    def plan_write(
        self, fh: int, offset: int, length: int, *, kill_priv: InGroup | None = None, cached: bool | None = None
    ) -> WritePlan:
        """Where ``length`` > 0 bytes at byte ``offset`` go: ``plan.count`` of them, at least one.

        Writing takes the file's capabilities away, and with ``kill_priv`` set-user-ID and set-group-ID; but not where
        the bytes come from a page cache (``cached``; None: as ``kernel_owns_times`` says), whose kernel did that when
        they got there, maybe long ago.
        Blocks that are missing are allocated. Every plan has to be ended, with :meth:`finish_write` or
        :meth:`abort_write`. Raises BadHandle, Invalid, NotPermitted (immutable), FileTooBig, NoSpace, ReadOnly,
        CommitPending (blocks that a commit under way frees are needed), Corrupt, DeviceError.
        """
        handle = self._writable_handle(fh)
        cached = self.kernel_owns_times if cached is None else cached
        largest = self.volume.files.largest(handle.inode)
        if offset + length > largest:
            # a kernel that wrote its cache back takes a short write for a full one
            if offset >= largest or cached:
                raise FileTooBig(f"write to byte {offset + length}: at most {largest}")
            length = largest - offset
        self.volume.start_writing()
        if not cached:
            self._changed_by_write(handle.inode, kill_priv)
        try:
            return self.client.plan_write(handle.file, offset, length, handle.reserve)
        except NoSpace:
            if not self._freed_for_use():
                raise
        return self.client.plan_write(handle.file, offset, length, handle.reserve)

    def _changed_by_write(self, inode: Inode, kill_priv: InGroup | None) -> None:
        """What write(2) does besides writing. Raises NotPermitted (immutable) and as an operation."""
        if inode.flags & EXT4_IMMUTABLE_FL:
            raise NotPermitted(f"inode {inode.ino} is immutable")
        self._drop_privileges(inode, kill_priv)

    def write_short(
        self, fh: int, offset: int, data: memoryview, *, kill_priv: InGroup | None = None, cached: bool | None = None
    ) -> bool:
        """A short write over what is there, or at the end of a file: all of it at once and without a plan.

        False: nothing was done, plan it. Parameters as for :meth:`plan_write`.
        Raises BadHandle, NotPermitted (immutable), ReadOnly, CommitPending, Corrupt, DeviceError.
        """
        handle = self._writable_handle(fh)
        inode, end = handle.inode, offset + data.nbytes
        if data.nbytes > SHORT or (offset != inode.size and end > inode.size) or self.kernel_owns_data:
            return False
        cached = self.kernel_owns_times if cached is None else cached
        if end > self.volume.files.largest(inode):
            return False
        self.volume.start_writing()
        if not cached:
            self._changed_by_write(inode, kill_priv)
        done = self.client.write_short(handle.file, offset, data, handle.reserve, stamp=not self.kernel_owns_times)
        if done:
            self._settle(inode)
        return done

    def finish_write(self, fh: int, plan: WritePlan) -> int:
        """The bytes are on the device: how many of them count. 0: the file changed meanwhile, plan and write again.

        The plan is over whatever is raised: BadHandle, CommitPending, NoSpace, ReadOnly, Corrupt, DeviceError.
        """
        inode = self._handle_at_end(fh, plan).inode
        done = self.client.end_write(plan, stamp=not self.kernel_owns_times)
        if done:
            self._settle(inode)
        return done

    def abort_write(self, fh: int, plan: WritePlan) -> None:
        """The device I/O failed, or the plan is blocked: nothing of it counts, what it allocated goes back."""
        self.client.abort_write(plan)

    def write(
        self,
        fh: int,
        offset: int,
        data: bytes | bytearray | memoryview,
        *,
        kill_priv: InGroup | None = None,
        cached: bool | None = None,
    ) -> int:
        """Write ``data`` at byte ``offset``; returns how much: not all for want of space, or at the largest size.

        ``kill_priv`` and ``cached`` as for :meth:`plan_write`.
        Raises BadHandle, FileTooBig, NoSpace (nothing was written), ReadOnly, Busy (another write that was planned
        before touches the same block), Corrupt, DeviceError.
        """
        if data and self.write_short(fh, offset, memoryview(data), kill_priv=kill_priv, cached=cached):
            return len(data)
        handle = self._writable_handle(fh)
        room = self.volume.files.largest(handle.inode) - offset
        if 0 < room < len(data) and not self.kernel_owns_times:
            # a kernel that writes its cache back would take a short write for a full one
            data = memoryview(data)[:room]
        return write_through(
            self.volume.device,
            offset,
            data,
            lambda at, length: self.plan_write(fh, at, length, kill_priv=kill_priv, cached=cached),
            lambda plan: self.finish_write(fh, plan),
            self.client.abort_write,
        )
