"""One block of a directory: its bytes, and beside them a small parsed index.

The bytes are the truth; the index makes a repeated lookup one `dict.get`, lets an insert find room without
walking the block, and a removal find its predecessor by bisection. It is built when the block is first
used and dropped when the bytes are put back by an undo.

(ext4 docs: Directory Entries, Hash Tree Directories, Directory Block Tail.)
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, Protocol

from py4fs.errors import BadChecksum, BadIndex, Corrupt
from py4fs.ext4 import checksum
from py4fs.ext4.buffers import RANK_DIRECTORY, MetaBlock
from py4fs.ext4.layout.dirent import (
    DIR_ENTRY_2,
    DIR_ENTRY_TAIL,
    EXT4_FT_DIR_CSUM,
    dirent_size,
    rec_len_from_disk,
    rec_len_to_disk,
)
from py4fs.ext4.layout.htree import (
    DX_BLOCK_MASK,
    DX_COUNT_LIMIT,
    DX_ENTRY,
    DX_HASH_SIPHASH,
    DX_HASH_TEA,
    DX_NODE,
    DX_NODE_ENTRIES_OFFSET,
    DX_ROOT,
    DX_ROOT_ENTRIES_OFFSET,
    DX_ROOT_INFO,
    DX_ROOT_INFO_OFFSET,
    DX_TAIL,
)

LEAF: Final = 0
NODE: Final = 1
ROOT: Final = 2
OPAQUE: Final = 3
"""What a block is: entries; index node; index root; or (a linear walk over an index) unknown, read-only."""

KIND_NAMES: Final = ("leaf", "index node", "index root", "unverified block")
DOTDOT_OFFSET: Final = 12
MIN_ENTRY: Final = dirent_size(1)
_REC_LEN: Final = DIR_ENTRY_2.field("rec_len")
EMPTY_HEAD: Final = DIR_ENTRY_2.pack(0, 0, 0, 0)


class DirEnt:
    """A used entry: byte offset in its block, name, inode number, file_type, bytes with its free space."""

    __slots__ = ("ftype", "ino", "name", "offset", "size")

    def __init__(self, offset: int, name: bytes, ino: int, ftype: int, size: int) -> None:
        self.offset = offset
        self.name = name
        self.ino = ino
        self.ftype = ftype
        self.size = size


class Placement:
    """An entry that is to be laid out in a block; `hash` is None where nobody needed it yet."""

    __slots__ = ("ftype", "hash", "ino", "name")

    def __init__(self, name: bytes, ino: int, ftype: int, hash_: int | None) -> None:
        self.name = name
        self.ino = ino
        self.ftype = ftype
        self.hash = hash_


class Owner(Protocol):
    """What a block needs to know of its directory."""

    @property
    def ino(self) -> int: ...
    @property
    def seed(self) -> int | None: ...  # checksum seed of the inode; None without metadata_csum
    @property
    def inodes_count(self) -> int: ...
    @property
    def max_levels(self) -> int: ...  # indirect_levels of an index is below this
    @property
    def any_bytes(self) -> bool: ...  # whether names can be any bytes (encrypted ones)
    @property
    def hash_in_entry(self) -> bool: ...  # whether entries have their hash behind their name


class DirBlock(MetaBlock):
    """A directory block. After `prepare` the index of its `kind` is there:

    leaf: `names` (name -> byte offset), `offsets` (all records, used or not, ascending), `room_at`/`room`
    (records with space for another one and the bytes free there, by offset), `hashes_of` (known hashes);
    node and root: `hashes` (first is 0: it has none on disk), `blocks` (logical), and for the root
    `hash_version` and `levels` (indirect_levels).
    """

    __slots__ = (
        "any_bytes",
        "blocks",
        "data",
        "hash_in_entry",
        "hash_version",
        "hashes",
        "hashes_of",
        "inodes_count",
        "kind",
        "lblk",
        "levels",
        "max_levels",
        "names",
        "offsets",
        "owner",
        "ready",
        "room",
        "room_at",
        "seed",
    )
    rank = RANK_DIRECTORY

    names: dict[bytes, int]
    offsets: list[int]
    room_at: list[int]
    room: list[int]
    hashes_of: dict[bytes, int]
    hashes: list[int]
    blocks: list[int]
    hash_version: int
    levels: int

    def __init__(self, pblk: int, owner: Owner, lblk: int, data: bytes | bytearray, kind: int) -> None:
        super().__init__(pblk)
        self.owner = owner.ino
        self.seed = owner.seed
        self.inodes_count = owner.inodes_count
        self.max_levels = owner.max_levels
        self.any_bytes = owner.any_bytes
        self.hash_in_entry = owner.hash_in_entry
        self.lblk = lblk
        self.data = bytearray(data)
        self.kind = kind
        self.ready = False

    @classmethod
    def load(cls, pblk: int, owner: Owner, lblk: int, raw: bytes, kind: int) -> DirBlock:
        """A block as read from the device. Raises BadChecksum, Corrupt (no room for the checksum)."""
        block = cls(pblk, owner, lblk, raw, kind)
        block._verify()
        return block

    # -- the MetaBlock part --------------------------------------------------------------------------------

    def encode(self) -> bytearray:
        if self.seed is not None:
            if self.kind == LEAF:
                value = checksum.dir_leaf_csum(self.data, self.seed)
                DIR_ENTRY_TAIL.put(self.data, len(self.data) - DIR_ENTRY_TAIL.size, det_checksum=value)
            else:
                assert self.kind != OPAQUE
                base, limit, count = self._count_limit()
                value = checksum.dx_node_csum(self.data, self.seed, base, count, limit)
                DX_TAIL.put(self.data, base + limit * DX_ENTRY.size, dt_checksum=value)
        return self.data

    def save(self) -> tuple[bytes, int]:
        return bytes(self.data), self.kind

    def restore(self, state: tuple[bytes, int]) -> None:
        self.data[:], self.kind = state
        self.ready = False

    # -- verification and parsing --------------------------------------------------------------------------

    def prepare(self, kind: int) -> None:
        """Make the index of `kind` available. Raises Corrupt when the block is something else or damaged."""
        if self.kind != kind:
            if self.kind == OPAQUE:
                self.kind = kind
                self.ready = False
                try:
                    self._verify()
                except Corrupt:
                    self.kind = OPAQUE
                    raise
            elif LEAF in (kind, self.kind):
                raise Corrupt("directory block", self._where(), KIND_NAMES[self.kind], KIND_NAMES[kind])
            else:
                raise BadIndex("directory index", self._where(), KIND_NAMES[self.kind], KIND_NAMES[kind])
        if not self.ready:
            if kind in (LEAF, OPAQUE):
                self._parse_leaf()
            else:
                self._parse_index()
            self.ready = True

    def _where(self, offset: int | None = None) -> str:
        at = "" if offset is None else f", byte {offset}"
        return f"inode {self.owner}, logical block {self.lblk}, block {self.pblk}{at}"

    def _verify(self) -> None:
        """Compare the checksum; what it covers depends on the kind."""
        if self.seed is None or self.kind == OPAQUE:
            return
        size = len(self.data)
        if self.kind == LEAF:
            at = size - DIR_ENTRY_TAIL.size
            zero1, rec_len, zero2, ftype, stored = DIR_ENTRY_TAIL.unpack_from(self.data, at)
            if zero1 or rec_len != DIR_ENTRY_TAIL.size or zero2 or ftype != EXT4_FT_DIR_CSUM:
                raise Corrupt("directory block", self._where(at), "no checksum tail", "one")
            want = checksum.dir_leaf_csum(self.data, self.seed)
        else:
            base, limit, count = self._count_limit()
            end = base + limit * DX_ENTRY.size
            if count > limit or end + DX_TAIL.size > size:
                raise BadIndex("directory index", self._where(base), f"limit {limit}, count {count}")
            stored = DX_TAIL.get(self.data, end, "dt_checksum")
            want = checksum.dx_node_csum(self.data, self.seed, base, count, limit)
        if stored != want:
            kind = f"checksum of directory {KIND_NAMES[self.kind]}"
            raise BadChecksum(kind, self._where(), f"{stored:#010x}", f"{want:#010x}")

    @property
    def leaf_end(self) -> int:
        """Bytes of a leaf that hold entries; an unverified block is taken as it is."""
        tail = self.seed is not None and self.kind == LEAF
        return len(self.data) - (DIR_ENTRY_TAIL.size if tail else 0)

    def _parse_leaf(self) -> None:
        # once for every leaf that is met, with some hundred entries each: what can be looked at for all together is
        data, end, size = bytes(self.data), self.leaf_end, len(self.data)
        inodes_count, values_from = self.inodes_count, DIR_ENTRY_2.values_from
        names: dict[bytes, int] = {}
        offsets: list[int] = []
        room_at: list[int] = []
        room: list[int] = []
        at = 0
        while at < end:
            if end - at < MIN_ENTRY:
                raise Corrupt("directory entry", self._where(at), f"{end - at} bytes left over", "none")
            ino, rec_len, name_len, _ = values_from(data, at)
            if size == 65536:
                rec_len = rec_len_from_disk(rec_len, size)
            free = rec_len - ((name_len + 11) & ~3)
            if rec_len & 3 or rec_len < MIN_ENTRY or free < 0 or at + rec_len > end:
                need = max(dirent_size(name_len), MIN_ENTRY)
                raise Corrupt("directory entry rec_len", self._where(at), rec_len, f"{need}..{end - at}")
            offsets.append(at)
            if ino:
                if ino > inodes_count:
                    raise Corrupt("directory entry inode", self._where(at), ino, f"at most {inodes_count}")
                name = data[at + 8 : at + 8 + name_len]
                if name not in names:
                    names[name] = at
            else:
                free = rec_len
            if free >= MIN_ENTRY:
                room_at.append(at)
                room.append(free)
            at += rec_len
        self._check_names(names)
        self.names, self.offsets, self.room_at, self.room = names, offsets, room_at, room
        self.hashes_of = {}

    def _check_names(self, names: dict[bytes, int]) -> None:
        """Raises Corrupt over a name that cannot be."""
        together = b"".join(names)
        if b"" in names or (not self.any_bytes and (b"/" in together or b"\0" in together)):
            for name, at in names.items():
                if not name or (not self.any_bytes and (b"/" in name or b"\0" in name)):
                    raise Corrupt("directory entry name", self._where(at), repr(name))

    def _count_limit(self) -> tuple[int, int, int]:
        """(byte offset of the index entries, their limit, their count), not validated."""
        base = DX_ROOT_ENTRIES_OFFSET if self.kind == ROOT else DX_NODE_ENTRIES_OFFSET
        limit, count = DX_COUNT_LIMIT.unpack_from(self.data, base)
        return base, limit, count

    @property
    def limit(self) -> int:
        """Index entries that fit a block of this kind."""
        base = DX_ROOT_ENTRIES_OFFSET if self.kind == ROOT else DX_NODE_ENTRIES_OFFSET
        tail = 0 if self.seed is None else DX_TAIL.size
        return int(len(self.data) - base - tail) // DX_ENTRY.size

    def _parse_index(self) -> None:
        base, limit, count = self._count_limit()
        if limit != self.limit:
            raise BadIndex("directory index limit", self._where(base), limit, self.limit)
        if not 0 < count <= limit:
            raise BadIndex("directory index count", self._where(base), count, f"1..{limit}")
        if self.kind == ROOT:
            self._parse_root()
        flat = list(DX_ENTRY.iter_unpack(self.data, base, count))
        hashes = [entry[0] for entry in flat]
        hashes[0] = 0
        if hashes != sorted(hashes):
            raise BadIndex("directory index hashes", self._where(base), "not ascending")
        self.hashes = hashes
        self.blocks = [entry[1] & DX_BLOCK_MASK for entry in flat]

    def _parse_root(self) -> None:
        root = DX_ROOT.unpack_from(self.data, 0)
        size = len(self.data)
        dots = (root.dot_rec_len, rec_len_from_disk(root.dotdot_rec_len, size))
        info = (root.reserved_zero, root.info_length)
        if dots != (DOTDOT_OFFSET, size - DOTDOT_OFFSET) or info != (0, DX_ROOT_INFO.size):
            raise BadIndex("directory index root", self._where(), "a damaged head")
        if not 0 < root.dotdot_inode <= self.inodes_count:
            raise Corrupt("directory entry inode", self._where(DOTDOT_OFFSET), root.dotdot_inode)
        if root.hash_version > DX_HASH_TEA and not (self.hash_in_entry and root.hash_version == DX_HASH_SIPHASH):
            raise BadIndex("directory hash version", self._where(), root.hash_version, f"0..{DX_HASH_TEA}")
        if root.unused_flags & 1:
            raise BadIndex("directory index flags", self._where(), root.unused_flags, 0)
        if root.indirect_levels >= self.max_levels:
            raise BadIndex(
                "directory index depth", self._where(), root.indirect_levels, f"below {self.max_levels}"
            )
        self.hash_version = root.hash_version
        self.levels = root.indirect_levels

    # -- entries of a leaf ---------------------------------------------------------------------------------

    def at(self, offset: int) -> tuple[int, int]:
        """(inode number, file_type) of the entry at byte `offset`."""
        ino, _, _, ftype = DIR_ENTRY_2.values_from(self.data, offset)
        return ino, ftype

    def listing(self) -> list[DirEnt]:
        """The used entries in the order of their offsets."""
        data, unpack, size = self.data, DIR_ENTRY_2.values_from, len(self.data)
        result = []
        for at in self.offsets:
            ino, rec_len, name_len, ftype = unpack(data, at)
            if ino:
                name = bytes(data[at + 8 : at + 8 + name_len])
                result.append(DirEnt(at, name, ino, ftype, rec_len_from_disk(rec_len, size)))
        return result

    def find_room(self, need: int) -> int | None:
        """The index in `room` of the first record with `need` bytes free (the kernel's first fit)."""
        for i, free in enumerate(self.room):
            if free >= need:
                return i
        return None

    def insert(self, slot: int, entry: Placement) -> None:
        """Add an entry where `find_room` said. The block must have been touched."""
        data, size = self.data, len(self.data)
        at, free = self.room_at[slot], self.room[slot]
        ino, _, name_len, _ = DIR_ENTRY_2.values_from(data, at)
        if ino:
            used = dirent_size(name_len)
            _REC_LEN.put(data, at, used)
            at += used
            self.offsets.insert(bisect_left(self.offsets, at), at)
        name = entry.name
        need = dirent_size(len(name))
        assert need <= free
        DIR_ENTRY_2.pack_into(data, at, entry.ino, rec_len_to_disk(free, size), len(name), entry.ftype)
        data[at + 8 : at + need] = name.ljust(need - 8, b"\0")
        if free - need >= MIN_ENTRY:
            self.room_at[slot] = at
            self.room[slot] = free - need
        else:
            del self.room_at[slot], self.room[slot]
        self.names[name] = at
        if entry.hash is not None:
            self.hashes_of[name] = entry.hash

    def remove(self, name: bytes) -> None:
        """Take out an entry; its space goes to the one before it. The block must have been touched."""
        data, size = self.data, len(self.data)
        at = self.names.pop(name)
        self.hashes_of.pop(name, None)
        rec_len = rec_len_from_disk(_REC_LEN.get(data, at), size)
        where = bisect_left(self.offsets, at)
        self._set_room(at, 0)
        if where == 0:
            data[at : at + rec_len] = bytes(rec_len)
            _REC_LEN.put(data, at, rec_len_to_disk(rec_len, size))
            self._set_room(at, rec_len)
            return
        del self.offsets[where]
        before = self.offsets[where - 1]
        ino, length, name_len, _ = DIR_ENTRY_2.values_from(data, before)
        length = rec_len_from_disk(length, size) + rec_len
        _REC_LEN.put(data, before, rec_len_to_disk(length, size))
        data[at : at + rec_len] = bytes(rec_len)
        self._set_room(before, length - (dirent_size(name_len) if ino else 0))

    def _set_room(self, at: int, free: int) -> None:
        i = bisect_left(self.room_at, at)
        known = i < len(self.room_at) and self.room_at[i] == at
        if free < MIN_ENTRY:
            if known:
                del self.room_at[i], self.room[i]
        elif known:
            self.room[i] = free
        else:
            self.room_at.insert(i, at)
            self.room.insert(i, free)

    def replace(self, offset: int, ino: int, ftype: int) -> None:
        """Point the entry at byte `offset` to another inode. The block must have been touched."""
        DIR_ENTRY_2.put(self.data, offset, inode=ino, file_type=ftype)

    def fill(self, entries: list[Placement]) -> None:
        """Make this a leaf that holds `entries`, packed, in this order. The block must have been touched."""
        size = len(self.data)
        self.kind = LEAF
        end = self.leaf_end
        data = bytearray(size)
        at, last = 0, -1
        offsets = []
        for entry in entries:
            name = entry.name
            need = dirent_size(len(name))
            DIR_ENTRY_2.pack_into(data, at, entry.ino, need, len(name), entry.ftype)
            data[at + 8 : at + 8 + len(name)] = name
            offsets.append(at)
            last = at
            at += need
        assert at <= end
        if last < 0:
            offsets.append(0)
            last = 0
        _REC_LEN.put(data, last, rec_len_to_disk(end - last, size))
        if end < size:
            DIR_ENTRY_TAIL.pack_into(data, end, 0, DIR_ENTRY_TAIL.size, 0, EXT4_FT_DIR_CSUM, 0)
        self.data[:] = data
        self.offsets = offsets
        self.names = {entry.name: offset for entry, offset in zip(entries, offsets, strict=False)}
        self.hashes_of = {entry.name: entry.hash for entry in entries if entry.hash is not None}
        free = end - at
        self.room_at, self.room = ([last], [free]) if free >= MIN_ENTRY else ([], [])
        self.ready = True

    def adopt(self, records: bytes | bytearray) -> None:
        """Make this a leaf of the records of another one, as they lie; the last gets what is left.

        The block must have been touched.
        """
        self.fill([])
        if not records:
            return
        size, end = len(self.data), self.leaf_end
        self.data[: len(records)] = records
        at = last = 0
        while at < len(records):
            last = at
            at += rec_len_from_disk(_REC_LEN.get(self.data, at), size)
        _REC_LEN.put(self.data, last, rec_len_to_disk(end - last, size))
        self.ready = False
        self.prepare(LEAF)

    # -- entries of an index -------------------------------------------------------------------------------

    def set_index(self, hashes: list[int], blocks: list[int]) -> None:
        """Replace all index entries. The block must have been touched."""
        base, _, _ = self._count_limit()
        count, limit = len(hashes), self.limit
        assert 0 < count <= limit
        for i in range(1, count):
            DX_ENTRY.pack_into(self.data, base + i * DX_ENTRY.size, hashes[i], blocks[i])
        DX_ENTRY.put(self.data, base, block=blocks[0])
        DX_COUNT_LIMIT.pack_into(self.data, base, limit, count)
        self.hashes = [0, *hashes[1:]]
        self.blocks = blocks
        self.ready = True

    def insert_index(self, where: int, hash_: int, block: int) -> None:
        """Add one index entry in front of number `where`. The block must have been touched."""
        base, limit, count = self._count_limit()
        assert 0 < where <= count < limit
        width = DX_ENTRY.size
        at, end = base + where * width, base + count * width
        self.data[at + width : end + width] = self.data[at:end]
        DX_ENTRY.pack_into(self.data, at, hash_, block)
        DX_COUNT_LIMIT.pack_into(self.data, base, limit, count + 1)
        self.hashes.insert(where, hash_)
        self.blocks.insert(where, block)

    def make_node(self) -> None:
        """Make this an inner node: one unused entry over the whole block, then index entries (none yet)."""
        self.kind = NODE
        self.data[:] = bytes(len(self.data))
        DX_NODE.put(self.data, 0, fake_rec_len=rec_len_to_disk(len(self.data), len(self.data)))
        self.ready = False

    def make_root(self, parent_ino: int, parent_ftype: int, hash_version: int, block: int) -> None:
        """Turn block 0 of a linear directory into an index root with one entry; '.' stays."""
        size = len(self.data)
        self.kind = ROOT
        self.data[DOTDOT_OFFSET:] = bytes(size - DOTDOT_OFFSET)
        DX_ROOT.put(
            self.data,
            0,
            dot_rec_len=DOTDOT_OFFSET,
            dotdot_inode=parent_ino,
            dotdot_rec_len=rec_len_to_disk(size - DOTDOT_OFFSET, size),
            dotdot_name_len=2,
            dotdot_file_type=parent_ftype,
            dotdot_name=b"..\0\0",
            hash_version=hash_version,
            info_length=DX_ROOT_INFO.size,
        )
        self.hash_version, self.levels = hash_version, 0
        self.set_index([0], [block])

    def add_level(self) -> None:
        """One more level of index below this root."""
        self.levels += 1
        DX_ROOT_INFO.put(self.data, DX_ROOT_INFO_OFFSET, indirect_levels=self.levels)
