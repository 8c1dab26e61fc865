"""Encrypted directories, written by the kernel with a key that is gone when the image is unmounted."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from images.content import pattern

FS_IOC_ADD_ENCRYPTION_KEY = 0xC0506617
FS_IOC_SET_ENCRYPTION_POLICY = 0x800C6613
_KEY = bytes(range(64))
_AES_256_XTS, _AES_256_CTS, _PAD_16, _BY_IDENTIFIER = 1, 4, 2, 2


def _add_key(directory: int) -> bytes:
    """Give the file system the key; returns its identifier."""
    argument = bytearray(struct.pack("<II32xII32x", _BY_IDENTIFIER, 0, len(_KEY), 0) + _KEY)
    fcntl.ioctl(directory, FS_IOC_ADD_ENCRYPTION_KEY, argument)
    return bytes(argument[8:24])


def encrypted(root: Path) -> None:
    """Two encrypted directories: of everything, and of many names with all lengths."""
    for name in ("secret", "many"):
        path = root / name
        path.mkdir()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            policy = struct.pack("<BBBB4x16s", 2, _AES_256_XTS, _AES_256_CTS, _PAD_16, _add_key(fd))
            fcntl.ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, policy)
        finally:
            os.close(fd)
    base = root / "secret"
    (base / "file").write_bytes(pattern("secret", 50_000))
    (base / "empty").write_bytes(b"")
    os.setxattr(base / "file", "user.seen", b"without a key")
    (base / ("n" * 255)).write_bytes(b"1")
    (base / "short link").symlink_to("to")
    (base / "long link").symlink_to("t" * 400)
    (base / "directory/below").mkdir(parents=True)
    (base / "directory/below/file").write_bytes(b"2")
    (base / "hard").hardlink_to(base / "file")
    for number in range(400):
        (root / "many" / (f"{number}" + "x" * (number % 200))).write_bytes(b"")
