"""mount(8), umount(8) and fstab(5), with the helpers in place: in a mount namespace where /sbin has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import machine
from tests.support.image import ImageMaker
from tests.support.mounted import ROOT

_PREPARE = r"""
set -eu
cd "$1"
mount --make-rprivate /
sbin=$(readlink -f /sbin)
mkdir -p upper work
mount -t tmpfs tmpfs work
mkdir work/upper work/work
mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$1/work/upper,workdir=$1/work/work" "$sbin"
for helper in mount.py4fs mount.fuse.py4fs; do
    printf '#!%s\nimport sys\nfrom py4fs.cli.main import main\nsys.exit(main())\n' "$2" > "$sbin/$helper"
    chmod 755 "$sbin/$helper"
done
"""


def in_namespace(directory: Path, script: str) -> str:
    """Run a shell script where mount(8) finds the helpers; what it prints."""
    machine.need_root()
    machine.need_fuse()
    machine.need_program("unshare", "mount")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", _PREPARE + script, "bash", directory, sys.executable],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize("kind", ["py4fs", "fuse.py4fs"])
def test_mount_and_remount(kind: str, make_image: ImageMaker, tmp_path: Path) -> None:
    image = make_image("16M")
    (tmp_path / "mnt").mkdir()
    script = rf"""
        mount -t {kind} -o noatime,stripe=16,kernel {image} mnt
        grep " $1/mnt " /proc/self/mounts
        echo hi > mnt/f
        mount -o remount,ro mnt
        grep " $1/mnt " /proc/self/mounts
        ! touch mnt/g 2>/dev/null
        mount -o remount,rw mnt
        touch mnt/g
        grep " $1/mnt " /proc/self/mounts
        mount -f -t {kind} {image} work && echo "fake"
        mount -t {kind} -o bogus {image} work 2>&1 || echo "exit $?"
        exec 3> mnt/open
        mount -o remount,ro mnt 2>&1 || echo "exit $?"
        exec 3>&-
        umount mnt
        # the server has gone when nothing has the image any more
        flock {image} e2fsck -fn {image} > /dev/null
    """
    lines = in_namespace(tmp_path, script).splitlines()
    for line, word in zip(lines[:3], ("rw", "ro", "rw"), strict=True):
        assert f" fuse.py4fs {word}," in line and "noatime" in line and "nosuid" not in line, line
    assert lines[3] == "fake"
    assert "unknown mount option: bogus" in lines[4]
    assert "files are open for writing" in "".join(lines) and lines[-1] == "exit 32"


def test_a_device_that_is_write_protected(make_image: ImageMaker, tmp_path: Path) -> None:
    """mount(8) goes on read-only where rw was not asked for, and says so; py4fs mount too."""
    machine.need_loop()
    image = make_image("16M")
    before = image.read_bytes()
    script = rf"""
        mkdir -p mnt
        device=$(losetup -r -f --show {image})
        trap 'losetup -d $device' EXIT
        mount -t py4fs -o noatime $device mnt 2>&1 | sed "s,$device,DEVICE,"
        grep -c " $1/mnt fuseblk.py4fs ro" /proc/self/mounts
        ! touch mnt/g 2>/dev/null
        umount mnt
        "$2" -m py4fs.cli.main mount $device mnt 2>&1 | sed "s,$device,DEVICE,"
        umount mnt
        "$2" -m py4fs.cli.main mount -o rw $device mnt 2>&1 | sed "s,$device,DEVICE,g"
    """
    warning = "py4fs: DEVICE: WARNING: write-protected, mounting it read-only"
    assert in_namespace(tmp_path, script).splitlines() == [
        warning,
        "1",
        warning,
        "py4fs: DEVICE: the block device is read-only; -o ro mounts it read-only",
    ]
    assert image.read_bytes() == before


def test_fstab(make_image: ImageMaker, tmp_path: Path) -> None:
    """Lines of fstab, as `mount -a` takes them: what an option needs is kept apart from what is mount(8)'s own."""
    one, two = make_image("16M"), make_image("16M")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "fstab").write_text(
        f"{one} {tmp_path}/one py4fs defaults,nofail,x-systemd.automount,user,data=writeback 0 2\n"
        f"{two} {tmp_path}/two fuse.py4fs ro,noauto,_netdev,delalloc,errors=remount-ro 0 0\n"
        f"{two} {tmp_path}/two py4fs ro,errors=remount-ro,comment=again 0 0\n"
    )
    script = r"""
        mount -a -T "$1/fstab"
        mount -a -T "$1/fstab"  # what is mounted is left alone
        grep "fuse.py4fs" /proc/self/mounts | grep " $1/"
        umount one two
    """
    lines = in_namespace(tmp_path, script).splitlines()
    assert len(lines) == 2
    assert "/one fuse.py4fs rw,nosuid,nodev,noexec" in lines[0]
    assert "/two fuse.py4fs ro" in lines[1]
