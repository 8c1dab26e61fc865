"""The direct session without a kernel: bytes in, bytes out, on a real file system."""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from py4fs.errors import NotSupported
from py4fs.ext4.volume import Volume
from py4fs.fuse.direct import ioctls, structs
from py4fs.fuse.direct.negotiate import MAX_WRITE, answer
from py4fs.fuse.direct.protocol import REQUESTS, TAILS, InitFlags, Opcode
from py4fs.iomap import protocol as iomap
from py4fs.vfs import ROOT, Vfs
from tests.support.core import need_interpreted
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.volumes import open_volume
from tests.support.wire import EVERYTHING, Wire


@pytest.fixture
def volume(make_image: ImageMaker) -> Iterator[Volume]:
    with open_volume(make_image("16M")) as volume:
        yield volume


@pytest.fixture
def wire(volume: Volume) -> Iterator[Wire]:
    wire = Wire(Vfs(volume))
    yield wire
    wire.operations.vfs.close()


# --- INIT ------------------------------------------------------------------------------------------------


def init_in(flags: int = EVERYTHING, major: int = 7, minor: int = 45) -> object:
    return structs.INIT_IN.unpack_from(
        structs.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32, bytes(44))
    )


def test_init_takes_what_is_offered_and_wanted() -> None:
    body, agreed = answer(init_in(), time_gran=1, want_iomap=True)
    assert body and agreed
    out = structs.INIT_OUT.unpack_from(body)
    flags = InitFlags(out.flags | out.flags2 << 32)
    for wanted in (
        "WRITEBACK_CACHE", "PARALLEL_DIROPS", "HANDLE_KILLPRIV_V2", "POSIX_ACL", "CACHE_SYMLINKS", "DO_READDIRPLUS",
        "READDIRPLUS_AUTO", "HAS_EXPIRE_ONLY", "DONT_MASK", "EXPORT_SUPPORT", "SECURITY_CTX", "CREATE_SUPP_GROUP",
        "ATOMIC_O_TRUNC", "INIT_EXT", "MAX_PAGES",
    ):  # fmt: skip
        assert InitFlags[wanted] in flags, wanted
    for unwanted in ("POSIX_LOCKS", "FLOCK_LOCKS", "OVER_IO_URING", "PASSTHROUGH", "ALLOW_IDMAP", "IOMAP"):
        assert InitFlags[unwanted] not in flags, unwanted
    assert (out.major, out.minor, out.max_pages * 4096, out.max_write, out.time_gran) == (7, 45, 1 << 20, 1 << 20, 1)
    assert agreed.writeback and not agreed.iomap and agreed.max_write == MAX_WRITE


def test_init_never_takes_what_was_not_offered() -> None:
    offered = InitFlags.BIG_WRITES | InitFlags.MAX_PAGES | InitFlags.ASYNC_READ
    body, agreed = answer(init_in(int(offered), minor=34), time_gran=1, want_iomap=True)
    assert body and agreed
    out = structs.INIT_OUT.unpack_from(body)
    assert (out.flags, out.flags2, out.minor) == (offered, 0, 34)
    assert not agreed.writeback


def test_init_takes_iomap_and_answers_its_minor_version() -> None:
    for want, minor in ((True, 99), (False, 45)):
        body, agreed = answer(init_in(EVERYTHING | InitFlags.IOMAP, minor=99), time_gran=1, want_iomap=want)
        assert body and agreed
        assert structs.INIT_OUT.unpack_from(body).minor == minor
        assert agreed.iomap == want


def test_init_of_other_kernels() -> None:
    body, agreed = answer(init_in(major=8), time_gran=1, want_iomap=False)
    assert agreed is None and body
    assert structs.INIT_OUT.unpack_from(body).major == 7, "asks for another INIT"
    for major, minor in ((6, 99), (7, 30)):
        with pytest.raises(NotSupported, match=f"FUSE protocol {major}.{minor} of the kernel"):
            answer(init_in(major=major, minor=minor), time_gran=1, want_iomap=False)
    with pytest.raises(NotSupported, match="MAX_PAGES"):
        answer(init_in(int(InitFlags.BIG_WRITES)), time_gran=1, want_iomap=False)


# --- requests --------------------------------------------------------------------------------------------


