"""What opening a volume does about its journal: find it, replay it, leave a file system that needs no journal.

Everything is worked out in memory first, over an `OverlayDevice`: the replayed blocks, the fast commits on top, the
free counts. A volume opened for reading is served from there and not one byte is written. Opened for writing, the
same blocks go to their places, in an order that can be interrupted anywhere and begun again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from py4fs.device.base import Device
from py4fs.device.overlay import OverlayDevice
from py4fs.errors import Corrupt, DeviceError, FsError, NeedsRecovery
from py4fs.ext4 import checksum
from py4fs.ext4.features import Compat, Features, Incompat, gate
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.journal.fast_commit import RawVolume, replay_fast_commits, scan_fast_commits
from py4fs.ext4.journal.format import build_commit, build_descriptors, next_tid, transaction_crc
from py4fs.ext4.journal.locate import external_journal, internal_journal
from py4fs.ext4.journal.recovery import Replay, recover
from py4fs.ext4.layout.superblock import EXT4_ERROR_FS
from py4fs.ext4.superblock import Superblock

log = logging.getLogger(__name__)

_HINT: Final = "run e2fsck, or look at the image as it is with -o norecovery"


@dataclass(slots=True)
class Opened:
    """What a volume goes on with."""

    #: shows the recovered file system
    device: Device
    superblock: Superblock
    #: None without a journal, or when it is not looked at
    area: JournalArea | None = None
    #: why nothing may be written, if that came up here
    readonly_reason: str | None = None
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """How the journal is to be treated."""

    #: the device must not be written
    readonly: bool
    #: leave the journal alone
    norecovery: bool
    #: where an external journal is; it is closed by whoever closes the area
    journal_device: Device | None
    #: ns since the epoch
    clock: Callable[[], int]
    #: a volume without a journal on a device that can be written, for replaying fast commits
    open_raw: Callable[[Device, Superblock], RawVolume]


def open_journal(device: Device, superblock: Superblock, request: Request) -> Opened:
    """Find and, where needed, replay the journal of the file system on ``device``.

    Raises Corrupt, BadChecksum, UnsupportedFeature, NeedsRecovery (the journal is elsewhere), DeviceError. Nothing
    has been written by then, except after DeviceError, when it is all the same: the next attempt begins again.
    """
    opened = Opened(device, superblock)
    record = superblock.record
    features = Features.of(record)
    needed = bool(features.incompat & Incompat.RECOVER)
    if request.norecovery:
        if needed:
            opened.notices.append("the journal was not replayed (norecovery): what is shown may be inconsistent")
        opened.readonly_reason = "norecovery"
        return opened
    if not features.compat & Compat.HAS_JOURNAL:
        if needed:
            opened.readonly_reason = "needs_recovery is set, but there is no journal: run e2fsck"
        return opened
    geometry = Geometry.of(record, device.size)
    try:
        area = _find(device, record, geometry, request.journal_device)
        if area is None and needed:
            raise NeedsRecovery(f"the external journal {_uuid(record)} must be replayed: name it with journal_path=")
        if area is None:
            opened.readonly_reason = f"its journal is external ({_uuid(record)}): name it with journal_path="
            return opened
        opened.area = area
        if needed:
            return _Recovery(opened, area, geometry, request).run()
    except Corrupt as exc:
        if needed or not request.readonly:
            exc.hint = _HINT
            raise
        opened.notices.append(f"the journal is damaged, which does not matter for reading: {exc}")
        return opened
    _leave_clean(opened, area, geometry, request)
    return opened


def _uuid(record: Any) -> str:
    return f"UUID {record.s_journal_uuid.hex()}"


def _find(device: Device, record: Any, geometry: Geometry, elsewhere: Device | None) -> JournalArea | None:
    if record.s_journal_inum:
        return internal_journal(device, record, geometry)
    if elsewhere is None:
        return None
    return external_journal(elsewhere, record, geometry.block_size)


def _leave_clean(opened: Opened, area: JournalArea, geometry: Geometry, request: Request) -> None:
    """needs_recovery is not set: whatever the journal holds is old, and must never be replayed (jbd2_journal_wipe)."""
    if area.start:
        opened.notices.append("the journal is not empty, but needs_recovery is not set: its contents are ignored")
    if area.errno:
        opened.superblock.state |= EXT4_ERROR_FS
        opened.notices.append(f"the journal was aborted with error {-area.errno} the last time")
    if request.readonly or not (area.start or area.errno):
        return
    if area.errno:
        _write_superblock(opened.device, opened.superblock)
        opened.device.flush()
    if area.start:
        area.store_superblock(sequence=_beyond(area, geometry), start=0, errno=0)
    else:
        area.store_superblock(errno=0, head=area.record.s_head)
    area.flush()


def _beyond(area: JournalArea, geometry: Geometry) -> int:
    """A transaction number that nothing in the log can have."""
    try:
        return recover(area, geometry.blocks_count).next_sequence
    except Corrupt:
        return area.sequence + area.maxlen & 0xFFFFFFFF


class _Recovery:
    """One replay, from what the journal holds to a file system that is served or written."""

    def __init__(self, opened: Opened, area: JournalArea, geometry: Geometry, request: Request) -> None:
        self._opened = opened
        self._device = opened.device
        self._area = area
        self._geometry = geometry
        self._request = request
        #: why fast commits were dropped
        self._error: FsError | None = None

    def run(self) -> Opened:
        opened, area, geometry = self._opened, self._area, self._geometry
        replay = recover(area, geometry.blocks_count) if area.start else None
        blocks = {} if replay is None else replay.blocks
        overlay = OverlayDevice(self._device, geometry.block_size, blocks, writable=True)
        opened.superblock = superblock = self._superblock(overlay)
        if replay is not None and replay.failure is None:
            self._fast_commits(overlay, replay)
            superblock = opened.superblock
        failure = replay.failure if replay is not None else None
        volume = self._request.open_raw(overlay, superblock)
        # the superblock's own counts are not in the kernel's transactions, only the descriptors' are
        superblock.free_blocks, superblock.free_inodes = volume.groups.count_free()
        error = self._error or failure
        if error is not None:
            volume.superblock_writer.record_error(error)
        if area.errno:
            superblock.state |= EXT4_ERROR_FS
            opened.notices.append(f"the journal was aborted with error {-area.errno} the last time")
        if replay is not None:
            opened.notices += [f"journal: {problem}" for problem in replay.problems]
            opened.notices.append(_summary(replay, self._request.readonly))
        if failure is not None:
            opened.readonly_reason = f"the journal is damaged, {_HINT.partition(',')[0]}: {failure}"
        overlay.readonly = True
        if self._request.readonly:
            opened.device = overlay
        elif failure is not None:
            self._write_damaged(replay)
        else:
            self._write(overlay, replay)
        return opened

    def _superblock(self, overlay: OverlayDevice) -> Superblock:
        """The superblock as the replay leaves it. Raises Corrupt, BadChecksum, UnsupportedFeature."""
        superblock = Superblock.read(overlay)
        gate(superblock.record)
        if Features.of(superblock.record).metadata_csum:
            checksum.verify_superblock(bytes(superblock.raw))
        geometry = Geometry.of(superblock.record, overlay.size)
        if geometry.block_size != self._geometry.block_size:
            want = self._geometry.block_size
            raise Corrupt("block size", "superblock replayed from the journal", geometry.block_size, want)
        return superblock

    def _fast_commits(self, overlay: OverlayDevice, replay: Replay) -> None:
        if not self._area.features.fast_commit:
            return
        fast = scan_fast_commits(self._area, replay.end, self._geometry.inode_size)
        replay.problems += fast.problems
        if not fast.tags:
            return
        try:
            replay_fast_commits(self._request.open_raw(overlay, self._opened.superblock), fast)
        except DeviceError:
            raise
        except FsError as exc:
            # The full commits are whole and are kept. The fast ones go: e2fsck would only trip over them too.
            overlay.written.clear()
            self._opened.superblock = self._superblock(overlay)
            replay.problems.append(str(exc))
            self._error = exc
            self._opened.readonly_reason = f"fast commits could not be replayed, run e2fsck: {exc}"
        else:
            replay.fast_commits = fast.commits

    # -- writing ---------------------------------------------------------------------------------------------------

    def _put_in_place(self, replay: Replay) -> None:
        size = self._geometry.block_size
        for first, parts in replay.blocks.runs():
            self._device.writev(first * size, parts)
        self._device.flush()

    def _write_damaged(self, replay: Replay | None) -> None:
        """As the kernel: what could be replayed is, and journal and needs_recovery stay for e2fsck to see."""
        if replay is not None:
            self._put_in_place(replay)
        _write_superblock(self._device, self._opened.superblock)
        self._device.flush()

    def _write(self, overlay: OverlayDevice, replay: Replay | None) -> None:
        """All blocks to their places, then the journal is emptied, then needs_recovery is cleared."""
        area, device, size = self._area, self._device, self._geometry.block_size
        sequence = next_tid(area.sequence)
        if replay is not None:
            sequence = replay.next_sequence
            self._put_in_place(replay)
            if overlay.written:
                self._log_fast_commits(overlay, replay)
                for pblk in sorted(overlay.written):
                    device.write(pblk * size, overlay.written[pblk])
                device.flush()
        superblock = self._opened.superblock
        _write_superblock(device, superblock)
        device.flush()
        area.store_superblock(sequence=sequence, start=0, errno=0)
        area.flush()
        superblock.feature_incompat &= ~int(Incompat.RECOVER)
        _write_superblock(device, superblock)
        device.flush()

    def _log_fast_commits(self, overlay: OverlayDevice, replay: Replay) -> None:
        """What fast commits lead to becomes one full commit, so that writing it in place can be interrupted.

        The log up to here is in place already, so its tail moves to its head, which leaves the fast commits valid;
        the full commit takes the number that they have, and from then on counts instead of them.
        """
        area = self._area
        blocks = sorted(overlay.written.items())
        parts = build_descriptors(area.features, replay.end, blocks)
        if len(parts) + 1 >= area.length:
            log.warning("%s: fast commits change too much for the log, they are replayed without it", area.device.name)
            return
        area.store_superblock(sequence=replay.end, start=replay.head)
        area.flush()
        area.write_around(replay.head, parts)
        area.flush()
        crc = transaction_crc(parts) if area.features.csum == 1 else 0
        commit = build_commit(area.features, replay.end, self._request.clock(), crc)
        area.write(area.wrap(replay.head + len(parts)), [commit])
        area.flush()


def _summary(replay: Replay, readonly: bool) -> str:
    parts = [f"{replay.transactions} transaction(s)"]
    if replay.fast_commits:
        parts.append(f"{replay.fast_commits} fast commit(s)")
    where = ", in memory only" if readonly else ""
    return f"journal replayed: {' and '.join(parts)}, {len(replay.blocks)} block(s){where}"


def _write_superblock(device: Device, superblock: Superblock) -> None:
    device.write(1024, superblock.encode())
