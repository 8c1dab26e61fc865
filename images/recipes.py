"""The table of images: name, size, mke2fs arguments, contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from images import content, fscrypt, kernel
from images.content import Filler

UNMOUNTABLE = frozenset({"no-kernel"})
"""Tag of images that most kernels do not mount: blocks larger than a page."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Recipe:
    """How to build one image; `kernel_fill` needs root, everything else does not."""

    name: str
    size: int
    mke2fs: tuple[str, ...] = ()
    fill: tuple[Filler, ...] = (content.basic,)
    superblock: tuple[str, ...] = ()  # debugfs `set_super_value` commands before filling
    recount: bool = False  # e2fsck -y: what debugfs writes is not in the quota files
    reindex: bool = False  # e2fsck -D: directories become htrees
    kernel_fill: tuple[Callable[[Path], None], ...] = ()
    tags: frozenset[str] = field(default_factory=frozenset)


def _geometry() -> list[Recipe]:
    """Block sizes x inode sizes, as `mke2fs -t ext4` makes them; 1 KiB also as upstream's 1.47 does."""
    found = []
    for block in (1024, 2048, 4096):
        for inode in (128, 256):
            fill = (content.basic, content.sparse, content.modes_and_times)
            args = ("-b", str(block), "-I", str(inode))
            found.append(
                Recipe(f"default-b{block}-i{inode}", 32 * MIB, args, fill, tags=frozenset({"matrix"}))
            )
        upstream = ("-b", str(block), "-O", "metadata_csum_seed,orphan_file")
        found.append(Recipe(f"upstream-b{block}", 32 * MIB, upstream, tags=frozenset({"matrix"})))
    return found


def _hashes() -> list[Recipe]:
    """The three hashes of dir_index directories, each with signed and unsigned characters."""
    found = []
    for algorithm in ("legacy", "half_md4", "tea"):
        for sign, flag in (("signed", 1), ("unsigned", 2)):
            superblock = (f"ssv def_hash_version {algorithm}", f"ssv flags {flag}")
            found.append(
                Recipe(
                    f"htree-{algorithm}-{sign}",
                    16 * MIB,
                    ("-b", "1024", "-N", "4096"),
                    (content.big_directory(1500),),
                    superblock,
                    reindex=True,
                )
            )
    return found


def _features() -> list[Recipe]:
    basic = (content.basic, content.sparse)
    named = {
        "no-journal": ("-O", "^has_journal"),
        "no-64bit": ("-O", "^64bit"),
        "64bit": ("-O", "64bit"),
        "gdt-csum": ("-O", "^metadata_csum,uninit_bg"),
        "no-csum": ("-O", "^metadata_csum,^uninit_bg"),
        "no-flex-bg": ("-O", "^flex_bg"),
        "no-dir-index": ("-O", "^dir_index"),
        "no-extra-isize": ("-I", "256", "-O", "^extra_isize"),
        "inode-1024": ("-I", "1024"),
        "no-resize-inode": ("-O", "^resize_inode"),
        "sparse-super2": ("-O", "^resize_inode,sparse_super2"),
        "large-dir": ("-O", "large_dir"),
        "no-filetype": ("-O", "^filetype"),
        "no-reserved": ("-m", "0"),
        "rev0": ("-t", "ext2", "-r", "0", "-I", "128", "-O", "none"),
        "meta-bg": ("-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"),
        "meta-bg-32bit": ("-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,uninit_bg"),
        "sparse-super2-one": ("-O", "^resize_inode,sparse_super2", "-E", "num_backup_sb=1"),
        "stable-inodes": ("-O", "stable_inodes"),
        "fast-commit": ("-O", "fast_commit"),
        "inode-512": ("-I", "512"),
        "flex-64": ("-b", "1024", "-G", "64", "-g", "1024"),
        "casefold": ("-O", "casefold"),
        "casefold-strict-b1024": ("-b", "1024", "-O", "casefold", "-E", "encoding_flags=strict"),
        "mmp": ("-O", "mmp"),
        "verity": ("-O", "verity"),
        "mmp-b1024": ("-b", "1024", "-O", "mmp", "-E", "mmp_update_interval=1"),
    }
    quota = {
        "quota": ("-O", "quota"),
        "quota-project-b1024": ("-b", "1024", "-O", "quota,project"),
    }
    return [
        *(Recipe(name, 32 * MIB, args, basic) for name, args in named.items()),
        *(Recipe(name, 32 * MIB, args, basic, recount=True) for name, args in quota.items()),
    ]


