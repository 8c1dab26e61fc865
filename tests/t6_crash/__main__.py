"""Replay one crash image by its id: `python -m tests.t6_crash CONFIG:SEED:CUT[.SUBSET] [--keep FILE] [--story]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from py4fs.device.recording import Crash, CrashImages
from tests.t6_crash.campaign import ATOMIC, check, record


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.t6_crash", description=__doc__)
    parser.add_argument("id", help="what a failing test printed")
    parser.add_argument("--keep", type=Path, help="write the image there")
    parser.add_argument("--story", action="store_true", help="tell what was done around the crash")
    parser.add_argument("--kernel", action="store_true", help="recover by the kernel too")
    args = parser.parse_args()
    name, seed, where = args.id.split(":")
    crash = Crash.parse(where)
    recording = record(name, int(seed))
    if args.keep:
        args.keep.write_bytes(CrashImages(recording.base, recording.device.log, atomic=ATOMIC).image(crash))
    if args.story:
        for position, told in recording.story:
            print("*" if position >= crash.cut else " ", position, told)
        for index in recording.candidates(crash.cut):
            print("state", index, "begun at", recording.states[index].start)
    check(name, int(seed), [crash], kernel=args.kernel)
    print("fine")


if __name__ == "__main__":
    main()
