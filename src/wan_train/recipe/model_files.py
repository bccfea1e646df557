"""The model files wan-train knows by name: where they come from and where they are on the box."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.home import expand
from wan_train.base.settings import shipped_configs
from wan_train.base.text import one_line
from wan_train.recipe.terms import Expert, Task

_LIGHTNING = "-lightning"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model repository and its place below the trainer's checkout."""

    name: str
    repo: str
    file: str
    place: str
    gb: float
    """The approximate size in units of 10**9 bytes; the hub's own number takes precedence where it is available."""

    def path(self, trainer_dir: Path) -> Path:
        return trainer_dir / self.place / self.file


def known_models(path: Path | None = None) -> Mapping[str, ModelFile]:
    data = tomllib.loads((path or shipped_configs() / "models.toml").read_text(encoding="utf-8"))
    return {name: ModelFile(name=name, **entry) for name, entry in data.items()}


def lightning(task: Task) -> Mapping[Expert, ModelFile]:
    """The LoRAs with which the experts of a task sample in four steps; fetched only on request."""
    models = known_models()
    return {expert: models[f"wan22-{task.word}-{expert.value}{_LIGHTNING}"] for expert in Expert}


def locate(reference: str, trainer_dir: Path) -> Path:
    """The path of a model given by name or by path; raises BadInputError if it is neither.

    A relative path is resolved against the trainer's checkout, as by the trainer itself.
    """
    models = {name: model for name, model in known_models().items() if not name.endswith(_LIGHTNING)}
    if reference in models:
        return models[reference].path(trainer_dir)
    if "/" in reference or reference.endswith((".safetensors", ".pth", ".pt")):
        return trainer_dir / expand(reference)
    raise BadInputError(
        f"{one_line(reference)!r} is neither a known model nor a path",
        hint=f"Known models: {', '.join(models)}.",
    )
