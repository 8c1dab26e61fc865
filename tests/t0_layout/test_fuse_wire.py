"""FUSE's structs: offsets and sizes as linux/fuse.h has them (protocol 7.45), and hostile bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Invalid
from py4fs.ext4.layout.codec import Codec
from py4fs.fuse.direct import ioctls, protocol, structs
from py4fs.fuse.direct.extensions import split
from tests.t0_layout.codecs import check_offsets, check_same, definitions

TABLE: list[tuple[Codec, int, str]] = [
    (structs.INIT_IN, 64, "major 0 minor 4 max_readahead 8 flags 12 flags2 16"),
    (
        structs.INIT_OUT,
        64,
        "flags 12 max_background 16 max_write 20 time_gran 24 max_pages 28 map_alignment 30 flags2 32 "
        "max_stack_depth 36 request_timeout 40",
    ),
    (structs.ATTR, 88, "ino 0 size 8 blksize 80 flags 84"),
    (structs.ENTRY_OUT, 128, "nodeid 0 attr_ino 40 attr_flags 124"),
    (structs.ATTR_OUT, 104, "attr_valid 0 attr_ino 16"),
    (structs.SETATTR_IN, 88, "valid 0 fh 8 size 16 mode 68 uid 76"),
    (structs.OPEN_OUT, 16, "fh 0 open_flags 8 backing_id 12"),
    (structs.WRITE_IN, 40, "fh 0 offset 8 size 16 lock_owner 24 flags 32"),
    (structs.STATFS_OUT, 80, "blocks 0 bsize 40 namelen 44 frsize 48"),
    (structs.COPY_FILE_RANGE_IN, 56, "fh_in 0 nodeid_out 16 len 40 flags 48"),
    (structs.FORGET_IN, 8, "nlookup 0"),
    (structs.FORGET_ONE, 16, "nodeid 0 nlookup 8"),
    (structs.BATCH_FORGET_IN, 8, "count 0"),
    (structs.GETATTR_IN, 16, "flags 0 fh 8"),
    (structs.OPEN_IN, 8, "flags 0 open_flags 4"),
    (structs.CREATE_IN, 16, "flags 0 mode 4 umask 8 open_flags 12"),
    (structs.CREATE_OUT, 144, "nodeid 0 fh 128 open_flags 136"),
    (structs.RELEASE_IN, 24, "fh 0 flags 8 release_flags 12 lock_owner 16"),
    (structs.FLUSH_IN, 24, "fh 0 lock_owner 16"),
    (structs.FSYNC_IN, 16, "fh 0 fsync_flags 8"),
    (structs.READ_IN, 40, "fh 0 offset 8 size 16 read_flags 20 lock_owner 24 flags 32"),
    (structs.WRITE_OUT, 8, "size 0"),
    (structs.GETXATTR_IN, 8, "size 0"),
    (structs.GETXATTR_OUT, 8, "size 0"),
    (structs.SETXATTR_IN, 16, "size 0 flags 4 setxattr_flags 8"),
    (structs.FALLOCATE_IN, 32, "fh 0 offset 8 length 16 mode 24"),
    (structs.SYNCFS_IN, 8, "padding 0"),
    (structs.COPY_FILE_RANGE_OUT, 8, "bytes_copied 0"),
    (structs.MKNOD_IN, 16, "mode 0 rdev 4 umask 8"),
    (structs.MKDIR_IN, 8, "mode 0 umask 4"),
    (structs.RENAME_IN, 8, "newdir 0"),
    (structs.RENAME2_IN, 16, "newdir 0 flags 8"),
    (structs.LINK_IN, 8, "oldnodeid 0"),
    (structs.ACCESS_IN, 8, "mask 0"),
    (structs.INTERRUPT_IN, 8, "unique 0"),
    (structs.BMAP_IN, 16, "block 0 blocksize 8"),
    (structs.BMAP_OUT, 8, "block 0"),
    (structs.IOCTL_IN, 32, "fh 0 flags 8 cmd 12 arg 16 in_size 24 out_size 28"),
    (structs.IOCTL_OUT, 16, "result 0 flags 4 in_iovs 8 out_iovs 12"),
    (structs.LSEEK_IN, 24, "fh 0 offset 8 whence 16"),
    (structs.LSEEK_OUT, 8, "offset 0"),
    (structs.POLL_IN, 24, "fh 0 kh 8 flags 16 events 20"),
    (structs.LK_IN, 48, "fh 0 owner 8 start 16 end 24 type 32 pid 36 lk_flags 40"),
    (structs.DIRENT, 24, "ino 0 off 8 namelen 16 type 20"),
    (structs.DIRENTPLUS, 152, "nodeid 0 attr_mode 100 dirent_ino 128 dirent_off 136 dirent_namelen 144"),
    (structs.STATX_IN, 24, "getattr_flags 0 fh 8 sx_flags 16 sx_mask 20"),
    (
        structs.STATX_OUT,
        288,
        "attr_valid 0 attr_valid_nsec 8 flags 12 mask 32 blksize 36 attributes 40 nlink 48 uid 52 gid 56 mode 60 "
        "ino 64 size 72 blocks 80 attributes_mask 88 atime_sec 96 atime_nsec 104 btime_sec 112 ctime_sec 128 "
        "mtime_sec 144 rdev_major 160 rdev_minor 164 dev_major 168 dev_minor 172 mnt_id 176 dio_mem_align 184 "
        "dio_offset_align 188 subvol 192 atomic_write_unit_min 200 atomic_write_unit_max 204 "
        "atomic_write_segments_max 208 dio_read_offset_align 212 atomic_write_unit_max_opt 216 spare2 220",
    ),
    (structs.EXT_HEADER, 8, "size 0 type 4"),
    (structs.SECCTX, 8, "size 0"),
    (structs.SUPP_GROUPS, 4, "nr_groups 0"),
    (structs.NOTIFY_INVAL_INODE_OUT, 24, "ino 0 off 8 len 16"),
    (structs.NOTIFY_INVAL_ENTRY_OUT, 16, "parent 0 namelen 8 flags 12"),
    (structs.NOTIFY_DELETE_OUT, 24, "parent 0 child 8 namelen 16"),
    (structs.NOTIFY_POLL_OUT, 8, "kh 0"),
    (structs.NOTIFY_PRUNE_OUT, 16, "count 0 padding 4 spare 8"),
    (structs.PRUNE_ONE, 8, "nodeid 0"),
    (structs.NOTIFY_STORE_OUT, 24, "nodeid 0 offset 8 size 16"),
    (structs.NOTIFY_RETRIEVE_OUT, 32, "notify_unique 0 nodeid 8 offset 16 size 24"),
]
CODECS = {codec.name: codec for codec in vars(structs).values() if isinstance(codec, Codec)}


@pytest.mark.parametrize(("codec", "size", "offsets"), TABLE, ids=[codec.name for codec, _, _ in TABLE])
def test_layout(codec: Codec, size: int, offsets: str) -> None:
    check_offsets(codec, size, offsets)


def test_the_table_has_every_struct() -> None:
    assert {codec.name for codec, _, _ in TABLE} == set(CODECS)


DEFINITIONS = list(definitions(structs))


@pytest.mark.parametrize(("struct", "codec"), DEFINITIONS, ids=[codec.name for _, codec in DEFINITIONS])
def test_codec_equals_construct(struct: construct.Struct, codec: Codec) -> None:
    check_same(struct, codec)


_RENAMED = {"fuse_statfs_out": "fuse_kstatfs", "fuse_statx_out": "", "fuse_statx_in": "", "fuse_supp_groups": ""}
"""Of structs that have another name in the header, or that an old header lacks."""


def test_sizes_as_the_compiler_has_them(tmp_path: Path) -> None:
    """The installed linux/fuse.h, which may be older than the protocol spoken here."""
    header = Path("/usr/include/linux/fuse.h")
    if shutil.which("cc") is None or not header.exists():
        pytest.skip("no C compiler, or no kernel headers")
    text = header.read_text()
    lines = ["#include <linux/fuse.h>"]
    for codec, size, _ in TABLE:
        name = _RENAMED.get(codec.name, codec.name)
        if f"struct {name} {{" in text and codec.name != "fuse_create_out":
            lines.append(f'_Static_assert(sizeof(struct {name}) == {size}, "{name}");')
    assert len(lines) > 40
    source = tmp_path / "sizes.c"
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["cc", "-fsyntax-only", source], check=True)


def test_numbers() -> None:
    assert [int(op) for op in protocol.Opcode] == [
        *range(1, 7), *range(8, 19), *range(20, 54),
    ]  # fmt: skip
    assert [int(code) for code in protocol.Notify] == [*range(1, 10)]
    assert {ioctls.FS_IOC_GETFLAGS, ioctls.FS_IOC_SETFLAGS, ioctls.FS_IOC_GETVERSION, ioctls.FS_IOC_SETVERSION} == {
        0x80086601, 0x40086602, 0x80087601, 0x40087602,
    }  # fmt: skip
    assert (ioctls.FS_IOC_FSGETXATTR, ioctls.FS_IOC_FSSETXATTR) == (0x801C581F, 0x401C5820)
    assert (ioctls.FITRIM, ioctls.EXT4_IOC_SHUTDOWN) == (0xC0185879, 0x8004587D)
    assert (ioctls.FS_IOC_GETFSUUID, ioctls.FS_IOC_GETFSLABEL, ioctls.FS_IOC_SETFSLABEL) == (
        0x80111500, 0x81009431, 0x41009432,
    )  # fmt: skip


@given(opcode=st.integers(0, 60), body=st.binary(max_size=320))
def test_any_bytes_give_a_record_or_invalid(opcode: int, body: bytes) -> None:
    for decode in (protocol.decode_request, protocol.decode_reply, protocol.decode_notification):
        try:
            record, rest = decode(opcode, body)
        except Invalid:
            continue
        if record is not None:
            assert len(body) >= len(rest)


def test_extensions() -> None:
    label = structs.SECCTX.pack(4, 0) + b"selinux\0" + b"ctx\0"
    label += bytes(-len(label) % 8)
    contexts = structs.EXT_HEADER.pack(8 + len(label), 1) + label
    groups = structs.EXT_HEADER.pack(8 + 4 + 8, protocol.EXT_GROUPS) + structs.SUPP_GROUPS.pack(2)
    groups += (5).to_bytes(4, "little") + (70_000).to_bytes(4, "little") + bytes(4)
    body = memoryview(b"name\0" + contexts + groups)
    found = split(body, len(contexts) + len(groups))
    assert found.labels == [(b"security.selinux", b"ctx\0")]
    assert found.groups == [5, 70_000]


@given(body=st.binary(max_size=100), length=st.integers(0, 200))
def test_any_extensions_are_parsed_or_invalid(body: bytes, length: int) -> None:
    try:
        split(memoryview(body), length)
    except Invalid:
        return
    assert length <= len(body)
