"""Real programs on the mount, with the kernel's ext4 as source and as judge of what they leave in our image.

The short form of this, which always runs, is in test_programs.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from images.content import ACCESS_ACL
from images.tools import environment
from tests.conftest import KernelMount
from tests.support import machine, tree
from tests.support.image import ImageMaker
from tests.support.mounted import Mounted
from tests.support.tree import Snapshot
from tests.t4_fuse.conftest import FuseMount

pytestmark = pytest.mark.long
FILES = 2100
SIZE = "256M"
COPIED = ("atime", "ctime", "blocks")  # what a copy need not have from its source


def program(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program that has to succeed, silently on stderr; returns what it prints."""
    env = {**environment(None), "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(argv, capture_output=True, cwd=cwd, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b""), (argv, done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return done.stdout.decode(errors="surrogateescape")


def make_tree(root: Path, files: int = FILES) -> None:
    """Everything that a copying program has to carry over: links, holes, owners, times, attributes, ACLs."""
    rng = random.Random(4)
    directories = [root]
    for number in range(files // 20):
        directories.append(rng.choice(directories[-9:]) / f"directory {number}")
        directories[-1].mkdir()
    crowded = root / "crowded"  # enough for an index
    crowded.mkdir()
    for number in range(files):
        parent = crowded if number % 3 == 0 else rng.choice(directories)
        path = parent / f"{'long name ' * rng.randrange(12)}file-{number}"
        # a byte of zeros would become a hole on the way
        path.write_bytes(rng.randbytes(rng.choice((0, 1, 100, 4096, 5000, 20_000))).replace(b"\0", b"0"))
        path.chmod(rng.choice((0o644, 0o600, 0o755, 0o4711)))
        if number % 5 == 0:
            os.chown(path, rng.randrange(1 << 31), 100_000)
        if number % 7 == 0:
            os.setxattr(path, "user.number", str(number).encode())
        if number % 31 == 0:
            os.setxattr(path, "system.posix_acl_access", ACCESS_ACL)
        if number % 11 == 0:
            os.link(path, parent / f"link to {number}")
        if number % 13 == 0:
            (parent / f"symlink {number}").symlink_to(path.name * rng.randrange(1, 4))
        os.utime(path, ns=(10**18 + number, (1_500_000_000 + number) * 10**9 + 123_456_789))
    with (root / "holes").open("wb") as fp:
        for at in (0, 1_000_000, 30_000_000):
            fp.seek(at)
            fp.write(b"data" * 2000)
        fp.truncate(40_000_000)
    os.mkfifo(root / "fifo")
    for path in reversed(directories):
        path.chmod(0o750)
        os.utime(path, ns=(10**18, 11 * 10**17))


def told(mounted: Mounted, ignore: tuple[str, ...] = COPIED) -> tuple[str, ...]:
    """What is not compared through a mount: only the direct session tells where a file has data (pyfuse3: no lseek)."""
    return ignore if mounted.session == "direct" else (*ignore, "data")


def seen(root: Path) -> Snapshot:
    """A snapshot without the sizes of directories, which depend on the order in which names came."""
    found = tree.snapshot(root)
    return {name: replace(node, size=0) if node.type == "directory" else node for name, node in found.items()}


@pytest.fixture
def source(make_image: ImageMaker, kernel_mount: KernelMount) -> Path:
    """An image with the tree in `t`, made by the kernel."""
    image = make_image(SIZE, "-b", "4096", name="source.img")
    with kernel_mount(image) as directory:
        (directory / "t").mkdir()
        make_tree(directory / "t")
    return image


def test_tar_in_and_out(
    source: Path, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount, tmp_path: Path
) -> None:
    machine.need_program("tar")
    ours, back = make_image(SIZE, "-b", "4096"), make_image(SIZE, "-b", "4096")
    flags = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
    packed, repacked = tmp_path / "a.tar", tmp_path / "b.tar"
    with kernel_mount(source, "ro") as directory:
        wanted = seen(directory / "t")
        program("tar", "--sparse", "--format=posix", *flags, "-cf", packed, "-C", directory, "t")
    assert len(wanted) > 2000
    with fuse_mount(ours) as mounted:
        program("tar", *flags, "-xpf", packed, "-C", mounted.path)
        tree.assert_same(wanted, seen(mounted.path / "t"), ignore=told(mounted))
    with fuse_mount(ours) as mounted:  # nothing cached
        sparse = ("--sparse", "--hole-detection=raw", "--format=posix")
        program("tar", *sparse, *flags, "-cf", repacked, "-C", mounted.path, "t")
    with kernel_mount(back) as directory:
        program("tar", *flags, "-xpf", repacked, "-C", directory)
        tree.assert_same(wanted, seen(directory / "t"), ignore=COPIED)
    with kernel_mount(ours, "ro") as directory:
        tree.assert_same(wanted, seen(directory / "t"), ignore=COPIED)
        assert (directory / "t/holes").stat().st_blocks < 200


def test_rsync_twice(source: Path, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount) -> None:
    machine.need_program("rsync")
    image = make_image(SIZE, "-b", "4096")
    rsync = ("rsync", "-aHAX", "--sparse", "--numeric-ids", "--delete")
    with kernel_mount(source, "ro") as directory, fuse_mount(image) as mounted:
        wanted = seen(directory / "t")
        origin, copy = f"{directory}/t/", f"{mounted.path}/t/"
        program(*rsync, origin, copy)
        assert program(*rsync, "--dry-run", "--checksum", "--itemize-changes", origin, copy) == ""
        tree.assert_same(wanted, seen(Path(copy)), ignore=told(mounted))
        changed = sorted(Path(copy).rglob("file-*"))[:100]
        for path in changed[:50]:
            with path.open("ab") as fp:
                fp.write(b"more")
        for path in changed[50:]:
            path.unlink()
        (Path(copy) / "surplus").mkdir()
        assert len(program(*rsync, "--checksum", "--itemize-changes", origin, copy).splitlines()) > 100
        assert program(*rsync, "--dry-run", "--checksum", "--itemize-changes", origin, copy) == ""
        tree.assert_same(wanted, seen(Path(copy)), ignore=told(mounted))
    with kernel_mount(image, "ro") as directory:
        tree.assert_same(wanted, seen(directory / "t"), ignore=COPIED)
        assert (directory / "t/holes").stat().st_blocks < 200


def test_cp_and_rm(source: Path, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount) -> None:
    image = make_image(SIZE, "-b", "4096")
    with kernel_mount(source, "ro") as directory, fuse_mount(image) as mounted:
        wanted = seen(directory / "t")
        before = os.statvfs(mounted.path)
        program("cp", "-a", "--sparse=always", directory / "t", mounted.path / "a")
        program("cp", "-a", "--sparse=always", mounted.path / "a", mounted.path / "b")
        tree.assert_same(wanted, seen(mounted.path / "a"), ignore=told(mounted))
        program("rm", "-rf", mounted.path / "a")
        program("mv", mounted.path / "b", mounted.path / "c")
    with fuse_mount(image) as mounted:
        tree.assert_same(wanted, seen(mounted.path / "c"), ignore=told(mounted))
    with kernel_mount(image, "ro") as directory:
        tree.assert_same(wanted, seen(directory / "c"), ignore=COPIED)
    with fuse_mount(image) as mounted:  # nothing cached
        program("rm", "-rf", mounted.path / "c")
    with fuse_mount(image) as mounted:
        after = os.statvfs(mounted.path)
        assert [path.name for path in mounted.path.iterdir()] == ["lost+found"]
        assert (after.f_bfree, after.f_ffree) == (before.f_bfree, before.f_ffree)


def make_repository(path: Path) -> str:
    """A git repository with a history; returns the id of its head."""
    rng = random.Random(5)
    git("init", "-q", "-b", "main", ".", cwd=path)
    for number in range(12):
        for _ in range(30):
            target = path / f"d{rng.randrange(6)}" / f"f{rng.randrange(60)}.txt"
            target.parent.mkdir(exist_ok=True)
            target.write_text("".join(f"line {rng.randrange(1000)}\n" for _ in range(rng.randrange(300))))
        (path / "script").write_text(f"#!/bin/sh\necho {number}\n")
        (path / "script").chmod(0o755)
        git("add", "-A", cwd=path)
        git("commit", "-q", "-m", f"change {number}", cwd=path)
    return git("rev-parse", "HEAD", cwd=path)


def git(*args: str | Path, cwd: Path) -> str:
    settings = ("safe.directory=*", "user.name=a", "user.email=a@b", "gc.auto=0", "advice.detachedHead=false")
    words = [word for setting in settings for word in ("-c", setting)]
    return program("git", *words, *args, cwd=cwd).strip()


def test_git(make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount, tmp_path: Path) -> None:
    machine.need_program("git")
    origin = tmp_path / "origin"
    origin.mkdir()
    head = make_repository(origin)
    image = make_image("128M")
    with fuse_mount(image) as mounted:
        git("clone", "-q", f"file://{origin}", "clone", cwd=mounted.path)
        clone = mounted.path / "clone"
        git("fsck", "--full", "--strict", "--no-progress", cwd=clone)
        assert git("rev-parse", "HEAD", cwd=clone) == head
        git("checkout", "-q", "-b", "older", "HEAD~6", cwd=clone)
        (clone / "new file").write_text("new\n")
        git("add", "-A", cwd=clone)
        git("commit", "-q", "-m", "on a branch", cwd=clone)
        git("checkout", "-q", "main", cwd=clone)
        git("gc", "-q", cwd=clone)
        git("worktree", "add", "-q", "../worktree", "older", cwd=clone)
        assert git("status", "--porcelain", cwd=clone) == ""
        git("fsck", "--full", "--strict", "--no-progress", cwd=clone)
    with kernel_mount(image, "ro") as directory:
        git("fsck", "--full", "--strict", "--no-progress", cwd=directory / "clone")
        assert git("rev-parse", "main", cwd=directory / "clone") == head
        wanted = {name: node.digest for name, node in tree.snapshot(origin, skip=(b".git",)).items()}
        assert {n: node.digest for n, node in tree.snapshot(directory / "clone", skip=(b".git",)).items()} == wanted
        assert (directory / "worktree/new file").read_text() == "new\n"


def rows(connection: sqlite3.Connection) -> str:
    digest = hashlib.sha256()
    for row in connection.execute("select a, b from t order by a"):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def fill_database(path: Path, mode: str, commits: int = 8) -> str:
    """Write, roll back, delete, vacuum; checked by sqlite itself. Returns a digest of the rows."""
    connection = sqlite3.connect(path, timeout=60)
    assert connection.execute(f"pragma journal_mode={mode}").fetchone() == (mode.lower(),)
    connection.execute("pragma synchronous=full")
    connection.execute("create table t(a integer primary key, b blob)")
    connection.execute("create index i on t(b)")
    for number in range(commits):
        with connection:
            values = [(hashlib.sha256(b"%d %d" % (number, i)).digest() * 8,) for i in range(200)]
            connection.executemany("insert into t(b) values(?)", values)
    with pytest.raises(ZeroDivisionError), connection:
        connection.execute("delete from t where a % 3 = 0")
        raise ZeroDivisionError
    with connection:
        connection.execute("delete from t where a % 7 = 0")
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.execute("vacuum")
    found = rows(connection)
    connection.close()
    return found


def check_database(path: Path) -> str:
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    found = rows(connection)
    connection.close()
    return found


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_sqlite(mode: str, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount) -> None:
    image = make_image("64M")
    with fuse_mount(image) as mounted:
        wanted = fill_database(mounted.path / "database", mode)
        assert check_database(mounted.path / "database") == wanted
    with fuse_mount(image) as mounted:
        assert check_database(mounted.path / "database") == wanted
    with kernel_mount(image) as directory:
        assert check_database(directory / "database") == wanted


def test_all_at_once(
    source: Path, make_image: ImageMaker, kernel_mount: KernelMount, fuse_mount: FuseMount, tmp_path: Path
) -> None:
    """Several programs at a time, on a file system that they nearly fill, while its changes are committed."""
    machine.need_program("git", "rsync", "tar")
    origin = tmp_path / "origin"
    origin.mkdir()
    head = make_repository(origin)
    image = make_image("512M", "-b", "4096")
    failures: list[BaseException] = []

    def task(work: Callable[[], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                for _ in range(3):
                    work()
            except BaseException as exc:  # noqa: BLE001  (told by the test's thread)
                failures.append(exc)

        return threading.Thread(target=guarded)

    with kernel_mount(source, "ro") as directory, fuse_mount(image, ["commit=1"]) as mounted:
        root = mounted.path

        def copying() -> None:
            program("rsync", "-aHAX", "--sparse", "--numeric-ids", "--delete", f"{directory}/t/", root / "copy")
            program("cp", "-a", root / "copy", root / "copy2")
            program("rm", "-rf", root / "copy2")

        def cloning() -> None:
            program("rm", "-rf", root / "clone")
            git("clone", "-q", f"file://{origin}", "clone", cwd=root)
            git("gc", "-q", cwd=root / "clone")
            git("fsck", "--full", "--strict", "--no-progress", cwd=root / "clone")

        def storing() -> None:
            (root / "database").unlink(missing_ok=True)
            fill_database(root / "database", "WAL", 20)

        def writing() -> None:
            program("dd", "if=/dev/urandom", f"of={root}/big", "bs=1M", "count=100", "conv=fsync", "status=none")

        threads = [task(work) for work in (copying, cloning, storing, writing)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        wanted = seen(directory / "t")
        tree.assert_same(wanted, seen(root / "copy"), ignore=told(mounted))
        ours = seen(root)
    with kernel_mount(image, "ro") as directory:
        tree.assert_same(ours, seen(directory), ignore=told(mounted, ("atime",)))
        assert git("rev-parse", "HEAD", cwd=directory / "clone") == head
