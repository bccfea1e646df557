"""The stored option tables against the trainer's own argument parsers."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from musubi.trainer import CACHE_LATENTS, CACHE_TEXT, TRAIN, Trainer


@pytest.mark.parametrize("script", [CACHE_LATENTS, CACHE_TEXT, TRAIN])
def test_stored_table_is_what_the_real_parser_takes(trainer: Trainer, script: str) -> None:
    table = resources.files("wan_train.engine").joinpath(f"contract/{trainer.version}.json")
    stored = json.loads(table.read_text(encoding="utf-8"))[script]

    real = trainer.ask("dump_options.py", str(trainer.repo / "src" / "musubi_tuner" / script))

    assert set(stored) == set(real)
    assert {name: without_zero(entry) for name, entry in stored.items()} == {
        name: without_zero(entry) for name, entry in real.items()
    }


def without_zero(entry: dict[str, Any]) -> dict[str, Any]:
    # The stored tables leave out defaults of zero.
    return {key: value for key, value in entry.items() if key != "default" or value}
