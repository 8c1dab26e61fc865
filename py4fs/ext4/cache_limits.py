"""How much may be kept in memory: one number of bytes, divided among the caches."""

from __future__ import annotations

from typing import Final, NamedTuple

#: bytes that a cached inode takes with what hangs on it, and a cached block besides its contents (measured)
_INODE_BYTES: Final = 2048
_BLOCK_OVERHEAD: Final = 512
#: below these, operations would commit again and again only to make room
_LEAST_BUFFERS: Final = 512
_LEAST_INODES: Final = 512
_LEAST_MAPPINGS: Final = 64 << 10
#: bytes of mappings when nothing else is asked for
_MAPPINGS: Final = 32 << 20


class CacheLimits(NamedTuple):
    """Blocks, inodes, and bytes of mappings that may be cached."""

    buffers: int
    inodes: int
    mappings: int

    @classmethod
    def of(cls, total: int | None, block_size: int, buffers: int, inodes: int) -> CacheLimits:
        """``total`` bytes: half for blocks, a quarter each for inodes and mappings; None: these counts."""
        if total is None:
            return cls(buffers, inodes, _MAPPINGS)
        return cls(
            max(total // 2 // (block_size + _BLOCK_OVERHEAD), _LEAST_BUFFERS),
            max(total // 4 // _INODE_BYTES, _LEAST_INODES),
            max(total // 4, _LEAST_MAPPINGS),
        )
