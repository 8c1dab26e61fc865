"""Encrypted directories and symbolic links without their key: names that stand for what is stored (fscrypt).

A no-key name is base64 of the name's hash in the directory's index and of the stored bytes; of a long name it has the
first 149 and a digest of the rest (kernel: fs/crypto/fname.c, struct fscrypt_nokey_name). Whoever has such a name can
find and remove the entry, and nobody can make one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from struct import Struct
from typing import Final, NamedTuple

from py4fs.errors import Corrupt, NoKey
from py4fs.ext4.dirblock import DirBlock
from py4fs.ext4.dirhash import dirhash
from py4fs.ext4.layout.dirent import dirent_size
from py4fs.ext4.names import DOTS, HashSeed, Names

_HASHES: Final = Struct("<II")
_SYMLINK_HEAD: Final = Struct("<H")
_BYTES: Final = 149
_DIGEST: Final = hashlib.sha256().digest_size


class NoKeyName(NamedTuple):
    """What a no-key name says."""

    major: int
    minor: int
    start: bytes
    digest: bytes | None

    def fits(self, stored: bytes) -> bool:
        if self.digest is None:
            return stored == self.start
        rest = stored[_BYTES:]
        return bool(rest) and stored.startswith(self.start) and hashlib.sha256(rest).digest() == self.digest


def encode(major: int, minor: int, stored: bytes) -> bytes:
    """The name under which a stored one is shown; the hashes are 0 where there is no index."""
    raw = _HASHES.pack(major, minor) + stored[:_BYTES]
    if len(stored) > _BYTES:
        raw += hashlib.sha256(stored[_BYTES:]).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def decode(name: bytes) -> NoKeyName | None:
    """What such a name stands for; None when it is none."""
    try:
        raw = base64.b64decode(name + b"=" * (-len(name) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    if b"=" in name or base64.urlsafe_b64encode(raw).rstrip(b"=") != name:
        return None
    stored = raw[_HASHES.size :]
    if not stored or (len(stored) > _BYTES and len(stored) != _BYTES + _DIGEST):
        return None
    major, minor = _HASHES.unpack_from(raw)
    return NoKeyName(major, minor, stored[:_BYTES], stored[_BYTES:] or None)


def symlink_target(raw: bytes, where: str) -> bytes:
    """What an encrypted symbolic link shows, from its data on disk. Raises Corrupt."""
    if len(raw) <= _SYMLINK_HEAD.size:
        raise Corrupt("encrypted symbolic link", where, f"{len(raw)} bytes", f"more than {_SYMLINK_HEAD.size}")
    (length,) = _SYMLINK_HEAD.unpack_from(raw)
    if not 0 < length <= len(raw) - _SYMLINK_HEAD.size:
        raise Corrupt("encrypted symbolic link", where, length, f"1..{len(raw) - _SYMLINK_HEAD.size} bytes")
    return encode(0, 0, raw[_SYMLINK_HEAD.size : _SYMLINK_HEAD.size + length])


class NoKeyNames(Names):
    """The names of an encrypted directory."""

    any_bytes = True

    def __init__(self, *, hash_in_entry: bool) -> None:
        """`hash_in_entry`: also a casefold directory, whose hashes only the key gives, so they are stored."""
        self.hash_in_entry = hash_in_entry

    def check_new(self, name: bytes) -> None:
        raise NoKey("the directory is encrypted and its key is not here")

    def stored(self, block: DirBlock, name: bytes) -> bytes | None:
        if name in DOTS:
            return name if name in block.names else None
        wanted = decode(name)
        if wanted is None:
            return None
        if wanted.digest is None:
            return wanted.start if wanted.start in block.names else None
        return next((stored for stored in block.names if wanted.fits(stored)), None)

    def hashable(self, name: bytes) -> bool:
        return decode(name) is not None

    def hash(self, name: bytes, version: int, seed: HashSeed) -> int:
        wanted = decode(name)
        assert wanted is not None, name
        return wanted.major & ~1

    def shown(self, block: DirBlock, version: int | None, seed: HashSeed) -> dict[bytes, bytes] | None:
        found = {}
        for name, at in block.names.items():
            if name in DOTS:
                found[name] = name
            elif self.hash_in_entry:
                found[name] = encode(*_stored_hash(block, at, len(name)), name)
            else:
                found[name] = encode(*((0, 0) if version is None else dirhash(name, version, seed)), name)
        return found


def _stored_hash(block: DirBlock, at: int, length: int) -> tuple[int, int]:
    """Behind the name (ext4 docs: struct ext4_dir_entry_hash); 0 where there is no room for it."""
    place = at + dirent_size(length)
    if place + _HASHES.size > block.leaf_end:
        return 0, 0
    major, minor = _HASHES.unpack_from(block.data, place)
    return major, minor
