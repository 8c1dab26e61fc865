"""What a server of root may do once it has mounted: nothing that root may."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import fuse_mounted, is_mounted, open_directory, start_py4fs


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def threads(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_nothing_is_left_to_the_server(make_image: ImageMaker) -> None:
    machine.need_root()
    with fuse_mounted(make_image("16M"), session="direct") as mounted:
        (mounted.path / "f").write_bytes(b"x" * 100_000)
        for thread in threads(mounted.pid):
            found = status(thread)
            assert found["NoNewPrivs"] == "1"
            assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        janitor = child_of(mounted.pid)
        found = status(janitor)
        assert found["NoNewPrivs"] == "1"
        assert int(found["CapEff"], 16) == 1 << 2 | 1 << 19 | 1 << 21
        open_files = {os.readlink(path) for path in Path(f"/proc/{janitor}/fd").iterdir()}  # noqa: PTH115
        assert all(name == "/dev/null" or name.startswith("socket:") for name in open_files), open_files
    deadline = time.monotonic() + 10
    while Path(f"/proc/{janitor}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_keep_caps(make_image: ImageMaker) -> None:
    machine.need_root()
    with fuse_mounted(make_image("16M"), ["keep_caps"], session="direct") as mounted:
        assert int(status(mounted.pid)["CapEff"], 16) != 0


def test_the_janitor_goes_with_a_killed_server(make_image: ImageMaker) -> None:
    machine.need_root()
    image = make_image("16M")
    with fuse_mounted(image, session="direct", unmount=False) as mounted:
        janitor = child_of(mounted.pid)
        os.kill(janitor, signal.SIGTERM)  # meant for the whole group: it stays, the server will need it
        os.kill(mounted.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{janitor}").exists() and status(janitor)["State"][0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        subprocess.run(["umount", mounted.path], check=True)


@pytest.mark.parametrize("busy", [False, True])
def test_ending_below_a_directory_that_is_closed_to_it(busy: bool, make_image: ImageMaker) -> None:
    """Without its capabilities root cannot even go there: the janitor can."""
    machine.need_root()
    image = make_image("16M")
    with open_directory() as home:
        os.chown(home, 65534, 65534)
        home.chmod(0o700)
        directory = home / "mnt"
        directory.mkdir()
        with start_py4fs("mount", "--session", "direct", "-f", image, directory) as server:
            deadline = time.monotonic() + 10
            while not is_mounted(directory):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            file = (directory / "f").open("wb", buffering=0)
            file.write(b"x" * 1_000_000)
            if not busy:
                file.close()
            time.sleep(0.5)  # until it has announced itself, or failed to
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
            assert server.stderr
            text = server.stderr.read()
            assert bool(re.search("busy; detaching it", text)) == busy and "failed" not in text, text
            if busy:
                with pytest.raises(OSError, match="not connected"):
                    file.close()
        assert not is_mounted(directory)
