"""FUSE: the adapter without a mount, then mounted against the kernel as oracle."""
