"""FUSE sessions: adapters that translate requests into vfs calls, and the mount life cycle.

pyfuse3_session  requests of libfuse, through pyfuse3, into vfs calls and back; nothing else
waiting          how the session waits for requests
lifecycle        trio: runs a session, commits periodically, handles signals, ends with everything on disk
daemon           to the background and back: fork, report to the parent, log
mount            what is checked before mounting; mounting and unmounting
mountinfo        what /proc/self/mountinfo says
record           one small file per running server, by which `py4fs umount` waits for it and learns its result

Only pyfuse3_session, waiting and lifecycle import pyfuse3 and trio, and nobody imports those at start-up.
"""
