"""The kernel's FUSE protocol itself, without libfuse.

protocol   what requests, replies and notifications look like; bytes in, records out
"""
