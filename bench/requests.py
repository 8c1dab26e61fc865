"""What a request costs inside the server: `python -m bench.requests [--profile PHASE] [--rounds N] [--json]`.

Drives the operations of a direct session with requests made by hand: no kernel, no /dev/fuse, no other process. So
nothing counts but the code from the request's bytes to the reply's, which a busy machine disturbs least (CPU time,
best of the rounds). One directory, files of 4 KiB, an image of 512 MiB. Needs no root. The environment's
PY4FS_COMPILED says whether the compiled core is measured (py4fs/compiled.py).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.drivers import environment
from py4fs import compiled
from py4fs.device.file import FileDevice
from py4fs.ext4.volume import Volume, VolumeOptions
from py4fs.fuse.direct import structs
from py4fs.fuse.direct.protocol import WRITE_CACHE, Opcode
from py4fs.fuse.process import spare_the_collector
from py4fs.vfs import Vfs
from tests.support.wire import Wire

FILES = 5000
ROOT_NODE = 1
SETATTR_TIMES = 0x420
O_CREAT_EXCL_WRONLY = 0x80C1
BLOCK = 4096
SIZE = 512 << 20
MEMORY = Path("/dev/shm")


class Requests:
    """One image, and the phases in their order."""

    def __init__(self, image: Path, profile: str) -> None:
        self.image = image
        self._open()
        self.profiled = profile
        self.profile = cProfile.Profile()
        #: phase -> CPU seconds of each request
        self.cost: dict[str, float] = {}

    def _open(self) -> None:
        volume = Volume.open(FileDevice.open(self.image), VolumeOptions(), time.time_ns, random.Random(1))
        self.wire = Wire(Vfs(volume))
        self.wire.operations.vfs.kernel_owns_times = True  # as with the writeback cache

    @contextmanager
    def _measured(self, phase: str, count: int) -> Iterator[None]:
        gc.collect()
        spare_the_collector()  # as the server does
        start = time.process_time()
        if phase == self.profiled:
            with self.profile:
                yield
        else:
            yield
        self.cost[phase] = (time.process_time() - start) / count

    def _phase(self, name: str, requests: Iterable[tuple[Opcode, int, bytes]]) -> list[bytes | None]:
        """Serve requests of (opcode, node, body); returns the replies."""
        wire, serve = self.wire, self.wire.operations.serve
        buffer, worker = self.wire.worker.request, self.wire.worker
        raw = [wire.request(*request) for request in requests]
        replies: list[bytes | None] = []
        with self._measured(name, FILES):
            for request in raw:
                buffer[: len(request)] = request
                reply = serve(worker, len(request))
                replies.append(None if reply is None else bytes(reply))
        return replies

    def _commit(self, name: str) -> None:
        with self._measured(name, FILES):
            self.wire.operations.commits.sync(durable=False)

    def run(self) -> None:
        """All phases; the costs are in :attr:`cost`. The image is closed clean."""
        numbers = range(FILES)
        self._phase("lookup, absent", ((Opcode.LOOKUP, ROOT_NODE, b"f%d\0" % i) for i in numbers))
        create = structs.CREATE_IN.pack(O_CREAT_EXCL_WRONLY, 0o100644, 0o022, 0)
        # as the kernel asks: whether the name is there comes first
        pairs = ((Opcode.LOOKUP, b"f%d\0" % i) if ask else (Opcode.CREATE, create + b"f%d\0" % i)
                 for i in numbers for ask in (True, False))
        replies = self._phase("lookup + create", ((opcode, ROOT_NODE, body) for opcode, body in pairs))
        made = [structs.CREATE_OUT.unpack_from(reply, 16) for reply in replies[1::2] if reply is not None]
        # before the first write(2) the kernel looks for capabilities
        capability = structs.GETXATTR_IN.pack(20, 0) + b"security.capability\0"
        self._phase("getxattr, absent", ((Opcode.GETXATTR, r.nodeid, capability) for r in made))
        block = random.Random(2).randbytes(BLOCK)
        write = [structs.WRITE_IN.pack(r.fh, 0, BLOCK, WRITE_CACHE, 0, 0, 0) + block for r in made]
        self._phase("write 4 KiB", ((Opcode.WRITE, r.nodeid, body) for r, body in zip(made, write, strict=True)))
        self._phase("overwrite 4 KiB", ((Opcode.WRITE, r.nodeid, body) for r, body in zip(made, write, strict=True)))
        read = [structs.READ_IN.pack(r.fh, 0, BLOCK, 0, 0, 0, 0) for r in made]
        self._phase("read 4 KiB", ((Opcode.READ, r.nodeid, body) for r, body in zip(made, read, strict=True)))
        self._phase(
            "release", ((Opcode.RELEASE, r.nodeid, structs.RELEASE_IN.pack(r.fh, 0, 0, 0)) for r in made)
        )
        self._phase("getattr", ((Opcode.GETATTR, r.nodeid, bytes(16)) for r in made))
        self._phase("lookup", ((Opcode.LOOKUP, ROOT_NODE, b"f%d\0" % i) for i in numbers))
        zeros = dict.fromkeys(structs.SETATTR_IN.fields, 0)
        times = structs.SETATTR_IN.pack(
            *{**zeros, "valid": SETATTR_TIMES, "mtime": 5, "mtimensec": 7, "ctime": int(time.time())}.values()
        )
        self._phase("setattr", ((Opcode.SETATTR, r.nodeid, times) for r in made))
        self._commit("commit of the above")
        self.wire.operations.vfs.close()
        self._open()
        self._phase("lookup, cold", ((Opcode.LOOKUP, ROOT_NODE, b"f%d\0" % i) for i in numbers))
        replies = self._phase("open, cold", ((Opcode.OPEN, r.nodeid, structs.OPEN_IN.pack(0, 0)) for r in made))
        opened = [structs.OPEN_OUT.unpack_from(reply, 16).fh for reply in replies if reply is not None]
        reads = [structs.READ_IN.pack(fh, 0, BLOCK, 0, 0, 0, 0) for fh in opened]
        self._phase("read, cold", ((Opcode.READ, r.nodeid, body) for r, body in zip(made, reads, strict=True)))
        ends = [structs.RELEASE_IN.pack(fh, 0, 0, 0) for fh in opened]
        self._phase("release, cold", ((Opcode.RELEASE, r.nodeid, end) for r, end in zip(made, ends, strict=True)))
        rename = structs.RENAME2_IN.pack(ROOT_NODE, 0, 0)
        self._phase("rename", ((Opcode.RENAME2, ROOT_NODE, rename + b"f%d\0g%d\0" % (i, i)) for i in numbers))
        self._phase("unlink", ((Opcode.UNLINK, ROOT_NODE, b"g%d\0" % i) for i in numbers))
        self._phase("forget", ((Opcode.FORGET, r.nodeid, structs.FORGET_IN.pack(1)) for r in made))
        self._commit("commit of the rest")
        reply = self.wire.raw(self.wire.request(Opcode.CREATE, ROOT_NODE, create + b"log\0"))
        assert reply is not None
        log = structs.CREATE_OUT.unpack_from(reply, 16)
        fsync = (Opcode.FSYNC, log.nodeid, structs.FSYNC_IN.pack(log.fh, 0, 0))
        appends = (structs.WRITE_IN.pack(log.fh, i * BLOCK, BLOCK, WRITE_CACHE, 0, 0, 0) + block for i in numbers)
        self._phase("append 4 KiB + fsync", (r for a in appends for r in ((Opcode.WRITE, log.nodeid, a), fsync)))
        self.wire.operations.vfs.close()


def make_image(path: Path) -> None:
    with path.open("wb") as image:
        image.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", path], check=True, env=environment())


def measure(rounds: int, profile: str = "") -> dict[str, float]:
    """Phase -> CPU seconds of each request, the best of the rounds. Each image has to pass `e2fsck -fn`."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="py4fs-requests-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
            image = Path(folder) / "image"
            make_image(image)
            requests = Requests(image, profile)
            requests.run()
            subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True, env=environment())
        for phase, cost in requests.cost.items():
            best[phase] = min(cost, best.get(phase, cost))
    if profile:
        pstats.Stats(requests.profile).sort_stats("tottime").print_stats(45)
    return best


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.requests", description="what a request costs inside the server")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (default 3)")
    parser.add_argument("--profile", metavar="PHASE", default="", help="show where the time of a phase goes")
    parser.add_argument("--json", action="store_true", help="seconds by phase, for programs")
    args = parser.parse_args(argv)
    cost = measure(args.rounds, args.profile)
    if args.json:
        print(json.dumps({"seconds": cost}, indent=1))
        return 0
    print(f"CPU time of each request, best of {args.rounds}; core {compiled.describe()}")
    for phase, seconds in cost.items():
        print(f"{phase:20} {seconds * 1e6:7.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
