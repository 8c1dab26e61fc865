"""Is a crash image what it has to be? Recovered by e2fsck, by py4fs, by the kernel; then compared."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images.kernel import loop_mount
from images.tools import environment
from py4fs.api import OpenOptions, open_device
from py4fs.device.memory import MemoryDevice
from py4fs.device.recording import Crash
from py4fs.ext4.layout.superblock import EXT4_VALID_FS, SUPERBLOCK
from tests.support.volumes import Clock
from tests.t6_crash.world import Node, Recording, State, Tree, TreeReader, open_strict

#: what e2fsck may say about an image whose journal makes it right
_FINE = re.compile(
    r"""(?x) $ | e2fsck\ \d
    | Pass\ [1-5]:\ Checking | .*:\ recovering\ journal$ | .*:\ \d+/\d+\ files\ \(
    | (Clearing|Truncating)\ orphaned\ inode\ \d+\ \(uid=\d+,\ gid=\d+,\ mode=0\d+,\ size=\d+\)$
    | Orphan\ file\ \(inode\ \d+\)\ block\ \d+\ is\ not\ clean\.$ | Clear\?\ yes$
    | Feature\ orphan_present\ is\ set\ but\ orphan\ file\ is\ clean\.$
    | .*\*{5}\ FILE\ SYSTEM\ WAS\ MODIFIED\ \*{5}$"""
)

#: what e2fsck says when something points to a block that was never written, or a name to a file that it never meant.
#: (The list of orphans may end early, bitmaps be older than their checksums, names be left of files that are gone: that
#: is what e2fsck has to be run for.)
_UNWRITTEN = re.compile(
    r"(?im)^(?!.*(orphan linked list|bitmap)).*"
    r"(illegal block|invalid (extent|block)|bad magic|corrupt|extent (header|block)|checksum|incorrect filetype)"
)


class Wrong(AssertionError):
    """An image is not what it has to be."""


def _e2fsck(path: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        ["e2fsck", "-f", *options, path],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(None),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def fsck_clean(path: Path) -> None:
    code, text = _e2fsck(path, "-n")
    if code:
        raise Wrong(f"e2fsck -fn after recovery: exit {code}\n{text}")


def fsck_recover(path: Path, *, only_replay: bool) -> str:
    """`e2fsck -fy`, which with ``only_replay`` may do no more than replay the journal and clear orphans."""
    code, text = _e2fsck(path, "-y", "-E", "no_optimize_extents")
    if code not in (0, 1):
        raise Wrong(f"e2fsck -fy: exit {code}\n{text}")
    surplus = [line for line in text.splitlines() if not _FINE.match(line)]
    if only_replay and surplus:
        raise Wrong(f"e2fsck -fy had to repair:\n{text}")
    return text


def read_tree(image: bytes) -> Tree:
    """The tree of an image that needs no recovery."""
    device = MemoryDevice(image, readonly=True)
    fs = open_device(device, clock=Clock(), options=OpenOptions(readonly=True, atime="noatime"))
    try:
        return TreeReader(fs.vfs).read()
    finally:
        fs.close()


# -- comparing -------------------------------------------------------------------------------------------------


def compare(recording: Recording, index: int, cut: int, tree: Tree) -> Iterator[str]:
    """What is different from a state, a line each."""
    state = recording.states[index]
    for path in sorted(state.tree.keys() - tree.keys()):
        yield f"{path!r} is missing (inode {state.tree[path].ino})"
    for path in sorted(tree.keys() - state.tree.keys()):
        yield f"{path!r} should not be there (inode {tree[path].ino})"
    for path in sorted(state.tree.keys() & tree.keys()):
        yield from _compare_nodes(recording, index, cut, path, tree[path])


def _compare_nodes(recording: Recording, index: int, cut: int, path: bytes, got: Node) -> Iterator[str]:
    state = recording.states[index]
    want = state.tree[path]
    for name in Node._fields:
        if name == "content" or (name == "blocks" and want.ino in state.orphans):
            continue
        if getattr(want, name) != getattr(got, name):
            yield f"{path!r} (inode {want.ino}): {name} is {getattr(got, name)!r}, want {getattr(want, name)!r}"
    if want.content != got.content and want.size == got.size:
        assert want.content is not None
        assert got.content is not None
        spared = recording.touched(index, cut, want)
        bad = wrong_bytes(want.content, got.content, spared)
        if bad:
            yield f"{path!r} (inode {want.ino}, {want.size} bytes): wrong from byte {bad[0]} on, {len(bad)} in all"


def wrong_bytes(want: bytes, got: bytes, spared: list[tuple[int, int]]) -> list[int]:
    """Where two contents differ outside of the ranges that may differ."""
    bad = [at for at, (a, b) in enumerate(zip(want, got, strict=True)) if a != b]
    return [at for at in bad if not any(low <= at < high for low, high in spared)]


def match(recording: Recording, cut: int, tree: Tree, who: str) -> int:
    """The state that a recovered tree is in. Raises Wrong when it is none of those that it may be."""
    told = []
    for index in reversed(recording.candidates(cut)):
        found = list(compare(recording, index, cut, tree))
        if not found:
            return index
        told.append(f"state {index} of {recording.candidates(cut)}:\n    " + "\n    ".join(found[:10]))
    text = f"{who} recovered a tree that never was:\n  " + "\n  ".join(told)
    raise Wrong(text.replace("long" * 3, "").replace("crowd" * 2, ""))


# -- the three ways --------------------------------------------------------------------------------------------


class Judge:
    """Checks the crash images of one recording. `scratch`: a directory, best in memory."""

    def __init__(self, recording: Recording, scratch: Path) -> None:
        self._recording = recording
        self._path = scratch / "crash.img"
        #: images looked at
        self.checked = 0

    def check(self, crash: Crash, image: bytes | bytearray, *, kernel: bool = False) -> None:
        """Raises Wrong."""
        self.checked += 1
        recording = self._recording
        if not recording.config.journal:
            self._check_unjournalled(crash, image)
            return
        state = self.by_e2fsck(crash, image)
        ours = self.by_py4fs(crash, image)
        if ours != state:
            raise Wrong(f"py4fs recovered state {ours}, e2fsck state {state}")
        if kernel:
            self.by_kernel(crash, image, state)

    def by_e2fsck(self, crash: Crash, image: bytes | bytearray) -> int:
        self._path.write_bytes(image)
        fsck_recover(self._path, only_replay=True)
        fsck_clean(self._path)
        return match(self._recording, crash.cut, read_tree(self._path.read_bytes()), "e2fsck")

    def by_py4fs(self, crash: Crash, image: bytes | bytearray) -> int:
        device = MemoryDevice(image)
        fs = open_strict(device)
        state = match(self._recording, crash.cut, TreeReader(fs.vfs).read(), "py4fs")
        fs.close()
        self._path.write_bytes(device.data)
        fsck_clean(self._path)
        return state

    def by_kernel(self, crash: Crash, image: bytes | bytearray, state: int) -> None:
        self._path.write_bytes(image)
        with loop_mount(self._path, "rw") as root:
            found = kernel_tree(root)
        fsck_clean(self._path)
        lines = list(self._compare_kernel(state, crash.cut, found))
        if lines:
            raise Wrong(f"the kernel did not recover state {state} as the others did:\n  " + "\n  ".join(lines[:10]))

    def _compare_kernel(self, index: int, cut: int, found: dict[bytes, tuple[object, ...]]) -> Iterator[str]:
        """What the kernel shows differently; times and attributes are not looked at."""
        state = self._recording.states[index]
        if found.keys() != state.tree.keys():
            yield f"names differ: {sorted(found.keys() ^ state.tree.keys())[:5]}"
            return
        for path, (kind, content) in found.items():
            node = state.tree[path]
            if kind != (node.ino, node.mode, node.uid, node.gid, node.nlink, node.size if content is not None else 0):
                yield f"{path!r}: {kind}, want {node}"
            elif content is not None:
                assert isinstance(content, bytes)
                assert node.content is not None
                if wrong_bytes(node.content, content, self._recording.touched(index, cut, node)):
                    yield f"{path!r}: contents differ"

    # -- no journal ----------------------------------------------------------------------------------------

    def _check_unjournalled(self, crash: Crash, image: bytes | bytearray) -> None:
        """e2fsck knows that there is something to do, and can do it; nothing points to what was not written.

        Once a commit has returned, and until the next begins, the tree is the one that it took over.
        """
        self._path.write_bytes(image)
        if SUPERBLOCK.get(image, 1024, "s_state") & EXT4_VALID_FS:
            # nobody would look at it before it is used
            fsck_clean(self._path)
        code, text = _e2fsck(self._path, "-y", "-E", "no_optimize_extents")
        if code not in (0, 1):
            raise Wrong(f"e2fsck -fy: exit {code}\n{text}")
        fsck_clean(self._path)
        if crash.seed is None and _UNWRITTEN.search(text):
            raise Wrong(f"e2fsck -fy met what was never written:\n{text}")
        tree = read_tree(self._path.read_bytes())
        if len(self._recording.candidates(crash.cut)) == 1:
            match(self._recording, crash.cut, tree, "e2fsck")


def kernel_tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What the kernel shows: path -> ((inode, mode, uid, gid, links, size of a file or link), contents)."""
    found: dict[bytes, tuple[object, ...]] = {}
    todo = [b"/"]
    base = os.fsencode(root)
    while todo:
        path = todo.pop()
        real = base + path
        st = os.lstat(real)
        content = None
        if stat.S_ISREG(st.st_mode):
            content = Path(os.fsdecode(real)).read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            content = os.fsencode(os.readlink(real))
        size = st.st_size if content is not None else 0
        found[path] = ((st.st_ino, st.st_mode, st.st_uid, st.st_gid, st.st_nlink, size), content)
        if stat.S_ISDIR(st.st_mode):
            todo += [path.rstrip(b"/") + b"/" + name for name in os.listdir(real)]
    return found


@contextmanager
def named(label: str) -> Iterator[None]:
    """A failure tells the id that replays it."""
    try:
        yield
    except Exception as exc:
        raise Wrong(f"crash image {label} (replay: python -m tests.t6_crash {label})\n{exc}") from exc


__all__ = ["Judge", "State", "Wrong", "named"]
