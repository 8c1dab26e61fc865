"""A file system on a recording device, and what it must look like after a crash at any point of the recording.

Every commit takes over a state of the whole tree. So after a crash the recovered tree is exactly one of those states:
not older than the last commit that had returned, not younger than the last one that had begun. The data of files is
as in that state, byte for byte, except where something has been writing in place since.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from images.tools import mke2fs
from py4fs.api import Filesystem, OpenOptions, open_device
from py4fs.device.base import Device
from py4fs.device.memory import MemoryDevice
from py4fs.device.recording import RecordingDevice
from py4fs.ext4.commit import Commit
from py4fs.ext4.inode import Inode
from py4fs.ext4.layout.inode import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from py4fs.ext4.layout.jbd2 import (
    JBD2_FEATURE_COMPAT_CHECKSUM,
    JBD2_MAGIC_NUMBER,
    JBD2_SUPERBLOCK_V1,
    JBD2_SUPERBLOCK_V2,
    JOURNAL_SUPERBLOCK,
)
from py4fs.ext4.store import BlockImage, Store
from py4fs.ext4.volume import VolumeOptions
from py4fs.vfs import ROOT_INO, Vfs
from tests.support.volumes import Clock


@dataclass(frozen=True)
class Config:
    """How an image is made. `journal`: it has one; `kernel`: any kernel mounts it read/write."""

    name: str
    size: int
    mke2fs: tuple[str, ...]
    journal: bool = True
    #: changes the fresh image
    prepare: Callable[[bytearray], None] | None = None
    kernel: bool = True


_MIB = 1 << 20
_SMALL = ("-N", "512", "-E", "lazy_itable_init=0,lazy_journal_init=0")


def _config(
    name: str,
    size: int,
    *args: str,
    journal: bool = True,
    prepare: Callable[[bytearray], None] | None = None,
    kernel: bool = True,
) -> Config:
    return Config(name, size, (*args, *_SMALL), journal, prepare, kernel)


def _journal_superblock(image: bytearray) -> int:
    """The offset of the journal's superblock."""
    magic = JBD2_MAGIC_NUMBER.to_bytes(4, "big") + JBD2_SUPERBLOCK_V2.to_bytes(4, "big")
    at = image.find(magic)
    while at % 1024:
        at = image.find(magic, at + 1)
    return at


def _version_1(image: bytearray) -> None:
    """An old journal, which knows no features and so no revokes."""
    at = _journal_superblock(image)
    image[at + JOURNAL_SUPERBLOCK.offsets["s_feature_compat"] : at + JOURNAL_SUPERBLOCK.size] = bytes(
        JOURNAL_SUPERBLOCK.size - JOURNAL_SUPERBLOCK.offsets["s_feature_compat"]
    )
    JOURNAL_SUPERBLOCK.put(image, at, h_blocktype=JBD2_SUPERBLOCK_V1)


def _checksum_1(image: bytearray) -> None:
    """A journal with one checksum for a whole transaction."""
    at = _journal_superblock(image)
    JOURNAL_SUPERBLOCK.put(image, at, s_feature_compat=JBD2_FEATURE_COMPAT_CHECKSUM)


CONFIGS = {
    config.name: config
    for config in (
        _config("1k", 8 * _MIB, "-b", "1024", "-J", "size=1"),
        _config("1k-plain", 8 * _MIB, "-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"),
        _config("1k-maps", 8 * _MIB, "-t", "ext3", "-b", "1024", "-J", "size=1"),
        _config("1k-small-inodes", 8 * _MIB, "-b", "1024", "-J", "size=1", "-I", "128", "-g", "1024"),
        _config("2k", 10 * _MIB, "-b", "2048", "-J", "size=2", "-O", "^64bit"),
        _config("1k-orphan-file", 8 * _MIB, "-b", "1024", "-J", "size=1", "-O", "orphan_file"),
        _config("4k", 16 * _MIB, "-b", "4096", "-J", "size=4"),
        _config("4k-plain", 16 * _MIB, "-b", "4096", "-J", "size=4", "-O", "^metadata_csum"),
        _config("1k-v1", 8 * _MIB, "-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit", prepare=_version_1),
        _config("1k-csum1", 8 * _MIB, "-b", "1024", "-J", "size=1", "-O", "^metadata_csum", prepare=_checksum_1),
        _config("1k-inline", 8 * _MIB, "-b", "1024", "-J", "size=1", "-O", "inline_data,ea_inode"),
        _config("1k-clusters", 24 * _MIB, "-b", "1024", "-J", "size=1", "-O", "bigalloc,inline_data", "-C", "4096"),
        _config("1k-fast", 8 * _MIB, "-b", "1024", "-J", "size=2", "-O", "fast_commit"),
        _config("1k-quota", 8 * _MIB, "-b", "1024", "-J", "size=2", "-O", "quota,project", kernel=False),
        _config("1k-none", 6 * _MIB, "-b", "1024", "-O", "^has_journal", journal=False),
        _config("4k-none", 10 * _MIB, "-b", "4096", "-O", "^has_journal,^metadata_csum", journal=False),
    )
}


