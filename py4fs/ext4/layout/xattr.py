"""Extended attributes in the inode and in a block (ext4 docs: Extended Attributes)."""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

# In front of the attributes between i_extra_isize and the inode's end.
XattrIbodyHeader = Struct("h_magic" / Int32ul)
# In front of the attributes in a block of their own.
XattrHeader = Struct(
    "h_magic" / Int32ul,
    "h_refcount" / Int32ul,
    "h_blocks" / Int32ul,
    "h_hash" / Int32ul,
    "h_checksum" / Int32ul,
    "h_reserved" / Bytes(12),  # __le32[3]
)
# Followed by e_name_len bytes of name, padded to 4. Four zero bytes end the list.
XattrEntry = Struct(
    "e_name_len" / Int8ul,
    "e_name_index" / Int8ul,
    "e_value_offs" / Int16ul,
    "e_value_inum" / Int32ul,
    "e_value_size" / Int32ul,
    "e_hash" / Int32ul,
)

XATTR_IBODY_HEADER: Final = derive(XattrIbodyHeader, "XattrIbodyHeader")
XATTR_HEADER: Final = derive(XattrHeader, "XattrHeader")
XATTR_ENTRY: Final = derive(XattrEntry, "XattrEntry")

EXT4_XATTR_MAGIC: Final = 0xEA020000
EXT4_XATTR_REFCOUNT_MAX: Final = 1024
EXT4_XATTR_PAD_BITS: Final = 2
EXT4_XATTR_ROUND: Final = (1 << EXT4_XATTR_PAD_BITS) - 1
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536

# e_name_index
EXT4_XATTR_INDEX_USER: Final = 1
EXT4_XATTR_INDEX_POSIX_ACL_ACCESS: Final = 2
EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT: Final = 3
EXT4_XATTR_INDEX_TRUSTED: Final = 4
EXT4_XATTR_INDEX_LUSTRE: Final = 5
EXT4_XATTR_INDEX_SECURITY: Final = 6
EXT4_XATTR_INDEX_SYSTEM: Final = 7
EXT4_XATTR_INDEX_RICHACL: Final = 8
EXT4_XATTR_INDEX_ENCRYPTION: Final = 9
EXT4_XATTR_INDEX_HURD: Final = 10

INDEX_TO_PREFIX: dict[int, bytes] = {
    EXT4_XATTR_INDEX_USER: b"user.",
    EXT4_XATTR_INDEX_POSIX_ACL_ACCESS: b"system.posix_acl_access",
    EXT4_XATTR_INDEX_POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    EXT4_XATTR_INDEX_TRUSTED: b"trusted.",
    EXT4_XATTR_INDEX_SECURITY: b"security.",
    EXT4_XATTR_INDEX_SYSTEM: b"system.",
    EXT4_XATTR_INDEX_RICHACL: b"system.richacl",
    EXT4_XATTR_INDEX_HURD: b"gnu.",
}
"""What stands in front of the stored name. ACLs and richacl store an empty name: the prefix is all."""

PREFIX_TO_INDEX: tuple[tuple[bytes, int], ...] = tuple(
    sorted(((prefix, index) for index, prefix in INDEX_TO_PREFIX.items()), key=lambda p: -len(p[0]))
)
"""Longest first, so that the first match is the right one."""


def split_name(name: bytes) -> tuple[int, bytes] | None:
    """(e_name_index, stored name) of a full attribute name; None when no namespace matches.

    A prefix that is a whole name (an ACL's) matches only itself; one that ends in a dot needs more behind it.
    """
    for prefix, index in PREFIX_TO_INDEX:
        if prefix.endswith(b"."):
            if name.startswith(prefix) and len(name) > len(prefix):
                return index, name[len(prefix) :]
        elif name == prefix:
            return index, b""
    return None


def join_name(index: int, stored: bytes) -> bytes | None:
    """The full attribute name; None when the index has no namespace that users see."""
    prefix = INDEX_TO_PREFIX.get(index)
    return None if prefix is None else prefix + stored


def entry_size(name_len: int) -> int:
    """Bytes that an entry with a stored name of `name_len` bytes needs."""
    return (XATTR_ENTRY.size + name_len + EXT4_XATTR_ROUND) & ~EXT4_XATTR_ROUND


def value_size(length: int) -> int:
    """Bytes that a value of `length` bytes takes."""
    return (length + EXT4_XATTR_ROUND) & ~EXT4_XATTR_ROUND
