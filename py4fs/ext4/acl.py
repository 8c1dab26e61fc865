"""POSIX ACLs: the compact form on disk, the form of the `system.posix_acl_*` attributes, and their rules.

On disk (version 1) entries without an id take 4 bytes, others 8; attributes (version 2) use 8 bytes for each.
The rules are POSIX 1003.1e's as Linux has them: an ACL that says no more than the mode bits is not stored.
Everything here is pure: ACLs are tuples of entries.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from construct import Int16ul, Int32ul, Struct

from py4fs.errors import Corrupt, Invalid, NotSupported
from py4fs.ext4.layout.codec import derive

AclHeader = Struct("a_version" / Int32ul)
AclEntryShort = Struct("e_tag" / Int16ul, "e_perm" / Int16ul)
AclEntry = Struct("e_tag" / Int16ul, "e_perm" / Int16ul, "e_id" / Int32ul)

ACL_HEADER: Final = derive(AclHeader, "AclHeader")
ACL_ENTRY_SHORT: Final = derive(AclEntryShort, "AclEntryShort")
ACL_ENTRY: Final = derive(AclEntry, "AclEntry")

NAME_ACCESS: Final = b"system.posix_acl_access"
NAME_DEFAULT: Final = b"system.posix_acl_default"
_KINDS: Final = {NAME_ACCESS: False, NAME_DEFAULT: True}

EXT4_ACL_VERSION: Final = 1
POSIX_ACL_XATTR_VERSION: Final = 2
ACL_UNDEFINED_ID: Final = 0xFFFFFFFF

ACL_USER_OBJ: Final = 0x01
ACL_USER: Final = 0x02
ACL_GROUP_OBJ: Final = 0x04
ACL_GROUP: Final = 0x08
ACL_MASK: Final = 0x10
ACL_OTHER: Final = 0x20

_WITH_ID: Final = (ACL_USER, ACL_GROUP)
_WITHOUT_ID: Final = (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER)
_RWX: Final = 0o7


class AclEnt(NamedTuple):
    """One entry: tag (ACL_*), permissions (0..7), uid or gid for ACL_USER and ACL_GROUP."""

    tag: int
    perm: int
    id: int = ACL_UNDEFINED_ID


Acl = tuple[AclEnt, ...]


class Inherited(NamedTuple):
    """What a new inode gets: all of i_mode, its access ACL and its default ACL (None: none is stored)."""

    mode: int
    access: Acl | None
    default: Acl | None


def xattr_kind(name: bytes) -> bool | None:
    """Whether an attribute is the default ACL (True) or the access ACL (False); None for any other."""
    return _KINDS.get(name)


# -- forms -----------------------------------------------------------------------------------------------------


def from_disk(raw: bytes, where: str) -> Acl | None:
    """The ACL of a stored attribute value; None for one without entries. Raises Corrupt."""
    if len(raw) < ACL_HEADER.size:
        raise Corrupt("ACL", where, f"{len(raw)} bytes", f"at least {ACL_HEADER.size}")
    version = ACL_HEADER.get(raw, 0, "a_version")
    if version != EXT4_ACL_VERSION:
        raise Corrupt("ACL version", where, version, EXT4_ACL_VERSION)
    at = ACL_HEADER.size
    entries = []
    while at < len(raw):
        tag, perm = ACL_ENTRY_SHORT.unpack_from(raw, at)
        if tag in _WITH_ID:
            entries.append(AclEnt(*ACL_ENTRY.unpack_from(raw, at)))
            at += ACL_ENTRY.size
        elif tag in _WITHOUT_ID:
            entries.append(AclEnt(tag, perm))
            at += ACL_ENTRY_SHORT.size
        else:
            raise Corrupt("ACL entry tag", f"{where}, byte {at}", tag)
    acl = tuple(entries)
    if acl:
        try:
            validate(acl)
        except Invalid as exc:
            raise Corrupt("ACL", where, exc.message) from None
    return acl or None


def to_disk(acl: Acl) -> bytes:
    """The stored form of a valid ACL."""
    parts = [ACL_HEADER.pack(EXT4_ACL_VERSION)]
    for tag, perm, ident in acl:
        if tag in _WITH_ID:
            parts.append(ACL_ENTRY.pack(tag, perm, ident))
        else:
            parts.append(ACL_ENTRY_SHORT.pack(tag, perm))
    return b"".join(parts)


def from_xattr(value: bytes) -> Acl | None:
    """The ACL of a `system.posix_acl_*` value; None for one without entries (it removes the ACL).

    Raises Invalid (malformed, or not a valid ACL) and NotSupported (another version).
    """
    if len(value) < ACL_HEADER.size:
        raise Invalid(f"ACL of {len(value)} bytes")
    version = ACL_HEADER.get(value, 0, "a_version")
    if version != POSIX_ACL_XATTR_VERSION:
        raise NotSupported(f"ACL version {version}")
    count, rest = divmod(len(value) - ACL_HEADER.size, ACL_ENTRY.size)
    if rest:
        raise Invalid(f"ACL of {len(value)} bytes")
    acl = []
    for tag, perm, ident in ACL_ENTRY.iter_unpack(value, ACL_HEADER.size, count):
        acl.append(AclEnt(tag, perm, ident if tag in _WITH_ID else ACL_UNDEFINED_ID))
    if not acl:
        return None
    validate(tuple(acl))
    return tuple(acl)


def to_xattr(acl: Acl) -> bytes:
    """The value of a `system.posix_acl_*` attribute."""
    return ACL_HEADER.pack(POSIX_ACL_XATTR_VERSION) + b"".join(ACL_ENTRY.pack(*entry) for entry in acl)


# -- rules -----------------------------------------------------------------------------------------------------


def validate(acl: Acl) -> None:
    """Check the order of entries and that a mask is there when it must be. Raises Invalid."""
    state = ACL_USER_OBJ
    needs_mask = False
    for tag, perm, ident in acl:
        if perm & ~_RWX:
            raise Invalid(f"ACL permissions {perm:#o}")
        if tag == ACL_USER_OBJ and state == ACL_USER_OBJ:
            state = ACL_USER
        elif tag == ACL_GROUP_OBJ and state == ACL_USER:
            state = ACL_GROUP
        elif (tag == ACL_USER and state == ACL_USER) or (tag == ACL_GROUP and state == ACL_GROUP):
            if ident == ACL_UNDEFINED_ID:
                raise Invalid("ACL entry without an id")
            needs_mask = True
        elif tag == ACL_MASK and state == ACL_GROUP:
            state = ACL_OTHER
        elif tag == ACL_OTHER and (state == ACL_OTHER or (state == ACL_GROUP and not needs_mask)):
            state = 0
        else:
            raise Invalid(f"ACL entry with tag {tag:#x} out of place")
    if state:
        raise Invalid("ACL that is not complete")


def equiv_mode(acl: Acl, mode: int) -> tuple[int, bool]:
    """(mode with the permission bits that the ACL gives, whether the bits say all of it).

    With a mask, the group bits are the mask.
    """
    user = group = other = 0
    mask: int | None = None
    equivalent = True
    for tag, perm, _ in acl:
        if tag == ACL_USER_OBJ:
            user = perm
        elif tag == ACL_GROUP_OBJ:
            group = perm
        elif tag == ACL_OTHER:
            other = perm
        else:
            equivalent = False
            if tag == ACL_MASK:
                mask = perm
    bits = user << 6 | (group if mask is None else mask) << 3 | other
    return mode & ~0o777 | bits, equivalent


def update_mode(acl: Acl, mode: int) -> tuple[int, Acl | None]:
    """What setting an access ACL does: (the new i_mode, the ACL to store or None when the mode says it all)."""
    mode, equivalent = equiv_mode(acl, mode)
    return mode, None if equivalent else acl


def chmod(acl: Acl, mode: int) -> Acl:
    """The access ACL after a chmod: owner, other, and mask (else the owning group) follow the mode."""
    group_tag = _group_class(acl)
    new = {ACL_USER_OBJ: mode >> 6 & _RWX, group_tag: mode >> 3 & _RWX, ACL_OTHER: mode & _RWX}
    return tuple(entry._replace(perm=new.get(entry.tag, entry.perm)) for entry in acl)


def inherit(default: Acl | None, mode: int, *, is_dir: bool, umask: int = 0) -> Inherited:
    """What a new inode (not a symlink) gets in a directory with this default ACL (kernel: posix_acl_create).

    `mode` is the i_mode asked for; the umask counts only where there is no default ACL.
    """
    if default is None:
        return Inherited(mode & ~(umask & 0o777), None, None)
    group_tag = _group_class(default)
    shift = {ACL_USER_OBJ: 6, group_tag: 3, ACL_OTHER: 0}
    access = []
    bits = 0
    for entry in default:
        if entry.tag in shift:
            perm = entry.perm & (mode >> shift[entry.tag])
            bits |= perm << shift[entry.tag]
            entry = entry._replace(perm=perm)
        access.append(entry)
    _, equivalent = equiv_mode(default, 0)
    return Inherited(mode & ~0o777 | bits, None if equivalent else tuple(access), default if is_dir else None)


def _group_class(acl: Acl) -> int:
    """The tag whose entry the group bits of a mode stand for."""
    return ACL_MASK if any(entry.tag == ACL_MASK for entry in acl) else ACL_GROUP_OBJ
