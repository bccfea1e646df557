"""`--network-weights`: one file for all experts, or a folder or run from which each expert takes its own LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line
from wan_train.engine.checkpoints import lora_file
from wan_train.recipe.effective import Layer
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory, find

FLAG = "--network-weights"
_CHECKPOINT = re.compile(r"-\d{6}$|-step\d{8}$")
"""How the trainer ends the names of LoRAs that it saves on the way."""


def weights_layers(name: str, experts: Sequence[Expert], runs: Path) -> list[Layer]:
    """The LoRA that each expert continues from; raises BadInputError when it is not clear which."""
    path = path_of(name).absolute()
    if path.is_file():
        found = dict.fromkeys(experts, path)
    elif path.is_dir() and not RunDirectory(path).plan.is_file():
        found = {expert: _in_folder(path, expert) for expert in experts}
    elif path.exists() or "/" not in name:
        run = RunDirectory(path) if path.exists() else find(runs, name)
        found = {expert: _of_run(run, expert) for expert in experts}
    else:
        raise BadInputError(f"{FLAG} {one_line(name)}: there is no such file or folder", hint="Check the path.")
    source = Source(origin=Origin.FLAG, text=FLAG)
    return [
        Layer(source=source, values={"network_weights": str(file)}, expert=expert) for expert, file in found.items()
    ]


def path_of(name: str) -> Path:
    """The path that somebody typed."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~name` of nobody
        return Path(name)


def _of_run(run: RunDirectory, expert: Expert) -> Path:
    step = next((step for step in run.read_plan().steps if step.expert is expert), None)
    file = lora_file(run.path, step.produces) if step is not None and step.produces is not None else None
    if file is None or not file.is_file():
        raise BadInputError(
            f"{FLAG}: the run {run.run_id} has no finished LoRA of the {expert.value}-noise expert",
            hint=f"Name the file with `--{expert.value} network_weights=FILE`, or train the other expert alone.",
        )
    return file


def _in_folder(folder: Path, expert: Expert) -> Path:
    label = re.compile(rf"{expert.value}[-_ ]?noise", re.IGNORECASE)
    fitting = sorted(file for file in folder.glob("*.safetensors") if label.search(file.name))
    match [file for file in fitting if not _CHECKPOINT.search(file.stem)] or fitting:
        case [file]:
            return file
        case []:
            what = f"no file of {folder} has {expert.label} in its name"
        case several:
            what = f"{folder} has several LoRAs of the {expert.value}-noise expert: " + ", ".join(
                one_line(file.name) for file in several
            )
    raise BadInputError(f"{FLAG}: {what}", hint=f"Name the file with `--{expert.value} network_weights=FILE`.")
