"""The -o words of `py4fs mount`: a parser that knows every word of the table or names the one it does not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from py4fs.cli.common import UsageError
from py4fs.cli.option_table import FLAGS, PREFIXES, ROOT_ONLY, VALUED, idle_words

_IDLE, _IDLE_VALUED = idle_words()


@dataclass
class MountSettings:
    """What the -o words ask for; the defaults are the safe ones."""

    readonly: bool = False
    remount: bool = False
    offset: int = 0  # bytes
    partition: int | None = None
    commit: float = 5.0  # seconds
    atime: str = "relatime"
    lazytime: bool = False
    symfollow: bool = True
    minixdf: bool = False
    user_xattr: bool = True
    verify: str = "merkle"  # whether verity files are compared with their Merkle tree
    quota_limits: tuple[str, ...] = ()  # these words add up
    errors: str | None = None
    barrier: bool = True
    data: str = "ordered"  # all three are: file data is on the device before the commit that shows it
    norecovery: bool = False
    journal_path: str | None = None
    backup_superblock: int | None = None  # bytes
    acl: bool = True
    grpid: bool | None = None
    discard: bool | None = None
    resuid: int | None = None
    resgid: int | None = None
    max_dir_size: int = 0  # bytes
    cache_bytes: int | None = None
    allow_other: bool = False
    fakeroot: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    sync: bool = False
    dirsync: bool = False
    max_read: int | None = None  # bytes
    iomap: str = "auto"
    fsname: str | None = None
    subtype: str = "py4fs"
    trace: bool = False
    timing: bool = False
    lockfile: str | None = None
    oom_score_adj: int | None = None
    keep_caps: bool = False
    service: str | None = None
    given: set[str] = field(default_factory=set)  # settings that some word set


def split_words(text: str) -> list[str]:
    """Split at commas; a backslash keeps the next character (fsname=a\\,b)."""
    words = [""]
    chars = iter(text)
    for char in chars:
        if char == ",":
            words.append("")
        else:
            words[-1] += next(chars, "\\") if char == "\\" else char
    return [word for word in words if word]


def parse(arguments: Iterable[str], *, by_root: bool | None = None) -> MountSettings:
    """All -o arguments, later words winning. UsageError names the first word that is unknown or wrong.

    ``by_root``: whether root gives them; None: whether this is root.
    """
    settings = MountSettings()
    for argument in arguments:
        for word in split_words(argument):
            _apply(settings, word)
    if not (os.geteuid() == 0 if by_root is None else by_root):
        for name, (setting, value) in ROOT_ONLY.items():
            if getattr(settings, setting) == value:
                raise UsageError(f"option {name}: only root may give it")
    return settings


def _apply(settings: MountSettings, word: str) -> None:
    if word in _IDLE or word.startswith(PREFIXES):
        return
    name, equals, text = word.partition("=")
    if equals and name in _IDLE_VALUED:
        return
    found: dict[str, object]
    if not equals and name in FLAGS:
        found = FLAGS[name].settings
    elif name in VALUED:
        option = VALUED[name]
        if not equals:
            raise UsageError(f"option {name} needs a value: {name}=...")
        try:
            found = {option.setting: option.convert(text)}
        except ValueError as exc:
            raise UsageError(f"option {word}: {exc}") from None
    elif name in FLAGS or name in _IDLE:
        raise UsageError(f"option {name} takes no value")
    elif name in _IDLE_VALUED:
        raise UsageError(f"option {name} needs a value: {name}=...")
    else:
        raise UsageError(f"unknown mount option: {word}")
    for setting, value in found.items():
        if setting == "quota_limits" and isinstance(value, tuple) and value:
            value = (*settings.quota_limits, *value)  # these words add up
        setattr(settings, setting, value)
    settings.given.update(found)
