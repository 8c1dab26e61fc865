"""The benchmark's own parts: verdicts and table; and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import report
from bench.cases import TREE_DIRECTORIES, TREE_FILES, make_archive
from tests.support import machine
from tests.support.mounted import ROOT


def samples(ours: float, theirs: float) -> report.Samples:
    return {"metadata": {"py4fs": {"create": [9.0, ours, 0.0]}, "fuse2fs": {"create": [theirs, 0.0, 9.0]}}}


def test_medians_are_held_against_the_targets() -> None:
    (row,) = report.summary(samples(2.0, 1.0))
    assert (row["medians"], row["ratio"], row["met"]) == ({"py4fs": 2.0, "fuse2fs": 1.0}, 2.0, True)
    (row,) = report.summary(samples(2.1, 1.0))
    assert row["met"] is False
    (row,) = report.summary({"metadata": {"py4fs": {"create": [1.0]}, "fuse2fs": {}}})
    assert (row["ratio"], row["met"]) == (None, None)
    memory, mount = report.summary({"big": {"py4fs": {"memory 15 TiB": [160_000.0], "mount 15 TiB": [0.5]}}})
    assert (memory["met"], mount["met"]) == (False, True)


def test_the_table_shows_values_ratio_and_verdict() -> None:
    head, line = report.table(report.summary(samples(0.8, 0.2)), ["py4fs", "fuse2fs"]).splitlines()
    assert head.split() == ["py4fs", "fuse2fs", "py4fs/fuse2fs", "target"]
    assert " ".join(line.split()) == "create 400 us each 100 us each 4.00 <= 2 x fuse2fs MISSED"


def test_the_tree_is_the_same_each_time(tmp_path: Path) -> None:
    make_archive(tmp_path / "a.tar")
    make_archive(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == TREE_FILES + TREE_DIRECTORIES


@pytest.mark.long
def test_it_runs(tmp_path: Path) -> None:
    machine.need_root()
    machine.need_fuse()
    machine.need_program("fuse2fs")
    argv = [sys.executable, "-m", "bench", "--rounds", "1", "--dir", str(tmp_path), "--json", "-", "--kernel"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a target is missed, which says nothing here
    result = json.loads(done.stdout)
    assert not [line for line in result["damaged"] if line.startswith("py4fs")]
    measured = {row["measure"]: row["medians"] for row in result["summary"]}
    fsyncs = [f"create + 4 KiB + fsync, {size}" for size in ("4 GiB", "1 TiB")]
    for name in ("write + fsync", "cold read", "create", "unlink", "tar in", "rm -rf (cold)", "mount 15 TiB", *fsyncs):
        assert set(measured[name]) == {"py4fs", "fuse2fs", "kernel"}, name
        assert all(value > 0 for value in measured[name].values()), name
    assert list(tmp_path.iterdir()) == []
