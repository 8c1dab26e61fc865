"""The ext4 file system: namespace, inodes, extents, allocation, xattrs.

Imports layout, device and errors only.
"""
