"""Fast codecs, derived from construct definitions.

construct declares a structure once; `derive` turns the flat ones (fixed-size integers, `Bytes(n)`) into
a `struct.Struct` with a named tuple per record and a table of offsets. Nothing is typed twice.

Reading never raises `struct.error`: a buffer that is too short is `Corrupt`. Writing a value that does
not fit its field is a mistake of the caller and does raise `struct.error`.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import construct

from py4fs.errors import Corrupt

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _record(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)


class Field:
    """One field of a structure, for what is read or written often by itself. Offsets are the structure's."""

    __slots__ = ("_at", "_pack_into", "_unpack_from")

    def __init__(self, fmt: struct.Struct, at: int) -> None:
        self._at = at
        self._pack_into = fmt.pack_into
        self._unpack_from = fmt.unpack_from

    def get(self, buf: Buffer, off: int) -> Any:
        """The value in the structure at byte `off`, which has to lie in the buffer (else struct.error)."""
        return self._unpack_from(buf, off + self._at)[0]

    def put(self, buf: Any, off: int, value: Any) -> None:
        """Overwrite it in the structure at byte `off`."""
        self._pack_into(buf, off + self._at, value)


class Span:
    """Fields of a structure that lie one behind the other, to be written together."""

    __slots__ = ("_at", "_pack_into")

    def __init__(self, fmt: struct.Struct, at: int) -> None:
        self._at = at
        self._pack_into = fmt.pack_into

    def put(self, buf: Any, off: int, values: tuple[Any, ...]) -> None:
        """Overwrite them in the structure at byte `off`."""
        self._pack_into(buf, off + self._at, *values)


class Codec:
    """Packs and unpacks one structure; offsets are bytes from the structure's start.

    `off` arguments must not be negative.
    """

    def __init__(self, name: str, order: str, fields: list[tuple[str, str, int]]) -> None:
        self.name = name
        self._order = order
        self._struct = struct.Struct(order + "".join(fmt for _, fmt, _ in fields))
        self.size = self._struct.size
        self.fields = tuple(field for field, _, _ in fields)
        self.sizes = {field: size for field, _, size in fields}
        self.offsets: dict[str, int] = {}
        self._formats = {field: order + fmt for field, fmt, _ in fields}
        at = 0
        for field, _, size in fields:
            self.offsets[field] = at
            at += size
        assert at == self.size, f"{name}: fields cover {at} of {self.size} bytes"
        # What follows is made when it is first needed: most programs need little of it, and all of it takes 20 ms.
        self._fields: dict[str, tuple[struct.Struct, int]] = {}
        self._named: Callable[[Any], Any] | None = None
        # pack(*values) -> bytes, values in the order of `fields`
        self.pack = self._struct.pack
        # pack_into(buf, off, *values): write a whole record at byte `off`
        self.pack_into = self._struct.pack_into
        # values_from(buf, off) -> a plain tuple; for loops that have made sure that it fits (else struct.error)
        self.values_from = self._struct.unpack_from

    def field(self, name: str) -> Field:
        """Access to one field."""
        return Field(*self._field(name))

    def span(self, *names: str) -> Span:
        """Access to neighbouring fields, named in their order."""
        fmt, at = self._order, self.offsets[names[0]]
        end = at
        for name in names:
            field, here = self._field(name)
            assert here == end, f"{self.name}.{name} is no neighbour of those before"
            fmt += field.format[1:]
            end += field.size
        return Span(struct.Struct(fmt), at)

    def _field(self, name: str) -> tuple[struct.Struct, int]:
        found = self._fields.get(name)
        if found is None:
            found = self._fields[name] = (struct.Struct(self._formats[name]), self.offsets[name])
        return found

    def _make(self) -> Callable[[Any], Any]:
        """Makes a named tuple of a plain one."""
        if self._named is None:
            record: Any = _record(self.name, self.fields)
            # The C constructor: half the cost of the named tuple's own `_make`.
            self._named = partial(tuple.__new__, record)
        return self._named

    def unpack_from(self, buf: Buffer, off: int = 0) -> Any:
        """The record at byte `off`; Corrupt when it does not fit the buffer."""
        make = self._named or self._make()
        try:
            return make(self._struct.unpack_from(buf, off))
        except struct.error:
            raise self._short(buf, off) from None

    def iter_unpack(self, buf: Buffer, off: int, count: int) -> Iterator[Any]:
        """`count` records that lie back to back from byte `off`; Corrupt when they do not fit."""
        return map(self._make(), self.iter_values(buf, off, count))

    def iter_values(self, buf: Buffer, off: int, count: int) -> Iterator[Any]:
        """As `iter_unpack`, as plain tuples."""
        end = off + count * self.size
        view = memoryview(buf)
        if end > view.nbytes:
            raise self._short(buf, off, count)
        return self._struct.iter_unpack(view[off:end])

    def pack_many_into(self, buf: Any, off: int, values: Sequence[Any]) -> None:
        """Write records back to back from byte `off`; `values` are all their fields, one record after the other."""
        count, rest = divmod(len(values), len(self.fields))
        assert not rest, f"{self.name}: {len(values)} values"
        struct.pack_into(self._order + self._struct.format[1:] * count, buf, off, *values)

    def get(self, buf: Buffer, off: int, field: str) -> Any:
        """One field of the record at byte `off`; Corrupt when it does not fit the buffer."""
        fmt, at = self._field(field)
        try:
            return fmt.unpack_from(buf, off + at)[0]
        except struct.error:
            raise self._short(buf, off) from None

    def put(self, buf: Any, off: int, **values: Any) -> None:
        """Overwrite the named fields of the record at byte `off`, leaving every other byte alone."""
        for field, value in values.items():
            fmt, at = self._field(field)
            fmt.pack_into(buf, off + at, value)

    def _short(self, buf: Buffer, off: int, count: int = 1) -> Corrupt:
        have = memoryview(buf).nbytes
        return Corrupt(self.name, f"byte {off}", f"{max(have - off, 0)} bytes", f"{count * self.size} bytes")

    def __repr__(self) -> str:
        return f"<Codec {self.name} {self.size} bytes>"


def derive(definition: construct.Struct, name: str) -> Codec:
    """The codec of a flat construct `Struct`: integers of one byte order and `Bytes(n)`, all named."""
    fields: list[tuple[str, str, int]] = []
    orders: set[str] = set()
    for sub in definition.subcons:
        inner = getattr(sub, "subcon", sub)
        assert sub.name, f"{name}: every field has a name"
        if isinstance(inner, construct.FormatField):
            orders.add(inner.fmtstr[0])
            fields.append((sub.name, inner.fmtstr[1:], inner.length))
        else:
            assert isinstance(inner, construct.Bytes), f"{name}.{sub.name}: {inner!r} is not flat"
            fields.append((sub.name, f"{inner.length}s", inner.length))
    assert len(orders) == 1, f"{name}: mixed byte orders"
    codec = Codec(name, orders.pop(), fields)
    assert codec.size == definition.sizeof(), f"{name}: {codec.size} != {definition.sizeof()}"
    return codec
