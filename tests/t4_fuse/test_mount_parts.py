"""mountinfo, records, libfuse options: without mounting anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from py4fs.errors import Busy, NotADirectory, NotFound
from py4fs.fuse import mount, mountinfo, record
from py4fs.fuse.mount import FuseOptions
from py4fs.fuse.record import Keeper, Record

MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
80 27 0:45 / /mnt/a\040b rw,nosuid shared:5 - fuse.py4fs /img/x\054y.img rw,user_id=1000,group_id=7
81 27 0:46 / /mnt/a\040b rw - fuse.py4fs /img/second.img rw,user_id=0

garbage
82 27
"""


def test_mountinfo_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mountinfo.parse(MOUNTINFO)
    assert [m.device for m in found] == ["0:21", "98:0", "0:45", "0:46"]
    assert found[1][1:5] == ("/mnt1", "/mnt2", "ext3", "/dev/root")
    assert (found[2].mountpoint, found[2].source, found[2].uid) == ("/mnt/a b", "/img/x,y.img", 1000)
    assert [m.is_py4fs for m in found] == [False, False, True, True]
    monkeypatch.setattr(mountinfo, "mounts", lambda: found)
    topmost = mountinfo.at("/mnt/a b")
    assert topmost is not None and topmost.device == "0:46", "the last one mounted is on top"
    assert mountinfo.at("/mnt/a") is None
    assert [m.device for m in mountinfo.of_image("/img/x,y.img")] == ["0:45"]


def test_mountinfo_of_this_machine() -> None:
    assert mountinfo.at("/proc") is not None


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "run"
    monkeypatch.setattr(record, "directories", lambda uid: [tmp_path / "absent" / "absent", place])
    return place


RECORD = Record(pid=1, device="0:99", image="/i.img", mountpoint="/m")


def test_record_tells_the_outcome_after_the_server_has_gone(places: Path) -> None:
    """The server is another process: it holds the record, finishes and exits while we wait."""
    program = f"""
import sys, time
from pathlib import Path
from py4fs.fuse import record
record.directories = lambda uid: [Path({str(places)!r})]
keeper = record.Keeper.create(record.Record(1, "0:99", "/i.img", "/m"))
print("ready", flush=True)
sys.stdin.readline()
keeper.finish("device is gone" if sys.argv[1] == "fail" else "") if sys.argv[1] != "die" else None
time.sleep(0.2)
"""
    for how, state, error in (
        ("ok", "done", ""),
        ("fail", "failed", "device is gone"),
        ("die", "serving", ""),
    ):
        server = subprocess.Popen(
            [sys.executable, "-c", program, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdin and server.stdout
        with server:
            assert server.stdout.readline() == "ready\n"
            (watcher,) = record.find(device="0:99", uid=os.geteuid())
            assert watcher.alive and watcher.record.state == "serving"
            server.stdin.write("\n")
            server.stdin.flush()
            last = watcher.wait()
            assert (last.state, last.error, last.image) == (state, error, "/i.img")
            assert server.wait(timeout=5) == 0
        assert not watcher.alive
        watcher.close()


def test_record_is_found_by_mountpoint_and_image(places: Path) -> None:
    keeper = Keeper.create(RECORD)
    assert keeper is not None
    uid = os.geteuid()
    for wanted, count in (
        ({"mountpoint": "/m"}, 1),
        ({"image": "/i.img"}, 1),
        ({"mountpoint": "/x"}, 0),
        ({}, 1),
    ):
        found = record.find(**wanted, uid=uid)
        assert len(found) == count
        for watcher in found:
            watcher.close()
    keeper.finish()
    assert record.find(uid=uid) == []


def test_records_of_others_and_garbage_are_not_believed(places: Path) -> None:
    places.mkdir(mode=0o755)
    (places / "0:1").write_text("{}")
    (places / "0:2").write_text("garbage")
    (places / "0:3").symlink_to("/etc/passwd")
    (places / "0:4").write_text(json.dumps({"pid": 1, "device": "0:4", "image": "i", "mountpoint": "m", "x": 1}))
    assert record.find(uid=os.geteuid()) == []
    places.chmod(0o777)
    assert Keeper.create(RECORD) is None, "a directory that others can write is not used"
    assert record.find(uid=os.geteuid() + 1) == []


def test_a_record_left_by_a_killed_server_is_replaced(places: Path) -> None:
    first = Keeper.create(RECORD)
    second = Keeper.create(Record(pid=2, device="0:99", image="/j.img", mountpoint="/m"))
    assert first and second
    first.finish()  # it was still writing when the kernel gave its mount's device number to another
    (watcher,) = record.find(device="0:99", uid=os.geteuid())
    assert watcher.record.image == "/j.img"
    watcher.close()
    second.finish()
    assert record.find(device="0:99", uid=os.geteuid()) == []


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        (
            FuseOptions(),
            {"rw", "nosuid", "nodev", "exec", "default_permissions", "subtype=py4fs"},
            {"allow_other"},
        ),
        (FuseOptions(readonly=True), {"ro"}, {"rw"}),
        (
            FuseOptions(suid=True, dev=True, exec=False),
            {"suid", "dev", "noexec"},
            {"nosuid", "nodev", "exec"},
        ),
        (FuseOptions(allow_other=True, max_read=65536), {"allow_other", "max_read=65536"}, set()),
        (FuseOptions(fsname="a,b\\c"), {r"fsname=a\,b\\c"}, {"fsname=/x/y.img"}),
        (FuseOptions(), {"fsname=/x/y.img"}, set()),
    ],
)
def test_options_for_libfuse(options: FuseOptions, there: set[str], absent: set[str]) -> None:
    found = options.for_libfuse("/x/y.img")
    assert there <= found
    assert not absent & found


def test_option_with_any_bytes_passes_pyfuse3s_ascii() -> None:
    name = os.fsdecode(b"/x/\xff\xc3\xa9.img")
    (option,) = (o for o in FuseOptions().for_libfuse(name) if o.startswith("fsname="))
    assert option.encode("us-ascii") == b"fsname=/x/\xff\xc3\xa9.img"


def test_mountpoint_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    point = mount.open_mountpoint(str(tmp_path / "link"))
    assert point.path == str(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert Path(point.for_libfuse()).samefile(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert point.for_libfuse() == str(tmp_path)
    os.close(point.fd)
    with pytest.raises(NotFound):
        mount.open_mountpoint(str(tmp_path / "absent"))
    with pytest.raises(NotADirectory):
        mount.open_mountpoint(str(tmp_path / "file"))
    with pytest.raises(NotADirectory):
        mount.open_mountpoint(str(tmp_path / "file" / "below"))
    taken = mountinfo.Mount("0:9", "/", str(tmp_path), "fuse.py4fs", "/other.img", ())
    monkeypatch.setattr(mountinfo, "mounts", lambda: [taken])
    with pytest.raises(Busy, match=r"/other\.img is mounted there"):
        mount.open_mountpoint(str(tmp_path))
