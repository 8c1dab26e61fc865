#!/bin/bash
# `make run`: a sample image, mounted read/write in the background. `make stop`: unmount and check it.
set -eu
cd "$(dirname "$0")/.."
IMAGE=build/sample.img
DIR=build/mnt
PY4FS=.venv/bin/py4fs
mounted() { grep -qs " $(realpath "$DIR") fuse.py4fs " /proc/mounts; }

if [ "${1:-}" = stop ]; then
    if ! mounted; then
        echo "nothing is mounted at $DIR"
        exit 0
    fi
    "$PY4FS" umount "$DIR"
    e2fsck -fn "$IMAGE"
    exit
fi

if [ ! -e /dev/fuse ]; then
    echo "there is no /dev/fuse here (as root: modprobe fuse); without it, try: $PY4FS ls -l $IMAGE /" >&2
fi
mkdir -p "$DIR"
if mounted; then
    echo "$IMAGE is mounted at $DIR already"
else
    test -e "$IMAGE" || .venv/bin/python -m images.build build --only sample
    "$PY4FS" mount "$IMAGE" "$DIR"
fi
echo
echo "\$ ls -lA $DIR";      ls -lA "$DIR"
echo "\$ cat $DIR/welcome.txt"; cat "$DIR/welcome.txt"
echo "\$ df -h $DIR";       df -h "$DIR"
cat <<END

$IMAGE is mounted read/write at $DIR. Use it like any directory, for example:
    cp -a docs $DIR/ && ls -l $DIR/docs
    $PY4FS info $IMAGE
When done (waits until everything is on disk, then checks the image):
    make stop            (or $PY4FS umount $DIR)
END
