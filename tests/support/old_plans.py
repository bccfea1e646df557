"""Plans in the forms that earlier versions wrote."""

from __future__ import annotations

import copy
from typing import Any


def sharded(data: dict[str, Any], of: int = 2) -> dict[str, Any]:
    """The data of a plan.json whose caching has `of` steps of each kind, each for a part of the items."""
    steps = []
    for step in data["steps"]:
        if step["expert"] is not None:
            steps.append(step | {"needs": [each["id"] for each in steps if each["expert"] is None], "shard": None})
            continue
        for number in range(1, of + 1):
            one = copy.deepcopy(step) | {"id": f"{step['id']}-{number}", "shard": {"number": number, "of": of}}
            steps.append(one)
    return of_schema_2(data | {"steps": steps})


def of_schema_2(data: dict[str, Any], workers: int = 1) -> dict[str, Any]:
    """The data of a plan.json whose steps held the commands of their first attempts."""
    command = {"argv": ["python", "script.py", "--num_workers", str(workers)], "cwd": "/", "env": {}, "additions": []}
    steps = [step | {"command": command, "gpu_need": 1} for step in data["steps"]]
    return {key: value for key, value in data.items() if key != "caching_workers"} | {"schema": 2, "steps": steps}
