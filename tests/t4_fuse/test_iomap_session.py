"""The direct session in iomap mode, rule by rule (the numbers are sections of IOMAP.md)."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from py4fs.errors import DeviceError
from py4fs.ext4.layout.inode import EXT4_APPEND_FL, EXT4_ENCRYPT_FL, EXT4_IMMUTABLE_FL, EXT4_SYNC_FL, EXT4_VERITY_FL
from py4fs.fuse.direct import kernelmaps, structs
from py4fs.fuse.direct.protocol import InitFlags, Opcode
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import IoDir, MapFlags, MapType, OpFlags
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.simdevice import LEAD
from tests.support.simfiles import KEEP_SIZE, PUNCH_HOLE, SimFiles
from tests.support.simkernel import EVERYTHING, ROOT, KernelError
from tests.support.simmount import sim_mount, sim_open

WITHOUT_IOMAP = EVERYTHING & ~int(InitFlags.IOMAP)


@pytest.fixture
def kernel(make_image: ImageMaker) -> Iterator[SimFiles]:
    with sim_mount(make_image("16M", "-b", "4096")) as kernel:
        yield kernel


def disk_size(kernel: SimFiles, fh: int) -> int:
    return kernel.vfs.getattr(kernel.handles[fh].ino).size


def fails(code: int, run: Callable[[], object]) -> None:
    with pytest.raises(KernelError) as caught:
        run()
    assert caught.value.code == code, errno.errorcode[caught.value.code]


# --- INIT, CONFIG, falling back (1, 5) ----------------------------------------------------------------------


def test_1_nothing_is_notified_before_the_first_request(kernel: SimFiles) -> None:
    assert kernel.is_iomap and kernel.operations.iomap_on
    assert kernel.sent == ["INIT", "IOMAP_CONFIG"] and kernel.notes == []


def test_1_a_kernel_without_the_bit_gets_plain_fuse(make_image: ImageMaker) -> None:
    with sim_mount(make_image("16M", "-b", "4096"), offer=WITHOUT_IOMAP) as kernel:
        assert not kernel.is_iomap
        everything_through_the_server(kernel)


def test_5_a_device_that_is_not_taken_means_plain_fuse(make_image: ImageMaker, log_guard: LogGuard) -> None:
    log_guard.expect("no iomap: not this one; file data goes through the server")
    image = make_image("16M", "-b", "4096")
    with sim_mount(image, refuse_device=DeviceError("not this one")) as kernel:
        assert kernel.is_iomap and not kernel.operations.iomap_on
        everything_through_the_server(kernel)
        assert not [note for note in kernel.notes if note[0].startswith("IOMAP")]


def everything_through_the_server(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    assert node.flags == 0
    body = structs.WRITE_IN.pack(fh, 5, 5, 1, 0, 0, 0) + b"bytes"
    assert kernel.call(Opcode.WRITE, node.nodeid, body)[0].size == 5
    assert kernel.call(Opcode.READ, node.nodeid, structs.READ_IN.pack(fh, 0, 100, 0, 0, 0, 0))[1] == bytes(5) + b"bytes"
    fails(errno.ENOSYS, lambda: kernel.call(Opcode.FLUSH, node.nodeid, structs.FLUSH_IN.pack(fh, 0, 0, 0)))
    fails(errno.EOPNOTSUPP, lambda: kernel.begin(node, 0, 4096, 0))
    kernel.call(Opcode.RELEASE, node.nodeid, structs.RELEASE_IN.pack(fh, 0, 0, 0))
    del kernel.handles[fh]


@pytest.mark.parametrize("offered", [True, False])
def test_5_required_and_not_to_be_had(make_image: ImageMaker, log_guard: LogGuard, offered: bool) -> None:
    log_guard.allow("init|config|not this one")
    device = DeviceError("not this one") if offered else None
    kernel = sim_open(make_image("16M", "-b", "4096"), required=True, refuse_device=device, mount=False)
    fails(errno.EIO if offered else errno.EOPNOTSUPP, lambda: kernel.init(EVERYTHING if offered else WITHOUT_IOMAP))
    (why,) = kernel.refused
    wanted = "not this one" if offered else "iomap=require: the kernel does not offer FUSE_IOMAP for this mount"
    assert str(why) == wanted
    kernel.umount()


def test_5_addresses_count_from_the_start_of_the_device(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"here" * 2000)
    kernel.fsync(fh)
    mapping = kernel.begin(node, 0, 4096, 0).map
    (extent, *_) = kernel.vfs.mappings(node.ino)
    assert (mapping.addr, mapping.dev) == (extent.addr + LEAD, 3)


# --- inodes (6.1, 6.9) --------------------------------------------------------------------------------------


def test_6_1_flags_of_new_inodes(kernel: SimFiles) -> None:
    vfs = kernel.vfs
    for flags, wanted in ((0, 0x0C), (EXT4_SYNC_FL, 0x2C), (EXT4_IMMUTABLE_FL, 0x4C), (EXT4_APPEND_FL, 0x8C)):
        name = b"f%d" % wanted
        attr = vfs.mknod(2, name, stat.S_IFREG | 0o644, 0)
        inode = vfs.volume.inodes.get(attr.ino)
        with vfs.volume.operation(1) as tx:
            tx.touch(inode)
            inode.flags |= flags
        assert kernel.lookup(name).flags == wanted
    assert kernel.mkdir(b"dir").flags == 0x04, "EXCLUSIVE alone"
    out, _ = kernel.call(Opcode.OPENDIR, ROOT, structs.OPEN_IN.pack(0, 0))
    _, listing = kernel.call(Opcode.READDIRPLUS, ROOT, structs.READ_IN.pack(out.fh, 0, 8192, 0, 0, 0, 0))
    found = {}
    while listing:
        entry = structs.DIRENTPLUS.unpack_from(listing)
        start = structs.DIRENTPLUS.size
        found[listing[start : start + entry[-2]]] = entry[21]
        listing = listing[-(-(start + entry[-2]) // 8) * 8 :]
    assert found[b"f12"] == 0x0C and found[b"f76"] == 0x4C and found[b"dir"] == 0x04
    kernel.call(Opcode.RELEASEDIR, ROOT, structs.RELEASE_IN.pack(out.fh, 0, 0, 0))


@pytest.mark.parametrize("sealed", [EXT4_VERITY_FL, EXT4_ENCRYPT_FL], ids=["verity", "encrypted"])
def test_6_1_what_the_server_has_to_check_is_not_the_kernels_to_read(kernel: SimFiles, sealed: int) -> None:
    attr = kernel.vfs.mknod(2, b"f", stat.S_IFREG | 0o644, 0)
    assert kernel.operations.attr_flags(attr) == 0x0C
    assert kernel.operations.attr_flags(attr._replace(flags=attr.flags | sealed)) == 0


def test_6_9_times_are_the_kernels(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x")
    kernel.fsync(fh)
    assert kernel.vfs.getattr(node.ino).mtime == 1_700_000_000 * 10**9 + 6
    inode = kernel.vfs.volume.inodes.get(node.ino)
    with kernel.vfs.volume.operation(1) as tx:
        tx.touch(inode)
        inode.flags |= EXT4_IMMUTABLE_FL
    kernel.setattr(node, 0x430)
    fails(errno.EPERM, lambda: kernel.setattr(node, 0x08, 5))


# --- mappings (3, 6.2, 8) -----------------------------------------------------------------------------------


def test_8_open_brings_mappings_and_reading_asks_nothing(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    kernel.write(kernel.handles[fh], 0, b"x" * 100_000)
    kernel.close(fh)
    kernel.sent.clear()
    fh = kernel.open(b"f")
    assert kernel.read(kernel.handles[fh], 0, 100_000) == b"x" * 100_000
    assert kernel.sent == ["LOOKUP", "OPEN"]
    for name, record, code in kernel.notes:
        if name == "IOMAP_UPSERT_MAPPINGS":
            assert code == 0 and record.write_type == MapType.NOCACHE, "9.4: the write fork stays unused"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.ESTALE])
def test_8_5_declined_upserts_mean_plain_answers(kernel: SimFiles, code: int) -> None:
    kernel.decline["IOMAP_UPSERT_MAPPINGS"] = code
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    node.pages.clear()
    assert kernel.read(node, 0, 50_000) == b"x" * 50_000
    assert node.cache is None and any(note[2] == code for note in kernel.notes)


def test_8_7_what_the_kernel_did_not_do_itself_is_invalidated(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    kernel.begin(node, 0, 4096, 0)
    assert node.cache is not None and node.cache.lookup(IoDir.READ, 0).mapping
    kernel.vfs.fallocate(fh, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
    assert node.cache.lookup(IoDir.READ, 4096).mapping is None
    node.pages.clear()
    assert kernel.read(node, 0, 50_000) == b"x" * 4096 + bytes(8192) + b"x" * (50_000 - 12_288)


def test_3_invalidations_of_inodes_that_are_gone_are_harmless(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 5000)
    kernel.fsync(fh)
    kernel.begin(node, 0, 4096, 0)
    kernel.close(fh)
    kernel.decline["IOMAP_INVAL_MAPPINGS"] = errno.ESTALE
    kernel.vfs.setattr(node.ino, size=0)
    kernel.notes.clear()
    kernel.vfs.setattr(node.ino, size=10)
    kernel.vfs.setattr(node.ino, size=0)
    assert kernel.notes == [], "told once"
    del kernel.decline["IOMAP_INVAL_MAPPINGS"]
    kernel.evict(node)


# --- sizes (9.1) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fsync", "close", "umount"])
def test_9_1_appends_survive_a_stat_before_the_data_is_written(make_image: ImageMaker, how: str) -> None:
    """The block is written already, so that after the stat the kernel says nothing at all."""
    image = make_image("16M", "-b", "4096")
    with sim_mount(image, as_coded=True) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"a" * 100)
        kernel.fsync(fh)
        kernel.write(node, 100, b"b" * 500)
        assert kernel.stat(node) == 600
        before = kernel.sent.count("IOMAP_IOEND")
        if how == "fsync":
            kernel.fsync(fh)
        elif how == "close":
            kernel.close(fh)
        else:
            kernel.umount()
        assert kernel.sent.count("IOMAP_IOEND") == before, "nobody told"
        if how == "umount":
            break_free(kernel)
    with sim_mount(image) as kernel:
        assert kernel.read(kernel.lookup(b"f"), 0, 1000) == b"a" * 100 + b"b" * 500


def break_free(kernel: SimFiles) -> None:
    """Unmounted already: let the fixture's own umount find nothing to do."""
    kernel.umount = lambda: None  # type: ignore[method-assign]


