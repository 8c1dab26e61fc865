"""The kernel's FUSE protocol itself, without libfuse.

structs      records on the wire; protocol: which belongs to which request, and the flags
negotiate    INIT: what is agreed on, and why
mounting     mount(2), fusermount3, a descriptor handed over
again        a device that is mounted already, mounted once more
notifications  what the kernel is told without having asked; pruning: inodes that it had better forget
threads      who reads requests, and who waits
operations   requests in, replies out: the table of handlers, and errors
  core, names, attributes, files, directories, ioctls: the handlers, by subject
  extensions   what comes behind the names of a create
iomap        a kernel that does file I/O by itself; kernelmaps: what it knows; backing: the device that it gets
pipes        READ replies that are not copied
commits      many that wait for durability share one commit
frontend     its part in the life of a mount (the only module here that knows trio)
"""
