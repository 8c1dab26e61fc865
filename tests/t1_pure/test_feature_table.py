"""README's feature table says what the gate does."""

from __future__ import annotations

from pathlib import Path

from py4fs.ext4.feature_table import markdown, rows

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_current() -> None:
    assert markdown() in README.read_text(), "run `make features`"


def test_rows() -> None:
    found = {row.name: row for row in rows()}
    assert (found["extent"].read, found["extent"].write) == (True, True)
    assert (found["shared_blocks"].read, found["shared_blocks"].write) == (True, False)
    assert (found["compression"].read, found["compression"].write) == (False, False)
    assert len(found) == len(list(rows())) and not any(name.startswith("FEATURE_") for name in found)
