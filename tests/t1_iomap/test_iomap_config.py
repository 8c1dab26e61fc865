"""CONFIG: what the server says about its file system, and what a kernel refuses (IOMAP.md sections 1, 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from py4fs.errors import Invalid
from py4fs.iomap import protocol
from py4fs.iomap.client import IomapClient
from py4fs.iomap.config import ALL_CONFIG, MAX_LFS_FILESIZE, ConfigReply, Identity, answer, check
from py4fs.iomap.records import ConfigFlags
from py4fs.iomap.server import Ext4Iomap, server_of
from py4fs.vfs import Vfs
from tests.support.image import ImageMaker, superblock
from tests.support.volumes import open_volume
from tests.t1_iomap.iomap_fakes import B, FakeVolume

UUID = bytes(range(16))
IDENTITY = Identity("disk.img", UUID, 65000, 1, -(1 << 31), (1 << 34) - (1 << 31) - 1)
GOOD = answer(IDENTITY, 4096, 1 << 44, ALL_CONFIG, MAX_LFS_FILESIZE, 1 << 20)


def test_section_2_every_field() -> None:
    assert ConfigReply(
        0x7F, b"disk.img".ljust(32, b"\0"), UUID, 16, 4096, 65000, 1,
        -(1 << 31), 15032385535, 1 << 44, 1 << 20,
    ) == GOOD  # fmt: skip
    check(GOOD)


@pytest.mark.parametrize("flag", list(ConfigFlags))
def test_section_2_only_what_the_kernel_understands(flag: ConfigFlags) -> None:
    """A field whose bit was not offered is neither flagged nor filled."""
    reply = answer(IDENTITY, 4096, 1 << 44, ALL_CONFIG & ~flag, MAX_LFS_FILESIZE, 1 << 20)
    assert reply.flags == ALL_CONFIG & ~flag
    check(reply, ALL_CONFIG & ~flag)
    with pytest.raises(Invalid):
        check(GOOD, ALL_CONFIG & ~flag)
    changed = [new for new, old in zip(reply[1:], GOOD[1:], strict=True) if new != old]
    assert changed and not any(any(new) if isinstance(new, bytes) else new for new in changed)
    alone = answer(IDENTITY, 4096, 1 << 44, flag, MAX_LFS_FILESIZE, 1 << 20)
    assert alone.flags == flag


def test_section_2_largest_file_is_the_smaller_of_both() -> None:
    assert answer(IDENTITY, 4096, 1 << 44, ALL_CONFIG, 1 << 40, 0).s_maxbytes == 1 << 40
    assert answer(IDENTITY, 4096, 1 << 44, ALL_CONFIG, 0, 0).s_maxbytes == 0
    assert not answer(IDENTITY, 4096, 1 << 44, ALL_CONFIG, 1 << 40, 0).flags & ConfigFlags.CACHE_MAXBYTES


def test_names_are_cut_and_end_in_nul() -> None:
    reply = answer(Identity("n" * 100), 4096, 1 << 44, ALL_CONFIG, MAX_LFS_FILESIZE, 0)
    assert reply.s_id == b"n" * 31 + b"\0"
    assert not reply.flags & ConfigFlags.UUID
    check(reply)
    odd = answer(Identity("\udce9" * 3), 4096, 1 << 44, ALL_CONFIG, MAX_LFS_FILESIZE, 0)
    assert odd.s_id.rstrip(b"\0") == b"\xe9" * 3


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 1 << 7},
        {"s_uuid_len": 17},
        {"s_id": b"x" * 32},
        {"s_time_gran": 0},
        {"s_time_gran": 1_000_000_001},
        {"s_maxbytes": -1},
        {"s_blocksize": 0},
        {"s_blocksize": 1000},
        {"s_blocksize": 256},
    ],
)
def test_section_2_what_a_kernel_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        check(GOOD._replace(**change))
    old_kernels_too = "flags" in change or "s_uuid_len" in change
    if not old_kernels_too:
        check(GOOD._replace(**change), strict=False)
        meant = {"s_id": ConfigFlags.SID, "s_time_gran": ConfigFlags.TIME, "s_maxbytes": ConfigFlags.MAXBYTES,
                 "s_blocksize": ConfigFlags.BLOCKSIZE}[next(iter(change))]  # fmt: skip
        check(GOOD._replace(flags=GOOD.flags & ~meant, **change))


def test_on_the_wire() -> None:
    body = protocol.config_out(GOOD)
    assert len(body) == 104
    assert protocol.config_of(protocol.decode_reply(protocol.Opcode.IOMAP_CONFIG, body)) == GOOD
    # a short reply means zeros in the rest
    short = protocol.decode_reply(protocol.Opcode.IOMAP_CONFIG, body[:8])
    assert protocol.config_of(short) == ConfigReply(flags=GOOD.flags)
    with pytest.raises(Invalid):
        protocol.config_of(protocol.decode_reply(protocol.Opcode.IOMAP_CONFIG, body[:57] + b"x"))


@pytest.mark.parametrize(
    ("args", "block", "gran", "last"),
    [(("-b", "1024", "-I", "128"), 1024, 10**9, (1 << 31) - 1), (("-b", "4096"), 4096, 1, (1 << 34) - (1 << 31) - 1)],
)
def test_of_a_volume(make_image: ImageMaker, args: tuple[str, ...], block: int, gran: int, last: int) -> None:
    image: Path = make_image("16M", *args)
    with open_volume(image) as volume:
        reply = Vfs(volume).server.config(cache_maxbytes=1 << 20)
        assert server_of(volume).config().flags == reply.flags & ~ConfigFlags.CACHE_MAXBYTES
    check(reply)
    assert reply.s_id.rstrip(b"\0").decode() == image.name
    assert reply.s_uuid.hex() == superblock(image)["Filesystem UUID"].replace("-", "")
    assert (reply.s_blocksize, reply.s_max_links) == (block, 65000)
    assert (reply.s_time_gran, reply.s_time_min, reply.s_time_max) == (gran, -(1 << 31), last)
    assert reply.s_maxbytes == ((1 << 32) - 1) * block
    assert reply.cache_maxbytes == 1 << 20


def test_the_client_goes_by_it() -> None:
    volume = FakeVolume()
    client = IomapClient(volume, volume.server)
    file = client.file(volume.inode())
    assert (file.cache.blocksize, file.cache.max_file_bytes) == (B, volume.files.max_size)
    volume.files.block_size = 1000
    server = Ext4Iomap(volume.files, volume.operation, groups=1)
    assert server.config().s_blocksize == 1000
    with pytest.raises(Invalid):
        IomapClient(volume, server)
