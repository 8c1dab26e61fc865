"""Which core runs: nothing of a compiled one can be replaced, so tests that do so need the interpreted one."""

from __future__ import annotations

import pytest

from py4fs import compiled


def need_interpreted() -> None:
    """For tests that put something in the place of a method, a class or a constant of the core."""
    if compiled.active():
        pytest.skip("replaces a part of the core, which a compiled one does not allow")
