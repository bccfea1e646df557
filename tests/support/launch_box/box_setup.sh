#!/bin/bash
# Stands for scripts/vast_provision.sh on a box without internet: the wheel that was sent, over the packages that are
# there. The trainer is the tiny one, which `launch` itself never chooses.
set -euo pipefail
[ ! -e /opt/setup-fails ] || { echo "error: No space left on device" >&2; exit 3; }
environment=/workspace/wan-train-env
[ -x "$environment/bin/python" ] || /opt/python -m venv --without-pip "$environment"
echo /opt/packages >"$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/host.pth"
"$environment/bin/python" -m pip install --quiet --no-index --no-deps --disable-pip-version-check --force-reinstall \
    "$WAN_TRAIN_SOURCE"
mv "$environment/bin/wan-train" "$environment/bin/wan-train-itself"
cat >"$environment/bin/wan-train" <<'END'
#!/bin/sh
export OMP_NUM_THREADS=1
if [ "$1" = train ]; then
    shift
    set -- train --engine rehearsal "$@"
fi
exec /workspace/wan-train-env/bin/wan-train-itself "$@"
END
chmod +x "$environment/bin/wan-train"
"$environment/bin/wan-train" --version
