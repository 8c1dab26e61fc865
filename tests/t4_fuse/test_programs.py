"""Real programs on a mount; e2fsck at the end of each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from images.content import ACCESS_ACL, pattern
from tests.support import machine, tree
from tests.support.image import ImageMaker
from tests.t4_fuse.conftest import FuseMount

WHEN = ("atime", "ctime", "blocks", "data")
TAR = "--xattrs --xattrs-include=* --acls"


def sh(command: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000+ files in some 200 directories, with hard links, symlinks, xattrs, ACLs, holes, odd modes and times."""
    root = tmp_path_factory.mktemp("source") / "tree"
    root.mkdir()
    for i in range(200):
        sub = root / f"d{i % 20}" / f"e{i}"
        sub.mkdir(parents=True)
        for j in range(11):
            (sub / f"file-{j}").write_bytes(pattern(f"{i}.{j}", (i * 131 + j * 977) % 9000))
    (root / "hard").hardlink_to(root / "d0/e0/file-1")
    (root / "soft").symlink_to("d0/e0/file-2")
    (root / "d1" / "file").write_bytes(b"x")
    (root / "d1" / "file").chmod(0o4711)
    os.setxattr(root / "d1" / "file", "user.comment", b"hello")
    os.setxattr(root / "d2", "user.directory", b"yes")
    os.setxattr(root / "d1" / "file", "system.posix_acl_access", ACCESS_ACL)
    with (root / "sparse").open("wb") as fp:
        fp.write(b"start")
        fp.seek(50_000_000)
        fp.write(b"end")
    for i in range(20):
        os.utime(root / f"d{i}", ns=(10**18 + i, 10**18 + i))
    if machine.is_root():
        os.chown(root / "d3", 70_000, 70_001)
        os.mkfifo(root / "fifo")
    return root


def test_copy_tar_rsync_and_remove(source: Path, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_program("rsync", "tar")
    wanted = tree.snapshot(source)
    image = make_image("256M", "-b", "4096")
    with fuse_mount(image) as mounted:
        root = mounted.path
        sh(f"tar -C {source.parent} {TAR} -S -cf - tree | tar {TAR} -xpf -", root)
        tree.assert_same(wanted, tree.snapshot(root / "tree"), WHEN)
        sh("tar --acls --xattrs -S -cf ../tree.tar tree && tar -df ../tree.tar", root)
        sh("cp -a tree copy", root)
        tree.assert_same(wanted, tree.snapshot(root / "copy"), WHEN)
        sh(f"rsync -aHAX --sparse {source}/ synced/", root)
        tree.assert_same(wanted, tree.snapshot(root / "synced"), WHEN)
        assert sh(f"rsync -aHAXnic --delete {source}/ synced/", root) == ""
        assert (root / "synced" / "sparse").stat().st_blocks < 200, "the hole has been written"
        free = os.statvfs(root).f_ffree
        sh("rm -rf copy synced", root)
        assert os.statvfs(root).f_ffree - free > 4000
        tree.assert_same(wanted, tree.snapshot(root / "tree"), WHEN)
    (image.parent / "tree.tar").unlink()
    with fuse_mount(image) as mounted:
        tree.assert_same(wanted, tree.snapshot(mounted.path / "tree"), WHEN)


def test_git(tmp_path: Path, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_program("git")
    config = "git -c user.name=t -c user.email=t@example.org -c init.defaultBranch=main -c gc.auto=0"
    origin = tmp_path / "origin"
    origin.mkdir()
    for i in range(150):
        (origin / f"f{i}").write_bytes(pattern(str(i), 3000))
    sh(f"{config} init -q && git add . && {config} commit -qm one && git rm -q f1 && {config} commit -qm two", origin)
    with fuse_mount(make_image("128M")) as mounted:
        sh(f"{config} clone -q file://{origin} clone", mounted.path)
        clone = mounted.path / "clone"
        sh("git fsck --full --strict", clone)
        sh(
            f"echo new > new && git add new && {config} commit -qm three && git gc -q && git fsck --full --strict",
            clone,
        )
        assert sh("git status --porcelain", clone) == ""
        assert sh("git log --oneline | wc -l", clone).strip() == "3"


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite(journal: str, make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    machine.need_program("sqlite3")
    script = f"""
PRAGMA journal_mode={journal};
CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000)
INSERT INTO t SELECT i, randomblob(500) FROM n;
COMMIT;
UPDATE t SET v = randomblob(700) WHERE id % 3 = 0;
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
PRAGMA integrity_check;
SELECT count(*) FROM t;
"""
    image = make_image("64M")
    with fuse_mount(image) as mounted:
        done = subprocess.run(
            ["sqlite3", mounted.path / "db"], input=script, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-2:] == ["ok", "2400"], done.stdout + done.stderr
    with fuse_mount(image, ["rw"]) as mounted:
        done = subprocess.run(
            ["sqlite3", mounted.path / "db", "PRAGMA integrity_check; SELECT count(*) FROM t"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["ok", "2400"]


def test_compiling_and_running(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    """mmap of executables, many small files, rename over."""
    machine.need_program("gcc", "make")
    with fuse_mount(make_image("64M")) as mounted:
        for i in range(20):
            (mounted.path / f"f{i}.c").write_text(f"int f{i}(void) {{ return {i}; }}\n")
        calls = " + ".join(f"f{i}()" for i in range(20))
        declared = " ".join(f"int f{i}(void);" for i in range(20))
        (mounted.path / "main.c").write_text(
            f'#include <stdio.h>\n{declared}\nint main(void) {{ printf("%d\\n", {calls}); }}\n'
        )
        (mounted.path / "Makefile").write_text("main: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n")
        sh("make -s -j2 main", mounted.path)
        assert sh("./main", mounted.path) == "190\n"


def test_python_standard_library_copy(make_image: ImageMaker, fuse_mount: FuseMount) -> None:
    with fuse_mount(make_image("64M")) as mounted:
        package = Path(os.__file__).parent / "json"
        shutil.copytree(package, mounted.path / "json")
        archive = shutil.make_archive(str(mounted.path / "packed"), "zip", mounted.path / "json")
        shutil.unpack_archive(archive, mounted.path / "unpacked")
        for path in package.rglob("*.py"):
            assert (mounted.path / "unpacked" / path.relative_to(package)).read_bytes() == path.read_bytes()
