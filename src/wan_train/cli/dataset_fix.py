"""`wan-train dataset check --fix`: safe mends, each said, none without consent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.cli import prompts
from wan_train.cli.output import Sink
from wan_train.dataset import fix as mending
from wan_train.dataset.check import Check
from wan_train.dataset.fix import CannotMendError, Mend, Mending


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One change that was made, and where the original is."""

    mend: Mend
    kept: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What came of `--fix`; `left` are files and why they are as they were."""

    done: tuple[Done, ...] = ()
    left: tuple[tuple[Path, str], ...] = ()


def fix(found: Check, sink: Sink, *, yes: bool) -> Mended:
    """Show what can be mended, ask, and do it. Raises BadInputError where nobody can be asked."""
    planned = mending.plan(found)
    left = [(each.problem.path, each.why) for each in planned.refusals if each.problem.path is not None]
    _show(planned, sink)
    if not planned.mends:
        sink.line("There is nothing that can be mended safely.")
        sink.line("")
        return Mended(left=tuple(left))
    if not yes:
        if not sink.is_terminal or sink.as_json:
            raise BadInputError(
                "nothing was changed: there is no terminal to ask at, and --yes was not given",
                hint="Add --yes to mend, or leave out --fix to see the problems only.",
            )
        if not prompts.confirm("Mend these?"):
            sink.note("Nothing was changed.")
            return Mended(left=tuple(left))
    done = []
    stamp = mending.stamp_of(time.time())
    with mending.alone_in({mend.path.parent for mend in planned.mends}):
        for mend in planned.mends:
            try:
                kept = mending.perform(mend, stamp)
            except (OSError, CannotMendError) as error:
                why = getattr(error, "strerror", None) or str(error)
                left.append((mend.path, why))
                sink.line(f"left     {mend.path}: {why}")
                continue
            done.append(Done(mend=mend, kept=kept))
            sink.line(f"mended   {mend.target}: {mend.what}")
    for folder in sorted({each.kept.parent for each in done}):
        sink.line(f"The originals are in {folder}")
    sink.line("")
    return Mended(done=tuple(done), left=tuple(left))


def _show(planned: Mending, sink: Sink) -> None:
    for mend in planned.mends:
        sink.line(f"to mend  {mend.path}: {mend.what}")
    for refusal in planned.refusals:
        sink.line(f"left     {refusal.problem.path}: {refusal.why}")
