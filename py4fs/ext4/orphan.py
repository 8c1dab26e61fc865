"""The on-disk orphan list: inodes to delete or to truncate if we stop before that is done (ext4 docs: orphan list).

A list from s_last_orphan through i_dtime of each inode. In memory its neighbours are known, so taking out an inode
costs the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator

from py4fs.errors import Corrupt
from py4fs.ext4.inode import Inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation


class OrphanList:
    """Membership changes belong to the operation that causes them and are undone with it."""

    def __init__(self, superblock: Superblock, inodes: InodeTable) -> None:
        self._superblock = superblock
        self._inodes = inodes
        #: inode -> (previous: nearer to the superblock, 0 at its head; next: 0 at the end)
        self._links: dict[int, tuple[int, int]] = {}
        inodes.holders.append(self._links)

    def __contains__(self, ino: int) -> bool:
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
            inode = self._inodes.get_orphan(ino)
            if inode.nlink and not inode.is_reg:
                # only regular files are truncated by way of the list (kernel: ext4_orphan_get)
                raise Corrupt("orphan list", f"inode {ino}", f"{inode.nlink} links, mode {inode.mode:o}", "a file")
            self._links[ino] = (chain[-1] if chain else 0, inode.dtime)
            chain.append(ino)
            ino = inode.dtime
        return chain

    def add(self, tx: Operation, inode: Inode) -> None:
        """Put an inode at the head of the list, if it is not on it."""
        ino = inode.ino
        if ino in self._links:
            return
        tx.touch(inode)
        tx.touch(self._superblock)
        head = self._superblock.last_orphan
        self._link(tx, ino, (0, head))
        if head:
            self._link(tx, head, (ino, self._links[head][1]))
        inode.dtime = head
        self._superblock.last_orphan = ino

    def remove(self, tx: Operation, inode: Inode) -> None:
        """Take an inode off the list; its dtime is the caller's again. Raises DeviceError, Corrupt."""
        ino = inode.ino
        if ino not in self._links:
            return
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
