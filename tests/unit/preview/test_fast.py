"""What `--fast` needs, and what it says where that is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.runs import make_plan
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.engine.trainer import Trainer
from wan_train.preview.model import Solver
from wan_train.preview.request import fast_style
from wan_train.recipe.model_files import lightning
from wan_train.recipe.terms import EngineKind, Expert, Task


def trainer(folder: Path) -> Trainer:
    return replace(make_plan().trainer, root=folder)


def download(folder: Path, prefix: str = "diffusion_model.") -> None:
    for expert, model in lightning(Task.T2V).items():
        path = model.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        value = 1 if expert is Expert.HIGH else 2
        save_file({f"{prefix}blocks.0.ffn.0.lora_down.weight": np.full((2, 4), value, np.float32)}, path)


def test_four_steps_without_guidance_under_both_experts(tmp_path: Path) -> None:
    download(tmp_path)
    style = fast_style(Task.T2V, trainer(tmp_path))
    assert (style.solver, style.uses_guidance, style.steps, style.shift) == (Solver.VANILLA, False, 4, 5.0)
    assert "high_noise" in style.merged[Expert.HIGH].path.name
    assert style.merged[Expert.HIGH].sha256 != style.merged[Expert.LOW].sha256


def test_a_rehearsal_has_no_lightning() -> None:
    with pytest.raises(BadInputError, match="--fast"):
        fast_style(Task.T2V, make_plan(engine=EngineKind.REHEARSAL).trainer)


def test_a_box_without_it_or_with_another_file_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError) as missing:
        fast_style(Task.T2V, trainer(tmp_path))
    assert "wan-train provision --with lightning" in (missing.value.hint or "")
    download(tmp_path, prefix="transformer.")
    with pytest.raises(NotReadyError) as other:
        fast_style(Task.T2V, trainer(tmp_path))
    assert "--verify" in (other.value.hint or "")
