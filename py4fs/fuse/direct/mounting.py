"""Getting a connection to the kernel: mount(2) as root, fusermount3 for everybody else, or a descriptor handed over."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess

from py4fs.fuse.mount import MOUNT_FLAGS, FuseOptions, MountError, MountPoint

_libc = ctypes.CDLL(None, use_errno=True)


def mount(where: MountPoint, options: FuseOptions, image: str) -> int:
    """Mount and return the descriptor to serve. Raises MountError."""
    if where.passed:
        return os.dup(where.fd)
    if os.geteuid() == 0:
        fd = open_fuse()
        try:
            mount_as_root(fd, where, options, image)
        except BaseException:
            os.close(fd)
            raise
        return fd
    return _fusermount(where, options, image)


def open_fuse() -> int:
    """A fresh /dev/fuse. Raises MountError."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(exc.errno or errno.EIO, f"/dev/fuse: {exc.strerror}", 2) from exc


def mount_as_root(fd: int, where: MountPoint, options: FuseOptions, image: str) -> None:
    """mount(2) with `fd` of /dev/fuse as the connection. Raises MountError."""
    mode = stat.S_IFMT(os.fstat(where.fd).st_mode)
    data = [f"fd={fd}", f"rootmode={mode:o}", "user_id=0", "group_id=0"]
    if options.default_permissions:
        data.append("default_permissions")
    if options.allow_other:
        data.append("allow_other")
    if options.max_read is not None:
        data.append(f"max_read={options.max_read}")
    kind, source = "fuse", options.fsname or image
    if options.block_size is not None:
        # umount(2) of these waits until everything is written, and the kernel sends SYNCFS and BMAP
        kind, source = "fuseblk", image
        data.append(f"blksize={options.block_size}")
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(where.for_libfuse()),
        f"{kind}.{options.subtype}".encode(),
        ctypes.c_ulong(_flags(options)),
        ",".join(data).encode(),
    )
    if done != 0:
        code = ctypes.get_errno()
        raise MountError(code, f"cannot mount on {where.path}: {os.strerror(code)}")


def _flags(options: FuseOptions) -> int:
    wanted = {
        "ro": options.readonly,
        "nosuid": not options.suid,
        "nodev": not options.dev,
        "noexec": not options.exec,
        "sync": options.sync,
        "dirsync": options.dirsync,
        "noatime": options.noatime,
        "lazytime": options.lazytime,
        "nosymfollow": not options.symfollow,
    }
    return sum(MOUNT_FLAGS[word] for word, given in wanted.items() if given)


def _fusermount(where: MountPoint, options: FuseOptions, image: str) -> int:
    """The set-uid helper mounts, and sends the descriptor through a socket (util/fusermount.c's protocol)."""
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError(errno.ENOENT, "fusermount3 is not installed (package fuse3)", 2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = sorted(str(word) for word in options.for_libfuse(image))
        done = subprocess.Popen(
            [program, "-o", ",".join(words), "--", where.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        fd = _receive(ours)
        _, text = done.communicate()
    if fd is None or done.returncode != 0:
        if fd is not None:
            os.close(fd)
        why = " ".join(text.split()).removeprefix("fusermount3: ") or f"fusermount3: exit {done.returncode}"
        raise MountError(errno.EPERM, f"cannot mount on {where.path}: {why}")
    return fd


def _receive(channel: socket.socket) -> int | None:
    """The descriptor that comes through a socket, None if the other side goes without sending one."""
    room = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(room.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            room.frombytes(data[: room.itemsize])
            os.set_inheritable(room[0], False)
            return room[0]
    return None
