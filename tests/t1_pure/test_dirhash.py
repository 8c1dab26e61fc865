"""Directory hashes against debugfs's own."""

from __future__ import annotations

import random
import re
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py4fs.errors import Corrupt
from py4fs.ext4.dirhash import HTREE_EOF_32BIT, dirhash, hash_seed, resolve_version

SEED = uuid.UUID("81f3c0de-0506-0708-f90a-0b0c0d0efe10")
# What debugfs's command line cannot carry in a quoted word.
UNUSABLE = b'\0\n\r"'


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dirhash") / "fs.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path, "4M"], check=True, capture_output=True)
    return path


def ask(image: Path, questions: list[tuple[bytes, int]], seed: uuid.UUID | None) -> list[tuple[int, int]]:
    option = b"-s " + str(seed).encode() if seed else b""
    lines = [b'dx_hash -h %d %s "%s"' % (version, option, name) for name, version in questions]
    done = subprocess.run(
        ["debugfs", "-f", "-", image], input=b"\n".join(lines) + b"\n", capture_output=True, check=True
    )
    answers = re.findall(rb" is 0x([0-9a-f]+) \(minor 0x([0-9a-f]+)\)", done.stdout)
    assert len(answers) == len(questions)
    return [(int(major, 16), int(minor, 16)) for major, minor in answers]


def names() -> list[bytes]:
    rng = random.Random(7)
    high = [c for c in range(1, 256) if c not in UNUSABLE]
    ascii_only = [c for c in high if 32 < c < 127]
    lengths = [*range(1, 70), 95, 96, 97, 127, 128, 129, 160, 180]
    return [bytes(rng.choices(alphabet, k=n)) for n in lengths for alphabet in (high, ascii_only)]


@pytest.mark.parametrize("seed", [SEED, None], ids=["seed", "default seed"])
def test_all_versions_agree_with_debugfs(image: Path, seed: uuid.UUID | None) -> None:
    questions = [(name, version) for name in names() for version in range(6)]
    words = hash_seed(seed.bytes if seed else bytes(16))
    want = ask(image, questions, seed)
    wrong = [q for q, answer in zip(questions, want, strict=True) if dirhash(*q, words) != answer]
    assert not wrong


@pytest.mark.parametrize("length", [225, 254, 255])
def test_longest_names(image: Path, length: int) -> None:
    name = bytes(random.Random(length).choices(range(128, 256), k=length))
    for version in range(6):
        command = b'dx_hash -h %d -s %s "%s"' % (version, str(SEED).encode(), name)
        done = subprocess.run(["debugfs", "-R", command, image], capture_output=True, check=True)
        major, minor = re.findall(rb"is 0x([0-9a-f]+) \(minor 0x([0-9a-f]+)", done.stdout)[0]
        assert dirhash(name, version, hash_seed(SEED.bytes)) == (int(major, 16), int(minor, 16))


@given(st.binary(max_size=255), st.integers(0, 5), st.tuples(*[st.integers(0, 2**32 - 1)] * 4))
def test_range(name: bytes, version: int, seed: tuple[int, int, int, int]) -> None:
    major, minor = dirhash(name, version, seed)
    assert 0 <= major < 0xFFFFFFFE and not major & 1
    assert 0 <= minor <= 0xFFFFFFFF
    if name.isascii() and version < 3:
        assert dirhash(name, version + 3, seed) == (major, minor)


def test_end_of_tree_is_no_hash(image: Path) -> None:
    """A name (found by trying) whose TEA is what marks the end of a tree: it gets the last hash before that."""
    [(major, minor)] = ask(image, [(b"veficcoa", 2)], None)
    assert major == HTREE_EOF_32BIT << 1
    assert dirhash(b"veficcoa", 2, (0, 0, 0, 0)) == (0xFFFFFFFC, minor)


@pytest.mark.parametrize("version", [6, 7, 255, -1])
def test_unknown_versions_are_corrupt(version: int) -> None:
    with pytest.raises(Corrupt, match="hash_version"):
        dirhash(b"name", version, (0, 0, 0, 0))


def test_the_superblock_flag_makes_a_version_unsigned() -> None:
    assert [resolve_version(v, 1) for v in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [resolve_version(v, 2) for v in range(6)] == [3, 4, 5, 3, 4, 5]
    assert resolve_version(1, 0) == 1
