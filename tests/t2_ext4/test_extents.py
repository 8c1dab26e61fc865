"""Extent trees against a plain model, on real images that e2fsck checks afterwards."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from py4fs.errors import NoSpace
from py4fs.ext4.file import RunState
from py4fs.ext4.inode import Inode
from py4fs.ext4.volume import Volume
from tests.support.image import ImageMaker
from tests.support.volumes import make_file, open_volume

MAX_LBLK = 0xFFFFFFFF


def model_of(volume: Volume, inode: Inode, blocks: int) -> dict[int, tuple[int, RunState]]:
    """logical block -> (physical block, state), read through `window`."""
    found: dict[int, tuple[int, RunState]] = {}
    at = 0
    while at < blocks:
        for run in volume.files.window(inode, at, 8):
            assert run.lblk <= at < run.end, f"{run} does not cover block {at}"
            if run.state is not RunState.HOLE:
                found.update((run.lblk + i, (run.pblk + i, run.state)) for i in range(run.count))
            at = run.end
    return found


def remove(volume: Volume, inode: Inode, start: int, end: int) -> None:
    done = False
    while not done:
        with volume.operation(600) as tx:
            done = volume.files.remove(tx, inode, start, end)


@pytest.mark.parametrize("args", [("-b", "1024"), ("-b", "4096"), ("-b", "1024", "-I", "128", "-O", "^64bit")])
def test_random_changes_equal_a_model(make_image: ImageMaker, rng: random.Random, args: tuple[str, ...]) -> None:
    image = make_image("64M", *args)
    span = 3000
    states: dict[int, RunState] = {}
    with open_volume(image) as volume:
        inode = make_file(volume, b"f")
        for step in range(1500):
            lblk, count = rng.randrange(span), rng.randrange(1, 8)
            blocks = range(lblk, lblk + count)
            match rng.randrange(10):
                case 0 | 1 | 2 | 3 | 4:
                    unwritten = rng.random() < 0.7
                    with volume.operation(100) as tx:
                        runs = volume.files.allocate(tx, inode, lblk, count, unwritten=unwritten)
                    assert runs[0].lblk <= lblk and runs[-1].end >= lblk + count
                    for block in blocks:
                        states.setdefault(block, RunState.UNWRITTEN if unwritten else RunState.MAPPED)
                case 5 | 6 | 7:
                    with volume.operation(100) as tx:
                        volume.files.convert(tx, inode, lblk, count)
                    states.update((b, RunState.MAPPED) for b in blocks if b in states)
                case 8:
                    remove(volume, inode, lblk, lblk + count * 4)
                    for block in range(lblk, lblk + count * 4):
                        states.pop(block, None)
                case 9 if step % 100 == 9:
                    cut = rng.randrange(span)
                    remove(volume, inode, cut, MAX_LBLK)
                    states = {b: s for b, s in states.items() if b < cut}
            if step % 100 == 0:
                volume.commit()
        model = model_of(volume, inode, span + 100)
        assert {block: state for block, (_, state) in model.items()} == states
        assert len({pblk for pblk, _ in model.values()}) == len(model), "a block is mapped twice"
        with volume.operation(2) as tx:
            tx.touch(inode)
            inode.size = (span + 100) * volume.geometry.block_size
    assert dumped_blocks(image, "/f") == {b: p for b, (p, _) in model.items()}


def dumped_blocks(image: Path, path: str) -> dict[int, int]:
    """logical -> physical block as debugfs prints the leaves of the extent tree."""
    text = subprocess.run(
        ["debugfs", "-R", f"dump_extents -l {path}", image], capture_output=True, text=True, check=True
    ).stdout
    blocks: dict[int, int] = {}
    for line in text.splitlines()[1:]:
        # Level  Entries  Logical a - b  Physical c - d  Length [Uninit]
        words = line.replace("/", " ").replace("-", " ").split()
        first, last, pblk = int(words[4]), int(words[5]), int(words[6])
        blocks.update((block, pblk + block - first) for block in range(first, last + 1))
    return blocks


def test_sequential_append_is_one_extent(make_image: ImageMaker) -> None:
    image = make_image("64M", "-b", "4096")
    with open_volume(image) as volume:
        inode = make_file(volume, b"f")
        for lblk in range(0, 2000, 4):
            with volume.operation(20) as tx:
                volume.files.allocate(tx, inode, lblk, 4)
            with volume.operation(20) as tx:
                volume.files.convert(tx, inode, lblk, 4)
                inode.size = (lblk + 4) * 4096
        run = volume.files.run_at(inode, 0)
        assert (run.lblk, run.count, run.state) == (0, 2000, RunState.MAPPED)
        assert inode.blocks == 2000 * 8


def test_largest_extents_keep_their_state(make_image: ImageMaker) -> None:
    """ee_len 0x8000 is a written extent of 32,768 blocks, not an unwritten one of none."""
    image = make_image("256M", "-b", "1024")
    with open_volume(image) as volume:
        inode = make_file(volume, b"f")
        blocks = 70000
        while volume.files.run_at(inode, blocks - 1).state is RunState.HOLE:
            with volume.operation(100) as tx:
                volume.files.allocate(tx, inode, 0, blocks)
        with volume.operation(200) as tx:
            volume.files.convert(tx, inode, 0, blocks)
            inode.size = blocks * 1024
    with open_volume(image, readonly=True) as volume:
        inode = volume.inodes.get(volume.namespace.lookup(volume.inodes.get(2), b"f") or 0)
        model = model_of(volume, inode, blocks)
        assert len(model) == blocks
        assert {state for _, state in model.values()} == {RunState.MAPPED}


def test_failed_operation_leaves_no_trace(make_image: ImageMaker) -> None:
    """ENOSPC in the middle of an allocation: extents, bitmaps and counters are as before."""
    image = make_image("8M", "-b", "1024")
    with open_volume(image) as volume:
        inode = make_file(volume, b"f")
        with volume.operation(50) as tx:
            volume.files.allocate(tx, inode, 0, 100)
        before = model_of(volume, inode, 200)
        free, blocks = volume.superblock.free_blocks, inode.blocks
        with pytest.raises(NoSpace), volume.operation(1000) as tx:
            volume.files.allocate(tx, inode, 100, 20000)
        assert model_of(volume, inode, 200) == before
        assert (volume.superblock.free_blocks, inode.blocks) == (free, blocks)
        with volume.operation(2) as tx:
            tx.touch(inode)
            inode.size = 100 * 1024
