"""A block device that is mounted already, mounted once more: two mounts of one file system, as of the kernel's ext4.

The kernel finds the file system of a device that a fuseblk mount holds (get_tree_bdev) and uses it again; no second
server comes into it. Other images have no such thing: `mount --bind` does the same for them.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from typing import Final

from py4fs.errors import Busy
from py4fs.fuse import mount, mountinfo
from py4fs.fuse.direct import mounting
from py4fs.fuse.mount import FuseOptions, MountError, MountPoint

_BLOCK: Final = 512  # taken from the mount that is there


def is_served(image: str) -> bool:
    """Whether a path is that of a block device which a fuseblk mount of py4fs holds, and this is root."""
    if os.geteuid() != 0:
        return False
    try:
        info = os.stat(image)  # noqa: PTH116
    except OSError:
        return False
    if not stat.S_ISBLK(info.st_mode):
        return False
    device = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    return any(m.device == device and m.is_py4fs for m in mountinfo.mounts())


def mount_again(where: MountPoint, options: FuseOptions, image: str) -> None:
    """Mount what :func:`is_served`. Raises MountError, Busy (it is just being unmounted)."""
    fuse = mounting.open_fuse()
    try:
        mounting.mount_as_root(fuse, where, replace(options, block_size=_BLOCK), image)
    except MountError as exc:
        if exc.errno == errno.EBUSY:
            text = "it is mounted already, and one file system is read-only, or read-write, in all its mounts"
            raise MountError(errno.EBUSY, text) from exc
        raise
    finally:
        os.close(fuse)
    try:
        os.stat(where.path)  # noqa: PTH116
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            raise MountError(exc.errno or errno.EIO, f"mounted, but {exc.strerror}") from exc
        # the other mount went meanwhile, and ours was made anew: nobody serves it
        mount.unmount(where.path, lazy=True)
        raise Busy("it is being unmounted elsewhere") from exc
