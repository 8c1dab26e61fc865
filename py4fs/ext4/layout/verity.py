"""The fs-verity descriptor (kernel documentation: fsverity, struct fsverity_descriptor)."""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int8ul, Int32ul, Int64ul, Struct

from py4fs.ext4.layout.codec import derive

VerityDescriptor = Struct(
    "version" / Int8ul,
    "hash_algorithm" / Int8ul,
    "log_blocksize" / Int8ul,
    "salt_size" / Int8ul,
    "sig_size" / Int32ul,
    "data_size" / Int64ul,
    "root_hash" / Bytes(64),
    "salt" / Bytes(32),
    "reserved" / Bytes(144),
)

VERITY_DESCRIPTOR: Final = derive(VerityDescriptor, "VerityDescriptor")

FS_VERITY_HASH_ALG_SHA256: Final = 1
FS_VERITY_HASH_ALG_SHA512: Final = 2
VERITY_ALIGNMENT: Final = 65536  # the Merkle tree begins at the next multiple of this behind the data
