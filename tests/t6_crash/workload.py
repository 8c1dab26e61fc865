"""What the crash tests do to a file system: everything, in an order that a seed decides."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from py4fs.api import File
from py4fs.errors import Busy, FsError, NoSpace, NotSupported
from py4fs.ext4.layout.inode import S_IFDIR, S_IFLNK, S_IFMT
from py4fs.iomap.plans import WritePlan, run_write
from py4fs.vfs import RENAME_EXCHANGE
from py4fs.vfs.ranges import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from tests.t6_crash.world import InPlace, Recording

MAX_FILES = 60
BIG = 60_000


class SlowWrite(NamedTuple):
    """A planned write: the open file, length of the log when it was planned, data, generation of the inode."""

    file: File
    start: int
    plan: WritePlan
    data: bytes
    generation: int


class Workload:
    """Random operations on a recording's file system. All of it is reproducible from the seed."""

    def __init__(self, recording: Recording, seed: int) -> None:
        self.rec = recording
        self.fs = recording.fs
        self.rng = random.Random(seed)
        self.block = recording.fs.volume.geometry.block_size
        self.files: list[str] = []
        self.dirs: list[str] = []
        self.links: list[str] = []
        self.open: list[File] = []
        self._slow: SlowWrite | None = None
        self._number = 0
        self._look_around()
        self._ops: list[tuple[Callable[[], str], int]] = [
            (self.create, 14), (self.append, 12), (self.overwrite, 8), (self.sparse, 4), (self.rename, 5),
            (self.rename_over, 5), (self.exchange, 2), (self.link, 3), (self.unlink, 5), (self.unlink_open, 3),
            (self.use_open, 4), (self.close, 3), (self.mkdir, 5), (self.rmdir, 3), (self.move_dir, 2),
            (self.symlink, 3), (self.xattr, 7), (self.unset_xattr, 3), (self.truncate, 6), (self.preallocate, 3),
            (self.punch, 4), (self.zero, 3), (self.collapse, 2), (self.insert, 2), (self.attributes, 3),
            (self.crowd, 2), (self.empty_crowd, 2), (self.comb, 2), (self.fsync, 8), (self.fsync_dir, 2),
            (self.commit, 3), (self.sync, 1), (self.begin_commit, 4), (self.slow_write, 4), (self.remount, 1),
        ]  # fmt: skip

    def _look_around(self) -> None:
        """What is there already, from a workload before."""
        for path, node in self.rec.states[-1].tree.items():
            kind = node.mode & S_IFMT
            name = path.decode()
            if name != "/lost+found":
                linked = kind == S_IFLNK or "crowd" in name
                (self.dirs if kind == S_IFDIR else self.links if linked else self.files).append(name)
            head = name.rpartition("/")[2][:4]
            if head.isdigit():
                self._number = max(self._number, int(head))

    def run(self, steps: int) -> None:
        """Do so many things; any commit and any write that is under way goes on meanwhile."""
        ops = [op for op, _ in self._ops]
        weights = [weight for _, weight in self._ops]
        for op in self.rng.choices(ops, weights, k=steps):
            start = self.rec.position
            try:
                told = op()
            except (Busy, NoSpace, NotSupported) as exc:
                told = f"{op.__name__}: {exc}"
            self.rec.story.append((start, told.replace("long" * 3, "")))
            if self.rng.random() < 0.3:
                self.rec.advance()
            if self._slow is not None and self.rng.random() < 0.3:
                self._end_slow()

    def finish(self) -> None:
        """Close everything; the file system too."""
        self._settle()
        for file in self.open:
            file.close()
        self.open.clear()
        self.fs.close()

    # -- choosing ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._end_slow()
        self.rec.complete()

    def _new(self) -> str:
        self._number += 1
        name = f"{self._number:04}"
        if self.rng.random() < 0.3:
            name += "-" + "long" * self.rng.randrange(5, 55)
        return f"{self.rng.choice(self.dirs).rstrip('/')}/{name}"

    def _data(self, most: int = 20_000) -> bytes:
        size = self.rng.choice((1, 100, self.block, 4096, self.rng.randrange(1, most), self.rng.randrange(1, most)))
        return self.rng.randbytes(8) * (size // 8) + self.rng.randbytes(size % 8)

    def _file(self) -> str:
        if not self.files:
            self.create()
        return self.rng.choice(self.files)

    def _move(self, old: str, new: str) -> None:
        """A name changed, and with it all below it."""

        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

        self.files = [moved(path) for path in self.files]
        self.dirs = [moved(path) for path in self.dirs]
        self.links = [moved(path) for path in self.links]

    # -- operations, each returns what it did --------------------------------------------------------------

    def create(self) -> str:
        if len(self.files) > MAX_FILES:
            return self.unlink()
        path, data = self._new(), self._data()
        with self.fs.open(path, "xb") as file:
            self.files.append(path)
            file.write(data)
            ino = file.stat().ino
        return f"create {path} (inode {ino}) of {len(data)} bytes"

    def _write(self, path: str, at: int, data: bytes) -> str:
        with self.fs.open(path, "r+b") as file:
            ino = file.stat().ino
            file.seek(at)
            with self.rec.changing(ino, at, at + len(data)):
                file.write(data)
        return f"write {len(data)} bytes to {path} (inode {ino}) at {at}"

    def append(self) -> str:
        path = self._file()
        size = self.fs.stat(path).size
        return self._write(path, size, self._data(BIG if self.rng.random() < 0.1 else 20_000))

    def overwrite(self) -> str:
        path = self._file()
        size = self.fs.stat(path).size
        return self._write(path, self.rng.randrange(size + 1), self._data(6000))

    def sparse(self) -> str:
        path = self._file()
        size = self.fs.stat(path).size
        if size > 10 * BIG:
            return self.truncate()
        return self._write(path, size + self.rng.randrange(1, BIG), self._data(5000))

    def rename(self) -> str:
        old, new = self._file(), self._new()
        self.fs.rename(old, new)
        self._move(old, new)
        return f"rename {old} to {new}"

    def rename_over(self) -> str:
        """As programs replace a file: a new one is written, synced or not, and renamed over the old."""
        victim, path = self._file(), self._new()
        data = self._data()
        with self.fs.open(path, "xb") as file:
            file.write(data)
            synced = self.rng.random() < 0.5
            if synced:
                self.rec.complete()
                file.fsync()
                self.rec.note_synced()
        self.fs.rename(path, victim)
        return f"replace {victim} by {path} of {len(data)} bytes{', synced' if synced else ''}"

    def exchange(self) -> str:
        one, other = self._file(), self.rng.choice(self.files)
        self.fs.rename(one, other, RENAME_EXCHANGE)
        return f"exchange {one} and {other}"

    def link(self) -> str:
        old, new = self._file(), self._new()
        self.fs.link(old, new)
        self.files.append(new)
        return f"link {old} as {new}"

    def unlink(self) -> str:
        if self.links and self.rng.random() < 0.3:
            path = self.links.pop(self.rng.randrange(len(self.links)))
        else:
            path = self._file()
            self.files.remove(path)
        self.fs.unlink(path)
        return f"unlink {path}"

    def unlink_open(self) -> str:
        path = self._file()
        self.open.append(self.fs.open(path, "r+b"))
        self.files.remove(path)
        self.fs.unlink(path)
        return f"unlink {path}, open"

    def use_open(self) -> str:
        if not self.open:
            return self.unlink_open()
        file = self.rng.choice(self.open)
        if self.rng.random() < 0.3:
            size = self.rng.randrange(10_000)
            # it may have other names, by which its zeroed tail is seen
            with self.rec.changing(file.stat().ino, size, -(-size // self.block) * self.block):
                file.truncate(size)
            return f"truncate unlinked {file.name} to {size}"
        file.seek(self.rng.randrange(20_000))
        data = self._data()
        ino = file.stat().ino
        with self.rec.changing(ino, file.tell(), file.tell() + len(data)):
            file.write(data)
        return f"write to unlinked {file.name}"

    def close(self) -> str:
        if not self.open:
            return self.fsync()
        file = self.open.pop(self.rng.randrange(len(self.open)))
        file.close()
        return f"close unlinked {file.name}"

    def mkdir(self) -> str:
        path = self._new()
        self.fs.mkdir(path)
        self.dirs.append(path)
        return f"mkdir {path}"

    def _empty_dirs(self) -> list[str]:
        return [path for path in self.dirs if path != "/" and not self.fs.listdir(path)]

    def rmdir(self) -> str:
        empty = self._empty_dirs()
        if not empty:
            return self.mkdir()
        path = self.rng.choice(empty)
        self.fs.rmdir(path)
        self.dirs.remove(path)
        return f"rmdir {path}"

    def move_dir(self) -> str:
        dirs = [path for path in self.dirs if path != "/"]
        if not dirs:
            return self.mkdir()
        old, new = self.rng.choice(dirs), self._new()
        if new.startswith(old + "/"):
            return "nothing"
        if self.rng.random() < 0.3 and (empty := [p for p in self._empty_dirs() if not p.startswith(old)]):
            new = self.rng.choice(empty)
            self.dirs.remove(new)
        self.fs.rename(old, new)
        self._move(old, new)
        return f"move {old} to {new}"

    def symlink(self) -> str:
        path = self._new()
        target = "target" * self.rng.choice((1, 5, 30, 100))
        self.fs.symlink(target, path)
        self.links.append(path)
        return f"symlink {path}"

    def xattr(self) -> str:
        path = self.rng.choice((self._file(), self.rng.choice(self.dirs)))
        name = f"user.{self.rng.choice('abcdef')}"
        large = self.fs.volume.ea_inodes is not None
        size = self.rng.choice((20, 150, 3000, 9000) if large else (20, 150, 500))
        value = self.rng.choice((b"1", b"shared" * (700 if large else 50), self.rng.randbytes(size)))
        self.fs.setxattr(path, name, value)
        return f"setxattr {path} {name} {len(value)} bytes"

    def unset_xattr(self) -> str:
        for path in self.rng.sample([*self.files, *self.dirs], len(self.files) + len(self.dirs)):
            names = self.fs.listxattr(path)
            if names:
                name = self.rng.choice(names)
                self.fs.removexattr(path, name)
                return f"removexattr {path} {name}"
        return self.xattr()

    def truncate(self) -> str:
        path = self._file()
        attr = self.fs.stat(path)
        size = self.rng.choice((0, self.rng.randrange(attr.size + 1), attr.size + self.rng.randrange(10_000)))
        with self.rec.changing(attr.ino, size, -(-size // self.block) * self.block):
            self.fs.truncate(path, size)
        return f"truncate {path} (inode {attr.ino}) from {attr.size} to {size}"

    def _fallocate(self, mode: int, what: str, *, whole: bool = False) -> str:
        path = self._file()
        attr = self.fs.stat(path)
        start = self.rng.randrange(attr.size + 1)
        length = self.rng.randrange(1, 30_000)
        if whole:
            start -= start % self.block
            length = -(-length // self.block) * self.block
        with self.fs.open(path, "r+b") as file, self.rec.changing(attr.ino, start, start + length):
            try:
                file.fallocate(mode, start, length)
            except NoSpace:
                raise
            except FsError as exc:
                return f"{what} {path}: {exc}"
        return f"{what} {path} (inode {attr.ino}) at {start}, {length} bytes"

    def preallocate(self) -> str:
        return self._fallocate(self.rng.choice((0, FALLOC_FL_KEEP_SIZE)), "fallocate")

    def punch(self) -> str:
        return self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch")

    def zero(self) -> str:
        return self._fallocate(FALLOC_FL_ZERO_RANGE | self.rng.choice((0, FALLOC_FL_KEEP_SIZE)), "zero")

    def collapse(self) -> str:
        return self._fallocate(FALLOC_FL_COLLAPSE_RANGE, "collapse", whole=True)

    def insert(self) -> str:
        return self._fallocate(FALLOC_FL_INSERT_RANGE, "insert", whole=True)

    def attributes(self) -> str:
        path = self.rng.choice((self._file(), self.rng.choice(self.dirs)))
        self.fs.chmod(path, self.rng.choice((0o600, 0o755, 0o711)))
        self.fs.chown(path, self.rng.randrange(100_000), 7)
        self.fs.utime(path, atime=1, mtime=self.rng.randrange(10**18))
        return f"attributes of {path}"

    def crowd(self) -> str:
        """Many names in one directory, which becomes indexed and splits its leaves."""
        target, directory = self._file(), self._new()
        self.fs.mkdir(directory)
        self.dirs.append(directory)
        count = self.rng.choice((20, 40, 12 * self.block // 256))
        for number in range(count):
            path = f"{directory}/{number:03}{'crowd' * self.rng.randrange(1, 45)}"
            self.fs.link(target, path)
            self.links.append(path)
        return f"crowd {directory} with {count} names of {target}"

    def empty_crowd(self) -> str:
        """And all of them gone again, the directory too."""
        crowds = {path.rpartition("/")[0] for path in self.links if "crowd" in path}
        if not crowds:
            return self.crowd()
        directory = self.rng.choice(sorted(crowds))
        for path in [path for path in self.links if path.startswith(directory + "/")]:
            self.fs.unlink(path)
            self.links.remove(path)
        if not self.fs.listdir(directory):
            self.fs.rmdir(directory)
            self.dirs.remove(directory)
        return f"empty {directory}"

    def comb(self) -> str:
        """A file of many extents, whose tree grows and splits, and shrinks again."""
        path = self._new()
        count = self.rng.choice((5, 100, 200)) if self.block < 4096 else 5
        with self.fs.open(path, "xb") as file:
            self.files.append(path)
            for number in range(count):
                file.seek(number * 2 * self.block)
                file.write(b"comb" * 10)
            if self.rng.random() < 0.7:
                file.truncate(self.rng.randrange(count * 2 * self.block))
        return f"comb {path} of {count}"

    def fsync(self) -> str:
        path = self._file()
        with self.fs.open(path, "r+b") as file:
            if self.rng.random() < 0.5:
                data, end = self._data(), file.seek(0, 2)
                with self.rec.changing(file.stat().ino, end, end + len(data)):
                    file.write(data)
            self.rec.complete()
            file.fsync()
        self.rec.note_synced()
        return f"fsync {path}"

    def fsync_dir(self) -> str:
        path = self.rng.choice(self.dirs)
        fh = self.fs.vfs.opendir(self.fs.stat(path).ino)
        self.rec.complete()
        self.fs.vfs.fsyncdir(fh)
        self.fs.vfs.releasedir(fh)
        self.rec.note_synced()
        return f"fsync directory {path}"

    def commit(self) -> str:
        self.rec.complete()
        self.fs.vfs.commit()
        return "commit"

    def sync(self) -> str:
        self.rec.complete()
        self.fs.sync()
        self.rec.note_synced()
        return "sync"

    # -- what takes time -----------------------------------------------------------------------------------

    def begin_commit(self) -> str:
        """A commit whose device I/O happens while other things go on, as in a server."""
        self.rec.complete()
        self.rec.begin_commit()
        return "begin a commit"

    def slow_write(self) -> str:
        """A write whose device I/O happens while other things go on: its blocks must not become anybody else's."""
        self._end_slow()
        path = self._file()
        file = self.fs.open(path, "r+b")
        inode = self.fs.volume.inodes.get(file.stat().ino)
        data = self._data()
        client = self.fs.vfs.client
        self.fs.volume.start_writing()
        try:
            plan = client.plan_write(client.file(inode), self.rng.randrange(inode.size + 1), len(data))
        except FsError:
            file.close()
            raise
        self._slow = SlowWrite(file, self.rec.position, plan, data, inode.generation)
        return f"begin to write {plan.count} bytes to {path} (inode {inode.ino}) at {plan.pos}"

    def _end_slow(self) -> None:
        slow, self._slow = self._slow, None
        if slow is None:
            return
        plan, client = slow.plan, self.fs.vfs.client
        run_write(plan, self.fs.volume.device, slow.data)
        self.fs.volume.note_data_written()
        with self.fs.volume.operation(client.finish_credits(plan)) as tx:
            if client.finish_write(plan, tx):
                tx.touch(plan.file.inode)
                plan.file.inode.mtime = plan.file.inode.ctime = tx.now
        ino = plan.file.inode.ino
        self.rec.in_place.append(InPlace(slow.start, self.rec.position, ino, slow.generation, plan.pos, plan.end))
        slow.file.close()

    def remount(self) -> str:
        self._settle()
        for file in self.open:
            file.close()
        self.open.clear()
        self.rec.reopen()
        self.fs = self.rec.fs
        return "unmount and mount"
