"""A list of extended attributes in a stretch of bytes: behind an inode's fields, or a block of its own.

Entries grow from the front, values from the end (ext4 docs: Extended Attributes). Values are packed anew at
every change, in the order in which they were stored, which is what the kernel's moving of bytes leads to as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

from py4fs.errors import Corrupt, NoSpace
from py4fs.ext4.layout.xattr import XATTR_ENTRY, XATTR_SIZE_MAX, entry_size, value_size

END_SIZE: Final = 4
"""Bytes of zeros that end the list of entries."""
_M: Final = 0xFFFFFFFF
_NAME_SHIFT: Final = 5
_VALUE_SHIFT: Final = 16


class InodeValue(NamedTuple):
    """A value that is the contents of an inode of its own (ea_inode): its number, size in bytes, and hash."""

    inum: int
    size: int
    hash: int


class Xattr(NamedTuple):
    """One attribute: e_name_index, name as stored, value, e_hash, and what values are ordered by from the end.

    Where the value is in an inode, `inum` and `size` say so, and `value` is empty.
    """

    name_index: int
    name: bytes
    value: bytes
    hash: int
    offset: int
    inum: int = 0
    size: int = 0

    @property
    def key(self) -> tuple[int, int, bytes]:
        """What a block's entries are sorted by."""
        return self.name_index, len(self.name), self.name


Xattrs = tuple[Xattr, ...]


def parse(data: bytes | bytearray, first: int, base: int, where: str) -> Xattrs:
    """The attributes of `data`, whose entries start at byte `first` and whose e_value_offs count from `base`.

    Raises Corrupt.
    """
    end = len(data)
    at = first
    heads = []
    while True:
        if at + END_SIZE > end:
            raise Corrupt("xattr list", where, "no end", "four bytes of zeros")
        if not any(data[at : at + END_SIZE]):
            break
        head = XATTR_ENTRY.unpack_from(data, at) if at + XATTR_ENTRY.size <= end else None
        if head is None or at + entry_size(head.e_name_len) + END_SIZE > end:
            raise Corrupt("xattr entry", f"{where}, byte {at}", "a name beyond the end")
        name = bytes(data[at + XATTR_ENTRY.size : at + XATTR_ENTRY.size + head.e_name_len])
        if b"\0" in name:
            raise Corrupt("xattr name", f"{where}, byte {at}", repr(name))
        heads.append((at, head, name))
        at += entry_size(head.e_name_len)
    values_from = at + END_SIZE
    found = []
    taken = []
    for at, head, name in heads:
        size, start = head.e_value_size, base + head.e_value_offs
        if head.e_value_inum:
            if not 0 < size <= XATTR_SIZE_MAX:
                raise Corrupt("xattr value", f"{where}, byte {at}", f"{size} bytes", f"1..{XATTR_SIZE_MAX}")
            found.append(Xattr(head.e_name_index, name, b"", head.e_hash, 0, head.e_value_inum, size))
            continue
        if size:
            if start < values_from or start + value_size(size) > end:
                got, want = f"bytes {start}..{start + size}", f"within {values_from}..{end}"
                raise Corrupt("xattr value", f"{where}, byte {at}", got, want)
            taken.append((start, start + value_size(size)))
        value = bytes(data[start : start + size]) if size else b""
        found.append(Xattr(head.e_name_index, name, value, head.e_hash, start if size else 0))
    taken.sort()
    for (_, stop), (start, _) in pairwise(taken):
        if start < stop:
            raise Corrupt("xattr value", where, f"two at byte {start}")
    return tuple(found)


def space(attrs: Xattrs) -> int:
    """Bytes that entries, values and the end of the list take."""
    return END_SIZE + sum(entry_size(len(a.name)) + value_size(len(a.value)) for a in attrs)


