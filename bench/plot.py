"""A chart of the ratios: one bar per measure and driver, fuse2fs is 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.drivers import BenchError
from bench.targets import is_time

BASE = "fuse2fs"


def plot(rows: Sequence[dict[str, object]], drivers: Sequence[str], path: Path) -> None:
    """Write the chart to `path`, in the format of its suffix. Raises BenchError without matplotlib or fuse2fs."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("--plot needs matplotlib (pip install 'py4fs[plot]')") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    bars = ratios(rows, drivers)
    if not bars:
        raise BenchError(f"--plot needs values of {BASE} and of another driver")
    measures = [measure for measure, _ in bars]
    shown = [driver for driver in drivers if driver != BASE]
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.35 * len(bars)))
    height = 0.8 / len(shown)
    for number, driver in enumerate(shown):
        places = [row + number * height for row in range(len(bars))]
        axes.barh(places, [values.get(driver, 0.0) for _, values in bars], height, label=driver)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(bars))], measures)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"time as a multiple of {BASE}'s (less is better)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def ratios(rows: Sequence[dict[str, object]], drivers: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """(measure, time of each other driver as a multiple of fuse2fs's); only times, and what fuse2fs has."""
    found = []
    for row in rows:
        medians = row["medians"]
        assert isinstance(medians, dict)
        base = medians.get(BASE)
        if base and is_time(str(row["measure"])):
            values = {d: medians[d] / base for d in drivers if d != BASE and d in medians}
            if values:
                found.append((str(row["measure"]), values))
    return found
