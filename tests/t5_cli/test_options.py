"""The -o words."""

from __future__ import annotations

import pytest

from py4fs.cli import mount, options
from py4fs.cli.common import UsageError, size


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        ([], "readonly", False),
        (["ro"], "readonly", True),
        (["ro,rw"], "readonly", False),
        (["rw", "ro"], "readonly", True),
        (["defaults,nofail,_netdev,x-systemd.automount,comment=a b,noauto,user,users,loop"], "given", set()),
        (["offset=1048576"], "offset", 1 << 20),
        (["offset=0x100000"], "offset", 1 << 20),
        (["offset=1M"], "offset", 1 << 20),
        (["partition=2"], "partition", 2),
        (["commit=30"], "commit", 30.0),
        (["commit=0"], "commit", 5.0),
        (["noatime"], "atime", "noatime"),
        (["noatime,relatime"], "atime", "relatime"),
        (["strictatime"], "atime", "strictatime"),
        (["minixdf"], "minixdf", True),
        (["minixdf,bsddf"], "minixdf", False),
        (["allow_other,default_permissions"], "allow_other", True),
        (["noexec"], "exec", False),
        (["fsname=a\\,b,ro"], "fsname", "a,b"),
        (["fsname=a\\,b,ro"], "readonly", True),
        (["max_read=65536"], "max_read", 65536),
        (["iomap=require", "iomap=off"], "iomap", "off"),
        ([",,ro,,"], "readonly", True),
    ],
)
def test_words(words: list[str], setting: str, value: object) -> None:
    assert getattr(options.parse(words), setting) == value


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("bogus", "unknown mount option: bogus"),
        ("bogus=1", "unknown mount option: bogus=1"),
        ("rw=1", "option rw takes no value"),
        ("offset", "option offset needs a value"),
        ("offset=", "not a number of bytes"),
        ("offset=-1", "not a number of bytes"),
        ("offset=1Q", "not a number of bytes"),
        ("commit=x", "option commit=x: must be a number of seconds, from 0 to 3600"),
        ("commit=-1", "must be a number of seconds, from 0 to 3600"),
        ("max_read=1", "must be from 4096"),
        ("iomap=on", "must be one of auto, off, require"),
        ("fsname=", "is empty"),
    ],
)
def test_wrong_words_are_named(word: str, text: str) -> None:
    with pytest.raises(UsageError) as info:
        options.parse(["ro," + word])
    assert text in str(info.value)
    assert info.value.exit_code == 1


def test_only_root_gives_suid_and_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert options.parse(["suid,dev"]).suid
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for word in ("suid", "dev"):
        with pytest.raises(UsageError, match=f"option {word}: only root"):
            options.parse([word])
    assert not options.parse(["suid,nosuid"]).suid


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("12k", 12288), ("3MiB", 3 << 20), ("0x10", 16), ("2TB", 2 << 40)]
)
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["i", "d", "-o", "ro,x-a"], ["mount", "-o", "ro,x-a", "--", "i", "d"]),
        (["i", "d", "-sfnv", "-o", "rw"], ["mount", "--fake", "-o", "rw", "--", "i", "d"]),
        (["i", "d", "-o", "ro", "-t", "py4fs"], ["mount", "-o", "ro", "--", "i", "d"]),
        (["-o", "a", "i", "-o", "b", "d"], ["mount", "-o", "a,b", "--", "i", "d"]),
    ],
)
def test_arguments_of_the_mount_helper(given: list[str], wanted: list[str]) -> None:
    """mount(8) calls mount.py4fs IMAGE DIR [-sfnv] [-N ns] [-o options] [-t type]; -f is *fake* there."""
    assert mount.helper_words(given) == wanted


def test_mount_helper_without_a_directory() -> None:
    with pytest.raises(UsageError, match=r"usage: mount\.py4fs"):
        mount.helper_words(["image"])