def test_a_file_from_create_to_forget(wire: Wire) -> None:
    made = wire.create(1, b"f", umask=0o022, mode=0o100666)
    assert stat.S_IMODE(made.record.attr_mode) == 0o644, "the umask is ours to apply"
    ino, fh = made.record.nodeid, made.record.fh
    assert made.record.open_flags & 2, "FOPEN_KEEP_CACHE"
    assert wire.write(fh, 0, b"x" * 300_000).record.size == 300_000
    assert wire.read(fh, 299_990, 100) == b"x" * 10
    assert wire.read(fh, 300_000, 100) == b""
    assert wire.call(Opcode.FLUSH, ino, bytes(24)).error == "ENOSYS"
    assert wire.call(Opcode.FSYNC, ino, structs.FSYNC_IN.pack(fh, 0, 0)).error == ""
    assert wire.call(Opcode.UNLINK, 1, b"f\0").error == ""
    assert wire.read(fh, 0, 3) == b"xxx", "open, and so still there"
    assert wire.call(Opcode.RELEASE, ino, structs.RELEASE_IN.pack(fh, 0, 0, 0)).error == ""
    assert ino in wire.operations.vfs.volume.orphans
    assert wire.raw(wire.request(Opcode.FORGET, ino, structs.FORGET_IN.pack(1))) is None
    assert wire.call(Opcode.STATFS, 1, b"").error == ""
    assert ino not in wire.operations.vfs.volume.orphans, "it is free when somebody asks how much is"
    assert wire.call(Opcode.GETATTR, ino, bytes(16)).error == "ESTALE"


def test_lookups_are_counted_and_absent_names_cached(wire: Wire) -> None:
    made = wire.call(Opcode.MKDIR, 1, structs.MKDIR_IN.pack(0o755, 0) + b"d\0")
    assert made.record.nodeid == made.record.attr_ino != 1
    absent = wire.lookup(1, b"nothing")
    assert (absent.error, absent.record.nodeid) == ("", 0)
    assert absent.record.entry_valid > 3600
    for _ in range(2):
        assert wire.lookup(1, b"d").record.nodeid == made.record.nodeid
    batch = structs.BATCH_FORGET_IN.pack(1, 0) + structs.FORGET_ONE.pack(made.record.nodeid, 3)
    assert wire.raw(wire.request(Opcode.BATCH_FORGET, 0, batch)) is None
    assert made.record.nodeid not in wire.operations.vfs._refs


def test_root_is_node_1_and_inode_2(wire: Wire) -> None:
    assert wire.call(Opcode.GETATTR, 1, bytes(16)).record.attr_ino == 2
    assert wire.lookup(1, b"..").record.nodeid == 1


def test_a_large_write_has_its_blocks_before_the_next_request_is_read(wire: Wire) -> None:
    """Else writes overtake each other, and a file that is written in order does not lie in order."""
    made = wire.create(1, b"f").record
    vfs, seen = wire.operations.vfs, list[int]()

    def hand_over() -> None:
        (file,) = (file for file in vfs.client._files.values() if file.inode.ino == made.nodeid)
        seen.extend(plan.count for plan in file.writes)

    wire.worker.hand_over = hand_over
    assert wire.write(made.fh, 0, bytes(300 << 10)).record.size == 300 << 10
    assert seen == [300 << 10]


def test_listings_and_their_references(wire: Wire) -> None:
    for i in range(40):
        wire.call(Opcode.MKNOD, 1, structs.MKNOD_IN.pack(0o100600, 0, 0, 0) + b"file%02d\0" % i)
    fh = wire.call(Opcode.OPENDIR, 1, bytes(8)).record.fh
    plain = listing(wire, fh, Opcode.READDIR, 24)
    plus = listing(wire, fh, Opcode.READDIRPLUS, 152)
    assert sorted(plain) == sorted(plus) == sorted([b".", b"..", b"lost+found", *(b"file%02d" % i for i in range(40))])
    refs, vfs = dict(wire.operations.vfs._refs), wire.operations.vfs
    for i in range(40):
        assert refs[vfs.lookup(2, b"file%02d" % i).ino] == 2, "made and listed with attributes"
    wire.call(Opcode.RELEASEDIR, 1, structs.RELEASE_IN.pack(fh, 0, 0, 0))


