"""docs/CONFORMANCE.md names the limits as the code has them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs/CONFORMANCE.md"


def test_limits() -> None:
    rows = re.findall(r"^\| .+ \| ([0-9.]+) \| `(py4fs[\w.]+)\.(\w+)` \|$", TABLE.read_text(), re.MULTILINE)
    assert len(rows) > 10
    for value, module, name in rows:
        assert getattr(importlib.import_module(module), name) == float(value), name
