"""Upgrade the plans of earlier versions, so that old runs can be watched and resumed."""

from __future__ import annotations

from typing import Any

from wan_train.base import codec
from wan_train.engine.extra_arguments import parse
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import FIELD_NAMES
from wan_train.recipe.values import ATTENTION_KEYS


def newest(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a plan.json in the newest schema."""
    return of_schema_3(of_schema_2(data))


def of_schema_3(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade schema 2, in which steps held the commands of their first attempts and caching could have shards.

    Now each shard's step handles all items, one step after the other: the first makes what is missing.
    """
    if data.get("schema") != 2:  # the schema described above
        return data
    before: dict[str, str] = {}
    argv = data["steps"][0]["command"]["argv"]
    workers = int(argv[argv.index("--num_workers") + 1]) if "--num_workers" in argv else 1
    steps = [_whole(step, before) if step.get("shard") else step for step in data["steps"]]
    return data | {"schema": 3, "steps": steps, "caching_workers": workers}


def _whole(shard: dict[str, Any], before: dict[str, str]) -> dict[str, Any]:
    """Make a shard's step handle all items. `before` holds the last step of each kind."""
    kind = shard["kind"]
    needs = [*shard["needs"], before[kind]] if kind in before else shard["needs"]
    before[kind] = shard["id"]
    return shard | {"needs": needs}


def of_schema_2(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade schema 1, in which one training and untyped extra arguments applied to both experts."""
    if data.get("schema") != 1:
        return data
    recipe = data["recipe"]
    words = recipe.get("passthrough", [])
    # Arguments that do not parse made the trainer exit at once, so the run can only be viewed.
    given, _ = parse(words, codec.from_data(data["trainer"], Trainer).capabilities)
    settings = recipe["training"] | {"options": {}}
    sources = {
        name: {"origin": "recipe" if text.startswith("recipe ") else "flag", "text": text}
        for name, text in recipe.get("chosen", {}).items()
    }
    for key, value in given.items():
        name = "attention" if key in ATTENTION_KEYS else key
        sources[name] = {"origin": "words", "text": "the words after `--`"}
        if key in ATTENTION_KEYS:
            settings[name] = ATTENTION_KEYS[key].value
        elif key in FIELD_NAMES:
            settings[name] = value
        else:
            settings["options"][name] = value
    experts = [spec | {"training": settings, "sources": sources} for spec in recipe["experts"]]
    return data | {"schema": 2, "recipe": recipe | {"experts": experts}}
