"""What has to be reached: each measure against fuse2fs, some against the kernel, a few in their own unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bench.mappings import RANDOM_READS, WARM_READS, WARM_STATS, WINDOWS
from bench.scale import FEW, MANY, SMALL_CACHE

FUSE2FS = 1.0
"""What py4fs's median may be at most of any measure, as a multiple of fuse2fs's."""
FUSE2FS_MEDIAN = 0.5
"""And the median of those ratios over all measures."""
KERNEL = {
    "warm stat": 1.3,
    "warm read": 1.3,
    "warm 4 KiB read": 1.3,
    "write + fsync": 1 / 0.7,
    "cold read": 1 / 0.7,
    "cold read, raised read-ahead": 1 / 0.7,
    "extents, 1 GiB": 1.2,
    "extents, two writers": 1.2,
    "extents, two writers, fsync each 16 MiB": 1.2,
    "extents, all files after tar in": 1.2,
    "extents, free space after tar in": 1.2,
}
"""The same as multiples of the kernel's time on a loop mount, or of its number of extents."""
ABSOLUTE = {
    "mount 15 TiB": 1.0,
    "memory 15 TiB": 150 * 1000 * 1000 / 1024,
    "memory, 1,500 files walked": 100 * 1000 * 1000 / 1024,
    f"memory, {MANY:,} files walked": 200 * 1000 * 1000 / 1024,
    f"memory, {MANY:,} files walked, cache_size={SMALL_CACHE}": 100 * 1000 * 1000 / 1024,
    f"requests, {WARM_STATS:,} warm stats and {WARM_READS:,} warm reads": 0,
    f"begins, cold sequential read of {WINDOWS} windows": WINDOWS,
    f"begins, {RANDOM_READS:,} warm random reads": 0,
}
"""In the measure's own unit (s, KiB, number)."""
GROWTH = {
    "mount 15 TiB": ("mount 1 GiB", 3.0),
    "create + 4 KiB + fsync, 1 TiB": ("create + 4 KiB + fsync, 4 GiB", 1.2),
    **{
        f"{what}, {MANY:,} {unit}": (f"{what}, {FEW:,} {unit}", 1.5)
        for what, unit in (
            ("lookup", "names"),
            ("create", "names"),
            ("open", "extents"),
            ("seek to data", "extents"),
            ("append + fsync", "extents"),
        )
    },
}
"""What py4fs may need at most as a multiple of what it needs for something smaller."""
COUNTED = ("extents", "requests", "begins")
"""Measures that begin so are numbers, not seconds."""
_NO_TIME = (*COUNTED, "memory")


def is_time(measure: str) -> bool:
    """Whether a measure is in seconds: only those are held against fuse2fs."""
    return not measure.startswith(_NO_TIME)


def verdicts(
    measure: str, medians: dict[str, float], ours_of: Mapping[str, float] = MappingProxyType({})
) -> list[tuple[str, bool | None]]:
    """(target as text, whether py4fs meets it; None: one of the values is missing) of a measure.

    `ours_of`: py4fs's medians of all measures.
    """
    ours = medians.get("py4fs")
    found: list[tuple[str, bool | None]] = []
    limits = [(FUSE2FS if is_time(measure) else None, "fuse2fs"), (KERNEL.get(measure), "kernel")]
    for limit, other in limits:
        theirs = medians.get(other)
        if limit is not None and theirs:
            found.append((f"<= {limit:.3g} x {other}", None if ours is None else ours <= limit * theirs))
    if measure in GROWTH:
        smaller, limit = GROWTH[measure]
        if smaller in ours_of:
            found.append((f"<= {limit:.3g} x {smaller}", None if ours is None else ours <= limit * ours_of[smaller]))
    if measure in ABSOLUTE:
        most = ABSOLUTE[measure]
        text = f"{most * 1024 / 1e6:.0f} MB" if measure.startswith("memory") else f"{most:g}"
        found.append((f"<= {text}", None if ours is None else ours <= most))
    return found
