"""The adapter alone, on a vfs that only records: what is called with what, what comes back, which errno."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.logs import LogGuard
from tests.support.machine import NEEDS

pyfuse3 = pytest.importorskip("pyfuse3", reason=NEEDS + "pyfuse3")

from py4fs import errors  # noqa: E402
from py4fs.fuse.clock import KernelClock  # noqa: E402
from py4fs.fuse.libfuse.session import LONG, SHORT, Session  # noqa: E402
from py4fs.vfs import Attr, Caller, DirEntry  # noqa: E402

CTX = pyfuse3.RequestContext()
ROOT = (0, 0, 0)
"""Whom calls that were noted are for: uid, gid, umask."""


def noted(value: Any) -> Any:
    """What can be compared."""
    return (value.uid, value.gid, value.umask) if isinstance(value, Caller) else value


def attr(ino: int, mode: int = stat.S_IFREG | 0o644, **fields: Any) -> Attr:
    values: dict[str, Any] = {
        "ino": ino, "generation": 7, "mode": mode, "nlink": 1, "uid": 70000, "gid": 70001, "rdev": 0,
        "size": 5 << 32, "blocks": 8, "blksize": 4096, "atime": -1, "mtime": 4_102_444_800_123_456_789,
        "ctime": 3, "crtime": 4, "flags": 0,
    }  # fmt: skip
    return Attr(**(values | fields))


class FakeVfs:
    """Answers from a table `name -> value, exception or function`, and remembers every call."""

    names_fold = False
    counts_every_read = False
    sync_due = False

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []
        self.sync_due = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            named = {key: noted(value) for key, value in kwargs.items()}
            self.calls.append((name, *map(noted, args), *([named] if named else [])))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call


def session(**answers: Any) -> Session:
    return Session(FakeVfs(**answers))  # type: ignore[arg-type]


def calls(s: Session) -> list[tuple[Any, ...]]:
    return s.vfs.calls  # type: ignore[attr-defined, no-any-return]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Handlers never wait: one step ends them."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the handler waited for something")


def failing(coroutine: Coroutine[Any, Any, Any]) -> int:
    with pytest.raises(pyfuse3.FUSEError) as info:
        run(coroutine)
    return int(info.value.errno)


def test_lookup_translates_every_attribute_and_takes_a_reference() -> None:
    s = session(lookup=attr(12, stat.S_IFCHR | 0o600, rdev=0x1234))
    entry = run(s.lookup(1, b"name", CTX))
    assert calls(s) == [("lookup", 2, b"name"), ("ref", 12)]
    assert (entry.st_ino, entry.generation, entry.st_mode) == (12, 7, stat.S_IFCHR | 0o600)
    assert (entry.st_uid, entry.st_gid, entry.st_rdev, entry.st_nlink) == (70000, 70001, 0x1234, 1)
    assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (5 << 32, 8, 4096)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (-1, 4_102_444_800_123_456_789, 3)
    assert entry.entry_timeout == entry.attr_timeout == LONG


def test_absent_names_are_cached_too() -> None:
    s = session(lookup=errors.NotFound("no such name"))
    entry = run(s.lookup(5, b"absent", CTX))
    assert (entry.st_ino, entry.entry_timeout) == (0, LONG)
    assert calls(s) == [("lookup", 5, b"absent")], "an absent name must not take a reference"


def test_names_with_many_spellings_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVfs, "names_fold", True)
    found = run(session(lookup=attr(12)).lookup(1, b"a", CTX))
    absent = run(session(lookup=errors.NotFound("no")).lookup(1, b"a", CTX))
    assert (found.entry_timeout, absent.entry_timeout, found.attr_timeout) == (0.0, 0.0, LONG)


def test_the_root_is_1_for_the_kernel_and_2_in_the_vfs() -> None:
    s = session(getattr=attr(2, stat.S_IFDIR | 0o755))
    assert run(s.getattr(1, CTX)).st_ino == 1
    run(s.forget([(1, 3), (12, 1)]))
    run(s.rename(1, b"a", 12, b"b", 1, CTX))
    assert calls(s) == [("getattr", 2), ("forget", [(2, 3), (12, 1)]), ("rename", 2, b"a", 12, b"b", 1, ROOT)]


def test_a_name_for_inode_1_is_damage(log_guard: LogGuard) -> None:
    log_guard.expect("bad blocks")
    assert failing(session(lookup=attr(1)).lookup(1, b"bad", CTX)) == errno.EUCLEAN


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (attr(12), None),
        (attr(12, nlink=0), errno.ESTALE),
        (errors.NotFound("inode 12"), errno.ESTALE),
        (errors.Corrupt("inode", "inode 12", 1, 2), errno.ESTALE),
    ],
)
def test_lookup_of_dot_is_a_file_handle(answer: Any, code: int | None) -> None:
    s = session(getattr=answer)
    if code is None:
        assert run(s.lookup(12, b".", CTX)).st_ino == 12
        assert ("ref", 12) in calls(s)
    else:
        assert failing(s.lookup(12, b".", CTX)) == code


@pytest.mark.parametrize(
    "exc",
    [
        errors.NotFound("x"), errors.Exists("x"), errors.NotEmpty("x"), errors.NoSpace("x"),
        errors.ReadOnly("x"), errors.NameTooLong("x"), errors.IsADirectory("x"), errors.NotADirectory("x"),
        errors.NotPermitted("x"), errors.TooManyLinks("x"), errors.Invalid("x"), errors.FileTooBig("x"),
        errors.CrossDevice("x"),
    ],
)  # fmt: skip
def test_posix_errors_pass_without_a_word_in_the_log(exc: errors.FsError) -> None:
    assert failing(session(unlink=exc).unlink(1, b"n", CTX)) == exc.errno


def test_damage_and_device_errors_are_logged_once(log_guard: LogGuard) -> None:
    log_guard.expect("inode 9: .*found|inode 9")
    log_guard.expect("bytes 0")
    s = session(getattr=errors.Corrupt("inode", "inode 9", "x", "y"), read=errors.DeviceError("read of bytes 0 to 9"))
    for _ in range(3):
        assert failing(s.getattr(9, CTX)) == errno.EUCLEAN
        assert failing(s.read(1, 0, 10)) == errno.EIO
    assert len(log_guard._records) == 2
    assert failing(session(getattr=errors.BadChecksum("inode", "inode 9", 1, 2)).getattr(9, CTX)) == errno.EBADMSG


@pytest.mark.parametrize("exc", [ZeroDivisionError("bug"), KeyError(3), OSError("no errno"), AssertionError()])
def test_a_bug_becomes_eio_and_never_ends_the_mount(exc: Exception, log_guard: LogGuard) -> None:
    log_guard.expect("unexpected " + type(exc).__name__)
    assert failing(session(write=exc).write(1, 0, b"x")) == errno.EIO


def test_out_of_memory(log_guard: LogGuard) -> None:
    log_guard.expect("out of memory")
    assert failing(session(read=MemoryError()).read(1, 0, 1)) == errno.ENOMEM


def test_forget_never_raises(log_guard: LogGuard) -> None:
    log_guard.expect("unexpected KeyError")
    run(session(forget=KeyError(1)).forget([(5, 1)]))
    log_guard.expect("bytes 0")
    run(session(forget=errors.DeviceError("bytes 0")).forget([(5, 1)]))


def test_every_handler_survives_a_bug(log_guard: LogGuard) -> None:
    """No handler was forgotten by the wrapper: whatever the vfs does, only FUSEError comes out."""
    log_guard.expect("unexpected RuntimeError")
    arguments: dict[str, tuple[Any, ...]] = {
        "lookup": (1, b"n", CTX), "getattr": (1, CTX), "readlink": (1, CTX), "mknod": (1, b"n", 0, 0, CTX),
        "setattr": (1, pyfuse3.EntryAttributes(), pyfuse3.SetattrFields(), None, CTX), "mkdir": (1, b"n", 0,
        CTX), "unlink": (1, b"n", CTX), "rmdir": (1, b"n", CTX), "symlink": (1, b"n", b"t", CTX), "statfs":
        (CTX,), "rename": (1, b"a", 1, b"b", 0, CTX), "link": (3, 1, b"n", CTX), "open": (3, 0, CTX),
        "read": (1, 0, 1), "write": (1, 0, b"x"), "release": (1,), "fsync": (1, False),
        "opendir": (1, CTX), "readdir": (1, 0, None), "releasedir": (1,), "fsyncdir": (1, False),
        "setxattr": (1, b"user.a", b"", CTX), "getxattr": (1, b"user.a", CTX), "listxattr": (1, CTX),
        "removexattr": (1, b"user.a", CTX), "create": (1, b"n", 0, 0, CTX),
    }  # fmt: skip
    bugs = {"check_open" if name.startswith("fsync") else name: RuntimeError("bug") for name in arguments}
    s = session(**bugs)
    for name, args in arguments.items():
        assert failing(getattr(s, name)(*args)) == (errno.ENOSYS if name == "flush" else errno.EIO), name


def test_the_kernel_need_not_tell_of_every_close() -> None:
    assert failing(session().flush(1)) == errno.ENOSYS


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"mode": 0o106755}, {"mode": 0o6755}),
        ({"uid": 70000, "gid": 0}, {"uid": 70000, "gid": 0}),
        ({"size": 1 << 33}, {"size": 1 << 33}),
        ({"atime": 5, "mtime": -5}, {"atime": 5, "mtime": -5}),
        ({"mtime": 6, "ctime": 7}, {"mtime": 6, "ctime": 7}),
        ({}, {}),
    ],
)
def test_setattr_changes_what_was_asked_and_nothing_else(fields: dict[str, int], wanted: dict[str, int]) -> None:
    given = pyfuse3.EntryAttributes()
    flags = SimpleNamespace(
        **{f"update_{n}": n in fields for n in ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")}
    )
    for name, value in fields.items():
        setattr(given, f"st_{name}_ns" if name.endswith("time") else f"st_{name}", value)
    s = session(setattr=attr(12))
    run(s.setattr(12, given, flags, 33, CTX))  # type: ignore[arg-type]
    assert calls(s) == [("setattr", 12, {"caller": ROOT, "fh": 33, **wanted})]


def test_the_clock_follows_the_times_that_the_kernel_stamps() -> None:
    clock = KernelClock()
    s = Session(FakeVfs(setattr=attr(12)), clock)  # type: ignore[arg-type]

    def stamp(ns: int, *fields: str) -> None:
        given = pyfuse3.EntryAttributes()
        given.st_ctime_ns = given.st_mtime_ns = ns
        names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
        run(s.setattr(12, given, SimpleNamespace(**{f"update_{n}": n in fields for n in names}), 33, CTX))  # type: ignore[arg-type]

    early = clock()
    stamp(early + 5_000_000, "mtime", "ctime")
    assert early + 5_000_000 <= clock() <= time.time_ns() + 5_000_000
    stamp(early + 10**15, "mtime")  # utimes(2) by a program
    stamp(early + 10**15, "mtime", "ctime")  # and what no clock of this machine says
    assert clock() <= time.time_ns() + 5_000_000
    now = time.time_ns()
    time.sleep(0.05)
    assert clock() > now  # and it does not stand still


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR | os.O_APPEND])
def test_attributes_of_files_open_for_writing_are_cached_shortly(flags: int) -> None:
    """Dirty pages change st_blocks later, without the kernel asking."""
    s = session(open=41, getattr=attr(12), lookup=attr(12))
    opened = run(s.open(12, flags, CTX))
    assert (opened.fh, bool(opened.keep_cache)) == (41, True)
    assert run(s.getattr(12, CTX)).attr_timeout == SHORT
    looked_up = run(s.lookup(1, b"n", CTX))
    assert (looked_up.attr_timeout, looked_up.entry_timeout) == (SHORT, LONG)
    s.vfs.answers["open"] = 42  # type: ignore[attr-defined]
    run(s.open(12, flags, CTX))
    run(s.release(41))
    assert run(s.getattr(12, CTX)).attr_timeout == SHORT, "still open by another handle"
    run(s.release(42))
    assert run(s.getattr(12, CTX)).attr_timeout == LONG


def test_create_opens_and_takes_one_reference() -> None:
    s = session(create=(41, attr(12)))
    opened, entry = run(s.create(1, b"n", 0o100644, os.O_RDWR, CTX))
    assert (opened.fh, entry.st_ino, entry.attr_timeout) == (41, 12, SHORT)
    assert calls(s) == [("create", 2, b"n", 0o100644, os.O_RDWR, ROOT), ("ref", 12)]


def test_a_failed_create_leaves_nothing_behind() -> None:
    s = session(create=errors.NoSpace("no inode"), getattr=attr(12))
    assert failing(s.create(1, b"n", 0o644, os.O_RDWR, CTX)) == errno.ENOSPC
    assert [c[0] for c in calls(s)] == ["create"]


def entries(*items: tuple[bytes, int]) -> Callable[[int, int], list[DirEntry]]:
    table = [DirEntry(name, ino, 1, cookie) for cookie, (name, ino) in enumerate(items, 1)]
    return lambda fh, cookie: table[cookie:]


def test_readdir_counts_exactly_what_the_kernel_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[tuple[bytes, int, int]] = []

    def reply(token: object, name: bytes, entry: Any, cookie: int) -> bool:
        if len(accepted) == 4:
            return False  # the buffer is full
        accepted.append((name, entry.st_ino, cookie))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    listing = entries((b".", 12), (b"..", 2), (b"a", 13), (b"b", 14), (b"c", 15))
    s = session(readdir=listing, getattr=attr)
    run(s.readdir(9, 0, None))  # type: ignore[arg-type]
    assert accepted == [(b".", 12, 1), (b"..", 1, 2), (b"a", 13, 3), (b"b", 14, 4)]
    assert [c for c in calls(s) if c[0] == "ref"] == [("ref", 13), ("ref", 14)]
    accepted.clear()
    run(s.readdir(9, 4, None))  # type: ignore[arg-type]
    assert accepted == [(b"c", 15, 5)]


def test_readdir_lists_names_of_damaged_inodes(monkeypatch: pytest.MonkeyPatch, log_guard: LogGuard) -> None:
    log_guard.expect("inode 13")
    listed: dict[bytes, Any] = {}
    monkeypatch.setattr(
        pyfuse3,
        "readdir_reply",
        lambda t, name, entry, cookie: listed.update({name: entry}) or True,
    )

    def damaged(ino: int) -> Attr:
        if ino == 13:
            raise errors.BadChecksum("inode", "inode 13", 1, 2)
        return attr(ino)

    s = session(readdir=entries((b"a", 13), (b"b", 14)), getattr=damaged)
    run(s.readdir(9, 0, None))  # type: ignore[arg-type]
    assert (listed[b"a"].st_ino, listed[b"a"].entry_timeout, listed[b"a"].attr_timeout) == (13, 0, 0)
    assert listed[b"b"].entry_timeout == LONG
    assert [c for c in calls(s) if c[0] == "ref"] == [("ref", 13), ("ref", 14)]


def test_readdir_skips_names_that_would_end_the_listing(monkeypatch: pytest.MonkeyPatch, log_guard: LogGuard) -> None:
    log_guard.expect("impossible name")
    listed: list[bytes] = []
    monkeypatch.setattr(
        pyfuse3,
        "readdir_reply",
        lambda t, name, entry, cookie: not listed.append(name),  # type: ignore[func-returns-value]
    )
    s = session(readdir=entries((b"a/b", 13), (b"c\0d", 14), (b"good", 15)), getattr=attr)
    run(s.readdir(9, 0, None))  # type: ignore[arg-type]
    assert listed == [b"good"]


def test_xattr_calls() -> None:
    s = session(getxattr=b"value", listxattr=[b"user.a", b"system.posix_acl_access"])
    assert run(s.getxattr(12, b"user.a", CTX)) == b"value"
    assert run(s.listxattr(1, CTX)) == [b"user.a", b"system.posix_acl_access"]
    run(s.setxattr(12, b"user.a", b"v", CTX))
    run(s.removexattr(12, b"user.a", CTX))
    assert calls(s) == [
        ("getxattr", 12, b"user.a", ROOT), ("listxattr", 2, ROOT), ("setxattr", 12, b"user.a", b"v", 0, ROOT),
        ("removexattr", 12, b"user.a", ROOT),
    ]  # fmt: skip


def test_what_has_to_be_durable_is_waited_for_before_the_answer() -> None:
    def unlink(*args: object) -> None:
        s.vfs.sync_due = True

    s = session(unlink=unlink)
    assert s.vfs.defers_sync is True
    run(s.unlink(1, b"n", CTX))
    run(s.rmdir(1, b"n", CTX))
    assert calls(s) == [("unlink", 2, b"n", ROOT), ("sync",), ("rmdir", 2, b"n", ROOT)]


def test_it_tells_the_vfs_that_the_kernel_owns_times() -> None:
    assert session().vfs.kernel_owns_times is True
    assert Session.enable_writeback_cache and Session.enable_acl and Session.supports_dot_lookup


def test_a_short_write_is_not_the_end_of_it() -> None:
    """The kernel forgets what is left of dirty pages: what the rest meets has to be said."""
    left: Iterator[int | Exception] = iter([4, errors.NoSpace("full")])

    def write(_fh: int, _off: int, _data: object) -> int:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    s = session(write=write)
    assert failing(s.write(3, 100, b"0123456789")) == errno.ENOSPC
    assert [call[:3] for call in calls(s)] == [("write", 3, 100), ("write", 3, 104)]
