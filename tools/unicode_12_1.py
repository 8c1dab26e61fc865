#!/usr/bin/env python3
"""Writes py4fs/ext4/unicode_12_1.py: what the kernel's case folding knows of Unicode 12.1.

Run it with a Python whose unicodedata is of that version (3.8); the result does not change any more:

    python3.8 tools/unicode_12_1.py > py4fs/ext4/unicode_12_1.py
"""

import sys
import unicodedata

if unicodedata.unidata_version != "12.1.0":
    sys.exit(f"needs Unicode 12.1.0 (Python 3.8), this Python has {unicodedata.unidata_version}")

# Default_Ignorable_Code_Point of DerivedCoreProperties-12.1.0.txt
IGNORABLE = (
    "AD 34F 61C 115F-1160 17B4-17B5 180B-180E 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0 FFF0-FFF8 "
    "1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"
)


def is_assigned(code: int) -> bool:
    """Whether DerivedAge-12.1.0.txt has it, noncharacters included; surrogates cannot be in UTF-8."""
    if 0xD800 <= code <= 0xDFFF:
        return False
    noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return noncharacter or unicodedata.category(chr(code)) != "Cn"


def ranges() -> str:
    found, start = [], None
    for code in range(0x110001):
        inside = code < 0x110000 and is_assigned(code)
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            found.append(f"{start:X}" if start == code - 1 else f"{start:X}-{code - 1:X}")
            start = None
    return " ".join(found)


def literal(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > 108:
            lines.append(line)
            line = ""
        line += word + " "
    lines.append(line)
    return "\n".join(f'    "{line}"' for line in lines)


print(
    f'''"""Code points of Unicode 12.1, in hexadecimal. Made by tools/unicode_12_1.py, not to be edited."""

ASSIGNED = (
{literal(ranges())}
)

IGNORABLE = (
{literal(IGNORABLE)}
)'''
)
