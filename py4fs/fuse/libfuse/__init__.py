"""The portable session: libfuse, through pyfuse3 and trio.

session    requests of pyfuse3 into vfs calls and back; nothing else
waiting    how the session waits for requests
syncer     commits, and those who wait for them
frontend   its part in the life of a mount
"""
