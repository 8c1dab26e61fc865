"""An unprivileged user and the mount options."""

from __future__ import annotations

import os
import subprocess
import sys

from images.tools import mke2fs
from tests.support import machine
from tests.support.image import e2fsck_clean
from tests.support.mounted import ROOT, open_directory, run_py4fs

_OPTIONS = (
    "fakeroot,noatime,discard,cache_size=4M,timing,grpid,max_dir_size_kb=100,oom_score_adj=100,commit=1,noacl,"
    "stripe=4,nodelalloc,defaults,x-test,errors=continue,resuid=65534,flush_interval=3,sb=1"
)
_AS_USER = """
set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search \\
    --ambient-caps +dac_read_search sh -e -c '
    py4fs() { "$PYTHON" -m py4fs.cli.main "$@"; }
    cd "$0"
    py4fs mount --session "$1" -o "$2,lockfile=$0/mine/lock" user.img mnt
    cat mine/lock > /dev/null
    mkdir mnt/d
    echo hi > mnt/d/f
    grep " $0/mnt fuse.py4fs " /proc/self/mounts
    for words in lazytime nosymfollow kernel dev service remount,noexec; do
        py4fs mount -o "$words" user.img mnt 2>/dev/null || echo "$words: exit $?"
    done
    py4fs mount -o remount,ro user.img mnt 2>/dev/null || echo "remount: exit $?"
    if [ "$1" = direct ]; then
        touch mnt/no 2>/dev/null || echo "read-only"
        py4fs mount -o remount,rw user.img mnt
        touch mnt/yes
    fi
    py4fs umount mnt
    ls mine
' "$1" "$2" "$3"
"""


def test_an_ordinary_user_gives_options(session: str) -> None:
    """What does not need root works without; what does is refused by name, before anything is mounted."""
    machine.need_root()
    machine.need_fuse()
    machine.need_program("fusermount3", "setpriv", "unshare")
    with open_directory() as directory:
        image = directory / "user.img"
        mke2fs(image, 16 << 20, "-E", "root_owner=65534:65534", clock=None)
        for name in ("mnt", "mine"):
            (directory / name).mkdir()
        for path in (image, directory / "mnt", directory / "mine"):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", _AS_USER, "sh", directory, session, _OPTIONS],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PYTHON": sys.executable},
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        line, *said = done.stdout.splitlines()
        assert "nosuid,nodev" in line and "user_id=65534" in line and "default_permissions" not in line
        refused = [f"{words}: exit 1" for words in ("lazytime", "nosymfollow", "kernel", "dev")]
        # without root `service` is looked at after the mount point, which is in use
        assert said[:6] == [*refused, "service: exit 32", "remount,noexec: exit 1"]
        assert said[6:] == (["read-only"] if session == "direct" else ["remount: exit 32"])
        e2fsck_clean(image)
        assert run_py4fs("cat", image, "/d/f").stdout == "hi\n"
