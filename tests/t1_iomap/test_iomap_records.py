"""Mapping records, their pure functions, and validation (IOMAP.md sections 3, 4 and 6.2)."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt, Invalid
from py4fs.iomap import records
from py4fs.iomap.records import (
    INVAL_TO_EOF,
    NULL_ADDR,
    IoDir,
    IoendFlags,
    MapFlags,
    Mapping,
    MapType,
    OpFlags,
    clip,
    covers,
    hole,
    merge,
    mergeable,
    nocache,
    placeholder,
    split,
)
from py4fs.iomap.validate import validate, validate_begin, validate_inval, validate_upsert

B = 4096
MAX = 1 << 44


def test_values_of_section_4() -> None:
    assert (IoDir.READ, IoDir.WRITE) == (0, 1)
    assert [int(t) for t in MapType] == [0, 1, 2, 3, 4, 253, 254, 255]
    assert [f.value.bit_length() - 1 for f in MapFlags] == list(range(10))
    assert [f.value.bit_length() - 1 for f in IoendFlags] == list(range(7))
    bits = {f.name: f.value.bit_length() - 1 for f in OpFlags if f.value}
    assert bits == {
        "WRITE": 0, "ZERO": 1, "REPORT": 2, "FAULT": 3, "DIRECT": 4, "NOWAIT": 5, "OVERWRITE_ONLY": 6,
        "UNSHARE": 7, "DAX": 8, "ATOMIC": 9, "DONTCACHE": 10, "SWAPFILE": 30, "WRITEBACK": 31,
    }  # fmt: skip
    assert OpFlags(records.WRITE_LIKE) == OpFlags.WRITE | OpFlags.ZERO | OpFlags.UNSHARE | OpFlags.WRITEBACK


kinds = st.sampled_from([MapType.HOLE, MapType.MAPPED, MapType.UNWRITTEN, MapType.INLINE])


@st.composite
def anything(draw: st.DrawFn) -> Mapping:
    kind = draw(kinds)
    device = kind in (MapType.MAPPED, MapType.UNWRITTEN)
    addr = draw(st.integers(0, 1 << 30)) * B if device else NULL_ADDR
    return Mapping(draw(st.integers(0, 100)) * B, draw(st.integers(1, 50)) * B, addr, kind, 0, int(device))


@given(m=anything(), start=st.integers(0, 160 * B), length=st.integers(0, 160 * B))
def test_clip_says_the_same_about_every_byte(m: Mapping, start: int, length: int) -> None:
    part = clip(m, start, start + length)
    wanted = range(max(start, m.offset), min(start + length, m.end))
    if part is None:
        assert not wanted
        return
    assert (part.offset, part.end) == (wanted.start, wanted.stop)
    assert covers(m, part.offset) and covers(m, part.end - 1)
    if m.addr == NULL_ADDR:
        assert part.addr == NULL_ADDR
    else:
        assert part.addr - part.offset == m.addr - m.offset
    assert part[3:] == m[3:]


@given(m=anything(), data=st.data())
def test_split_and_merge_are_opposites(m: Mapping, data: st.DataObject) -> None:
    if m.length == B:
        with pytest.raises(AssertionError):
            split(m, m.offset)
        return
    at = data.draw(st.integers(m.offset // B + 1, m.end // B - 1)) * B
    left, right = split(m, at)
    assert left.end == right.offset == at
    assert mergeable(left, right)
    assert not mergeable(right, left)
    assert list(merge([left, right])) == [m]


def test_merge_limit_and_kinds() -> None:
    assert mergeable(hole(0, 1 << 62), hole(1 << 62, 1 << 62))
    assert not mergeable(hole(0, 1 << 62), hole(1 << 62, (1 << 62) + B))
    inline = Mapping(0, B, NULL_ADDR, MapType.INLINE)
    assert mergeable(inline, inline._replace(offset=B))
    assert not mergeable(inline, hole(B, B))
    written = Mapping(0, B, 10 * B, MapType.MAPPED, 0, 1)
    assert mergeable(written, Mapping(B, B, 11 * B, MapType.MAPPED, 0, 1))
    for other in (
        Mapping(B, B, 11 * B, MapType.UNWRITTEN, 0, 1),
        Mapping(B, B, 11 * B, MapType.MAPPED, 4, 1),
        Mapping(B, B, 11 * B, MapType.MAPPED, 0, 2),
        Mapping(B, B, 12 * B, MapType.MAPPED, 0, 1),
        Mapping(2 * B, B, 11 * B, MapType.MAPPED, 0, 1),
    ):
        assert not mergeable(written, other)
    assert list(merge([])) == []


# --- validation: section 6.2, each rule -----------------------------------------

GOOD = Mapping(B, B, 7 * B, MapType.MAPPED, 0, 1)
PURE = Mapping(B, B, NULL_ADDR, MapType.PURE_OVERWRITE)
RETRY = Mapping(B, B, NULL_ADDR, MapType.RETRY_CACHE)


def check(m: Mapping, slot: IoDir = IoDir.READ, **more: bool) -> None:
    validate(m, slot, block_size=B, max_file_bytes=MAX, **more)


@pytest.mark.parametrize(
    "m",
    [
        GOOD,
        GOOD._replace(addr=513),  # addresses need no alignment
        GOOD._replace(type=MapType.UNWRITTEN),
        GOOD._replace(flags=0xFF),
        hole(0, MAX + B),  # may reach beyond the size limit
        hole(MAX - B, B),
        hole(0, 1 << 63),
        Mapping(0, B, NULL_ADDR, MapType.INLINE),
        Mapping(0, B, NULL_ADDR, MapType.DELALLOC),
        RETRY,
        RETRY._replace(length=0, flags=0xFFFF),  # field checks are skipped
        Mapping(0, 0, 0, MapType.NOCACHE),
        nocache(B),
    ],
)
def test_accepted(m: Mapping) -> None:
    check(m)


@pytest.mark.parametrize(
    ("m", "word"),
    [
        (GOOD._replace(type=5), "type"),
        (GOOD._replace(type=252), "type"),
        (GOOD._replace(flags=0x100), "flags"),
        (GOOD._replace(length=0), "length"),
        (GOOD._replace(offset=B + 512), "range"),
        (GOOD._replace(length=B + 512), "range"),
        (hole(1 << 43, (1 << 64) - (1 << 43)), "range"),
        (hole(MAX, B), "offset"),
        (GOOD._replace(dev=0), "place"),
        (GOOD._replace(addr=NULL_ADDR), "place"),
        (hole(0, B)._replace(dev=1), "place"),
        (hole(0, B)._replace(addr=0), "place"),
        (PURE, "PURE_OVERWRITE"),
        (GOOD._replace(addr=(1 << 64) - B + 1), "address"),
    ],
)
def test_refused(m: Mapping, word: str) -> None:
    with pytest.raises(Corrupt, match=word) as info:
        check(m)
    assert info.value.errno == errno.EUCLEAN


def test_retry_needs_a_cache() -> None:
    with pytest.raises(Corrupt):
        check(RETRY, has_cache=False)


def test_pure_overwrite_in_the_write_slot() -> None:
    check(PURE, IoDir.WRITE)
    check(PURE._replace(dev=9, addr=B), IoDir.WRITE)  # junk is accepted (section 10, 6.2)


@pytest.mark.parametrize("m", [RETRY, Mapping(B, B, NULL_ADDR, MapType.NOCACHE), PURE])
def test_strict_versions_check_all_fields(m: Mapping) -> None:
    check(m, IoDir.WRITE, strict=True)
    for change in ({"flags": 1}, {"dev": 1}, {"addr": 0}, {"length": 0}, {"offset": 1}):
        with pytest.raises(Corrupt):
            check(m._replace(**change), IoDir.WRITE, strict=True)


def test_what_we_send_passes_strict() -> None:
    check(nocache(B), IoDir.WRITE, strict=True)
    for kind in (MapType.PURE_OVERWRITE, MapType.RETRY_CACHE):
        check(placeholder(GOOD, kind), IoDir.WRITE, strict=True)


def test_begin_needs_both_mappings_to_cover_pos() -> None:
    def both(read: Mapping, write: Mapping, pos: int) -> None:
        validate_begin(read, write, pos, block_size=B, max_file_bytes=MAX)

    both(GOOD, PURE, B)
    both(GOOD, PURE, 2 * B - 1)
    both(RETRY, PURE, B)
    for read, write, pos in (
        (GOOD, PURE, 2 * B),
        (GOOD, PURE, B - 1),
        (GOOD, PURE._replace(offset=0), B),
        (RETRY._replace(offset=0), PURE, B),
        (Mapping(B, B, NULL_ADDR, MapType.NOCACHE), PURE, B),
        (GOOD, Mapping(B, B, NULL_ADDR, MapType.NOCACHE), B),
        (PURE, PURE, B),
    ):
        with pytest.raises(Corrupt):
            both(read, write, pos)


def test_upsert_knows_devices() -> None:
    """Section 3: unknown cookies and ends beyond the device; a device of size 0 declines softly."""
    devices = {1: 8 * B, 2: 0}

    def upsert(m: Mapping) -> None:
        validate_upsert(m, IoDir.READ, block_size=B, max_file_bytes=MAX, devices=devices)

    upsert(GOOD)
    for bad in (GOOD._replace(addr=7 * B + 1), GOOD._replace(dev=3), GOOD._replace(dev=3, addr=NULL_ADDR)):
        with pytest.raises(Corrupt):
            upsert(bad)
    with pytest.raises(Invalid) as info:
        upsert(GOOD._replace(dev=2))
    assert info.value.errno == errno.EINVAL


def test_upsert_and_inval_rules_of_section_3() -> None:
    validate_upsert(GOOD, IoDir.READ, block_size=B, max_file_bytes=MAX)
    with pytest.raises(Corrupt):
        validate_upsert(RETRY, IoDir.READ, block_size=B, max_file_bytes=MAX)
    for offset, length in ((0, B), (B, INVAL_TO_EOF), (7, 0), (MAX - B, B)):
        validate_inval(offset, length, block_size=B, max_file_bytes=MAX)
    for offset, length in ((1, B), (0, 1), (MAX, B), (MAX, INVAL_TO_EOF), (-B, B), (0, -B)):
        with pytest.raises(Corrupt):
            validate_inval(offset, length, block_size=B, max_file_bytes=MAX)
