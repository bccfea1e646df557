"""`wan-train dataset check --fix`: show the safe fixes, ask, make them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.cli import prompts
from wan_train.cli.output import Sink
from wan_train.dataset import fix as fixes
from wan_train.dataset.fix import Fix, FixPlan
from wan_train.dataset.model import CannotFixError
from wan_train.dataset.scan import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One change that was made, and where the original is."""

    fix: Fix
    kept: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """The result of `--fix`; `skipped` are files and why they are unchanged."""

    done: tuple[Done, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()


def fix(found: Check, sink: Sink, *, yes: bool) -> Fixed:
    """Show what can be fixed, ask, and do it. Raises BadInputError where nobody can be asked."""
    planned = fixes.plan(found)
    skipped = [(each.problem.path, each.why) for each in planned.skipped if each.problem.path is not None]
    _show(planned, sink)
    if not planned.fixes:
        sink.line("Nothing can be fixed safely.")
        sink.line("")
        return Fixed(skipped=tuple(skipped))
    if not yes:
        if not sink.is_terminal or sink.as_json:
            raise BadInputError(
                "nothing was changed: --fix asks first, and there is no terminal",
                hint="Add --yes to fix without a question, or remove --fix to only see the problems.",
            )
        if not prompts.confirm("Fix these?"):
            sink.note("Nothing was changed.")
            return Fixed(skipped=tuple(skipped))
    done = []
    stamp = fixes.stamp_of(time.time())
    with fixes.locked({each.path.parent for each in planned.fixes}):
        for each in planned.fixes:
            try:
                kept = fixes.apply(each, stamp)
            except (OSError, CannotFixError) as error:
                why = getattr(error, "strerror", None) or str(error)
                skipped.append((each.path, why))
                sink.line(f"skipped  {each.path}: {why}")
                continue
            done.append(Done(fix=each, kept=kept))
            sink.line(f"fixed    {each.target}: {each.what}")
    for folder in sorted({each.kept.parent for each in done}):
        sink.line(f"The originals are in {folder}")
    sink.line("")
    return Fixed(done=tuple(done), skipped=tuple(skipped))


def _show(planned: FixPlan, sink: Sink) -> None:
    for each in planned.fixes:
        sink.line(f"to fix   {each.path}: {each.what}")
    for skipped in planned.skipped:
        sink.line(f"skipped  {skipped.problem.path}: {skipped.why}")
