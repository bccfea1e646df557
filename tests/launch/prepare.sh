#!/bin/bash
# Lays out DIR for `WAN_TRAIN_TEST_LAUNCH=DIR`: the root of a rented box, and SkyPilot's environment of this computer.
#
#   prepare.sh DIR
#
# It needs root, mmdebstrap, and once apt and PyPI (about 2 GB). PYTHON is the Python of wan-train's environment. Safe to
# run again and to kill: finished parts are kept.
set -euo pipefail

dir=${1:?usage: prepare.sh DIR}
python=${PYTHON:-.venv/bin/python}
root=$dir/rootfs

fail() {
    echo "error: $1" >&2
    exit 3
}

[ "$(id -u)" = 0 ] || fail "boxes are namespaces of this machine, which only root can make"
for program in unshare nsenter setpriv ip ssh ssh-keygen rsync; do
    command -v "$program" >/dev/null ||
        fail "$program is missing: try 'apt-get install util-linux iproute2 openssh-client rsync'"
done
mkdir -p "$dir/probe/lower" "$dir/probe/upper" "$dir/probe/work" "$dir/probe/root"
unshare -m mount -t overlay overlay -o "lowerdir=$dir/probe/lower,upperdir=$dir/probe/upper,workdir=$dir/probe/work" \
    "$dir/probe/root" 2>/dev/null || fail "overlayfs does not work in $dir: choose a folder on a real disk"
rm -rf "$dir/probe"

"$python" - "$dir/sky" <<'PY'
import sys
from pathlib import Path

import uv
from wan_train.launch.sky_home import make

make(Path(sys.argv[1]), uv=uv.find_uv_bin(), say=print)
PY

if [ ! -e "$root/complete" ]; then
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: try 'apt-get install mmdebstrap'"
    rm -rf "$root"
    # shellcheck disable=SC1091
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    packages=openssh-server,rsync,python3-venv,curl,sudo,patch,procps,iproute2,ca-certificates
    echo "building the root of a box ($suite) in $root"
    mmdebstrap --quiet --variant=minbase --include=$packages "$suite" "$root" || fail "mmdebstrap failed: is apt reachable?"

    # What SkyPilot would download onto a box (sky/skylet/constants.py, sky/backends/wheel_utils.py).
    mkdir -p "$root/root/.local/bin" "$root/root/.sky/wheels"
    cp "$("$python" -c 'import uv; print(uv.find_uv_bin())')" "$root/root/.local/bin/uv"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
    here=(HOME=/root UV_CACHE_DIR=/tmp/uv SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt)
    for name in UV_DEFAULT_INDEX UV_INDEX_URL HTTPS_PROXY HTTP_PROXY NO_PROXY; do
        [ -z "${!name:-}" ] || here+=("$name=${!name}")
    done
    uv() { chroot "$root" env "${here[@]}" /root/.local/bin/uv "$@"; }
    uv venv --quiet --seed --python /usr/bin/python3 /root/skypilot-runtime
    uv pip install --quiet --python /root/skypilot-runtime/bin/python 'ray[default]==2.9.3' 'pydantic-core==2.41.1' \
        'click<8.3' 'setuptools<70' 'skypilot[vast,remote]==0.14.1' || fail "PyPI is not reachable"
    rm -rf "$root/tmp/uv"
    HOME=$dir/sky/wheel-home "$dir/sky/env/bin/python" - "$root/root/.sky/wheels" <<'PY'
import shutil
import sys
from pathlib import Path

from sky.backends import wheel_utils

wheel, digest = wheel_utils.build_sky_wheel()
target = Path(sys.argv[1])
shutil.copytree(Path(wheel) if Path(wheel).is_dir() else Path(wheel).parent, target / digest, dirs_exist_ok=True)
(target / "current_sky_wheel_hash").write_text(digest)
PY
    touch "$root/complete"
fi
echo "WAN_TRAIN_TEST_LAUNCH=$dir"
