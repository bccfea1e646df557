"""A look at a dataset as one JSON value; docs/json-output.md has its keys."""

from __future__ import annotations

from collections import Counter
from typing import Any

from wan_train.dataset.check import Check, Group
from wan_train.dataset.layout import Outlook, SubsetOutlook
from wan_train.dataset.model import Problem, Severity
from wan_train.dataset.trained import Trained

Json = dict[str, Any]


def check_json(check: Check, ahead: Outlook | None) -> Json:
    """`{event: "dataset_check", …}`; every problem is in it, however many there are."""
    counts = Counter(problem.severity for problem in check.problems)
    return {
        "event": "dataset_check",
        "dataset": str(check.config),
        "written": check.is_written,
        "trainer": check.reading.name,
        "stops": check.stops,
        "counts": {severity.value: counts[severity] for severity in Severity},
        "left_out": list(check.left_out),
        "problems": [_group(each) for each in check.groups],
        "trained": _trained(ahead),
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
        "line": problem.row,
        "what": problem.what,
        "mend": problem.mend,
    }


def _trained(ahead: Outlook | None) -> Json | None:
    if ahead is None:
        return None
    counted = ahead.summary
    return {
        "files": counted.files,
        "captions": counted.captions,
        "items_with_repeats": counted.items_with_repeats,
        "batches_per_epoch": counted.batches_per_epoch,
        "epochs": ahead.epochs,
        "steps_per_epoch": ahead.steps_per_epoch,
        "steps": ahead.steps,
        "cache_bytes": counted.cache_bytes,
        "datasets": [_dataset(each) for each in ahead.subsets],
    }


def _dataset(each: SubsetOutlook) -> Json:
    return {
        "source": str(each.subset.source),
        "kind": each.subset.kind.value,
        "resolution": list(each.subset.resolution),
        "batch_size": each.subset.batch_size,
        "num_repeats": each.subset.num_repeats,
        "items": each.summary.items,
        "buckets": [
            {"width": bucket.width, "height": bucket.height, "frames": bucket.frames, "items": bucket.items}
            for bucket in each.summary.buckets
        ],
        "files": [_file(one) for one in each.files],
    }


def _file(one: Trained) -> Json:
    crop = one.crop
    return {
        "path": str(one.item.path),
        "width": one.item.width,
        "height": one.item.height,
        "frames": one.item.frames,
        "trained": None
        if crop is None
        else {
            "width": crop.bucket[0],
            "height": crop.bucket[1],
            "scale": round(crop.scale, 6),
            "share_lost": round(crop.share_lost, 6),
            "cut": {"left": crop.left, "top": crop.top, "right": crop.right, "bottom": crop.bottom},
        },
        "clips": [list(cut) for cut in one.cuts],
    }
