"""The orphan file: who gets into it, who gets out, what the kernel and e2fsck make of it, and damaged ones."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from struct import pack_into, unpack_from
from typing import Any

import pytest

from images.tools import fsck_clean, mke2fs, run
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.errors import Corrupt, FsError, ReadOnly
from py4fs.ext4 import checksum
from py4fs.ext4.features import Compat, RoCompat
from py4fs.ext4.layout.orphan import EXT4_ORPHAN_BLOCK_MAGIC, ORPHAN_BLOCK_TAIL
from py4fs.ext4.layout.superblock import EXT4_ERROR_FS, SUPERBLOCK
from py4fs.ext4.orphan_file import OrphanFile
from py4fs.ext4.transaction import Reserve
from py4fs.ext4.volume import VolumeOptions
from tests.conftest import KernelMount
from tests.support.state import cool
from tests.support.volumes import Clock
from tests.t7_hostile.mutate import Mutator

BLOCK = 1024
SLOTS = (BLOCK - 8) // 4
SB = 1024
ARGS = ("-b", "1024", "-J", "size=1", "-N", "1024")
NO_CSUM = (*ARGS, "-O", "orphan_file,^metadata_csum,^64bit")
WITH = (*ARGS, "-O", "orphan_file")


class NeverWritten(MemoryDevice):
    def write(self, offset: int, data: Any) -> None:
        raise AssertionError(f"written at {offset}")


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Fresh images by the arguments of mke2fs, made once."""
    made: dict[tuple[str, ...], bytes] = {}

    def make(*args: str) -> bytes:
        if args not in made:
            path = tmp_path_factory.mktemp("orphan") / "fs.img"
            mke2fs(path, 8 << 20, *args)
            made[args] = path.read_bytes()
        return made[args]

    return make


def open_bytes(image: bytes | bytearray, *, readonly: bool = False) -> tuple[Filesystem, MemoryDevice]:
    device = NeverWritten(image) if readonly else MemoryDevice(image)
    options = OpenOptions(readonly=readonly, volume=VolumeOptions(strict=True))
    return open_device(device, clock=Clock(), options=options), device


def record(image: bytes | bytearray) -> Any:
    return SUPERBLOCK.unpack_from(image, SB)


def orphan_file(fs: Filesystem) -> OrphanFile:
    file = fs.volume.orphans._file
    assert file is not None
    return file


def present(image: bytes | bytearray) -> bool:
    return bool(record(image).s_feature_ro_compat & RoCompat.ORPHAN_PRESENT)


def free_counts(image: bytes | bytearray) -> tuple[int, int]:
    sb = record(image)
    return sb.s_free_blocks_count_lo, sb.s_free_inodes_count


def checked(image: bytes | bytearray, path: Path) -> bytes:
    """The image, which `e2fsck -fn` has found clean and whose orphan_present is not set."""
    path.write_bytes(image)
    fsck_clean(path)
    assert not present(image)
    return bytes(image)


def by_py4fs(image: bytes, path: Path) -> bytes:
    fs, device = open_bytes(image)
    assert not fs.volume.readonly, fs.volume.notices
    fs.close()
    return checked(device.data, path)


def by_e2fsck(image: bytes, path: Path) -> bytes:
    path.write_bytes(image)
    run(["e2fsck", "-fy", "-E", "no_optimize_extents", path], ok=(0, 1), clock=None)
    return checked(path.read_bytes(), path)


def by_kernel(image: bytes, path: Path, kernel_mount: KernelMount) -> bytes:
    path.write_bytes(image)
    with kernel_mount(path):
        pass
    return checked(path.read_bytes(), path)


def leave_orphans(fs: Filesystem) -> list[Any]:
    """Unlinked open files of several kinds and a truncation that has only begun; returns what keeps them open."""
    held: list[Any] = []
    with fs.open("/comb", "wb") as file:
        for number in range(100):
            file.seek(number * 2 * BLOCK)
            file.write(b"c" * BLOCK)
    for number in range(5):
        name = f"/gone{number}"
        fs.write_bytes(name, b"g" * (number * 5000))
        held.append(fs.open(name, "rb"))
        fs.setxattr(name, "user.large", bytes(600))
        fs.unlink(name)
    fs.sync()
    volume = fs.volume
    inode = volume.inodes.get(fs.stat("/comb").ino)
    with volume.operation(400, Reserve.ALL) as tx:
        assert not volume.reclaim.start_shrink(tx, inode, 3 * BLOCK)
    return held


