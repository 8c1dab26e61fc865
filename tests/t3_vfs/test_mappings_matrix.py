"""Every file of every image of the matrix: its mappings are those that debugfs finds."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import py4fs
from images.recipes import RECIPES
from images.tools import environment
from py4fs.errors import UnsupportedFeature
from py4fs.ext4.layout.inode import EXT4_EXTENTS_FL
from py4fs.iomap.records import Mapping, MapType, has_device
from py4fs.vfs import Attr
from tests.support.image import ImageMaker

#: images that take tens of seconds to build, or to open
LONG = frozenset({"kernel-htree", "htree-deep", "mmp", "mmp-b1024"})
#: files for which debugfs is asked at once
BATCH = 500


class Extent(NamedTuple):
    """``length`` blocks from ``lblk`` on lie at ``pblk``."""

    lblk: int
    length: int
    pblk: int
    unwritten: bool


def joined(extents: list[Extent]) -> list[Extent]:
    """Contiguous extents as one: a mapping may span several."""
    found: list[Extent] = []
    for extent in extents:
        last = found[-1] if found else None
        if (
            last
            and last.unwritten == extent.unwritten
            and (last.lblk + last.length, last.pblk + last.length) == (extent.lblk, extent.pblk)
        ):
            found[-1] = last._replace(length=last.length + extent.length)
        else:
            found.append(extent)
    return found


def ask_debugfs(image: Path, requests: list[str]) -> list[str]:
    """The answers of one debugfs process to many requests; it repeats each one in front of its answer."""
    done = subprocess.run(
        ["debugfs", "-f", "-", image],
        input="".join(f"{request}\n" for request in requests),
        capture_output=True, text=True, errors="surrogateescape", env=environment(None), check=True,
    )  # fmt: skip
    answers = done.stdout.split("debugfs: ")[1:]
    assert len(answers) == len(requests)
    found = []
    for request, answer in zip(requests, answers, strict=True):
        head, _, body = answer.partition("\n")
        assert head == request
        found.append(body)
    return found


def from_dump(text: str) -> list[Extent]:
    """`dump_extents -l`: Level Entries Logical Physical Length Flags."""
    found = []
    for line in text.splitlines()[1:]:
        match = re.fullmatch(r" *\d+/ *\d+ +\d+/ *\d+ +(\d+) - +(\d+) +(\d+) - +\d+ +(\d+)( Uninit)? *", line)
        assert match, line
        first, last, pblk, count = map(int, match.groups()[:4])
        assert last - first + 1 == count
        found.append(Extent(first, count, pblk, bool(match[5])))
    return found


def from_stat(text: str) -> tuple[list[Extent], set[int]]:
    """`stat` of a file with a block map: its data, and the pointer blocks."""
    found: list[Extent] = []
    pointers: set[int] = set()
    for what, first, last in re.findall(r"\(([^)]+)\):(\d+)(?:-(\d+))?", text.partition("\nBLOCKS:")[2]):
        count = int(last or first) - int(first) + 1
        if what in ("IND", "DIND", "TIND"):
            pointers.update(range(int(first), int(first) + count))
        else:
            found.append(Extent(int(what.split("-")[0]), count, int(first), False))
    return found, pointers


def ours(mappings: list[Mapping], block: int) -> list[Extent]:
    return joined(
        [
            Extent(m.offset // block, m.length // block, m.addr // block, m.type == MapType.UNWRITTEN)
            for m in mappings
            if has_device(m.type)
        ]
    )


def check_whole(mappings: list[Mapping], attr: Attr, what: str) -> None:
    """Nothing is left out, nothing is told twice."""
    at = 0
    for mapping in mappings:
        assert mapping.offset == at and mapping.length > 0, what
        at = mapping.end
    assert at >= attr.size, what


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in RECIPES]
)
def test_mappings_of_every_file(name: str, make_image: ImageMaker) -> None:
    image = make_image.recipe(name)
    files: dict[int, tuple[str, Attr]] = {}
    try:
        fs = py4fs.open_image(image, readonly=True)
    except UnsupportedFeature as exc:
        pytest.skip(f"py4fs does not read it: {exc}")
    with fs:
        for top, _, names in fs.walk():
            for entry in names:
                path = f"{top.rstrip('/')}/{entry}"
                attr = fs.lstat(path)
                if stat.S_ISREG(attr.mode):
                    files[attr.ino] = (path, attr)
        assert files, "every image has some"
        reports = {ino: fs.vfs.mappings(ino) for ino in files}
        forks = {ino: fs.vfs.forks(ino) for ino in files}
        block = fs.volume.geometry.block_size
    requests = [
        f"dump_extents -l <{ino}>" if attr.flags & EXT4_EXTENTS_FL else f"stat <{ino}>"
        for ino, (_, attr) in files.items()
    ]
    answers: list[str] = []
    for start in range(0, len(requests), BATCH):
        answers += ask_debugfs(image, requests[start : start + BATCH])
    mapped = 0
    for (ino, (path, attr)), answer in zip(files.items(), answers, strict=True):
        extents, pointers = (from_dump(answer), set()) if attr.flags & EXT4_EXTENTS_FL else from_stat(answer)
        what = f"inode {ino} {path}"
        theirs = joined(extents)
        check_whole(reports[ino], attr, what)
        assert ours(reports[ino], block) == theirs, what
        read_fork, write_fork = forks[ino]
        assert ours(read_fork, block) == theirs, what
        assert write_fork is None, what
        mapped += len(theirs)
        if pointers:
            (listed,) = ask_debugfs(image, [f"blocks <{ino}>"])
            blocks = [pblk for e in theirs for pblk in range(e.pblk, e.pblk + e.length)]
            assert [pblk for pblk in map(int, listed.split()) if pblk not in pointers] == blocks, what
    print(f"{len(files)} files, {mapped} extents")
    if name.startswith("block-map"):
        assert any(len(from_stat(answer)[1]) >= 3 for answer in answers), "up to triple-indirect blocks"


def test_the_matrix_has_all_kinds_of_maps() -> None:
    assert {"block-map-b1024", "block-map-b4096", "block-map-ext3", "block-map-ext2"} <= set(RECIPES)
    assert {"deep-extents-b1024", "kernel-b1024", "kernel-b4096"} <= set(RECIPES)
