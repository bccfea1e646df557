"""The defaults that `--help` shows, read from where they are decided: the shipped recipe and dataset.toml, settings."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from wan_train.base.settings import Settings, shipped_configs
from wan_train.run.titles import DEFAULT_AUTHOR, DEFAULT_TITLE

REHEARSAL_TITLE = "rehearsal"
REHEARSAL_EPOCHS = 20
REHEARSAL_RESOLUTION = "256x256"
"""With eight pictures and 20 epochs both experts are done in about a minute on two cores."""

_WORKSPACE = str(Settings().workspace)
_IN_A_NEW_ONE = "{} in a new one"


def default_of(command: str, parameter: str) -> str | None:
    """What an option is when it is not given, None where Typer knows or there is no default."""
    try:
        return _DEFAULTS[command](parameter)
    except (OSError, ValueError, KeyError):  # also a broken installation must be able to say what its commands are
        return None


def _train(parameter: str) -> str | None:
    training, general = _recipe()["training"], _dataset()["general"]
    first = _dataset()["datasets"][0]
    epochs, keep = training["max_train_epochs"], training["save_every_n_epochs"]
    return {
        **_places(),
        "title": DEFAULT_TITLE,
        "author": DEFAULT_AUTHOR,
        "dataset": "dataset/dataset.toml in the checkout",
        "recipe": "the shipped one of --task",
        "epochs": str(epochs),
        "save_every": "only at the end" if keep >= epochs else str(keep),
        "sample_prompts": "no samples",
        "rank": str(training["network_dim"]),
        "alpha": str(training["network_alpha"]),
        "learning_rate": str(training["learning_rate"]),
        "seed": str(training["seed"]),
        "resolution": _IN_A_NEW_ONE.format("x".join(map(str, general["resolution"]))),
        "batch_size": _IN_A_NEW_ONE.format(general["batch_size"]),
        "repeats": _IN_A_NEW_ONE.format(first["num_repeats"]),
        "fp8": "--fp8" if training["fp8_base"] else "--no-fp8",
    }.get(parameter)


def _rehearse(parameter: str) -> str | None:
    return {
        **_places(),
        "title": REHEARSAL_TITLE,
        "author": DEFAULT_AUTHOR,
        "epochs": str(REHEARSAL_EPOCHS),
        "resolution": REHEARSAL_RESOLUTION,
        "sample_prompts": "no samples",
        "gpus": "two CPU slots",
    }.get(parameter)


def _check(parameter: str) -> str | None:
    wanted = {"epochs", "resolution", "batch_size", "repeats", "workspace", "musubi_dir"}
    return _train(parameter) if parameter in wanted else None


def _write(parameter: str) -> str | None:
    general, (pictures, clips) = _dataset()["general"], _dataset()["datasets"]
    return {
        "resolution": "x".join(map(str, general["resolution"])),
        "batch_size": str(general["batch_size"]),
        "repeats": str(pictures["num_repeats"]),
        "caption_extension": general["caption_extension"],
        "target_frames": ",".join(map(str, clips["target_frames"])),
        "frame_extraction": clips["frame_extraction"],
    }.get(parameter)


def _of_runs(parameter: str) -> str | None:
    return _places()[parameter] if parameter == "runs_dir" else None


def _of_box(parameter: str) -> str | None:
    return {**_places(), "engine": "the installed one, else guide"}.get(parameter)


def _places() -> dict[str, str]:
    return {
        "gpus": "all",
        "workspace": _WORKSPACE,
        "musubi_dir": "musubi-tuner in the workspace",
        "musubi_python": "venv or .venv in the checkout",
        "runs_dir": "wan-train-runs in the workspace",
    }


_DEFAULTS: Mapping[str, Callable[[str], str | None]] = {
    "train": _train,
    "rehearse": _rehearse,
    "check": _check,
    "write": _write,
    "provision": _of_box,
    "doctor": _of_box,
    **dict.fromkeys(
        ("attach", "resume", "explain", "report", "compare", "status", "runs", "logs", "stop", "clean"), _of_runs
    ),
}


@cache
def _recipe() -> Mapping[str, Any]:
    # Numbers stay as they are written: 3e-4, not 0.0003.
    text = (shipped_configs() / "recipes" / "t2v-a14b.toml").read_text(encoding="utf-8")
    return tomllib.loads(text, parse_float=str)


@cache
def _dataset() -> Mapping[str, Any]:
    return tomllib.loads((shipped_configs() / "dataset.toml").read_text(encoding="utf-8"), parse_float=str)
