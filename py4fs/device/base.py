"""What the file system needs from storage: bytes at an offset, and a flush."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from py4fs.errors import DeviceError, NotSupported, ReadOnly

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Device(Protocol):
    """A fixed number of bytes. All methods raise FsError subclasses only; offsets and lengths are bytes.

    Reads and writes may come from several threads at once, on ranges that do not overlap.
    """

    @property
    def name(self) -> str:
        """For messages: the path, as a rule."""

    @property
    def size(self) -> int:
        """Bytes that can be read."""

    @property
    def readonly(self) -> bool:
        """Whether writes are refused (with ReadOnly)."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, or DeviceError."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write the whole buffer, or DeviceError; never beyond `size`."""

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        """Write the buffers one behind the other, or DeviceError."""

    def flush(self) -> None:
        """Return when everything written before is durable; DeviceError when that cannot be had."""

    def close(self) -> None:
        """Let go of the storage (without a flush). More than once is fine; nothing else may follow."""


@runtime_checkable
class Shared(Protocol):
    """A device that another host may change, past every cache in between."""

    def read_uncached(self, offset: int, length: int) -> bytes:
        """As `read`, from the storage itself."""

    def write_through(self, offset: int, data: Buffer) -> None:
        """As `write`, and durable on return."""


def read_uncached(device: Device, offset: int, length: int) -> bytes:
    """Read what is on the storage now, as far as the device can tell. Raises DeviceError."""
    return device.read_uncached(offset, length) if isinstance(device, Shared) else device.read(offset, length)


def write_through(device: Device, offset: int, data: Buffer) -> None:
    """Write and return when it is durable. Raises DeviceError, ReadOnly."""
    if isinstance(device, Shared):
        device.write_through(offset, data)
    else:
        device.write(offset, data)
        device.flush()


@runtime_checkable
class Spliced(Protocol):
    """A device whose bytes can go into a pipe without passing through this process."""

    def splice(self, offset: int, length: int, pipe: int) -> int:
        """Put bytes into a pipe (descriptor), without waiting for room there; how many went in. Raises OSError."""


@runtime_checkable
class Discarding(Protocol):
    """A device that can be told that bytes are not needed any more."""

    def discard(self, offset: int, length: int) -> None:
        """What is there may be anything afterwards. NotSupported when the storage below cannot, DeviceError."""


def discard(device: Device, offset: int, length: int) -> None:
    """Tell a device that bytes are not needed any more. Raises NotSupported when it cannot be told, DeviceError."""
    if not isinstance(device, Discarding):
        raise NotSupported(f"{device.name}: cannot discard")
    device.discard(offset, length)


def check_range(device: Device, what: str, offset: int, length: int) -> None:
    """DeviceError unless [offset, offset + length) is inside the device."""
    if offset < 0 or length < 0 or offset + length > device.size:
        raise DeviceError(
            f"{device.name}: {what} of {length} bytes at byte {offset}: beyond the end at byte {device.size}"
        )


def check_writable(device: Device) -> None:
    """ReadOnly when the device is."""
    if device.readonly:
        raise ReadOnly(f"{device.name}: opened read-only")


ReadInto = Callable[[int, memoryview], None]
"""Fills a view with the bytes from an offset on. Raises DeviceError."""


def reader_into(device: Device) -> ReadInto:
    """The device's `readinto`; one made from its `read` where it has none."""
    readinto: ReadInto | None = getattr(device, "readinto", None)
    if readinto is not None:
        return readinto

    def read_and_copy(offset: int, view: memoryview) -> None:
        view[:] = device.read(offset, view.nbytes)

    return read_and_copy
