"""The requests of a patched kernel, as recorded, put to the server: same requests in, acceptable replies out.

Node ids, handles and inode numbers are made to fit a small image; what is on the recorded server's disk is not ours, so
replies are judged, not compared. The recordings (`iomap-traces.json`, 99 scenarios) lie beside the checkout.
"""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from py4fs.ext4.volume import Volume, VolumeOptions
from py4fs.fuse.direct import protocol, structs
from py4fs.fuse.direct.protocol import InitFlags, Opcode
from py4fs.iomap import config
from py4fs.iomap import protocol as iomap
from py4fs.iomap.records import ALLOCATING, IoDir, IoendFlags, MapType, OpFlags
from py4fs.iomap.validate import validate_begin
from py4fs.vfs import Vfs
from tests.support.image import ImageMaker
from tests.support.logs import LogGuard
from tests.support.simdevice import SimDevice
from tests.support.simkernel import ROOT, KernelError, SimKernel
from tests.support.volumes import Clock

TRACES = Path(__file__).resolve().parents[3] / "shared" / "iomap-traces.json"
SCENARIOS: dict[str, Any] = (
    {s["name"]: s for s in json.loads(TRACES.read_text())[1:]} if TRACES.exists() else {}
)
OPCODES: dict[str, int] = {op.name: int(op) for op in [*Opcode, *iomap.Opcode]}

NOTHING_ASKED = {
    "ioctl_matrix": "ioctls of the server on /dev/fuse only",
    "dev_inval_zero_at_zero": "one notification only, which this server never sends (9.2)",
}
"""Scenarios without a request of the kernel."""
NOT_FOR_EXT4 = {
    "cow": "its IOENDs say SHARED, which ext4's mappings never are: refused with EUCLEAN",
    "write_fork": "its IOEND says SHARED, after a write mapping that this server never gives",
    "inline": "READ and WRITE without a handle are for contents in the inode, which these files have not: EOPNOTSUPP",
    **{
        f"config_blocksize_{size}": "that server said that files may be larger: EFBIG for what ext4 cannot have"
        for size in (0, 512, 1000)
    },
    "swapfile": "on a file with holes: BEGIN(SWAPFILE) says EINVAL there, as the kernel's ext4 would",
}
"""Requests that have to be refused, by scenario."""
EXTENT = 512 << 10
"""Bytes of each file: written in front, then unwritten."""


