"""File data mapping: where the bytes of a file are, for those who move them.

records    Mapping and its flags; clip, split, merge; pure values
validate   the checks that mappings and ranges must pass
cache      the two-fork mapping cache of one inode
server     ext4's side: BEGIN, END, IOEND over the mapper's runs; allocation, conversion, sizes
mapper     the client's per-inode state: cache lookup, asking the server, the memory budget
plans      reads and writes as plans, and their device I/O, which takes no lock
client     the in-process client: plan, I/O, finish; all file data of py4fs goes through it
report     the mappings of a whole file
protocol   FUSE_IOMAP on the wire

Nothing here knows FUSE sessions or the vfs; ext4 knows nothing of iomap.
"""
