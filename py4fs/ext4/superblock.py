"""The superblock in memory: the counters and fields that change while a volume is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from py4fs.device.base import Device
from py4fs.errors import Corrupt, FsError
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import RANK_SUPER, BufferCache, RawBlock
from py4fs.ext4.features import Incompat
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.inode import NS
from py4fs.ext4.layout.superblock import (
    ERROR_CODES,
    EXT4_DYNAMIC_REV,
    EXT4_ERR_UNKNOWN,
    EXT4_ERROR_FS,
    EXT4_GOOD_OLD_FIRST_INO,
    EXT4_GOOD_OLD_INODE_SIZE,
    EXT4_GOOD_OLD_REV,
    EXT4_VALID_FS,
    SUPERBLOCK,
)
from py4fs.ext4.store import BlockImage, write_in_place
from py4fs.ext4.transaction import Undoable

#: byte offset of the primary superblock, whatever the block size (ext4 docs: superblock)
SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 1024


class Superblock(Undoable):
    """Raw bytes plus the fields that operations change; encoded late like everything else."""

    __slots__ = (
        "feature_compat",
        "feature_incompat",
        "feature_ro_compat",
        "free_blocks",
        "free_inodes",
        "last_orphan",
        "raw",
        "state",
        "wtime",
    )

    def __init__(self, raw: bytes) -> None:
        self.raw = bytearray(raw)
        record = SUPERBLOCK.unpack_from(self.raw)
        self.free_blocks: int = record.s_free_blocks_count_lo
        if record.s_feature_incompat & Incompat.BIT64:
            self.free_blocks |= record.s_free_blocks_count_hi << 32
        self.free_inodes: int = record.s_free_inodes_count
        self.last_orphan: int = record.s_last_orphan
        self.state: int = record.s_state
        self.feature_compat: int = record.s_feature_compat
        self.feature_incompat: int = record.s_feature_incompat
        self.feature_ro_compat: int = record.s_feature_ro_compat
        self.wtime: int = record.s_wtime | record.s_wtime_hi << 32

    @classmethod
    def read(cls, device: Device) -> Superblock:
        """Read the primary superblock. Raises DeviceError, Corrupt when the device cannot hold one."""
        if device.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
            raise Corrupt("no room for a superblock", "byte 1024", f"{device.size} bytes", "at least 2048 bytes")
        return cls(device.read(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE))

    @property
    def record(self) -> Any:
        """The superblock as read (fields that change while mounted are attributes of this object)."""
        return SUPERBLOCK.unpack_from(self.raw)

    def save(self) -> tuple[int, ...]:
        features = self.feature_compat, self.feature_ro_compat
        return (self.free_blocks, self.free_inodes, self.last_orphan, self.state, *features)

    def restore(self, state: tuple[int, ...]) -> None:
        self.free_blocks, self.free_inodes, self.last_orphan, self.state, *features = state
        self.feature_compat, self.feature_ro_compat = features

    def put(self, **fields: Any) -> None:
        """Change rarely written fields (mount count, error record, …) directly in the raw bytes."""
        SUPERBLOCK.put(self.raw, 0, **fields)

    def make_dynamic(self) -> None:
        """A feature came up that the oldest revision cannot say (kernel: ext4_update_dynamic_rev)."""
        if self.record.s_rev_level == EXT4_GOOD_OLD_REV:
            self.put(
                s_rev_level=EXT4_DYNAMIC_REV,
                s_first_ino=EXT4_GOOD_OLD_FIRST_INO,
                s_inode_size=EXT4_GOOD_OLD_INODE_SIZE,
            )

    def encode(self) -> bytes:
        """The 1024 bytes as they go to the device, checksum stamped."""
        raw = self.raw
        SUPERBLOCK.put(
            raw,
            0,
            s_free_blocks_count_lo=self.free_blocks & 0xFFFFFFFF,
            s_free_inodes_count=self.free_inodes,
            s_last_orphan=self.last_orphan,
            s_state=self.state,
            s_feature_compat=self.feature_compat,
            s_feature_incompat=self.feature_incompat,
            s_feature_ro_compat=self.feature_ro_compat,
            s_wtime=self.wtime & 0xFFFFFFFF,
            s_wtime_hi=self.wtime >> 32 & 0xFF,
        )
        if self.feature_incompat & Incompat.BIT64:
            SUPERBLOCK.put(raw, 0, s_free_blocks_count_hi=self.free_blocks >> 32)
        checksum.set_superblock(raw)
        return bytes(raw)


class SuperblockWriter:
    """Brings the superblock to its place on the device, alone or as one of the blocks of a commit."""

    def __init__(
        self, superblock: Superblock, geometry: Geometry, buffers: BufferCache, device: Device, now: Callable[[], int]
    ) -> None:
        """``now`` gives ns since the epoch."""
        self._superblock = superblock
        self._geometry = geometry
        self._buffers = buffers
        self._device = device
        self._now = now
        self._found_state = superblock.state
        self._mount_noted = False

    def preload(self) -> None:
        """Have the superblock's block in memory. Raises DeviceError."""
        self._buffers.get(self._geometry.super_block()[0], RawBlock, RawBlock)

    def image(self) -> BlockImage:
        """The block with the superblock in it, its write time now. Raises DeviceError."""
        self._superblock.wtime = self._now() // NS
        pblk, offset = self._geometry.super_block()
        block = self._buffers.get(pblk, RawBlock, RawBlock)
        raw = self._superblock.encode()
        block.data[offset : offset + len(raw)] = raw
        return BlockImage(RANK_SUPER, pblk, bytes(block.data))

    def write(self) -> None:
        """Write it in place, without a flush. Raises DeviceError."""
        write_in_place(self._device, self._geometry.block_size, [self.image()])

    def note_mount(self, mounted_on: bytes) -> None:
        """What the kernel records when it mounts: time, count, place. Once, however often it is marked as in use."""
        if self._mount_noted:
            return
        self._mount_noted = True
        record = self._superblock.record
        now = self._now() // NS
        fields: dict[str, int | bytes] = {
            "s_mtime": now & 0xFFFFFFFF,
            "s_mtime_hi": now >> 32 & 0xFF,
            "s_mnt_count": min(int(record.s_mnt_count) + 1, 0xFFFF),
        }
        if mounted_on:
            fields["s_last_mounted"] = mounted_on[:63]
        self._superblock.put(**fields)

    def record_error(self, exc: FsError) -> None:
        """Note damage or a device failure as the kernel does (ext4 docs: s_error_count and what follows it)."""
        sb, record = self._superblock, self._superblock.record
        now = self._now() // NS
        code = ERROR_CODES.get(exc.errno or 0, EXT4_ERR_UNKNOWN)
        func = (exc.kind if isinstance(exc, Corrupt) else type(exc).__name__).encode()[:31]
        fields: dict[str, int | bytes] = {"s_error_count": min(record.s_error_count + 1, 0xFFFFFFFF)}
        for which in ("first", "last") if not record.s_first_error_time else ("last",):
            fields[f"s_{which}_error_time"] = now & 0xFFFFFFFF
            fields[f"s_{which}_error_time_hi"] = now >> 32 & 0xFF
            fields[f"s_{which}_error_func"] = func
            fields[f"s_{which}_error_errcode"] = code
            fields |= {f"s_{which}_error_{what}": 0 for what in ("ino", "block", "line")}
        sb.put(**fields)
        sb.state |= EXT4_ERROR_FS
        self._found_state |= EXT4_ERROR_FS

    def set_recover(self, recover: bool) -> None:
        """Write needs_recovery set or cleared: whether the journal has to be looked at."""
        if recover:
            self._superblock.feature_incompat |= int(Incompat.RECOVER)
        else:
            self._superblock.feature_incompat &= ~int(Incompat.RECOVER)
        self.write()

    def set_valid(self, valid: bool) -> None:
        """Write VALID cleared, or the state as it was found: how e2fsck knows, where there is no journal."""
        if valid:
            self._superblock.state = self._found_state
        else:
            self._superblock.state &= ~EXT4_VALID_FS
        self.write()
