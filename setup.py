"""What pyproject.toml cannot say: `PY4FS_COMPILE=1 pip install .` turns the core into machine code (mypyc).

Without that variable nothing is compiled. `make compiled` (tools/compiled.py) does the same for a checkout.
PY4FS_COMPILE_OPT is the level of optimisation of the C compiler: 1, since more takes twice as long and gains nothing.
docs/PERFORMANCE.md says what is gained.
"""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatch
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
WORK = "build/mypyc"
CHOSEN = (
    *("py4fs/ext4/*.py", "py4fs/ext4/journal/*.py", "py4fs/iomap/*.py", "py4fs/vfs/*.py", "py4fs/fuse/direct/*.py"),
    # what each request passes through besides
    *("py4fs/ext4/layout/codec.py", "py4fs/ext4/layout/dirent.py", "py4fs/device/file.py"),
    *("py4fs/fuse/clock.py", "py4fs/fuse/writers.py"),
)
LEFT_OUT = (
    *("py4fs/ext4/*__init__.py", "py4fs/iomap/__init__.py", "py4fs/fuse/*__init__.py"),
    # tables
    *("*/unicode_*.py", "*/feature*.py"),
    # what runs once for an image or a mount (recovery.py is also more than mypyc can do), or seldom
    *("*/journal/*recovery.py", "*/journal/fast_commit.py", "*/journal/locate.py", "*/ext4/summary.py"),
    *("*/ext4/overhead.py", "*/ext4/backups.py", "*/ext4/mmp.py", "*/ext4/trim.py", "*/ext4/verity.py"),
    *("*/iomap/report.py", "*/direct/frontend.py", "*/direct/mounting.py", "*/direct/backing.py"),
)
"""Of py4fs/device hardly anything is chosen: it waits for disks, and run-time checked protocols cannot be compiled."""
NEEDED = ("mypy>=1.18", "construct>=2.10.70", "bitarray>=3", "google-crc32c>=1.5")
"""What compiling takes: what the modules import is looked at for its types."""


def modules() -> list[str]:
    """Paths of the modules that are compiled, relative to the tree."""
    found = {path.relative_to(ROOT).as_posix() for pattern in CHOSEN for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not any(fnmatch(path, pattern) for pattern in LEFT_OUT))


def extensions() -> list[Extension]:
    """The core as extension modules: generates the C code."""
    from mypyc.build import mypycify

    options = ["--ignore-missing-imports", "--no-warn-unused-ignores", "--cache-dir", f"{WORK}/cache"]
    level = os.environ.get("PY4FS_COMPILE_OPT", "1")
    found = mypycify([*options, *modules()], opt_level=level, debug_level="0", target_dir=WORK, group_name="py4fs")
    for extension in found:  # what gcc has to say of generated code takes longer than compiling it
        extension.extra_compile_args.append("-w")
    return found


def main() -> None:
    if os.environ.get("PY4FS_COMPILE") != "1":
        setup()
    elif "editable_wheel" in sys.argv:
        sys.exit("setup.py: PY4FS_COMPILE=1 is not for an editable installation: `make compiled` is")
    elif sys.argv[1:2] == ["egg_info"]:  # a build front end asks what it has to provide
        setup(setup_requires=NEEDED)
    else:
        setup(ext_modules=extensions())


if __name__ == "__main__":  # pip runs it as such, too
    main()
