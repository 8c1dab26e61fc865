"""The blocks of a log, built and parsed: descriptors with their tags, revokes, commits (ext4 docs: Journal).

Pure: bytes in, values out, for the writer and for recovery. What the journal's superblock says about all of them is
a `JournalFeatures` value. Block numbers are those of the file system; a tid is a transaction's number, 32 bits that
wrap around, so that two of them are compared by the sign of their difference.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from py4fs.errors import Corrupt
from py4fs.ext4.checksum import crc32c
from py4fs.ext4.layout.jbd2 import (
    BLOCK_HEADER,
    BLOCK_TAG,
    BLOCK_TAG_3,
    BLOCK_TAIL,
    COMMIT_HEADER,
    JBD2_COMMIT_BLOCK,
    JBD2_CRC32_CHKSUM,
    JBD2_CRC32_CHKSUM_SIZE,
    JBD2_DESCRIPTOR_BLOCK,
    JBD2_FEATURE_COMPAT_CHECKSUM,
    JBD2_FEATURE_INCOMPAT_64BIT,
    JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT,
    JBD2_FEATURE_INCOMPAT_CSUM_V2,
    JBD2_FEATURE_INCOMPAT_CSUM_V3,
    JBD2_FEATURE_INCOMPAT_FAST_COMMIT,
    JBD2_FEATURE_INCOMPAT_REVOKE,
    JBD2_FLAG_ESCAPE,
    JBD2_FLAG_LAST_TAG,
    JBD2_FLAG_SAME_UUID,
    JBD2_MAGIC_NUMBER,
    JBD2_REVOKE_BLOCK,
    JBD2_SUPERBLOCK_V2,
    REVOKE_HEADER,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_M: Final = 0xFFFFFFFF
_U32: Final = Struct(">I")
_U64: Final = Struct(">Q")
_UUID_SIZE: Final = 16
_NS: Final = 1_000_000_000
MAGIC_BYTES: Final = _U32.pack(JBD2_MAGIC_NUMBER)
_ZEROS4: Final = bytes(4)
_CHKSUM: Final = COMMIT_HEADER.offsets["h_chksum"]
_REVERSED_BITS: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

#: where the chain of a v1 checksum begins, for each transaction
CRC32_START: Final = _M


def tid_gt(one: int, other: int) -> bool:
    """Whether transaction `one` is younger than `other`, across the wrap-around (kernel: tid_gt)."""
    return 0 < (one - other & _M) < 1 << 31


def tid_geq(one: int, other: int) -> bool:
    return one == other or tid_gt(one, other)


def next_tid(tid: int) -> int:
    return tid + 1 & _M


@dataclass(frozen=True, slots=True)
class JournalFeatures:
    """How the blocks of one journal look."""

    block_size: int  # bytes
    uuid: bytes = bytes(16)
    #: kind of checksums: 0 none, 1 one crc32 for a transaction in its commit block, 2 and 3 crc32c of every block
    csum: int = 3
    wide: bool = False  # 64-bit block numbers
    revoke: bool = True
    async_commit: bool = False
    fast_commit: bool = False

    @classmethod
    def of(cls, sb: Any) -> JournalFeatures:
        """From a journal superblock record, whose features were found to be known ones."""
        if sb.h_blocktype != JBD2_SUPERBLOCK_V2:
            return cls(sb.s_blocksize, csum=0, revoke=False)
        incompat = sb.s_feature_incompat
        if incompat & JBD2_FEATURE_INCOMPAT_CSUM_V3:
            csum = 3
        elif incompat & JBD2_FEATURE_INCOMPAT_CSUM_V2:
            csum = 2
        else:
            csum = 1 if sb.s_feature_compat & JBD2_FEATURE_COMPAT_CHECKSUM else 0
        return cls(
            sb.s_blocksize,
            sb.s_uuid,
            csum,
            bool(incompat & JBD2_FEATURE_INCOMPAT_64BIT),
            bool(incompat & JBD2_FEATURE_INCOMPAT_REVOKE),
            bool(incompat & JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT),
            bool(incompat & JBD2_FEATURE_INCOMPAT_FAST_COMMIT),
        )

    @property
    def has_tail(self) -> bool:
        """Whether every block has a checksum of its own (v2 and v3)."""
        return self.csum >= 2

    @property
    def seed(self) -> int:
        """What v2 and v3 checksums start from."""
        return crc32c(_M, self.uuid)

    @property
    def tag_size(self) -> int:
        """Bytes of a tag, without the UUID that may follow (kernel: journal_tag_bytes)."""
        if self.csum == 3:
            return BLOCK_TAG_3.size
        # with v2 the kernel counts the checksum's two bytes once more
        size = BLOCK_TAG.size + (2 if self.csum == 2 else 0)
        return size if self.wide else size - 4

    @property
    def body_end(self) -> int:
        """Byte offset behind the last that tags or revokes may use."""
        return self.block_size - (BLOCK_TAIL.size if self.has_tail else 0)

    @property
    def tags_per_block(self) -> int:
        """Blocks that one descriptor block can describe: the kernel leaves room for one more UUID."""
        room = self.body_end - BLOCK_HEADER.size - 2 * _UUID_SIZE
        return room // self.tag_size

    @property
    def revokes_per_block(self) -> int:
        return (self.body_end - REVOKE_HEADER.size) // (8 if self.wide else 4)


# -- blocks of all kinds ---------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What a log block that is not data begins with."""

    blocktype: int
    tid: int