@cache
def base_image(name: str) -> bytes:
    """The fresh image of a configuration."""
    config = CONFIGS[name]
    with TemporaryDirectory(prefix="py4fs-crash-") as directory:
        path = Path(directory) / "base.img"
        mke2fs(path, config.size, *config.mke2fs)
        image = bytearray(path.read_bytes())
    if config.prepare is not None:
        config.prepare(image)
    return bytes(image)


# -- trees -----------------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """What one name stands for. Times in ns."""

    ino: int
    generation: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    blocks: int
    mtime: int
    ctime: int
    flags: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes | None
    """Of a file, or the target of a symbolic link."""


Tree = dict[bytes, Node]


class TreeReader:
    """Reads whole trees through a vfs; what is known not to have changed since is not read again."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._nodes: dict[int, Node] = {}
        self._entries: dict[int, list[tuple[bytes, int]]] = {}

    def changed(self, ino: int) -> None:
        self._nodes.pop(ino, None)
        self._entries.pop(ino, None)

    def read(self) -> Tree:
        tree: Tree = {}
        todo = [(b"/", ROOT_INO)]
        while todo:
            path, ino = todo.pop()
            tree[path] = node = self._node(ino)
            if node.mode & S_IFMT == S_IFDIR:
                entries = self._entries.get(ino)
                if entries is None:
                    entries = self._entries[ino] = self._list(ino)
                todo += [(path.rstrip(b"/") + b"/" + name, child) for name, child in entries]
        return tree

    def _list(self, ino: int) -> list[tuple[bytes, int]]:
        fh = self._vfs.opendir(ino)
        try:
            entries = [(entry.name, entry.ino) for entry in self._vfs.readdir(fh)]
        finally:
            self._vfs.releasedir(fh)
        for name, child in entries:
            if name not in (b".", b".."):
                assert self._vfs.lookup(ino, name).ino == child, f"{name!r} is listed but not found"
        return [entry for entry in entries if entry[0] not in (b".", b"..")]

    def _node(self, ino: int) -> Node:
        node = self._nodes.get(ino)
        if node is None:
            vfs = self._vfs
            a = vfs.getattr(ino)
            kind = a.mode & S_IFMT
            content = None
            if kind == S_IFREG:
                # no handle: closing one may give blocks back
                content = vfs.client.read(vfs.client.file(vfs.volume.inodes.get(ino)), 0, a.size)
            elif kind == S_IFLNK:
                content = vfs.readlink(ino)
            xattrs = tuple(sorted((name, vfs.getxattr(ino, name)) for name in vfs.listxattr(ino)))
            node = self._nodes[ino] = Node(
                ino, a.generation, a.mode, a.uid, a.gid, a.rdev, a.nlink, a.size, a.blocks, a.mtime, a.ctime,
                a.flags, xattrs, content,
            )  # fmt: skip
        return node


class State(NamedTuple):
    """What one commit takes over. `start`: length of the log when it began; `orphans`: truncated or deleted later."""

    start: int
    tree: Tree
    orphans: frozenset[int]


class InPlace(NamedTuple):
    """Bytes [low, high) of a file may have changed without a commit while the log had lengths from start to end."""

    start: int
    end: int
    ino: int
    generation: int
    low: int
    high: int


# -- recording -------------------------------------------------------------------------------------------------

OPTIONS = OpenOptions(atime="noatime", volume=VolumeOptions(strict=True))


def open_strict(device: Device) -> Filesystem:
    return open_device(device, clock=Clock(), rng=random.Random(1), options=OPTIONS)


class NotingStore:
    """Does what another store does, and tells when a transaction is over."""

    def __init__(self, inner: Store, over: Callable[[], None]) -> None:
        self._inner = inner
        self._over = over

    @property
    def max_blocks(self) -> int:
        return self._inner.max_blocks

    def mark_in_use(self) -> None:
        self._inner.mark_in_use()

    def stage(self, images: Sequence[BlockImage], revoked: Sequence[int]) -> None:
        self._inner.stage(images, revoked)

    def write(self, durable: bool) -> None:
        self._inner.write(durable)

    def finish(self) -> None:
        self._inner.finish()
        self._over()

    def latest(self, pblk: int) -> bytes | None:
        return self._inner.latest(pblk)

    def mark_clean(self) -> None:
        self._inner.mark_clean()


@dataclass
class Recording:
    """A file system that is being used, and afterwards all that is needed to judge its crash images."""

    config: Config
    base: bytes
    device: RecordingDevice
    fs: Filesystem
    states: list[State] = field(default_factory=list)
    #: for each state, the length of the log when its commit had returned
    done: list[int] = field(default_factory=list)
    in_place: list[InPlace] = field(default_factory=list)
    #: lengths of the log at which a durable sync had returned
    synced: list[int] = field(default_factory=list)
    #: what was done, each with the length of the log before it: for people
    story: list[tuple[int, str]] = field(default_factory=list)
    #: a commit whose waiting goes on while other things are done
    pending: Commit | None = None
    _written: bool = False

    @classmethod
    def start(cls, config: Config, base: bytes) -> Recording:
        """Open an image; when it has a journal to replay, that is recorded too."""
        device = RecordingDevice(MemoryDevice(base))
        recording = cls(config, base, device, open_strict(device))
        recording._hook()
        return recording

    def reopen(self) -> None:
        """Unmount and mount again."""
        self.fs.close()
        self.fs = open_strict(self.device)
        self._hook()

    @property
    def position(self) -> int:
        return len(self.device.log)

    def _hook(self) -> None:
        """Note the whole tree whenever a commit begins."""
        volume = self.fs.volume
        committer, transactions = volume.committer, volume.transactions
        reader = TreeReader(self.fs.vfs)
        guard = committer.guard
        if not self.states:
            self.states.append(State(0, reader.read(), frozenset()))
            self.done.append(0)

        def begins() -> None:
            if guard is not None:
                guard()
            dirty = list(transactions.running.dirty)
            for obj in dirty:
                if isinstance(obj, Inode):
                    reader.changed(obj.ino)
            if dirty:
                state = State(self.position, reader.read(), frozenset(volume.orphans))
                assert len(self.done) == len(self.states)
                self.states.append(state)

        def make_room() -> None:
            self.complete()
            committer.commit()

        committer.guard = begins
        committer._store = NotingStore(committer._store, lambda: self.done.append(self.position))
        transactions.make_room = make_room

    def begin_commit(self) -> None:
        """Start a commit; it goes on with `advance`."""
        self.pending = self.fs.vfs.start_commit(durable=True)
        self._written = False

    def advance(self) -> None:
        """The next step of the commit that is under way."""
        if self.pending is None:
            return
        if self._written:
            self.complete()
        else:
            self.pending.write()
            self._written = True

    def complete(self) -> None:
        """The rest of the commit that is under way."""
        commit, self.pending = self.pending, None
        if commit is not None:
            if not self._written:
                commit.write()
            self.fs.vfs.finish_commit(commit)

    @contextmanager
    def changing(self, ino: int, low: int, high: int) -> Iterator[None]:
        """Around something that writes data in place."""
        start, generation = self.position, self.fs.vfs.getattr(ino).generation
        try:
            yield
        finally:
            self.in_place.append(InPlace(start, self.position, ino, generation, low, high))

    def note_synced(self) -> None:
        """After fsync: nothing may be left that a power cut could take away."""
        volume = self.fs.volume
        assert volume.transactions.running.empty, "fsync left changes uncommitted"
        assert not self.device.log or self.device.log[-1] is None, "fsync left writes unflushed"
        self.synced.append(self.position)

    # -- judging -------------------------------------------------------------------------------------------

    def candidates(self, cut: int) -> range:
        """The states that a recovery may lead to: from the last one committed to the last one begun."""
        low = max(index for index, end in enumerate(self.done) if end <= cut)
        high = max(index for index, state in enumerate(self.states) if index == 0 or state.start < cut)
        return range(low, high + 1)

    def touched(self, index: int, cut: int, node: Node) -> list[tuple[int, int]]:
        """The ranges of a file that may differ from the state, because something wrote in place since."""
        since = self.states[index].start
        return [
            (change.low, change.high)
            for change in self.in_place
            if (change.ino, change.generation) == (node.ino, node.generation)
            and change.end > since
            and change.start < cut
        ]
