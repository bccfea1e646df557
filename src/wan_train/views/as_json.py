"""Records as JSON for scripts; docs/json.md describes the shapes, which only ever grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wan_train import codec
from wan_train.run.events import Event
from wan_train.run.plan import Plan
from wan_train.views.model import GpuNow, RunView

SCHEMA = 1


def plan_json(plan: Plan, gpus: Sequence[GpuNow]) -> dict[str, Any]:
    """The whole plan, and the GPUs as they are now."""
    return {
        "event": "plan",
        "schema": SCHEMA,
        "plan": codec.to_data(plan),
        "gpus": [codec.to_data(g) for g in gpus],
    }


def event_json(event: Event) -> dict[str, Any]:
    """An event exactly as the journal has it."""
    data: dict[str, Any] = codec.to_data(event, Event)
    return data


def status_json(view: RunView, now: float) -> dict[str, Any]:
    """A run at `now` (seconds since 1970)."""
    return {"schema": SCHEMA, "run_id": view.plan.run_id, "updated": now}


def result_json(view: RunView) -> dict[str, Any]:
    """A finished run."""
    return {"event": "result", **status_json(view, view.plan.created)}
