#!/usr/bin/env bash
# A fresh box in one command: wan-train in an environment of its own, then `wan-train provision`.
#
#   bash scripts/vast_provision.sh [OPTIONS OF wan-train provision]
#   curl -fsSL ADDRESS_OF_THIS_FILE | WAN_TRAIN_SOURCE=SOURCE bash -s -- [OPTIONS]
#
# WAN_TRAIN_SOURCE is what pip installs (a wheel, an archive's address, `git+https://...`); without it the checkout that
# this file is in, or the one at WORKSPACE/wan-train. WORKSPACE is /workspace by default. Safe to run again and to kill.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 3
}

find_source() {
    local folder
    [ -z "${WAN_TRAIN_SOURCE:-}" ] || { echo "$WAN_TRAIN_SOURCE"; return; }
    for folder in "$(dirname -- "${BASH_SOURCE[0]:-/}")/.." "$workspace/wan-train"; do
        [ ! -f "$folder/src/wan_train/__init__.py" ] || { (cd -- "$folder" && pwd); return; }
    done
    return 1
}

make_environment() { # by a Python of the box, else by uv, which fetches one
    local python uv
    rm -rf -- "$environment"
    for python in python3.12 python3.11 python3.13 python3; do
        if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$python" -m venv -- "$environment"
            return
        fi
    done
    if ! uv=$(command -v uv); then
        uv=$environment.uv/bin/uv
        python3 -m pip install --quiet --target "$environment.uv" --upgrade uv 2>/dev/null || return 1
    fi
    "$uv" venv --quiet --seed --python '>=3.11' "$environment" && rm -rf -- "$environment.uv"
}

make_environment_on_any_box() {
    make_environment && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "apt-get installs python3-venv and python3-pip"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=600 update || true
    apt-get -q -y -o DPkg::Lock::Timeout=600 install --no-install-recommends python3-venv python3-pip || return 1
    make_environment
}

put_in() { # with the libraries that look into clips, count captions and send messages, where there are any for this box
    local extras words=(--quiet --disable-pip-version-check)
    # A checkout stays what runs, also after a `git pull`. Anything else may be another build of the same version.
    if [ -d "$source" ]; then words+=(--editable); else words+=(--force-reinstall); fi
    for extras in "[video,captions,notify]" ""; do
        case $source in
        *://*) "$environment/bin/python" -m pip install "${words[@]}" "wan-train$extras @ $source" ;;
        *) "$environment/bin/python" -m pip install "${words[@]}" "$source$extras" ;;
        esac && return
        [ -z "$extras" ] || echo "note: trying again without PyAV, tokenizers and apprise (clips, captions, notifications)"
    done
    return 1
}

works() { "$environment/bin/wan-train" --version >/dev/null 2>&1; }

main() {
    local bin runner text
    workspace=${WORKSPACE:-/workspace} environment=${WORKSPACE:-/workspace}/wan-train-env
    export WAN_TRAIN_WORKSPACE=${WAN_TRAIN_WORKSPACE:-$workspace}
    mkdir -p -- "$workspace" || fail "$workspace cannot be made: set WORKSPACE to a folder of yours"
    source=$(find_source) || fail "no checkout of wan-train here: set WAN_TRAIN_SOURCE to what pip can install"
    exec 9>"$workspace/.wan-train-env.lock"
    ! command -v flock >/dev/null || flock 9

    # Changes with the source and with what it depends on.
    stamp="$source with video, captions, notify $(cat -- "$source/pyproject.toml" "$source" 2>/dev/null | cksum || true)"
    "$environment/bin/python" -m pip --version >/dev/null 2>&1 || make_environment_on_any_box ||
        fail "no Python 3.11 or newer with venv, and no uv: try 'apt-get install -y python3-venv' or 'pip install uv'"
    if [ "$(cat -- "$environment/ready" 2>/dev/null)" != "$stamp" ] || ! works; then
        rm -f -- "$environment/ready"
        echo "installing wan-train from $source"
        put_in || fail "wan-train was not installed from $source: look at the network, then run this again"
        works || { make_environment && put_in && works; } || fail "wan-train does not start: $environment/bin/wan-train"
        printf '%s\n' "$stamp" >"$environment/ready"
    fi
    exec 9>&-

    if [ "$(id -u)" = 0 ]; then bin=/usr/local/bin; else bin=$HOME/.local/bin; fi
    bin=${WAN_TRAIN_BIN:-$bin}
    mkdir -p -- "$bin" && ln -sfn -- "$environment/bin/wan-train" "$bin/wan-train"
    [[ ":$PATH:" = *":$bin:"* ]] || echo "note: add $bin to PATH to call wan-train by name"

    # What the users of the guide's template type. Its own script of that name is kept.
    runner=$workspace/run_wan_training.sh
    text=$(printf '#!/usr/bin/env bash\nexec %q "$@"' "$environment/bin/wan-train")
    if [ "$(cat -- "$runner" 2>/dev/null)" != "$text" ]; then
        [ ! -e "$runner" ] || mv --backup=numbered -- "$runner" "$runner.before"
        printf '%s\n' "$text" >"$runner.new" && chmod +x -- "$runner.new" && mv -- "$runner.new" "$runner"
    fi
    exec "$environment/bin/wan-train" provision --yes "$@"
}

main "$@"
