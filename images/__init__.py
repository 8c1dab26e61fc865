"""Recipes for the image matrix: mke2fs makes the file system; debugfs (no root) or the kernel (root) fills.

`make images` or `python -m images.build DIR` builds them; tests import the recipes and the tool wrappers.
Everything that the programs let us fix is fixed (UUIDs, hash seed, clock, contents), so a rebuild by the
same e2fsprogs gives the same bytes for the images that debugfs fills.
"""
