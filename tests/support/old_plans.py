"""Plans in the formats of earlier versions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any


def sharded(data: dict[str, Any], of: int = 2) -> dict[str, Any]:
    """Return the data of a plan.json with caching in `of` steps of each kind, each for a part of the items."""
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
    """Return the data of a plan.json with the command of the first attempt in each step."""
    command = {"argv": ["python", "script.py", "--num_workers", str(workers)], "cwd": "/", "env": {}, "additions": []}
    steps = [step | {"command": command, "gpu_need": 1} for step in data["steps"]]
    return {key: value for key, value in data.items() if key != "caching_workers"} | {"schema": 2, "steps": steps}


def as_sharded(run: Path) -> None:
    """Rewrite a run directory as if its caching had been split in two."""
    plan = run / "plan.json"
    plan.write_text(json.dumps(sharded(json.loads(plan.read_bytes()))), encoding="utf-8")
    (run / "shards.json").write_text('{"shares": {}}', encoding="utf-8")
    events = []
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line).get("step", "")
        names = [f"{step}-1", f"{step}-2"] if step.startswith("cache-") else [step]
        events += [line.replace(f'"{step}"', f'"{name}"') for name in names]
    (run / "events.jsonl").write_text("".join(f"{line}\n" for line in events), encoding="utf-8")
