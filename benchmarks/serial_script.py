"""The guide's steps as a plain shell script, for comparison: one after the other, GPUs polled every 10 s."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

from support.trainers import ScriptedBox

POLL_SECONDS = 10

_NOT_THE_GUIDES = {"--skip_existing", "--keep_cache"}
"""The guide's caching commands encode everything, every time."""

_NVIDIA_SMI = """\
#!/bin/sh
# Stands in for: nvidia-smi --query-gpu=uuid,memory.used --format=csv,noheader,nounits
awk '
  function tell() { if (uuid) print uuid ", " int(used / 1048576) }
  $1 == "gpu" { tell(); uuid = "" }
  $1 == "uuid" { uuid = $2 }
  $1 == "used" { used = $2 }
  $1 == "hold" { if (system("kill -0 " $2 " 2>/dev/null") == 0) used += $3 }
  END { tell() }
' "$WAN_TRAIN_NVML_STATE"
"""

_SCRIPT = """\
#!/bin/bash
# Cache latents, cache text, then each training on a GPU that is free, as the guide's runner does.
declare -A owner
free_gpu() {{
    while true; do
        while IFS=', ' read -r uuid used; do
            [ -n "${{owner[$uuid]}}" ] && kill -0 "${{owner[$uuid]}}" 2>/dev/null && continue
            if [ "$used" -lt 1024 ]; then gpu=$uuid; return; fi
        done < <({smi} --query-gpu=uuid,memory.used --format=csv,noheader,nounits)
        sleep {poll}
    done
}}
set -e
cd {cwd}
free_gpu
export CUDA_VISIBLE_DEVICES=$gpu
{latents}
{text}
free_gpu
CUDA_VISIBLE_DEVICES=$gpu {high} &
owner[$gpu]=$!
free_gpu
CUDA_VISIBLE_DEVICES=$gpu {low} &
wait
"""


def run_serially(box: ScriptedBox, run: Path, **env: str) -> None:
    """The commands of a finished run, once more, by the shell script. Caches are removed first."""
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    shutil.rmtree(box.dataset / "cache", ignore_errors=True)
    folder = box.root / "serial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("dataset.toml", "accelerate.yaml"):
        shutil.copy(run / name, folder / name)
    smi = folder / "nvidia-smi"
    smi.write_text(_NVIDIA_SMI, encoding="utf-8")
    smi.chmod(0o755)
    commands = {
        step["id"]: " ".join(
            [
                *(f"{name}={shlex.quote(value)}" for name, value in step["command"]["env"].items()),
                *(
                    shlex.quote(word.replace(str(run), str(folder)))
                    for word in step["command"]["argv"]
                    if word not in _NOT_THE_GUIDES
                ),
            ]
        )
        for step in plan["steps"]
    }
    script = folder / "run.sh"
    script.write_text(
        _SCRIPT.format(
            smi=smi,
            poll=POLL_SECONDS,
            cwd=plan["steps"][0]["command"]["cwd"],
            latents=commands["cache-latents"],
            text=commands["cache-text"],
            high=f"env {commands['train-high']}",
            low=f"env {commands['train-low']}",
        ),
        encoding="utf-8",
    )
    with (folder / "output.log").open("w") as log:
        subprocess.run(["bash", str(script)], env=box.env(**env), stdout=log, stderr=log, check=True)
