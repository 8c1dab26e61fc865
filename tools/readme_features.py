#!/usr/bin/env python3
"""Brings README.md's feature table up to date: `make features`."""

import sys
from pathlib import Path

from py4fs.ext4.feature_table import markdown

BEGIN, END = "<!-- features: made by `make features` -->\n", "<!-- end of features -->\n"


def renewed(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit("README.md: the marks around the feature table are gone")
    return f"{before}{BEGIN}{markdown()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "README.md"
    path.write_text(renewed(path.read_text()))
