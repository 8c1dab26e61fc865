"""Multiple mount protection: one block says who uses the file system, and its number changes while they do.

The protocol is the kernel's (fs/ext4/mmp.c): a number that is not "clean" is watched for a while, and only when it does
not change the owner is taken to be gone. Time, waiting and the host's name come from outside.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from py4fs.device.base import Device, read_uncached, write_through
from py4fs.errors import Busy, Corrupt, DeviceError, FsError
from py4fs.ext4 import checksum
from py4fs.ext4.features import Incompat, RoCompat
from py4fs.ext4.inode import NS
from py4fs.ext4.layout.mmp import (
    EXT4_MMP_CHECK_MULT,
    EXT4_MMP_MAGIC,
    EXT4_MMP_MAX_CHECK_INTERVAL,
    EXT4_MMP_MIN_CHECK_INTERVAL,
    EXT4_MMP_SEQ_CLEAN,
    EXT4_MMP_SEQ_FSCK,
    EXT4_MMP_SEQ_MAX,
    EXT4_MMP_UPDATE_INTERVAL,
    MMP_BLOCK,
)

log = logging.getLogger(__name__)

#: the most that is added to the interval of another owner while waiting for a sign of life, in seconds
_MOST_EXTRA: Final = 60


@dataclass(frozen=True, slots=True)
class Host:
    """Who we are and how we wait: `clock` gives ns since the epoch, `sleep` takes seconds."""

    clock: Callable[[], int]
    sleep: Callable[[float], None] | None
    rng: random.Random
    nodename: bytes = b""


class MultiMountProtection:
    """Our claim to a file system; of :meth:`claim`."""

    def __init__(self, device: Device, record: Any, host: Host) -> None:
        """`record`: the superblock's. Raises Corrupt when s_mmp_block cannot be."""
        self._device = device
        self._block_size = 1024 << record.s_log_block_size
        self._block: int = record.s_mmp_block
        self._seed = checksum.superblock_seed(record) if _has_checksum(record) else None
        self._host = host
        self._where = f"block {self._block}"
        end = (self._block + 1) * self._block_size
        if self._block <= record.s_first_data_block or end > device.size:
            raise Corrupt("s_mmp_block", "superblock", self._block, "a block of the file system")
        #: seconds between refreshes
        self.interval: int = max(record.s_mmp_update_interval or EXT4_MMP_UPDATE_INTERVAL, 1)
        if self.interval > EXT4_MMP_MAX_CHECK_INTERVAL:
            most = EXT4_MMP_MAX_CHECK_INTERVAL
            raise Corrupt("s_mmp_update_interval", "superblock", f"{self.interval} seconds", f"at most {most}")
        self._seq = EXT4_MMP_SEQ_CLEAN
        self._refreshed = 0  # ns
        #: taken by whoever refreshes: the periodic task and an operation can come at the same time
        self._turn = [None]

    def read(self) -> Any:
        """The block as it is on the device now. Raises Corrupt, BadChecksum, DeviceError."""
        raw = read_uncached(self._device, self._block * self._block_size, MMP_BLOCK.size)
        record = MMP_BLOCK.unpack_from(raw)
        if record.mmp_magic != EXT4_MMP_MAGIC:
            raise Corrupt("mmp_magic", self._where, f"{record.mmp_magic:#x}", f"{EXT4_MMP_MAGIC:#x}")
        if self._seed is not None:
            checksum.verify_mmp(raw, self._seed, self._where)
        return record

    def claim(self) -> None:
        """Make sure that nobody else has it, and say that we do; waits when it is not clean.

        Raises Busy, naming who has it, Corrupt, DeviceError.
        """
        record = self.read()
        check = max(self.interval, EXT4_MMP_MIN_CHECK_INTERVAL, record.mmp_check_interval)
        wait = 0
        if record.mmp_seq == EXT4_MMP_SEQ_FSCK:
            raise Busy(f"mmp: e2fsck is running on it, on {_owner(record)} (or died: tune2fs -E clear_mmp -f)")
        if record.mmp_seq != EXT4_MMP_SEQ_CLEAN:
            if record.mmp_seq > EXT4_MMP_SEQ_MAX:
                raise Corrupt("mmp_seq", self._where, f"{record.mmp_seq:#x}", f"at most {EXT4_MMP_SEQ_MAX:#x}")
            if self._host.sleep is None:
                raise Busy(f"mmp: may be in use by {_owner(record)}")
            check = min(check, EXT4_MMP_MAX_CHECK_INTERVAL)
            wait = min(EXT4_MMP_CHECK_MULT * check + 1, check + _MOST_EXTRA)
            log.info("%s: mmp: waiting twice %d seconds for a sign of %s", self._device.name, wait, _owner(record))
            self._host.sleep(wait)
            self._expect(record.mmp_seq)
        seq = self._host.rng.randrange(1, EXT4_MMP_SEQ_MAX)
        self._write(seq)
        if wait and self._host.sleep is not None:
            self._host.sleep(wait)
        self._expect(seq)

    def _expect(self, seq: int) -> None:
        record = self.read()
        if record.mmp_seq != seq:
            raise Busy(f"mmp: in use by {_owner(record)}")

    def refresh(self, *, only_when_due: bool = False) -> None:
        """Show that we are alive. Raises Busy when somebody has taken it over, Corrupt, DeviceError.

        May be called while another thread is in it: one of the two does nothing then.
        """
        if only_when_due and abs(self._host.clock() - self._refreshed) < self.interval * NS:
            return
        try:
            self._turn.pop()
        except IndexError:
            return
        try:
            self._expect_ours()
            self._write(self._seq % EXT4_MMP_SEQ_MAX + 1)
        finally:
            self._turn.append(None)

    def release(self) -> None:
        """Say that nobody has it any more. Raises as :meth:`refresh`."""
        self._expect_ours()
        self._write(EXT4_MMP_SEQ_CLEAN)

    def _expect_ours(self) -> None:
        record = self.read()
        if record.mmp_seq != self._seq or record.mmp_nodename != self._nodename:
            raise Busy(f"mmp: taken over by {_owner(record)}: the file system is mounted more than once")

    @property
    def _nodename(self) -> bytes:
        return self._host.nodename[:63].ljust(64, b"\0")

    def _write(self, seq: int) -> None:
        now = self._host.clock()
        device = os.fsencode(os.path.basename(self._device.name))[:31]  # noqa: PTH119  (any bytes)
        check = max(EXT4_MMP_CHECK_MULT * self.interval, EXT4_MMP_MIN_CHECK_INTERVAL)
        raw = bytearray(self._block_size)
        MMP_BLOCK.put(
            raw,
            0,
            mmp_magic=EXT4_MMP_MAGIC,
            mmp_seq=seq,
            mmp_time=now // NS,
            mmp_nodename=self._nodename,
            mmp_bdevname=device,
            mmp_check_interval=min(check, EXT4_MMP_MAX_CHECK_INTERVAL),
        )
        if self._seed is not None:
            checksum.set_mmp(raw, self._seed)
        write_through(self._device, self._block * self._block_size, raw)
        self._seq = seq
        self._refreshed = now