def _block_maps() -> list[Recipe]:
    """Files without extents, from direct to triple-indirect blocks; as ext4 and as its ancestors make them."""
    return [
        Recipe(
            f"block-map-{label}",
            size,
            args,
            (content.basic, content.indirect(int(args[1]))),
            kernel_fill=(kernel.churn,) if label.startswith("ext") else (),
        )
        for label, size, args in (
            ("b1024", 32 * MIB, ("-b", "1024", "-O", "^extents,^64bit")),
            ("b4096", 32 * MIB, ("-b", "4096", "-O", "^extents,^64bit")),
            ("ext3", 192 * MIB, ("-b", "1024", "-t", "ext3")),
            ("ext2", 192 * MIB, ("-b", "2048", "-t", "ext2")),
        )
    ]


def _large() -> list[Recipe]:
    return [
        Recipe("deep-extents-b1024", 128 * MIB, ("-b", "1024"), (content.extents(4000),)),
        Recipe("deep-extents-b4096", 64 * MIB, ("-b", "4096"), (content.extents(4000),)),
        Recipe(
            "htree-deep",
            64 * MIB,
            ("-b", "1024", "-N", "12000"),
            (content.big_directory(8000),),
            reindex=True,
        ),
        Recipe("groups-uninit", 8 * GIB, ("-E", "lazy_itable_init=1,lazy_journal_init=1"), (content.basic,)),
        Recipe("groups-64", 512 * MIB, ("-b", "1024", "-g", "8192"), (content.basic,)),
    ]


def _kernel() -> list[Recipe]:
    everything = (kernel.tree, kernel.preallocated, kernel.churn)
    return [
        Recipe(
            f"kernel-{label}",
            192 * MIB,
            args,
            (),
            kernel_fill=everything,
        )
        for label, args in {
            "b1024": ("-b", "1024"),
            "b4096": ("-b", "4096"),
            "b4096-i128": ("-b", "4096", "-I", "128"),
            "upstream": ("-O", "metadata_csum_seed,orphan_file"),
            "no-journal": ("-O", "^has_journal"),
        }.items()
    ] + [
        Recipe(
            f"encrypted-{label}",
            32 * MIB,
            args,
            (content.basic,),
            kernel_fill=(fscrypt.encrypted,),
        )
        for label, args in {
            "b1024": ("-b", "1024", "-O", "encrypt"),
            "b4096": ("-O", "encrypt"),
            "linear": ("-b", "1024", "-O", "encrypt,^dir_index"),
            "inline": ("-b", "1024", "-I", "512", "-O", "encrypt,inline_data"),
        }.items()
    ] + [
        Recipe("kernel-htree", 256 * MIB, ("-b", "1024", "-N", "50000"), (), kernel_fill=(kernel.many_names,))
    ]


def _formats() -> list[Recipe]:
    """Features that change how contents are kept, written by the kernel."""
    files = (kernel.tree, kernel.small, kernel.preallocated)
    return [
        Recipe("inline-data", 64 * MIB, ("-O", "inline_data"), (content.basic,), kernel_fill=files[:2]),
        Recipe("rev0", 32 * MIB, ("-t", "ext2", "-r", "0", "-I", "128", "-O", "none"), (content.basic,)),
        Recipe("ea-inode", 64 * MIB, ("-O", "ea_inode"), (content.basic,), kernel_fill=(kernel.large_values,)),
        *(
            Recipe(
                f"blocks-{block}", 256 * MIB, ("-b", str(block)), (content.basic, content.sparse), tags=UNMOUNTABLE
            )
            for block in (8192, 65536)
        ),
        *(
            Recipe(
                f"bigalloc-{label}", size, ("-O", "bigalloc", *args), (content.basic,), kernel_fill=(kernel.clusters,)
            )
            for label, size, args in (
                ("b4096-c64k", 256 * MIB, ("-b", "4096", "-C", "65536")),
                ("b1024-c16k", 64 * MIB, ("-b", "1024", "-C", "16384")),
                ("b4096-c1m", GIB, ("-b", "4096", "-C", "1048576")),
            )
        ),
        Recipe("inline-data-quota", 64 * MIB, ("-O", "inline_data,quota,project"), (content.basic,), recount=True),
        Recipe("inline-data-i512", 192 * MIB, ("-b", "4096", "-I", "512", "-O", "inline_data"), (), kernel_fill=files),
    ]


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sample", 64 * MIB, (), (content.sample,)),
        *_geometry(),
        *_hashes(),
        *_features(),
        *_block_maps(),
        *_large(),
        *_kernel(),
        *_formats(),
    )
}
