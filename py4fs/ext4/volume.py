"""An open ext4 file system: the gate, the parts put together, commit and close."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from py4fs.device.base import Device
from py4fs.errors import BadChecksum, CommitPending, Corrupt, DeviceError, FsError, ReadOnly
from py4fs.ext4 import checksum, dirhash
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.backups import change_superblocks, with_backup
from py4fs.ext4.blockmap import MapContext
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.cache_limits import CacheLimits
from py4fs.ext4.casefold import Encoding
from py4fs.ext4.commit import Committer
from py4fs.ext4.directory import DirContext
from py4fs.ext4.discarding import Discarder
from py4fs.ext4.ea_inode import EaInodes
from py4fs.ext4.fallocate import Fallocator
from py4fs.ext4.features import Compat, Features, Incompat, RoCompat, check_magic, gate
from py4fs.ext4.file import FileMap
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import BITMAP_LIMIT, Groups
from py4fs.ext4.inode import NS
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.mount_recovery import Request, open_journal
from py4fs.ext4.journal.writer import JournalStore
from py4fs.ext4.layout.inode import EXT4_ROOT_INO
from py4fs.ext4.layout.superblock import (
    EXT2_FLAGS_UNSIGNED_HASH,
    EXT4_DEFM_BSDGROUPS,
    EXT4_DEFM_DISCARD,
    EXT4_ERROR_FS,
    EXT4_ERRORS_PANIC,
    EXT4_ERRORS_RO,
    EXT4_VALID_FS,
)
from py4fs.ext4.mmp import Host, MultiMountProtection, claimed, reader_notice
from py4fs.ext4.name_rules import NameRules
from py4fs.ext4.namespace import Namespace
from py4fs.ext4.orphan import Orphans
from py4fs.ext4.orphan_file import OrphanFile
from py4fs.ext4.overhead import overhead_blocks
from py4fs.ext4.pauses import Pauses
from py4fs.ext4.pins import PlanPins
from py4fs.ext4.quota import QuotaKind, Quotas
from py4fs.ext4.reclaim import OrphanEnd, Reclaimer
from py4fs.ext4.store import InPlaceStore, Store
from py4fs.ext4.superblock import Superblock, SuperblockWriter
from py4fs.ext4.transaction import Operation, Reserve, Transactions
from py4fs.ext4.xattr import XattrStore

log = logging.getLogger(__name__)

ZERO_BLOCKS: Final = 256
#: seconds that inode times can hold with and without the extra fields
_TIME_MIN: Final = -(1 << 31)
_TIME_MAX_EXTRA: Final = (1 << 34) - (1 << 31) - 1
_TIME_MAX_GOOD_OLD: Final = (1 << 31) - 1
#: ns: times below, until 2096, are of any inode that has the extra fields
_TIME_PLAIN: Final = 4_000_000_000 * NS


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """How to open a volume. Cache limits in blocks and inodes."""

    readonly: bool = False
    minixdf: bool = False
    buffer_limit: int = 16384
    inode_limit: int = 32768
    #: serve the image as it is, without its journal; nothing can be written then
    norecovery: bool = False
    #: flush the device at commits (off: faster, and a power cut may leave anything)
    barrier: bool = True
    #: continue, remount-ro or panic; None: what the superblock says
    errors: str | None = None
    #: compare files that have a Merkle tree with it (fs-verity)
    verify_data: bool = True
    #: user.* attributes exist
    user_xattr: bool = True
    #: which limits of the quota files are kept; usage is always counted
    quota_limits: frozenset[QuotaKind] = frozenset()
    #: the host's name, for the mmp block
    nodename: bytes = b""
    #: bytes that all caches together may take, instead of the limits above; None: those
    cache_bytes: int | None = None
    #: POSIX ACLs exist
    acl: bool = True
    #: new inodes get the group of their directory, also without its set-group-ID bit; None: what the superblock says
    grpid: bool | None = None
    #: who may use the blocks kept for root, besides root; None: what the superblock says
    resuid: int | None = None
    resgid: int | None = None
    #: bytes that a directory may not grow beyond; 0: no limit
    max_dir_size: int = 0
    #: tell the device of blocks that a commit has freed; None: what the superblock says
    discard: bool | None = None
    #: where to find a copy of the superblock (bytes), if the first one is damaged
    backup_superblock: int | None = None
    #: where it is mounted, for s_last_mounted
    mounted_on: bytes = b""
    #: check that operations keep to the credits that they reserve (tests)
    strict: bool = False


class StatFs(NamedTuple):
    """statvfs(3): sizes in blocks of ``bsize`` bytes."""

    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int
    fsid: int


class Volume:
    """One ext4 file system on a device. Made by :meth:`open`."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        options: VolumeOptions,
        clock: Callable[[], int],
        rng: random.Random,
        readonly_reason: str | None,
    ) -> None:
        record = superblock.record
        self.device = device
        self.superblock = superblock
        self.options = options
        self.features = Features.of(record)
        self.geometry = geo = Geometry.of(record, device.size)
        #: lines that the user should see (why it is read-only, orphans found, …)
        self.notices: list[str] = []
        self.readonly_reason = readonly_reason
        #: where its journal is; None without one
        self.journal_area: JournalArea | None = None
        self._record = record
        self._clock = clock
        self.limits = limits = CacheLimits.of(
            options.cache_bytes, geo.block_size, options.buffer_limit, options.inode_limit
        )
        self._dirty_limit = min(limits.buffers, limits.inodes) // 2
        self._has_extra_times = geo.inode_size > 128
        self._closed = False
        #: blocks that can never hold data, once somebody asked
        self._overhead: int | None = None
        #: our claim, where the file system has mmp and is open for writing
        self.mmp: MultiMountProtection | None = None
        #: what a server does with errors=panic, besides turning read-only
        self.on_panic: Callable[[], None] | None = None

        seed = checksum.superblock_seed(record) if self.features.metadata_csum else None
        hash_seed = dirhash.hash_seed(record.s_hash_seed)
        self.transactions = Transactions(self.now, strict=options.strict)
        self.transactions.refuse = self._refusal
        self.transactions.breathe = self._breathe
        self.pins = PlanPins()
        self.buffers = BufferCache(device, geo.block_size, self.transactions, limits.buffers)
        self.groups = Groups(geo, self.buffers, checksum.GroupDescChecksum.of(record), seed)
        self.groups.desc_damaged = self._desc_damaged
        self.alloc = Allocator(geo, self.groups, superblock, self.pins, self.features.uninit_groups, hash_seed)
        self.pins.on_advance(self.alloc.unpinned)
        if self._chosen(options.discard, EXT4_DEFM_DISCARD):
            self.alloc.released = Discarder(device, geo.block_size)
        self.inodes = InodeTable(geo, self.groups, self.buffers, self.alloc, self.transactions, seed, limits.inodes)
        self.orphans = Orphans(superblock, self.inodes, self._open_orphan_file)
        self.files = FileMap(
            MapContext(
                geo.block_size, self.features.metadata_csum, self.buffers, self.alloc, self.groups, geo.cluster_ratio
            ),
            self._fill_blocks,
            self.orphans,
            extents=bool(self.features.incompat & Incompat.EXTENTS),
            huge_file=bool(self.features.ro_compat & RoCompat.HUGE_FILE),
            inline_data=bool(self.features.incompat & Incompat.INLINE_DATA),
        )
        if self._has_orphan_file and record.s_orphan_file_inum >= geo.first_ino:
            self.inodes.special.add(record.s_orphan_file_inum)
        self.ea_inodes: EaInodes | None = None
        if self.features.incompat & Incompat.EA_INODE:
            hash_base = checksum.superblock_seed(record)
            self.ea_inodes = EaInodes(
                hash_base, self.inodes, self.alloc, self.files, self.buffers, self.orphans, rng
            )
        self.xattrs = XattrStore(geo, seed, self.buffers, self.alloc, superblock, self.ea_inodes)
        kept, values_of = options.quota_limits, self.xattrs.count_values
        self.quotas = Quotas(self.features, record, geo, self.inodes, self.files, self.buffers, kept, values_of)
        if self.quotas.kinds:
            self.transactions.settle = self.quotas.account
            self.transactions.settle_credits = self.quotas.credits
        dirs = DirContext(
            block_size=geo.block_size,
            blocks_count=geo.blocks_count,
            inodes_count=geo.inodes_count,
            hash_seed=hash_seed,
            hash_version=record.s_def_hash_version,
            hash_unsigned=bool(record.s_flags & EXT2_FLAGS_UNSIGNED_HASH),
            metadata_csum=self.features.metadata_csum,
            filetype=bool(self.features.incompat & Incompat.FILETYPE),
            dir_index=bool(self.features.compat & Compat.DIR_INDEX),
            largedir=bool(self.features.incompat & Incompat.LARGEDIR),
            buffers=self.buffers,
            files=self.files,
            rules=self._name_rules(),
            max_size=options.max_dir_size,
        )
        self.namespace = Namespace(
            geo,
            self.inodes,
            self.alloc,
            self.files,
            self.buffers,
            self.orphans,
            dirs,
            self.xattrs,
            rng,
            dir_nlink=bool(self.features.ro_compat & RoCompat.DIR_NLINK),
            project=bool(self.features.ro_compat & RoCompat.PROJECT),
            acl=options.acl,
            grpid=self._chosen(options.grpid, EXT4_DEFM_BSDGROUPS),
        )
        self.superblock_writer = SuperblockWriter(superblock, geo, self.buffers, device, self.now)
        self.committer = Committer(
            device,
            superblock,
            self.superblock_writer,
            self.transactions,
            self.buffers,
            self.inodes,
            self.groups,
            self.alloc,
            self._in_place(),
        )
        self.pauses = Pauses(self.committer)
        self.fallocator = Fallocator(self.transactions, self.files)
        self.reclaim = Reclaimer(
            geo.block_size, self.transactions, self.files, self.inodes, self.alloc, self.orphans, self.xattrs
        )

    def _name_rules(self) -> NameRules:
        """Raises UnsupportedFeature for an unknown encoding."""
        record, encoding = self._record, None
        if self.features.incompat & Incompat.CASEFOLD:
            encoding = Encoding.of(record.s_encoding, record.s_encoding_flags)
        return NameRules(encoding, encrypt=bool(self.features.incompat & Incompat.ENCRYPT))

    def _chosen(self, option: bool | None, default: int) -> bool:
        """An option, or whether it is among the superblock's default mount options."""
        return bool(self._record.s_default_mount_opts & default) if option is None else option

    @property
    def _has_orphan_file(self) -> bool:
        return bool(self.features.compat & Compat.ORPHAN_FILE)

    def _open_orphan_file(self) -> OrphanFile | None:
        """Raises Corrupt, BadChecksum, Stale, UnsupportedFeature, DeviceError."""
        if not self._has_orphan_file:
            return None
        ino: int = self._record.s_orphan_file_inum
        if ino not in self.inodes.special:
            raise Corrupt("s_orphan_file_inum", "superblock", ino, f"at least {self.geometry.first_ino}")
        inode = self.inodes.get(ino, reserved=True)
        csum = self.features.metadata_csum
        return OrphanFile(inode, self.files, self.buffers, self.geometry, metadata_csum=csum)

    def _mark_orphan_file(self, in_use: bool) -> None:
        """orphan_present is set while there may be entries in the file, for whoever finds the image after a crash."""
        if in_use and self._has_orphan_file:
            self.superblock.feature_ro_compat |= int(RoCompat.ORPHAN_PRESENT)
        elif self.orphans.file_is_empty:
            self.superblock.feature_ro_compat &= ~int(RoCompat.ORPHAN_PRESENT)

    def _in_place(self) -> Store:
        """How commits reach the device without a journal."""

        def mark(in_use: bool) -> None:
            if in_use:
                self.superblock_writer.note_mount(self.options.mounted_on)
            else:
                self._mark_orphan_file(False)
            self.superblock_writer.set_valid(not in_use)

        return InPlaceStore(self.device, self.geometry.block_size, mark, barrier=self.options.barrier)

    def _use_journal(self, area: JournalArea) -> None:
        """Commit through the (empty) journal from now on."""

        def mark(in_use: bool) -> None:
            if in_use:
                self.superblock_writer.note_mount(self.options.mounted_on)
            self._mark_orphan_file(in_use)
            self.superblock_writer.set_recover(in_use)

        area.upgrade(csum=self.features.metadata_csum, wide=self.geometry.has_64bit)
        self.orphans.fill_file = True
        self.alloc.inodes_wait = False
        self.committer.use(JournalStore(self.device, area, mark, self.now, barrier=self.options.barrier))

    @classmethod
    def open(
        cls,
        device: Device,
        options: VolumeOptions,
        clock: Callable[[], int],
        rng: random.Random | None = None,
        *,
        journal_device: Device | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> Volume:
        """Open the file system on ``device``; ``clock`` gives ns since the epoch, ``rng`` inode generations.

        ``journal_device`` is where its journal is, if outside; from here on it is closed with the volume. ``sleep``
        (seconds) waits for a sign of life of another owner (mmp); without it one that may have an owner is Busy.

        Raises Busy, Corrupt, BadChecksum, UnsupportedFeature, NeedsRecovery, DeviceError. Nothing is written then,
        except that a DeviceError can interrupt the replay of a journal, which the next attempt begins again.
        """
        given = device
        if options.backup_superblock is not None:
            device = with_backup(device, options.backup_superblock)
        superblock = Superblock.read(device)
        record = superblock.record
        check_magic(record)
        features = Features.of(record)
        if features.metadata_csum:
            try:
                checksum.verify_superblock(bytes(superblock.raw))
            except BadChecksum:
                # a crash may have torn it: then the journal has a whole one, which is looked at there
                in_journal = features.compat & Compat.HAS_JOURNAL and features.incompat & Incompat.RECOVER
                if options.norecovery or not in_journal:
                    raise
        reason = gate(record).readonly_reason
        if device is not given:
            reason = f"the superblock's copy at byte {options.backup_superblock} is used, the first one is damaged"
        elif reason is None and device.readonly:
            what = getattr(device, "what", None)
            reason = f"{what} can only be read" if what else "the device is read-only"
        if options.readonly:
            reason = "mounted read-only"
        host = Host(clock, sleep, rng or random.Random(), options.nodename)
        with claimed(device, record, host, readonly=reason is not None) as mmp:
            volume = cls._load(device, superblock, options, host, journal_device, reason)
        volume.mmp = mmp
        volume.committer.guard = volume._keep_mmp
        if mmp is None:
            volume.notices.extend(reader_notice(device, record, host))
        return volume

    @classmethod
    def _load(
        cls,
        device: Device,
        superblock: Superblock,
        options: VolumeOptions,
        host: Host,
        journal_device: Device | None,
        reason: str | None,
    ) -> Volume:
        """Recover what the journal has and put the parts together; ``reason``: why it is read-only."""
        clock, rng = host.clock, host.rng

        def in_memory(over: Device, sb: Superblock) -> Volume:
            volume = cls(over, sb, options, clock, rng, None)
            volume.committer.use(InPlaceStore(over, volume.geometry.block_size, lambda _in_use: None))
            if volume.quotas.kinds:
                # what it does to inodes is not told by how they were before
                volume.transactions.settle = lambda tx: volume.quotas.recount(tx, volume.inodes.in_use)
            return volume

        request = Request(reason is not None, options.norecovery, journal_device, clock, in_memory)
        opened = open_journal(device, superblock, request)
        # the journal may have brought another superblock
        verdict = gate(opened.superblock.record)
        reason = reason or verdict.readonly_reason or opened.readonly_reason
        volume = cls(opened.device, opened.superblock, options, clock, rng, reason)
        volume.journal_area = opened.area
        volume.notices.extend((*verdict.notices, *opened.notices))
        if reason is not None and not options.readonly:
            volume.notices.append(f"read-only: {reason}")
        if opened.area is not None and not volume.readonly:
            volume._use_journal(opened.area)
        volume._check_root()
        volume._check_quotas()
        volume._look_at_state()
        return volume

    def _check_root(self) -> None:
        root = self.inodes.get(EXT4_ROOT_INO)
        if not root.is_dir:
            raise Corrupt("root inode", "inode 2", oct(root.mode), "a directory")
        self.namespace.directory(root).parent()

    def _check_quotas(self) -> None:
        if self.readonly:
            return
        try:
            self.quotas.check()
        except DeviceError:
            raise
        except FsError as exc:
            self.readonly_reason = f"a quota file is damaged, run e2fsck: {exc}"
            self.notices.append(f"read-only: {self.readonly_reason}")

    def _look_at_state(self) -> None:
        state = self.superblock.state
        if not state & EXT4_VALID_FS:
            self.notices.append("was not cleanly unmounted; running e2fsck is recommended")
        elif state & EXT4_ERROR_FS:
            self.notices.append("has recorded errors; running e2fsck is recommended")
        sb, geo = self.superblock, self.geometry
        if not state & EXT4_VALID_FS or sb.free_blocks > geo.blocks_count or sb.free_inodes > geo.inodes_count:
            # the kernel brings the totals up to date at unmount only
            sb.free_blocks, sb.free_inodes = self.groups.count_free()
        if self.readonly:
            self._report_orphans()
        elif sb.last_orphan or self._has_orphan_file:
            self._process_orphans()

    def _report_orphans(self) -> None:
        """What a mount for writing would do; here they stay as they are."""
        sb = self.superblock
        if not (self._has_orphan_file and sb.feature_ro_compat & RoCompat.ORPHAN_PRESENT):
            return
        try:
            count = len(self.orphans.load_file())
        except FsError as exc:
            self.notices.append(f"the orphan file is damaged, which does not matter for reading: {exc}")
        else:
            if count:
                self.notices.append(f"orphans: {count} inode(s) in the orphan file are left as they are")
        self.orphans.give_up()

    def _process_orphans(self) -> None:
        """Finish what was left on list and in file; when they make no sense, stay read-only. Raises DeviceError."""
        where = "list"
        ends: Counter[OrphanEnd] = Counter()
        try:
            if self.superblock.state & EXT4_ERROR_FS:
                where = "file"
                self._drop_orphans()
                return
            listed = self.orphans.load_list()
            where = "file"
            slots = self.orphans.load_file()
            for place, inos in (("list", listed), ("file", slots)):
                where = place
                for ino in inos:
                    ends[self.reclaim.process_orphan(ino)] += 1
                    self._evict_values()
                    if len(self.transactions.running.dirty) > self.transactions.limit // 4:
                        self.commit()
                    self.trim()
            if self.superblock.feature_ro_compat & RoCompat.ORPHAN_PRESENT:
                # the first operation marks the volume as in use, and then its end takes the flag away
                with self.operation(1) as tx:
                    tx.touch(self.superblock)
        except DeviceError:
            raise
        except FsError as exc:
            self.orphans.give_up()
            self.readonly_reason = f"the orphan {where} is damaged, run e2fsck: {exc}"
            self.notices.append(f"read-only: {self.readonly_reason}")
        else:
            if ends[OrphanEnd.DELETED] or ends[OrphanEnd.TRUNCATED]:
                deleted, truncated = ends[OrphanEnd.DELETED], ends[OrphanEnd.TRUNCATED]
                self.notices.append(f"orphans: {deleted} inode(s) deleted, {truncated} truncated")
            if ends[OrphanEnd.STALE]:
                self.notices.append(f"orphans: {ends[OrphanEnd.STALE]} inode(s) in the orphan file were free already")

    def _evict_values(self) -> None:
        """Values of attributes that went with an orphan. Raises Corrupt, DeviceError."""
        while self.ea_inodes is not None and self.ea_inodes.dropped:
            self.reclaim.evict(self.inodes.get_orphan(self.ea_inodes.dropped.pop()))

    def _drop_orphans(self) -> None:
        """Nothing is freed on the word of a file system with errors (kernel: ext4_orphan_cleanup)."""
        self.orphans.load_file()
        why = "was dropped because of recorded errors; e2fsck finds what was"
        if self.superblock.last_orphan:
            self.notices.append(f"the orphan list {why} on it")
        if self.orphans.in_file:
            self.notices.append(f"what the orphan file said {why} in it")
        while self.superblock.last_orphan or self.orphans.in_file:
            with self.operation(1) as tx:
                self.orphans.drop_step(tx)

    # -- operations ----------------------------------------------------------------------------------------

    @property
    def never_writable(self) -> bool:
        """Whether nothing can make it writable any more."""
        return self.readonly_reason is not None or self.committer.failed is not None

    @property
    def readonly(self) -> bool:
        return self.never_writable or self.pauses.readonly or self.pauses.shut

    @property
    def refuses_changes(self) -> bool:
        """Whether it is read-only, or frozen."""
        return self.readonly or self.pauses.frozen

    def _refusal(self) -> FsError | None:
        refusal = self.pauses.refusal()
        if refusal is not None:
            return refusal
        if self.committer.failed is not None:
            return ReadOnly(f"file system went read-only after an error: {self.committer.failed}")
        if self.readonly_reason is not None:
            return ReadOnly(f"file system is read-only: {self.readonly_reason}")
        if self._closed:
            return ReadOnly("file system is closed")
        try:
            self._keep_mmp()
        except FsError as exc:
            return exc
        self.committer.mark_in_use()
        return None

    def _keep_mmp(self) -> None:
        """Before anything is written: nobody else may have taken the file system over. Raises as `mmp_refresh`."""
        if self.mmp is not None:
            self._refresh_mmp(self.mmp, only_when_due=True)

    def mmp_refresh(self) -> None:
        """Show other hosts that it is in use; to be called every ``mmp.interval`` seconds, in any thread.

        Raises Busy (another host has taken it over), Corrupt, DeviceError; then nothing is written any more.
        """
        if self.mmp is not None and not self._closed:
            self._refresh_mmp(self.mmp, only_when_due=False)

    def _refresh_mmp(self, mmp: MultiMountProtection, *, only_when_due: bool) -> None:
        try:
            mmp.refresh(only_when_due=only_when_due)
        except FsError as exc:
            self.committer.fail(exc)
            raise

    @property
    def error_policy(self) -> str:
        """What happens when damage is found: continue, remount-ro or panic (option, else superblock)."""
        stored = {EXT4_ERRORS_RO: "remount-ro", EXT4_ERRORS_PANIC: "panic"}.get(self._record.s_errors, "continue")
        return self.options.errors or stored

    def note_error(self, exc: FsError) -> None:
        """Damage or a device failure was met: record it, and do what the policy says (kernel: ext4_handle_error).

        Called once for each such failure that reaches a user; failures to record it are logged.
        """
        if self.readonly or self._closed or not isinstance(exc, (Corrupt, DeviceError)):
            return
        try:
            with self.operation(1, Reserve.ALL) as tx:
                tx.touch(self.superblock)
                self.superblock_writer.record_error(exc)
            if self.error_policy == "continue":
                return
            self.commit(durable=True)
        except CommitPending:
            pass  # the commit that is under way is followed by others, which take it along
        except FsError as failure:
            log.error("%s: an error could not be recorded: %s", self.device.name, failure)
        self.readonly_reason = f"after an error: {exc}"
        log.error("%s: now read-only: %s", self.device.name, exc)
        if self.error_policy == "panic" and self.on_panic is not None:
            self.on_panic()

    def _desc_damaged(self, exc: Corrupt) -> None:
        """The kernel does not mount such an image; here it is only read (kernel: ext4_check_descriptors)."""
        if not self.readonly:
            self.readonly_reason = f"a group descriptor is damaged, run e2fsck: {exc}"
            log.error("%s: now read-only: %s", self.device.name, self.readonly_reason)

    def start_writing(self) -> None:
        """To be called before file data goes to the device, which may come before the operation. Raises ReadOnly."""
        refusal = self._refusal()
        if refusal is not None:
            raise refusal

    def now(self) -> int:
        """The clock in ns, at the granularity and range that inodes of this volume can hold."""
        return self.clamp_time(self._clock())

    def time_range(self) -> tuple[int, int, int]:
        """(granularity in ns, first, last second since the epoch) of the times that an inode can hold."""
        if self._has_extra_times:
            return 1, _TIME_MIN, _TIME_MAX_EXTRA
        return NS, _TIME_MIN, _TIME_MAX_GOOD_OLD

    def clamp_time(self, ns: int) -> int:
        """The nearest time (ns) that an inode can hold (kernel: timestamp_truncate)."""
        if 0 <= ns < _TIME_PLAIN and self._has_extra_times:
            return ns
        seconds, rest = divmod(ns, NS)
        top = _TIME_MAX_EXTRA if self._has_extra_times else _TIME_MAX_GOOD_OLD
        if seconds <= _TIME_MIN:
            return _TIME_MIN * NS
        if seconds >= top:
            return top * NS
        return seconds * NS + (rest if self._has_extra_times else 0)

    def operation(self, credits: int, reserve: Reserve = Reserve.ROOT) -> Operation:
        """Start an operation, used as a context manager. Raises ReadOnly."""
        return self.transactions.operation(credits, reserve)

    @property
    def max_credits(self) -> int:
        """What an operation can have at most: it has to fit one transaction."""
        return self.transactions.limit - self.transactions.settle_credits

    def trim(self) -> None:
        """Bring the caches back under their limits; to be called between operations.

        What is dirty cannot be dropped, so much of it is committed first. A failure of that is logged, and refuses
        what would change something from then on.
        """
        self._breathe()
        self.buffers.trim()
        self.inodes.trim()
        self.groups.shrink(self.transactions.running.dirty)

    def _breathe(self) -> None:
        """The part of it that is possible while somebody has inodes or blocks in hand."""
        if len(self.transactions.running.dirty) > self._dirty_limit:
            with suppress(FsError):
                self.commit()
            self.groups.shrink(self.transactions.running.dirty)

    def shrink(self, part: float) -> None:
        """Give memory back: of what the caches hold and nobody needs, keep ``part`` (0 to 1). Between operations."""
        self.inodes.shrink(part)
        self.buffers.shrink(part)
        self.groups.shrink(self.transactions.running.dirty, int(BITMAP_LIMIT * part))

    # -- commit --------------------------------------------------------------------------------------------

    def commit(self, *, durable: bool = False) -> None:
        """Bring all changes to the device; with ``durable`` wait until they would survive a power cut.

        Raises DeviceError, after which the volume is read-only, ReadOnly if it is for such a reason already, and
        CommitPending while a commit that somebody else has started is under way.
        """
        self.committer.commit(durable=durable)

    def note_data_written(self) -> None:
        """File data went to the device: a later durable commit has to flush even if no metadata changed."""
        self.committer.note_data_written()

    def close(self) -> None:
        """Commit, mark the file system clean as it was found, close the device. Raises DeviceError.

        The device is closed in any case. Inodes still on the orphan list stay there: the caller evicts what it knows.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._close_claimed()
        finally:
            self.device.close()
            if self.journal_area is not None:
                self.journal_area.close()

    def _close_claimed(self) -> None:
        """Whoever takes the file system over next has to find everything in place, or a journal that says so."""
        try:
            self.committer.close()
        finally:
            if self.mmp is not None:
                self.mmp.release()

    def _fill_blocks(self, first: int, count: int, data: bytes) -> None:
        """Write ``data``, at most a block, and zeros behind it. Raises DeviceError."""
        size = self.geometry.block_size
        for start in range(first, first + count, ZERO_BLOCKS):
            piece = bytes(min(ZERO_BLOCKS, first + count - start) * size)
            self.device.write(start * size, data + piece[len(data) :] if start == first else piece)
        self.note_data_written()
        if self.alloc.metadata_freed:
            # somebody else is about to write here past our cache of the device, which must have nothing left to write
            self.device.flush()
            for listener in self.alloc.metadata_freed:
                listener(first, count)

    def change_superblocks(self, **fields: bytes) -> None:
        """Set fields of the superblock, in its copies too. Raises ReadOnly, Corrupt, DeviceError."""
        change_superblocks(self.transactions, self.superblock, self.buffers, self.geometry, **fields)

    def on_device_change(self, listener: Callable[[int, int], None]) -> None:
        """``listener`` is told (byte offset, length > 0) of what was metadata before it can become file data."""
        size = self.geometry.block_size
        self.alloc.metadata_freed.append(lambda first, count: listener(first * size, count * size))

    # -- whole file system ---------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        """Kernel: ext4_statfs. With ``minixdf`` the overhead is not taken off."""
        geo = self.geometry
        if self._overhead is None:
            self._overhead = overhead_blocks(self._record, geo, self.groups, self.inodes)
        free = self.superblock.free_blocks
        kept = self.alloc.kept_back(Reserve.NONE)
        uuid = self._record.s_uuid
        fsid = int.from_bytes(uuid[:8], "little") ^ int.from_bytes(uuid[8:], "little")
        return StatFs(
            bsize=geo.block_size,
            blocks=geo.blocks_count - (0 if self.options.minixdf else self._overhead),
            bfree=free,
            bavail=max(free - kept, 0),
            files=geo.inodes_count,
            ffree=self.superblock.free_inodes,
            namemax=255,
            fsid=fsid,
        )


