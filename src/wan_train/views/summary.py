"""What will happen, before it happens; and what came out, at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_train.run.plan import Plan
from wan_train.views.model import GpuNow, RunView

if TYPE_CHECKING:
    from rich.console import RenderableType


def plan_lines(
    plan: Plan,
    gpus: Sequence[GpuNow],
    *,
    width: int,
    verbose: bool = False,
    disk_free_bytes: int | None = None,
) -> RenderableType:
    """What a run will do, for the person who is about to confirm it."""
    from rich.text import Text  # noqa: PLC0415  only screens need it

    del gpus, width, verbose, disk_free_bytes
    return Text(plan_text(plan))


def plan_text(plan: Plan) -> str:
    """The plan for `--dry-run`: every step's exact command."""
    return "\n".join(f"# {step.id}\n{step.command.shell()}" for step in plan.steps) + "\n"


def result_lines(view: RunView, *, width: int = 100) -> RenderableType:
    """What came out of a run, for a terminal."""
    from rich.text import Text  # noqa: PLC0415  only screens need it

    del width
    return Text(result_text(view))


def result_text(view: RunView) -> str:
    """What came out of a run, as plain text."""
    return "\n".join(job.result.path for job in view.state.jobs.values() if job.result is not None) + "\n"


__all__ = ["GpuNow", "plan_lines", "plan_text", "result_lines", "result_text"]
