"""What has to be reached: each measure against fuse2fs, some against the kernel, a few in their own unit."""

from __future__ import annotations

FUSE2FS = 1.0
"""What py4fs's median may be at most of any measure, as a multiple of fuse2fs's."""
FUSE2FS_MEDIAN = 0.5
"""And the median of those ratios over all measures."""
KERNEL = {
    "stat again": 1.3,
    "warm read": 1.3,
    "write + fsync": 1 / 0.7,
    "cold read": 1 / 0.7,
    "cold read, raised read-ahead": 1 / 0.7,
}
"""The same as multiples of the kernel's time on a loop mount."""
ABSOLUTE = {"mount 15 TiB": 1.0, "memory 15 TiB": 150 * 1000 * 1000 / 1024}
"""In the measure's own unit (s, KiB)."""


def verdicts(measure: str, medians: dict[str, float]) -> list[tuple[str, bool | None]]:
    """(target as text, whether py4fs meets it; None: one of the values is missing) of a measure."""
    ours = medians.get("py4fs")
    found: list[tuple[str, bool | None]] = []
    for limit, other in ((FUSE2FS, "fuse2fs"), (KERNEL.get(measure), "kernel")):
        theirs = medians.get(other)
        if limit is not None and theirs:
            found.append((f"<= {limit:.3g} x {other}", None if ours is None else ours <= limit * theirs))
    if measure in ABSOLUTE:
        found.append((f"<= {ABSOLUTE[measure]:g}", None if ours is None else ours <= ABSOLUTE[measure]))
    return found
