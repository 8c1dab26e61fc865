"""Medians, ratios and whether the targets are met: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from statistics import median

from bench import small
from bench.cases import DATA_MIB, FILES, FSYNCS
from bench.drivers import run
from bench.parallel import CLIENTS, FILES_EACH
from bench.targets import FUSE2FS_MEDIAN, verdicts

Samples = dict[str, dict[str, dict[str, list[float]]]]
"""case -> driver -> measure -> values"""

_OPERATIONS = {
    **dict.fromkeys(("create", "stat again", "stat (cold)", "rename", "unlink"), FILES),
    **dict.fromkeys(("create + 4 KiB + fsync, 4 GiB", "create + 4 KiB + fsync, 1 TiB"), FSYNCS),
    "random 4 KiB read (cold)": small.RANDOM_READS,
    "random 4 KiB write": small.RANDOM_WRITES,
    "4 KiB append + fsync": small.APPENDS,
    **dict.fromkeys(("create + write 4 KiB", "ls -l (cold)", "small-file read (cold)"), small.SMALL_FILES),
    **{
        f"{CLIENTS} clients: {name}": CLIENTS * FILES_EACH
        for name in ("create + write", "stat (cold)", "read (cold)", "unlink")
    },
}
"""How many operations the measure is made of."""
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


def summary(samples: Samples) -> list[dict[str, object]]:
    """One entry per measure: medians by driver, ratios to fuse2fs and the kernel, targets, whether all are met."""
    rows = []
    for case_name, by_driver in samples.items():
        measures = list(dict.fromkeys(m for values in by_driver.values() for m in values))
        for measure in measures:
            medians = {d: median(v[measure]) for d, v in by_driver.items() if v.get(measure)}
            rows.append(_row(case_name, measure, medians))
    return rows


def _row(case_name: str, measure: str, medians: dict[str, float]) -> dict[str, object]:
    found = verdicts(measure, medians)
    known = [met for _, met in found if met is not None]
    return {
        "case": case_name,
        "measure": measure,
        "medians": medians,
        "ratio": _ratio(medians, "fuse2fs"),
        "kernel_ratio": _ratio(medians, "kernel"),
        "target": ", ".join(text for text, _ in found),
        "met": all(known) if known else None,
    }


def _ratio(medians: dict[str, float], other: str) -> float | None:
    """py4fs's time as a multiple of another driver's; None where one of them is missing."""
    ours, theirs = medians.get("py4fs"), medians.get(other)
    return ours / theirs if ours is not None and theirs else None


def overall(rows: Sequence[dict[str, object]]) -> tuple[float, bool] | None:
    """(median of the ratios to fuse2fs over all rows, whether the target is met); None without ratios."""
    ratios = [row["ratio"] for row in rows if isinstance(row["ratio"], float)]
    return (median(ratios), median(ratios) <= FUSE2FS_MEDIAN) if ratios else None


def _shown(measure: str, value: float) -> str:
    if measure.startswith("memory"):
        return f"{value * 1024 / 1e6:.0f} MB"
    if measure in _OPERATIONS:
        return f"{value / _OPERATIONS[measure] * 1e6:.0f} us each"
    if measure in _THROUGHPUT:
        return f"{value:.3f} s {DATA_MIB / value:4.0f} MiB/s"
    return f"{value:.3f} s"


def table(rows: Sequence[dict[str, object]], drivers: Sequence[str]) -> str:
    """The table that people read."""
    lines = [["", *drivers, "py4fs/fuse2fs", "py4fs/kernel", "target"]]
    for row in rows:
        measure, medians = str(row["measure"]), row["medians"]
        assert isinstance(medians, dict)
        cells = [_shown(measure, medians[d]) if d in medians else "-" for d in drivers]
        ratios = [f"{r:.2f}" if isinstance(r, float) else "-" for r in (row["ratio"], row["kernel_ratio"])]
        lines.append([measure, *cells, *ratios, f"{row['target']} {_verdict(row['met'])}".strip()])
    whole = overall(rows)
    if whole is not None:
        empty = [""] * len(drivers)
        lines.append(
            ["median of the ratios", *empty, f"{whole[0]:.2f}", "", f"<= {FUSE2FS_MEDIAN:g} {_verdict(whole[1])}"]
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
