"""The -o words of `py4fs mount`, each with what it means: the parser, the documentation and the man page use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from py4fs.cli import option_values as values
from py4fs.cli.common import size


class Flag(NamedTuple):
    """A word without a value; ``settings``: what it sets."""

    word: str
    settings: dict[str, object]
    meaning: str


class Valued(NamedTuple):
    """WORD=VALUE; ``setting`` gets what ``convert`` makes of the value, which raises ValueError."""

    word: str
    argument: str
    setting: str
    convert: Callable[[str], object]
    meaning: str


class Idle(NamedTuple):
    """Words that are accepted and change nothing, and why. Those that end in `=` take a value, `=?` may."""

    words: tuple[str, ...]
    why: str


SERVICE_SOCKET: Final = "/run/py4fs/service.socket"
"""Where systemd/py4fs.socket listens."""

_ALL_FLAGS: Final = (
    Flag("ro", {"readonly": True}, "read-only: not one byte of the image is written"),
    Flag("rw", {"readonly": False}, "read and write (the default)"),
    Flag("remount", {"remount": True}, "change a mount that is there: `ro`, `rw`, and what the kernel looks after"),
    Flag("allow_other", {"allow_other": True}, "other users may use the mount"),
    Flag(
        "kernel",
        {"allow_other": True, "suid": True, "dev": True, "acl": True, "fakeroot": False},
        "as a mount of the kernel's own: allow_other,default_permissions,suid,dev,acl (root only)",
    ),
    Flag(
        "fakeroot",
        {"fakeroot": True, "suid": False, "dev": False},
        "no permission is checked, everybody counts as root; adds nosuid,nodev",
    ),
    Flag("suid", {"suid": True}, "set-user-ID and set-group-ID bits count (root only; the default is nosuid)"),
    Flag("nosuid", {"suid": False}, "they do not count"),
    Flag("dev", {"dev": True}, "device files work (root only; the default is nodev)"),
    Flag("nodev", {"dev": False}, "they do not"),
    Flag("exec", {"exec": True}, "programs can be run (the default)"),
    Flag("noexec", {"exec": False}, "they cannot"),
    Flag("sync", {"sync": True}, "changes are durable before their call returns"),
    Flag("async", {"sync": False}, "they are not (the default)"),
    Flag("dirsync", {"dirsync": True}, "changes of directories are durable before their call returns"),
    Flag("relatime", {"atime": "relatime"}, "reading updates the access time now and then (the default)"),
    Flag("noatime", {"atime": "noatime"}, "reading updates no access time"),
    Flag("strictatime", {"atime": "strictatime"}, "reading updates it, for which opening drops what is cached"),
    Flag("lazytime", {"lazytime": True}, "the kernel keeps changed times for itself for a while (mount(2); root)"),
    Flag("nolazytime", {"lazytime": False}, "it does not (the default)"),
    Flag("nosymfollow", {"symfollow": False}, "symbolic links are not followed (mount(2); root)"),
    Flag("symfollow", {"symfollow": True}, "they are (the default)"),
    Flag("acl", {"acl": True}, "POSIX ACLs (the default)"),
    Flag("noacl", {"acl": False}, "ACLs neither count nor are inherited, shown or changed"),
    Flag("user_xattr", {"user_xattr": True}, "attributes in the user namespace (the default)"),
    Flag("nouser_xattr", {"user_xattr": False}, "there are none"),
    Flag("quota", {"quota_limits": ("user",)}, "the limits of user quotas are kept; usage is always counted"),
    Flag("usrquota", {"quota_limits": ("user",)}, "the same"),
    Flag("grpquota", {"quota_limits": ("group",)}, "those of groups"),
    Flag("prjquota", {"quota_limits": ("project",)}, "those of projects"),
    Flag("noquota", {"quota_limits": ()}, "no limits are kept (the default)"),
    Flag("norecovery", {"norecovery": True}, "read-only, the journal is not replayed: maybe inconsistent"),
    Flag("noload", {"norecovery": True}, "the same"),
    Flag("minixdf", {"minixdf": True}, "`df` counts the file system's own blocks, too"),
    Flag("bsddf", {"minixdf": False}, "it does not (the default)"),
    Flag("barrier", {"barrier": True}, "commits wait for the device (the default)"),
    Flag("nobarrier", {"barrier": False}, "they do not: faster, and a power cut may leave anything"),
    Flag("grpid", {"grpid": True}, "new files get the group of their directory (bsdgroups is the same)"),
    Flag("bsdgroups", {"grpid": True}, "the same"),
    Flag("nogrpid", {"grpid": False}, "only below directories with the set-group-ID bit (sysvgroups is the same)"),
    Flag("sysvgroups", {"grpid": False}, "the same"),
    Flag("discard", {"discard": True}, "freed blocks become holes of the image (a device: are discarded) at commit"),
    Flag("nodiscard", {"discard": False}, "they do not (the default)"),
    Flag("iomap", {"iomap": "require"}, "as `iomap=require`"),
    Flag("debug", {"trace": True}, "log every request"),
    Flag("fuse2fs_debug", {"trace": True}, "the same"),
    Flag("fuse4fs_debug", {"trace": True}, "the same"),
    Flag("timing", {"timing": True}, "measure requests; SIGUSR1 reports, and so does the end"),
    Flag("service", {"service": SERVICE_SOCKET}, f"let the contained service at {SERVICE_SOCKET} serve it (root only)"),
    Flag("keep_caps", {"keep_caps": True}, "a server of root keeps its capabilities"),
)
FLAGS: Final = {flag.word: flag for flag in _ALL_FLAGS}

_ALL_VALUED: Final = (
    Valued("offset", "BYTES", "offset", size, "the file system begins there; suffixes k, M, G, T"),
    Valued("partition", "N", "partition", values.partition, "it is in this partition; default: the only ext4 one"),
    Valued(
        "verify",
        "WHAT",
        "verify",
        values.one_of("merkle", "none"),
        "files sealed by fs-verity are compared with their Merkle tree (`merkle`, the default) or not (`none`)",
    ),
    Valued(
        "iomap",
        "WHAT",
        "iomap",
        values.iomap,
        "let a kernel with FUSE_IOMAP do file I/O by itself: `auto` where that works, `off`, `require`; "
        "fuse4fs' words for them are `default`, `0` and `1`",
    ),
    Valued("commit", "SECONDS", "commit", values.seconds, "how often changes are written unasked; 0 and default: 5"),
    Valued("flush_interval", "SECONDS", "commit", values.seconds_or_never, "the same; 0: never"),
    Valued(
        "errors",
        "WHAT",
        "errors",
        values.one_of("continue", "remount-ro", "panic"),
        "when damage is met: `continue`, `remount-ro` or `panic` (the server stops); default: what the superblock says",
    ),
    Valued("journal_path", "FILE", "journal_path", values.nonempty, "file or device with the journal"),
    Valued("journal_dev", "NUMBER", "journal_path", values.device_number, "the same, as a device number"),
    Valued(
        "sb",
        "N",
        "backup_superblock",
        values.backup,
        "use the superblock's copy at N KiB, read-only, when the first one is damaged",
    ),
    Valued(
        "data",
        "MODE",
        "data",
        values.one_of("ordered", "writeback", "journal"),
        "`ordered`, `writeback` and `journal` all mean ordered: data is down before the commit that shows it",
    ),
    Valued("barrier", "0|1", "barrier", values.switch, "as nobarrier, barrier"),
    Valued("resuid", "UID", "resuid", values.ident, "this user may use the blocks kept for root"),
    Valued("resgid", "GID", "resgid", values.ident, "this group, too"),
    Valued(
        "max_dir_size_kb", "N", "max_dir_size", values.kibibytes, "directories do not grow beyond N KiB; 0: no limit"
    ),
    Valued("cache_size", "BYTES", "cache_bytes", values.cache_size, "what the caches may take together"),
    Valued(
        "lockfile",
        "FILE",
        "lockfile",
        values.absolute,
        "made at the start, gone at the end; one that exists means busy",
    ),
    Valued("oom_score_adj", "N", "oom_score_adj", values.number(-1000, 1000), "the server's, see proc(5)"),
    Valued("service", "SOCKET", "service", values.absolute, "let the contained service at this socket serve it"),
    Valued("max_read", "BYTES", "max_read", values.read_size, "largest read request of the kernel"),
    Valued("fsname", "NAME", "fsname", values.nonempty, "what /proc/mounts shows as the source"),
    Valued("subtype", "NAME", "subtype", values.nonempty, "what it shows behind the type's dot"),
)
VALUED: Final = {option.word: option for option in _ALL_VALUED}

IDLE: Final = (
    Idle(
        (
            "defaults",
            "auto",
            "noauto",
            "user",
            "nouser",
            "users",
            "group",
            "owner",
            "nofail",
            "_netdev",
            "loop",
            "silent",
            "loud",
            "mand",
            "nomand",
        ),
        "for mount(8), fstab(5) and systemd; also `x-...`, `comment=...`, `uhelper=...`, `helper=...`",
    ),
    Idle(("atime", "diratime", "nodiratime", "norelatime", "nostrictatime"), "see relatime, noatime, strictatime"),
    Idle(("default_permissions",), "always on, but for fakeroot"),
    Idle(("i_version", "iversion", "noiversion"), "always on"),
    Idle(
        ("user_id=", "group_id=", "rootmode=", "fd=", "blksize="),
        "what /proc/mounts shows of a mount comes back at a remount",
    ),
    Idle(("directio",), "the host's page cache stays in use: requests are not aligned as O_DIRECT wants them"),
    Idle(
        (
            "no_default_opts",
            "kernel_cache",
            "auto_cache",
            "use_ino",
            "nonempty",
            "big_writes",
            "max_threads=",
            "attr_timeout=",
            "entry_timeout=",
            "negative_timeout=",
        ),
        "libfuse's: the server chooses what is right",
    ),
    Idle(("usrjquota=?", "grpjquota=?", "jqfmt="), "quotas in visible files are not kept"),
    Idle(
        (
            "stripe=",
            "inode_readahead_blks=",
            "init_itable=?",
            "noinit_itable",
            "mb_optimize_scan=",
            "prefetch_block_bitmaps",
            "no_prefetch_block_bitmaps",
            "nombcache",
            "no_mbcache",
            "mblk_io_submit",
            "nomblk_io_submit",
            "max_batch_time=",
            "min_batch_time=",
            "journal_ioprio=",
        ),
        "hints for the kernel's allocator and I/O",
    ),
    Idle(
        ("delalloc", "nodelalloc", "auto_da_alloc=?", "noauto_da_alloc", "dioread_lock", "dioread_nolock"),
        "the kernel's page cache decides when data comes here; blocks are chosen then",
    ),
    Idle(("block_validity", "noblock_validity"), "what points into metadata is always refused"),
    Idle(("journal_checksum", "nojournal_checksum", "journal_async_commit"), "what the journal's superblock says"),
    Idle(("data_err=",), "a failed write of data is told to who wrote it, or to fsync"),
    Idle(
        (
            "init_itable",
            "nouid32",
            "oldalloc",
            "orlov",
            "nocheck",
            "check=",
            "bh",
            "nobh",
            "reservation",
            "noreservation",
        ),
        "of older kernels",
    ),
    Idle(("iomap_cache", "noiomap_cache"), "a kernel that does file I/O by itself keeps what it was told where it is"),
    Idle(("root_nodeid=",), "the kernel's name of the root directory is always 1"),
    Idle(("dax=", "inlinecrypt", "test_dummy_encryption=?"), "there is no persistent memory and no encryption here"),
)
"""Accepted, and without effect."""

PREFIXES: Final = ("x-", "X-", "comment=", "uhelper=", "helper=")
"""Words that begin so mean something to mount(8), fstab(5) or systemd, and nothing more to us."""

ROOT_ONLY: Final = {
    "suid": ("suid", True),
    "dev": ("dev", True),
    "lazytime": ("lazytime", True),
    "nosymfollow": ("symfollow", False),
}
"""Options that only root may give: the setting and its value."""


def idle_words() -> tuple[frozenset[str], frozenset[str]]:
    """(words without effect, words with `=VALUE` without effect)."""
    plain, valued = set(), set()
    for idle in IDLE:
        for word in idle.words:
            name = word.rstrip("=?")
            if not word.endswith("="):
                plain.add(name)
            if word != name:
                valued.add(name)
    return frozenset(plain), frozenset(valued)
