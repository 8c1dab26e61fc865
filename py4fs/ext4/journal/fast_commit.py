"""Fast commits: what they say (scan) and doing it again (replay).

Behind the log lies an area of tags, each a small change that was made after the last full commit: a name added or
taken away, a range of blocks mapped or unmapped, an inode as it was. A fast commit counts once its tail tag is there
with the right checksum. (ext4 docs: Fast Commits; kernel: ext4_fc_replay.)

The kernel changes the file system in place while it replays. Here all of it happens in one operation on a volume
over memory: either all tags can be carried out or none is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from py4fs.errors import Corrupt, Stale, UnsupportedFeature
from py4fs.ext4.alloc import Allocator
from py4fs.ext4.buffers import BufferCache
from py4fs.ext4.checksum import crc32c
from py4fs.ext4.extent_node import Extent
from py4fs.ext4.extents import ExtentTree
from py4fs.ext4.file import FileMap
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import Groups
from py4fs.ext4.inode import Inode, decode_inode, encode_inode
from py4fs.ext4.itable import InodeTable
from py4fs.ext4.journal.area import JournalArea
from py4fs.ext4.layout.dirent import mode_to_ft
from py4fs.ext4.layout.extent import EXT_INIT_MAX_LEN, EXT_MAX_BLOCKS, EXTENT, EXTENT_HEADER, EXTENT_MAGIC
from py4fs.ext4.layout.fast_commit import (
    EXT4_FC_SUPPORTED_FEATURES,
    EXT4_FC_TAG_ADD_RANGE,
    EXT4_FC_TAG_CREAT,
    EXT4_FC_TAG_DEL_RANGE,
    EXT4_FC_TAG_HEAD,
    EXT4_FC_TAG_INODE,
    EXT4_FC_TAG_LINK,
    EXT4_FC_TAG_PAD,
    EXT4_FC_TAG_TAIL,
    EXT4_FC_TAG_UNLINK,
    FC_ADD_RANGE,
    FC_DEL_RANGE,
    FC_DENTRY,
    FC_HEAD,
    FC_INODE,
    FC_TAG,
    FC_TAIL,
)
from py4fs.ext4.layout.inode import (
    EXT4_EXTENTS_FL,
    EXT4_LINK_MAX,
    INODE,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
    S_IFSOCK,
)
from py4fs.ext4.namespace import NAME_MAX, Namespace
from py4fs.ext4.orphan import Orphans
from py4fs.ext4.superblock import SuperblockWriter
from py4fs.ext4.transaction import Operation, Reserve
from py4fs.ext4.xattr import XattrStore


class RawVolume(Protocol):
    """What replaying needs of a volume: one without a journal, whose changes go to a device that can be written."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def groups(self) -> Groups: ...

    @property
    def alloc(self) -> Allocator: ...

    @property
    def buffers(self) -> BufferCache: ...

    @property
    def inodes(self) -> InodeTable: ...

    @property
    def files(self) -> FileMap: ...

    @property
    def orphans(self) -> Orphans: ...

    @property
    def xattrs(self) -> XattrStore: ...

    @property
    def namespace(self) -> Namespace: ...

    @property
    def superblock_writer(self) -> SuperblockWriter: ...

    def operation(self, credits: int, reserve: Reserve) -> Operation: ...

    def commit(self) -> None: ...


_NAMES: Final = {
    EXT4_FC_TAG_ADD_RANGE: "ADD_RANGE",
    EXT4_FC_TAG_DEL_RANGE: "DEL_RANGE",
    EXT4_FC_TAG_CREAT: "CREAT",
    EXT4_FC_TAG_LINK: "LINK",
    EXT4_FC_TAG_UNLINK: "UNLINK",
    EXT4_FC_TAG_INODE: "INODE",
    EXT4_FC_TAG_PAD: "PAD",
    EXT4_FC_TAG_TAIL: "TAIL",
    EXT4_FC_TAG_HEAD: "HEAD",
}
#: bytes of i_block in an inode: what an INODE tag leaves alone
_BLOCK_AT: Final = INODE.offsets["i_block"]
_BLOCK_END: Final = _BLOCK_AT + INODE.sizes["i_block"]
_TYPES: Final = (S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK)
#: tags kept in memory; the usual area has 256 blocks, whatever its superblock claims
MAX_TAGS: Final = 1 << 18
#: one operation does it all; the log that it has to fit in is looked at afterwards
_CREDITS: Final = 1 << 40


class FcTag(NamedTuple):
    """One tag: what kind, its value, and where it is, for messages."""

    tag: int
    value: bytes
    where: str


