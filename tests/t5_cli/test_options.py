"""The -o words."""

from __future__ import annotations

import math

import pytest

from py4fs.cli import mount, options
from py4fs.cli.common import UsageError, size
from py4fs.cli.option_table import FLAGS, IDLE, VALUED, idle_words


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
        (["iomap=0"], "iomap", "off"),
        (["iomap=off", "iomap=1"], "iomap", "require"),
        (["iomap=off,iomap"], "iomap", "require"),
        (["iomap=off", "iomap=default"], "iomap", "auto"),
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
        (["i", "d", "-sfnv", "-o", "rw"], ["mount", "--fake", "-o", "", "--", "i", "d"]),
        (["i", "d", "-o", "rw,nosuid"], ["mount", "-o", "nosuid", "--", "i", "d"]),
        (["i", "d", "-o", "rw,remount"], ["mount", "-o", "rw,remount", "--", "i", "d"]),
        (["i", "d", "-o", "ro,fsname=a\\,rw"], ["mount", "-o", "ro,fsname=a\\,rw", "--", "i", "d"]),
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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("kernel", {"allow_other": True, "suid": True, "dev": True, "acl": True}),
        ("suid,fakeroot", {"fakeroot": True, "suid": False, "dev": False}),
        ("noacl,acl", {"acl": True}),
        ("noload", {"norecovery": True}),
        ("flush_interval=0", {"commit": math.inf}),
        ("flush_interval=7", {"commit": 7.0}),
        ("cache_size=64k", {"cache_bytes": 65536}),
        ("sb=1", {"backup_superblock": None}),
        ("sb=32768", {"backup_superblock": 32768 << 10}),
        ("journal_dev=0x801", {"journal_path": "/dev/block/8:1"}),
        ("journal_dev=1048833", {"journal_path": "/dev/block/1:257"}),
        ("max_dir_size_kb=4", {"max_dir_size": 4096}),
        ("resuid=5,resgid=6", {"resuid": 5, "resgid": 6}),
        ("oom_score_adj=-500", {"oom_score_adj": -500}),
        ("service", {"service": "/run/py4fs/service.socket"}),
        ("remount,rw,nosuid", {"remount": True, "readonly": False, "suid": False}),
        ("grpid,sysvgroups,nodiscard", {"grpid": False, "discard": False}),
    ],
)
def test_more_words(words: str, wanted: dict[str, object]) -> None:
    settings = options.parse([words], by_root=True)
    assert {name: getattr(settings, name) for name in wanted} == wanted
    assert set(wanted) <= settings.given


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("cache_size=1", "must be from 1024"),
        ("cache_size=3G", "must be from 1024"),
        ("resuid=-1", "must be a number from 0 to 4294967294"),
        ("resgid=root", "must be a number"),
        ("oom_score_adj=1001", "from -1000 to 1000"),
        ("journal_dev=sda", "must be the number of a block device"),
        ("sb=0", "must be a number from 1"),
        ("lockfile=", "is empty"),
        ("errors=reboot", "must be one of continue, remount-ro, panic"),
        ("directio=1", "option directio takes no value"),
        ("stripe", "option stripe needs a value"),
        ("noacl=1", "takes no value"),
        ("uid=1000", "unknown mount option: uid=1000"),
    ],
)
def test_more_wrong_words(word: str, text: str) -> None:
    with pytest.raises(UsageError) as info:
        options.parse([word])
    assert text in str(info.value)


def test_words_without_effect() -> None:
    """Every one of them is taken, with a value where it has one, and sets nothing."""
    for idle in IDLE:
        for word in idle.words:
            for given in {word.replace("=?", ""), word.replace("=?", "=") + "1"} if "=" in word else {word}:
                text = given + "1" if given.endswith("=") else given
                assert options.parse([text]).given == set(), text


def test_no_word_has_two_meanings() -> None:
    plain, valued = idle_words()
    assert not plain & set(FLAGS) and not valued & set(VALUED)
    fields = vars(options.MountSettings())
    assert all(set(flag.settings) <= set(fields) for flag in FLAGS.values())
    assert all(option.setting in fields for option in VALUED.values())