def build(attrs: Xattrs, head: bytes, size: int, base: int) -> bytes:
    """`size` bytes that begin with `head` and hold `attrs`; e_value_offs count from byte `base`.

    The caller has made sure that there is room.
    """
    assert len(head) + space(attrs) <= size
    data = bytearray(size)
    data[: len(head)] = head
    starts = {}
    stop = size
    for number in sorted(range(len(attrs)), key=lambda n: -attrs[n].offset):
        value = attrs[number].value
        if value:
            stop -= value_size(len(value))
            data[stop : stop + len(value)] = value
            starts[number] = stop - base
    at = len(head)
    for number, attr in enumerate(attrs):
        start = starts.get(number, 0)
        size = attr.size if attr.inum else len(attr.value)
        XATTR_ENTRY.pack_into(data, at, len(attr.name), attr.name_index, start, attr.inum, size, attr.hash)
        name_at = at + XATTR_ENTRY.size
        data[name_at : name_at + len(attr.name)] = attr.name
        at += entry_size(len(attr.name))
    return bytes(data)


def find(attrs: Xattrs, index: int, name: bytes) -> Xattr | None:
    """The attribute of this name."""
    for attr in attrs:
        if attr.name_index == index and attr.name == name:
            return attr
    return None


def changed(
    attrs: Xattrs,
    index: int,
    name: bytes,
    value: bytes | InodeValue | None,
    *,
    block: bool,
    room: int,
    values_room: int | None = None,
) -> Xattrs:
    """The list with one attribute set or (`value` None) removed; a block's is sorted, others keep their order.

    `room` is what `space` may be, `values_room` what all values may take after a new one came. Raises NoSpace.
    """
    old = find(attrs, index, name)
    if value is None:
        return tuple(attr for attr in attrs if attr is not old)
    offset = min((attr.offset for attr in attrs), default=0) - 1
    in_place = False
    if isinstance(value, InodeValue):
        hash_ = entry_hash(name, value.hash.to_bytes(4, "little"))
        new = Xattr(index, name, b"", hash_, offset, value.inum, value.size)
    else:
        in_place = old is not None and value != b"" and value_size(len(value)) == value_size(len(old.value))
        if in_place and old is not None:
            offset = old.offset
        new = Xattr(index, name, value, entry_hash(name, value) if block else 0, offset)
    if old is not None:
        result = tuple(new if attr is old else attr for attr in attrs)
    elif block:
        result = tuple(sorted((*attrs, new), key=lambda attr: attr.key))
    else:
        result = (*attrs, new)
    if space(result) > room:
        raise NoSpace(f"no room for attribute {name!r}")
    counts = values_room is not None and new.value and not in_place
    if counts and values_room is not None and sum(value_size(len(attr.value)) for attr in result) > values_room:
        raise NoSpace(f"no room for the value of attribute {name!r}")
    return result


def entry_hash(name: bytes, value: bytes, *, signed: bool = False) -> int:
    """e_hash of an attribute in a block: name bytes (unsigned), then the padded value's 32-bit words.

    `signed`: as some kernels made it, with signed characters.
    """
    result = 0
    for byte in name:
        if signed and byte > 127:
            byte |= 0xFFFFFF00
        result = (result << _NAME_SHIFT & _M) ^ (result >> (32 - _NAME_SHIFT)) ^ byte
    padded = value.ljust(value_size(len(value)), b"\0")
    for at in range(0, len(padded), 4):
        word = int.from_bytes(padded[at : at + 4], "little")
        result = (result << _VALUE_SHIFT & _M) ^ (result >> (32 - _VALUE_SHIFT)) ^ word
    return result


def block_hash(attrs: Xattrs) -> int:
    """h_hash of a block; 0 (never shared) when an entry has no hash."""
    result = 0
    for attr in attrs:
        if not attr.hash:
            return 0
        result = (result << _VALUE_SHIFT & _M) ^ (result >> (32 - _VALUE_SHIFT)) ^ attr.hash
    return result