def test_9_1_c_syncfs_does_not_commit_the_size_but_flush_does(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 100)
    kernel.fsync(fh)
    kernel.write(node, 100, b"b" * 500)
    kernel.stat(node)
    kernel.syncfs()
    assert disk_size(kernel, fh) == 100
    kernel.call(Opcode.FLUSH, node.nodeid, structs.FLUSH_IN.pack(fh, 0, 0, 0))
    assert disk_size(kernel, fh) == 600


def test_9_1_d_truncation_wins(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 9000)
    kernel.truncate(node, 50)
    kernel.close(fh)
    assert kernel.vfs.getattr(node.ino).size == 50


def test_6_4_what_cannot_be_is_never_answered_with_enosys(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    mapping = kernel.begin(node, 0, 4096, int(OpFlags.WRITE)).map
    body = [int(OpFlags.WRITE), 0, node.ino, 0, 4096, -5, *mapping]
    kernel.call(iomap.Opcode.IOMAP_END, node.nodeid, iomap.IOMAP_END_IN.pack(*body))
    fails(errno.ESTALE, lambda: kernel.call(iomap.Opcode.IOMAP_END, 999, iomap.IOMAP_END_IN.pack(*body)))
    fails(errno.EINVAL, lambda: kernel.call(iomap.Opcode.IOMAP_END, ROOT, iomap.IOMAP_END_IN.pack(*body)))
    fails(errno.EINVAL, lambda: kernel.call(iomap.Opcode.IOMAP_BEGIN, ROOT, iomap.IOMAP_BEGIN_IN.pack(0, 0, 2, 0, 1)))


# --- hazards of the kernel (9.2 to 9.7, 9.15) ---------------------------------------------------------------


def test_9_2_device_invalidations_have_a_length_and_come_in_time(kernel: SimFiles) -> None:
    """The device asserts that no cached metadata lies under file data: here a directory becomes file data."""
    directory = kernel.mkdir(b"dir")
    for number in range(100):
        kernel.close(kernel.create(b"%d" % number + b"n" * 200, directory.nodeid))
    kernel.vfs.commit()
    for number in range(100):
        kernel.unlink(b"%d" % number + b"n" * 200, directory.nodeid)
    kernel.call(Opcode.RMDIR, ROOT, b"dir\0")
    kernel.evict(directory)
    kernel.vfs.commit()
    fh = kernel.create(b"big")
    written = fill(kernel, fh)
    assert written > 5 << 20
    ranges = [record for name, record, _ in kernel.notes if name == "IOMAP_DEV_INVAL"]
    assert ranges and all(record.length > 0 and record.dev == 3 for record in ranges)
    kernel.truncate(kernel.handles[fh], 0)


def fill(kernel: SimFiles, fh: int) -> int:
    """Write until ENOSPC; returns the bytes written, all of which are then on the device."""
    node = kernel.handles[fh]
    at = node.size
    start = at
    while True:
        try:
            at += kernel.write(node, at, os.urandom(1) * 100_000)
        except KernelError as exc:
            assert exc.code == errno.ENOSPC
            kernel.fsync(fh)
            return at - start


def test_9_3_all_of_a_file_is_dropped_in_two_steps(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.fsync(fh)
    found = kernel.begin(node, 0, 4096, 0)
    assert found.cookie
    kernel.operations.kernel_maps.invalidate(node.ino, 0, (1 << 64) - 1)
    assert node.cache is not None and node.cache.seq != found.cookie, "what was handed out is noticed to be gone"
    assert node.cache.mappings(IoDir.READ) == []


@pytest.mark.parametrize("written", [0, 4096])
def test_9_5_failed_direct_writes_give_their_blocks_back(kernel: SimFiles, written: int) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 4096)
    kernel.fsync(fh)
    before = kernel.vfs.getattr(node.ino).blocks
    kernel.device.broken = range(kernel.device.size)
    fails(errno.EIO, lambda: kernel.direct_write(node, 8192, b"d" * (4096 + written)))
    kernel.device.broken = None
    assert kernel.vfs.getattr(node.ino).blocks == before
    assert kernel.stat(node) == kernel.vfs.getattr(node.ino).size == 4096


def test_9_6_and_9_7_reports_are_trimmed_and_end_in_one_hole(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 40_000)
    kernel.fsync(fh)
    mapping = kernel.begin(node, 20_000, 1, int(OpFlags.REPORT)).map
    assert mapping.offset in (0, 16_384), "from the cache whole, else from the block asked for"
    node.cache = None
    assert kernel._ask(node, 20_000, 1, int(OpFlags.REPORT))[0].offset == 16_384
    tail, _ = kernel._ask(node, 1 << 20, 1, int(OpFlags.REPORT))
    assert (tail.type, tail.end) == (MapType.HOLE, kernel.max_bytes)
    assert sum(m.length for m in kernel.fiemap(node)) == 40_960


def test_seek_data_sees_pages_over_what_was_a_hole(kernel: SimFiles) -> None:
    """A hole in the kernel's cache is dropped when blocks are allocated there: copies would lose the pages."""
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.truncate(node, 1 << 20)
    assert kernel.read(node, 0, 4096) == bytes(4096)
    assert node.cache is not None and node.cache.lookup(IoDir.READ, 65_536).mapping
    kernel.write(node, 65_536, b"data")
    assert kernel.seek(node, 0, os.SEEK_DATA) == 65_536
    kernel.fsync(fh)
    assert kernel.seek(node, 0, os.SEEK_DATA) == 65_536


def test_6_3_atomic_writes_and_swap_files_are_not_retried(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.fallocate(fh, 0, 0, 65_536)
    op = int(OpFlags.WRITE | OpFlags.DIRECT | OpFlags.ATOMIC)
    found = kernel.begin(node, 4096, 4096, op)
    assert found.cookie == 0 and found.map.flags == MapFlags.ATOMIC_BIO
    assert kernel.begin(node, 4096, 4096, int(OpFlags.REPORT | OpFlags.SWAPFILE)).map.offset == 4096


# --- copies, contents in the inode (6.6, 6.7) ---------------------------------------------------------------


def test_6_6_the_server_copies_nothing(kernel: SimFiles) -> None:
    source, target = kernel.create(b"a"), kernel.create(b"b")
    kernel.write(kernel.handles[source], 0, b"x" * 9000)
    kernel.fsync(source)
    body = structs.COPY_FILE_RANGE_IN.pack(source, 0, kernel.handles[target].nodeid, target, 0, 9000, 0)
    node = kernel.handles[source]
    fails(errno.ENOSYS, lambda: kernel.call(Opcode.COPY_FILE_RANGE, node.nodeid, body))
    fails(errno.ENOSYS, lambda: kernel.call(Opcode.COPY_FILE_RANGE_64, node.nodeid, body))


def inline_image(make_image: ImageMaker) -> Path:
    return make_image("16M", "-b", "4096", "-I", "256", "-O", "inline_data")


def test_6_7_contents_in_the_inode(make_image: ImageMaker) -> None:
    """Read with zeros behind their end, written, cut; zeros that are appended count, those of a truncation do not."""
    with sim_mount(inline_image(make_image)) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"a" * 50)
        assert kernel.begin(node, 0, 1, 0).map.type == MapType.INLINE
        body = structs.READ_IN.pack(0, 100, 20, 0, 0, 0, 0)
        assert kernel.call(Opcode.READ, node.nodeid, body)[1] == bytes(20)
        kernel.write(node, 50, bytes(20))
        assert disk_size(kernel, fh) == 70
        kernel.call(Opcode.WRITE, node.nodeid, structs.WRITE_IN.pack(0, 30, 4066, 0, 0, 0, 0) + bytes(4066))
        assert disk_size(kernel, fh) == 70, "clipped"
        kernel.truncate(node, 30)
        kernel.truncate(node, 40)
        kernel.close(fh)
        kernel.evict(node)
        fh = kernel.open(b"f")
        assert kernel.read(kernel.handles[fh], 0, 100) == b"a" * 30 + bytes(10)


def test_6_7_contents_leave_the_inode(make_image: ImageMaker) -> None:
    """Growing, by a memory map, by truncation: what had been read before does not lead to a write that cannot be."""
    with sim_mount(inline_image(make_image)) as kernel:
        expected = {}
        for name in (b"write", b"map", b"truncate"):
            fh = kernel.create(name)
            node = kernel.handles[fh]
            kernel.write(node, 0, b"small")
            kernel.close(fh)
            fh = kernel.open(name)
            assert kernel.read(node, 0, 10) == b"small"
            if name == b"write":
                kernel.write(node, 5, b"L" * 9000)
                expected[name] = b"small" + b"L" * 9000
            elif name == b"map":
                kernel.mmap_write(node, 1, b"M")
                expected[name] = b"sMall"
            else:
                kernel.truncate(node, 9000)
                expected[name] = b"small" + bytes(8995)
            kernel.fsync(fh)
            assert kernel.vfs.getattr(node.ino).size == len(expected[name])
            kernel.close(fh)
            kernel.evict(node)
        for name, data in expected.items():
            assert kernel.read(kernel.lookup(name), 0, 10_000) == data


def test_6_7_without_a_handle_only_contents_in_the_inode_are_read(kernel: SimFiles) -> None:
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 9000)
    kernel.fsync(fh)
    body = structs.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)
    fails(errno.EOPNOTSUPP, lambda: kernel.call(Opcode.READ, node.nodeid, body))
    body = structs.WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"y"
    fails(errno.EOPNOTSUPP, lambda: kernel.call(Opcode.WRITE, node.nodeid, body))


