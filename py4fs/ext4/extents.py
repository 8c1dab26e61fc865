"""The extent tree of one inode: lookup, insert with split and growth, merge, conversion, removal.

Layout decisions follow the kernel's (extents.c: where a full leaf is split, when neighbours merge, when a small tree
returns into the inode), so that block counts come out the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial
from typing import Final

from py4fs.errors import Corrupt, NoSpace
from py4fs.ext4.blockmap import MapContext, Mapper
from py4fs.ext4.clusters import cluster_of, still_used
from py4fs.ext4.extent_node import ENTRY_SIZE, HEADER_SIZE, Extent, ExtentNode, parse_node
from py4fs.ext4.inode import IBLOCK_SIZE, Inode
from py4fs.ext4.layout.extent import EXT_INIT_MAX_LEN, EXT_MAX_BLOCKS, EXT_MAX_DEPTH, EXT_UNWRITTEN_MAX_LEN
from py4fs.ext4.runs import Run, RunState
from py4fs.ext4.transaction import Operation

#: extents hold 48 bits of block number
MAX_PBLK: Final = 1 << 48
#: objects that the end of a removal may touch besides: superblock, orphan list, attribute block, inode bitmap
LAST_CREDITS: Final = 10
ROOT_LIMIT: Final = (IBLOCK_SIZE - HEADER_SIZE) // ENTRY_SIZE


Step = tuple[ExtentNode, int]
"""A node on the way to a leaf and the entry taken there (-1: before the first)."""


class ExtentTree(Mapper):
    """Kept in ``inode.mapper``; only the root is held here, other nodes come from the buffer cache."""

    __slots__ = ("_ctx", "_inode", "_root")

    @property
    def has_unwritten(self) -> bool:
        return True

    @property
    def max_blocks(self) -> int:
        return EXT_MAX_BLOCKS

    def __init__(self, ctx: MapContext, inode: Inode) -> None:
        """Parse the root in the inode. Raises Corrupt."""
        self._ctx = ctx
        self._inode = inode
        self._root = parse_node(
            inode.iblock,
            pblk=0,
            depth=None,
            block_size=ctx.block_size,
            seed=None,
            where=f"inode {inode.ino} extent root",
        )
        self._check_leaf(self._root)

    @staticmethod
    def init_root(inode: Inode) -> None:
        """Give a new inode an empty tree."""
        inode.iblock[:] = _EMPTY_ROOT

    # -- reading -------------------------------------------------------------------------------------------

    def _check_leaf(self, node: ExtentNode) -> None:
        for extent in node.extents:
            self._ctx.groups.check_data_run(
                extent.pblk, extent.count, f"inode {self._inode.ino} extent at block {extent.lblk}"
            )

    def _child(self, node: ExtentNode, index: int) -> ExtentNode:
        child = self._ctx.buffers.get(node.children[index], ExtentNode, partial(self._parse_child, node.depth - 1))
        # looked at each time, for on a damaged image a node may be named twice
        low = node.keys[index]
        high = node.keys[index + 1] if index + 1 < len(node.keys) else 1 << 32
        if child.depth != node.depth - 1 or (child.keys and not low <= child.keys[0] <= child.last < high):
            where = f"inode {self._inode.ino} extent block {child.pblk}"
            got = f"depth {child.depth}, blocks {child.keys[0] if child.keys else low}..{child.last}"
            raise Corrupt("extent node", where, got, f"depth {node.depth - 1}, blocks {low}..{high - 1}")
        return child

    def _parse_child(self, depth: int, pblk: int, raw: bytes) -> ExtentNode:
        ctx = self._ctx
        where = f"inode {self._inode.ino} extent block {pblk}"
        ctx.groups.check_data_run(pblk, 1, where)
        node = parse_node(
            raw,
            pblk=pblk,
            depth=depth,
            block_size=ctx.block_size,
            seed=self._inode.seed if ctx.metadata_csum else None,
            where=where,
        )
        self._check_leaf(node)
        return node

    def _path(self, lblk: int) -> list[Step]:
        """From the root to the leaf that holds, or would hold, ``lblk``."""
        node = self._root
        path: list[Step] = []
        while True:
            index = bisect_right(node.keys, lblk) - 1
            if not node.depth:
                path.append((node, index))
                return path
            index = max(index, 0)
            path.append((node, index))
            node = self._child(node, index)

    @staticmethod
    def _next_key(path: list[Step]) -> int:
        """The first logical block that the leaves behind this one may hold."""
        for node, index in reversed(path[:-1]):
            if index + 1 < len(node.keys):
                return node.keys[index + 1]
        return EXT_MAX_BLOCKS

    def run_at(self, lblk: int) -> Run:
        """The whole extent or hole that ``lblk`` lies in. Raises Corrupt, DeviceError."""
        path = self._path(lblk)
        return self._runs_from(path, lblk, 1)[0]

    def window(self, lblk: int, limit: int) -> list[Run]:
        """Up to ``limit`` consecutive whole runs from the one at ``lblk`` on, within this leaf and the hole behind."""
        return self._runs_from(self._path(lblk), lblk, limit)

    def _runs_from(self, path: list[Step], lblk: int, limit: int) -> list[Run]:
        leaf, index = path[-1]
        extents = leaf.extents
        runs: list[Run] = []
        if index >= 0 and lblk < extents[index].end:
            at = extents[index].lblk
        else:
            at = extents[index].end if index >= 0 else self._hole_start(path)
            index += 1
        behind = self._next_key(path)
        while len(runs) < limit and at < behind:
            if index < len(extents) and extents[index].lblk == at:
                extent = extents[index]
                state = RunState.UNWRITTEN if extent.unwritten else RunState.MAPPED
                runs.append(Run(at, extent.count, extent.pblk, state))
                at += extent.count
                index += 1
            else:
                end = extents[index].lblk if index < len(extents) else behind
                runs.append(Run(at, end - at, 0, RunState.HOLE))
                at = end
        return runs

    @staticmethod
    def _hole_start(path: list[Step]) -> int:
        """Where a hole in front of a leaf's first extent is taken to begin: at the leaf's key."""
        for node, index in reversed(path[:-1]):
            if index > 0:
                return node.keys[index]
        return 0

    # -- changing ------------------------------------------------------------------------------------------

    def _touch(self, tx: Operation, node: ExtentNode) -> None:
        tx.touch(self._inode if node is self._root else node)

    def _changed(self, node: ExtentNode) -> None:
        """The root is encoded at once: undo and commit see the inode only."""
        if node is self._root:
            self._inode.iblock[:] = node.pack(IBLOCK_SIZE)

    def _goal(self, path: list[Step], lblk: int) -> int:
        """Kernel: ext4_ext_find_goal."""
        leaf, index = path[-1]
        if leaf.extents:
            near = leaf.extents[max(index, 0)]
            return near.pblk + lblk - near.lblk if lblk >= near.lblk else max(near.pblk - (near.lblk - lblk), 0)
        return self._ctx.alloc.data_goal(self._inode.ino, self._inode.is_reg)

    def allocate(self, tx: Operation, lblk: int, count: int, *, unwritten: bool) -> list[tuple[int, int]]:
        """Map every hole of [lblk, lblk+count); returns the new runs (first physical block, count).

        Raises NoSpace, Corrupt, DeviceError.
        """
        new: list[tuple[int, int]] = []
        end = lblk + count
        limit = EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN
        while lblk < end:
            path = self._path(lblk)
            run = self._runs_from(path, lblk, 1)[0]
            stop = min(run.lblk + run.count, end)
            if run.state is RunState.HOLE:
                leaf, index = path[-1]
                continues = index >= 0 and leaf.extents[index].end == lblk
                want = min(stop - lblk, limit)
                ahead = self._ctx.lookahead(self._inode, lblk, continues, want, run.lblk + run.count - lblk)
                pblk, got = self._fill(tx, path, lblk, want, unwritten, ahead)
                new.append((pblk, got))
                stop = lblk + got
            lblk = stop
        return new

    def allocate_run(self, tx: Operation, lblk: int, count: int) -> None:
        """Give the hole at ``lblk`` one run of up to ``count`` unwritten blocks. Raises NoSpace, Corrupt."""
        self._fill(tx, self._path(lblk), lblk, min(count, EXT_UNWRITTEN_MAX_LEN), True)

    def _fill(
        self, tx: Operation, path: list[Step], lblk: int, want: int, unwritten: bool, ahead: int = 0
    ) -> tuple[int, int]:
        if self._ctx.ratio > 1:
            pblk, got = self._fill_clusters(tx, path, lblk, want, ahead)
        else:
            pblk, got = self._ctx.new_blocks(tx, self._inode, self._goal(path, lblk), want, MAX_PBLK, ahead)
        self._insert(tx, path, Extent(lblk, got, pblk, unwritten))
        return pblk, got

    # -- clusters (bigalloc): one of the file's has one of the device's, wherever a block of it is mapped --------

    def _fill_clusters(self, tx: Operation, path: list[Step], lblk: int, want: int, ahead: int) -> tuple[int, int]:
        """Blocks for the hole at ``lblk``: those of a cluster that the file has already, else of new ones.

        What is asked for may reach into a cluster that the file has; that much is left to the next call.
        """
        ratio = self._ctx.ratio
        inside = lblk % ratio
        known = cluster_of(self.run_at, ratio, lblk, self._inode.ino)
        if known is not None:
            return known + inside, min(want, ratio - inside)
        behind = self._runs_from(path, lblk, 1)[0].end
        want = min(want, max(behind - behind % ratio, lblk - inside + ratio) - lblk)
        pblk, got = self._ctx.new_blocks(
            tx, self._inode, max(self._goal(path, lblk) - inside, 0), inside + want, MAX_PBLK, ahead
        )
        return pblk + inside, min(got - inside, want)

    def _insert(self, tx: Operation, path: list[Step], new: Extent) -> None:
        """Add an extent where there is a hole (kernel: ext4_ext_insert_extent)."""
        leaf, index = path[-1]
        self._touch(tx, leaf)
        if index >= 0 and _can_merge(leaf.extents[index], new):
            left = leaf.extents[index]
            leaf.set_extent(index, left.sized(left.count + new.count))
        elif index + 1 < len(leaf.extents) and _can_merge(new, leaf.extents[index + 1]):
            right = leaf.extents[index + 1]
            leaf.set_extent(index + 1, new.sized(new.count + right.count))
            index += 1
        else:
            if leaf.full:
                path = self._make_room(tx, path, new.lblk)
                leaf, index = path[-1]
                self._touch(tx, leaf)
            index += 1
            leaf.put_extent(index, new)
        self._fix_keys(tx, path)
        self._merge_around(tx, leaf, index)
        self._changed(leaf)
        self._merge_up(tx)

    def _merge_around(self, tx: Operation, leaf: ExtentNode, index: int) -> None:
        """Join the extent at ``index`` with its neighbours where they continue each other."""
        if index + 1 < len(leaf.extents) and _can_merge(leaf.extents[index], leaf.extents[index + 1]):
            this = leaf.extents[index]
            leaf.set_extent(index, this.sized(this.count + leaf.extents[index + 1].count))
            leaf.pop(index + 1)
        if index > 0 and _can_merge(leaf.extents[index - 1], leaf.extents[index]):
            this = leaf.extents[index - 1]
            leaf.set_extent(index - 1, this.sized(this.count + leaf.extents[index].count))
            leaf.pop(index)

    def _merge_up(self, tx: Operation) -> None:
        """A tree of one leaf that fits the inode returns there (kernel: ext4_ext_try_to_merge_up)."""
        root = self._root
        if root.depth != 1 or len(root.children) != 1:
            return
        leaf = self._child(root, 0)
        if len(leaf.extents) > ROOT_LIMIT:
            return
        tx.touch(self._inode)
        root.depth = 0
        root.children = []
        root.keys = leaf.keys.copy()
        root.extents = leaf.extents.copy()
        self._changed(root)
        self._ctx.free_node(tx, self._inode, leaf.pblk)

    def _fix_keys(self, tx: Operation, path: list[Step]) -> None:
        """Index keys must not lie above the first key below them (kernel: ext4_ext_correct_indexes)."""
        child = path[-1][0]
        for node, index in reversed(path[:-1]):
            if not child.keys or node.keys[index] <= child.keys[0]:
                return
            self._touch(tx, node)
            node.keys[index] = child.keys[0]
            self._changed(node)
            child = node

    def _new_node(self, tx: Operation, depth: int) -> ExtentNode:
        """A block for a node, where directories have theirs: near the data it would be in a growing file's way."""
        ctx = self._ctx
        pblk, _ = ctx.new_blocks(tx, self._inode, ctx.alloc.data_goal(self._inode.ino, False), 1, MAX_PBLK)
        limit = (ctx.block_size - HEADER_SIZE) // ENTRY_SIZE
        node = ExtentNode(pblk, depth, limit, ctx.block_size, self._inode.seed if ctx.metadata_csum else None)
        ctx.buffers.create(tx, node)
        return node

    def _make_room(self, tx: Operation, path: list[Step], lblk: int) -> list[Step]:
        """Make the leaf for ``lblk`` have a free entry; returns the new path.

        The next leaf is used when it has room, else the lowest level with room takes a split, else the tree grows.
        """
        leaf = path[-1][0]
        if leaf.keys and lblk > leaf.keys[-1]:
            behind = self._next_key(path)
            if behind < EXT_MAX_BLOCKS:
                other = self._path(behind)
                if not other[-1][0].full:
                    return [*other[:-1], (other[-1][0], -1)]
        level = len(path) - 2
        while level >= 0 and path[level][0].full:
            level -= 1
        if level < 0:
            self._grow(tx)
            path = self._path(lblk)
            if not path[-1][0].full:
                return path
            level = 0
        self._split(tx, path, level, lblk)
        return self._path(lblk)

    def _grow(self, tx: Operation) -> None:
        """Push the root's entries down into a block (kernel: ext4_ext_grow_indepth)."""
        root = self._root
        if root.depth >= EXT_MAX_DEPTH:
            raise NoSpace(f"inode {self._inode.ino}: extent tree at its largest depth")
        tx.touch(self._inode)
        node = self._new_node(tx, root.depth)
        root.move_tail(0, node)
        root.depth += 1
        root.put_child(0, node.keys[0] if node.keys else 0, node.pblk)
        self._changed(root)

    def _split(self, tx: Operation, path: list[Step], level: int, lblk: int) -> None:
        """Split the nodes below ``level`` behind the insertion point (kernel: ext4_ext_split)."""
        for node, index in path[:-1]:
            if node.keys[index] > lblk:  # in front of everything, which goes: only what is to come will stay
                self._touch(tx, node)
                node.keys[index] = lblk
                self._changed(node)
        leaf, index = path[-1]
        border = leaf.keys[index + 1] if index + 1 < len(leaf.keys) else lblk
        below: int | None = None
        for depth in range(len(path) - 1, level, -1):
            node, index = path[depth]
            new = self._new_node(tx, node.depth)
            self._touch(tx, node)
            node.move_tail(index + 1, new)
            if below is not None:
                new.put_child(0, border, below)
            self._changed(node)
            below = new.pblk
        assert below is not None, "a split has at least the leaf to split"
        node, index = path[level]
        self._touch(tx, node)
        node.put_child(index + 1, border, below)
        self._changed(node)

    def convert(self, tx: Operation, lblk: int, count: int) -> None:
        """Turn the unwritten part of [lblk, lblk+count) into written. Raises NoSpace, Corrupt, DeviceError."""
        self._set_state(tx, lblk, lblk + count, False, count)

    def mark_unwritten(self, tx: Operation, lblk: int, end: int, budget: int) -> int:
        """Turn the written part of [lblk, end) into unwritten, at most ``budget`` extents; returns where it stopped."""
        return self._set_state(tx, lblk, end, True, budget)

    def _set_state(self, tx: Operation, lblk: int, end: int, unwritten: bool, budget: int) -> int:
        limit = EXT_UNWRITTEN_MAX_LEN if unwritten else EXT_INIT_MAX_LEN
        while lblk < end:
            path = self._path(lblk)
            leaf, index = path[-1]
            if index < 0 or lblk >= leaf.extents[index].end:
                lblk = self._runs_from(path, lblk, 1)[0].end
                continue
            extent = leaf.extents[index]
            stop = min(extent.end, end, lblk + limit)
            if extent.unwritten is not unwritten:
                if not budget:
                    break
                budget -= 1
                self._set_part(tx, path, lblk, stop - lblk, unwritten)
            lblk = stop
        self._merge_up(tx)
        return min(lblk, end)

    def _set_part(self, tx: Operation, path: list[Step], lblk: int, count: int, unwritten: bool) -> None:
        """Change the state of a part of the extent that ``path`` ends at."""
        leaf, index = path[-1]
        old = leaf.extents[index]
        self._touch(tx, leaf)
        head = lblk - old.lblk
        part = Extent(lblk, count, old.pblk + head, unwritten)
        tail = Extent(lblk + count, old.count - head - count, part.pblk + count, old.unwritten)
        before = leaf.extents[index - 1] if index else None
        if not head and before is not None and _can_merge(before, part):
            # the usual case, a file written in order: grow the written extent, shrink or drop the unwritten one
            leaf.set_extent(index - 1, before.sized(before.count + count))
            if tail.count:
                leaf.set_extent(index, tail)
            else:
                leaf.pop(index)
                self._merge_around(tx, leaf, index - 1)
            self._changed(leaf)
            return
        if not head and not tail.count:
            leaf.set_extent(index, part)
            self._merge_around(tx, leaf, index)
            self._changed(leaf)
            return
        pieces = [old.sized(head)] if head else []
        pieces.append(part)
        if tail.count:
            pieces.append(tail)
        leaf.set_extent(index, pieces[0])
        self._changed(leaf)
        for piece in pieces[1:]:
            self._insert(tx, self._path(piece.lblk), piece)
        if not head:
            path = self._path(lblk)
            leaf, index = path[-1]
            self._touch(tx, leaf)
            self._merge_around(tx, leaf, index)
            self._changed(leaf)

    def remove(self, tx: Operation, start: int, end: int, budget: int) -> bool:
        """Unmap [start, end) from its end backwards, at most ``budget`` extents; True when nothing is left there.

        Freed blocks go back to the allocator. Raises NoSpace (a split needed a node), Corrupt, DeviceError.
        """
        most = budget
        while budget > 0:
            path = self._path(end - 1)
            leaf, index = path[-1]
            if index < 0:
                previous = self._previous_leaf(path)
                if previous is None:
                    return True
                end = previous
                if end <= start:
                    return True
                continue
            extent = leaf.extents[index]
            if extent.end <= start:
                return True
            if budget < most and not self._has_credits(tx, path, extent):
                return False
            self._cut(tx, path, max(start, extent.lblk), min(end, extent.end))
            end = max(extent.lblk, start)
            budget -= 1
            if end <= start:
                return True
        return False

    def _has_credits(self, tx: Operation, path: list[Step], extent: Extent) -> bool:
        """Whether the operation may still touch what removing an extent needs: bitmaps, descriptors, nodes."""
        groups = extent.count // self._ctx.groups.blocks_per_group + 2
        return tx.touched_count + 2 * groups + 3 * len(path) + LAST_CREDITS <= tx.credits

    @staticmethod
    def _previous_leaf(path: list[Step]) -> int | None:
        """The end (exclusive) of what leaves in front of this one can hold; None when it is the first."""
        for node, index in reversed(path[:-1]):
            if index > 0:
                return node.keys[index]
        return None

    def _cut(self, tx: Operation, path: list[Step], start: int, end: int) -> None:
        """Remove [start, end), which lies inside the extent that ``path`` ends at."""
        leaf, index = path[-1]
        old = leaf.extents[index]
        self._touch(tx, leaf)
        tx.touch(self._inode)
        head, tail = start - old.lblk, old.end - end
        rest = Extent(end, tail, old.pblk + end - old.lblk, old.unwritten)
        if head:
            leaf.set_extent(index, old.sized(head))
            self._changed(leaf)
            if tail:
                self._insert(tx, self._path(end), rest)
        elif tail:
            leaf.set_extent(index, rest)
            self._changed(leaf)
        else:
            leaf.pop(index)
            self._changed(leaf)
            if not leaf.keys and leaf is not self._root:
                self._drop_leaf(tx, path)
        if not head and index == 0 and leaf.keys:
            self._raise_keys(tx, path[:-1], leaf.keys[0])
        self._free(tx, start, end - start, old.pblk + head)

    def _free(self, tx: Operation, lblk: int, count: int, pblk: int) -> None:
        """Free blocks that are no longer mapped, but no cluster of which others still are."""
        ratio = self._ctx.ratio
        if ratio == 1:
            self._ctx.free_file_blocks(tx, self._inode, pblk, count)
            return
        keep_first, keep_last = still_used(self.run_at, ratio, Run(lblk, count, pblk, RunState.MAPPED), self._inode.ino)
        self._ctx.free_file_blocks(tx, self._inode, pblk, count, keep_first=keep_first, keep_last=keep_last)

    def _drop_leaf(self, tx: Operation, path: list[Step]) -> None:
        """Free an empty leaf and every index node that empties with it."""
        for level in range(len(path) - 1, 0, -1):
            self._ctx.free_node(tx, self._inode, path[level][0].pblk)
            parent, index = path[level - 1]
            self._touch(tx, parent)
            parent.pop(index)
            self._changed(parent)
            if parent.keys:
                if index == 0:
                    self._raise_keys(tx, path[: level - 1], parent.keys[0])
                return
        self._root.depth = 0
        self._changed(self._root)

    def _raise_keys(self, tx: Operation, path: list[Step], key: int) -> None:
        """The first entry of a node went away: its ancestors' keys follow (kernel: ext4_ext_rm_idx)."""
        for node, index in reversed(path):
            self._touch(tx, node)
            node.keys[index] = key
            self._changed(node)
            if index:
                return


    # -- moving (collapse and insert range) ---------------------------------------------------------------------

    def node_count(self) -> int:
        """Nodes in blocks of their own."""
        level = [self._root]
        count = 0
        while level[0].depth:
            count += sum(len(node.children) for node in level)
            if level[0].depth == 1:
                break
            level = [self._child(node, index) for node in level for index in range(len(node.children))]
        return count

    def node_blocks(self) -> list[int]:
        """The blocks of all nodes but the root. Raises Corrupt, DeviceError."""
        blocks: list[int] = []
        level = [self._root]
        while level and level[0].depth:
            for node in level:
                blocks += node.children
            if level[0].depth == 1:
                break
            level = [self._child(node, index) for node in level for index in range(len(node.children))]
        return blocks

    def all_extents(self) -> list[Extent]:
        """Every extent, in order. Raises Corrupt, DeviceError."""
        extents: list[Extent] = []
        lblk = 0
        while lblk < EXT_MAX_BLOCKS:
            path = self._path(lblk)
            extents += path[-1][0].extents
            lblk = self._next_key(path)
        return extents

    def rebuild(self, tx: Operation, extents: list[Extent]) -> None:
        """Map exactly ``extents``, sorted and without overlaps, in a new tree; their blocks are the caller's business.

        Nodes of the old tree are left as they are. Raises NoSpace, DeviceError.
        """
        root = self._root
        tx.touch(self._inode)
        root.depth, root.keys, root.extents, root.children = 0, [], [], []
        self._changed(root)
        for extent in extents:
            self._insert(tx, self._path(extent.lblk), extent)

    def last_block(self) -> int:
        """Behind the last mapped block; 0 for an empty tree."""
        leaf, index = self._path(EXT_MAX_BLOCKS - 1)[-1]
        return leaf.extents[index].end if index >= 0 else 0

    def shift_left(self, tx: Operation, start: int, count: int) -> None:
        """Move what is mapped from ``start`` + ``count`` on down by ``count``; the blocks between must be a hole."""
        self._shift(tx, self._root, start + count, -count)
        path = self._path(start)
        leaf, index = path[-1]
        if index >= 0:
            self._touch(tx, leaf)
            self._merge_around(tx, leaf, index)
            self._changed(leaf)
        self._merge_up(tx)

    def shift_right(self, tx: Operation, start: int, count: int) -> None:
        """Move what is mapped from ``start`` on up by ``count``, which leaves a hole; an extent there is split.

        Raises NoSpace, Corrupt, DeviceError.
        """
        leaf, index = self._path(start)[-1]
        cut = leaf.extents[index] if index >= 0 and leaf.extents[index].lblk < start < leaf.extents[index].end else None
        self._shift(tx, self._root, start, count)
        if cut is not None:
            head = start - cut.lblk
            path = self._path(cut.lblk)
            leaf, index = path[-1]
            self._touch(tx, leaf)
            leaf.set_extent(index, cut.sized(head))
            self._changed(leaf)
            tail = Extent(start + count, cut.count - head, cut.pblk + head, cut.unwritten)
            self._insert(tx, self._path(tail.lblk), tail)

    def _shift(self, tx: Operation, node: ExtentNode, start: int, delta: int) -> int:
        """Move all extents from ``start`` on below ``node``; returns its first key afterwards."""
        self._touch(tx, node)
        first = bisect_left(node.keys, start)
        if node.depth:
            for index in range(max(first - 1, 0), len(node.keys)):
                node.keys[index] = self._shift(tx, self._child(node, index), start, delta)
        else:
            for index in range(first, len(node.keys)):
                extent = node.extents[index]
                node.set_extent(index, Extent(extent.lblk + delta, extent.count, extent.pblk, extent.unwritten))
        self._changed(node)
        return node.keys[0] if node.keys else 0


def _can_merge(left: Extent, right: Extent) -> bool:
    """Whether ``right`` continues ``left`` and both fit one extent (kernel: ext4_can_extents_be_merged)."""
    limit = EXT_UNWRITTEN_MAX_LEN if left.unwritten else EXT_INIT_MAX_LEN
    return (
        left.unwritten == right.unwritten
        and left.end == right.lblk
        and left.pblk + left.count == right.pblk
        and left.count + right.count <= limit
    )


_EMPTY_ROOT: Final = bytes(ExtentNode(0, 0, ROOT_LIMIT, 0, None).pack(IBLOCK_SIZE))
