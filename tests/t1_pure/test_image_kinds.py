"""Where the file system lies: partitions as util-linux sees them, sparse and compressed images, refusals."""

from __future__ import annotations

import binascii
import gzip
import lzma
import random
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from images.tools import run
from py4fs import errors
from py4fs.device import crc, gzip_view, restart, xz_view
from py4fs.device.base import Device
from py4fs.device.image import find_file_system, open_storage, place_in_file
from py4fs.device.memory import MemoryDevice
from py4fs.device.partition import partitions
from py4fs.device.signatures import SIGNATURES
from tests.support import disks, machine


def fake_ext4(size: int = 4096, fill: bytes = b"\0") -> bytes:
    """Enough of a superblock to be found."""
    data = bytearray(fill * size)
    data[1080:1082] = b"\x53\xef"
    return bytes(data)


def content(size: int, seed: int = 1) -> bytes:
    """An image with an ext4 magic, random, repetitive and empty parts."""
    rng = random.Random(seed)
    parts = [fake_ext4()]
    while sum(map(len, parts)) < size:
        length = rng.randrange(1, 64) * 4096
        parts.append(rng.choice([bytes(length), rng.randbytes(4) * (length // 4), rng.randbytes(length)]))
    return b"".join(parts)[:size]


def partx_sees(path: Path) -> dict[int, tuple[int, int]]:
    """number -> (offset, size) in bytes, as util-linux finds them."""
    machine.need_program("partx")
    found = {}
    for line in run(["partx", "-g", "-o", "NR,START,SECTORS,TYPE", "--show", str(path)], clock=None).splitlines():
        number, start, count, kind = line.split()
        if kind != "0xf":
            found[int(number)] = (int(start) * 512, int(count) * 512)
    return found


def hybrid(path: Path) -> None:
    disks.write_gpt(path, {1: (64, 100)})
    disks.put(path, 0, disks.boot_record(disks.mbr_entry(0xEE, 1, 63), disks.mbr_entry(0x83, 64, 100)))


TABLES: dict[str, Callable[[Path], None]] = {
    "mbr": lambda p: disks.write_mbr(p, {1: (0x83, 64, 100), 3: (0x82, 200, 56)}),
    "logical": lambda p: disks.write_mbr(
        p, {1: (0x83, 64, 100), 5: (0x83, 300, 40), 6: (0x83, 400, 50), 7: (0x0B, 500, 60)}
    ),
    "gpt": lambda p: disks.write_gpt(p, {1: (64, 100), 2: (200, 56), 7: (300, 1)}),
    "hybrid": hybrid,
}


@pytest.mark.parametrize("name", TABLES)
def test_partitions_are_those_of_partx(name: str, tmp_path: Path) -> None:
    path = disks.blank(tmp_path / "disk", 2048)
    TABLES[name](path)
    found = partitions(MemoryDevice(path.read_bytes()))
    assert found is not None
    assert {part.number: (part.offset, part.size) for part in found} == partx_sees(path)


def test_gpt_of_4096_byte_sectors_and_its_backup(tmp_path: Path) -> None:
    path = disks.blank(tmp_path / "disk", 4096)
    disks.write_gpt(path, {2: (16, 4)}, 4096)
    [part] = partitions(MemoryDevice(path.read_bytes())) or []
    assert part.number == 2 and part.offset == 16 * 4096 and part.size == 4 * 4096
    disks.put(path, 1, b"damaged!", 4096)
    assert partitions(MemoryDevice(path.read_bytes())) == [part]


def disk_with(tmp_path: Path, **places: bytes) -> Path:
    """p1=…, p2=…: contents of GPT partitions of 64 sectors."""
    path = disks.blank(tmp_path / "disk", 2048)
    disks.write_gpt(path, {int(name[1:]): (100 * int(name[1:]), 64) for name in places})
    for name, data in places.items():
        disks.put(path, 100 * int(name[1:]), data)
    return path


def test_the_only_ext4_partition_is_found_and_written(tmp_path: Path) -> None:
    path = disk_with(tmp_path, p1=b"XFSB", p3=fake_ext4())
    device = open_storage(path)
    assert (device.size, device.readonly, place_in_file(device)) == (64 * 512, False, 300 * 512)
    assert device.name == f"{path} (partition 3)"
    device.write(2000, b"here")
    device.writev(2004, [b"and", b"there"])
    device.flush()
    with pytest.raises(errors.DeviceError, match="beyond the end"):
        device.write(64 * 512 - 1, b"xx")
    with pytest.raises(errors.Busy):
        open_storage(path)
    device.close()
    raw = path.read_bytes()
    assert raw[300 * 512 + 2000 :][:12] == b"hereandthere" and raw[364 * 512 :][:10] == bytes(10)


def test_partition_errors(tmp_path: Path) -> None:
    path = disk_with(tmp_path, p1=fake_ext4(), p2=fake_ext4(), p4=b"hsqs")
    with pytest.raises(errors.Invalid, match="has 2 ext4 partitions, numbers 1, 2: say which with partition=N"):
        open_storage(path)
    open_storage(path, partition=2).close()
    with pytest.raises(errors.UnsupportedFeature, match="partition 4: not ext4, squashfs file system"):
        open_storage(path, partition=4)
    with pytest.raises(errors.Invalid, match="partition 9: there is none, only 1: ext4, 2: ext4, 4: squashfs"):
        open_storage(path, partition=9)
    with pytest.raises(errors.UnsupportedFeature, match="no ext4 partition: 1: unknown contents"):
        open_storage(disk_with(tmp_path, p1=b"x"))
    plain = tmp_path / "plain"
    plain.write_bytes(fake_ext4())
    with pytest.raises(errors.Invalid, match="partition 1: there is no partition table"):
        open_storage(plain, partition=1)


@pytest.mark.parametrize("seed_", range(40))
def test_damaged_tables_are_refused_or_read(seed_: int, tmp_path: Path) -> None:
    """Any bytes in any table: a result inside the disk, or a clear error."""
    rng = random.Random(seed_)
    path = disks.blank(tmp_path / "disk", 2048)
    TABLES[rng.choice(list(TABLES))](path)
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 30)):
        place = rng.choice([rng.randrange(446, 510), rng.randrange(512, 604), rng.randrange(1024, 1600),
                            292 * 512 + rng.randrange(446, 510), len(data) - rng.randrange(1, 512)])  # fmt: skip
        data[place] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    try:
        found = partitions(MemoryDevice(data)) or []
    except errors.Corrupt as exc:
        assert "\n" not in str(exc)
        return
    assert all(part.offset + part.size <= len(data) for part in found)


def test_a_circle_of_extended_records_ends(tmp_path: Path) -> None:
    path = disks.blank(tmp_path / "disk", 2048)
    disks.put(path, 0, disks.boot_record(disks.mbr_entry(5, 100, 500)))
    disks.put(path, 100, disks.boot_record(bytes(16), disks.mbr_entry(5, 50, 100)))
    disks.put(path, 150, disks.boot_record(bytes(16), disks.mbr_entry(5, 50, 100)))
    with pytest.raises(errors.Corrupt, match=r"extended boot record.*sector 150.*a chain that does not end"):
        partitions(MemoryDevice(path.read_bytes()))


# -- sparse ---------------------------------------------------------------------------------------------------


def check_reads(device: Device, want: bytes) -> None:
    assert device.size == len(want) and device.readonly
    rng = random.Random(len(want))
    assert device.read(0, len(want)) == want
    for _ in range(100):
        at = rng.randrange(len(want) + 1)
        length = min(rng.choice([0, 1, 100, 4096, 70_000, 600_000]), len(want) - at)
        assert device.read(at, length) == want[at : at + length], (at, length)
    with pytest.raises(errors.ReadOnly):
        device.write(0, b"x")
    with pytest.raises(errors.ReadOnly):
        device.writev(0, [b"x"])
    with pytest.raises(errors.DeviceError, match="beyond the end"):
        device.read(len(want), 1)
    device.flush()
    device.close()
    device.close()


@pytest.mark.parametrize("checks", [False, True])
def test_sparse(checks: bool) -> None:
    want = content(3 << 20)
    check_reads(find_file_system(MemoryDevice(disks.to_sparse(want, checks=checks))), want)


def test_sparse_checksum_is_checked() -> None:
    want = content(1 << 20)
    data = bytearray(disks.to_sparse(want, checks=True))
    data[28 + 12 + 2000] ^= 1
    with pytest.raises(errors.Corrupt, match="sparse image checksum"):
        find_file_system(MemoryDevice(data))


SPARSE_DAMAGE = {
    "version": (4, struct.pack("<H", 2), errors.UnsupportedFeature, "version 2.0"),
    "header size": (8, struct.pack("<H", 27), errors.Corrupt, "sparse header sizes"),
    "chunk header size": (10, struct.pack("<H", 4), errors.Corrupt, "sparse header sizes"),
    "block size 0": (12, bytes(4), errors.Corrupt, "blk_sz"),
    "block size odd": (12, struct.pack("<I", 4098), errors.Corrupt, "blk_sz"),
    "blocks": (16, struct.pack("<I", 1), errors.Corrupt, "sparse chunk"),
    "more blocks": (16, b"\xff\xff\xff\xff", errors.Corrupt, "total_blks"),
    "chunks": (20, b"\xff\xff\xff\xff", errors.Corrupt, "the end of the image"),
    "type": (28, b"\xc9\xca", errors.Corrupt, "sparse chunk type"),
    "blocks of a chunk": (32, b"\xff\xff\xff\x00", errors.Corrupt, "sparse chunk length"),
    "length": (36, b"\x00\x00\x00\x00", errors.Corrupt, "sparse chunk length"),
}


@pytest.mark.parametrize("name", SPARSE_DAMAGE)
def test_damaged_sparse(name: str) -> None:
    at, patch, kind, text = SPARSE_DAMAGE[name]
    data = bytearray(disks.to_sparse(content(1 << 20)))
    data[at : at + len(patch)] = patch
    with pytest.raises(kind, match=text):
        find_file_system(MemoryDevice(data))


def test_crc_of_repetitions() -> None:
    rng = random.Random(3)
    for count in (0, 1, 2, 3, 1000, 12345):
        pattern = rng.randbytes(4)
        assert crc.repeated(pattern, count) == binascii.crc32(pattern * count)
        assert crc.combine(binascii.crc32(b"abc"), binascii.crc32(pattern * count), 4 * count) == binascii.crc32(
            b"abc" + pattern * count
        )


# -- compressed -----------------------------------------------------------------------------------------------


def xz_blocks(data: bytes, size: int) -> bytes:
    """As `xz --block-size` writes it."""
    machine.need_program("xz")
    return subprocess.run(["xz", "-1", f"--block-size={size}"], input=data, capture_output=True, check=True).stdout


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


HALF = 1 << 20
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "gzip members": lambda d: gzip.compress(d[:HALF]) + gzip.compress(b"") + gzip.compress(d[HALF:]) + bytes(100),
    "xz": lambda data: lzma.compress(data, preset=0),
    "xz blocks": lambda data: xz_blocks(data, 100_000),
    "xz streams": lambda d: lzma.compress(d[:HALF], preset=0) + bytes(8) + xz_blocks(d[HALF:], HALF) + bytes(4),
    "zstd": zstd,
    "zstd frames": lambda d: zstd(d[:HALF]) + struct.pack("<II", 0x184D2A50, 5) + b"skip!" + zstd(d[HALF:]),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_view, "POINTS", 3)
    monkeypatch.setattr(restart, "PIECES", 4)
    want = content(5 << 20)
    check_reads(find_file_system(MemoryDevice(COMPRESSORS[name](want))), want)


def test_xz_of_one_large_block_is_spooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xz_view, "MAX_BLOCK", 1 << 20)
    want = content(3 << 20)
    check_reads(find_file_system(MemoryDevice(lzma.compress(want))), want)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_damaged_compressed(name: str) -> None:
    """Cut and changed anywhere: an error of ours, or (where the format has no checksum there) bytes."""
    want = content(2 << 20)
    good = COMPRESSORS[name](want)
    rng = random.Random(name)
    for number in range(24):
        data = bytearray(good[: rng.randrange(8, len(good))] if number % 3 == 0 else good)
        if number % 3:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(8, len(data)) if number % 3 == 1 else -rng.randrange(1, 60)] = rng.randrange(256)
        try:
            device = find_file_system(MemoryDevice(data))
            for at in range(0, device.size, 1 << 20):
                device.read(at, min(1 << 20, device.size - at))
            device.close()
        except errors.FsError as exc:
            assert "\n" not in str(exc)


