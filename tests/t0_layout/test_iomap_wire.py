"""FUSE_IOMAP's structs: offsets and sizes as IOMAP.md sections 2, 3 and 5 have them, and hostile bytes."""

from __future__ import annotations

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Invalid
from py4fs.ext4.layout.codec import Codec
from py4fs.fuse.direct import protocol as fuse
from py4fs.iomap import cache, protocol
from py4fs.iomap.records import Mapping, MapType, nocache
from tests.t0_layout.codecs import check_offsets, check_same, definitions

TABLE: list[tuple[Codec, int, str]] = [
    (protocol.IN_HEADER, 40, "len 0 opcode 4 unique 8 nodeid 16 uid 24 gid 28 pid 32 total_extlen 36 padding 38"),
    (protocol.OUT_HEADER, 16, "len 0 error 4 unique 8"),
    (protocol.IOMAP_IO, 32, "offset 0 length 8 addr 16 type 24 flags 26 dev 28"),
    (protocol.IOMAP_BEGIN_IN, 32, "opflags 0 reserved 4 attr_ino 8 pos 16 count 24"),
    (protocol.IOMAP_BEGIN_OUT, 64, "read_offset 0 read_dev 28 write_offset 32 write_type 56 write_dev 60"),
    (protocol.IOMAP_END_IN, 72, "opflags 0 reserved 4 attr_ino 8 pos 16 count 24 written 32 map_offset 40 map_dev 68"),
    (
        protocol.IOMAP_IOEND_IN,
        48,
        "flags 0 error 4 attr_ino 8 pos 16 new_addr 24 written 32 dev 40 pad 44",
    ),
    (protocol.IOMAP_IOEND_OUT, 8, "newsize 0"),
    (protocol.IOMAP_CONFIG_IN, 64, "flags 0 maxbytes 8 cache_maxbytes 16 zero 20 padding 24"),
    (
        protocol.IOMAP_CONFIG_OUT,
        104,
        "flags 0 s_id 8 s_uuid 40 s_uuid_len 56 s_pad 57 s_blocksize 60 s_max_links 64 s_time_gran 68 "
        "s_time_min 72 s_time_max 80 s_maxbytes 88 cache_maxbytes 96 tail 100",
    ),
    (protocol.FREEZEFS_IN, 8, "unlinked 0"),
    (protocol.SHUTDOWNFS_IN, 8, "flags 0"),
    (protocol.IOMAP_DEV_INVAL_OUT, 24, "dev 0 reserved 4 offset 8 length 16"),
    (protocol.IOMAP_UPSERT_MAPPINGS_OUT, 80, "nodeid 0 attr_ino 8 read_offset 16 write_offset 48"),
    (
        protocol.IOMAP_INVAL_MAPPINGS_OUT,
        48,
        "nodeid 0 attr_ino 8 read_offset 16 read_length 24 write_offset 32 write_length 40",
    ),
    (protocol.BACKING_MAP, 16, "fd 0 flags 4 padding 8"),
    (protocol.IOMAP_SUPPORT, 16, "flags 0 padding 8"),
    (protocol.IOMAP_BACKING_INFO, 8, "backing_id 0 blocksize 4"),
]


@pytest.mark.parametrize(("codec", "size", "offsets"), TABLE, ids=[codec.name for codec, _, _ in TABLE])
def test_layout(codec: Codec, size: int, offsets: str) -> None:
    check_offsets(codec, size, offsets)


DEFINITIONS = list(definitions(protocol))


@pytest.mark.parametrize(("struct", "codec"), DEFINITIONS, ids=[codec.name for _, codec in DEFINITIONS])
def test_codec_equals_construct(struct: construct.Struct, codec: Codec) -> None:
    check_same(struct, codec)


def test_every_codec_was_compared() -> None:
    assert {codec for _, codec in DEFINITIONS} == {
        codec for codec in vars(protocol).values() if isinstance(codec, Codec)
    }


def test_numbers() -> None:
    assert [int(op) for op in protocol.Opcode] == list(range(4089, 4096))
    assert [int(code) for code in protocol.Notify] == [99, 100, 101]
    assert protocol.INIT_IOMAP2 == 0x800
    assert (
        protocol.DEV_IOC_CLONE,
        protocol.DEV_IOC_BACKING_OPEN,
        protocol.DEV_IOC_BACKING_CLOSE,
        protocol.DEV_IOC_SYNC_INIT,
        protocol.DEV_IOC_IOMAP_SUPPORT,
        protocol.DEV_IOC_SET_NOFS,
        protocol.DEV_IOC_ADD_IOMAP,
        protocol.DEV_IOC_IOMAP_SET_BLOCKSIZE,
    ) == (
        0x8004E500, 0x4010E501, 0x4004E502, 0x0000E503, 0x8010E563, 0x4004E564, 0x0000E565, 0x4008E566,
    )  # fmt: skip


def test_cache_records_are_wire_records() -> None:
    mapping = Mapping(4096, 8192, 1 << 40, MapType.UNWRITTEN, 4, 7)
    assert cache._RECORD.pack(*mapping) == protocol.IOMAP_IO.pack(*mapping)


def test_whole_messages() -> None:
    read = Mapping(0, 4096, 8192, MapType.MAPPED, 0, 1)
    raw = protocol.upsert_mappings(5, 1005, read, nocache(4096))
    header = protocol.OUT_HEADER.unpack_from(raw)
    assert header == (len(raw), 100, 0)
    record = protocol.decode_notification(100, raw[16:])
    assert (record.nodeid, record.attr_ino) == (5, 1005)
    assert protocol.mapping_of(record, "read_") == read
    assert protocol.mapping_of(record, "write_") == nocache(4096)
    raw = protocol.inval_mappings(5, 1005, (0, 4096), (0, 0))
    assert protocol.decode_notification(101, raw[16:]) == (5, 1005, 0, 4096, 0, 0)
    assert protocol.decode_notification(99, protocol.dev_inval(1, 4096, 512)[16:]) == (1, 0, 4096, 512)
    with pytest.raises(AssertionError):
        protocol.dev_inval(1, 0, 0)
    assert protocol.OUT_HEADER.unpack_from(protocol.error_reply(9, 38)) == (16, -38, 9)
    assert protocol.OUT_HEADER.unpack_from(protocol.reply(9, b"12345678")) == (24, 0, 9)
    body = protocol.begin_out(read, nocache(4096))
    assert protocol.mapping_of(protocol.decode_reply(4094, body), "read_") == read


def test_config_reply_may_be_short() -> None:
    assert protocol.decode_reply(4092, b"").flags == 0
    assert protocol.decode_reply(4092, b"\x04" + bytes(7)).flags == 4
    with pytest.raises(Invalid):
        protocol.decode_reply(4092, bytes(105))


@given(opcode=st.one_of(st.integers(0, 60), st.integers(4085, 4100)), body=st.binary(max_size=120))
def test_any_bytes_give_a_record_or_invalid(opcode: int, body: bytes) -> None:
    for decode in (fuse.decode_request, fuse.decode_reply, fuse.decode_notification):
        try:
            record, rest = decode(opcode, body)
        except Invalid:
            continue
        if opcode != 4092 and record is not None:
            assert len(body) >= len(rest)
    for exact in (protocol.decode_request, protocol.decode_reply, protocol.decode_notification):
        try:
            exact(opcode, body)
        except Invalid:
            continue
