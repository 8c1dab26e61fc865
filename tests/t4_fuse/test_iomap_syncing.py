"""The direct session in iomap mode: syncing, freezing, space, the end.

The numbers are sections of IOMAP.md.
"""

from __future__ import annotations

import errno
import time

import pytest

from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import Opcode
from py4fs.iomap import protocol as iomap
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.simchecks import disk_size, fails, fill
from tests.support.simfiles import SimFiles
from tests.support.simkernel import ROOT
from tests.support.simmount import sim_mount, sim_open

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


def test_9_14_waiting_ends_after_a_while(kernel: SimFiles, log_guard: LogGuard) -> None:
    log_guard.expect("1 file.s. still wait for the end of their writes")
    kernel.operations.kernel_maps.ioend_timeout = 0.05
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
