"""Devices made of other devices: a window of one, and the base of those that can only be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from py4fs.device.base import Device, check_range, check_writable, read_uncached, write_through

if TYPE_CHECKING:
    from typing_extensions import Buffer


class WindowDevice:
    """The bytes [offset, offset + size) of another device, which it owns; both must lie inside."""

    def __init__(self, base: Device, offset: int, size: int, name: str) -> None:
        assert offset >= 0 and size >= 0 and offset + size <= base.size
        self.base = base
        self.offset = offset
        self.size = size
        self.name = name

    @property
    def readonly(self) -> bool:
        return self.base.readonly

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        return self.base.read(self.offset + offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        check_range(self, "write", offset, memoryview(data).nbytes)
        self.base.write(self.offset + offset, data)

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        check_range(self, "write", offset, sum(memoryview(part).nbytes for part in parts))
        self.base.writev(self.offset + offset, parts)

    def read_uncached(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        return read_uncached(self.base, self.offset + offset, length)

    def write_through(self, offset: int, data: Buffer) -> None:
        check_range(self, "write", offset, memoryview(data).nbytes)
        write_through(self.base, self.offset + offset, data)

    def flush(self) -> None:
        self.base.flush()

    def close(self) -> None:
        self.base.close()


class ReadOnlyView(ABC):
    """What an encoded image decodes to. `name` is its container's, which it owns."""

    size: int
    readonly = True

    def __init__(self, base: Device, what: str) -> None:
        self.base = base
        self.name = base.name
        #: what kind of image it is, for the line that says why it cannot be written
        self.what = what

    @abstractmethod
    def _decode(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes that are inside. Raises FsError."""

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, "read", offset, length)
        return self._decode(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        check_writable(self)

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        check_writable(self)

    def flush(self) -> None:
        """Nothing is ever written."""  # so nothing has to be flushed
        return

    def close(self) -> None:
        self.base.close()
