"""Where a journal's blocks are, and its superblock.

The log is a file (inode 8) or a device of its own; either way its blocks are numbered from 0 here, and found by a
list of physical runs. (ext4 docs: Journal, Super Block, External Journal.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from py4fs.device.base import Device
from py4fs.errors import BadChecksum, Corrupt, UnsupportedFeature
from py4fs.ext4.checksum import crc32c
from py4fs.ext4.journal.format import JournalFeatures
from py4fs.ext4.layout.jbd2 import (
    JBD2_CRC32C_CHKSUM,
    JBD2_DEFAULT_FAST_COMMIT_BLOCKS,
    JBD2_FEATURE_COMPAT_CHECKSUM,
    JBD2_FEATURE_INCOMPAT_64BIT,
    JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT,
    JBD2_FEATURE_INCOMPAT_CSUM_V2,
    JBD2_FEATURE_INCOMPAT_CSUM_V3,
    JBD2_FEATURE_INCOMPAT_FAST_COMMIT,
    JBD2_FEATURE_INCOMPAT_REVOKE,
    JBD2_MAGIC_NUMBER,
    JBD2_MIN_JOURNAL_BLOCKS,
    JBD2_SUPERBLOCK_V1,
    JBD2_SUPERBLOCK_V2,
    JOURNAL_SUPERBLOCK,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

Runs = Sequence[tuple[int, int]]

_KNOWN_INCOMPAT: Final = {
    JBD2_FEATURE_INCOMPAT_REVOKE: "journal_incompat_revoke",
    JBD2_FEATURE_INCOMPAT_64BIT: "journal_64bit",
    JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT: "journal_async_commit",
    JBD2_FEATURE_INCOMPAT_CSUM_V2: "journal_checksum_v2",
    JBD2_FEATURE_INCOMPAT_CSUM_V3: "journal_checksum_v3",
    JBD2_FEATURE_INCOMPAT_FAST_COMMIT: "fast_commit",
}
_CSUM: Final = JOURNAL_SUPERBLOCK.offsets["s_checksum"]
_BLANK: Final = bytes(4)


def superblock_csum(raw: bytes) -> int:
    """s_checksum of a journal superblock (1024 bytes): crc32c with the field itself as zeros."""
    size = JOURNAL_SUPERBLOCK.size
    return crc32c(0xFFFFFFFF, raw[:_CSUM], _BLANK, raw[_CSUM + 4 : size])


class JournalArea:
    """The blocks of one journal, and its superblock. Made by :meth:`load`."""

    def __init__(self, device: Device, runs: Runs, raw: bytes, superblock_block: int, external: bool) -> None:
        """``runs``: (first physical block, count), in the log's order; ``raw``: the superblock, already checked."""
        self.device = device
        self.runs = list(runs)
        self.external = external
        self._raw = bytearray(raw[: JOURNAL_SUPERBLOCK.size])
        self._superblock_block = superblock_block
        self._starts = [0]
        self._sorted = sorted(self.runs)
        for _, count in self.runs:
            self._starts.append(self._starts[-1] + count)
        record = self.record
        self.features = JournalFeatures.of(record)
        self.block_size: int = record.s_blocksize
        #: blocks of the journal, its superblock included
        self.maxlen: int = record.s_maxlen
        #: the log is blocks first … last - 1, and wraps around
        self.first: int = record.s_first
        self.last: int = self.maxlen
        #: fast commits are in blocks fast_first … maxlen - 1; without the feature there are none
        self.fast_first: int = self.maxlen
        if self.features.fast_commit:
            self.last -= record.s_num_fc_blks or JBD2_DEFAULT_FAST_COMMIT_BLOCKS
            # as the kernel has it, the block between the two is never used
            self.fast_first = self.last + 1
        #: first transaction that may be in the log
        self.sequence: int = record.s_sequence
        #: where in the log it begins; 0 when there is nothing to recover
        self.start: int = record.s_start
        #: what the kernel noted when it gave up on the journal, a negative errno; 0 when all is well
        self.errno: int = record.s_errno - (1 << 32) if record.s_errno >> 31 else record.s_errno

    @classmethod
    def load(
        cls, device: Device, runs: Runs, block_size: int, *, superblock_block: int = 0, external: bool = False
    ) -> JournalArea:
        """Read and check the journal superblock in log block ``superblock_block``.

        Raises Corrupt, BadChecksum, UnsupportedFeature, DeviceError (kernel: journal_get_superblock).
        """
        total = sum(count for _, count in runs)
        if total <= superblock_block:
            raise Corrupt("journal", device.name, f"{total} blocks", f"at least {JBD2_MIN_JOURNAL_BLOCKS}")
        pblk = next(iter(_map(runs, superblock_block)))[0]
        raw = device.read(pblk * block_size, max(block_size, JOURNAL_SUPERBLOCK.size))
        raw = raw[: JOURNAL_SUPERBLOCK.size]
        _check(raw, block_size, total, superblock_block)
        return cls(device, runs, raw, superblock_block, external)

    @property
    def record(self) -> Any:
        """The superblock as it was last read or stored."""
        return JOURNAL_SUPERBLOCK.unpack_from(self._raw)

    @property
    def length(self) -> int:
        """Blocks that the log goes around in."""
        return self.last - self.first

    def wrap(self, block: int) -> int:
        """The log block behind which ``block`` ends up when counted beyond the log's end."""
        return self.first + (block - self.first) % self.length

    def _pieces(self, block: int, count: int) -> list[tuple[int, int]]:
        """Physical (first, count) runs of log blocks [block, block + count)."""
        if block < 0 or count < 0 or block + count > min(self.maxlen, self._starts[-1]):
            raise Corrupt("journal block", self.device.name, f"{block}+{count}", f"below {self.maxlen}")
        pieces: list[tuple[int, int]] = []
        index = bisect_right(self._starts, block) - 1
        while count:
            first, length = self.runs[index]
            skip = block - self._starts[index]
            part = min(count, length - skip)
            pieces.append((first + skip, part))
            block += part
            count -= part
            index += 1
        return pieces

    def physical(self, block: int) -> int:
        """Where log block ``block`` is on the device. Raises Corrupt when there is no such block."""
        return self._pieces(block, 1)[0][0]

    def owns(self, pblk: int) -> bool:
        """Whether this block of the file system is one of the journal's own."""
        index = bisect_right(self._sorted, (pblk, 1 << 64)) - 1
        return index >= 0 and not self.external and pblk < sum(self._sorted[index])

    def read(self, block: int, count: int = 1) -> bytes:
        """Log blocks [block, block + count), which do not wrap around. Raises DeviceError, Corrupt."""
        size = self.block_size
        parts = [self.device.read(first * size, n * size) for first, n in self._pieces(block, count)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_around(self, block: int, count: int) -> bytes:
        """The same for blocks of the log, on from its beginning where its end is reached."""
        ahead = min(count, self.last - block)
        data = self.read(block, ahead)
        return data if ahead == count else data + self.read(self.first, count - ahead)

    def write(self, block: int, parts: Sequence[Buffer]) -> None:
        """Write whole blocks from log block ``block`` on, without wrapping around. Raises DeviceError, Corrupt."""
        size = self.block_size
        at = 0
        for first, count in self._pieces(block, len(parts)):
            self.device.writev(first * size, parts[at : at + count])
            at += count

    def write_around(self, block: int, parts: Sequence[Buffer]) -> None:
        """The same for blocks of the log, on from its beginning where its end is reached."""
        ahead = min(len(parts), self.last - block)
        self.write(block, parts[:ahead])
        if ahead < len(parts):
            self.write(self.first, parts[ahead:])

    def store_superblock(
        self, *, sequence: int | None = None, start: int | None = None, errno: int | None = None, head: int = 0
    ) -> None:
        """Change what is given and write the superblock; no flush. Raises DeviceError.

        ``errno`` is negative, or 0 to clear it; ``head`` is where an empty log (start 0) continues.
        """
        if sequence is not None:
            self.sequence = sequence
        if start is not None:
            self.start = start
        if errno is not None:
            self.errno = errno
        raw = self._raw
        JOURNAL_SUPERBLOCK.put(
            raw, 0, s_sequence=self.sequence, s_start=self.start, s_errno=self.errno & 0xFFFFFFFF
        )
        if self.record.h_blocktype == JBD2_SUPERBLOCK_V2:
            JOURNAL_SUPERBLOCK.put(raw, 0, s_head=head)
            if self.features.has_tail:
                JOURNAL_SUPERBLOCK.put(raw, 0, s_checksum=superblock_csum(bytes(raw)))
        self.device.write(self.physical(self._superblock_block) * self.block_size, raw)

    def upgrade(self, *, csum: bool, wide: bool) -> None:
        """Turn on the features that a writer of this file system uses; stored with the superblock's next change.

        Only for an empty log (kernel: set_journal_csum_feature_set, jbd2_journal_set_features).
        """
        assert not self.start, "the log is not empty"
        if self.record.h_blocktype != JBD2_SUPERBLOCK_V2:
            return
        compat, incompat = self.record.s_feature_compat, self.record.s_feature_incompat
        incompat |= JBD2_FEATURE_INCOMPAT_REVOKE
        if wide:
            incompat |= JBD2_FEATURE_INCOMPAT_64BIT
        kind = self.record.s_checksum_type
        if csum:
            compat &= ~JBD2_FEATURE_COMPAT_CHECKSUM
            incompat = incompat & ~JBD2_FEATURE_INCOMPAT_CSUM_V2 | JBD2_FEATURE_INCOMPAT_CSUM_V3
            kind = JBD2_CRC32C_CHKSUM
        JOURNAL_SUPERBLOCK.put(
            self._raw, 0, s_feature_compat=compat, s_feature_incompat=incompat, s_checksum_type=kind
        )
        self.features = JournalFeatures.of(self.record)

    def flush(self) -> None:
        """Return when everything written before is durable. Raises DeviceError."""
        self.device.flush()

    def close(self) -> None:
        """Close the journal's device if it has one of its own."""
        if self.external:
            self.device.close()


def _map(runs: Runs, block: int) -> list[tuple[int, int]]:
    for first, count in runs:
        if block < count:
            return [(first + block, count - block)]
        block -= count
    return []


def _check(raw: bytes, block_size: int, total: int, superblock_block: int) -> None:
    sb = JOURNAL_SUPERBLOCK.unpack_from(raw)
    where = "journal superblock"

    def refuse(field: str, got: object, want: object) -> Corrupt:
        return Corrupt(field, where, got, want)

    if sb.h_magic != JBD2_MAGIC_NUMBER:
        raise refuse("h_magic", f"{sb.h_magic:#010x}", f"{JBD2_MAGIC_NUMBER:#010x}")
    if sb.h_blocktype not in (JBD2_SUPERBLOCK_V1, JBD2_SUPERBLOCK_V2):
        raise refuse("h_blocktype", sb.h_blocktype, "3 or 4 (a superblock)")
    if sb.s_blocksize != block_size:
        raise refuse("s_blocksize", sb.s_blocksize, block_size)
    if sb.h_blocktype == JBD2_SUPERBLOCK_V2:
        _check_features(raw, sb, where)
    if not superblock_block < sb.s_first < sb.s_maxlen:
        raise refuse("s_first", sb.s_first, f"{superblock_block + 1} to {sb.s_maxlen - 1}")
    if sb.s_maxlen > total:
        raise refuse("s_maxlen", sb.s_maxlen, f"at most {total}, the journal's blocks")
    last = sb.s_maxlen
    if sb.h_blocktype == JBD2_SUPERBLOCK_V2 and sb.s_feature_incompat & JBD2_FEATURE_INCOMPAT_FAST_COMMIT:
        last -= sb.s_num_fc_blks or JBD2_DEFAULT_FAST_COMMIT_BLOCKS
    if last - sb.s_first + 1 < JBD2_MIN_JOURNAL_BLOCKS:
        want = f"at least {JBD2_MIN_JOURNAL_BLOCKS} blocks (without those for fast commits)"
        raise refuse("s_maxlen", f"{sb.s_maxlen}, {last} for the log", want)
    if sb.s_start and not sb.s_first <= sb.s_start < last:
        raise refuse("s_start", sb.s_start, f"0, or {sb.s_first} to {last - 1}")


def _check_features(raw: bytes, sb: Any, where: str) -> None:
    incompat, compat = sb.s_feature_incompat, sb.s_feature_compat
    known = sum(_KNOWN_INCOMPAT)
    unknown = [f"journal FEATURE_I{bit}" for bit in range(32) if incompat & ~known & 1 << bit]
    unknown += [f"journal FEATURE_R{bit}" for bit in range(32) if sb.s_feature_ro_compat >> bit & 1]
    if unknown:
        raise UnsupportedFeature(unknown, f"{where}: unsupported feature(s): {', '.join(unknown)}")
    two, three = incompat & JBD2_FEATURE_INCOMPAT_CSUM_V2, incompat & JBD2_FEATURE_INCOMPAT_CSUM_V3
    if (two and three) or ((two or three) and compat & JBD2_FEATURE_COMPAT_CHECKSUM):
        raise Corrupt("checksum features", where, f"{compat:#x}, {incompat:#x}", "at most one of v1, v2 and v3")
    if two or three:
        if sb.s_checksum_type != JBD2_CRC32C_CHKSUM:
            raise Corrupt("s_checksum_type", where, sb.s_checksum_type, f"{JBD2_CRC32C_CHKSUM} (crc32c)")
        want = superblock_csum(raw)
        if sb.s_checksum != want:
            raise BadChecksum("s_checksum", where, f"{sb.s_checksum:#010x}", f"{want:#010x}")