@dataclass(slots=True)
class FastCommits:
    """The tags of all complete fast commits, in order."""

    tags: list[FcTag] = field(default_factory=list)
    #: complete fast commits
    commits: int = 0
    problems: list[str] = field(default_factory=list)


def scan_fast_commits(area: JournalArea, tid: int, inode_size: int) -> FastCommits:
    """Read the fast-commit area as far as it holds complete commits for transaction ``tid``.

    ``inode_size`` in bytes. Raises UnsupportedFeature, Corrupt, DeviceError (kernel: ext4_fc_replay_scan, which refuses
    the file system when the first fast commit is not complete; here that is a commit that never finished).
    """
    scan = _FcScan(area, tid, inode_size)
    for block in range(area.fast_first, area.maxlen):
        if not scan.block(block, area.read(block)):
            break
    if scan.pending and not scan.found.commits:
        scan.found.problems.append(f"an unfinished fast commit is ignored ({scan.stopped or 'it has no end'})")
    return scan.found


class _FcScan:
    def __init__(self, area: JournalArea, tid: int, inode_size: int) -> None:
        self._first = area.fast_first
        self._tid = tid
        self._inode_size = inode_size
        self.found = FastCommits()
        self.pending: list[FcTag] = []
        self.stopped = ""
        self._crc = 0
        self._tags = 0

    def block(self, number: int, data: bytes) -> bool:
        """Take in one block; False when nothing can follow."""
        at, end = 0, len(data)
        if number == self._first and FC_TAG.unpack_from(data).fc_tag != EXT4_FC_TAG_HEAD:
            return False
        while at + FC_TAG.size <= end:
            tag, length = FC_TAG.unpack_from(data, at)
            start = at + FC_TAG.size
            where = f"journal block {number}, byte {at}, fast commit tag {_NAMES.get(tag, tag)}"
            if length > end - start or not self._length_ok(tag, length):
                self.stopped = f"{where}: impossible length {length}"
                return False
            value = data[start : start + length]
            if tag == EXT4_FC_TAG_HEAD and not self._head(value, where):
                return False
            self._tags += 1
            if self._tags > MAX_TAGS:
                raise Corrupt("fast commits", where, "more than can be held", f"{MAX_TAGS} tags at most")
            self.pending.append(FcTag(tag, value, where))
            if tag == EXT4_FC_TAG_TAIL:
                if not self._tail(data[at : start + FC_TAIL.size - 4], value, where):
                    return False
            else:
                self._crc = crc32c(self._crc, data[at : start + length])
            at = start + length
        return True

    def _length_ok(self, tag: int, length: int) -> bool:
        if tag in (EXT4_FC_TAG_CREAT, EXT4_FC_TAG_LINK, EXT4_FC_TAG_UNLINK):
            return 1 <= length - FC_DENTRY.size <= NAME_MAX
        if tag == EXT4_FC_TAG_INODE:
            return INODE.size <= length - FC_INODE.size <= self._inode_size
        if tag == EXT4_FC_TAG_TAIL:
            return length >= FC_TAIL.size
        fixed = {
            EXT4_FC_TAG_ADD_RANGE: FC_ADD_RANGE.size,
            EXT4_FC_TAG_DEL_RANGE: FC_DEL_RANGE.size,
            EXT4_FC_TAG_HEAD: FC_HEAD.size,
        }
        return tag == EXT4_FC_TAG_PAD or fixed.get(tag) == length

    def _head(self, value: bytes, where: str) -> bool:
        head = FC_HEAD.unpack_from(value)
        if head.fc_features & ~EXT4_FC_SUPPORTED_FEATURES:
            name = f"fast commit features {head.fc_features:#x}"
            raise UnsupportedFeature((name,), f"{where}: unknown {name}: the journal cannot be replayed")
        if head.fc_tid != self._tid:
            self.stopped = f"{where}: of transaction {head.fc_tid}, not {self._tid}"
            return False
        return True

    def _tail(self, covered: bytes, value: bytes, where: str) -> bool:
        tail = FC_TAIL.unpack_from(value)
        crc = crc32c(self._crc, covered)
        self._crc = 0
        if tail.fc_tid != self._tid or tail.fc_crc != crc:
            self.stopped = f"{where}: transaction {tail.fc_tid}, checksum {tail.fc_crc:#010x}, not {crc:#010x}"
            return False
        self.found.tags += self.pending
        self.found.commits += 1
        self.pending = []
        return True


