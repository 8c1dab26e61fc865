"""What the tests of the wire formats share: a codec and the construct definition that it was derived from."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import construct

from py4fs.ext4.layout.codec import Codec


def definitions(module: ModuleType) -> Iterator[tuple[construct.Struct, Codec]]:
    """Each codec of a module with its definition there."""
    for codec in vars(module).values():
        if isinstance(codec, Codec):
            for struct in vars(module).values():
                if (
                    isinstance(struct, construct.Struct)
                    and [sub.name for sub in struct.subcons] == list(codec.fields)
                    and struct.sizeof() == codec.size
                ):
                    yield struct, codec


def check_offsets(codec: Codec, size: int, offsets: str) -> None:
    """`offsets`: "field offset field offset ..."."""
    words = offsets.split()
    wanted = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert codec.size == size
    assert {field: codec.offsets[field] for field in wanted} == wanted


def check_same(struct: construct.Struct, codec: Codec) -> None:
    """Both read and write the same bytes."""
    raw = bytes((7 * i + 3) % 256 for i in range(codec.size))
    record = codec.unpack_from(raw)
    parsed = struct.parse(raw)
    assert record._asdict() == {field: parsed[field] for field in codec.fields}
    assert codec.pack(*record) == raw == struct.build(parsed)
