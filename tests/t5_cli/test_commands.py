"""info, ls, stat, cat, iomap against what e2fsprogs and the kernel say; run in this process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from images.content import LATIN1_NAME, UTF8_NAME
from py4fs.cli.main import COMMANDS, build_parser, main
from py4fs.iomap.records import MapType
from py4fs.vfs import Vfs
from tests.conftest import KernelMount
from tests.support.image import ImageMaker, debugfs_extents, superblock
from tests.support.mounted import ROOT, run_py4fs


def ok(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    """Output of a command that has to succeed without a word on stderr."""
    assert main([str(a) for a in args]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


@pytest.fixture
def image(make_image: ImageMaker) -> Path:
    return make_image.recipe("default-b4096-i256")


@pytest.mark.parametrize(
    "name", ["default-b1024-i128", "upstream-b4096", "no-csum", "groups-uninit", "htree-tea-unsigned"]
)
def test_info_agrees_with_dumpe2fs(name: str, make_image: ImageMaker, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image.recipe(name)
    found = json.loads(ok(capsys, "info", "--json", image))
    assert found["problems"] == []
    ours, theirs = found["superblock"], superblock(image)
    for field, label in {
        "inode_count": "Inode count", "block_count": "Block count", "free_blocks": "Free blocks",
        "free_inodes": "Free inodes", "block_size": "Block size", "inode_size": "Inode size",
        "blocks_per_group": "Blocks per group", "reserved_block_count": "Reserved block count",
        "first_block": "First block", "uuid": "Filesystem UUID", "inodes_per_group": "Inodes per group",
        "directory_hash_seed": "Directory Hash Seed", "default_directory_hash": "Default directory hash",
        "mount_count": "Mount count", "first_inode": "First inode", "state": "Filesystem state",
    }.items():  # fmt: skip
        assert str(ours[field]) == theirs[label], field
    assert ours["features"] == theirs["Filesystem features"].split()
    assert ours["flags"] == theirs["Filesystem flags"].split()
    groups = found["groups"]
    assert sum(g["free_blocks"] for g in groups) == ours["free_blocks"]
    assert sum(g["free_inodes"] for g in groups) == ours["free_inodes"]
    assert groups[0]["first_block"] == ours["first_block"]
    assert groups[-1]["last_block"] == ours["block_count"] - 1
    assert all(g["problem"] is None for g in groups)


def test_info_counts_blocks_where_dumpe2fs_counts_clusters(
    make_image: ImageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    image = make_image.recipe("bigalloc-b1024-c16k")
    found = json.loads(ok(capsys, "info", "--json", image))
    ours, theirs = found["superblock"], superblock(image)
    assert (str(ours["cluster_size"]), str(ours["free_blocks"])) == (theirs["Cluster size"], theirs["Free blocks"])
    assert sum(group["free_blocks"] for group in found["groups"]) == ours["free_blocks"]


def test_info_as_text(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "info", image)
    assert "Block size:             4096\n" in text
    assert "\nGroup 0: blocks 0-8191, superblock [ITABLE_ZEROED]\n" in text
    assert "Group" not in ok(capsys, "info", "-s", image).replace("Group descriptor size", "").replace("per group", "")


def test_ls_and_stat_agree_with_the_kernel(
    image: Path, kernel_mount: KernelMount, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in ok(capsys, "ls", "-aR", "--json", image).splitlines()]
    with kernel_mount(image, "ro") as root:
        wanted = {}
        for base, dirs, files in os.walk(root):
            for name in dirs + files:
                place = Path(base) / name
                wanted["/" + str(place.relative_to(root))] = place.lstat()
    found = {line["path"]: line for line in lines}
    assert found.keys() == wanted.keys()
    for path, st in wanted.items():
        got = found[path]
        assert (got["ino"], got["size"], got["nlink"]) == (st.st_ino, st.st_size, st.st_nlink)
        assert (got["uid"], got["gid"], got["mode"]) == (st.st_uid, st.st_gid, f"{st.st_mode & 0o7777:04o}")
        assert (got["mtime"], got["blocks"], got["rdev"]) == (st.st_mtime_ns, st.st_blocks, st.st_rdev)


def test_ls_as_text(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ok(capsys, "ls", image).split() == ["basic", "lost+found", "modes", "sparse"]
    text = ok(capsys, "ls", "-l", image, "/basic")
    assert "-rwsr-xr-x   1  1001  1002         4096 2020-09-13 12:26:40 size-4096\n" in text
    assert "fast-symlink -> size-1\n" in text
    assert "300, 40000" in text
    assert UTF8_NAME in text
    assert "nom-\\xe9t\\xe9\n" in text, "bytes that are no text are shown as escapes"
    assert ok(capsys, "ls", image, "/basic/" + LATIN1_NAME) == "/basic/nom-\\xe9t\\xe9\n"
    recursive = ok(capsys, "ls", "-R", image, "/basic/dir")
    assert recursive == "/basic/dir:\nlink\nsub\n\n/basic/dir/sub:\nempty\n\n/basic/dir/sub/empty:\n"
    assert ok(capsys, "ls", "-i", image, "/basic/dir").split()[1::2] == ["link", "sub"]


def test_stat(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "stat", image, "/basic/size-4097")
    assert "  File: /basic/size-4097\n" in text
    assert "Size: 4097  Blocks: 16  regular file" in text
    assert "Uid: 70000  Gid: 135537" in text
    assert "Modify: 2020-09-13 12:26:40.000000000\n" in text
    assert 'xattr: user.a = "1"' in ok(capsys, "stat", image, "/basic/xattr-inode")
    assert "Device: 300, 40000" in ok(capsys, "stat", image, "/basic/char-big")
    assert " -> size-1\n" in ok(capsys, "stat", image, "/basic/fast-symlink")
    followed = json.loads(ok(capsys, "stat", "-L", "--json", image, "/basic/fast-symlink"))
    assert (followed["type"], followed["size"]) == ("regular file", 1)
    spaces = json.loads(ok(capsys, "stat", "--json", image, "/basic/xattr-spaces"))["xattrs"]
    assert {k: bytes.fromhex(v).decode() for k, v in spaces.items()} == {
        n: n for n in ("user.u", "trusted.t", "security.s")
    }


def test_cat(image: Path, kernel_mount: KernelMount, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with kernel_mount(image, "ro") as root:
        wanted = (root / "basic/size-300001").read_bytes() + (root / "basic/linked").read_bytes()
        tail = (root / "sparse/only-the-end").read_bytes()
    assert main(["cat", str(image), "/basic/size-300001", "basic/dir/link"]) == 0
    assert capfdbinary.readouterr().out == wanted
    assert main(["cat", str(image), "/sparse/only-the-end"]) == 0
    assert capfdbinary.readouterr().out == tail


@pytest.mark.parametrize("name", ["beyond-4GiB", "unwritten", "all-hole", "only-the-end"])
def test_iomap_agrees_with_debugfs(name: str, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/sparse/{name}"
    found = json.loads(ok(capsys, "iomap", "--json", image, path))
    size = -(-found["size"] // 4096)
    ours = [
        (m["offset"] // 4096, m["length"] // 4096, m["addr"] // 4096, m["type"] == "unwritten")
        for m in found["mappings"]
    ]
    assert ours == [e for e in debugfs_extents(image, path) if e[0] < size or e[3]]
    with_holes = json.loads(ok(capsys, "iomap", "-H", "--json", image, path))["mappings"]
    end = 0
    for mapping in with_holes:
        assert mapping["offset"] == end, "the mappings do not leave anything out"
        end = mapping["offset"] + mapping["length"]
    assert end >= found["size"]


def test_iomap_as_text(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "iomap", image, "/sparse/only-the-end")
    (extent,) = debugfs_extents(image, "/sparse/only-the-end")
    assert f"   0:      255..     255: {extent[2]:>10}..{extent[2]:>10}:      1:            last,eof\n" in text
    assert "\n/sparse/only-the-end: 1 extent found\n" in text


def test_iomap_shows_both_forks(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On ext4 the write fork is never used; with holes the table leaves nothing out."""
    text = ok(capsys, "iomap", "-H", image, "/sparse/only-the-end")
    assert "   0:        0..     254:                       :    255:            hole\n" in text
    assert "write fork: not in use, writes go where reads come from\n" in text
    found = json.loads(ok(capsys, "iomap", "--json", image, "/sparse/only-the-end"))
    assert found["write_fork"] is None and "stats" not in found