class _Extents:
    """The extents of one inode while ranges are added and removed: sorted, without overlaps."""

    def __init__(self, extents: list[Extent]) -> None:
        self.items = extents

    def punch(self, start: int, end: int) -> None:
        """Unmap logical blocks [start, end)."""
        items = self.items
        low = bisect_right(items, start, key=attrgetter("lblk")) - 1
        if low < 0 or items[low].end <= start:
            low += 1
        high = bisect_left(items, end, key=attrgetter("lblk"))
        if low >= high:
            return
        keep: list[Extent] = []
        first, last = items[low], items[high - 1]
        if first.lblk < start:
            keep.append(first.sized(start - first.lblk))
        if last.end > end:
            cut = end - last.lblk
            keep.append(Extent(end, last.count - cut, last.pblk + cut, last.unwritten))
        items[low:high] = keep

    def add(self, extent: Extent) -> None:
        """Map what ``extent`` says, whatever was there."""
        self.punch(extent.lblk, extent.end)
        self.items.insert(bisect_left(self.items, extent.lblk, key=attrgetter("lblk")), extent)


def _has_extents(inode: Inode) -> bool:
    """Whether fast commits can change what the inode maps; directories look after their blocks themselves."""
    return (inode.is_reg or inode.is_symlink) and bool(inode.flags & EXT4_EXTENTS_FL)


def replay_fast_commits(volume: RawVolume, fast: FastCommits) -> None:
    """Do what the tags say, and commit it to the volume's device.

    Raises Corrupt when a tag cannot be carried out; nothing is changed then.
    """
    with volume.operation(_CREDITS, Reserve.ALL) as tx:
        _Replay(volume, tx, fast).run()
    volume.commit()


