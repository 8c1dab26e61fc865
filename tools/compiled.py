"""Compile the core of this checkout into build/compiled, where py4fs finds it: `python tools/compiled.py`.

Takes a C compiler, and mypy of the `dev` extra. Nothing is done where the folder is of these sources already. The old
folder stays until the new one is complete, and programs that run with it go on: its files are not written to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import source_hash
from pathlib import Path

os.environ["PY4FS_COMPILED"] = "0"
from py4fs.compiled import FOLDER, MANIFEST, SUFFIX, source_hashes

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/mypyc"


def build(folder: Path) -> None:
    """Compile into an empty folder. Raises CalledProcessError when mypyc or the C compiler refuses."""
    argv = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext"]
    argv += ["--build-lib", str(folder), "--build-temp", str(WORK / "objects")]
    subprocess.run(argv, cwd=ROOT, env={**os.environ, "PY4FS_COMPILE": "1"}, check=True)


def module_name(path: Path) -> str:
    """`py4fs/vfs/base.SUFFIX` -> py4fs.vfs.base."""
    return path.as_posix().removesuffix(SUFFIX).replace("/", ".").removesuffix(".__init__")


def made() -> dict[str, object]:
    """The manifest of the folder; empty without one."""
    path = FOLDER / MANIFEST
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def main() -> int:
    before = source_hashes()
    recipe = [source_hash((ROOT / "setup.py").read_bytes()).hex(), os.environ.get("PY4FS_COMPILE_OPT", "")]
    key = {"suffix": SUFFIX, "sources": before, "recipe": recipe}
    if key.items() <= made().items():
        print(f"{FOLDER.relative_to(ROOT)} is of these sources already")
        return 0
    new, old = FOLDER.with_name("compiled.new"), FOLDER.with_name("compiled.old")
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    build(new)
    if source_hashes() != before:
        print("compiled: the sources changed meanwhile: make compiled again", file=sys.stderr)
        return 1
    files = sorted(path.relative_to(new) for path in new.rglob(f"*{SUFFIX}"))
    modules = {module_name(path): path.as_posix() for path in files}
    (new / MANIFEST).write_text(json.dumps({**key, "modules": modules}, indent=1), encoding="utf-8")
    if FOLDER.exists():
        FOLDER.rename(old)
    new.rename(FOLDER)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{len(modules) - 1} modules compiled into {FOLDER.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
