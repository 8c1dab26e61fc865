"""Journal blocks built and parsed again, for every kind of journal; and an overlaid device against a model."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.device.memory import MemoryDevice
from py4fs.device.overlay import OverlayDevice
from py4fs.errors import Corrupt, DeviceError, ReadOnly
from py4fs.ext4.journal import format as jf
from py4fs.ext4.layout.jbd2 import JBD2_COMMIT_BLOCK, JBD2_DESCRIPTOR_BLOCK, JBD2_REVOKE_BLOCK

MAGIC = bytes.fromhex("c03b3998")
FEATURES = st.builds(
    jf.JournalFeatures,
    st.sampled_from((1024, 2048, 4096)),
    st.binary(min_size=16, max_size=16),
    csum=st.integers(0, 3),
    wide=st.booleans(),
)
TIDS = st.integers(0, 0xFFFFFFFF)


@st.composite
def transactions(draw: st.DrawFn) -> tuple[jf.JournalFeatures, int, list[tuple[int, bytes]]]:
    features = draw(FEATURES)
    numbers = st.integers(0, (1 << 48) - 1 if features.wide else 0xFFFFFFFF)
    heads = st.sampled_from((MAGIC, bytes(4), b"data"))
    count = draw(st.sampled_from((1, 2, 7, 300)))
    pblks = draw(st.lists(numbers, min_size=count, max_size=count))
    first = draw(st.lists(heads, min_size=5, max_size=5))
    size = features.block_size
    return features, draw(TIDS), [(n, (first[i % 5] + b"%d" % i).ljust(size, b".")) for i, n in enumerate(pblks)]


@given(transactions())
def test_descriptors_and_data(case: tuple[jf.JournalFeatures, int, list[tuple[int, bytes]]]) -> None:
    features, tid, blocks = case
    log = jf.build_descriptors(features, tid, blocks)
    assert len(log) + 1 == jf.log_length(features, len(blocks), 0)
    assert all(len(block) == features.block_size for block in log)
    found = []
    at = 0
    while at < len(log):
        assert jf.parse_header(log[at]) == (JBD2_DESCRIPTOR_BLOCK, tid)
        assert jf.tail_ok(features, log[at])
        tags = jf.parse_tags(features, log[at])
        for tag in tags:
            at += 1
            assert log[at][:4] != MAGIC, "a data block that looks like one of the journal's own"
            assert jf.tag_ok(features, tag, tid, log[at])
            found.append((tag.pblk, jf.restore_data(tag, log[at])))
        at += 1
    assert found == blocks


@given(transactions(), st.data())
def test_every_damage_shows(
    case: tuple[jf.JournalFeatures, int, list[tuple[int, bytes]]], data: st.DataObject
) -> None:
    """With checksums of single blocks: one bit anywhere in a descriptor, its data, or the transaction's number."""
    features, tid, blocks = case
    if features.csum < 3:
        return  # two bytes of a checksum, as in v2, can miss a bit
    log = jf.build_descriptor(features, tid, blocks[:5])
    index = data.draw(st.integers(0, len(log) - 1))
    bad = bytearray(log[index])
    bad[data.draw(st.integers(0, features.block_size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if not index:
        assert not jf.tail_ok(features, bytes(bad))
        return
    tag = jf.parse_tags(features, log[0])[index - 1]
    assert not jf.tag_ok(features, tag, tid, bytes(bad))


@given(FEATURES, TIDS, st.lists(st.integers(0, 0xFFFFFFFF), max_size=1500))
def test_revokes(features: jf.JournalFeatures, tid: int, pblks: list[int]) -> None:
    log = jf.build_revokes(features, tid, pblks)
    assert len(log) + 1 == jf.log_length(features, 0, len(pblks))
    found: list[int] = []
    for block in log:
        assert jf.parse_header(block) == (JBD2_REVOKE_BLOCK, tid) and jf.tail_ok(features, block)
        found += jf.parse_revokes(features, block, "here")
    assert found == pblks


def test_revokes_beyond_the_block() -> None:
    features = jf.JournalFeatures(1024)
    (block,) = jf.build_revokes(features, 1, [5])
    with pytest.raises(Corrupt, match="r_count"):
        jf.parse_revokes(features, block[:12] + struct.pack(">I", 1021) + block[16:], "here")
    assert list(jf.parse_revokes(features, block[:12] + struct.pack(">I", 3) + block[16:], "here")) == []


@given(FEATURES, TIDS, st.integers(0, 1 << 62), st.binary(max_size=300), st.integers(0, 55 * 8 - 1))
def test_commits(features: jf.JournalFeatures, tid: int, now: int, logged: bytes, bit: int) -> None:
    crc = jf.transaction_crc([logged])
    block = jf.build_commit(features, tid, now, crc)
    assert jf.parse_header(block) == (JBD2_COMMIT_BLOCK, tid)
    assert jf.commit_seconds(block) == now // 10**9
    assert jf.commit_ok(features, block, crc)
    assert jf.commit_ok(features, jf.build_commit(features, tid, now), 0) or features.csum == 1
    if features.csum == 1:
        assert not jf.commit_ok(features, block, crc ^ 1)
        assert jf.commit_ok(features, block[:12] + bytes(8) + block[20:], crc), "no checksum at all is allowed"
    if features.has_tail:
        bad = bytearray(block)
        bad[bit // 8] ^= 1 << bit % 8
        assert not jf.commit_ok(features, bytes(bad), crc)
        assert jf.commit_ok(features, block[:512] + b"x" * (features.block_size - 512), crc), "a torn one counts"


def test_crc32_be() -> None:
    """The check value of CRC-32/MPEG-2, which has the same parameters; and chaining."""
    assert jf.crc32_be(jf.CRC32_START, b"123456789") == 0x0376E6E7
    assert jf.crc32_be(jf.crc32_be(jf.CRC32_START, b"1234"), b"", b"56789") == 0x0376E6E7


@given(FEATURES, st.binary(max_size=600), st.binary(min_size=1, max_size=16))
def test_any_bytes_have_tags(features: jf.JournalFeatures, raw: bytes, more: bytes) -> None:
    block = (raw + more * features.block_size)[: features.block_size]
    tags = jf.parse_tags(features, block)
    assert 1 <= len(tags) <= features.block_size // features.tag_size
    jf.tail_ok(features, block)
    jf.commit_ok(features, block, 0)


def test_transaction_numbers_go_around() -> None:
    assert jf.next_tid(0xFFFFFFFF) == 0
    assert jf.tid_gt(0, 0xFFFFFFFF) and not jf.tid_gt(0xFFFFFFFF, 0)
    assert jf.tid_gt(2, 1) and not jf.tid_gt(1, 1) and jf.tid_geq(1, 1) and jf.tid_geq(5, 0xFFFFFFF0)


# -- an overlaid device ------------------------------------------------------------------------------------------------


@given(st.data())
def test_overlay(data: st.DataObject) -> None:
    """Reads and writes of any range, compared with plain bytes; the device below never changes."""
    size, blocks = 16, 12
    length = size * blocks + data.draw(st.integers(0, size - 1))
    base = MemoryDevice(bytes(data.draw(st.binary(min_size=length, max_size=length))))
    below = bytes(base.data)
    over = data.draw(st.dictionaries(st.integers(0, blocks - 1), st.binary(min_size=size, max_size=size), max_size=5))
    device = OverlayDevice(base, size, over, writable=True)
    model = bytearray(below)
    for pblk, content in over.items():
        model[pblk * size : (pblk + 1) * size] = content
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, length))
        count = data.draw(st.integers(0, length - start))
        if data.draw(st.booleans()):
            piece = data.draw(st.binary(min_size=count, max_size=count))
            device.writev(start, [piece[: count // 2], piece[count // 2 :]])
            model[start : start + count] = piece
        assert device.read(start, count) == model[start : start + count]
    assert device.read(0, length) == model
    assert bytes(base.data) == below


def test_overlay_refuses() -> None:
    device = OverlayDevice(MemoryDevice(64), 16, {1: b"x" * 16})
    assert device.readonly and device.size == 64 and device.name == "memory"
    with pytest.raises(ReadOnly):
        device.write(0, b"x")
    with pytest.raises(DeviceError):
        device.read(60, 5)
    assert device.read(8, 16) == bytes(8) + b"x" * 8