def parse_header(block: Buffer) -> Header | None:
    """None when the block is not one of jbd2's."""
    magic, blocktype, tid = BLOCK_HEADER.unpack_from(block)
    return Header(blocktype, tid) if magic == JBD2_MAGIC_NUMBER else None


def tail_ok(features: JournalFeatures, block: bytes) -> bool:
    """Whether a descriptor or revoke block's own checksum matches (always without v2 or v3)."""
    if not features.has_tail:
        return True
    at = features.body_end
    return bool(BLOCK_TAIL.get(block, at, "t_checksum") == crc32c(features.seed, block[:at], _ZEROS4))


def _set_tail(features: JournalFeatures, block: bytearray) -> bytes:
    if features.has_tail:
        at = features.body_end
        BLOCK_TAIL.pack_into(block, at, crc32c(features.seed, bytes(block[:at]), _ZEROS4))
    return bytes(block)


# -- descriptors and data --------------------------------------------------------------------------------------


class Tag(NamedTuple):
    """One block that a descriptor describes."""

    pblk: int
    escaped: bool
    checksum: int  # 32 bits with v3, 16 with v2, meaningless otherwise


def parse_tags(features: JournalFeatures, block: bytes) -> list[Tag]:
    """The tags of a descriptor block, in the order of their data blocks. Never fails: as far as the block goes."""
    tags: list[Tag] = []
    size, end = features.tag_size, features.body_end
    at = BLOCK_HEADER.size
    codec = BLOCK_TAG_3 if features.csum == 3 else BLOCK_TAG
    # a short tag at the end is padded so that the codec can read what the format does not have
    block += bytes(codec.size)
    while at + size <= end:
        raw = codec.unpack_from(block, at)
        pblk = raw.t_blocknr | raw.t_blocknr_high << 32 if features.wide else raw.t_blocknr
        flags = raw.t_flags
        tags.append(Tag(pblk, bool(flags & JBD2_FLAG_ESCAPE), raw.t_checksum))
        at += size
        if not flags & JBD2_FLAG_SAME_UUID:
            at += _UUID_SIZE
        if flags & JBD2_FLAG_LAST_TAG:
            break
    return tags


def tag_ok(features: JournalFeatures, tag: Tag, tid: int, data: bytes) -> bool:
    """Whether a data block, as it is in the log, matches its tag's checksum."""
    if not features.has_tail:
        return True
    crc = crc32c(features.seed, _U32.pack(tid), data)
    return tag.checksum == (crc if features.csum == 3 else crc & 0xFFFF)


def restore_data(tag: Tag, data: bytes) -> bytes:
    """A data block as it was before it was logged."""
    return MAGIC_BYTES + data[4:] if tag.escaped else data


def build_descriptor(features: JournalFeatures, tid: int, blocks: Sequence[tuple[int, bytes]]) -> list[bytes]:
    """The descriptor of up to `tags_per_block` (block number, bytes) pairs, followed by their data, escaped."""
    assert 0 < len(blocks) <= features.tags_per_block, len(blocks)
    out = bytearray(features.block_size)
    BLOCK_HEADER.pack_into(out, 0, JBD2_MAGIC_NUMBER, JBD2_DESCRIPTOR_BLOCK, tid)
    log = [b""]
    at = BLOCK_HEADER.size
    size = features.tag_size
    sequence = _U32.pack(tid)
    seed = features.seed
    last = len(blocks) - 1
    for index, (pblk, data) in enumerate(blocks):
        flags = JBD2_FLAG_SAME_UUID if index else 0
        if index == last:
            flags |= JBD2_FLAG_LAST_TAG
        if data[:4] == MAGIC_BYTES:
            flags |= JBD2_FLAG_ESCAPE
            data = _ZEROS4 + data[4:]
        crc = crc32c(seed, sequence, data) if features.has_tail else 0
        if features.csum == 3:
            tag = BLOCK_TAG_3.pack(pblk & _M, flags, pblk >> 32, crc)
        else:
            tag = BLOCK_TAG.pack(pblk & _M, crc & 0xFFFF, flags, pblk >> 32)
        out[at : at + min(size, len(tag))] = tag[:size]
        at += size
        if not index:
            out[at : at + _UUID_SIZE] = features.uuid
            at += _UUID_SIZE
        log.append(data)
    log[0] = _set_tail(features, out)
    return log


