"""What a ready box is made of: steps that can be looked at without changing anything, and done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wan_train.box.children import Children
from wan_train.errors import NotReadyError


class State(StrEnum):
    """How a step stands."""

    READY = "ready"
    UNVERIFIED = "unverified"
    """Present and of the right size, but its bytes were never compared: ready to look at, work to do."""
    MISSING = "missing"
    BLOCKED = "blocked"
    """Only the user can help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a look at one step saw. `size` is the bytes that will be fetched, 0 when none or unknown."""

    state: State
    detail: str
    size: int = 0
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part of a ready box. `check` changes nothing; `apply` may be killed and done again."""

    id: str
    title: str
    check: Callable[[], Finding]
    apply: Callable[[Children], None]


def look(steps: Sequence[Step]) -> dict[str, Finding]:
    """Every step's finding, in order."""
    return {step.id: _check(step) for step in steps}


def all_hints(findings: Iterable[Finding]) -> str | None:
    """What the user can do about all of them, each thing said once."""
    return " ".join(dict.fromkeys(finding.hint for finding in findings if finding.hint)) or None


def _check(step: Step) -> Finding:
    try:
        return step.check()
    except OSError as error:
        return Finding(state=State.BLOCKED, detail=_words(error), hint="Look at its owner and permissions.")


def _words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}"


def is_ready(findings: Mapping[str, Finding]) -> bool:
    return all(finding.state in {State.READY, State.UNVERIFIED} for finding in findings.values())


def refuse_blocked(steps: Sequence[Step], findings: Mapping[str, Finding]) -> None:
    """Raise NotReadyError with everything that only the user can mend, before anything is done."""
    blocked = [(step, findings[step.id]) for step in steps if findings[step.id].state is State.BLOCKED]
    if blocked:
        listing = "; ".join(finding.detail for _, finding in blocked)
        hints = all_hints([finding for _, finding in blocked])
        raise NotReadyError(f"this box cannot be made ready: {listing}", hint=hints)


def perform(steps: Sequence[Step], findings: Mapping[str, Finding], children: Children) -> None:
    """Do in order what is not ready; what was done is looked at again, and only believed then."""
    todo = [step for step in steps if findings[step.id].state is not State.READY]
    for number, step in enumerate(todo, start=1):
        children.say(f"[{number}/{len(todo)}] {step.title}")
        try:
            step.apply(children)
        except OSError as error:
            raise NotReadyError(
                f"{step.title}: {_words(error)}", hint="Look at the disk and at permissions there, then run it again."
            ) from error
        found = _check(step)
        if found.state is not State.READY:
            raise NotReadyError(f"{step.title}: {found.detail}", hint=found.hint or f"The log is {children.log}.")
        children.say(f"  done: {found.detail}")
