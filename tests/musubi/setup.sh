#!/bin/sh
# Lays out DIR for `WAN_TRAIN_TEST_MUSUBI=DIR`: one checkout and one CPU environment per supported musubi-tuner version.
#
#   setup.sh DIR [GIT_SOURCE]
#
# GIT_SOURCE is any git URL or path that holds both versions. PYTHON chooses the interpreter (3.10 to 3.12, as
# musubi-tuner asks) and TORCH what pip is told for torch. Safe to run again: finished parts are kept.
set -eu

dir=${1:?usage: setup.sh DIR [GIT_SOURCE]}
source=${2:-https://github.com/kohya-ss/musubi-tuner.git}
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}

build() { # build VERSION COMMIT
    home=$dir/$1
    mkdir -p "$home"
    [ -d "$home/repo/.git" ] || git clone -q "$source" "$home/repo"
    git -C "$home/repo" -c advice.detachedHead=false checkout -q "$2"
    [ -e "$home/venv/complete" ] && return
    "$python" -m venv "$home/venv"
    # torch first and alone, then held: nothing after it may bring another build of it.
    "$home/venv/bin/pip" install -q "$torch"
    "$home/venv/bin/pip" freeze | grep '^torch==' >"$home/torch.txt"
    # The trainer's own pins, from its own pyproject.toml; the trainer itself is an editable install, as in the guide.
    "$home/venv/bin/python" - "$home/repo/pyproject.toml" >"$home/requirements.txt" <<'PY'
import re
import sys

text = open(sys.argv[1], encoding="utf-8").read()
block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL).group(1)
for line in block.splitlines():
    if not line.strip().startswith("#"):
        print(*re.findall(r'"([^"]+)"', line))
PY
    "$home/venv/bin/pip" install -q -c "$home/torch.txt" -r "$home/requirements.txt" tensorboard protobuf six
    # Optimizers that musubi-tuner's own documents recommend and do not bring.
    "$home/venv/bin/pip" install -q --no-deps schedulefree prodigy-plus-schedule-free
    "$home/venv/bin/pip" install -q --no-deps -e "$home/repo"
    touch "$home/venv/complete"
}

mkdir -p "$dir"
build d0a1930 d0a193061a23a51c90664282205d753605a641c1
build v0.3.4 v0.3.4
echo "WAN_TRAIN_TEST_MUSUBI=$dir"
