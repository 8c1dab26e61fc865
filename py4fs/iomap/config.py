"""What a server says about its file system in FUSE_IOMAP_CONFIG (IOMAP.md sections 1 and 2).

The reply holds only fields that the kernel says it understands; everything else it leaves at its own defaults.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from py4fs.errors import Invalid
from py4fs.iomap.records import ConfigFlags

MAX_LFS_FILESIZE: Final = (1 << 63) - 1
"""The largest file that a 64-bit kernel takes, which it offers as `maxbytes`."""
ALL_CONFIG: Final[int] = (1 << len(ConfigFlags)) - 1
"""What a kernel of today understands."""
S_ID_BYTES: Final = 32
UUID_BYTES: Final = 16
MAX_TIME_GRAN: Final = 1_000_000_000


class ConfigReply(NamedTuple):
    """fuse_iomap_config_out.  `flags` says which fields are meant; sizes in bytes, times in seconds, gran in ns."""

    flags: int = 0
    s_id: bytes = bytes(S_ID_BYTES)
    s_uuid: bytes = bytes(UUID_BYTES)
    s_uuid_len: int = 0
    s_blocksize: int = 0
    s_max_links: int = 0
    s_time_gran: int = 0
    s_time_min: int = 0
    s_time_max: int = 0
    s_maxbytes: int = 0
    cache_maxbytes: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """The file system behind a server.  `time_gran` in ns, `time_min` and `time_max` in seconds since the epoch."""

    name: str = ""
    uuid: bytes = b""
    max_links: int = 65000
    time_gran: int = 1
    time_min: int = -(1 << 31)
    time_max: int = (1 << 31) - 1


def answer(
    identity: Identity, block_size: int, max_bytes: int, flags: int, offered_maxbytes: int, cache_maxbytes: int
) -> ConfigReply:
    """The reply to a kernel that understands `flags` and files of up to `offered_maxbytes`.

    `cache_maxbytes`: the size limit of each file's cache that the server wants (0: the kernel's default).
    """
    reply = ConfigReply()
    name = identity.name.encode(errors="surrogateescape")[: S_ID_BYTES - 1]
    if name and flags & ConfigFlags.SID:
        reply = reply._replace(flags=reply.flags | ConfigFlags.SID, s_id=name.ljust(S_ID_BYTES, b"\0"))
    if identity.uuid and flags & ConfigFlags.UUID:
        uuid = identity.uuid[:UUID_BYTES]
        reply = reply._replace(
            flags=reply.flags | ConfigFlags.UUID, s_uuid=uuid.ljust(UUID_BYTES, b"\0"), s_uuid_len=len(uuid)
        )
    if flags & ConfigFlags.BLOCKSIZE:
        reply = reply._replace(flags=reply.flags | ConfigFlags.BLOCKSIZE, s_blocksize=block_size)
    if flags & ConfigFlags.MAX_LINKS:
        reply = reply._replace(flags=reply.flags | ConfigFlags.MAX_LINKS, s_max_links=identity.max_links)
    if flags & ConfigFlags.TIME:
        reply = reply._replace(
            flags=reply.flags | ConfigFlags.TIME,
            s_time_gran=identity.time_gran,
            s_time_min=identity.time_min,
            s_time_max=identity.time_max,
        )
    if flags & ConfigFlags.MAXBYTES:
        largest = min(max_bytes, max(offered_maxbytes, 0))
        reply = reply._replace(flags=reply.flags | ConfigFlags.MAXBYTES, s_maxbytes=largest)
    if cache_maxbytes and flags & ConfigFlags.CACHE_MAXBYTES:
        reply = reply._replace(flags=reply.flags | ConfigFlags.CACHE_MAXBYTES, cache_maxbytes=cache_maxbytes)
    return reply._replace(flags=int(reply.flags))


def check(reply: ConfigReply, understood: int = ALL_CONFIG, *, strict: bool = True) -> None:
    """What the kernel refuses in a CONFIG reply.  Raises Invalid (EINVAL).

    `strict`: the rules of newer kernels too, and a block size that makes sense (older ones take any).
    """
    if reply.flags & ~understood:
        raise Invalid(f"iomap config: flags {reply.flags:#x}, understood {understood:#x}")
    if reply.s_uuid_len > UUID_BYTES:
        raise Invalid(f"iomap config: uuid of {reply.s_uuid_len} bytes")
    if not strict:
        return
    if reply.flags & ConfigFlags.SID and b"\0" not in reply.s_id:
        raise Invalid("iomap config: name without an end")
    if reply.flags & ConfigFlags.TIME and not 0 < reply.s_time_gran <= MAX_TIME_GRAN:
        raise Invalid(f"iomap config: time granularity {reply.s_time_gran} ns")
    if reply.flags & ConfigFlags.MAXBYTES and not 0 <= reply.s_maxbytes <= MAX_LFS_FILESIZE:
        raise Invalid(f"iomap config: largest file {reply.s_maxbytes} bytes")
    size = reply.s_blocksize
    if reply.flags & ConfigFlags.BLOCKSIZE and (size < 512 or size & (size - 1)):
        raise Invalid(f"iomap config: block size {size}")
