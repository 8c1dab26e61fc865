"""The benchmark's own parts: verdicts and table; and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import plot as chart
from bench import report, requests
from bench.cases import TREE_DIRECTORIES, TREE_FILES, make_archive
from bench.drivers import BenchError
from tests.support import machine
from tests.support.mounted import ROOT


def samples(ours: float, theirs: float) -> report.Samples:
    return {"metadata": {"py4fs": {"create": [9.0, ours, 0.0]}, "fuse2fs": {"create": [theirs, 0.0, 9.0]}}}


def test_medians_are_held_against_the_targets() -> None:
    (row,) = report.summary(samples(2.0, 2.0))
    assert (row["medians"], row["ratio"], row["met"]) == ({"py4fs": 2.0, "fuse2fs": 2.0}, 1.0, True)
    (row,) = report.summary(samples(2.1, 2.0))
    assert row["met"] is False
    (row,) = report.summary({"metadata": {"py4fs": {"create": [1.0]}, "fuse2fs": {}}})
    assert (row["ratio"], row["met"]) == (None, None)
    memory, mount = report.summary({"big": {"py4fs": {"memory 15 TiB": [160_000.0], "mount 15 TiB": [0.5]}}})
    assert (memory["met"], mount["met"]) == (False, True)


def test_some_measures_are_held_against_the_kernel_too() -> None:
    def row(kernel: float) -> dict[str, object]:
        values = {"py4fs": [1.2], "fuse2fs": [5.0], "kernel": [kernel]}
        (found,) = report.summary({"data": {name: {"warm read": value} for name, value in values.items()}})
        return found

    assert (row(1.0)["kernel_ratio"], row(1.0)["met"], row(0.9)["met"]) == (1.2, True, False)
    assert row(1.0)["target"] == "<= 1 x fuse2fs, <= 1.3 x kernel"


def test_numbers_are_held_against_the_kernel_alone() -> None:
    (row,) = report.summary({"extents": {name: {"extents, 1 GiB": [n]} for name, n in COUNTS.items()}})
    assert (row["target"], row["met"]) == ("<= 1.2 x kernel", True)
    (row,) = report.summary({"extents": {name: {"extents, 1 GiB": [n + 1]} for name, n in COUNTS.items()}})
    assert row["met"] is True  # 7 of 6
    assert report.overall([row]) is None
    assert "7" in report.table([row], ["py4fs"])
    begins = "begins, 4,000 warm random reads"
    (one,), (none,) = (report.summary({"begins": {"py4fs": {begins: [n]}}}) for n in (1.0, 0.0))
    assert (one["met"], none["met"]) == (False, True)


COUNTS = {"py4fs": 6.0, "fuse2fs": 1.0, "kernel": 5.0}


def test_what_must_not_grow_is_held_against_the_smaller_size() -> None:
    def last(big: float) -> dict[str, object]:
        values = {"create, 1,000 names": [0.1], "create, 1,000,000 names": [big]}
        return report.summary({"directories": {"py4fs": values}})[-1]

    assert last(0.14)["target"] == "<= 1.5 x create, 1,000 names"
    assert (last(0.15)["met"], last(0.16)["met"]) == (True, False)


def test_cpu_time_is_told_beside_elapsed_time() -> None:
    elapsed, cpu = samples(2.0, 2.0), samples(1.0, 4.0)
    (row,) = report.summary(elapsed, cpu)
    assert (row["ratio"], row["cpu_ratio"], row["met"]) == (1.0, 0.25, True)
    elapsed["metadata"]["py4fs"]["mount 1 GiB"] = [0.5]
    judged = report.with_cpu(elapsed, cpu)
    assert judged["metadata"]["py4fs"] == {"create": [9.0, 1.0, 0.0], "mount 1 GiB": [0.5]}


def test_the_median_of_the_ratios_has_a_target() -> None:
    def whole(*ratios: float) -> tuple[float, bool] | None:
        return report.overall([{"measure": "create", "ratio": ratio} for ratio in ratios])

    assert whole(0.1, 0.5, 3.0) == (0.5, True)
    assert whole(0.1, 0.6, 0.7) == (0.6, False)
    assert report.overall([{"measure": "create", "ratio": None}]) is None
    assert report.overall([{"measure": "memory 15 TiB", "ratio": 0.1}]) is None


def test_the_table_shows_values_ratio_and_verdict() -> None:
    head, line, last = report.table(report.summary(samples(0.8, 0.2)), ["py4fs", "fuse2fs"]).splitlines()
    assert head.split() == ["py4fs", "fuse2fs", "py4fs/fuse2fs", "in", "CPU", "time", "py4fs/kernel", "target"]
    assert " ".join(line.split()) == "create 400 us each 100 us each 4.00 - - <= 1 x fuse2fs MISSED"
    assert " ".join(last.split()) == "median of the ratios 4.00 <= 0.5 MISSED"


def test_the_chart_shows_ratios_to_fuse2fs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = report.summary(samples(0.5, 2.0))
    assert chart.ratios(rows, ["py4fs", "fuse2fs"]) == [("create", {"py4fs": 0.25})]
    chart.plot(rows, ["py4fs", "fuse2fs"], tmp_path / "chart.svg")
    assert "create" in (tmp_path / "chart.svg").read_text()
    with pytest.raises(BenchError, match="fuse2fs"):
        chart.plot(report.summary({"metadata": {"py4fs": {"create": [1.0]}}}), ["py4fs"], tmp_path / "none.svg")


def test_the_tree_is_the_same_each_time(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.tar")
    make_archive(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == TREE_FILES + TREE_DIRECTORIES


def test_the_cost_of_requests_is_measured_without_a_kernel() -> None:
    cost = requests.measure(1)
    assert {"lookup + create", "lookup", "rename", "unlink"} < set(cost)
    assert all(0 < seconds < 0.1 for seconds in cost.values())


@pytest.mark.long
def test_it_runs(tmp_path: Path) -> None:
    machine.need_root()
    machine.need_fuse()
    machine.need_program("fuse2fs")
    argv = [sys.executable, "-m", "bench", "--rounds", "1", "--dir", str(tmp_path), "--json", "-"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a target is missed, which says nothing here
    result = json.loads(done.stdout)
    assert not [line for line in result["damaged"] if line.startswith("py4fs")]
    measured = {row["measure"]: row["medians"] for row in result["summary"]}
    fsyncs = [f"create + 4 KiB + fsync, {size}" for size in ("4 GiB", "1 TiB")]
    blocks = ("random 4 KiB read (cold)", "random 4 KiB write", "4 KiB append + fsync", "create + write 4 KiB")
    programs = ("ls -l (cold)", "grep -r (cold)", "du (cold)", "tar in", "rm -rf (cold)", "4 clients: unlink")
    rest = ("write + fsync", "warm read", "create", "warm stat", "mount 15 TiB", "extents, 1 GiB", "open 10,000 files")
    for name in (*blocks, *programs, *rest, *fsyncs):
        assert set(measured[name]) == {"py4fs", "py4fs-pyfuse3", "fuse2fs", "kernel"}, name
        assert all(value > 0 for value in measured[name].values()), name
    assert list(tmp_path.iterdir()) == []