# --- syncing, freezing, the end (9.10, 9.14) ----------------------------------------------------------------


def test_9_14_syncfs_waits_for_conversions(make_image: ImageMaker) -> None:
    with sim_mount(make_image("16M", "-b", "4096"), sockets=True) as kernel:
        fh = kernel.create(b"f")
        kernel.write(kernel.handles[fh], 0, b"x" * 20_000)
        kernel.hold_ioends = True
        unique = kernel.start_syncfs()
        assert kernel.held
        time.sleep(0.1)
        assert not kernel.link.arrived(unique), "data on its way"
        kernel.release_ioends()
        kernel.finish(Opcode.SYNCFS, unique)
        assert disk_size(kernel, fh) == 20_000


def test_9_14_freezing_waits_for_conversions_and_late_ones_for_its_end(make_image: ImageMaker) -> None:
    with sim_mount(make_image("16M", "-b", "4096"), sockets=True) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"x" * 20_000)
        kernel.writeback(node)
        kernel.write(node, 20_000, b"y" * 20_000)
        kernel.hold_ioends = True
        kernel.writeback(node)
        unique = kernel.submit(iomap.Opcode.FREEZE_FS, ROOT, iomap.FREEZEFS_IN.pack(0))
        time.sleep(0.1)
        assert not kernel.link.arrived(unique)
        kernel.release_ioends()
        kernel.finish(iomap.Opcode.FREEZE_FS, unique)
        kernel.device.save()
        late = kernel.submit(Opcode.MKDIR, ROOT, structs.MKDIR_IN.pack(0o755, 0) + b"late\0")
        assert kernel.read(node, 0, 10) == b"x" * 10, "reading goes on"
        body = iomap.IOMAP_IOEND_IN.pack(0x10, 0, node.ino, 40_000, 0, 96, 0, 0)
        ioend = kernel.submit(iomap.Opcode.IOMAP_IOEND, node.nodeid, body)
        time.sleep(0.05)
        assert not kernel.link.arrived(late) and not kernel.link.arrived(ioend)
        kernel.unfreeze()
        kernel.finish(Opcode.MKDIR, late)
        assert kernel.finish(iomap.Opcode.IOMAP_IOEND, ioend)[0].newsize == 40_096