class _Replay:
    def __init__(self, volume: RawVolume, tx: Operation, fast: FastCommits) -> None:
        self._volume = volume
        self._tx = tx
        self._fast = fast
        self._geometry = volume.geometry
        #: new mappings of regular files by inode; they get into the inodes at the end
        self._maps: dict[int, _Extents] = {}
        #: what these inodes had mapped before, with the blocks of their trees
        self._old_runs: list[tuple[int, int]] = []
        #: inodes that lost their last name here
        self._gone: set[int] = set()
        #: inodes that were without a name before, and so are on some orphan list
        self._orphans: set[int] = set()

    def run(self) -> None:
        volume = self._volume
        self._orphans.update(volume.orphans.load())
        regions = [self._range(tag) for tag in self._fast.tags if tag.tag == EXT4_FC_TAG_ADD_RANGE]
        # directories that grow must stay away from what files are going to have
        for _, extent in regions:
            volume.alloc.mark_blocks(self._tx, extent.pblk, extent.count, True)
        handlers = {
            EXT4_FC_TAG_ADD_RANGE: self._add_range,
            EXT4_FC_TAG_DEL_RANGE: self._del_range,
            EXT4_FC_TAG_CREAT: self._creat,
            EXT4_FC_TAG_LINK: self._link,
            EXT4_FC_TAG_UNLINK: self._unlink,
            EXT4_FC_TAG_INODE: self._inode,
        }
        for tag in self._fast.tags:
            handler = handlers.get(tag.tag)
            if handler is not None:
                handler(tag)
        for _, extent in regions:
            self._old_runs.append((extent.pblk, extent.count))
        self._settle_blocks()
        for ino in sorted(self._gone):
            self._evict(ino)

    # -- inodes ----------------------------------------------------------------------------------------------------

    def _get(self, ino: int) -> Inode | None:
        """The inode, or None when there is none with that number in use: such tags are passed over."""
        if not self._geometry.valid_ino(ino) or not self._volume.alloc.inode_in_use(ino):
            return None
        try:
            return self._volume.inodes.get(ino)
        except Stale:
            return None

    def _inode(self, tag: FcTag) -> None:
        volume, tx, geo = self._volume, self._tx, self._geometry
        ino = FC_INODE.unpack_from(tag.value).fc_ino
        raw = tag.value[FC_INODE.size :]
        if not geo.first_ino <= ino <= geo.inodes_count:
            raise Corrupt("inode number", tag.where, ino, f"{geo.first_ino} to {geo.inodes_count}")
        base = bytearray(geo.inode_size)
        dtime = 0
        if ino in self._gone and INODE.get(raw, 0, "i_links_count"):
            # its last name was taken away before: the number was given to another file since
            self._gone.discard(ino)
            self._maps.pop(ino, None)
            self._evict(ino)
        if volume.alloc.inode_in_use(ino):
            old = volume.inodes.get_orphan(ino)
            encode_inode(old, base, 0, geo.inode_size, geo.block_size)
            if not old.nlink and ino not in self._gone:
                self._orphans.add(ino)
            if ino in self._orphans:
                dtime = old.dtime
            if _has_extents(old):
                self._map(old)
        merged = raw[:_BLOCK_AT] + base[_BLOCK_AT:_BLOCK_END] + raw[_BLOCK_END:] + base[len(raw) :]
        new = decode_inode(ino, bytes(merged), geo.block_size)
        if new.mode & S_IFMT not in _TYPES or (ino in self._maps and not _has_extents(new)):
            raise Corrupt("inode", tag.where, f"inode {ino}, {new.mode:#o}, flags {new.flags:#x}", "a file as it was")
        if new.flags & EXT4_EXTENTS_FL:
            if EXTENT_HEADER.get(new.iblock, 0, "eh_magic") != EXTENT_MAGIC:
                ExtentTree.init_root(new)
        elif not new.has_blocks:
            # a device number or a short symlink, which is nothing that was allocated
            new.iblock[:] = raw[_BLOCK_AT:_BLOCK_END]
        new.dtime = dtime
        if not volume.alloc.inode_in_use(ino):
            volume.alloc.take_inode(tx, ino, new.is_dir)
            new.size = 0 if new.is_dir else new.size
            new.blocks = 0
        inode = volume.inodes.new(tx, ino, new.generation)
        inode.restore(new.save())
        if not inode.nlink and ino not in self._orphans:
            self._gone.add(ino)

    def _evict(self, ino: int) -> None:
        """Free an inode without names (kernel: ext4_evict_inode)."""
        volume, tx = self._volume, self._tx
        inode = volume.inodes.get_orphan(ino)
        if inode.has_blocks:
            while not volume.files.remove(tx, inode, 0, EXT_MAX_BLOCKS):
                pass
        tx.touch(inode)
        volume.xattrs.release(tx, inode)
        inode.size = 0
        inode.dtime = tx.now // 1_000_000_000 & 0xFFFFFFFF
        volume.alloc.free_inode(tx, ino, inode.is_dir)
        volume.inodes.drop(tx, inode)

    # -- names -----------------------------------------------------------------------------------------------------

    def _dentry(self, tag: FcTag) -> tuple[Inode, Inode, bytes] | None:
        """(directory, inode, name) of a tag; None when one of the inodes does not exist, or no more."""
        entry = FC_DENTRY.unpack_from(tag.value)
        name = tag.value[FC_DENTRY.size :]
        if name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise Corrupt("name", tag.where, name, "a name")
        parent, inode = self._get(entry.fc_parent_ino), self._get(entry.fc_ino)
        if parent is None or inode is None:
            return None
        if not parent.is_dir:
            raise Corrupt("directory", tag.where, f"inode {parent.ino}, {parent.mode:#o}", "a directory")
        return parent, inode, name

    def _creat(self, tag: FcTag) -> None:
        found = self._dentry(tag)
        if found is None:
            return
        parent, inode, name = found
        tx, namespace = self._tx, self._volume.namespace
        if namespace.directory(parent).lookup(name) is not None:
            return
        tx.touch(inode)
        if inode.is_dir:
            if inode.size:
                raise Corrupt("directory", tag.where, f"inode {inode.ino} with {inode.size} bytes", "a new one")
            namespace.directory(inode).init_empty(tx, parent.ino)
            inode.nlink = 2
            tx.touch(parent)
            if parent.nlink > 1:
                parent.nlink = 1 if parent.nlink >= EXT4_LINK_MAX else parent.nlink + 1
        else:
            inode.nlink = 1
        self._add_name(parent, name, inode)

    def _link(self, tag: FcTag) -> None:
        found = self._dentry(tag)
        if found is None:
            return
        parent, inode, name = found
        if self._volume.namespace.directory(parent).lookup(name) is not None:
            return
        if inode.is_dir or inode.nlink >= EXT4_LINK_MAX:
            raise Corrupt("inode", tag.where, f"inode {inode.ino}, {inode.mode:#o}, {inode.nlink} links", "a file")
        self._tx.touch(inode)
        inode.nlink += 1
        self._add_name(parent, name, inode)

    def _add_name(self, parent: Inode, name: bytes, inode: Inode) -> None:
        tx = self._tx
        self._volume.namespace.directory(parent).add(tx, name, inode.ino, mode_to_ft(inode.mode))
        tx.touch(parent)
        parent.mtime = parent.ctime = tx.now

    def _unlink(self, tag: FcTag) -> None:
        found = self._dentry(tag)
        if found is None:
            return
        parent, inode, name = found
        tx, namespace = self._tx, self._volume.namespace
        entry = namespace.directory(parent).lookup(name)
        if entry is None or entry[0] != inode.ino:
            return
        if inode.is_dir and (inode is parent or not namespace.directory(inode).is_empty()):
            raise Corrupt("directory", tag.where, f"inode {inode.ino} with entries", "an empty one")
        namespace.directory(parent).remove(tx, name)
        tx.touch(parent)
        tx.touch(inode)
        parent.mtime = parent.ctime = tx.now
        if inode.is_dir:
            inode.nlink = 0
            if parent.nlink > 2:
                parent.nlink -= 1
        else:
            inode.nlink -= 1
        if not inode.nlink and inode.ino not in self._orphans:
            self._gone.add(inode.ino)
            if _has_extents(inode):
                self._map(inode).items.clear()

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _range(self, tag: FcTag) -> tuple[int, Extent]:
        """(inode, extent) of an ADD_RANGE tag. Raises Corrupt."""
        value = FC_ADD_RANGE.unpack_from(tag.value)
        raw = EXTENT.unpack_from(value.fc_ex)
        unwritten = raw.ee_len > EXT_INIT_MAX_LEN
        count = raw.ee_len - EXT_INIT_MAX_LEN if unwritten else raw.ee_len
        pblk = raw.ee_start_lo | raw.ee_start_hi << 32
        if not count or raw.ee_block + count >= 1 << 32:
            raise Corrupt("extent", tag.where, f"{raw.ee_block}+{count}", f"below {1 << 32}")
        self._volume.groups.check_data_run(pblk, count, tag.where)
        return value.fc_ino, Extent(raw.ee_block, count, pblk, unwritten)

    def _file(self, tag: FcTag, ino: int) -> _Extents | None:
        inode = self._get(ino)
        if inode is None:
            return None
        if not _has_extents(inode):
            raise Corrupt("inode", tag.where, f"inode {ino}, {inode.mode:#o}", "a file with extents")
        return self._map(inode)

    def _map(self, inode: Inode) -> _Extents:
        extents = self._maps.get(inode.ino)
        if extents is None:
            tree = self._volume.files.extent_tree(inode)
            found = tree.all_extents()
            self._old_runs += [(extent.pblk, extent.count) for extent in found]
            extents = self._maps[inode.ino] = _Extents(found)
        return extents

    def _add_range(self, tag: FcTag) -> None:
        ino, extent = self._range(tag)
        extents = self._file(tag, ino)
        if extents is not None:
            extents.add(extent)

    def _del_range(self, tag: FcTag) -> None:
        value = FC_DEL_RANGE.unpack_from(tag.value)
        extents = self._file(tag, value.fc_ino)
        if extents is not None:
            extents.punch(value.fc_lblk, value.fc_lblk + value.fc_len)

    def _clusters(self, extents: list[Extent]) -> list[tuple[int, int]]:
        """(first block, count) of the clusters that extents lie in, each cluster once."""
        runs: list[tuple[int, int]] = []
        for first, count in sorted(self._geometry.whole_clusters(e.pblk, e.count) for e in extents):
            if runs and self._geometry.cluster_bits and first < sum(runs[-1]):
                start = runs.pop()[0]
                first, count = start, max(first + count, start) - start
            runs.append((first, count))
        return runs

    def _settle_blocks(self) -> None:
        """Bitmaps and trees of all files whose ranges changed: what they had is free, what they have is not."""
        volume, tx = self._volume, self._tx
        alloc = volume.alloc
        inodes = {ino: volume.inodes.get_orphan(ino) for ino in sorted(self._maps)}
        for inode in inodes.values():
            for pblk in volume.files.extent_tree(inode).node_blocks():
                volume.buffers.forget(tx, pblk)
                self._old_runs.append((pblk, 1))
        for pblk, count in self._old_runs:
            alloc.mark_blocks(tx, pblk, count, False)
        sectors = self._geometry.block_size // 512
        for ino, inode in inodes.items():
            tx.touch(inode)
            inode.blocks = self._geometry.cluster_sectors * bool(inode.file_acl)
            for pblk, count in self._clusters(self._maps[ino].items):
                if alloc.mark_blocks(tx, pblk, count, True) != count:
                    raise Corrupt("block used twice", f"fast commit, inode {ino}", f"{pblk}+{count}")
                inode.blocks += sectors * count
        for ino, inode in inodes.items():
            items = self._maps[ino].items
            volume.files.extent_tree(inode).rebuild(tx, items)
