"""The -o words of `py4fs mount`: a table, and a parser that knows every word or names the one it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from py4fs.cli.common import UsageError, size

# words that mean something to mount(8), fstab(5) or systemd, and nothing more to us
_IGNORED = frozenset(
    (
        *(
            "defaults",
            "auto",
            "noauto",
            "user",
            "nouser",
            "users",
            "group",
            "owner",
            "nofail",
            "_netdev",
            "loop",
        ),
        *("async", "atime", "diratime", "nodiratime", "norelatime", "nostrictatime"),
        *("default_permissions", "acl"),  # always on
    )
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=")

# word -> (setting, value)
_FLAGS: dict[str, tuple[str, object]] = {
    "ro": ("readonly", True),
    "rw": ("readonly", False),
    "allow_other": ("allow_other", True),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "sync": ("sync", True),
    "dirsync": ("dirsync", True),
    "relatime": ("atime", "relatime"),
    "noatime": ("atime", "noatime"),
    "strictatime": ("atime", "strictatime"),
    "norecovery": ("norecovery", True),
    "noload": ("norecovery", True),
    "minixdf": ("minixdf", True),
    "bsddf": ("minixdf", False),
    "quota": ("quota_limits", ("user",)),
    "usrquota": ("quota_limits", ("user",)),
    "grpquota": ("quota_limits", ("group",)),
    "prjquota": ("quota_limits", ("project",)),
    "noquota": ("quota_limits", ()),
    "user_xattr": ("user_xattr", True),
    "nouser_xattr": ("user_xattr", False),
    "barrier": ("barrier", True),
    "nobarrier": ("barrier", False),
}


def _seconds(text: str) -> float:
    """commit=: seconds; 0 means the default, as in ext4(5)."""
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 3600:
        raise ValueError("must be a number of seconds, from 0 to 3600")
    return float(value or 5)


def _partition(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1024:
        raise ValueError("must be from 1 to 1024")
    return value


def _read_size(text: str) -> int:
    value = size(text)
    if not 4096 <= value <= 1 << 20:
        raise ValueError("must be from 4096 to 1048576")
    return value


def _one_of(*allowed: str) -> Callable[[str], object]:
    def check(text: str) -> object:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return check


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _nonempty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


_VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "offset": ("offset", size),
    "partition": ("partition", _partition),
    "commit": ("commit", _seconds),
    "journal_path": ("journal_path", _nonempty),
    "max_read": ("max_read", _read_size),
    "fsname": ("fsname", _nonempty),
    "subtype": ("subtype", _nonempty),
    "errors": ("errors", _one_of("continue", "remount-ro", "panic")),
    "barrier": ("barrier", _switch),
    "iomap": ("iomap", _one_of("auto", "off", "require")),
    "verify": ("verify", _one_of("merkle", "none")),
    "data": ("data", _one_of("ordered", "writeback", "journal")),
}

_ROOT_ONLY = ("suid", "dev")


@dataclass
class MountSettings:
    """What the -o words ask for; the defaults are the safe ones."""

    readonly: bool = False
    offset: int = 0  # bytes
    partition: int | None = None
    commit: float = 5.0  # seconds
    atime: str = "relatime"
    minixdf: bool = False
    user_xattr: bool = True
    verify: str = "merkle"  # whether verity files are compared with their Merkle tree
    quota_limits: tuple[str, ...] = ()  # these words add up
    errors: str | None = None
    barrier: bool = True
    data: str = "ordered"  # all three are: file data is on the device before the commit that shows it
    norecovery: bool = False
    journal_path: str | None = None
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    sync: bool = False
    dirsync: bool = False
    max_read: int | None = None  # bytes
    iomap: str = "auto"
    fsname: str | None = None
    subtype: str = "py4fs"
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


def parse(arguments: Iterable[str]) -> MountSettings:
    """All -o arguments, later words winning. UsageError names the first word that is unknown or wrong."""
    settings = MountSettings()
    for argument in arguments:
        for word in split_words(argument):
            _apply(settings, word)
    if os.geteuid() != 0:
        for name in _ROOT_ONLY:
            if getattr(settings, name):
                raise UsageError(f"option {name}: only root may give it")
    return settings


def _apply(settings: MountSettings, word: str) -> None:
    if word in _IGNORED or word.startswith(_IGNORED_PREFIXES):
        return
    name, equals, text = word.partition("=")
    value: Any
    if not equals and name in _FLAGS:
        setting, value = _FLAGS[name]
    elif name in _VALUES:
        setting, convert = _VALUES[name]
        if not equals:
            raise UsageError(f"option {name} needs a value: {name}=...")
        try:
            value = convert(text)
        except ValueError as exc:
            raise UsageError(f"option {word}: {exc}") from None
    elif name in _FLAGS:
        raise UsageError(f"option {name} takes no value")
    else:
        raise UsageError(f"unknown mount option: {word}")
    if setting == "quota_limits" and value:
        value = (*settings.quota_limits, *value)
    setattr(settings, setting, value)
    settings.given.add(setting)