def test_memory_of_a_gzip_bomb_is_bounded(tmp_path: Path) -> None:
    """2 GiB of zeros are 2 MB of gzip; what is kept is a bounded number of decoders."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    with (tmp_path / "bomb").open("wb") as file:
        file.write(squeeze.compress(fake_ext4()))
        for _ in range(2048):
            file.write(squeeze.compress(bytes(1 << 20)))
        file.write(squeeze.flush())
    program = (
        "import sys; from py4fs.device.image import open_storage; d = open_storage(sys.argv[1], readonly=True);"
        "assert d.read(1 << 30, 5) == bytes(5); print(d.size);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "bomb"], capture_output=True, text=True, check=True
    )
    size, peak = map(int, done.stdout.split())
    assert size == (2 << 30) + 4096
    assert peak < 90 << 10  # KiB


def test_zstd_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(errors.UnsupportedFeature, match="zstd-compressed image: the Python package zstandard"):
        find_file_system(MemoryDevice(zstd(content(10_000))))


# -- layers and refusals --------------------------------------------------------------------------------------


def test_layers(tmp_path: Path) -> None:
    want = fake_ext4(64 * 512, b"z")
    path = disk_with(tmp_path, p1=want)
    device = find_file_system(MemoryDevice(gzip.compress(disks.to_sparse(path.read_bytes()))))
    check_reads(device, want)
    data = fake_ext4()
    for _ in range(6):
        data = gzip.compress(data)
    with pytest.raises(errors.UnsupportedFeature, match="images in images, more than 4 deep"):
        find_file_system(MemoryDevice(data))


@pytest.mark.parametrize("number", range(len(SIGNATURES)))
def test_others_are_refused_by_name(number: int) -> None:
    offset, magic, name = SIGNATURES[number]
    data = bytearray(100_000)
    data[offset : offset + len(magic)] = magic
    with pytest.raises(errors.UnsupportedFeature) as caught:
        find_file_system(MemoryDevice(data))
    assert str(caught.value) == f"not an ext4 image: {name}"


REAL: dict[str, tuple[list[str], str]] = {
    "xfs": (["mkfs.xfs", "-q", "-f"], "XFS file system"),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], "btrfs file system"),
    "swap": (["mkswap"], "Linux swap area"),
    "fat": (["mkfs.fat"], "FAT file system"),
}


@pytest.mark.parametrize("name", [name for name, (command, _) in REAL.items() if shutil.which(command[0])])
def test_real_others(name: str, tmp_path: Path) -> None:
    """Those that this machine can make."""
    command, kind = REAL[name]
    path = disks.blank(tmp_path / "other", 700 << 11)
    run([*command, str(path)], clock=None)
    with pytest.raises(errors.UnsupportedFeature, match=f"not an ext4 image: {kind}"):
        open_storage(path)


def test_what_is_nothing_is_left_to_the_superblock() -> None:
    device = MemoryDevice(100_000)
    assert find_file_system(device) is device
