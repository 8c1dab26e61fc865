"""Orphans: inodes to delete or to truncate if we stop before that is done, as the device knows them.

They are in the slots of the orphan file (:mod:`py4fs.ext4.orphan_file`) where an image has one, else on the orphan list
(ext4 docs: orphan list): from s_last_orphan through i_dtime of each inode. In memory the neighbours on the list are
known, so taking out an inode costs the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from py4fs.errors import Corrupt, FsError
from py4fs.ext4.inode import Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.orphan_file import OrphanFile
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation


def check_orphan(inode: Inode) -> None:
    """Only regular files are truncated as orphans (kernel: ext4_orphan_get). Raises Corrupt."""
    if inode.nlink and not inode.is_reg:
        raise Corrupt("orphan", f"inode {inode.ino}", f"{inode.nlink} links, mode {inode.mode:o}", "a regular file")


class OrphanList:
    """The list. Membership changes belong to the operation that causes them and are undone with it."""

    def __init__(self, superblock: Superblock, inodes: InodeTable) -> None:
        self._superblock = superblock
        self._inodes = inodes
        #: inode -> (previous: nearer to the superblock, 0 at its head; next: 0 at the end)
        self._links: dict[int, tuple[int, int]] = {}

    def __contains__(self, ino: object) -> bool:
        return ino in self._links

    def __iter__(self) -> Iterator[int]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def load(self, limit: int) -> list[int]:
        """Follow the list that the image holds; returns it in order. Raises Corrupt (loops), DeviceError."""
        chain: list[int] = []
        ino = self._superblock.last_orphan
        while ino:
            if ino in self._links or len(chain) > limit:
                raise Corrupt("orphan list", f"inode {chain[-1]}", f"loops to inode {ino}", "an end")
            # not kept: as many as there are inodes may be on the list
            inode = self._inodes.look_at_orphan(ino)
            check_orphan(inode)
            self._links[ino] = (chain[-1] if chain else 0, inode.dtime)
            chain.append(ino)
            ino = inode.dtime
        return chain

    def add(self, tx: Operation, inode: Inode) -> None:
        """Put an inode that is not on the list at its head."""
        ino = inode.ino
        tx.touch(inode)
        tx.touch(self._superblock)
        head = self._superblock.last_orphan
        self._link(tx, ino, (0, head))
        if head:
            self._link(tx, head, (ino, self._links[head][1]))
        inode.dtime = head
        self._superblock.last_orphan = ino

    def remove(self, tx: Operation, inode: Inode) -> None:
        """Take an inode that is on the list off it; its dtime is the caller's again. Raises DeviceError, Corrupt."""
        ino = inode.ino
        before, behind = self._links[ino]
        tx.touch(inode)
        if before:
            previous = self._inodes.get_orphan(before)
            tx.touch(previous)
            previous.dtime = behind
            self._link(tx, before, (self._links[before][0], behind))
        else:
            tx.touch(self._superblock)
            self._superblock.last_orphan = behind
        if behind:
            self._link(tx, behind, (before, self._links[behind][1]))
        self._link(tx, ino, None)
        inode.dtime = 0

    def _link(self, tx: Operation, ino: int, link: tuple[int, int] | None) -> None:
        old = self._links.get(ino)
        tx.on_abort(lambda: self._set(ino, old))
        self._set(ino, link)

    def _set(self, ino: int, link: tuple[int, int] | None) -> None:
        if link is None:
            self._links.pop(ino, None)
        else:
            self._links[ino] = link


class Orphans:
    """All orphans of a volume. Membership changes belong to the operation that causes them and are undone with it."""

    def __init__(
        self, superblock: Superblock, inodes: InodeTable, open_file: Callable[[], OrphanFile | None]
    ) -> None:
        """``open_file`` gives the image's orphan file, None if it has none; :meth:`load_file` raises what it raises."""
        self._inodes_count = inodes.count
        self._superblock = superblock
        self._list = OrphanList(superblock, inodes)
        self._open_file = open_file
        self._file: OrphanFile | None = None
        self._unusable = False
        #: whether new orphans go into the file
        self.fill_file = False
        inodes.holders.append(self)

    def __contains__(self, ino: object) -> bool:
        if self._unusable:
            return False
        return ino in self._list or (self._file is not None and ino in self._file.slots)

    def __iter__(self) -> Iterator[int]:
        if self._unusable:
            return iter(())
        return chain(self._list, self._file.slots if self._file is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def in_file(self) -> int:
        """How many orphans have a slot in the file."""
        return 0 if self._file is None else len(self._file.slots)

    @property
    def file_is_empty(self) -> bool:
        """Whether the orphan file is known to be empty."""
        return not self._unusable and not self.in_file

    def load(self) -> list[int]:
        """Read what the image holds, list and file. To be called once. Raises as the parts."""
        return self.load_list() + self.load_file()

    def load_list(self) -> list[int]:
        """The inodes of the list, which were looked at. Raises Corrupt (loops, what is no orphan), DeviceError."""
        try:
            return self._list.load(self._inodes_count)
        except FsError:
            self.give_up()
            raise

    def load_file(self) -> list[int]:
        """The inodes of the file, which were not looked at yet; empty if there is none.

        Raises Corrupt (damage, duplicates, also with the list), BadChecksum, DeviceError and what else a file that is
        none leads to.
        """
        try:
            self._file = self._open_file()
            slots = [] if self._file is None else self._file.load()
            for ino in slots:
                if ino in self._list:
                    raise Corrupt("orphan file", f"inode {ino}", "on the orphan list too", "only one of them")
        except FsError:
            self.give_up()
            raise
        return slots

    def give_up(self) -> None:
        """They make no sense: nobody is an orphan, and the volume must not be written."""
        self._unusable = True

    def drop_step(self, tx: Operation) -> bool:
        """Forget a bounded part of the orphans of an image, on the device too; False when there were none.

        Raises Corrupt, DeviceError.
        """
        if self._superblock.last_orphan:
            tx.touch(self._superblock)
            self._superblock.last_orphan = 0
            return True
        return self._file is not None and self._file.clear_block(tx)

    def drop_slot(self, tx: Operation, ino: int) -> bool:
        """Free the slot of an inode that is not in use; False if it has none. Raises Corrupt, DeviceError."""
        if self._file is None or ino not in self._file.slots:
            return False
        self._file.remove(tx, ino)
        return True

    def add(self, tx: Operation, inode: Inode) -> None:
        """Make an inode an orphan, if it is not one. Raises Corrupt, BadChecksum, DeviceError."""
        if inode.ino in self:
            return
        if not (self.fill_file and self._file is not None and self._file.add(tx, inode.ino)):
            self._list.add(tx, inode)

    def remove(self, tx: Operation, inode: Inode) -> None:
        """An orphan is one no more; its dtime is the caller's again. Raises Corrupt, BadChecksum, DeviceError."""
        if inode.ino in self._list:
            self._list.remove(tx, inode)
        elif self._file is not None and inode.ino in self._file.slots:
            self._file.remove(tx, inode.ino)
            tx.touch(inode)
            inode.dtime = 0
