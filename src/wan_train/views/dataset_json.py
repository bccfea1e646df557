"""A look at a dataset as one JSON value; docs/json-output.md has its keys."""

from __future__ import annotations

from collections import Counter
from typing import Any

from wan_train.dataset.check import Check, Group
from wan_train.dataset.model import Problem, Severity
from wan_train.dataset.summary import summary

SCHEMA = 1

Json = dict[str, Any]


def check_json(check: Check, *, image_to_video: bool) -> Json:
    """`{event: "dataset_check", schema, …}`; every problem is in it, however many there are."""
    counts = Counter(problem.severity for problem in check.problems)
    return {
        "event": "dataset_check",
        "schema": SCHEMA,
        "dataset": str(check.config),
        "written": check.is_written,
        "trainer": check.reading.name,
        "stops": check.stops,
        "counts": {severity.value: counts[severity] for severity in Severity},
        "left_out": list(check.left_out),
        "problems": [_group(each) for each in check.groups],
        "trained": _trained(check, image_to_video=image_to_video),
    }


def _group(group: Group) -> Json:
    return {
        "kind": group.kind.value,
        "severity": group.severity.value,
        "count": len(group.problems),
        "found": [_problem(problem) for problem in group.problems],
    }


def _problem(problem: Problem) -> Json:
    return {
        "key": problem.key or None,
        "path": str(problem.path) if problem.path is not None else None,
        "what": problem.what,
        "mend": problem.mend,
    }


def _trained(check: Check, *, image_to_video: bool) -> Json | None:
    if check.inventory is None:
        return None
    counted = summary(check.inventory, image_to_video=image_to_video)
    return {
        "files": counted.files,
        "captions": counted.captions,
        "items_with_repeats": counted.items_with_repeats,
        "batches_per_epoch": counted.batches_per_epoch,
        "cache_bytes": counted.cache_bytes,
    }
