"""The user's own accelerate configuration: wan-train passes one of its own, but commands typed by hand read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from wan_train.base.files import write_whole
from wan_train.engine.commands import ACCELERATE_CONFIG
from wan_train.engine.tokenizer import hub_home
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

_NAMES = ("default_config.yaml", "default_config.yml", "default_config.json")
_SETTING = re.compile(r"""^\W*(distributed_type|num_processes|gpu_ids)\W+?([\w,-]+)""", re.MULTILINE)
_NOT_OURS = "wan-train's own runs never read it; commands that you type by hand do"
_TEXT = (
    "# Written by `wan-train provision`, since there was none: one process, one GPU. Change it as you like.\n"
    + (ACCELERATE_CONFIG.partition("\n")[2])
)


def accelerate_step(environ: Mapping[str, str]) -> Step:
    """A configuration is written only where there is none."""
    folder = hub_home(environ) / "accelerate"

    def check() -> Finding:
        found = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
        if found is None:
            return Finding(
                state=State.UNVERIFIED,
                detail=f"none in {folder}: `accelerate launch` typed by hand would use every GPU at once",
            )
        return judge(found, found.read_text(encoding="utf-8", errors="replace"))

    def apply(_work: Work) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _NAMES[0], _TEXT, mode=0o644)

    return Step(id="accelerate", title="accelerate", check=check, apply=apply)


def judge(path: Path, text: str) -> Finding:
    """Whether commands typed by hand would do what the guide means: one process on one GPU."""
    settings = dict(_SETTING.findall(text))
    kind = settings.get("distributed_type", "NO")
    processes = settings.get("num_processes", "1")
    if kind.upper() == "NO" and processes == "1":
        return Finding(state=State.READY, detail=f"{path}: one process")
    return Finding(
        state=State.WARNING,
        detail=f"{path} says distributed_type {kind}, num_processes {processes}; {_NOT_OURS}",
        hint=f"If you type the guide's commands by hand: `mv {quote(str(path))} {quote(f'{path}.mine')}`, "
        "then `wan-train provision`.",
    )
