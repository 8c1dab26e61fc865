"""Medians, ratios and whether the targets are met: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from statistics import median

from bench import scale, small
from bench.cases import DATA_MIB, FILES, FSYNCS
from bench.drivers import run
from bench.parallel import CLIENTS, FILES_EACH
from bench.targets import COUNTED, FUSE2FS_MEDIAN, is_time, verdicts

Samples = dict[str, dict[str, dict[str, list[float]]]]
"""case -> driver -> measure -> values"""

_OPERATIONS = {
    **dict.fromkeys(("create", "stat after create", "warm stat", "stat (cold)", "rename", "unlink"), FILES),
    **dict.fromkeys(("create + 4 KiB + fsync, 4 GiB", "create + 4 KiB + fsync, 1 TiB"), FSYNCS),
    "random 4 KiB read (cold)": small.RANDOM_READS,
    "random 4 KiB write": small.RANDOM_WRITES,
    "4 KiB append + fsync": small.APPENDS,
    "warm 4 KiB read": small.RANDOM_READS,
    **dict.fromkeys(("create + write 4 KiB", "ls -l (cold)", "small-file read (cold)"), small.SMALL_FILES),
    **{
        f"{CLIENTS} clients: {name}": CLIENTS * FILES_EACH
        for name in ("create + write", "stat (cold)", "read (cold)", "unlink")
    },
    **{
        f"{what}, {size}": count
        for unit, whats in (
            ("names", {**dict.fromkeys(("lookup (cold)", "lookup"), scale.NAMES), "create": scale.CREATES}),
            (
                "extents",
                {
                    "open": scale.OPENS,
                    "append + fsync": scale.APPENDS,
                    **dict.fromkeys(("seek to data (cold)", "seek to data"), 2 * scale.SEEKS),
                },
            ),
        )
        for size in (f"{scale.FEW:,} {unit}", f"{scale.MANY:,} {unit}")
        for what, count in whats.items()
    },
    f"walk: {scale.MANY:,} files walked": scale.MANY,
    f"walk: {scale.MANY:,} files walked, cache_size={scale.SMALL_CACHE}": scale.MANY,
    **{f"{what} {scale.OPEN_FILES:,} files": scale.OPEN_FILES for what in ("open", "write to and close")},
}
"""How many operations the measure is made of."""
_RATIOS = ("ratio", "cpu_ratio", "kernel_ratio")
_THROUGHPUT = ("write + fsync", "write until unmounted", "cold read", "warm read", "cold read, raised read-ahead")


def machine() -> dict[str, object]:
    """What one has to know to compare with another run."""
    fuse2fs = run("sh", "-c", "dpkg-query -W -f '${Version}' fuse2fs || true").stdout.strip()
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "pinned_to": sorted(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "fuse2fs": fuse2fs,
    }


def with_cpu(elapsed: Samples, cpu: Samples) -> Samples:
    """CPU times where there are any, else what was measured (mounts, numbers, memory)."""
    return {
        case_name: {name: {**values, **cpu[case_name][name]} for name, values in by_driver.items()}
        for case_name, by_driver in elapsed.items()
    }


def _medians(samples: Samples) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(case, measure, median by driver)."""
    for case_name, by_driver in samples.items():
        for measure in dict.fromkeys(m for values in by_driver.values() for m in values):
            yield case_name, measure, {d: median(v[measure]) for d, v in by_driver.items() if v.get(measure)}


def summary(samples: Samples, cpu: Samples | None = None) -> list[dict[str, object]]:
    """One entry per measure: medians by driver, ratios to fuse2fs and the kernel, targets, whether all are met.

    `cpu`: the same in CPU seconds, where known, of which the ratio to fuse2fs is told.
    """
    found = list(_medians(samples))
    ours = {measure: medians["py4fs"] for _, measure, medians in found if "py4fs" in medians}
    ratios = {measure: _ratio(medians, "fuse2fs") for _, measure, medians in _medians(cpu or {})}
    return [_row(name, measure, medians, ours, ratios.get(measure)) for name, measure, medians in found]


def _row(
    case_name: str, measure: str, medians: dict[str, float], ours: dict[str, float], cpu_ratio: float | None
) -> dict[str, object]:
    found = verdicts(measure, medians, ours)
    known = [met for _, met in found if met is not None]
    return {
        "case": case_name,
        "measure": measure,
        "medians": medians,
        "ratio": _ratio(medians, "fuse2fs"),
        "cpu_ratio": cpu_ratio,
        "kernel_ratio": _ratio(medians, "kernel"),
        "target": ", ".join(text for text, _ in found),
        "met": all(known) if known else None,
    }


def _ratio(medians: dict[str, float], other: str) -> float | None:
    """py4fs's value as a multiple of another driver's; None where one of them is missing."""
    ours, theirs = medians.get("py4fs"), medians.get(other)
    return ours / theirs if ours is not None and theirs else None


def overall(rows: Sequence[dict[str, object]]) -> tuple[float, bool] | None:
    """(median of the ratios to fuse2fs over all times, whether the target is met); None without ratios."""
    ratios = [row["ratio"] for row in rows if isinstance(row["ratio"], float) and is_time(str(row["measure"]))]
    return (median(ratios), median(ratios) <= FUSE2FS_MEDIAN) if ratios else None


def _shown(measure: str, value: float) -> str:
    if measure.startswith("memory"):
        return f"{value * 1024 / 1e6:.0f} MB"
    if measure.startswith(COUNTED):
        return f"{value:.0f}"
    if measure in _OPERATIONS:
        each = value / _OPERATIONS[measure] * 1e6
        return f"{each:.0f} us each" if each >= 10 else f"{each:.2f} us each"
    if measure in _THROUGHPUT:
        return f"{value:.3f} s {DATA_MIB / value:4.0f} MiB/s"
    return f"{value:.3f} s"


def table(rows: Sequence[dict[str, object]], drivers: Sequence[str]) -> str:
    """The table that people read."""
    lines = [["", *drivers, "py4fs/fuse2fs", "in CPU time", "py4fs/kernel", "target"]]
    for row in rows:
        measure, medians = str(row["measure"]), row["medians"]
        assert isinstance(medians, dict)
        cells = [_shown(measure, medians[d]) if d in medians else "-" for d in drivers]
        ratios = [f"{r:.2f}" if isinstance(r, float) else "-" for r in (row[key] for key in _RATIOS)]
        lines.append([measure, *cells, *ratios, f"{row['target']} {_verdict(row['met'])}".strip()])
    whole = overall(rows)
    if whole is not None:
        empty = [""] * len(drivers)
        lines.append(
            ["median of the ratios", *empty, f"{whole[0]:.2f}", "", "", f"<= {FUSE2FS_MEDIAN:g} {_verdict(whole[1])}"]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(_line(line, widths) for line in lines)


def _verdict(met: object) -> str:
    return "" if met is None else "ok" if met else "MISSED"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names and targets to the left, numbers to the right."""
    ends = (0, len(cells) - 1)
    padded = [c.ljust(w) if i in ends else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(padded).rstrip()