class Replayed(SimKernel):
    """A kernel that asks what another one has asked."""

    def __init__(self, vfs: Vfs, device: SimDevice, wanted: list[int]) -> None:
        """`wanted`: recorded node ids in the order of their first use."""
        super().__init__(vfs, device, mount=False)
        self.wanted = wanted
        self.files: dict[int, int] = {0: 0, ROOT: ROOT}  # recorded node id -> ours
        self.fhs: dict[int, list[int]] = {}
        self.began = 0
        self.refusals: set[str] = set()  # requests that were refused for a good reason

    def node_for(self, recorded: int) -> int:
        if recorded not in self.files:
            name = b"file%d" % recorded
            fh, attr = self.vfs.create(2, name, 0o644, 2)
            self.vfs.write(fh, 0, bytes(range(256)) * 80)
            self.vfs.fallocate(fh, 0, 0, EXTENT)
            self.vfs.release(fh)
            self.files[recorded] = self.lookup(name).nodeid
            assert self.files[recorded] == attr.ino
        return self.files[recorded]

    def last_fh(self, recorded: int, *, pop: bool = False) -> int:
        held = self.fhs.setdefault(recorded, [])
        if not held:
            out, _ = self.call(Opcode.OPEN, self.node_for(recorded), structs.OPEN_IN.pack(2, 0))
            held.append(out.fh)
        return held.pop() if pop else held[-1]

    def replay(self, message: dict[str, Any]) -> None:
        """One request. Fails when its reply is none that the kernel would be content with."""
        name, recorded = message["name"], message["nodeid"]
        opcode = OPCODES[name]
        body = self._body(message, name, recorded)
        if name in ("FORGET", "BATCH_FORGET"):
            self.submit(opcode, self.node_for(recorded), body)
            return
        nodeid = self.node_for(recorded)
        before = len([code for note, _, code in self.notes if note == "IOMAP_UPSERT_MAPPINGS" and not code])
        try:
            record, _ = self.call(opcode, nodeid, body)
        except KernelError as exc:
            self._judge_error(name, body, exc)
            return
        if name == "INIT":
            self._judge_init(body, record)
        elif name == "IOMAP_CONFIG":
            reply = iomap.config_of(record)
            config.check(reply)
            self.block, self.max_bytes = reply.s_blocksize, reply.s_maxbytes
        elif name == "IOMAP_BEGIN":
            self._judge_begin(nodeid, body, record, before)
        elif name == "IOMAP_IOEND":
            assert record.newsize == self.vfs.getattr(nodeid).size, "the true size on disk"
        elif name in ("FLUSH", "FSYNC"):
            inode = self.vfs.volume.inodes.peek(nodeid)
            assert inode is None or self.vfs.server.size(inode) == inode.size, "the size is committed (9.1)"
        elif name == "SETATTR" and structs.SETATTR_IN.unpack_from(body).valid & 8:
            assert record.attr_size == structs.SETATTR_IN.unpack_from(body).size
        elif name in ("OPEN", "CREATE", "OPENDIR"):
            if name == "CREATE":
                created = next(n for n in self.wanted if n not in self.files)
                self.files[created], recorded = record.nodeid, created
                self._node(record)
                assert record.attr_flags == 0x0C
            self.fhs.setdefault(recorded, []).append(record.fh)

    def _body(self, message: dict[str, Any], name: str, recorded: int) -> bytes:
        """What follows the header, made to fit. The recordings leave out the bytes of routine requests."""
        raw = bytes.fromhex(message["hex"]) if "hex" in message else b""
        if "same_as" in message:
            same = next(m for m in SCENARIOS[message["same_as"]]["messages"] if m.get("name") == name and "hex" in m)
            raw = bytes.fromhex(same["hex"])
        body = raw[iomap.IN_HEADER.size :].ljust(message.get("hex_cut_total", 0) - iomap.IN_HEADER.size, b"\0")
        fields = message.get("fields", {})
        made: dict[str, Callable[[], bytes]] = {
            "LOOKUP": lambda: str(fields["lookup"]).encode() + b"\0",
            "UNLINK": lambda: str(fields["lookup"]).encode() + b"\0",
            "OPEN": lambda: structs.OPEN_IN.pack(fields["flags"], 0),
            "SETATTR": lambda: self._setattr(body, fields),
            "GETATTR": lambda: structs.GETATTR_IN.pack(0, 0, 0),
            "GETXATTR": lambda: structs.GETXATTR_IN.pack(0, 0) + b"security.capability\0",
            "BATCH_FORGET": lambda: structs.BATCH_FORGET_IN.pack(0, 0),
            "FLUSH": lambda: structs.FLUSH_IN.pack(self.last_fh(recorded), 0, 0, 0),
            "FSYNC": lambda: structs.FSYNC_IN.pack(self.last_fh(recorded), 0, 0),
            "RELEASE": lambda: structs.RELEASE_IN.pack(self.last_fh(recorded, pop=True), 0, 0, 0),
            "RELEASEDIR": lambda: structs.RELEASE_IN.pack(self.last_fh(recorded, pop=True), 0, 0, 0),
            "COPY_FILE_RANGE_64": lambda: self._copy(body, recorded),
        }
        if name in made:
            return made[name]()
        if name in ("IOMAP_BEGIN", "IOMAP_END", "IOMAP_IOEND"):
            return body[:8] + self.node_for(recorded).to_bytes(8, "little") + body[16:]
        if name == "FALLOCATE" or (name == "READ" and fields["fh"]):
            return self.last_fh(recorded).to_bytes(8, "little") + body[8:]
        return body

    def _copy(self, body: bytes, recorded: int) -> bytes:
        given = structs.COPY_FILE_RANGE_IN.unpack_from(body)
        target = self.node_for(given.nodeid_out)
        fh_in, fh_out = self.last_fh(recorded), self.last_fh(given.nodeid_out)
        return structs.COPY_FILE_RANGE_IN.pack(*given._replace(fh_in=fh_in, nodeid_out=target, fh_out=fh_out))

    def _setattr(self, body: bytes, fields: dict[str, Any]) -> bytes:
        """Without a handle: ours has another number, and the kernel's node says enough."""
        record = structs.SETATTR_IN.unpack_from(body.ljust(structs.SETATTR_IN.size, b"\0"))
        valid = record.valid or fields["valid"]
        return structs.SETATTR_IN.pack(*record._replace(valid=valid & ~0x40, mode=record.mode or 0o644))

    def _judge_init(self, body: bytes, record: Any) -> None:
        offered = protocol.decode_request(Opcode.INIT, body)[0]
        iomap_offered = offered.flags & InitFlags.INIT_EXT and offered.flags2 & iomap.INIT_IOMAP2
        assert bool(record.flags2 & iomap.INIT_IOMAP2) == bool(iomap_offered)
        assert not iomap_offered or record.minor >= 99
        self.is_iomap = bool(iomap_offered)

    def _judge_begin(self, nodeid: int, body: bytes, record: Any, upserts_before: int) -> None:
        asked = iomap.IOMAP_BEGIN_IN.unpack_from(body)
        node = self.nodes[nodeid]
        read, write = iomap.mapping_of(record, "read_"), iomap.mapping_of(record, "write_")
        validate_begin(
            read,
            write,
            asked.pos,
            block_size=self.block,
            max_file_bytes=self.max_bytes,
            has_cache=node.cache is not None,
            strict=True,
            devices=self.devices,
        )
        assert write.type == MapType.PURE_OVERWRITE
        if read.type == MapType.RETRY_CACHE:
            upserts = [code for note, _, code in self.notes if note == "IOMAP_UPSERT_MAPPINGS" and not code]
            assert len(upserts) > upserts_before, "RETRY_CACHE without a successful upsert"
            assert not asked.opflags & (OpFlags.ATOMIC | OpFlags.SWAPFILE)
            assert node.cache is not None
            found = node.cache.lookup(IoDir.READ, asked.pos).mapping
            assert found is not None
            read = found
        if asked.opflags & ALLOCATING:
            assert read.type in (MapType.MAPPED, MapType.UNWRITTEN), "somewhere to write to"
        if asked.opflags & OpFlags.REPORT:
            assert read.offset == asked.pos - asked.pos % self.block, "trimmed in front (9.6)"
        self.began += 1

    def _judge_error(self, name: str, body: bytes, exc: KernelError) -> None:
        if name == "COPY_FILE_RANGE_64":
            assert exc.code == errno.ENOSYS, "the kernel copies by itself, through its page cache"
        elif name == "GETXATTR":
            assert exc.code == errno.ENODATA
        elif name == "IOMAP_IOEND":
            assert iomap.IOMAP_IOEND_IN.unpack_from(body).flags & IoendFlags.SHARED and exc.code == errno.EUCLEAN
        elif name == "IOMAP_BEGIN":
            asked = iomap.IOMAP_BEGIN_IN.unpack_from(body)
            holes = asked.opflags & OpFlags.SWAPFILE and exc.code == errno.EINVAL
            assert holes or (asked.pos >= self.max_bytes and exc.code == errno.EFBIG)
        elif name in ("READ", "WRITE"):
            assert not int.from_bytes(body[:8], "little") and exc.code == errno.EOPNOTSUPP
        else:
            raise AssertionError(f"{name}: {errno.errorcode[exc.code]}") from exc
        self.refusals.add(name)


@pytest.mark.skipif(not SCENARIOS, reason="recordings of a patched kernel are not beside the checkout")
@pytest.mark.parametrize("name", SCENARIOS)
def test_recorded_requests(make_image: ImageMaker, log_guard: LogGuard, name: str) -> None:
    log_guard.allow("shared extent")
    image = make_image("12M", "-b", "4096")
    device = SimDevice(image, 4096)
    vfs = Vfs(Volume.open(device, VolumeOptions(strict=True), Clock(), random.Random(1)))
    asked = [m for m in SCENARIOS[name]["messages"] if m["dir"] == "k->s"]
    kernel = Replayed(vfs, device, [m["nodeid"] for m in asked])
    if not any(m["name"] == "INIT" for m in asked):
        kernel.init()
    for message in asked:
        kernel.replay(message)
    assert bool(asked) == (name not in NOTHING_ASKED)
    refused = kernel.refusals - {"GETXATTR", "COPY_FILE_RANGE_64"}
    assert bool(refused) == (name in NOT_FOR_EXT4), refused
    assert kernel.began == sum(m["name"] == "IOMAP_BEGIN" for m in asked) or "IOMAP_BEGIN" in refused
    vfs.close()
    device.save()
