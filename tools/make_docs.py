"""Write what is made from the parser and its tables: man pages, shell completions, docs/OPTIONS.md.

    python tools/make_docs.py build        build/man/*, build/completion/*
    python tools/make_docs.py --options    docs/OPTIONS.md
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

from py4fs.cli.main import build_parser
from py4fs.cli.option_docs import markdown, roff

HERE = Path(__file__).resolve().parent.parent
_MOUNT_PAGE = """.TH MOUNT.PY4FS 8 "" py4fs
.SH NAME
mount.py4fs \\- mount an ext4 image in user space
.SH SYNOPSIS
.B mount.py4fs
.I IMAGE DIR
.RB [ \\-fnsv ]
.RB [ \\-o
.IR OPTIONS ]
.SH DESCRIPTION
What
.BR mount (8)
calls for
.B mount \\-t py4fs
and for lines of
.BR fstab (5)
with the type py4fs; mount.fuse.py4fs is the same for the type fuse.py4fs. It does what
.BR "py4fs mount" (1)
does and has its exit codes.
.TP
.B \\-f
fake: check everything that can be checked, mount nothing
.TP
.BR \\-n ", " \\-s ", " \\-v
are accepted
.SH OPTIONS
"""
_SEE_ALSO = """.SH SEE ALSO
.BR py4fs (1),
.BR mount (8),
.BR fstab (5),
.BR e2fsck (8)
"""


def man_pages(target: Path) -> None:
    """py4fs.1 and mount.py4fs.8, compressed. Raises ImportError without argparse-manpage."""
    from argparse_manpage.manpage import Manpage

    parser = build_parser()
    parser.man_short_description = "mount, read and write ext4 images in user space"  # type: ignore[attr-defined]
    parser._manpage = []  # type: ignore[attr-defined]
    page = str(Manpage(parser)).replace("Generated Python Manual", "py4fs") + "\n.SH MOUNT OPTIONS\n" + roff()
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "py4fs.1", page)
    _write(target / "mount.py4fs.8", _MOUNT_PAGE + roff() + _SEE_ALSO)


def _write(path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(page.encode(), mtime=0))


def completions(target: Path) -> None:
    """For bash and zsh. Raises ImportError without shtab."""
    import shtab

    target.mkdir(parents=True, exist_ok=True)
    for shell, name in (("bash", "py4fs"), ("zsh", "_py4fs")):
        (target / name).write_text(shtab.complete(build_parser(), shell=shell), encoding="utf-8")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", nargs="?", type=Path, help="directory for man/ and completion/")
    parser.add_argument("--options", action="store_true", help="write docs/OPTIONS.md")
    args = parser.parse_args(words)
    if args.options:
        (HERE / "docs/OPTIONS.md").write_text(markdown(), encoding="utf-8")
    if args.build is not None:
        man_pages(args.build / "man")
        completions(args.build / "completion")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
