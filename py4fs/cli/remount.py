"""`mount -o remount,...` of a py4fs mount: what is there stays, what is asked for changes."""

from __future__ import annotations

import os

from py4fs.cli.common import EXIT_MOUNT, EXIT_SYSTEM, CommandError
from py4fs.cli.options import MountSettings
from py4fs.errors import FsError

#: words of mount(2) by the setting and the value that turn them on
_WORDS = {
    "ro": ("readonly", True),
    "nosuid": ("suid", False),
    "nodev": ("dev", False),
    "noexec": ("exec", False),
    "sync": ("sync", True),
    "dirsync": ("dirsync", True),
    "lazytime": ("lazytime", True),
    "nosymfollow": ("symfollow", False),
}


def run(directory: str, settings: MountSettings) -> int:
    """Exit codes as those of a mount. What only the server's start looks at (offset=, errors=, ...) stays as it is."""
    from py4fs.fuse import mountinfo
    from py4fs.fuse.remount import remount

    found = mountinfo.at(os.path.realpath(directory))
    if found is None or not found.is_py4fs:
        raise CommandError(f"{directory}: not a py4fs mount", EXIT_MOUNT)
    changes = {
        word: getattr(settings, setting) == value
        for word, (setting, value) in _WORDS.items()
        if setting in settings.given
    }
    if "atime" in settings.given:
        changes[settings.atime] = True
    try:
        remount(found, changes)
    except FsError as exc:
        raise CommandError(f"{directory}: {exc}", int(getattr(exc, "exit_code", EXIT_MOUNT))) from exc
    except OSError as exc:
        raise CommandError(f"{directory}: cannot remount: {exc.strerror}", EXIT_SYSTEM) from exc
    return 0
