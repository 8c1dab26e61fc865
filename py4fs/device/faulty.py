"""A device that fails on purpose, for tests: the Nth read, write or flush answers EIO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from py4fs.device.base import Device, discard
from py4fs.errors import DeviceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Kind = Literal["read", "write", "flush"]


class FaultyDevice:
    """Wraps any device; counts the calls (`calls["read"]` and so on) and fails those that were armed.

    A failing call does nothing to the device below. `writev` counts as one write.
    """

    def __init__(self, inner: Device) -> None:
        self.inner = inner
        self.name = inner.name
        self.size = inner.size
        self.readonly = inner.readonly
        self.calls: dict[Kind, int] = {"read": 0, "write": 0, "flush": 0}
        self.failed = 0
        self._armed: dict[Kind, tuple[int, int | None]] = {}

    def arm(self, kind: Kind, nth: int = 1, *, times: int | None = 1) -> None:
        """Let the `nth` call of that kind from now on fail, and the `times - 1` after it (None: all)."""
        assert nth >= 1, nth
        first = self.calls[kind] + nth
        self._armed[kind] = (first, None if times is None else first + times - 1)

    def disarm(self) -> None:
        """Let everything succeed from now on."""
        self._armed.clear()

    def _count(self, kind: Kind, where: str) -> None:
        self.calls[kind] += 1
        armed = self._armed.get(kind)
        if armed is None:
            return
        first, last = armed
        if first <= self.calls[kind] and (last is None or self.calls[kind] <= last):
            self.failed += 1
            raise DeviceError(f"{self.name}: {kind} {where}: injected failure")

    def read(self, offset: int, length: int) -> bytes:
        self._count("read", f"of {length} bytes at byte {offset}")
        return self.inner.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._count("write", f"at byte {offset}")
        self.inner.write(offset, data)

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        self._count("write", f"at byte {offset}")
        self.inner.writev(offset, parts)

    def flush(self) -> None:
        self._count("flush", "")
        self.inner.flush()

    def discard(self, offset: int, length: int) -> None:
        """Counts as a write."""
        self._count("write", f"at byte {offset}")
        discard(self.inner, offset, length)

    def close(self) -> None:
        self.inner.close()
