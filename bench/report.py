"""Medians, ratios and whether the targets are met: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from statistics import median

from bench.cases import CASES, DATA_MIB, FILES, FSYNCS, Case
from bench.drivers import run

Samples = dict[str, dict[str, dict[str, list[float]]]]
"""case -> driver -> measure -> values"""

_PER_OPERATION = ("create", "stat again", "stat (cold)", "rename", "unlink")
_THROUGHPUT = ("write + fsync", "write until unmounted", "cold read")


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
    """One entry per measure: medians by driver, ratio to fuse2fs, target, whether it is met (None: no target)."""
    rows = []
    for case_name, by_driver in samples.items():
        case = CASES[case_name]
        measures = list(dict.fromkeys(m for values in by_driver.values() for m in values))
        for measure in measures:
            medians = {d: median(v[measure]) for d, v in by_driver.items() if v.get(measure)}
            rows.append(_row(case_name, case, measure, medians))
    return rows


def _row(case_name: str, case: Case, measure: str, medians: dict[str, float]) -> dict[str, object]:
    ours, theirs = medians.get("py4fs"), medians.get("fuse2fs")
    ratio = ours / theirs if ours is not None and theirs else None
    row: dict[str, object] = {"case": case_name, "measure": measure, "medians": medians, "ratio": ratio}
    if measure in case.limits:
        row["target"] = f"<= {case.limits[measure]:g} x fuse2fs"
        row["met"] = None if ratio is None else ratio <= case.limits[measure]
    elif measure in case.absolute:
        row["target"] = f"<= {_shown(measure, case.absolute[measure])}"
        row["met"] = None if ours is None else ours <= case.absolute[measure]
    return row


def _shown(measure: str, value: float) -> str:
    if measure.startswith("memory"):
        return f"{value * 1024 / 1e6:.0f} MB"
    if measure in _PER_OPERATION:
        return f"{value / FILES * 1e6:.0f} us each"
    if "fsync," in measure:
        return f"{value / FSYNCS * 1e6:.0f} us each"
    if measure in _THROUGHPUT:
        return f"{value:.3f} s {DATA_MIB / value:4.0f} MiB/s"
    return f"{value:.3f} s"


def table(rows: Sequence[dict[str, object]], drivers: Sequence[str]) -> str:
    """The table that people read."""
    head = ["", *drivers, "py4fs/fuse2fs", "target"]
    lines = [head]
    for row in rows:
        measure, medians = str(row["measure"]), row["medians"]
        assert isinstance(medians, dict)
        cells = [_shown(measure, medians[d]) if d in medians else "-" for d in drivers]
        ratio = row["ratio"]
        verdict = {True: "ok", False: "MISSED", None: ""}[row.get("met")]  # type: ignore[index]
        target = f"{row.get('target', '')} {verdict}".strip()
        lines.append([measure, *cells, f"{ratio:.2f}" if isinstance(ratio, float) else "-", target])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names and targets to the left, numbers to the right."""
    ends = (0, len(cells) - 1)
    padded = [c.ljust(w) if i in ends else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(padded).rstrip()