@pytest.mark.interpreted
def test_9_14_waiting_ends_after_a_while(
    kernel: SimFiles, monkeypatch: pytest.MonkeyPatch, log_guard: LogGuard
) -> None:
    log_guard.expect("1 file.s. still wait for the end of their writes")
    monkeypatch.setattr(kernelmaps.KernelMaps.wait_for_ioends, "__defaults__", (0.05,))
    fh = kernel.create(b"f")
    kernel.write(kernel.handles[fh], 0, b"x" * 20_000)
    kernel.hold_ioends = True
    kernel.syncfs()
    kernel.release_ioends()
    kernel.freeze()
    kernel.unfreeze()
    fails(errno.EINVAL, kernel.unfreeze)


def test_9_14_a_release_that_meets_a_frozen_file_system_is_not_lost(make_image: ImageMaker) -> None:
    image = make_image("16M", "-b", "4096")
    with sim_mount(image) as kernel:
        fh = kernel.create(b"f")
        node = kernel.handles[fh]
        kernel.write(node, 0, b"a" * 100)
        kernel.fsync(fh)
        kernel.write(node, 100, b"b" * 100)
        kernel.stat(node)
        kernel.freeze()
        del kernel.handles[fh]
        unique = kernel.submit(Opcode.RELEASE, node.nodeid, structs.RELEASE_IN.pack(fh, 0, 0, 0))
        assert not kernel.link.arrived(unique)
        kernel.unfreeze()
        kernel.finish(Opcode.RELEASE, unique)
        assert kernel.vfs.getattr(node.ino).size == 200


