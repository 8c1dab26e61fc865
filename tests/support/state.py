"""What a file system looks like through the vfs, and what is in a volume's memory: to be compared before and after."""

from __future__ import annotations

import hashlib
import stat
from types import SimpleNamespace
from typing import Any

from py4fs.api import Filesystem
from py4fs.ext4 import xattr_body
from py4fs.ext4.dirblock import LEAF, OPAQUE, DirBlock
from py4fs.ext4.directory import Directory
from py4fs.ext4.extents import ExtentTree
from py4fs.ext4.inode import Inode
from py4fs.ext4.runs import RunState
from py4fs.ext4.volume import Volume
from py4fs.ext4.xattr import XattrStore
from py4fs.iomap.records import IoDir, MapType
from py4fs.vfs import ROOT_INO, Vfs

Tree = dict[str, Any]

PIECE = 1 << 20
WHOLE = 4 << 20
"""Files up to this size are read as a whole."""


def tree_state(fs: Filesystem, *, blocks: bool = True) -> Tree:
    """Names, attributes, xattrs, contents, extents and free counts. Open with ``atime="noatime"``.

    Without ``blocks``: nothing that preallocation would change (extents, block counts, free counts).
    """
    vfs = fs.vfs
    names: dict[bytes, int] = {b"/": ROOT_INO}
    inodes: dict[int, Any] = {}
    todo = [(b"", ROOT_INO)]
    while todo:
        path, ino = todo.pop()
        fh = vfs.opendir(ino)
        try:
            entries = list(vfs.readdir(fh))
        finally:
            vfs.releasedir(fh)
        for entry in entries:
            if entry.name == b".":
                assert entry.ino == ino
                continue
            here = path + b"/" + entry.name
            assert here not in names, here
            names[here] = entry.ino
            if entry.name == b"..":
                continue
            assert vfs.lookup(ino, entry.name).ino == entry.ino
            if entry.ino not in inodes:
                inodes[entry.ino] = inode_state(vfs, entry.ino, blocks)
                if stat.S_ISDIR(inodes[entry.ino]["attr"]["mode"]):
                    todo.append((here, entry.ino))
    inodes[ROOT_INO] = inode_state(vfs, ROOT_INO, blocks)
    state: Tree = {"names": names, "inodes": inodes}
    if blocks:
        state["statfs"] = fs.statvfs()._asdict()
    return state


def inode_state(vfs: Vfs, ino: int, blocks: bool) -> Tree:
    """Everything about one inode."""
    found = vfs.getattr(ino)
    attr = found.as_dict()
    if not blocks:
        del attr["blocks"]
    state: Tree = {"attr": attr, "xattrs": {name: vfs.getxattr(ino, name) for name in vfs.listxattr(ino)}}
    if stat.S_ISLNK(found.mode):
        state["target"] = vfs.readlink(ino)
    if stat.S_ISREG(found.mode):
        state["digest"] = digest(vfs, ino)
        if blocks:
            state["extents"] = vfs.mappings(ino)
    return state


def digest(vfs: Vfs, ino: int) -> str:
    """Hash of a file's data; holes of large sparse files are passed over, not read."""
    value = hashlib.blake2b(digest_size=8)
    fh = vfs.open(ino, 0)
    try:
        size = vfs.getattr(ino).size
        if size <= WHOLE:
            return hashlib.blake2b(vfs.read(fh, 0, size).rstrip(b"\0"), digest_size=8).hexdigest()
        for mapping in vfs.mappings(ino):
            if mapping.type != MapType.MAPPED:
                continue
            at, end = mapping.offset, min(mapping.end, size)
            while at < end:
                data = vfs.read(fh, at, min(PIECE, end - at))
                assert data, at
                if any(data):
                    value.update(b"%d:" % at + data.rstrip(b"\0"))
                at += len(data)
        if size:
            assert len(vfs.read(fh, size - 1, 2)) == 1
    finally:
        vfs.release(fh)
    return value.hexdigest()


