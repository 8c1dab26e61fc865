"""`py4fs mount` in the process that serves: open the image, mount, stay until it is unmounted."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError, UsageError, about, notices, tell
from py4fs.cli.options import MountSettings
from py4fs.device.passed import shown
from py4fs.errors import FsError, ReadOnly

if TYPE_CHECKING:
    from py4fs.api import Filesystem
    from py4fs.fuse.clock import KernelClock
    from py4fs.fuse.mount import FuseOptions, MountPoint


@dataclass(frozen=True)
class Job:
    """What to serve, where."""

    name: str  # the image as the user gave it
    image: str  # its path as /proc/mounts will show it; /dev/fd/N: a descriptor
    directory: MountPoint
    settings: MountSettings
    session: str  # auto, direct or pyfuse3
    mounted_on: str = ""  # where somebody else mounts it


def exit_code(exc: Exception) -> int:
    """mount(8)'s exit code for a failure."""
    return int(getattr(exc, "exit_code", EXIT_MOUNT))


def serve(job: Job, ready: Callable[[], None], opened: Callable[[Filesystem], None] = lambda _: None) -> int:
    """Serve until it is unmounted; returns the exit code. Raises CommandError.

    `opened(filesystem)` is called before it is mounted, `ready()` when the mount answers.
    """
    try:
        from py4fs.fuse import lifecycle, process
    except ImportError as exc:
        raise CommandError(f"cannot mount, {exc} (pip install 'py4fs[fuse]')", EXIT_SYSTEM) from exc
    from py4fs.fuse.clock import KernelClock
    from py4fs.fuse.timings import Timings

    settings, clock = job.settings, KernelClock()
    with contextlib.ExitStack() as stack:
        try:
            if settings.lockfile is not None:
                stack.enter_context(process.lock_file(settings.lockfile))
            if settings.oom_score_adj is not None:
                process.set_oom_score(settings.oom_score_adj)
        except FsError as exc:
            raise CommandError(about(job.name, exc), exit_code(exc)) from exc
        filesystem = _open(job, clock)
        notices(job.name, filesystem.notices)
        try:
            opened(filesystem)
        except BaseException:
            filesystem.close()
            raise
        what = lifecycle.Serving(
            image=shown(job.image),
            mountpoint=job.directory,
            options=fuse_options(settings, readonly=filesystem.volume.readonly),
            commit_interval=settings.commit,
            clock=clock,
            session=chosen_session(job.session),
            iomap=settings.iomap,
            timings=Timings() if settings.timing else None,
            keep_privileges=settings.keep_caps,
        )
        try:
            return lifecycle.serve(filesystem, what, ready)
        except FsError as exc:
            raise CommandError(about(job.name, exc), exit_code(exc)) from exc


def _open(job: Job, clock: KernelClock) -> Filesystem:
    from py4fs.api import OpenOptions, open_image
    from py4fs.ext4.volume import VolumeOptions

    settings = job.settings
    options = OpenOptions(
        readonly=settings.readonly,
        offset=settings.offset,
        partition=settings.partition,
        minixdf=settings.minixdf,
        errors=settings.errors,
        barrier=settings.barrier,
        norecovery=settings.norecovery,
        journal_path=settings.journal_path,
        atime=settings.atime,
        verify_data=settings.verify == "merkle",
        user_xattr=settings.user_xattr,
        quota_limits=frozenset(settings.quota_limits),
        dirsync=settings.dirsync or settings.sync,  # what sync means for file data the kernel does itself
        mounted_on=os.fsencode(job.mounted_on or job.directory.path),
        volume=VolumeOptions(
            cache_bytes=settings.cache_bytes,
            acl=settings.acl,
            grpid=settings.grpid,
            resuid=settings.resuid,
            resgid=settings.resgid,
            max_dir_size=settings.max_dir_size,
            discard=settings.discard,
            backup_superblock=settings.backup_superblock,
        ),
    )
    try:
        try:
            return open_image(job.image, clock=clock, options=options)
        except ReadOnly:
            if not goes_on_read_only(job.name, settings):
                raise
            return open_image(job.image, clock=clock, options=replace(options, readonly=True))
    except OSError as exc:
        hint = "; -o ro mounts it read-only" if _only_reading_allowed(job.image, exc, settings) else ""
        raise CommandError(about(job.name, exc) + hint, EXIT_MOUNT) from exc


def goes_on_read_only(name: str, settings: MountSettings) -> bool:
    """What cannot be written is mounted read-only, as by mount(8), unless `rw` was asked for; the user is told."""
    if "readonly" in settings.given:
        return False
    tell(f"{name}: WARNING: write-protected, mounting it read-only")
    return True


def _only_reading_allowed(image: str, exc: OSError, settings: MountSettings) -> bool:
    denied = isinstance(exc, PermissionError) or exc.errno == errno.EROFS
    return denied and not settings.readonly and os.access(image, os.R_OK)


def chosen_session(asked: str) -> str:
    """The session to use: the direct one speaks Linux' own protocol."""
    if asked != "auto":
        return asked
    return "direct" if sys.platform == "linux" else "pyfuse3"


def check_session(session: str, settings: MountSettings) -> None:
    """Raises UsageError for options that the session does not know."""
    if chosen_session(session) != "direct":
        for word, given in (
            ("lazytime", settings.lazytime),
            ("nosymfollow", not settings.symfollow),
            # libfuse wants to hear of it a second time, which pyfuse3 cannot say
            ("max_read", settings.max_read is not None),
        ):
            if given:
                raise UsageError(f"option {word}: with --session direct only")


def fuse_options(settings: MountSettings, *, readonly: bool) -> FuseOptions:
    """The kernel's part of the settings."""
    from py4fs.fuse.mount import FuseOptions

    return FuseOptions(
        readonly=readonly,
        allow_other=settings.allow_other,
        default_permissions=not settings.fakeroot,
        suid=settings.suid and not settings.fakeroot,
        dev=settings.dev and not settings.fakeroot,
        exec=settings.exec,
        sync=settings.sync,
        dirsync=settings.dirsync,
        noatime=settings.atime == "noatime",
        lazytime=settings.lazytime,
        symfollow=settings.symfollow,
        fsname=settings.fsname,
        subtype=settings.subtype,
        max_read=settings.max_read,
    )