def test_shutdown_stops_everything(make_image: ImageMaker, log_guard: LogGuard) -> None:
    log_guard.allow("shut down")
    image = make_image("16M", "-b", "4096")
    kernel = sim_open(image)
    fh = kernel.create(b"f")
    kernel.vfs.sync()
    kernel.create(b"lost")
    kernel.call(iomap.Opcode.SHUTDOWN_FS, ROOT, iomap.SHUTDOWNFS_IN.pack(0))
    fails(errno.EIO, lambda: kernel.stat(kernel.handles[fh]))
    kernel.handles.clear()
    kernel.umount()
    with sim_mount(image) as kernel:
        kernel.lookup(b"f")
        fails(errno.ENOENT, lambda: kernel.lookup(b"lost"))


def test_9_10_umount_without_syncfs_leaves_a_clean_image(make_image: ImageMaker) -> None:
    image = make_image("16M", "-b", "4096")
    kernel = sim_open(image)
    fh = kernel.create(b"f")
    kernel.write(kernel.handles[fh], 0, b"x" * 5000)
    kernel.umount()
    assert "SYNCFS" not in kernel.sent and kernel.sent[-1] == "DESTROY"


# --- space, names, crashes ----------------------------------------------------------------------------------


def test_enospc_is_met_after_what_was_freed_is_used(kernel: SimFiles) -> None:
    fh = kernel.create(b"big")
    first = fill(kernel, fh)
    kernel.truncate(kernel.handles[fh], 0)
    assert abs(fill(kernel, fh) - first) < 200_000, "freed blocks can be had after a commit"
    before = kernel.vfs.statfs().bfree
    fails(errno.ENOSPC, lambda: kernel.direct_write(kernel.handles[fh], 100 << 20, bytes(1 << 20)))
    assert kernel.vfs.statfs().bfree == before


