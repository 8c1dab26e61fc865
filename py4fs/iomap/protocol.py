"""FUSE_IOMAP on the wire: every struct of IOMAP.md sections 2, 3 and 5, declared once, with a derived codec each.

Little endian, naturally aligned, sizes of the 64-bit ABI.  Field names are the kernel header's; a mapping inside
another struct has its fields prefixed (`read_offset`).  Requests and notifications come behind the headers of FUSE,
which are here as well.  Bytes of any length give a record or `Invalid`, never another exception.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import construct
from construct import Bytes, Int8ul, Int16ul, Int32sl, Int32ul, Int64sl, Int64ul, Struct

from py4fs.errors import Invalid
from py4fs.ext4.layout.codec import Codec, derive
from py4fs.iomap.config import ConfigReply
from py4fs.iomap.records import Mapping

if TYPE_CHECKING:
    from typing_extensions import Buffer

KERNEL_MINOR: Final = 99
"""Minor version of the patched protocol; a server must answer at least this."""
INIT_EXT: Final = 1 << 30
"""FUSE_INIT_EXT in `flags`: without it `flags2` is not looked at."""
INIT_IOMAP2: Final = 1 << (43 - 32)
"""FUSE_IOMAP in `flags2`."""


class Opcode(IntEnum):
    """The requests that the patches add."""

    FREEZE_FS = 4089
    UNFREEZE_FS = 4090
    SHUTDOWN_FS = 4091
    IOMAP_CONFIG = 4092
    IOMAP_IOEND = 4093
    IOMAP_BEGIN = 4094
    IOMAP_END = 4095


class Notify(IntEnum):
    """The notifications that the patches add: `error` of an out header whose `unique` is 0."""

    IOMAP_DEV_INVAL = 99
    IOMAP_UPSERT_MAPPINGS = 100
    IOMAP_INVAL_MAPPINGS = 101


class BackingType(IntEnum):
    """Lowest byte of fuse_backing_map.flags."""

    PASSTHROUGH = 0
    IOMAP = 1


ATTR_FLAGS: Final = {
    "SUBMOUNT": 1 << 0,
    "DAX": 1 << 1,
    "EXCLUSIVE": 1 << 2,
    "IOMAP": 1 << 3,
    "ATOMIC": 1 << 4,
    "SYNC": 1 << 5,
    "IMMUTABLE": 1 << 6,
    "APPEND": 1 << 7,
}
"""FUSE_ATTR_*: `flags` of fuse_attr."""


def prefixed(prefix: str, inner: construct.Struct) -> list[Any]:
    """The fields of a struct inside another one, flat, with their names prefixed."""
    return [f"{prefix}{sub.name}" / getattr(sub, "subcon", sub) for sub in inner.subcons]


# -- headers ------------------------------------------------------------------------------------------------

InHeader = Struct(
    "len" / Int32ul,
    "opcode" / Int32ul,
    "unique" / Int64ul,
    "nodeid" / Int64ul,
    "uid" / Int32ul,
    "gid" / Int32ul,
    "pid" / Int32ul,
    "total_extlen" / Int16ul,
    "padding" / Int16ul,
)
OutHeader = Struct("len" / Int32ul, "error" / Int32sl, "unique" / Int64ul)

# -- requests and replies (section 2) -----------------------------------------------------------------------

IomapIo = Struct(
    "offset" / Int64ul,
    "length" / Int64ul,
    "addr" / Int64ul,
    "type" / Int16ul,
    "flags" / Int16ul,
    "dev" / Int32ul,
)
IomapBeginIn = Struct(
    "opflags" / Int32ul,
    "reserved" / Int32ul,
    "attr_ino" / Int64ul,
    "pos" / Int64ul,
    "count" / Int64ul,
)
IomapBeginOut = Struct(*prefixed("read_", IomapIo), *prefixed("write_", IomapIo))
IomapEndIn = Struct(*IomapBeginIn.subcons, "written" / Int64sl, *prefixed("map_", IomapIo))
IomapIoendIn = Struct(
    "flags" / Int32ul,
    "error" / Int32sl,
    "attr_ino" / Int64ul,
    "pos" / Int64ul,
    "new_addr" / Int64ul,
    "written" / Int64ul,
    "dev" / Int32ul,
    "pad" / Int32ul,
)
IomapIoendOut = Struct("newsize" / Int64ul)
IomapConfigIn = Struct(
    "flags" / Int64ul,
    "maxbytes" / Int64sl,
    "cache_maxbytes" / Int32ul,
    "zero" / Int32ul,
    "padding" / Bytes(40),
)
IomapConfigOut = Struct(
    "flags" / Int64ul,
    "s_id" / Bytes(32),
    "s_uuid" / Bytes(16),
    "s_uuid_len" / Int8ul,
    "s_pad" / Bytes(3),
    "s_blocksize" / Int32ul,
    "s_max_links" / Int32ul,
    "s_time_gran" / Int32ul,
    "s_time_min" / Int64sl,
    "s_time_max" / Int64sl,
    "s_maxbytes" / Int64sl,
    "cache_maxbytes" / Int32ul,
    "tail" / Bytes(4),
)
FreezefsIn = Struct("unlinked" / Int64ul)
ShutdownfsIn = Struct("flags" / Int64ul)

# -- notifications (section 3) ------------------------------------------------------------------------------

Range = Struct("offset" / Int64ul, "length" / Int64ul)
IomapDevInvalOut = Struct("dev" / Int32ul, "reserved" / Int32ul, *Range.subcons)
IomapUpsertMappingsOut = Struct(
    "nodeid" / Int64ul, "attr_ino" / Int64ul, *prefixed("read_", IomapIo), *prefixed("write_", IomapIo)
)
IomapInvalMappingsOut = Struct(
    "nodeid" / Int64ul, "attr_ino" / Int64ul, *prefixed("read_", Range), *prefixed("write_", Range)
)

# -- ioctls on /dev/fuse (section 5) ------------------------------------------------------------------------

BackingMap = Struct("fd" / Int32sl, "flags" / Int32ul, "padding" / Int64ul)
IomapSupport = Struct("flags" / Int64ul, "padding" / Int64ul)
IomapBackingInfo = Struct("backing_id" / Int32ul, "blocksize" / Int32ul)
U32: Final = Struct("value" / Int32ul)

IN_HEADER: Final = derive(InHeader, "fuse_in_header")
OUT_HEADER: Final = derive(OutHeader, "fuse_out_header")
IOMAP_IO: Final = derive(IomapIo, "fuse_iomap_io")
IOMAP_BEGIN_IN: Final = derive(IomapBeginIn, "fuse_iomap_begin_in")
IOMAP_BEGIN_OUT: Final = derive(IomapBeginOut, "fuse_iomap_begin_out")
IOMAP_END_IN: Final = derive(IomapEndIn, "fuse_iomap_end_in")
IOMAP_IOEND_IN: Final = derive(IomapIoendIn, "fuse_iomap_ioend_in")
IOMAP_IOEND_OUT: Final = derive(IomapIoendOut, "fuse_iomap_ioend_out")
IOMAP_CONFIG_IN: Final = derive(IomapConfigIn, "fuse_iomap_config_in")
IOMAP_CONFIG_OUT: Final = derive(IomapConfigOut, "fuse_iomap_config_out")
FREEZEFS_IN: Final = derive(FreezefsIn, "fuse_freezefs_in")
SHUTDOWNFS_IN: Final = derive(ShutdownfsIn, "fuse_shutdownfs_in")
IOMAP_DEV_INVAL_OUT: Final = derive(IomapDevInvalOut, "fuse_iomap_dev_inval_out")
IOMAP_UPSERT_MAPPINGS_OUT: Final = derive(IomapUpsertMappingsOut, "fuse_iomap_upsert_mappings_out")
IOMAP_INVAL_MAPPINGS_OUT: Final = derive(IomapInvalMappingsOut, "fuse_iomap_inval_mappings_out")
BACKING_MAP: Final = derive(BackingMap, "fuse_backing_map")
IOMAP_SUPPORT: Final = derive(IomapSupport, "fuse_iomap_support")
IOMAP_BACKING_INFO: Final = derive(IomapBackingInfo, "fuse_iomap_backing_info")
IOCTL_U32: Final = derive(U32, "u32")

REQUESTS: Final[dict[int, Codec | None]] = {
    Opcode.FREEZE_FS: FREEZEFS_IN,
    Opcode.UNFREEZE_FS: None,
    Opcode.SHUTDOWN_FS: SHUTDOWNFS_IN,
    Opcode.IOMAP_CONFIG: IOMAP_CONFIG_IN,
    Opcode.IOMAP_IOEND: IOMAP_IOEND_IN,
    Opcode.IOMAP_BEGIN: IOMAP_BEGIN_IN,
    Opcode.IOMAP_END: IOMAP_END_IN,
}
"""What follows the header of a request; None: nothing."""
REPLIES: Final[dict[int, Codec | None]] = {
    Opcode.FREEZE_FS: None,
    Opcode.UNFREEZE_FS: None,
    Opcode.SHUTDOWN_FS: None,
    Opcode.IOMAP_CONFIG: IOMAP_CONFIG_OUT,
    Opcode.IOMAP_IOEND: IOMAP_IOEND_OUT,
    Opcode.IOMAP_BEGIN: IOMAP_BEGIN_OUT,
    Opcode.IOMAP_END: None,
}
"""What follows the header of a successful reply; None: nothing."""
NOTIFICATIONS: Final[dict[int, Codec]] = {
    Notify.IOMAP_DEV_INVAL: IOMAP_DEV_INVAL_OUT,
    Notify.IOMAP_UPSERT_MAPPINGS: IOMAP_UPSERT_MAPPINGS_OUT,
    Notify.IOMAP_INVAL_MAPPINGS: IOMAP_INVAL_MAPPINGS_OUT,
}


def _ioctl(direction: int, number: int, codec: Codec | None) -> int:
    """An ioctl number of /dev/fuse as asm-generic/ioctl.h puts it together."""
    return direction << 30 | (codec.size if codec else 0) << 16 | 229 << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2
DEV_IOC_CLONE: Final = _ioctl(_READ, 0, IOCTL_U32)
DEV_IOC_BACKING_OPEN: Final = _ioctl(_WRITE, 1, BACKING_MAP)
DEV_IOC_BACKING_CLOSE: Final = _ioctl(_WRITE, 2, IOCTL_U32)
DEV_IOC_SYNC_INIT: Final = _ioctl(_NONE, 3, None)
DEV_IOC_IOMAP_SUPPORT: Final = _ioctl(_READ, 99, IOMAP_SUPPORT)
DEV_IOC_SET_NOFS: Final = _ioctl(_WRITE, 100, IOCTL_U32)
DEV_IOC_ADD_IOMAP: Final = _ioctl(_NONE, 101, None)
DEV_IOC_IOMAP_SET_BLOCKSIZE: Final = _ioctl(_WRITE, 102, IOMAP_BACKING_INFO)
IOCTLS: Final[dict[int, Codec | None]] = {
    DEV_IOC_CLONE: IOCTL_U32,
    DEV_IOC_BACKING_OPEN: BACKING_MAP,
    DEV_IOC_BACKING_CLOSE: IOCTL_U32,
    DEV_IOC_SYNC_INIT: None,
    DEV_IOC_IOMAP_SUPPORT: IOMAP_SUPPORT,
    DEV_IOC_SET_NOFS: IOCTL_U32,
    DEV_IOC_ADD_IOMAP: None,
    DEV_IOC_IOMAP_SET_BLOCKSIZE: IOMAP_BACKING_INFO,
}
"""The argument of each ioctl; None: none."""


def decode(codec: Codec | None, body: "Buffer", what: str) -> Any:
    """The record of a body that must have exactly the codec's size (None: be empty).  Raises Invalid."""
    have = memoryview(body).nbytes
    want = codec.size if codec else 0
    if have != want:
        raise Invalid(f"{what}: {have} bytes, expected {want}")
    return codec.unpack_from(body) if codec else None


