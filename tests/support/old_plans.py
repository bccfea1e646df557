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
            config = f"{data['run_dir']}/{one['id']}/dataset.toml"
            argv = one["command"]["argv"]
            argv[argv.index("--dataset_config") + 1] = config
            part = {"what": f"--dataset_config {config}", "reason": f"part {number} of {of}"}
            one["command"]["additions"] = [part, *one["command"]["additions"]]
            steps.append(one)
    return data | {"steps": steps}
