"""User, group and project quota: what every operation changed is counted, and limits are kept, at its end.

An operation knows what each inode was like before, so one comparison accounts for blocks, new and freed inodes and
changes of owner alike, in the same transaction. Rules of limits and grace: the kernel's (fs/quota/dquot.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from py4fs.errors import Corrupt, QuotaExceeded
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.features import Features, RoCompat
from py4fs.ext4.file import FileMap
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import NS, Charge, Inode, charge_of
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.layout.inode import EXT4_GRP_QUOTA_INO, EXT4_ROOT_INO, EXT4_USR_QUOTA_INO
from py4fs.ext4.quota_file import ADD_CREDITS, QuotaFile
from py4fs.ext4.transaction import Operation, Reserve


class QuotaKind(IntEnum):
    """What is limited."""

    USER = 0
    GROUP = 1
    PROJECT = 2


#: usage of ids that one operation can change: chown of an inode while another one is freed
_IDS: Final = 3
_UNIT: Final = 1024


class Usage(NamedTuple):
    """What an id has, and its limits (0: none). Space in bytes; times in s since the epoch, 0: not over."""

    id: int
    space: int
    inodes: int
    soft_space: int
    hard_space: int
    soft_inodes: int
    hard_inodes: int
    space_grace_end: int
    inode_grace_end: int


class Quotas:
    """The quota files of a volume, and the accounting."""

    def __init__(
        self,
        features: Features,
        record: Any,
        geometry: Geometry,
        inodes: InodeTable,
        files: FileMap,
        buffers: BufferCache,
        limits: Iterable[QuotaKind],
        values_of: Callable[[Inode], int],
    ) -> None:
        """`record`: the superblock's; `limits`: which kinds of limits are kept. Nothing is read yet.

        `values_of`: how many values in inodes (ea_inode) the attributes of an inode refer to.
        """
        self._geometry = geometry
        self._inodes = inodes
        self._files = files
        self._buffers = buffers
        self._limits = frozenset(limits)
        self._values_of = values_of
        self._numbers: dict[QuotaKind, int] = {}
        if features.ro_compat & RoCompat.QUOTA:
            numbers = (record.s_usr_quota_inum, record.s_grp_quota_inum, record.s_prj_quota_inum)
            self._numbers = {kind: ino for kind, ino in zip(QuotaKind, numbers, strict=True) if ino}
        project = self._numbers.get(QuotaKind.PROJECT, 0)
        if project >= geometry.first_ino:
            inodes.special.add(project)
        self._open: dict[QuotaKind, QuotaFile] = {}
        #: metadata objects that accounting for one operation can touch
        self.credits = len(self._numbers) * (_IDS + ADD_CREDITS)

    @property
    def kinds(self) -> list[QuotaKind]:
        """Those that there are files of."""
        return list(self._numbers)

    def check(self) -> None:
        """Look at the head of every file. Raises Corrupt, DeviceError."""
        for kind in self._numbers:
            self._file(kind)

    def _file(self, kind: QuotaKind) -> QuotaFile:
        file = self._open.get(kind)
        if file is None:
            ino = self._numbers[kind]
            fixed = {QuotaKind.USER: EXT4_USR_QUOTA_INO, QuotaKind.GROUP: EXT4_GRP_QUOTA_INO}.get(kind)
            if ino != fixed and (fixed is not None or ino not in self._inodes.special):
                want = fixed or f"at least {self._geometry.first_ino}"
                raise Corrupt(f"inode of {kind.name.lower()} quota", "superblock", ino, want)
            inode = self._inodes.get(ino, reserved=True)
            file = self._open[kind] = QuotaFile(inode, kind, self._files, self._buffers)
        return file

    def usage(self, kind: QuotaKind, number: int) -> Usage:
        """What an id has. Raises Corrupt, DeviceError."""
        entry = self._file(kind).get(number)
        return Usage(number, *(0,) * 8) if entry is None else _usage(entry)

    def report(self, kind: QuotaKind) -> Iterator[Usage]:
        """All ids that ever had something. Raises Corrupt, DeviceError."""
        return map(_usage, self._file(kind).entries())

    def set_limits(
        self,
        tx: Operation,
        kind: QuotaKind,
        number: int,
        *,
        soft_space: int = 0,
        hard_space: int = 0,
        soft_inodes: int = 0,
        hard_inodes: int = 0,
    ) -> None:
        """Set an id's limits, space in bytes (kept in KiB), 0 for none. Raises NoSpace, Corrupt, DeviceError."""
        file = self._file(kind)
        now, info, had = tx.now // NS, file.info, self.usage(kind, number)
        space_time = had.space_grace_end if soft_space and had.space > soft_space else 0
        inode_time = had.inode_grace_end if soft_inodes and had.inodes > soft_inodes else 0
        if soft_space and had.space > soft_space and not space_time:
            space_time = now + info.dqi_bgrace
        if soft_inodes and had.inodes > soft_inodes and not inode_time:
            inode_time = now + info.dqi_igrace
        file.put(
            tx,
            number,
            dqb_bsoftlimit=-(-soft_space // _UNIT),
            dqb_bhardlimit=-(-hard_space // _UNIT),
            dqb_isoftlimit=soft_inodes,
            dqb_ihardlimit=hard_inodes,
            dqb_btime=space_time,
            dqb_itime=inode_time,
        )

    # -- accounting ----------------------------------------------------------------------------------------

    def account(self, tx: Operation) -> None:
        """At the end of an operation. Raises QuotaExceeded, NoSpace, Corrupt, DeviceError: it has to be undone then."""
        changes: dict[tuple[QuotaKind, int], list[int]] = {}
        for obj, state in list(tx.before.items()):
            if isinstance(obj, Inode) and self._counts(obj.ino):
                old = charge_of(state)
                new = charge_of(obj.save()) if self._inodes.peek(obj.ino) is obj else None
                more = tx.values.get(obj, 0)
                if old != new or more:
                    values = self._values_now(obj, old, new, more)
                    self._add(changes, old, -1, values - more)
                    self._add(changes, new, 1, values)
        for (kind, number), (space, inodes) in changes.items():
            if space or inodes:
                self._apply(tx, kind, number, space, inodes)

    def _values_now(self, inode: Inode, old: Charge | None, new: Charge | None, more: int) -> int:
        """How many values an inode refers to, each charged as an inode of its owner (kernel: ext4_get_inode_usage).

        They are only counted when all of them get another owner; else it is enough that differences are right.
        """
        if new is None:
            return 0
        return self._values_of(inode) if old is not None and old.ids != new.ids else more

    def recount(self, tx: Operation, all_inodes: Callable[[], Iterable[Inode]]) -> None:
        """Set the usage of every id to what the inodes say. Raises NoSpace, Corrupt, DeviceError."""
        totals: dict[tuple[QuotaKind, int], list[int]] = {}
        for inode in all_inodes():
            if self._counts(inode.ino):
                self._add(totals, charge_of(inode.save()), 1, self._values_of(inode))
        for kind in self._numbers:
            known = {usage.id for usage in self.report(kind)}
            for number in sorted(known | {number for which, number in totals if which is kind}):
                space, inodes = totals.get((kind, number), (0, 0))
                self._file(kind).put(tx, number, dqb_curspace=space, dqb_curinodes=inodes)

    def _counts(self, ino: int) -> bool:
        """Not the file system's own inodes (e2fsck: quota_compute_usage)."""
        return (ino >= self._geometry.first_ino and ino not in self._inodes.special) or ino == EXT4_ROOT_INO

    def _add(
        self, changes: dict[tuple[QuotaKind, int], list[int]], charge: Charge | None, sign: int, values: int
    ) -> None:
        if charge is None:
            return
        for kind in self._numbers:
            change = changes.setdefault((kind, charge.ids[kind]), [0, 0])
            change[0] += sign * charge.space
            change[1] += sign * (1 + values)

    def _apply(self, tx: Operation, kind: QuotaKind, number: int, space: int, inodes: int) -> None:
        file = self._file(kind)
        had = self.usage(kind, number)
        new = had._replace(space=max(had.space + space, 0), inodes=max(had.inodes + inodes, 0))
        if kind in self._limits and tx.reserve is Reserve.NONE:
            _check(kind, had, new, tx.now // NS)
        times = _grace_ends(new, tx.now // NS, file.info, start=kind in self._limits)
        file.put(tx, number, dqb_curspace=new.space, dqb_curinodes=new.inodes, **times)


def _usage(entry: Any) -> Usage:
    return Usage(
        entry.dqb_id,
        entry.dqb_curspace,
        entry.dqb_curinodes,
        entry.dqb_bsoftlimit * _UNIT,
        entry.dqb_bhardlimit * _UNIT,
        entry.dqb_isoftlimit,
        entry.dqb_ihardlimit,
        entry.dqb_btime,
        0 if entry.dqb_itime == 1 else entry.dqb_itime,
    )


def _check(kind: QuotaKind, had: Usage, new: Usage, now: int) -> None:
    """Kernel: dquot_add_space, dquot_add_inodes. Raises QuotaExceeded for what grows beyond a limit."""
    who = f"{kind.name.lower()} {new.id}"
    if new.space > had.space:
        if new.hard_space and new.space > new.hard_space:
            raise QuotaExceeded(f"{who}: {new.space} bytes, limit {new.hard_space}")
        if new.soft_space and new.space > new.soft_space and had.space_grace_end and now >= had.space_grace_end:
            raise QuotaExceeded(f"{who}: more than {new.soft_space} bytes for too long")
    if new.inodes > had.inodes:
        if new.hard_inodes and new.inodes > new.hard_inodes:
            raise QuotaExceeded(f"{who}: {new.inodes} inodes, limit {new.hard_inodes}")
        if new.soft_inodes and new.inodes > new.soft_inodes and had.inode_grace_end and now >= had.inode_grace_end:
            raise QuotaExceeded(f"{who}: more than {new.soft_inodes} inodes for too long")


def _grace_ends(new: Usage, now: int, info: Any, *, start: bool) -> dict[str, int]:
    """When the soft limits become hard ones: set when they are first exceeded, gone when they no longer are."""
    over_space = bool(new.soft_space) and new.space > new.soft_space
    over_inodes = bool(new.soft_inodes) and new.inodes > new.soft_inodes
    space_end = new.space_grace_end or (now + info.dqi_bgrace if start else 0)
    inode_end = new.inode_grace_end or (now + info.dqi_igrace if start else 0)
    return {"dqb_btime": space_end if over_space else 0, "dqb_itime": inode_end if over_inodes else 0}