def build_descriptors(features: JournalFeatures, tid: int, blocks: Sequence[tuple[int, bytes]]) -> list[bytes]:
    """The log blocks (descriptors and data) for any number of (block number, bytes) pairs."""
    step = features.tags_per_block
    log: list[bytes] = []
    for start in range(0, len(blocks), step):
        log += build_descriptor(features, tid, blocks[start : start + step])
    return log


def log_length(features: JournalFeatures, blocks: int, revokes: int) -> int:
    """Log blocks that a transaction of so many data blocks and revoked block numbers takes, its commit included."""
    return blocks - (-blocks // features.tags_per_block) - (-revokes // features.revokes_per_block) + 1


# -- revokes ---------------------------------------------------------------------------------------------------


def build_revokes(features: JournalFeatures, tid: int, pblks: Sequence[int]) -> list[bytes]:
    """Revoke blocks that name all of `pblks`."""
    step = features.revokes_per_block
    width = 8 if features.wide else 4
    log: list[bytes] = []
    for start in range(0, len(pblks), step):
        part = pblks[start : start + step]
        out = bytearray(features.block_size)
        used = REVOKE_HEADER.size + width * len(part)
        REVOKE_HEADER.pack_into(out, 0, JBD2_MAGIC_NUMBER, JBD2_REVOKE_BLOCK, tid, used)
        out[REVOKE_HEADER.size : used] = b"".join(pblk.to_bytes(width, "big") for pblk in part)
        log.append(_set_tail(features, out))
    return log


def parse_revokes(features: JournalFeatures, block: bytes, where: str) -> Iterator[int]:
    """The block numbers of a revoke block. Raises Corrupt when its count is beyond the block."""
    used = REVOKE_HEADER.get(block, 0, "r_count")
    if used > features.body_end:
        raise Corrupt("r_count of a revoke block", where, used, f"at most {features.body_end}")
    entry = _U64 if features.wide else _U32
    count = max(used - REVOKE_HEADER.size, 0) // entry.size
    end = REVOKE_HEADER.size + count * entry.size
    return (pblk for (pblk,) in entry.iter_unpack(memoryview(block)[REVOKE_HEADER.size : end]))


# -- commits ---------------------------------------------------------------------------------------------------


def crc32_be(crc: int, *parts: bytes) -> int:
    """The v1 checksum: crc32, most significant bit first, no inversions; chained over descriptors and data.

    `crc` is `CRC32_START` for the first block of a transaction. Revoke blocks are not part of it.
    """
    # zlib has the reflected one: reflect what goes in and what comes out
    value = int(f"{crc:032b}"[::-1], 2) ^ _M
    for part in parts:
        value = zlib.crc32(part.translate(_REVERSED_BITS), value)
    return int(f"{value ^ _M:032b}"[::-1], 2)


def build_commit(features: JournalFeatures, tid: int, now: int, crc: int = 0) -> bytes:
    """A commit block; `now` in ns since the epoch, `crc` the transaction's v1 checksum where that is used."""
    out = bytearray(features.block_size)
    chained = features.csum == 1
    kind = (JBD2_CRC32_CHKSUM, JBD2_CRC32_CHKSUM_SIZE) if chained else (0, 0)
    seconds, rest = divmod(max(now, 0), _NS)
    head = (JBD2_MAGIC_NUMBER, JBD2_COMMIT_BLOCK, tid)
    COMMIT_HEADER.pack_into(out, 0, *head, *kind, b"\0\0", crc if chained else 0, bytes(28), seconds, rest)
    if features.has_tail:
        _U32.pack_into(out, _CHKSUM, crc32c(features.seed, bytes(out)))
    return bytes(out)


def commit_seconds(block: bytes) -> int:
    """When the transaction was committed, seconds since the epoch."""
    return int(COMMIT_HEADER.get(block, 0, "h_commit_sec"))


def commit_ok(features: JournalFeatures, block: bytes, crc: int) -> bool:
    """Whether a commit block's checksum matches; `crc` is the chain over the transaction (v1 only)."""
    head = COMMIT_HEADER.unpack_from(block)
    kind = (head.h_chksum_type, head.h_chksum_size)
    if features.csum == 1:
        # unused by whoever wrote it, or right
        right = kind == (JBD2_CRC32_CHKSUM, JBD2_CRC32_CHKSUM_SIZE) and head.h_chksum == crc
        return right or (kind == (0, 0) and head.h_chksum == 0)
    if not features.has_tail:
        return True
    blank = block[:_CHKSUM] + _ZEROS4 + block[_CHKSUM + 4 :]
    if head.h_chksum == crc32c(features.seed, blank):
        return True
    # a torn commit block: its first sector made it, the rest, all zeros when written, is older data
    rest = features.block_size - COMMIT_HEADER.size
    return bool(head.h_chksum == crc32c(features.seed, blank[: COMMIT_HEADER.size], bytes(rest)))


def transaction_crc(blocks: Iterable[bytes]) -> int:
    """The v1 checksum of a transaction's descriptor and data blocks as they are in the log."""
    return crc32_be(CRC32_START, *blocks)
