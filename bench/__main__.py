"""py4fs, fuse2fs and the kernel side by side: `python -m bench [--rounds N] [--only CASE] [--cpu] [--json FILE]`.

Needs root (mounts). Every case runs on a fresh image, the drivers take turns (A B A B), medians are reported,
and each image has to pass `e2fsck -fn`. Client and server share one CPU core, so what counts is the work that both
do, and a ratio does not depend on how well a server overlaps with its client. CPU time is counted too (of operations,
not of mounting and unmounting): the table has the ratio in elapsed time and that in CPU time, which a busy machine
disturbs less; `--cpu` shows CPU seconds and holds the targets against them. Exit status: 0 all targets met, 1 one was
missed or an image was damaged by py4fs, 2 it could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bench import report
from bench.base import Bench, check_image, copy_image, make_image, missing_programs
from bench.cases import CASES, make_archive
from bench.drivers import DRIVERS, ROOT, BenchError
from bench.plot import plot

DEFAULT = "py4fs,py4fs-pyfuse3,fuse2fs,kernel"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="py4fs, fuse2fs and the kernel side by side")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs per driver (default 3)")
    slow = ", ".join(name for name, case in CASES.items() if case.slow)
    parser.add_argument("--scale", action="store_true", help=f"also what takes minutes and gigabytes: {slow}")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="run this case only; may be repeated")
    parser.add_argument("--drivers", default=DEFAULT, help=f"of {','.join(DRIVERS)} (default {DEFAULT})")
    parser.add_argument("--json", metavar="FILE", help="write all values there (- for stdout, without the table)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the ratios there (needs matplotlib)")
    parser.add_argument("--cpu", action="store_true", help="show and judge CPU time, not elapsed time")
    parser.add_argument("--compiled", action="store_true", help="py4fs with the core that `make compiled` made")
    parser.add_argument("--core", type=int, help="the CPU core to run on (default: the last one)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=ROOT / "build/bench",
        help="where the images go (default build/bench; a tmpfs leaves the disk out of it)",
    )
    args = parser.parse_args(argv)
    args.drivers = args.drivers.split(",")
    args.dir = args.dir.resolve()
    for name in args.drivers:
        if name not in DRIVERS:
            parser.error(f"unknown driver {name}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    args.only = args.only or [name for name, case in CASES.items() if args.scale or not case.slow]
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        print("bench: needs root and /dev/fuse", file=sys.stderr)
        return 2
    missing = missing_programs(args.drivers)
    if missing:
        print(f"bench: not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    os.environ["PY4FS_COMPILED"] = str(int(args.compiled))  # of all servers that are started
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if args.core is None else args.core})
    args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as work:
        try:
            elapsed, cpu, damaged = measure(args, Path(work))
        except BenchError as exc:
            print(f"bench: {exc}", file=sys.stderr)
            return 2
    rows = report.summary(report.with_cpu(elapsed, cpu) if args.cpu else elapsed, cpu)
    result = {"machine": report.machine(), "rounds": args.rounds, "elapsed": elapsed, "cpu": cpu, "summary": rows}
    if args.json != "-":
        print(heading(args))
        print(report.table(rows, args.drivers))
    if args.json:
        text = json.dumps({**result, "damaged": damaged}, indent=1)
        print(text) if args.json == "-" else Path(args.json).write_text(text, encoding="utf-8")
    for line in damaged:
        print(f"bench: {line}", file=sys.stderr)
    if args.plot:
        try:
            plot(rows, args.drivers, args.plot)
        except (BenchError, OSError) as exc:
            print(f"bench: {exc}", file=sys.stderr)
            return 2
    whole = report.overall(rows)
    missed = any(row["met"] is False for row in rows) or (whole is not None and not whole[1])
    return 1 if missed or any(line.startswith("py4fs") for line in damaged) else 0


def heading(args: argparse.Namespace) -> str:
    facts = report.machine()
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    kind = "CPU time" if args.cpu else "elapsed time"
    core = "compiled" if args.compiled else "interpreted"
    return (
        f"py4fs {core}; {kind}, median of {args.rounds} rounds in alternation; client and server on CPU core "
        f"{cores} of {facts['cpus']}; load {facts['load']:.1f}; Linux {facts['kernel']}, Python {facts['python']}, "
        f"fuse2fs {facts['fuse2fs']}"
    )


def measure(args: argparse.Namespace, work: Path) -> tuple[report.Samples, report.Samples, list[str]]:
    """Run everything. Returns the values, the CPU times, and a line for each image that e2fsck did not like."""
    elapsed: report.Samples = {}
    cpu: report.Samples = {}
    damaged: list[str] = []
    archive, image, directory = work / "tree.tar", work / "image", work / "mnt"
    directory.mkdir()
    make_archive(archive)
    for case_name in args.only:
        case = CASES[case_name]
        master = work / f"{case_name}.master"
        make_image(case, master, directory)
        for samples in (elapsed, cpu):
            samples[case_name] = {name: {} for name in args.drivers}
        for number in range(args.rounds):
            for name in args.drivers:
                if args.json != "-" and sys.stderr.isatty():
                    print(f"\r{case_name}: round {number + 1}, {name}\033[K\r", end="", file=sys.stderr, flush=True)
                copy_image(master, image)
                driver = DRIVERS[name](work / f"{name}.log")
                bench = Bench(driver, image, directory, archive)
                try:
                    case.run(bench)
                except OSError as exc:
                    raise BenchError(f"{case_name} on {name}: {exc}") from exc
                finally:
                    driver.abandon()
                for samples, results in ((elapsed, bench.results), (cpu, bench.cpu)):
                    for measured, value in results.items():
                        samples[case_name][name].setdefault(measured, []).append(value)
                trouble = check_image(image)
                if trouble:
                    damaged.append(f"{name}, {case_name}, round {number + 1}: {trouble}")
        master.unlink()
    return elapsed, cpu, damaged


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