@contextmanager
def claimed(device: Device, record: Any, host: Host, *, readonly: bool) -> Iterator[MultiMountProtection | None]:
    """Claim the file system, where it has mmp and is to be written; given up again when what is done inside fails.

    Raises as :meth:`MultiMountProtection.claim`.
    """
    if readonly or not record.s_feature_incompat & Incompat.MMP:
        yield None
        return
    mmp = MultiMountProtection(device, record, host)
    mmp.claim()
    try:
        yield mmp
    except BaseException:
        try:
            mmp.release()
        except FsError as exc:
            log.error("%s: %s", device.name, exc)
        raise


def reader_notice(device: Device, record: Any, host: Host) -> list[str]:
    """What somebody who only reads should know, who is let in whoever else is there (as by the kernel)."""
    if not record.s_feature_incompat & Incompat.MMP:
        return []
    try:
        found = MultiMountProtection(device, record, host).read()
    except (Corrupt, DeviceError) as exc:
        return [f"the mmp block is damaged, which does not matter for reading: {exc}"]
    if found.mmp_seq == EXT4_MMP_SEQ_CLEAN:
        return []
    return [f"mmp: may be in use by {_owner(found)}: what is read can change meanwhile"]


def _has_checksum(record: Any) -> bool:
    return bool(record.s_feature_ro_compat & RoCompat.METADATA_CSUM)


def _owner(record: Any) -> str:
    node = record.mmp_nodename.partition(b"\0")[0].decode(errors="backslashreplace")
    device = record.mmp_bdevname.partition(b"\0")[0].decode(errors="backslashreplace")
    return f"{node or 'an unnamed host'} ({device or 'unknown device'}, last seen at {record.mmp_time})"
