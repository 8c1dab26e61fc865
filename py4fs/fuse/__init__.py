"""FUSE sessions: adapters that translate requests into vfs calls, and the mount life cycle.

direct      the kernel's protocol itself, read from /dev/fuse by threads; the default on Linux
libfuse     the portable session: libfuse through pyfuse3 and trio
frontend    what the life cycle needs from either
failures    errnos and log lines of requests that fail; writers: what is open for writing; for both
callers     groups of who asks
clock       the clock that the kernel stamps files with
heartbeat   multiple mount protection
lifecycle   trio: runs a session, commits periodically, handles signals, ends with everything on disk
daemon      to the background and back: fork, report to the parent, log
mount       what is checked before mounting; mounting and unmounting
mountinfo   what /proc/self/mountinfo says
record      one small file per running server, by which `py4fs umount` waits for it and learns its result

Only libfuse, lifecycle and direct/frontend import pyfuse3 or trio, and nobody imports those at start-up.
"""
