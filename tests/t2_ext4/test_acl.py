"""ACLs: both forms, the rules, and the kernel's answers to the same questions."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt, FsError, Invalid, NotSupported
from py4fs.ext4 import acl
from py4fs.ext4.acl import AclEnt
from tests.conftest import KernelMount
from tests.support.image import ImageMaker

PERM = st.integers(0, 7)
IDS = st.lists(st.integers(0, 0xFFFFFFFE), max_size=4, unique=True).map(sorted)


@st.composite
def acls(draw: st.DrawFn) -> acl.Acl:
    users, groups = draw(IDS), draw(IDS)
    masked = bool(users or groups) or draw(st.booleans())
    return (
        AclEnt(acl.ACL_USER_OBJ, draw(PERM)),
        *(AclEnt(acl.ACL_USER, draw(PERM), uid) for uid in users),
        AclEnt(acl.ACL_GROUP_OBJ, draw(PERM)),
        *(AclEnt(acl.ACL_GROUP, draw(PERM), gid) for gid in groups),
        *((AclEnt(acl.ACL_MASK, draw(PERM)),) if masked else ()),
        AclEnt(acl.ACL_OTHER, draw(PERM)),
    )


def short(text: str) -> acl.Acl:
    """`u7 U5:100 g5 G4:200 m6 o0`"""
    tags = {"u": 1, "U": 2, "g": 4, "G": 8, "m": 16, "o": 32}
    entries = []
    for word in text.split():
        perm, _, ident = word[1:].partition(":")
        entries.append(AclEnt(tags[word[0]], int(perm), int(ident) if ident else acl.ACL_UNDEFINED_ID))
    return tuple(entries)


@given(acls())
def test_both_forms_round_trip(entries: acl.Acl) -> None:
    assert acl.from_disk(acl.to_disk(entries), "x") == entries
    assert acl.from_xattr(acl.to_xattr(entries)) == entries
    named = sum(entry.tag in (acl.ACL_USER, acl.ACL_GROUP) for entry in entries)
    assert len(acl.to_disk(entries)) == 4 + 4 * len(entries) + 4 * named


def test_the_bytes() -> None:
    entries = short("u7 U5:1000 g5 m7 o4")
    assert acl.to_disk(entries).hex() == "01000000" "01000700" "02000500e8030000" "04000500" "10000700" "20000400"
    assert acl.to_xattr(entries) == struct.pack(
        "<I" + "HHI" * 5,
        2,
        *(1, 7, 0xFFFFFFFF, 2, 5, 1000, 4, 5, 0xFFFFFFFF, 16, 7, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF),
    )


@given(st.binary(max_size=80))
def test_any_bytes(raw: bytes) -> None:
    for data in (raw, b"\1\0\0\0" + raw, b"\2\0\0\0" + raw):
        for parse in (lambda data: acl.from_disk(data, "inode 5"), acl.from_xattr):
            try:
                parse(data)
            except FsError as exc:
                assert isinstance(exc, (Corrupt, Invalid, NotSupported))


@pytest.mark.parametrize(
    "text",
    ["", "u7", "u7 g5", "g5 u7 o0", "u7 g5 o0 o0", "u7 U5:1 g5 o0", "u7 g5 G1:1 o0", "u7 g5 U1:1 m5 o0", "u7 g5 o0 m7",
     "u7 u7 g5 o0", "u8 g5 o0", "u7 U5 g5 m5 o0", "u7 g5 m5", "u7 m5 g5 o0"],
)  # fmt: skip
def test_invalid_acls(text: str) -> None:
    with pytest.raises(Invalid):
        acl.validate(short(text))


def test_empty_and_foreign_values() -> None:
    assert acl.from_xattr(b"\2\0\0\0") is None
    assert acl.from_disk(b"\1\0\0\0", "x") is None
    with pytest.raises(NotSupported):
        acl.from_xattr(b"\3\0\0\0")
    with pytest.raises(Invalid):
        acl.from_xattr(b"")
    with pytest.raises(Corrupt, match=r"ACL version \(inode 9\): found 2, expected 1"):
        acl.from_disk(acl.to_xattr(short("u7 g5 o0")), "inode 9")


def test_equivalence() -> None:
    assert acl.update_mode(short("u7 g5 o1"), 0o104000) == (0o104751, None)
    entries = short("u7 U7:5 g5 m2 o1")
    assert acl.update_mode(entries, 0o40000) == (0o40721, entries)
    entries = short("u6 g7 m4 o0")
    assert acl.update_mode(entries, 0o100777) == (0o100640, entries)


@given(acls(), st.integers(0, 0o7777))
def test_chmod_then_the_mode_is_the_acls(entries: acl.Acl, mode: int) -> None:
    changed = acl.chmod(entries, mode)
    assert acl.equiv_mode(changed, mode & ~0o777)[0] == mode
    acl.validate(changed)


def test_kind() -> None:
    assert acl.xattr_kind(b"system.posix_acl_access") is False
    assert acl.xattr_kind(b"system.posix_acl_default") is True
    assert acl.xattr_kind(b"system.posix_acl") is None


# -- the kernel's answers --------------------------------------------------------------------------------------


def stored(path: Path, name: str) -> acl.Acl | None:
    try:
        return acl.from_xattr(os.getxattr(path, name))
    except OSError:
        return None


DEFAULTS = ["u7 g5 o5", "u7 U5:100 g5 m7 o0", "u6 g7 m4 o1", "u0 U7:3 U6:4 g0 G7:5 m0 o7", "u7 g0 G6:70000 m6 o4"]


def test_inheritance_and_chmod_as_the_kernel(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    with kernel_mount(make_image("8M")) as mnt:
        for number, text in enumerate(DEFAULTS):
            default = short(text)
            parent = mnt / f"d{number}"
            parent.mkdir()
            os.setxattr(parent, "system.posix_acl_default", acl.to_xattr(default))
            for mode in (0o777, 0o640, 0o421, 0o000):
                for umask in (0o022, 0o077):
                    old = os.umask(umask)
                    try:
                        file, directory = parent / f"f{mode:o}{umask}", parent / f"s{mode:o}{umask}"
                        os.close(os.open(file, os.O_CREAT | os.O_EXCL, mode))
                        directory.mkdir(mode)
                    finally:
                        os.umask(old)
                    for path, is_dir, kind in ((file, False, stat.S_IFREG), (directory, True, stat.S_IFDIR)):
                        got = acl.inherit(default, kind | mode, is_dir=is_dir, umask=umask)
                        assert got.mode == path.stat().st_mode, (text, oct(mode))
                        assert got.access == stored(path, "system.posix_acl_access")
                        assert got.default == stored(path, "system.posix_acl_default")
                    access = stored(file, "system.posix_acl_access")
                    for new in (0o700, 0o055, 0o421):
                        file.chmod(new)
                        assert stored(file, "system.posix_acl_access") == (access and acl.chmod(access, new))


def test_setting_an_access_acl_as_the_kernel(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    with kernel_mount(make_image("8M")) as mnt:
        path = mnt / "f"
        path.touch(0o604)
        for text in [*DEFAULTS, "u4 g2 o1"]:
            entries = short(text)
            os.setxattr(path, "system.posix_acl_access", acl.to_xattr(entries))
            assert (path.stat().st_mode, stored(path, "system.posix_acl_access")) == acl.update_mode(
                entries, stat.S_IFREG
            )
