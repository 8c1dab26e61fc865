"""What else an image can be, told from its first bytes: for messages that name it."""

from __future__ import annotations

from py4fs.device.base import Device

#: byte offset, bytes there, name; the first that fits counts
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow2 disk image"),
    (0, b"KDMV", "VMDK disk image"),
    (0, b"COWD", "VMDK disk image"),
    (0, b"# Disk DescriptorFile", "VMDK descriptor"),
    (0, b"vhdxfile", "VHDX disk image"),
    (0, b"conectix", "VHD disk image"),
    (64, b"\x7f\x10\xda\xbe", "VDI disk image"),
    (0, b"WithoutFreeSpace", "Parallels disk image"),
    (0, b"WithouFreSpacExt", "Parallels disk image"),
    (0, b"LUKS\xba\xbe", "LUKS encrypted volume"),
    (3, b"-FVE-FS-", "BitLocker encrypted volume"),
    (0, b"hsqs", "squashfs file system"),
    (0, b"sqsh", "squashfs file system"),
    (0, b"XFSB", "XFS file system"),
    (3, b"NTFS    ", "NTFS file system"),
    (3, b"EXFAT   ", "exFAT file system"),
    (54, b"FAT", "FAT file system"),
    (82, b"FAT32", "FAT file system"),
    (0, b"\x45\x3d\xcd\x28", "cramfs file system"),
    (0, b"-rom1fs-", "romfs file system"),
    (0, b"UBI#", "UBI volume"),
    (0, b"\x31\x18\x10\x06", "UBIFS file system"),
    (0, b"ANDROID!", "Android boot image"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (0, b"BZh", "bzip2-compressed file"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed file"),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed file"),
    (0, b"\x5d\x00\x00", "lzma-compressed file"),
    (0, b"MSWIM\x00\x00\x00", "WIM archive"),
    (0, b"\x7fELF", "ELF executable"),
    (257, b"ustar", "tar archive"),
    (0, b"07070", "cpio archive"),
    (512, b"LABELONE", "LVM physical volume"),
    (0, b"LABELONE", "LVM physical volume"),
    (1024, b"LABELONE", "LVM physical volume"),
    (1536, b"LABELONE", "LVM physical volume"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS file system"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS file system"),
    (1024, b"H+", "HFS+ file system"),
    (1024, b"HX", "HFS+ file system"),
    (32, b"NXSB", "APFS container"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID member"),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID member"),
    (4096, b"gDla", "Android super partition (dynamic partitions)"),
    (4096, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcachefs file system"),
    (4086, b"SWAPSPACE2", "Linux swap area"),
    (4086, b"SWAP-SPACE", "Linux swap area"),
    (32768, b"JFS1", "JFS file system"),
    (32769, b"CD001", "ISO 9660 image"),
    (32769, b"BEA01", "UDF image"),
    (65536, b"\x01\x16\x19\x70", "GFS2 file system"),
    (65588, b"ReIsEr", "reiserfs file system"),
    (65600, b"_BHRfS_M", "btrfs file system"),
)
_HEAD = max(offset + len(magic) for offset, magic, _ in SIGNATURES)
#: bytes from the end, bytes there, name
_TRAILERS = ((512, b"conectix", "VHD disk image"), (512, b"koly", "Apple disk image (dmg)"))


def identify(device: Device) -> str | None:
    """The name of what the device holds, when it is known and is not what py4fs opens. Raises DeviceError."""
    head = device.read(0, min(_HEAD, device.size))
    for offset, magic, name in SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return name
    for back, magic, name in _TRAILERS:
        if device.size >= back and device.read(device.size - back, len(magic)) == magic:
            return name
    return None
