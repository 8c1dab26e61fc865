"""A device in memory, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from py4fs.device.base import check_range, check_writable

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryDevice:
    """Bytes in a bytearray; `data` is the image itself."""

    def __init__(
        self, content: int | bytes | bytearray, *, readonly: bool = False, name: str = "memory"
    ) -> None:
        """`content`: the size in bytes (of zeros), or the image, which is copied."""
        self.data = bytearray(content)
        self.name = name
        self.size = len(self.data)
        self.readonly = readonly

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        return bytes(memoryview(self.data)[offset : offset + length])

    def write(self, offset: int, data: Buffer) -> None:
        check_writable(self)
        view = memoryview(data).cast("B")
        check_range(self, "write", offset, view.nbytes)
        self.data[offset : offset + view.nbytes] = view

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(parts))

    def discard(self, offset: int, length: int) -> None:
        check_writable(self)
        check_range(self, "discard", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
