"""Fast commits: tags with values at the end of the journal, little-endian unlike jbd2 (ext4 docs: Fast Commits)."""

from __future__ import annotations

from typing import Final

from construct import Bytes, Int16ul, Int32ul, Struct

from py4fs.ext4.layout.codec import derive

FcTag = Struct(
    "fc_tag" / Int16ul,
    "fc_len" / Int16ul,  # bytes of the value that follows
)
FcHead = Struct(
    "fc_features" / Int32ul,
    "fc_tid" / Int32ul,
)
FcAddRange = Struct(
    "fc_ino" / Int32ul,
    "fc_ex" / Bytes(12),  # as in an extent tree's leaf
)
FcDelRange = Struct(
    "fc_ino" / Int32ul,
    "fc_lblk" / Int32ul,
    "fc_len" / Int32ul,
)
# Then the name, to the value's end.
FcDentry = Struct(
    "fc_parent_ino" / Int32ul,
    "fc_ino" / Int32ul,
)
# Then the inode as on disk: 128 bytes and i_extra_isize more.
FcInode = Struct("fc_ino" / Int32ul)
FcTail = Struct(
    "fc_tid" / Int32ul,
    "fc_crc" / Int32ul,  # crc32c, from 0, of everything since the previous tail, up to this field
)

FC_TAG: Final = derive(FcTag, "FcTag")
FC_HEAD: Final = derive(FcHead, "FcHead")
FC_ADD_RANGE: Final = derive(FcAddRange, "FcAddRange")
FC_DEL_RANGE: Final = derive(FcDelRange, "FcDelRange")
FC_DENTRY: Final = derive(FcDentry, "FcDentry")
FC_INODE: Final = derive(FcInode, "FcInode")
FC_TAIL: Final = derive(FcTail, "FcTail")

# fc_tag
EXT4_FC_TAG_ADD_RANGE: Final = 0x0001
EXT4_FC_TAG_DEL_RANGE: Final = 0x0002
EXT4_FC_TAG_CREAT: Final = 0x0003
EXT4_FC_TAG_LINK: Final = 0x0004
EXT4_FC_TAG_UNLINK: Final = 0x0005
EXT4_FC_TAG_INODE: Final = 0x0006
EXT4_FC_TAG_PAD: Final = 0x0007
EXT4_FC_TAG_TAIL: Final = 0x0008
EXT4_FC_TAG_HEAD: Final = 0x0009

EXT4_FC_SUPPORTED_FEATURES: Final = 0x0
