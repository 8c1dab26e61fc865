"""Which code runs: what lies in build/compiled is used only if it was made from the very sources that are here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from py4fs import compiled
from tests.support.mounted import run_py4fs

TWIN = "py4fs.device.twin_of_a_test"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of build/compiled."""
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, TWIN, raising=False)
    monkeypatch.delenv("PY4FS_COMPILED", raising=False)
    return tmp_path


def fill(folder: Path, **changes: Any) -> None:
    """A manifest that fits, but for `changes`, and one module; Python in place of machine code."""
    (folder / "twin.py").write_text("HERE = True\n", encoding="ascii")
    made = {"suffix": compiled.SUFFIX, "modules": {TWIN: "twin.py"}, "sources": compiled.source_hashes()}
    (folder / compiled.MANIFEST).write_text(json.dumps(made | changes), encoding="utf-8")


def test_what_fits_the_sources_is_used(folder: Path) -> None:
    fill(folder)
    assert compiled.find_twins() == ""
    assert importlib.import_module(TWIN).HERE
    del sys.modules[TWIN]


@pytest.mark.parametrize("name", ["ext4/extents.py", "errors.py", "vfs/__init__.py"])
@pytest.mark.parametrize("hashed", ["0123456789abcdef", None])
def test_one_other_source_and_nothing_is_used(folder: Path, name: str, hashed: str | None) -> None:
    sources = compiled.source_hashes()
    if hashed is None:
        del sources[name]
    else:
        sources[name] = hashed
    fill(folder, sources=sources)
    assert "other sources" in compiled.find_twins()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(TWIN)


def test_a_source_that_is_gone_is_another_one(folder: Path) -> None:
    fill(folder, sources=compiled.source_hashes() | {"ext4/gone.py": "0123456789abcdef"})
    assert "other sources" in compiled.find_twins()


def test_another_python(folder: Path) -> None:
    fill(folder, suffix=".cpython-399-pdp11-linux-gnu.so")
    assert "another Python" in compiled.find_twins()


def test_the_environment_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.find_twins() == "nothing is compiled"
    monkeypatch.setenv("PY4FS_COMPILED", "1")
    with pytest.raises(ImportError, match="PY4FS_COMPILED=1, but nothing is compiled"):
        compiled.find_twins()
    fill(folder)
    monkeypatch.setenv("PY4FS_COMPILED", "0")
    assert compiled.find_twins() == "PY4FS_COMPILED=0"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(TWIN)


def test_all_that_compiled_modules_import_is_looked_at() -> None:
    sources = compiled.source_hashes()
    some = {"__init__.py", "errors.py", "ext4/layout/inode.py", "fuse/direct/core.py", "vfs/__init__.py"}
    assert some <= set(sources)
    assert not [name for name in sources if name.startswith("cli/")]


def test_the_version_tells() -> None:
    core = "compiled" if compiled.active() else "interpreted"
    assert f"(core {core}" in run_py4fs("--version").stdout
