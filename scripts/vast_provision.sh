#!/usr/bin/env bash
# A fresh box in one command: wan-train in its own environment, then `wan-train provision`.
#
#   bash scripts/vast_provision.sh [OPTIONS OF wan-train provision]
#
# Runs from a checkout of wan-train; elsewhere WAN_TRAIN_SOURCE says what pip installs (`git+https://...`).
# WORKSPACE is the box's working directory (default /workspace). Safe to run again, at each start of the box.
set -euo pipefail

workspace=${WORKSPACE:-/workspace}
environment=$workspace/wan-train-env
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]:-.}")" && pwd)
export WAN_TRAIN_WORKSPACE=$workspace

fail() {
    echo "error: $1" >&2
    exit 3
}

source=${WAN_TRAIN_SOURCE:-}
if [ -z "$source" ]; then
    source=$(dirname -- "$here")
    [ -f "$source/src/wan_train/__init__.py" ] || fail "no checkout of wan-train here: set WAN_TRAIN_SOURCE"
    editable=--editable # the checkout stays what runs, also after a `git pull`
fi

find_python() {
    local name
    for name in python3.12 python3.11 python3.13 python3; do
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

mkdir -p -- "$workspace" || fail "$workspace cannot be made"
# `ready` is written last: an environment that was being made when the box stopped is made again.
if [ ! -e "$environment/ready" ]; then
    rm -rf -- "$environment"
    if python=$(find_python); then
        "$python" -m venv -- "$environment"
    elif command -v uv >/dev/null; then
        uv venv --seed --python '>=3.11' "$environment"
    else
        fail "no Python 3.11 or newer with venv, and no uv: try 'apt-get install -y python3-venv' or 'pip install uv'"
    fi
fi
if [ "$(cat -- "$environment/ready" 2>/dev/null)" != "$source" ]; then
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check ${editable:+"$editable"} "$source"
    printf '%s\n' "$source" >"$environment/ready"
fi

if [ "$(id -u)" = 0 ]; then bin=/usr/local/bin; else bin=$HOME/.local/bin; fi
bin=${WAN_TRAIN_BIN:-$bin}
mkdir -p -- "$bin"
ln -sfn -- "$environment/bin/wan-train" "$bin/wan-train"
case ":$PATH:" in
    *":$bin:"*) ;;
    *) echo "note: add $bin to PATH to call wan-train by name" ;;
esac

# What the users of the guide's template type.
printf '#!/bin/sh\nexec %q "$@"\n' "$environment/bin/wan-train" >"$workspace/run_wan_training.sh"
chmod +x -- "$workspace/run_wan_training.sh"

exec "$environment/bin/wan-train" provision --yes "$@"
