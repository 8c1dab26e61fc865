"""The direct session in iomap mode: what is agreed on, falling back, flags and times of inodes.

The numbers are sections of IOMAP.md.
"""

from __future__ import annotations

import errno
import stat

import pytest

from py4fs.errors import DeviceError
from py4fs.ext4.layout.inode import EXT4_APPEND_FL, EXT4_ENCRYPT_FL, EXT4_IMMUTABLE_FL, EXT4_SYNC_FL, EXT4_VERITY_FL
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import Opcode
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.simchecks import WITHOUT_IOMAP, fails
from tests.support.simdevice import LEAD
from tests.support.simfiles import SimFiles
from tests.support.simkernel import EVERYTHING, ROOT
from tests.support.simmount import sim_mount, sim_open

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
    attr.flags |= sealed
    assert kernel.operations.attr_flags(attr) == 0


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


def test_2_direct_io_is_aligned_to_sectors(make_image: ImageMaker) -> None:
    """statx(2) of a regular file says so; of a directory, and without iomap, it says nothing."""
    statx = structs.STATX_IN.pack(0, 0, 0, 0, 0x3EFFF)
    for offer, mask, align in ((EVERYTHING, 0x22FFF, 512), (WITHOUT_IOMAP, 0xFFF, 0)):
        with sim_mount(make_image("16M", "-b", "4096"), offer=offer) as kernel:
            made = kernel.call(Opcode.MKNOD, 1, structs.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"f\0")[0]
            found = kernel.call(Opcode.STATX, made.nodeid, statx)[0]
            assert found.mask == mask
            assert {found.dio_mem_align, found.dio_offset_align, found.dio_read_offset_align} == {align}
            assert kernel.call(Opcode.STATX, 1, statx)[0].mask == 0xFFF
