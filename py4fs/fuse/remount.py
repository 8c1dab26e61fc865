"""`mount -o remount`: the kernel's side by mount(2), the server's by our own ioctl."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Mapping
from typing import Final

from py4fs.errors import NotSupported
from py4fs.fuse.direct.ioctls import CONTROLS, PY4FS_IOC_CONTROL, U32
from py4fs.fuse.mount import MOUNT_FLAGS, MountError, syncfs
from py4fs.fuse.mountinfo import Mount

_MS_REMOUNT: Final = 32
_ATIME: Final = ("noatime", "relatime", "strictatime")
_libc = ctypes.CDLL(None, use_errno=True)


def control(directory: str, what: str) -> None:
    """Tell the server of a mount what to do: one of CONTROLS.

    Raises NotSupported (no mount of the direct session), OSError as the server or the kernel says.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)  # what programs have written and the kernel still keeps
        fcntl.ioctl(fd, PY4FS_IOC_CONTROL, U32.pack(CONTROLS.index(what)))
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP):
            raise NotSupported("not a py4fs mount of the direct session, which alone can be told so") from exc
        raise
    finally:
        os.close(fd)


def remount(found: Mount, changes: Mapping[str, bool]) -> None:
    """Change a mount: ``changes`` says which words of MOUNT_FLAGS are to be on or off; the others stay.

    Read-only, the image is as after a clean unmount. Who is not root can change nothing but that.
    Raises MountError, NotSupported, OSError; then everything is as before.
    """
    before = {word: word in found.options or word in found.mount_options for word in MOUNT_FLAGS}
    after = {**before, **changes}
    for word in _ATIME:
        if changes.get(word):
            after.update({other: other == word for other in _ATIME})
    if os.geteuid() != 0:
        if any(after[word] != before[word] for word in MOUNT_FLAGS if word != "ro"):
            raise MountError(errno.EPERM, "only root can change more than ro and rw", 1)
        control(found.mountpoint, "ro" if after["ro"] else "rw")
    elif after["ro"]:
        _mount(found, after)
        try:
            control(found.mountpoint, "ro")
        except OSError:
            _mount(found, before)
            raise
    else:
        control(found.mountpoint, "rw")
        _mount(found, after)


def _mount(found: Mount, words: Mapping[str, bool]) -> None:
    flags = _MS_REMOUNT | sum(MOUNT_FLAGS[word] for word, on in words.items() if on)
    if _libc.mount(None, os.fsencode(found.mountpoint), None, ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        text = "files are open for writing" if code == errno.EBUSY else os.strerror(code)
        raise MountError(code, f"cannot remount: {text}")