def listing(wire: Wire, fh: int, opcode: int, name_at: int) -> list[bytes]:
    names: list[bytes] = []
    cookie = 0
    while True:
        raw = wire.call(opcode, 1, structs.READ_IN.pack(fh, cookie, 1000, 0, 0, 0, 0)).rest
        if not raw:
            return names
        assert len(raw) <= 1000
        at = 0
        while at < len(raw):
            _ino, cookie, length, _kind = structs.DIRENT.unpack_from(raw, at + name_at - 24)
            names.append(raw[at + name_at : at + name_at + length])
            at += -(-(name_at + length) // 8) * 8


def test_statx_has_the_birth_time_and_attributes(wire: Wire) -> None:
    ino = wire.create(1, b"f").record.nodeid
    wire.operations.vfs.set_flags(ino, wire.operations.vfs.get_flags(ino) | 0x20 | 0x40, ROOT)
    found = wire.call(Opcode.STATX, ino, structs.STATX_IN.pack(0, 0, 0, 0, 0xFFF)).record
    attr = wire.operations.vfs.getattr(ino)
    assert found.mask == 0xFFF
    assert found.btime_sec * 10**9 + found.btime_nsec == attr.crtime
    assert found.attributes == 0x60 and found.attributes_mask & 0x60 == 0x60
    assert (found.ino, found.mode, found.blksize) == (ino, attr.mode, attr.blksize)


def test_times_before_1970(wire: Wire) -> None:
    ino = wire.create(1, b"f").record.nodeid
    values = dict.fromkeys(structs.SETATTR_IN.fields, 0) | {
        "valid": 1 << 4 | 1 << 5,
        "atime": (1 << 64) - 2,
        "mtime": 5,
        "atimensec": 500_000_000,
        "mtimensec": 7,
    }
    found = wire.call(Opcode.SETATTR, ino, structs.SETATTR_IN.pack(*values.values())).record
    assert (found.attr_atime, found.attr_atimensec) == ((1 << 64) - 2, 500_000_000)
    attr = wire.operations.vfs.getattr(ino)
    assert (attr.atime, attr.mtime) == (-1_500_000_000, 5_000_000_007)


def test_xattrs(wire: Wire) -> None:
    ino = wire.create(1, b"f").record.nodeid
    given = structs.SETXATTR_IN.pack(5, 1, 0, 0) + b"user.x\0value"
    assert wire.call(Opcode.SETXATTR, ino, given).error == ""
    assert wire.call(Opcode.SETXATTR, ino, given).error == "EEXIST", "XATTR_CREATE"
    get = structs.GETXATTR_IN
    answer = wire.call(Opcode.GETXATTR, ino, get.pack(0, 0) + b"user.x\0")
    assert structs.GETXATTR_OUT.unpack_from(answer.rest).size == 5
    assert wire.call(Opcode.GETXATTR, ino, get.pack(4, 0) + b"user.x\0").error == "ERANGE"
    assert wire.call(Opcode.GETXATTR, ino, get.pack(5, 0) + b"user.x\0").rest == b"value"
    assert wire.call(Opcode.LISTXATTR, ino, get.pack(100, 0)).rest == b"user.x\0"
    assert wire.call(Opcode.REMOVEXATTR, ino, b"user.x\0").error == ""
    assert wire.call(Opcode.GETXATTR, ino, get.pack(5, 0) + b"user.x\0").error == "ENODATA"


def test_a_security_context_comes_with_the_create(wire: Wire) -> None:
    label = structs.SECCTX.pack(4, 0) + b"selinux\0" + b"ctx\0"
    label += bytes(-len(label) % 8)
    context = structs.EXT_HEADER.pack(8 + len(label), 1) + label
    body = structs.MKDIR_IN.pack(0o755, 0) + b"d\0" + context
    made = wire.call(Opcode.MKDIR, 1, body, extensions=len(context) // 8)
    assert wire.operations.vfs.getxattr(made.record.nodeid, b"security.selinux") == b"ctx\0"


def ioctl(
    wire: Wire, nodeid: int, command: int, given: bytes = b"", *, room: int = 0, uid: int = 0
) -> tuple[str, bytes]:
    body = structs.IOCTL_IN.pack(0, 0, command, 0, len(given), room) + given
    found = wire.call(Opcode.IOCTL, nodeid, body, uid=uid)
    return found.error, found.rest


def test_ioctls(wire: Wire) -> None:
    ino = wire.create(1, b"f").record.nodeid
    sent: list[bytes] = []

    def notify(message: bytes) -> int:
        sent.append(message)
        return 0

    wire.operations.send = notify
    error, flags = ioctl(wire, ino, ioctls.FS_IOC_GETFLAGS, room=8)
    assert (error, flags) == ("", struct.pack("<I", 0x80000)), "the number says long, but callers have an int"
    assert ioctl(wire, ino, ioctls.FS_IOC_SETFLAGS, struct.pack("<Q", 0x80040)) == ("", b"")
    assert struct.unpack("<I", ioctl(wire, ino, ioctls.FS_IOC32_GETFLAGS, room=4)[1]) == (0x80040,)
    assert iomap.OUT_HEADER.unpack_from(sent[0])[1:] == (2, 0), "attributes changed: INVAL_INODE"
    _, raw = ioctl(wire, ino, ioctls.FS_IOC_FSGETXATTR, room=28)
    assert ioctls.FSXATTR.unpack_from(raw).xflags == 0x80
    generation = wire.operations.vfs.getattr(ino).generation
    assert ioctl(wire, ino, ioctls.FS_IOC_GETVERSION, room=8) == ("", struct.pack("<I", generation))
    assert ioctl(wire, ino, ioctls.FS_IOC_SETVERSION, struct.pack("<Q", 77))[0] == "ENOTTY", "checksums depend on it"
    assert ioctl(wire, 1, ioctls.FS_IOC_SETFSLABEL, b"name".ljust(256, b"\0")) == ("", b"")
    assert ioctl(wire, 1, ioctls.FS_IOC_GETFSLABEL, room=256)[1].rstrip(b"\0") == b"name"
    _, uuid = ioctl(wire, 1, ioctls.FS_IOC_GETFSUUID, room=17)
    assert uuid == b"\x10" + wire.operations.vfs.volume.superblock.record.s_uuid
    assert ioctl(wire, 1, 0x12345678, b"")[0] == "ENOTTY"
    assert ioctl(wire, 1, ioctls.FITRIM, bytes(24), room=24, uid=1000)[0] == "EPERM"
    assert ioctl(wire, 1, ioctls.EXT4_IOC_SHUTDOWN, room=4, uid=1000)[0] == "EPERM"
    assert ioctl(wire, ino, ioctls.FS_IOC_SETFLAGS, b"\0")[0] == "EINVAL", "too short"


def test_the_mapping_dump(wire: Wire) -> None:
    made = wire.create(1, b"f").record
    wire.write(made.fh, 1 << 20, b"x" * 8192)
    size = ioctls.MAPPINGS_BYTES
    _, raw = ioctl(wire, made.nodeid, ioctls.PY4FS_IOC_MAPPINGS, bytes(size), room=size)
    count, more = ioctls.MAPPINGS_OUT.unpack_from(raw)
    found = [tuple(r) for r in iomap.IOMAP_IO.iter_unpack(raw, ioctls.MAPPINGS_OUT.size, count)]
    assert not more and found == [tuple(m) for m in wire.operations.vfs.mappings(made.nodeid)]


def test_a_full_file_system_never_shortens_what_comes_from_the_page_cache(wire: Wire) -> None:
    made = wire.create(1, b"f").record
    room = wire.operations.vfs.statfs()
    position = 0
    while wire.write(made.fh, position, bytes(MAX_WRITE), 1).error == "":
        position += MAX_WRITE
        assert position < room.blocks * room.bsize
    left = wire.operations.vfs.statfs()
    assert wire.write(made.fh, position, bytes(MAX_WRITE), 1).error == "ENOSPC"
    short = wire.write(made.fh, position, bytes(MAX_WRITE), 0)
    assert short.error == "ENOSPC" or 0 < short.record.size < MAX_WRITE
    assert left.bfree * left.bsize < 2 * MAX_WRITE


# --- what is wrong with a request --------------------------------------------------------------------------


def test_requests_that_are_too_short_or_unknown(wire: Wire, log_guard: LogGuard) -> None:
    log_guard.expect("request of 39 bytes: the header alone has 40")
    assert wire.raw(bytes(39)) is None
    handlers = wire.operations.handlers()
    for opcode in (*Opcode, 4095, 4096, 0, 60, 0xFFFFFFFF):
        codec = REQUESTS.get(opcode)
        if opcode not in handlers:
            assert wire.call(opcode, 1, b"").error == "ENOSYS"
        elif codec:
            assert wire.call(opcode, 1, bytes(codec.size - 1)).error == "EIO"
        request = bytearray(wire.request(opcode, 1, bytes(64)))
        request[0] ^= 1  # the length in the header is not the length of the request
        reply = wire.raw(bytes(request))
        assert reply and iomap.OUT_HEADER.unpack_from(reply).error == (-5 if opcode in handlers else -38)


_FUZZED = [op for op in Opcode if op not in (Opcode.DESTROY, Opcode.INIT)]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_request_is_answered(wire: Wire, data: st.DataObject) -> None:
    """No exception, a whole reply; damage of the request is never taken for damage of the image."""
    opcode = data.draw(st.sampled_from(_FUZZED))
    codec = REQUESTS.get(opcode)
    number = st.one_of(st.integers(0, 16), st.sampled_from([1, 2, 11, 12, (1 << 63) - 1, (1 << 64) - 1]))
    body = b""
    if codec:
        values = [
            data.draw(number) & (1 << 8 * size - 1) - 1 if size <= 8 else bytes(size) for size in codec.sizes.values()
        ]
        body = codec.pack(*values)
    if opcode in TAILS or data.draw(st.booleans()):
        names = st.sampled_from([b"a\0", b"a\0b\0", b"\0", b"a" * 300 + b"\0"])
        body += data.draw(st.one_of(names, st.binary(max_size=64)))
    if opcode == Opcode.IOCTL and data.draw(st.booleans()):
        command = data.draw(st.sampled_from([c for c in ioctls._IOCTLS if c != ioctls.EXT4_IOC_SHUTDOWN]))
        tail = data.draw(st.binary(max_size=300))
        body = structs.IOCTL_IN.pack(0, 0, command, 0, len(tail), 300) + tail
    nodeid = data.draw(st.sampled_from([0, 1, 2, 11, 12, 13, 1 << 40, (1 << 64) - 1]))
    uid, extensions = data.draw(st.sampled_from([0, 1000])), data.draw(st.integers(0, 3))
    request = wire.request(opcode, nodeid, body, uid=uid, extensions=extensions)
    reply = wire.raw(request)
    if reply is not None:
        header = iomap.OUT_HEADER.unpack_from(reply)
        assert header.len == len(reply) and -512 < header.error <= 0 and header.unique == wire.unique
    assert wire.operations.vfs.volume.superblock.record.s_error_count == 0


# --- durability ------------------------------------------------------------------------------------------


def test_many_that_wait_share_a_commit(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    need_interpreted()
    commits = wire.operations.commits
    started: list[bool] = []
    vfs = wire.operations.vfs
    start = vfs.start_commit
    gate = threading.Event()

    def counted(*, durable: bool) -> object:
        started.append(durable)
        gate.wait(10)
        return start(durable=durable)

    monkeypatch.setattr(vfs, "start_commit", counted)
    wire.create(1, b"f")
    threads = [threading.Thread(target=commits.sync) for _ in range(8)]
    threads[0].start()
    while not started:
        pass
    for thread in threads[1:]:
        thread.start()
    while len(commits._turn._waiters) < 7:  # type: ignore[attr-defined]
        pass
    gate.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert started == [True, True], "the first one's, and one for the seven that came meanwhile"


def test_destroy_closes_the_file_system_before_it_is_answered(wire: Wire) -> None:
    closed: list[bool] = []
    wire.operations.on_destroy = lambda: closed.append(wire.operations.lock.locked())
    wire.create(1, b"f")
    assert wire.call(Opcode.DESTROY, 0).error == ""
    assert closed == [True]
    wire.operations.commits.sync()  # nothing left to do, and nobody waits for ever


def test_open_and_write_flags_reach_the_vfs(wire: Wire) -> None:
    made = wire.create(1, b"f", mode=0o106755).record
    vfs = wire.operations.vfs
    assert stat.S_IMODE(vfs.getattr(made.nodeid).mode) == 0o6755
    wire.write(made.fh, 0, b"x", 4)  # WRITE_KILL_SUIDGID
    assert stat.S_IMODE(vfs.getattr(made.nodeid).mode) == 0o755
    vfs.setattr(made.nodeid, mode=0o4711)
    opened = wire.call(Opcode.OPEN, made.nodeid, structs.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 1))
    assert opened.error == ""
    attr = vfs.getattr(made.nodeid)
    assert (stat.S_IMODE(attr.mode), attr.size) == (0o711, 0)