def test_files_without_a_name_live_until_the_kernel_forgets_them(kernel: SimFiles) -> None:
    free = kernel.vfs.statfs().bfree
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"x" * 50_000)
    kernel.unlink(b"f")
    kernel.write(node, 50_000, b"y" * 50_000)
    kernel.fsync(fh)
    node.pages.clear()
    assert kernel.read(node, 0, 100_000) == b"x" * 50_000 + b"y" * 50_000
    kernel.close(fh)
    kernel.evict(node)
    kernel.vfs.commit()
    assert kernel.vfs.statfs().bfree == free


@pytest.mark.parametrize("as_coded", [True, False], ids=["as-coded", "intended"])
def test_after_a_crash_what_was_synced_is_there(make_image: ImageMaker, as_coded: bool) -> None:
    """The power goes after fsync and some more writing: the platter has no more than what was flushed."""
    image = make_image("16M", "-b", "4096")
    kernel = sim_open(image, as_coded=as_coded)
    fh = kernel.create(b"f")
    node = kernel.handles[fh]
    kernel.write(node, 0, b"a" * 10_000)
    kernel.stat(node)
    kernel.fsync(fh)
    kernel.write(node, 10_000, b"b" * 3000)
    kernel.stat(node)
    kernel.fsync(fh)
    kernel.write(node, 50_000, b"c" * 5000)
    kernel.writeback(node)
    kernel.device.save()
    kernel.handles.clear()
    kernel.vfs.volume.device.close = lambda: None  # type: ignore[method-assign]
    with sim_mount(image) as kernel:
        assert kernel.read(kernel.lookup(b"f"), 0, 13_000) == b"a" * 10_000 + b"b" * 3000
