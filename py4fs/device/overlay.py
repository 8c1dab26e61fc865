"""A device as it would look after some of its blocks were written; what is below stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from py4fs.device.base import Device, check_range, check_writable

if TYPE_CHECKING:
    from typing_extensions import Buffer


class OverlayDevice:
    """Reads see ``blocks`` instead of what ``base`` has there; nothing is ever written to ``base``.

    Read-only unless ``writable``: then writes are kept in memory, in :attr:`written`, and seen by reads.
    """

    def __init__(
        self, base: Device, block_size: int, blocks: Mapping[int, bytes], *, writable: bool = False
    ) -> None:
        """``block_size`` in bytes; ``blocks`` by number, each of ``block_size`` bytes, all inside ``base``."""
        self.base = base
        self.block_size = block_size
        self.blocks = blocks
        #: blocks written to this device, by number
        self.written: dict[int, bytes] = {}
        self.readonly = not writable

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def size(self) -> int:
        return self.base.size

    def fileno(self) -> int:
        """There is no descriptor that would show the overlaid blocks."""
        return -1

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        size = self.block_size
        first, last = offset // size, -(-(offset + length) // size)
        changed = [pblk for pblk in self._range(first, last) if pblk in self.written or pblk in self.blocks]
        if not changed:
            return self.base.read(offset, length)
        out = bytearray(self.base.read(offset, length))
        for pblk in changed:
            data = self._block(pblk)
            start = pblk * size - offset
            low, high = max(start, 0), min(start + size, length)
            out[low:high] = data[low - start : high - start]
        return bytes(out)

    def _range(self, first: int, last: int) -> Sequence[int]:
        known = len(self.blocks) + len(self.written)
        if last - first <= known:
            return range(first, last)
        return sorted({pblk for held in (self.blocks, self.written) for pblk in held if first <= pblk < last})

    def _block(self, pblk: int) -> bytes:
        data = self.written.get(pblk)
        return self.blocks[pblk] if data is None else data

    def write(self, offset: int, data: Buffer) -> None:
        check_writable(self)
        view = memoryview(data).cast("B")
        check_range(self, "write", offset, view.nbytes)
        size = self.block_size
        done = 0
        while done < view.nbytes:
            pblk, skip = divmod(offset + done, size)
            part = min(size - skip, view.nbytes - done)
            piece = bytes(view[done : done + part])
            if part < size:
                old = self.read(pblk * size, min(size, self.size - pblk * size))
                piece = old[:skip] + piece + old[skip + part :]
            self.written[pblk] = piece
            done += part

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(parts))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.base.close()
