"""The ext4 file system: namespace, inodes, extents, allocation, xattrs; imports layout, device, errors only."""
