"""The kernel's own ext4 is the oracle: both read what the other wrote."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from images import kernel
from images.recipes import RECIPES, UNMOUNTABLE
from images.tools import run
from tests.conftest import KernelMount
from tests.support import tree
from tests.support.image import ImageMaker
from tests.support.mounted import run_py4fs
from tests.t4_fuse.conftest import FuseMount

# ctime, atime and mtime differ when the same thing is done twice, at two moments
WHEN = ("atime", "mtime", "ctime", "data")
# every feature once; the others differ in geometry only and are left to `make test-long`
QUICK = (
    *("default-b1024-i128", "default-b4096-i256", "upstream-b2048", "htree-legacy-unsigned", "htree-tea-signed"),
    *("no-64bit", "gdt-csum", "no-csum", "no-filetype", "no-extra-isize", "inode-1024", "deep-extents-b1024"),
    *("kernel-b4096", "kernel-b1024", "groups-uninit", "inline-data", "ea-inode", "bigalloc-b1024-c16k"),
)


def test_refuses_what_it_does_not_know(make_image: ImageMaker) -> None:
    image = make_image.excuse(make_image("16M"))
    run(["debugfs", "-w", "-R", "feature FEATURE_I31", image])
    done = run_py4fs("ls", image)
    assert done.returncode == 1
    assert "unsupported feature" in done.stderr and "FEATURE_I31" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long])
        for name, recipe in RECIPES.items()
        if not recipe.tags & UNMOUNTABLE
    ],
)
def test_reads_what_others_wrote(
    name: str, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount
) -> None:
    image = make_image.recipe(name)
    with kernel_mount(image, "ro,noload") as directory:
        wanted = tree.snapshot(directory)
    before = image.read_bytes() if image.stat().st_size < 1 << 28 else None
    with fuse_mount(image, ["ro"]) as mounted:
        tree.assert_same(wanted, tree.snapshot(mounted.path, like=wanted), ignore=("data",))
    if before is not None:
        assert image.read_bytes() == before, "a read-only mount has written"


@pytest.mark.parametrize(
    "args",
    [
        ("-b", "1024"),
        ("-b", "4096", "-I", "128"),
        ("-b", "4096"),
        ("-b", "2048", "-O", "metadata_csum_seed,orphan_file"),
        ("-b", "4096", "-O", "inline_data,ea_inode"),
        ("-b", "1024", "-O", "bigalloc", "-C", "8192"),
    ],
    ids=["1k", "4k-i128", "4k", "upstream-2k", "inline", "clusters"],
)
def test_same_operations_same_tree(
    args: tuple[str, ...], make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount
) -> None:
    """The same program runs on both; then each reads what the other has written."""
    ours, theirs = make_image("96M", *args), make_image("96M", *args)
    with fuse_mount(ours) as mounted:
        kernel.tree(mounted.path)
        kernel.churn(mounted.path)
        seen_by_us = tree.snapshot(mounted.path)
    with kernel_mount(theirs) as directory:
        kernel.tree(directory)
        kernel.churn(directory)
        wanted = tree.snapshot(directory)
    tree.assert_same(without_directory_sizes(wanted), without_directory_sizes(seen_by_us), ignore=WHEN)
    with kernel_mount(ours, "ro") as directory:
        # pyfuse3 cannot tell the kernel that inodes of 128 bytes have whole seconds only
        ignore = WHEN if "128" in args else tree.UNSTABLE
        tree.assert_same(seen_by_us, tree.snapshot(directory), ignore)
    with fuse_mount(theirs, ["ro"]) as mounted:
        tree.assert_same(wanted, tree.snapshot(mounted.path, like=wanted))


def without_directory_sizes(snap: tree.Snapshot) -> tree.Snapshot:
    """How a directory's blocks split and in how many extents they lie depends on more than its names."""
    return {name: replace(node, blocks=0, size=0) if node.type == "directory" else node for name, node in snap.items()}


def test_sparse_files_and_holes(make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount) -> None:
    ours, theirs = make_image("64M", "-b", "4096"), make_image("64M", "-b", "4096")

    def fill(root: Path) -> None:
        with (root / "far").open("wb") as fp:
            for offset in (0, 100_000, 5 << 30, (1 << 40) + 12345):
                fp.seek(offset)
                fp.write(b"x" * 5000)
        (root / "hole").touch()
        os.truncate(root / "hole", 1 << 33)
        with (root / "cut").open("w+b") as fp:
            fp.write(b"y" * 100_000)
            fp.truncate(50_001)
            fp.truncate(90_000)
        with (root / "comb").open("wb") as fp:
            for i in range(300):
                fp.seek(i * 8192)
                fp.write(b"z" * 4096)

    with fuse_mount(ours) as mounted:
        fill(mounted.path)
    with kernel_mount(theirs) as directory:
        fill(directory)
        os.sync()
    snaps = []
    for image in (theirs, ours):
        with kernel_mount(image, "ro") as directory:
            snaps.append(tree.snapshot(directory))
    tree.assert_same(snaps[0], snaps[1], ignore=WHEN[:3])


def test_times_survive_to_the_nanosecond(
    make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount
) -> None:
    image = make_image("16M")
    stamps = {"a": (1, 2), "b": (-(10**18), 4_102_444_800_123_456_789), "c": (2**33 * 10**9 + 999_999_999, 0)}
    with fuse_mount(image) as mounted:
        for name, ns in stamps.items():
            (mounted.path / name).touch()
            os.utime(mounted.path / name, ns=ns)
            st = (mounted.path / name).stat()
            assert (st.st_atime_ns, st.st_mtime_ns) == ns
    with kernel_mount(image, "ro") as directory:
        for name, ns in stamps.items():
            st = (directory / name).stat()
            assert (st.st_atime_ns, st.st_mtime_ns) == ns


def test_statfs(make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount) -> None:
    for options in ([], ["minixdf"]):
        image = make_image("64M", "-m", "7")
        with kernel_mount(image, *options, "ro") as directory:
            wanted = os.statvfs(directory)
        with fuse_mount(image, [*options, "ro"]) as mounted:
            found = os.statvfs(mounted.path)
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax"):
            assert getattr(found, name) == getattr(wanted, name), name


def test_dumpe2fs_agrees_on_counts(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    image = make_image("32M")
    with fuse_mount(image) as mounted:
        (mounted.path / "d").mkdir()
        for i in range(50):
            (mounted.path / "d" / str(i)).write_bytes(bytes(10_000))
        free = os.statvfs(mounted.path)
    text = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    counts = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    assert int(counts["Free blocks"]) == free.f_bfree
    assert int(counts["Free inodes"]) == free.f_ffree
    assert counts["Filesystem state"] == "clean"
    assert counts["Last mounted on"] == str(mounted.path)[:63]


def test_times_never_run_backwards(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """The server stamps some changes and the kernel others: both have to take the same clock."""
    with fuse_mount(make_image("16M")) as mounted:
        last = 0
        for i in range(200):
            directory, file = mounted.path / f"d{i}", mounted.path / f"f{i}"
            directory.mkdir()  # stamped by the server
            now = [directory.stat().st_mtime_ns]
            file.write_bytes(b"x")  # by the kernel
            now.append(file.stat().st_mtime_ns)
            assert [last, *now] == sorted([last, *now])
            last = now[-1]
