#!/bin/bash
# Make this machine ready to build, run and test py4fs: Debian packages, then .venv.
# Quick and silent when everything is there; `make` calls it through a stamp file.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"

# package -> how to see that what it gives is there already (from Debian or from elsewhere)
have() {
    case "$1" in
        gcc)          command -v gcc ;;
        pkg-config)   command -v pkg-config ;;
        libfuse3-dev) command -v pkg-config && pkg-config --exists fuse3 ;;
        fuse3)        command -v fusermount3 ;;
        python3)      command -v python3 ;;
        python3-venv) python3 -c 'import venv, ensurepip' ;;
        python3-dev)  python3 -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' ;;
        libc6-dev)    test -e /usr/include/stdlib.h ;;
        e2fsprogs)    command -v mke2fs && command -v debugfs && command -v e2fsck ;;
        util-linux)   command -v findmnt && command -v flock ;;
        mount)        command -v mount && command -v losetup ;;
        acl)          command -v setfacl ;;
        attr)         command -v getfattr ;;
        xz-utils)     command -v xz ;;
        systemd)      command -v systemd-socket-activate && command -v systemd-analyze ;;
        sqlite3 | fuse2fs | rsync | git) command -v "$1" ;;
        *)            return 1 ;;
    esac >/dev/null 2>&1
}

missing=()
for package in gcc libc6-dev pkg-config libfuse3-dev fuse3 python3 python3-venv python3-dev util-linux mount \
               e2fsprogs fuse2fs acl attr rsync git sqlite3 xz-utils systemd; do
    have "$package" || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    echo "bootstrap: missing packages: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "bootstrap: no apt-get here; install what these Debian packages contain, then run make again" >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ]; then
        root=()
    elif command -v sudo >/dev/null; then
        root=(sudo)
    else
        echo "bootstrap: neither root nor sudo; as root, please run:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" apt-get update -q || echo "bootstrap: apt-get update failed, trying with the lists at hand" >&2
    "${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

python3 - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"bootstrap: py4fs needs Python 3.11 or newer, python3 is {sys.version.split()[0]}")
PY

if [ ! -x .venv/bin/python ]; then
    echo "bootstrap: creating .venv"
    python3 -m venv .venv
fi
echo "bootstrap: installing py4fs and its Python packages into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[fuse,dev]'
