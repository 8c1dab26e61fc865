"""The table of mount options as a page of documentation and as a section of a man page."""

from __future__ import annotations

from collections.abc import Iterator

from py4fs.cli.option_table import FLAGS, IDLE, ROOT_ONLY, VALUED

_INTRO = """# Mount options

Made from the parser's table (`make docs`). `-o WORD,WORD=VALUE`, repeatable, later words win; a backslash keeps
a comma. Every other word is an error that names it.

| option | meaning |
|---|---|
"""
_IDLE_INTRO = """
## Accepted, without effect

So that command lines and fstab lines of the kernel's ext4, of fuse2fs and of libfuse can stay as they are.

| options | why |
|---|---|
"""


def options() -> Iterator[tuple[str, str]]:
    """(word, meaning) of all options that do something."""
    for flag in FLAGS.values():
        yield flag.word, flag.meaning
    for option in VALUED.values():
        yield f"{option.word}={option.argument}", option.meaning


def idle() -> Iterator[tuple[str, str]]:
    """(words, why) of those that do nothing."""
    for row in IDLE:
        yield ", ".join(word.replace("=?", "[=]") for word in row.words), row.why


def markdown() -> str:
    """docs/OPTIONS.md."""
    rows = [f"| `{_cell(word)}` | {_cell(meaning)} |\n" for word, meaning in options()]
    quiet = [f"| `{words}` | {_cell(why)} |\n" for words, why in idle()]
    root = f"\nOnly root may give {', '.join(f'`{word}`' for word in ROOT_ONLY)}, and `service`.\n"
    return _INTRO + "".join(rows) + root + _IDLE_INTRO + "".join(quiet)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def roff() -> str:
    """The same for man(7)."""
    parts = []
    for word, meaning in (*options(), *idle()):
        parts.append(f".TP\n.B {_roff(word)}\n{_roff(meaning)}\n")
    return "".join(parts)


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return "\\&" + text if text.startswith((".", "'")) else text