@pytest.mark.parametrize(
    ("recipe", "path"),
    [("deep-extents-b1024", "/extents/comb"), ("block-map-b1024", "/indirect/ends"), ("kernel-b4096", "/data/comb")],
)
def test_iomap_stats_cold_and_warm(
    recipe: str, path: str, make_image: ImageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opening pushes the first mappings, a miss brings a window, the second pass asks nobody."""
    image = make_image.recipe(recipe)
    found = json.loads(ok(capsys, "iomap", "-H", "--stats", "--json", image, path))
    opened, first, second = (found["stats"][name] for name in ("open", "first pass", "second pass"))
    assert opened["upserts"] > 0 and opened["upcalls"] == 0
    assert 0 < first["upcalls"] == first["misses"] == first["retries"] <= len(found["mappings"]) // 100 + 12
    assert first["hits"] > 0
    assert {name: count for name, count in second.items() if count} == {"hits": second["hits"]}
    assert second["hits"] in (len(found["mappings"]), len(found["mappings"]) + 1)  # the hole behind the end
    text = ok(capsys, "iomap", "--stats", image, path)
    assert "cache            hits   misses  upcalls  retries  upserts   ioends\n" in text
    assert f"second pass {second['hits']:>9}{0:>9}{0:>9}{0:>9}{0:>9}{0:>9}\n" in text


@pytest.mark.parametrize(
    ("recipe", "paths"),
    [
        ("deep-extents-b4096", ["/extents/comb"]),
        ("block-map-b4096", [f"/indirect/{name}" for name in ("ends", "direct", "single", "double", "triple", "comb")]),
        ("inline-data", ["/small/size-60", "/small/size-128", "/small/size-129", "/small/size-0"]),
        ("bigalloc-b1024-c16k", ["/clusters/every-3", "/clusters/punched-7"]),
        ("default-b1024-i128", ["/sparse/unwritten", "/sparse/all-hole", "/basic/size-0", "/basic/size-300001"]),
    ],
)
def test_iomap_compare(
    recipe: str, paths: list[str], make_image: ImageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ok(capsys, "iomap", "--compare", make_image.recipe(recipe), *paths)
    assert [line for line in text.splitlines() if "debugfs" in line] == [f"{p}: debugfs says the same" for p in paths]


def test_iomap_compare_in_a_partition(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "disk"
    whole.write_bytes(bytes(1 << 20) + image.read_bytes())
    text = ok(capsys, "iomap", "--compare", "--offset", "1M", whole, "/basic/size-300001")
    assert "debugfs says the same" in text


@pytest.mark.parametrize(("recipe", "path"), [("default-b4096-i256", "/sparse/beyond-4GiB"),
                                               ("block-map-b1024", "/indirect/comb")])  # fmt: skip
def test_iomap_compare_says_where_they_differ(
    recipe: str, path: str, make_image: ImageMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if we took the second extent to lie one block further on."""
    image = make_image.recipe(recipe)
    real = Vfs.forks

    def wrong(self: Vfs, ino: int) -> Any:
        read, write = real(self, ino)
        at = [i for i, m in enumerate(read) if m.type == MapType.MAPPED][1]
        read[at] = read[at]._replace(addr=read[at].addr + self.volume.geometry.block_size)
        return read, write

    monkeypatch.setattr(Vfs, "forks", wrong)
    assert main(["iomap", "--compare", str(image), path]) == 1
    found = capsys.readouterr()
    assert "says the same" not in found.out
    lines = found.err.splitlines()
    assert all(line.startswith(f"py4fs: {image}: {path}: ") for line in lines)
    assert [line for line in lines if "only py4fs says: blocks" in line]
    assert [line for line in lines if "only debugfs says: blocks" in line]


def test_iomap_compare_needs_debugfs(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    assert main(["iomap", "--compare", str(image), "/basic/size-1"]) == 1
    assert capsys.readouterr().err == "py4fs: --compare needs debugfs (Debian package e2fsprogs)\n"


def svg_colours(path: Path) -> Counter[str]:
    return Counter(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", path.read_text()))


def test_iomap_plot(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each extent in the colour of its type, the same file each time; PNG by its name."""
    svg, again, png = tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "c.PNG"
    for path in (svg, again, png):
        ok(capsys, "iomap", "--plot", path, image, "/sparse/unwritten")
    assert svg.read_bytes() == again.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring(svg.read_text())
    assert root.tag.endswith("svg")
    words = " ".join(text.strip() for text in root.itertext() if text.strip())
    assert f"{image.name}: /sparse/unwritten" in words
    for legend in ("mapped:", "unwritten:", "place on the device", "place in the file"):
        assert legend in words
    colours = svg_colours(svg)
    assert colours["#0072b2"] and colours["#e69f00"]
    ok(capsys, "iomap", "--plot", again, image, "/basic/size-4096")
    assert not svg_colours(again)["#e69f00"], "nothing is unwritten there"
    for empty in ("/basic/size-0", "/sparse/all-hole"):
        ok(capsys, "iomap", "--plot", again, image, empty)


def test_iomap_plot_of_odd_names(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names are text, not formulas, whatever glyphs the font has."""
    odd = tmp_path / "a$b_{$.img"
    image.rename(odd)
    ok(capsys, "iomap", "--plot", tmp_path / "out.png", odd, "/basic/" + UTF8_NAME)
    odd.rename(image)


def test_iomap_plot_mistakes(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, code, why in (
        (["--plot", "x.gif", image, "/basic/size-1"], 1, "the name has to end in .svg or .png"),
        (["--plot", tmp_path / "x.svg", image, "/basic/size-1", "/basic/size-0"], 1, "draws one FILE"),
        (["--plot", tmp_path / "absent" / "x.svg", image, "/basic/size-1"], 1, "No such file or directory"),
    ):
        assert main(["iomap", *map(str, words)]) == code
        err = capsys.readouterr().err
        assert why in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["iomap", "--plot", str(tmp_path / "x.svg"), str(image), "/basic/size-1"]) == 1
    assert capsys.readouterr().err == "py4fs: --plot needs matplotlib: pip install 'py4fs[plot]'\n"


@pytest.mark.parametrize("command", ["ls", "stat", "cat", "iomap"])
def test_missing_paths_are_named_and_the_rest_is_done(command: str, image: Path) -> None:
    done = run_py4fs(command, image, "/basic/absent", "/basic/size-1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"py4fs: {image}: /basic/absent: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout


def test_cat_of_a_directory(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", str(image), "/basic"]) == 1
    assert "directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        build_parser().parse_args([command, "--help"])
    assert info.value.code == 0
    assert f"usage: py4fs {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["ls"], ["ls", "--nonsense", "x"], ["mount", "only-one"], ["info", "--offset", "x", "y"]],
)
def test_usage_errors_are_one_line_and_exit_1(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    found = capsys.readouterr()
    assert found.err.startswith("py4fs: ") and found.err.count("\n") == 1 and "--help" in found.err


def test_help_and_reading_need_neither_trio_nor_pyfuse3(image: Path) -> None:
    program = """
import sys
sys.modules["trio"] = sys.modules["pyfuse3"] = None  # importing them fails
from py4fs.cli.main import main
assert main(["ls", sys.argv[1]]) == 0
assert main(["mount", sys.argv[1], sys.argv[2], "-o", "bogus"]) == 1
try:
    main(["--help"])
except SystemExit:
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program, image, image.parent], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "py4fs: unknown mount option: bogus\n")


def test_a_closed_pipe_is_no_error(image: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m py4fs.cli.main cat {image} /sparse/beyond-4GiB | head -c 10 | wc -c"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("10", "")


def test_console_script_and_version() -> None:
    done = run_py4fs("--version")
    assert done.stdout.startswith("py4fs 0.")
