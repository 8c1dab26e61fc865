#!/bin/bash
# install.sh PREFIX DESTDIR: py4fs for everybody on this machine. A Python environment of its own in PREFIX/lib/py4fs,
# the command in PREFIX/bin, the helpers that mount(8) looks for in /sbin, man pages, completions, systemd units.
set -eu
cd "$(dirname "$0")/.."
prefix=$1 destdir=${2:-}
home=$prefix/lib/py4fs

install -d "$destdir$prefix"/{bin,lib} "$destdir$prefix"/share/man/man{1,8} "$destdir"/sbin \
    "$destdir$prefix"/share/{bash-completion/completions,zsh/site-functions} "$destdir"/etc/systemd/system
python3 -m venv --clear "$destdir$home"
"$destdir$home/bin/python" -m pip install --quiet --disable-pip-version-check '.[fuse]'
if [ -n "$destdir" ]; then
    # the scripts name their interpreter by the place where it is now
    sed -i "1s|^#!$destdir|#!|" "$destdir$home"/bin/*py4fs
fi
ln -sfn "$home/bin/py4fs" "$destdir$prefix/bin/py4fs"
for helper in mount.py4fs mount.fuse.py4fs; do
    ln -sfn "$home/bin/$helper" "$destdir/sbin/$helper"
done
install -m 644 build/man/py4fs.1.gz "$destdir$prefix/share/man/man1/"
install -m 644 build/man/mount.py4fs.8.gz "$destdir$prefix/share/man/man8/"
install -m 644 build/completion/py4fs "$destdir$prefix/share/bash-completion/completions/"
install -m 644 build/completion/_py4fs "$destdir$prefix/share/zsh/site-functions/"
for unit in systemd/*; do
    sed "s|/usr/local/bin|$prefix/bin|" "$unit" > "$destdir/etc/systemd/system/$(basename "$unit")"
done
echo "installed: $prefix/bin/py4fs, /sbin/mount.py4fs; \`systemctl enable --now py4fs.socket\` for -o service"