def decode_request(opcode: int, body: "Buffer") -> Any:
    """The record behind the header of a request; None for one without arguments.  Raises Invalid."""
    if opcode not in REQUESTS:
        raise Invalid(f"opcode {opcode}: not of iomap")
    return decode(REQUESTS[opcode], body, Opcode(opcode).name)


def decode_reply(opcode: int, body: "Buffer") -> Any:
    """The record behind the header of a successful reply.  A CONFIG reply may be short.  Raises Invalid."""
    if opcode not in REPLIES:
        raise Invalid(f"opcode {opcode}: not of iomap")
    if opcode == Opcode.IOMAP_CONFIG and memoryview(body).nbytes <= IOMAP_CONFIG_OUT.size:
        return IOMAP_CONFIG_OUT.unpack_from(bytes(memoryview(body)).ljust(IOMAP_CONFIG_OUT.size, b"\0"))
    return decode(REPLIES[opcode], body, Opcode(opcode).name)


def decode_notification(code: int, body: "Buffer") -> Any:
    """The record of a notification.  Raises Invalid."""
    if code not in NOTIFICATIONS:
        raise Invalid(f"notification {code}: not of iomap")
    return decode(NOTIFICATIONS[code], body, Notify(code).name)


def mapping_of(record: Any, prefix: str) -> Mapping:
    """The mapping inside a record: `mapping_of(begin_out, "read_")`."""
    return Mapping(*(getattr(record, prefix + field) for field in IOMAP_IO.fields))


