"""What downloads that never ended have left: ours goes by itself, the rest after the user's yes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wan_train.provision.orphans import Orphan, Whose, orphans
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

_GB = 1e9
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """`after` are the steps that may still go on with some of it."""

    trainer_dir: Path
    after: tuple[str, ...]

    def step(self) -> Step:
        return Step(
            id="leftovers", title="Left by older downloads", check=self.check, apply=self.apply, after=self.after
        )

    def check(self) -> Finding:
        found = orphans(self.trainer_dir)
        if not found:
            return Finding(state=State.READY, detail="nothing is left by older downloads")
        hint = "`wan-train provision` goes on with what is of use, and at a terminal offers to delete the rest."
        ours = any(orphan.whose is Whose.OURS for orphan in found)
        return Finding(state=State.WARNING, detail=listed(found), hint=hint, mendable=ours)

    def apply(self, work: Work) -> None:
        for orphan in orphans(self.trainer_dir):
            if orphan.whose is Whose.OURS:
                work.say(f"removing {orphan.path}")
                orphan.remove()

    def of_others(self) -> tuple[Orphan, ...]:
        """What only the user can give up."""
        return tuple(orphan for orphan in orphans(self.trainer_dir) if orphan.whose is not Whose.OURS)


def listed(found: tuple[Orphan, ...]) -> str:
    """How much, and where."""
    names = ", ".join(str(orphan.path) for orphan in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{sum(orphan.bytes for orphan in found) / _GB:.2f} GB left by older downloads: {names}{more}"
