"""What a request does not tell about who asks: supplementary groups."""

from __future__ import annotations

from pathlib import Path


def belongs(thread: int, uid: int, gid: int, group: int) -> bool:
    """Whether a thread, which waits in a system call as `uid` and `gid`, is in a group (kernel: in_group_or_capable).

    Root counts as being in all. Supplementary groups are looked up in /proc (proc(5)), as libfuse's fuse_getgroups
    does; where they cannot be seen (a contained server, another process namespace) only `gid` counts.
    """
    return uid == 0 or group == gid or group in supplementary_groups(thread, uid)


def supplementary_groups(thread: int, uid: int) -> frozenset[int]:
    """Those of a thread that acts as `uid`; none where that cannot be seen, or is somebody else by now."""
    try:
        lines = Path(f"/proc/{thread}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    acts_as = fields.get("Uid", ())[3:]  # after the real, effective and saved one
    if acts_as != [str(uid)]:
        return frozenset()
    return frozenset(int(group) for group in fields.get("Groups", ()))