def reply(unique: int, body: bytes = b"") -> bytes:
    """A whole successful reply."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def error_reply(unique: int, errno: int) -> bytes:
    """A whole reply that says `errno` (positive)."""
    assert 0 < errno < 512, "the kernel takes errors in (-512, 0]"
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def notification(code: int, body: bytes) -> bytes:
    """A whole notification."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def config_out(answer: ConfigReply) -> bytes:
    """Body of a CONFIG reply."""
    return IOMAP_CONFIG_OUT.pack(*answer[:4], bytes(3), *answer[4:], bytes(4))


def config_of(record: Any) -> ConfigReply:
    """The reply inside a record of fuse_iomap_config_out.  Raises Invalid when its padding is not zero."""
    if record.s_pad != bytes(3):
        raise Invalid(f"iomap config: padding {record.s_pad.hex()}")
    return ConfigReply(*(getattr(record, field) for field in ConfigReply._fields))


def begin_out(read: Mapping, write: Mapping) -> bytes:
    """Body of a BEGIN reply."""
    return IOMAP_BEGIN_OUT.pack(*read, *write)


def upsert_mappings(nodeid: int, attr_ino: int, read: Mapping, write: Mapping) -> bytes:
    """A whole UPSERT_MAPPINGS notification; `records.nocache` leaves a fork alone."""
    return notification(
        Notify.IOMAP_UPSERT_MAPPINGS, IOMAP_UPSERT_MAPPINGS_OUT.pack(nodeid, attr_ino, *read, *write)
    )


def inval_mappings(nodeid: int, attr_ino: int, read: tuple[int, int], write: tuple[int, int]) -> bytes:
    """A whole INVAL_MAPPINGS notification; ranges are (offset, length), length 0 leaves the fork alone."""
    return notification(
        Notify.IOMAP_INVAL_MAPPINGS, IOMAP_INVAL_MAPPINGS_OUT.pack(nodeid, attr_ino, *read, *write)
    )


def dev_inval(dev: int, offset: int, length: int) -> bytes:
    """A whole DEV_INVAL notification.  Length 0 would drop dirty data of the whole device (9.2), so never that."""
    assert length > 0, "a DEV_INVAL of length 0 destroys data"
    return notification(Notify.IOMAP_DEV_INVAL, IOMAP_DEV_INVAL_OUT.pack(dev, 0, offset, length))