class MemoryState:
    """A copy of everything that a volume and its vfs hold in memory."""

    def __init__(self, vfs: Vfs) -> None:
        volume = vfs.volume
        running = volume.transactions.running
        # objects are kept, so that their ids stay theirs
        self.objects: dict[int, tuple[Any, Any]] = {}
        for obj in _objects(volume):
            self.objects[id(obj)] = (obj, obj.save())
        self.rest = _rest(vfs)
        self.dirty = set(map(id, running.dirty))
        self.transaction = running

    def assert_same(self, vfs: Vfs) -> None:
        """Everything that was there is as it was; what came along (clean caches) is not dirty."""
        volume = vfs.volume
        assert volume.transactions.current is None
        assert volume.transactions.running is self.transaction, "a commit happened"
        for obj, saved in self.objects.values():
            now_saved = obj.save()
            if isinstance(obj, DirBlock):
                # its kind may become known by reading
                now_saved, saved = now_saved[0], saved[0]
            assert now_saved == saved, f"{obj!r} changed"
        now = volume.transactions.running.dirty
        added = [obj for obj in now if id(obj) not in self.dirty]
        assert not added, f"left dirty: {added}"
        assert len(now) == len(self.dirty), "no longer dirty"
        rest = _rest(vfs)
        for key, value in self.rest.items():
            assert rest[key] == value, key
        present = set(map(id, _objects(volume)))
        gone = [obj for key, (obj, _) in self.objects.items() if key not in present]
        assert not gone, f"dropped from the caches: {gone}"


def _objects(volume: Volume) -> list[Any]:
    groups = volume.groups
    return [
        volume.superblock,
        *volume.inodes._inodes.values(),
        *volume.buffers._blocks.values(),
        *groups._descs.values(),
        *groups._block_bitmaps.values(),
        *groups._inode_bitmaps.values(),
        *volume.transactions.running.dirty,
    ]


def _rest(vfs: Vfs) -> dict[str, Any]:
    volume = vfs.volume
    running = volume.transactions.running
    return {
        "superblock": bytes(volume.superblock.raw),
        "freed": list(running.freed),
        "forgotten": list(running.forgotten),
        "orphans": dict(volume.orphans._list._links),
        "orphan slots": dict(volume.orphans._file.slots) if volume.orphans._file else {},
        "damaged": set(volume.groups.damaged),
        "limbo": list(volume.alloc._limbo),
        "opens": dict(vfs._opens),
        "refs": dict(vfs._refs),
        "plans": len(volume.pins),
        "writes": sum(len(file.writes) for file in vfs.client._files.values()),
    }


def check_derived(vfs: Vfs) -> None:
    """What is cached beside the truth agrees with it: parsed blocks, extent roots, xattrs, mappings of files."""
    volume = vfs.volume
    for block in list(volume.buffers._blocks.values()):
        if isinstance(block, DirBlock) and block.ready and block.kind != OPAQUE:
            _check_dir_block(block)
    for ino, inode in list(volume.inodes._inodes.items()):
        assert inode.ino == ino
        _check_inode(volume, inode)
    for ino, file in vfs.client._files.items():
        if len(file.cache):
            _check_mappings(volume, volume.inodes._inodes.get(ino, file.inode), vfs)
    free = sum(volume.groups.desc(group).free_blocks for group in range(volume.geometry.groups))
    assert volume.superblock.free_blocks == free << volume.geometry.cluster_bits
    free = sum(volume.groups.desc(group).free_inodes for group in range(volume.geometry.groups))
    assert volume.superblock.free_inodes == free
    for bitmap in volume.groups._block_bitmaps.values():
        count = volume.geometry.group_cluster_count(bitmap.group)
        desc = volume.groups.desc(bitmap.group)
        assert bitmap.bits.count(0, 0, count) == desc.free_blocks
        assert bitmap.held.count(0, 0, count) == desc.free_blocks - bitmap.pending
    for bitmap in volume.groups._inode_bitmaps.values():
        count = volume.geometry.inodes_per_group
        assert bitmap.bits.count(0, 0, count) == volume.groups.desc(bitmap.group).free_inodes


