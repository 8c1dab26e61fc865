"""The superblock in memory: the counters and fields that change while a volume is in use."""

from __future__ import annotations

from typing import Any

from py4fs.device.base import Device
from py4fs.errors import Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.layout.superblock import SUPERBLOCK

#: byte offset of the primary superblock, whatever the block size (ext4 docs: superblock)
SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024


class Superblock:
    """Raw bytes plus the fields that operations change; encoded late like everything else."""

    __slots__ = (
        "feature_compat",
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
        if record.s_feature_incompat & 0x80:
            self.free_blocks |= record.s_free_blocks_count_hi << 32
        self.free_inodes: int = record.s_free_inodes_count
        self.last_orphan: int = record.s_last_orphan
        self.state: int = record.s_state
        self.feature_compat: int = record.s_feature_compat
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
            s_feature_ro_compat=self.feature_ro_compat,
            s_wtime=self.wtime & 0xFFFFFFFF,
            s_wtime_hi=self.wtime >> 32 & 0xFF,
        )
        if SUPERBLOCK.get(raw, 0, "s_feature_incompat") & 0x80:
            SUPERBLOCK.put(raw, 0, s_free_blocks_count_hi=self.free_blocks >> 32)
        checksum.set_superblock(raw)
        return bytes(raw)
