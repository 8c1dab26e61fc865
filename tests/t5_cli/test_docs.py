"""What is made from the parser says all that the parser knows."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from py4fs.cli import option_docs
from py4fs.cli.main import COMMANDS, build_parser
from py4fs.cli.option_table import FLAGS, IDLE, VALUED
from tests.support import machine
from tests.support.mounted import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("argparse_manpage", reason=machine.NEEDS + "argparse-manpage")
    pytest.importorskip("shtab", reason=machine.NEEDS + "shtab")
    target = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, ROOT / "tools/make_docs.py", target], check=True, cwd=ROOT)
    return target


def options_of_commands() -> Iterator[tuple[str, str]]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        for action in parser._actions:
            yield from ((name, option) for option in action.option_strings if action.dest != "help")


def plain(page: str) -> str:
    return page.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "").replace("\\fR", "").replace("\\fI", "")


def test_man_pages(built: Path) -> None:
    page = plain((built / "man/py4fs.1").read_text())
    helper = plain((built / "man/mount.py4fs.8").read_text())
    for command in COMMANDS:
        assert f"py4fs {command}" in page
    for command, option in options_of_commands():
        assert option in page, (command, option)
    for text in (page, helper):
        for word in FLAGS:
            assert f".B {word}\n" in text
        for word, valued in VALUED.items():
            assert f".B {word}={valued.argument}\n" in text
        assert all(word.rstrip("=?") in text for row in IDLE for word in row.words)
    for name in ("py4fs.1", "mount.py4fs.8"):
        assert (built / "man" / f"{name}.gz").stat().st_size > 500


def test_man_pages_can_be_shown(built: Path) -> None:
    machine.need_program("man")
    for page in ("py4fs.1", "mount.py4fs.8"):
        done = subprocess.run(
            ["man", "--warnings", "-l", built / "man" / page], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "max_dir_size_kb" in done.stdout


def test_completions(built: Path) -> None:
    for name in ("py4fs", "_py4fs"):
        text = (built / "completion" / name).read_text()
        assert all(command in text for command in COMMANDS)
        assert all(option in text for _, option in options_of_commands())
    subprocess.run(["bash", "-n", built / "completion/py4fs"], check=True)


def test_the_page_of_options_is_up_to_date() -> None:
    assert (ROOT / "docs/OPTIONS.md").read_text() == option_docs.markdown(), "run `make docs`"