@pytest.mark.parametrize("args", [WITH, NO_CSUM], ids=["csum", "no-csum"])
def test_unlinked_open_files_are_in_the_file(masters: Callable[..., bytes], tmp_path: Path, args: Any) -> None:
    fs, device = open_bytes(masters(*args))
    assert not present(device.data)
    held = leave_orphans(fs)
    assert fs.volume.orphans.in_file == 6
    assert fs.volume.superblock.last_orphan == 0
    assert present(device.data), "set on the device before anything gets into the file"
    fs.sync()
    for file in held[:3]:
        file.close()
    assert fs.volume.orphans.in_file == 3
    fs.close()
    checked(device.data, tmp_path / "after.img")


@pytest.mark.parametrize("args", [WITH, NO_CSUM], ids=["csum", "no-csum"])
def test_what_a_killed_server_leaves_is_freed_by_all(
    masters: Callable[..., bytes], tmp_path: Path, kernel_mount: KernelMount, args: Any
) -> None:
    fs, device = open_bytes(masters(*args))
    fs.write_bytes("/kept", b"k" * 3000)
    held = leave_orphans(fs)
    fs.sync()
    killed = bytes(device.data)
    ino = fs.stat("/comb").ino
    del held
    path = tmp_path / "fs.img"

    reader, _ = open_bytes(killed, readonly=True)
    assert any("6 inode(s) in the orphan file" in line for line in reader.volume.notices)
    assert reader.read_bytes("/kept") == b"k" * 3000
    reader.close()

    again, _ = open_bytes(killed)
    assert any("5 inode(s) deleted, 1 truncated" in line for line in again.volume.notices)
    assert again.lstat("/comb").ino == ino
    assert again.lstat("/comb").size == 3 * BLOCK
    again.close()

    ours = by_py4fs(killed, path)
    theirs = by_e2fsck(killed, path)
    kernels = by_kernel(killed, path, kernel_mount)
    assert free_counts(ours) == free_counts(theirs) == free_counts(kernels)


@pytest.mark.parametrize("features", ["orphan_file", "orphan_file,fast_commit", "orphan_file,metadata_csum_seed"])
def test_what_a_stopped_kernel_leaves(tmp_path: Path, kernel_mount: KernelMount, features: str) -> None:
    path, copy = tmp_path / "fs.img", tmp_path / "copy.img"
    mke2fs(path, 16 << 20, "-b", "1024", "-O", features)
    with kernel_mount(path) as root, ExitStack() as stack:
        for number in range(300):
            name = root / f"f{number}"
            name.write_bytes(bytes([number % 256]) * (number * 20))
            if number % 3 == 0:
                stack.enter_context(name.open("rb"))
                if number % 2:
                    fd = os.open(root, os.O_RDONLY)
                    stack.callback(os.close, fd)
                    os.fsync(fd)
                name.unlink()
        os.sync()
        shutil.copy(path, copy)
    stopped = copy.read_bytes()
    assert present(stopped)
    assert record(stopped).s_last_orphan == 0
    fs, device = open_bytes(stopped)
    assert any("orphans: 100 inode(s) deleted, 0 truncated" in line for line in fs.volume.notices)
    assert len(fs.listdir("/")) == 201
    fs.close()
    ours = checked(device.data, copy)
    assert free_counts(ours) == free_counts(by_e2fsck(stopped, copy))


def test_reading_writes_nothing(masters: Callable[..., bytes]) -> None:
    fs, device = open_bytes(masters(*WITH))
    held = leave_orphans(fs)
    fs.sync()
    reader, _ = open_bytes(device.data, readonly=True)
    assert len(reader.volume.orphans) == 0
    reader.close()
    del held


