"""FUSE sessions: adapters that translate requests into vfs calls, and the mount life cycle."""
