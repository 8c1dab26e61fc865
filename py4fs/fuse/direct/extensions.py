"""What may come behind the names of a create: security contexts and supplementary groups (fuse_ext_header)."""

from __future__ import annotations

from typing import NamedTuple

from py4fs.errors import Invalid
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import EXT_GROUPS, MAX_NR_SECCTX


class Extensions(NamedTuple):
    """`labels`: (attribute name, value) of security contexts; `groups`: the caller's supplementary groups."""

    labels: list[tuple[bytes, bytes]]
    groups: list[int]


def split(body: memoryview, length: int) -> Extensions:
    """The extensions in the last `length` bytes of a request's body. Raises Invalid for what they cannot be."""
    if length > body.nbytes:
        raise Invalid(f"extensions of {length} bytes in {body.nbytes}")
    rest = body[body.nbytes - length :]
    labels: list[tuple[bytes, bytes]] = []
    groups: list[int] = []
    header_size = structs.EXT_HEADER.size
    while rest.nbytes >= header_size:
        size, kind = structs.EXT_HEADER.unpack_from(rest)
        if not header_size <= size <= rest.nbytes:
            raise Invalid(f"extension of {size} bytes in {rest.nbytes}")
        part, rest = rest[header_size:size], rest[-(-size // 8) * 8 :]
        if kind == EXT_GROUPS:
            groups += _groups(part)
        elif kind <= MAX_NR_SECCTX:
            labels += _labels(part, kind)
        # others are of newer kernels, which may only send what was agreed on
    return Extensions(labels, groups)


def _groups(part: memoryview) -> list[int]:
    size = structs.SUPP_GROUPS.size
    if part.nbytes < size:
        raise Invalid("supplementary groups without their number")
    (count,) = structs.SUPP_GROUPS.unpack_from(part)
    if part.nbytes < size + 4 * count:
        raise Invalid(f"{count} supplementary groups in {part.nbytes} bytes")
    return [group for (group,) in structs.SUPP_GROUPS.iter_unpack(part, size, count)]


def _labels(part: memoryview, count: int) -> list[tuple[bytes, bytes]]:
    found = []
    for _ in range(count):
        if part.nbytes < structs.SECCTX.size:
            raise Invalid("a security context without its header")
        size, _padding = structs.SECCTX.unpack_from(part)
        name, end, _ = bytes(part[structs.SECCTX.size :]).partition(b"\0")
        start = structs.SECCTX.size + len(name) + 1
        if not end or start + size > part.nbytes:
            raise Invalid(f"security context of {size} bytes in {part.nbytes}")
        found.append((b"security." + name.removeprefix(b"security."), bytes(part[start : start + size])))
        part = part[-(-(start + size) // 8) * 8 :]
    return found