def _check_dir_block(block: DirBlock) -> None:
    of_the_owner = ("seed", "inodes_count", "max_levels", "any_bytes", "hash_in_entry")
    owner: Any = SimpleNamespace(ino=block.owner, **{name: getattr(block, name) for name in of_the_owner})
    fresh = DirBlock(block.pblk, owner, block.lblk, block.data, block.kind)
    fresh.prepare(block.kind)
    names = ("names", "offsets", "room_at", "room") if block.kind == LEAF else ("hashes", "blocks")
    for name in names:
        assert getattr(block, name) == getattr(fresh, name), f"{block._where()}: {name}"


def _check_inode(volume: Volume, inode: Inode) -> None:
    if isinstance(inode.mapper, ExtentTree):
        truth = ExtentTree(volume.files._ctx, inode)
        assert inode.mapper._root.save() == truth._root.save(), f"{inode!r}: extent root"
    if inode.xattrs is not None:
        body, attrs = inode.xattrs
        assert body is inode.ibody
        store = volume.xattrs
        assert isinstance(store, XattrStore)
        cached, inode.xattrs = inode.xattrs, None
        again = xattr_body.attributes(inode)
        inode.xattrs = cached
        assert [attr[:3] for attr in again] == [attr[:3] for attr in attrs], f"{inode!r}: xattrs"
    if isinstance(inode.dirindex, Directory):
        for lblk, pblk in inode.dirindex._pblks.items():
            assert volume.files.block_of(inode, lblk) == pblk, f"{inode!r}: block {lblk}"


def _check_mappings(volume: Volume, inode: Inode, vfs: Vfs) -> None:
    size = volume.geometry.block_size
    cache = vfs.client._files[inode.ino].cache
    for mapping in cache.mappings(IoDir.READ) or []:
        if inode.is_inline:
            assert mapping.type == (MapType.HOLE if mapping.offset else MapType.INLINE), f"{inode!r}: {mapping}"
            continue
        at = mapping.offset
        while at < mapping.end:
            run = volume.files.run_at(inode, at // size)
            kind = {RunState.HOLE: MapType.HOLE, RunState.MAPPED: MapType.MAPPED}.get(run.state, MapType.UNWRITTEN)
            assert mapping.type == kind, f"{inode!r}: {mapping} is {run}"
            if kind is not MapType.HOLE:
                where = (run.pblk - run.lblk) * size + at
                assert mapping.addr + at - mapping.offset == where, f"{inode!r}: {mapping} is {run}"
            at = run.end * size


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two states, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[str] = []
        for key in sorted(before.keys() | after.keys(), key=repr):
            here = f"{path}/{key!r}"
            if key not in before or key not in after:
                found.append(f"{here}: only {'after' if key in after else 'before'}")
            else:
                found += differences(before[key], after[key], here)
        return found
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def assert_same_tree(before: dict[Any, Any], after: dict[Any, Any]) -> None:
    found = differences(before, after)
    assert not found, "the tree changed:\n  " + "\n  ".join(found[:20])


def cool(fs: Filesystem) -> None:
    """Commit, then forget everything that is clean, as after a fresh open; handles stay."""
    vfs = fs.vfs
    volume = vfs.volume
    with volume.operation(0):
        pass  # the first one marks the volume as in use
    volume.commit(durable=True)
    held = set(vfs._opens) | set(volume.orphans)
    volume.buffers._blocks.clear()
    for ino, inode in list(volume.inodes._inodes.items()):
        inode.mapper = inode.dirindex = inode.xattrs = None
        if ino not in held:
            del volume.inodes._inodes[ino]
    volume.groups._descs.clear()
    volume.groups._block_bitmaps.clear()
    volume.groups._inode_bitmaps.clear()
    for file in vfs.client._files.values():
        file.cache.clear()
