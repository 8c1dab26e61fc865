"""Machine code in place of the core's sources, where there is any: made by mypyc, from these very sources.

`make compiled` puts it into build/compiled of a checkout. It is used while every source still is what it was made
from, all of it or nothing: compiled modules know each other's classes and constants without asking. What an installed
py4fs has (`PY4FS_COMPILE=1 pip install`) lies beside the sources, where Python finds it without this module.

The environment's PY4FS_COMPILED=0 leaves build/compiled alone, =1 insists on it (ImportError where it cannot be used).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import source_hash, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).parent
FOLDER: Final = PACKAGE.parent / "build/compiled"
MANIFEST: Final = "manifest.json"
SUFFIX: Final = EXTENSION_SUFFIXES[0]
"""Of an extension module for this very Python."""

_NOT_COMPILED_INTO: Final = "cli/"
"""What no compiled module imports."""
_NOTHING: Final = "nothing is compiled"
_UNWANTED: Final = "PY4FS_COMPILED=0"


def source_hashes() -> dict[str, str]:
    """The sources that compiled code depends on: path relative to the package -> hash of the contents."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(_NOT_COMPILED_INTO):
            found[name] = source_hash(path.read_bytes()).hex()
    return found


class _Twins:
    """Finds modules in the folder of the compiled ones: name -> file.

    No importlib.abc.MetaPathFinder, though it acts as one: that module takes as long to import as most of this package.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        # a package's other modules, compiled or not, are looked for where the sources are
        below = [str(PACKAGE.parent / fullname.replace(".", "/"))] if Path(file).name.startswith("__init__") else None
        return spec_from_file_location(fullname, str(FOLDER / file), submodule_search_locations=below)


def find_twins() -> str:
    """Have the core imported from build/compiled, if it may be. Returns why not, empty if it will be.

    Raises ImportError when PY4FS_COMPILED=1 insists.
    """
    wish = os.environ.get("PY4FS_COMPILED", "")
    reason = _UNWANTED if wish == "0" else _look()
    if reason and wish == "1":
        raise ImportError(f"PY4FS_COMPILED=1, but {reason}")
    return reason


def _look() -> str:
    manifest = FOLDER / MANIFEST
    if not manifest.exists():
        return _NOTHING
    import json

    made = json.loads(manifest.read_bytes())
    if made["suffix"] != SUFFIX:
        return f"{FOLDER} is for another Python"
    if made["sources"] != source_hashes():
        return f"{FOLDER} was made from other sources"
    sys.meta_path.insert(0, _Twins(made["modules"]))
    return ""


def active() -> bool:
    """Whether the core that runs is compiled."""
    from py4fs.ext4 import transaction

    spec = transaction.__spec__
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)


def describe() -> str:
    """The same for people, with the reason if there is something compiled that is not used."""
    if active():
        return "compiled"
    return "interpreted" if _REASON in (_NOTHING, _UNWANTED) else f"interpreted, {_REASON}"


_REASON: Final = find_twins()