def test_a_full_file_falls_back_to_the_list(
    tmp_path: Path, masters: Callable[..., bytes], kernel_mount: KernelMount
) -> None:
    fs, device = open_bytes(masters(*WITH, "-E", "orphan_file_size=2"))
    capacity = orphan_file(fs).capacity
    assert capacity == 2 * SLOTS
    held = []
    for number in range(capacity + 10):
        fs.write_bytes(f"/f{number}", b"")
        held.append(fs.open(f"/f{number}", "rb"))
        fs.unlink(f"/f{number}")
    assert fs.volume.orphans.in_file == capacity
    assert fs.volume.superblock.last_orphan
    assert len(fs.volume.orphans) == capacity + 10
    fs.sync()
    killed = bytes(device.data)

    held[7].close()  # from a block that is full
    fs.write_bytes("/another", b"")
    held.append(fs.open("/another", "rb"))
    fs.unlink("/another")
    assert fs.volume.orphans.in_file == capacity
    for file in held:
        file.close()
    assert len(fs.volume.orphans) == 0
    fs.close()
    checked(device.data, tmp_path / "after.img")

    path = tmp_path / "killed.img"
    ours, theirs = by_py4fs(killed, path), by_e2fsck(killed, path)
    assert free_counts(ours) == free_counts(theirs) == free_counts(by_kernel(killed, path, kernel_mount))


def test_a_flag_left_over_is_cleared(masters: Callable[..., bytes], tmp_path: Path) -> None:
    image = bytearray(masters(*WITH))
    set_super(image, s_feature_ro_compat=record(image).s_feature_ro_compat | RoCompat.ORPHAN_PRESENT)
    fs, device = open_bytes(image)
    fs.close()
    checked(device.data, tmp_path / "after.img")


def test_without_the_file_the_flag_means_read_only(masters: Callable[..., bytes]) -> None:
    image = bytearray(masters(*ARGS))
    sb = record(image)
    assert not sb.s_feature_compat & Compat.ORPHAN_FILE
    set_super(image, s_feature_ro_compat=sb.s_feature_ro_compat | RoCompat.ORPHAN_PRESENT)
    fs, _ = open_bytes(image)
    assert "orphan_present is set without orphan_file" in (fs.volume.readonly_reason or "")
    fs.close()


def test_without_a_journal_the_list_is_used(masters: Callable[..., bytes], tmp_path: Path) -> None:
    fs, device = open_bytes(masters(*WITH))
    held = leave_orphans(fs)
    fs.sync()
    path = tmp_path / "fs.img"
    run(["e2fsck", "-fy", _written(path, device.data)], ok=(0, 1), clock=None)
    image = bytearray(path.read_bytes())
    set_super(image, s_feature_compat=record(image).s_feature_compat & ~Compat.HAS_JOURNAL, s_journal_inum=0)
    fs, device = open_bytes(image)
    held = leave_orphans_again(fs)
    assert fs.volume.orphans.in_file == 0
    assert fs.volume.superblock.last_orphan
    for file in held:
        file.close()
    fs.close()
    assert not present(device.data)


def leave_orphans_again(fs: Filesystem) -> list[Any]:
    fs.write_bytes("/again", b"a")
    held = [fs.open("/again", "rb")]
    fs.unlink("/again")
    return held


def _written(path: Path, image: bytes | bytearray) -> Path:
    path.write_bytes(image)
    return path


def test_orphans_of_a_file_system_with_errors_are_dropped(masters: Callable[..., bytes], tmp_path: Path) -> None:
    fs, device = open_bytes(masters(*WITH))
    held = leave_orphans(fs)
    fs.sync()
    del held
    # replayed, but not processed: by opening what e2fsck's journal replay leaves
    path = _written(tmp_path / "fs.img", device.data)
    run(["e2fsck", "-E", "journal_only", "-y", path], ok=(0, 1), clock=None)
    image = bytearray(path.read_bytes())
    set_super(image, s_state=record(image).s_state | EXT4_ERROR_FS)
    fs, device = open_bytes(image)
    assert any("orphan file said was dropped" in line for line in fs.volume.notices)
    assert fs.volume.orphans.in_file == 0
    fs.write_bytes("/more", b"m")
    fs.close()
    run(["e2fsck", "-fy", _written(path, device.data)], ok=(0, 1), clock=None)
    fsck_clean(path)


