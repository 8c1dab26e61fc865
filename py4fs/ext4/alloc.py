"""Allocation of blocks and inodes: policy and accounting.

Blocks are sought near a goal and in contiguous runs. Directories are spread with Orlov's rules, other inodes stay
near their parent (kernel: ialloc.c). No search visits every bitmap: full groups are skipped by their descriptor and
the number of bitmaps searched for a long run is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from functools import partial
from itertools import chain
from typing import Final

from bitarray import bitarray

from py4fs.errors import Corrupt, NoSpace
from py4fs.ext4.bitmap import find_free_run
from py4fs.ext4.dirhash import dirhash
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import Bitmap, GroupDesc, Groups
from py4fs.ext4.layout.group_desc import BG_BLOCK_UNINIT, BG_INODE_UNINIT
from py4fs.ext4.pins import PlanPins
from py4fs.ext4.superblock import Superblock
from py4fs.ext4.transaction import Operation, Reserve, Transaction
from py4fs.ext4.windows import LONG_BYTES, Windows

#: bitmaps searched for a run of the wanted length before the longest one found is taken
SEARCH_GROUPS: Final = 16
#: (flex) groups that Orlov's search looks at; the kernel looks at all
ORLOV_GROUPS: Final = 64
#: groups that may be looked at to keep two long files apart
APART_GROUPS: Final = 64
HASH_HALF_MD4: Final = 1


class Allocator:
    """Blocks and inodes of one volume."""

    def __init__(
        self,
        geometry: Geometry,
        groups: Groups,
        superblock: Superblock,
        pins: PlanPins,
        uninit_groups: bool,
        hash_seed: tuple[int, int, int, int],
    ) -> None:
        self._geometry = geometry
        self._groups = groups
        self._superblock = superblock
        self._pins = pins
        self._uninit = uninit_groups
        self._hash_seed = hash_seed
        #: blocks that only root may take (s_r_blocks_count)
        self.reserved_blocks = geometry.reserved_blocks
        #: blocks kept for extent splits when written data is converted (kernel: s_resv_clusters)
        clusters = geometry.blocks_count >> geometry.cluster_bits
        self.conversion_reserve = min(clusters // 50, 4096) << geometry.cluster_bits
        #: freed runs and metadata blocks that unlocked I/O may still cover, each with the youngest such plan
        self._limbo: list[tuple[int, list[tuple[int, int]], list[int]]] = []
        #: room kept in memory behind files that grow
        self.windows = Windows()
        #: clusters: the window of a long file
        self._long = max(LONG_BYTES >> geometry.block_bits + geometry.cluster_bits, 1)
        #: without a journal: freed inodes, with their transaction; until that has committed, the device may still have
        #: names that lead to them (kernel: recently_deleted)
        self.inodes_wait = True
        #: whether the inode table has a file of this number, whatever the bitmap says
        self.is_file: Callable[[int], bool] = _nobody
        self._waiting: dict[int, int] = {}
        #: told (first block, count) of freed metadata blocks before they can become anything else
        self.metadata_freed: list[Callable[[int, int], None]] = []
        #: told the runs (first block, count) that nobody needs any more, before they can be used again
        self.released: Callable[[list[tuple[int, int]]], None] | None = None

    def check_data_run(self, pblk: int, count: int, where: str) -> None:
        """Refuse block numbers that no file may own. Raises Corrupt."""
        self._groups.check_data_run(pblk, count, where)

    # -- blocks --------------------------------------------------------------------------------------------

    def new_blocks(
        self, tx: Operation, goal: int, want: int, limit: int = 1 << 48, *, owner: int = 0, ahead: int = 0
    ) -> tuple[int, int]:
        """Allocate up to ``want`` contiguous blocks near ``goal``; returns (first block, count >= 1).

        With bigalloc these are whole clusters: ``want`` is rounded up to them.
        ``limit``: only groups that lie below this block. ``owner``: the inode whose window may be used; a place is
        sought that has ``ahead`` more free blocks behind, which become its window. Raises NoSpace; damaged groups
        are passed over.
        """
        usable = self._superblock.free_blocks - self.kept_back(tx.reserve)
        if usable <= 0:
            raise NoSpace("no free blocks")
        geo = self._geometry
        want = min(geo.clusters(want), usable >> geo.cluster_bits, geo.clusters_per_group)
        if not want:
            raise NoSpace("no free blocks")
        ahead = min(ahead >> geo.cluster_bits, (usable >> geo.cluster_bits) - want, geo.clusters_per_group - want)
        if not geo.first_data_block < goal < geo.blocks_count:
            goal = geo.first_data_block + 1
        best = self._search(goal, want + ahead, limit, owner)
        if best is not None and ahead >= self._long:
            best = self._apart(best, goal, want + ahead, limit, owner)
        if best is None and len(self.windows):
            self.windows.clear()
            best = self._search(goal, want, limit, owner)
        if best is None:
            raise NoSpace("no free blocks")
        candidate, bitmap, start, length = best
        count = min(length, want)
        self._take(tx, candidate, bitmap, start, count)
        if owner:
            self.windows.put(owner, candidate, start + count, start + min(length, count + ahead))
        return geo.group_first_block(candidate) + (start << geo.cluster_bits), count << geo.cluster_bits

    def _search(self, goal: int, want: int, limit: int, owner: int) -> tuple[int, Bitmap, int, int] | None:
        """(group, bitmap, first bit, length) of the best run of free clusters, as far as it was looked for."""
        geo = self._geometry
        group, bit = geo.cluster_location(goal)
        best: tuple[int, Bitmap, int, int] | None = None
        searched = 0
        for step in range(geo.groups + 1):
            # the goal's group comes up a second time, to be searched from its start
            candidate = (group + step) % geo.groups
            if candidate in self._groups.damaged or geo.group_first_block(candidate) + geo.blocks_per_group > limit:
                continue
            try:
                if not self._groups.desc(candidate).free_blocks:
                    continue
                bitmap = self._groups.block_bitmap(candidate)
                free = self.windows.mask(candidate, bitmap.held, owner)
                run = self._find(free, candidate, bit if step == 0 else 0, want, step == 0)
                if run is not None:
                    first = geo.group_first_block(candidate) + (run[0] << geo.cluster_bits)
                    count = min(run[1], want) << geo.cluster_bits
                    self.check_data_run(first, count, f"group {candidate} block bitmap: free block")
            except Corrupt as exc:
                self._groups.condemn(candidate, exc)
                continue
            if run is not None and (best is None or run[1] > best[3]):
                best = (candidate, bitmap, *run)
                if run[1] >= want or (step == 0 and run[0] == bit):
                    break
            searched += 1
            if best is not None and searched >= SEARCH_GROUPS:
                break
        return best

    def _apart(
        self, found: tuple[int, Bitmap, int, int], goal: int, want: int, limit: int, owner: int
    ) -> tuple[int, Bitmap, int, int]:
        """A better place than ``found`` for a long file that has to begin anew where other long files grow.

        Two of them in one group would soon meet, and once more in the next; each gets two groups for itself, if there
        are such that are half empty. Cheap: nothing is searched for a file that goes on at its goal.
        """
        geo, windows, least = self._geometry, self.windows, self._long
        group = found[0]
        if (group, found[2]) == geo.cluster_location(goal) or not (
            windows.crowded(group, owner, least) or windows.crowded(group - 1, owner, least)
        ):
            return found
        place = windows.apart(self._roomy_groups(group), owner, least)
        if place is None or place == group:
            return found
        other = self._search(geo.group_first_block(place), want, limit, owner)
        return found if other is None or other[0] != place or other[3] < min(found[3], want) else other

    def _roomy_groups(self, first: int) -> Iterator[int]:
        """Some groups from ``first`` on that are at least half empty."""
        geo = self._geometry
        for step in range(min(geo.groups, APART_GROUPS)):
            group = (first + step) % geo.groups
            desc = self._groups.sound_desc(group)
            if desc is not None and desc.free_blocks >= geo.clusters_per_group // 2:
                yield group

    def kept_back(self, reserve: Reserve) -> int:
        """Free blocks that an operation with this ``reserve`` may not take."""
        if reserve is Reserve.ALL:
            return 0
        return self.conversion_reserve + (0 if reserve is Reserve.ROOT else self.reserved_blocks)

    def _find(self, held: bitarray, group: int, start: int, want: int, at_goal: bool) -> tuple[int, int] | None:
        # of a cluster that sticks out at the end nothing is used
        limit = self._geometry.group_block_count(group) >> self._geometry.cluster_bits
        if at_goal and start < limit and not held[start]:
            # continuing the previous extent beats a longer run elsewhere
            end = held.find(True, start, min(start + want, limit))
            length = (min(start + want, limit) if end < 0 else end) - start
            if length >= min(want, 8) or start + length == limit:
                return start, length
        return find_free_run(held, start, limit, want)

    def _take(self, tx: Operation, group: int, bitmap: Bitmap, start: int, count: int) -> None:
        desc = self._groups.desc(group)
        tx.touch(bitmap)
        tx.touch(desc)
        tx.touch(self._superblock)
        bitmap.take(start, count)
        desc.flags &= ~BG_BLOCK_UNINIT
        desc.free_blocks -= count
        self._superblock.free_blocks -= count << self._geometry.cluster_bits

    def new_block(self, tx: Operation, goal: int) -> int:
        """One metadata block near ``goal``. Raises NoSpace."""
        return self.new_blocks(tx, goal, 1)[0]

    def free_blocks(self, tx: Operation, first: int, count: int) -> None:
        """Free a run; reusable once the transaction has committed and no I/O plan covers it.

        With bigalloc all clusters go that the run touches.
        Raises Corrupt when a block of it is already free or belongs to metadata.
        """
        geo = self._geometry
        self._groups.check_data_run(first, count, "freeing blocks")
        first, count = geo.whole_clusters(first, count)
        count >>= geo.cluster_bits
        while count:
            group, bit = geo.cluster_location(first)
            part = min(count, geo.group_cluster_count(group) - bit)
            bitmap = self._groups.block_bitmap(group)
            if bitmap.bits.find(False, bit, bit + part) >= 0:
                raise Corrupt("freeing a free block", f"group {group} block bitmap", f"blocks {first}+{part}", "in use")
            desc = self._groups.desc(group)
            tx.touch(bitmap)
            tx.touch(desc)
            tx.touch(self._superblock)
            bitmap.give_back(bit, part)
            desc.free_blocks += part
            self._superblock.free_blocks += part << geo.cluster_bits
            tx.free_run(first, part << geo.cluster_bits)
            first += part << geo.cluster_bits
            count -= part

    def mark_blocks(self, tx: Operation, first: int, count: int, used: bool) -> int:
        """Make a run used or free, whatever it was; free blocks can be taken at once. Returns how many changed.

        With bigalloc all clusters change that the run touches.
        For replaying a journal, where no older state can come back. Raises Corrupt, DeviceError.
        """
        geo = self._geometry
        changed = 0
        first, count = geo.whole_clusters(first, count)
        count >>= geo.cluster_bits
        while count:
            group, bit = geo.cluster_location(first)
            part = min(count, geo.group_cluster_count(group) - bit)
            bitmap = self._groups.block_bitmap(group)
            change = bitmap.bits.count(not used, bit, bit + part)
            if change:
                desc = self._groups.desc(group)
                tx.touch(bitmap)
                tx.touch(desc)
                tx.touch(self._superblock)
                bitmap.bits[bit : bit + part] = used
                bitmap.held[bit : bit + part] = used
                desc.flags &= ~BG_BLOCK_UNINIT
                desc.free_blocks += -change if used else change
                self._superblock.free_blocks += (-change if used else change) << geo.cluster_bits
            changed += change << geo.cluster_bits
            first += part << geo.cluster_bits
            count -= part
        return changed

    def release_freed(self, transaction: Transaction) -> None:
        """The transaction has committed: what it freed may be reused, unless unlocked I/O covers it still."""
        if self._waiting:
            self._waiting = {ino: tid for ino, tid in self._waiting.items() if tid > transaction.tid}
        if not transaction.freed:
            return
        youngest = self._pins.youngest()
        if youngest is None:
            self._release(transaction.freed, transaction.forgotten)
        else:
            self._limbo.append((youngest, transaction.freed, transaction.forgotten))

    @property
    def in_limbo(self) -> bool:
        """Whether freed blocks wait for I/O plans in flight to end."""
        return bool(self._limbo)

    def unpinned(self) -> None:
        """Called when the oldest I/O plan in flight has ended."""
        oldest = self._pins.oldest()
        while self._limbo and (oldest is None or self._limbo[0][0] < oldest):
            _, runs, forgotten = self._limbo.pop(0)
            self._release(runs, forgotten)

    def _release(self, runs: list[tuple[int, int]], forgotten: list[int]) -> None:
        if self.metadata_freed:
            for first, count in _runs_of(forgotten):
                for listener in self.metadata_freed:
                    listener(first, count)
        if self.released is not None:
            self.released(runs)
        for first, count in runs:
            group, bit = self._geometry.cluster_location(first)
            self._groups.block_bitmap(group).release(bit, count >> self._geometry.cluster_bits)

    # -- inodes --------------------------------------------------------------------------------------------

    def new_inode(self, tx: Operation, parent: int, is_dir: bool, name: bytes, top_level: bool) -> int:
        """Allocate an inode number near the directory ``parent``. Raises NoSpace."""
        if not self._superblock.free_inodes:
            raise NoSpace("no free inodes")
        home = self._geometry.inode_location(parent)[0]
        preferred = self._orlov(home, name, top_level) if is_dir else self._near(home, name)
        found = self._find_inode(preferred, self._waiting) or (self._waiting and self._find_inode(preferred, {}))
        if not found:
            raise NoSpace("no free inodes")
        desc, bitmap, bit = found
        self._take_inode(tx, desc, bitmap, bit, is_dir)
        return desc.group * self._geometry.inodes_per_group + bit + 1

    def _find_inode(self, preferred: int, spared: Container[int]) -> tuple[GroupDesc, Bitmap, int] | None:
        """A free bit of the first group from ``preferred`` on that has one; none of the inodes ``spared``."""
        groups, per_group = self._geometry.groups, self._geometry.inodes_per_group
        for step in range(groups):
            group = (preferred + step) % groups
            if group in self._groups.damaged:
                continue
            try:
                desc = self._groups.desc(group)
                if not desc.free_inodes:
                    continue
                bitmap = self._groups.inode_bitmap(group)
                first = max(self._geometry.first_ino - 1 - group * per_group, 0)
                bit = bitmap.bits.find(False, first, per_group)
                while bit >= 0 and group * per_group + bit + 1 in spared:
                    bit = bitmap.bits.find(False, bit + 1, per_group)
                if bit >= 0:
                    self._check_unused(desc, int(bit))
                    return desc, bitmap, int(bit)
            except Corrupt as exc:
                self._groups.condemn(group, exc)
        return None

    def _check_unused(self, desc: GroupDesc, bit: int) -> None:
        """A bitmap that says of a file that it is none must not cost that file. Raises Corrupt, DeviceError."""
        per_group = self._geometry.inodes_per_group
        ino = desc.group * per_group + bit + 1
        # beyond that the table may never have been written
        if not (self._uninit and bit >= per_group - desc.itable_unused) and self.is_file(ino):
            raise Corrupt("inode bitmap", f"group {desc.group}", f"inode {ino} free", "in use, as its table says")

    def _take_inode(self, tx: Operation, desc: GroupDesc, bitmap: Bitmap, bit: int, is_dir: bool) -> None:
        tx.touch(bitmap)
        tx.touch(desc)
        tx.touch(self._superblock)
        bitmap.bits[bit] = True
        if self._uninit:
            per_group = self._geometry.inodes_per_group
            if desc.flags & BG_INODE_UNINIT:
                desc.flags &= ~BG_INODE_UNINIT
                desc.itable_unused = per_group
            desc.itable_unused = min(desc.itable_unused, per_group - bit - 1)
            if desc.flags & BG_BLOCK_UNINIT:
                # the kernel initialises the block bitmap too, so that a lost descriptor can be rebuilt
                tx.touch(self._groups.block_bitmap(desc.group))
                desc.flags &= ~BG_BLOCK_UNINIT
        desc.free_inodes -= 1
        self._superblock.free_inodes -= 1
        if is_dir:
            desc.used_dirs += 1

    def take_inode(self, tx: Operation, ino: int, is_dir: bool) -> None:
        """Make a certain free inode used, as the journal says that it was. Raises Corrupt, DeviceError."""
        group, bit = self._geometry.inode_location(ino)
        bitmap = self._groups.inode_bitmap(group)
        assert not bitmap.bits[bit], ino
        self._take_inode(tx, self._groups.desc(group), bitmap, bit, is_dir)

    def free_inode(self, tx: Operation, ino: int, is_dir: bool) -> None:
        """Raises Corrupt when the inode is already free."""
        group, bit = self._geometry.inode_location(ino)
        bitmap = self._groups.inode_bitmap(group)
        if not bitmap.bits[bit]:
            raise Corrupt("freeing a free inode", f"group {group} inode bitmap", f"inode {ino}", "in use")
        desc = self._groups.desc(group)
        tx.touch(bitmap)
        tx.touch(desc)
        tx.touch(self._superblock)
        bitmap.bits[bit] = False
        desc.free_inodes += 1
        self._superblock.free_inodes += 1
        if self.inodes_wait:
            self._waiting[ino] = tx.transaction.tid
            tx.on_abort(partial(self._waiting.__delitem__, ino))
        if is_dir:
            desc.used_dirs = max(desc.used_dirs - 1, 0)

    def inode_in_use(self, ino: int) -> bool:
        group, bit = self._geometry.inode_location(ino)
        return bool(self._groups.inode_bitmap(group).bits[bit])

    def data_goal(self, ino: int, is_reg: bool) -> int:
        """Where an inode's first block should lie (kernel: ext4_inode_to_goal_block)."""
        geo = self._geometry
        group = geo.inode_location(ino)[0]
        if geo.groups_per_flex >= 4:
            # the first group of a flex group is left to directories and metadata
            group &= ~(geo.groups_per_flex - 1)
            if is_reg and group + 1 < geo.groups:
                group += 1
        return geo.group_first_block(group)

    # -- placement of inodes (kernel: find_group_orlov, find_group_other) ----------------------------------

    def _stats(self, index: int, size: int) -> tuple[int, int, int]:
        """(free inodes, free clusters, directories) of flex group ``index``."""
        inodes = blocks = dirs = 0
        for group in range(index * size, min((index + 1) * size, self._geometry.groups)):
            desc = self._groups.sound_desc(group)
            if desc is not None:
                inodes += desc.free_inodes
                blocks += desc.free_blocks
                dirs += desc.used_dirs
        return inodes, blocks, dirs

    def _orlov(self, home: int, name: bytes, top_level: bool) -> int:
        geo = self._geometry
        size = geo.groups_per_flex
        units = -(-geo.groups // size)
        average_inodes = self._superblock.free_inodes // units
        average_blocks = (self._superblock.free_blocks >> geo.cluster_bits) // units
        start = home // size
        span = min(units, ORLOV_GROUPS)
        if top_level:
            start = dirhash(name, HASH_HALF_MD4, self._hash_seed)[0] % units
            best, best_dirs = -1, geo.inodes_per_group
            for step in range(span):
                unit = (start + step) % units
                inodes, blocks, dirs = self._stats(unit, size)
                if inodes and dirs < best_dirs and inodes >= average_inodes and blocks >= average_blocks:
                    best, best_dirs = unit, dirs
            return best * size if best >= 0 else home
        max_dirs = self._stats(start, size)[2] + geo.inodes_per_group * size // 16
        min_inodes = max(average_inodes - geo.inodes_per_group * size // 4, 1)
        min_blocks = average_blocks - geo.clusters_per_group * size // 4
        for step in range(span):
            unit = (start + step) % units
            inodes, blocks, dirs = self._stats(unit, size)
            if dirs < max_dirs and inodes >= min_inodes and blocks >= min_blocks:
                return unit * size if unit != start else home
        return home

    def _near(self, home: int, name: bytes) -> int:
        desc = self._groups.sound_desc(home)
        if desc is not None and desc.free_inodes:
            return home
        geo = self._geometry
        first = home - home % geo.groups_per_flex
        for group in chain(range(home + 1, min(first + geo.groups_per_flex, geo.groups)), range(first, home)):
            desc = self._groups.sound_desc(group)
            if desc is not None and desc.free_inodes:
                return group
        if geo.groups_per_flex > 1:
            return self._orlov((first + geo.groups_per_flex) % geo.groups, name, False)
        group, step = home, 1
        while step < geo.groups:
            group = (group + step) % geo.groups
            desc = self._groups.sound_desc(group)
            if desc is not None and desc.free_inodes and desc.free_blocks:
                return group
            step <<= 1
        return home


def _nobody(_ino: int) -> bool:
    return False


def _runs_of(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs that a list of block numbers in any order makes up."""
    first = count = 0
    for block in sorted(set(blocks)):
        if count and block == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = block, 1
    if count:
        yield first, count
