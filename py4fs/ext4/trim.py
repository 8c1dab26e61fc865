"""Free space told to the device (FITRIM; kernel: ext4_trim_fs): which runs of blocks nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator

from bitarray import bitarray

from py4fs.errors import Corrupt, Invalid
from py4fs.ext4.geometry import Geometry
from py4fs.ext4.groups import Groups


def free_runs(geometry: Geometry, groups: Groups, start: int, length: int, minlen: int) -> Iterator[tuple[int, int]]:
    """(first block, count) of free runs of at least ``minlen`` bytes in [start, start + length), bytes too.

    As in the kernel, a run that begins in the range is taken up to its end in its group. What an unfinished transaction
    has freed, or I/O in flight may still touch, is not free yet. Damaged groups are left out. Raises Invalid (as the
    kernel: beyond the end, less than a block, longer than a group), DeviceError.
    """
    size, bits = geometry.block_size, geometry.cluster_bits
    first, least = start // size, geometry.clusters(minlen // size)
    last = min(first + length // size, geometry.blocks_count) - 1
    too_long = least > geometry.clusters_per_group
    if start < 0 or minlen < 0 or length < size or too_long or first >= geometry.blocks_count:
        raise Invalid(f"trim of {length} bytes at {start}, at least {minlen}: {geometry.blocks_count} blocks of {size}")
    if last <= geometry.first_data_block:
        return
    first = max(first, geometry.first_data_block)
    for group in range(geometry.block_group(first)[0], geometry.block_group(last)[0] + 1):
        base = geometry.group_first_block(group)
        count = geometry.group_block_count(group) >> bits  # of a cluster that sticks out at the end nothing is told
        span = range(max(first - base, 0) >> bits, min((last - base >> bits) + 1, count))
        yield from _of_group(groups, group, (base, bits), span, count, max(least, 1))


def _of_group(
    groups: Groups, group: int, place: tuple[int, int], span: range, size: int, least: int
) -> Iterator[tuple[int, int]]:
    """Runs that begin in ``span`` of the ``size`` clusters of a group. ``place``: its first block, cluster_bits.

    All of them have to be where files may be: otherwise the bitmap is not to be believed.
    """
    if group in groups.damaged:
        return
    try:
        if groups.desc(group).free_blocks < least:
            return
        base, bits = place
        found = _runs(groups.block_bitmap(group).held, span, size, least)
        runs = [(base + (at << bits), count << bits) for at, count in found]
        for first, count in runs:
            groups.check_data_run(first, count, f"group {group} block bitmap: free block")
    except Corrupt as exc:
        groups.condemn(group, exc)
        return
    yield from runs


def _runs(used: bitarray, span: range, size: int, least: int) -> Iterator[tuple[int, int]]:
    begin = span.start
    while begin < span.stop and (begin := used.find(False, begin, span.stop)) >= 0:
        stop = used.find(True, begin, size)
        stop = size if stop < 0 else stop
        if stop - begin >= least:
            yield begin, stop - begin
        begin = stop