# -- memory ------------------------------------------------------------------------------------------------------------


class Abort(Exception):
    pass


def check_slots(fs: Filesystem) -> None:
    """Blocks, slots and free slots say the same."""
    file = orphan_file(fs)
    found = {}
    for index in range(len(file._pblks)):
        data = file._block(index).data
        for offset, ino in enumerate(unpack_from(f"<{file.per_block}I", data)):
            if ino:
                found[ino] = index * file.per_block + offset
    assert found == file.slots
    opened = set(range(len(file._pblks))) - file._unopened
    free = {slot for slot in range(file.capacity) if slot // file.per_block in opened} - set(found.values())
    assert sorted(file._free) == sorted(free)


def test_slots_follow_operations_that_fail(masters: Callable[..., bytes], rng: random.Random) -> None:
    fs, _ = open_bytes(masters(*WITH, "-E", "orphan_file_size=3"))
    orphans, volume, file = fs.volume.orphans, fs.volume, orphan_file(fs)
    for number in range(700):
        fs.write_bytes(f"/f{number}", b"")
    inodes = [volume.inodes.get(fs.stat(f"/f{number}").ino) for number in range(700)]
    for inode in inodes:
        fs.vfs.ref(inode.ino)
    for turn in range(200):
        before = dict(file.slots)
        members = set(orphans)
        fail = rng.random() < 0.5
        grow = rng.random() < (0.7 if turn < 120 else 0.3)
        try:
            with volume.operation(80) as tx:
                for _ in range(rng.randrange(1, 20)):
                    inside = [inode for inode in inodes if inode.ino in orphans]
                    outside = [inode for inode in inodes if inode.ino not in orphans]
                    if outside and (grow or not inside):
                        orphans.add(tx, rng.choice(outside))
                    else:
                        orphans.remove(tx, rng.choice(inside))
                if fail:
                    raise Abort
        except Abort:
            assert file.slots == before
            assert set(orphans) == members
        check_slots(fs)
    with volume.operation(2000) as tx:
        for inode in inodes:
            orphans.remove(tx, inode)
    check_slots(fs)
    fs.close()


class NotingReads(MemoryDevice):
    """Keeps the offsets that were read."""

    def __init__(self, content: bytes | bytearray) -> None:
        super().__init__(content)
        self.offsets: set[int] = set()

    def read(self, offset: int, length: int) -> bytes:
        self.offsets.update(range(offset, offset + length, BLOCK))
        return super().read(offset, length)


def test_a_free_slot_is_found_without_reading_the_others(masters: Callable[..., bytes]) -> None:
    device = NotingReads(masters(*WITH, "-E", "orphan_file_size=32"))
    fs = open_device(device, clock=Clock(), options=OpenOptions(volume=VolumeOptions(strict=True)))
    volume = fs.volume
    inode = volume.inodes.get(volume.superblock.record.s_orphan_file_inum, reserved=True)
    places = [volume.files.block_of(inode, number) * BLOCK for number in range(32)]
    assert device.offsets.issuperset(places), "mounting looks at all of them"

    def read() -> set[int]:
        return {places.index(offset) for offset in device.offsets.intersection(places)}

    cool(fs)
    device.offsets.clear()
    held = leave_orphans(fs)
    assert read() == {0}
    for handle in held:
        handle.close()
    assert read() == {0}
    fs.close()


# -- damage ------------------------------------------------------------------------------------------------------------


def set_super(image: bytearray, **fields: int) -> None:
    SUPERBLOCK.put(image, SB, **fields)
    if record(image).s_feature_ro_compat & RoCompat.METADATA_CSUM:
        raw = image[SB : SB + 1024]
        checksum.set_superblock(raw)
        image[SB : SB + 1024] = raw


class Sample:
    """An image whose orphan file can be written by hand."""

    def __init__(self, image: bytes) -> None:
        fs, device = open_bytes(image)
        fs.mkdir("/d")
        fs.write_bytes("/file", b"f" * 2000)
        fs.write_bytes("/other", b"o" * 2000)
        self.dir, self.file, self.other = (fs.stat(name).ino for name in ("/d", "/file", "/other"))
        self.pblks = list(orphan_file(fs)._pblks)
        self.ino = record(image).s_orphan_file_inum
        self.seed = fs.volume.inodes.get(self.ino, reserved=True).seed
        self.inodes_count = fs.volume.geometry.inodes_count
        fs.close()
        self.image = bytearray(device.data)
        self.mutator = Mutator(bytes(self.image))

    def put(self, *entries: int, block: int = 0, stamp: bool = True) -> None:
        at = self.pblks[block] * BLOCK
        pack_into(f"<{len(entries)}I", self.image, at, *entries)
        if stamp:
            raw = self.image[at : at + BLOCK]
            checksum.set_orphan_block(raw, self.seed, self.pblks[block])
            self.image[at : at + BLOCK] = raw
        sb = record(self.image)
        set_super(self.image, s_feature_ro_compat=sb.s_feature_ro_compat | RoCompat.ORPHAN_PRESENT)

    def put_tail(self, **fields: int) -> None:
        ORPHAN_BLOCK_TAIL.put(self.image, (self.pblks[1] + 1) * BLOCK - 8, **fields)

    def put_inode(self, ino: int, **fields: Any) -> None:
        self.mutator.put_inode(self.image, ino, **fields)


@pytest.fixture
def sample(masters: Callable[..., bytes]) -> Sample:
    return Sample(masters(*WITH))


def bad_magic(sample: Sample) -> None:
    sample.put_tail(ob_magic=EXT4_ORPHAN_BLOCK_MAGIC + 1)


def bad_checksum(sample: Sample) -> None:
    sample.put(sample.file, stamp=False)


def number_too_large(sample: Sample) -> None:
    sample.put(sample.inodes_count + 1)


def number_reserved(sample: Sample) -> None:
    sample.put(0, 2)


def the_journal(sample: Sample) -> None:
    sample.put(8)


def the_file_itself(sample: Sample) -> None:
    sample.put(sample.ino)


def twice(sample: Sample) -> None:
    sample.put(sample.file, 0, sample.file)


def twice_in_two_blocks(sample: Sample) -> None:
    sample.put(sample.file)
    sample.put(sample.file, block=3)


def on_the_list_too(sample: Sample) -> None:
    sample.put_inode(sample.file, i_dtime=0)
    set_super(sample.image, s_last_orphan=sample.file)
    sample.put(sample.file)


def list_loop(sample: Sample) -> None:
    sample.put(sample.other)
    sample.put_inode(sample.file, i_dtime=sample.file)
    set_super(sample.image, s_last_orphan=sample.file)


def a_directory(sample: Sample) -> None:
    sample.put(sample.dir)


def too_large(sample: Sample) -> None:
    sample.put_inode(sample.ino, i_size_lo=9 << 20)


def a_hole(sample: Sample) -> None:
    size = len(sample.pblks) * BLOCK
    sample.put_inode(sample.ino, i_size_lo=size + BLOCK)


def no_inode(sample: Sample) -> None:
    set_super(sample.image, s_orphan_file_inum=0)


def journal_inode(sample: Sample) -> None:
    set_super(sample.image, s_orphan_file_inum=8)


def far_inode(sample: Sample) -> None:
    set_super(sample.image, s_orphan_file_inum=0xFFFFFFFF)


def free_inode_as_file(sample: Sample) -> None:
    set_super(sample.image, s_orphan_file_inum=sample.inodes_count)


def directory_as_file(sample: Sample) -> None:
    sample.put_inode(sample.ino, i_mode=stat.S_IFDIR | 0o700)


DAMAGE: dict[Callable[[Sample], None], str] = {
    bad_magic: r"ob_magic .*orphan file \(inode 12\) block 1 .*0x0b10ca05",
    bad_checksum: r"orphan file block checksum",
    number_too_large: r"inode number .*slot 0",
    number_reserved: r"inode number .*slot 1.*found 2",
    the_journal: r"inode number",
    the_file_itself: r"not the file itself",
    twice: r"has slot 0 too",
    twice_in_two_blocks: r"block 3 .*has slot 0 too",
    on_the_list_too: r"on the orphan list too",
    list_loop: r"loops",
    a_directory: r"links, mode 4",
    too_large: r"size of the orphan file",
    a_hole: r"hole",
    no_inode: r"s_orphan_file_inum",
    journal_inode: r"s_orphan_file_inum",
    far_inode: r"inode number",
    free_inode_as_file: r"inode checksum|not in use",
    directory_as_file: r"orphan file .*regular file",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_keeps_it_read_only(sample: Sample, damage: Callable[[Sample], None]) -> None:
    damage(sample)
    fs, _ = open_bytes(sample.image)
    reason = fs.volume.readonly_reason or ""
    assert re.search(DAMAGE[damage], reason), reason
    assert f"the orphan {'list' if damage is list_loop else 'file'} is damaged, run e2fsck" in reason
    assert f"read-only: {reason}" in fs.volume.notices
    assert fs.read_bytes("/file") == b"f" * 2000
    with pytest.raises(ReadOnly):
        fs.unlink("/file")
    fs.close()
    reader, _ = open_bytes(sample.image, readonly=True)
    assert reader.read_bytes("/file") == b"f" * 2000
    reader.close()


def test_damage_that_comes_later_is_met_by_the_one_who_unlinks(sample: Sample) -> None:
    fs, device = open_bytes(sample.image)
    device.data[sample.pblks[0] * BLOCK + 5] ^= 0x40
    with pytest.raises(Corrupt, match="orphan file"):
        fs.unlink("/file")
    assert fs.read_bytes("/file") == b"f" * 2000
    fs.close()


def test_free_inodes_in_the_file_are_passed_over(sample: Sample, tmp_path: Path) -> None:
    sample.put(0, sample.inodes_count, sample.inodes_count - 1)
    fs, device = open_bytes(sample.image)
    assert any("2 inode(s) in the orphan file were free already" in line for line in fs.volume.notices)
    fs.close()
    checked(device.data, tmp_path / "after.img")


def test_truncated_by_an_entry_of_a_live_file(sample: Sample, tmp_path: Path) -> None:
    """A regular file with links is one whose truncation was begun: nothing beyond its size is lost."""
    sample.put(0, 0, sample.file)
    fs, device = open_bytes(sample.image)
    assert any("0 inode(s) deleted, 1 truncated" in line for line in fs.volume.notices)
    assert fs.read_bytes("/file") == b"f" * 2000
    fs.close()
    checked(device.data, tmp_path / "after.img")


def test_no_name_leads_to_the_file(sample: Sample) -> None:
    fs, _ = open_bytes(sample.image)
    volume = fs.volume
    with volume.operation(64) as tx:
        volume.namespace.directory(volume.inodes.get(2)).add(tx, b"bad", sample.ino, 1)
    for attempt in (fs.read_bytes, fs.unlink, fs.stat):
        with pytest.raises(Corrupt, match="not a reserved inode"):
            attempt("/bad")
    fs.close()


def test_random_damage_gives_only_errors(sample: Sample, rng: random.Random) -> None:
    for _ in range(60):
        image = bytearray(sample.image)
        pblk = rng.choice(sample.pblks)
        for _ in range(rng.randrange(1, 6)):
            at = pblk * BLOCK + rng.choice((rng.randrange(BLOCK), 4 * rng.randrange(4), BLOCK - 8 + rng.randrange(8)))
            image[at] = rng.randrange(256)
        if rng.random() < 0.7:
            raw = image[pblk * BLOCK : (pblk + 1) * BLOCK]
            checksum.set_orphan_block(raw, sample.seed, pblk)
            image[pblk * BLOCK : (pblk + 1) * BLOCK] = raw
        for readonly in (True, False):
            fs, _ = open_bytes(image, readonly=readonly)
            try:
                fs.write_bytes("/new", b"n")
                fs.unlink("/new")
            except FsError:
                assert fs.volume.readonly
            fs.close()
