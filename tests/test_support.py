"""The tools of the tests can fail: they are what every other test relies on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from images import build
from images.recipes import RECIPES
from images.tools import ToolError, debugfs
from tests.conftest import KernelMount
from tests.support import tree
from tests.support.image import ImageMaker, debugfs_extents, superblock
from tests.support.logs import LogGuard

pytest_plugins = ["pytester"]


def test_fsck_notices_damage(make_image: ImageMaker, fsck: Callable[[Path], None]) -> None:
    image = make_image("8M")
    fsck(image)
    debugfs(image, ["set_inode_field <2> links_count 9"])
    with pytest.raises(pytest.fail.Exception, match="Inode 2 ref count is 9"):
        fsck(image)
    with pytest.raises(pytest.fail.Exception):
        make_image.check_all()
    make_image.excuse(image)


def test_debugfs_complaints_are_errors(make_image: ImageMaker) -> None:
    with pytest.raises(ToolError, match="File not found"):
        debugfs(make_image("8M"), ["ln nothing there"])


def test_log_guard() -> None:
    guard = LogGuard()
    guard.emit(logging.LogRecord("py4fs.x", logging.WARNING, __file__, 1, "block %d is odd", (7,), None))
    with pytest.raises(AssertionError, match="block 7 is odd"):
        guard.check()
    guard.expect("block . is odd")
    guard.check()
    guard.expect("something else")
    with pytest.raises(AssertionError, match="not there"):
        guard.check()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: (d / "f").write_bytes(b"y" * 5000), "digest"),
        (lambda d: (d / "f").chmod(0o600), "mode"),
        (lambda d: os.utime(d / "f", ns=(5, 1_000_000_001)), "mtime"),
        (lambda d: (d / "f").unlink(), "missing"),
        (lambda d: (d / "new").mkdir(), "unexpected"),
        (lambda d: os.setxattr(d / "f", "user.a", b"2"), "xattrs"),
        (lambda d: ((d / "l").unlink(), (d / "l").symlink_to("g")), "target"),
        (lambda d: (d / "g").hardlink_to(d / "f"), "nlink"),
        (lambda d: os.truncate(d / "f", 5001), "size"),
    ],
)
def test_tree_differences_are_seen(tmp_path: Path, change: Callable[[Path], object], word: str) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "f").write_bytes(b"x" * 5000)
    (root / "l").symlink_to("f")
    os.setxattr(root / "f", "user.a", b"1")
    before = tree.snapshot(root)
    tree.assert_same(before, tree.snapshot(root))
    change(root)
    assert any(word in line for line in tree.differences(before, tree.snapshot(root)))


def test_digest_ignores_how_zeros_are_stored(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" + bytes(100_000) + b"y")
    with (tmp_path / "b").open("wb") as fp:
        fp.write(b"x")
        fp.seek(100_001)
        fp.write(b"y")
    a, b = (tree.snapshot(tmp_path)[name].digest for name in (b"a", b"b"))
    assert a == b
    (tmp_path / "b").write_bytes(b"x" + bytes(99_999) + b"y\0")
    assert tree.snapshot(tmp_path)[b"b"].digest != a


def test_kernel_and_debugfs_agree_on_a_recipe(make_image: ImageMaker, kernel_mount: KernelMount) -> None:
    image = make_image.recipe("default-b4096-i256")
    with kernel_mount(image, "ro") as root:
        snap = tree.snapshot(root)
    big = snap[b"sparse/beyond-4GiB"]
    assert big.size == (5 << 30) + 123
    assert big.data is not None
    extents = debugfs_extents(image, "/sparse/beyond-4GiB")
    assert [(lblk * 4096, count * 4096) for lblk, count, _, _ in extents] == list(big.data)
    assert (16, 84, True) in [(e[0], e[1], e[3]) for e in debugfs_extents(image, "/sparse/unwritten")]
    assert superblock(image)["Block size"] == "4096"


def test_recipes_rebuild_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = RECIPES["htree-tea-unsigned"]
    first, second = (build.build(recipe, tmp_path / name).read_bytes() for name in ("1.img", "2.img"))
    assert first == second


_SKIPPING = """
import pytest
from tests.support import machine
def test_wanting():
    pytest.skip(machine.NEEDS + "a pony")
def test_other():
    pytest.skip("not today")
"""


@pytest.mark.parametrize("complete", [True, False])
def test_skips_fail_where_everything_is_there(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr("tests.support.machine.complete", lambda: complete)
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(_SKIPPING)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=int(complete), skipped=1 if complete else 2)
    result.stdout.fnmatch_lines(["skipped: 1 x not today"])
