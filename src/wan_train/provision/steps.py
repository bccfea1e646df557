"""Parts of a ready box: steps that can be checked without changing anything, and done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from functools import partial

from wan_train.base.errors import NotReadyError, WanTrainError
from wan_train.provision.work import Work


class State(StrEnum):
    """How a step stands."""

    READY = "ready"
    WARNING = "warning"
    """Ready, but something about it will hurt later."""
    UNVERIFIED = "unverified"
    """Present and of the right size, but its bytes were never compared: ready to look at, work to do."""
    UNTESTED = "not tested"
    """No problem is known, but it could not be checked here and now."""
    MISSING = "missing"
    BLOCKED = "blocked"
    """Only the user can help."""


TO_DO = frozenset({State.UNVERIFIED, State.MISSING})
READY_STATES = frozenset({State.READY, State.WARNING, State.UNTESTED})


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at one step saw. `size` is the bytes that will be fetched, 0 when none or unknown.

    `fixable` is a WARNING that the step's `apply` may try to fix; it is no failure when that does not help.
    """

    state: State
    detail: str
    hint: str | None = None
    _: KW_ONLY
    size: int = 0
    fixable: bool = False


ready, warning, blocked = (partial(Finding, state) for state in (State.READY, State.WARNING, State.BLOCKED))


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a ready box. `check` changes nothing; `apply` may be killed and done again.

    `needs` are ids of steps that must be ready first, `after` of steps that must have ended; ids that are not
    part of a provision do not count. `downloads`: the finding's size is bytes to fetch, and `apply` reports them.
    Facts have no `apply`.
    """

    id: str
    title: str
    check: Callable[[], Finding]
    _: KW_ONLY
    apply: Callable[[Work], None] | None = None
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    downloads: bool = False


def has_work(step: Step, finding: Finding) -> bool:
    """Whether a provision does anything about this finding."""
    return step.apply is not None and (finding.state in TO_DO or finding.fixable)


def look(steps: Sequence[Step], ended: threading.Event) -> dict[str, Finding]:
    """Every step's finding, in order; they are checked in parallel, since some use the network.

    `ended` is set when the look is broken off (Ctrl-C), so that no check waits for the network any more.
    """
    if not steps:
        return {}
    with ThreadPoolExecutor(max_workers=len(steps)) as pool:
        try:
            return dict(zip((step.id for step in steps), pool.map(check, steps), strict=True))
        except BaseException:
            ended.set()
            raise


def check(step: Step) -> Finding:
    """One finding; a place that cannot be read or used is BLOCKED."""
    try:
        return step.check()
    except WanTrainError as error:
        return blocked(error.message, error.hint)
    except OSError as error:
        return blocked(words(error), "Check its owner and permissions.")


def words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{(error.strerror or str(error)).lower()}"


def all_hints(findings: Iterable[Finding]) -> str | None:
    """What the user can do about all of them, each thing said once."""
    return " ".join(dict.fromkeys(finding.hint for finding in findings if finding.hint)) or None


def is_ready(findings: Mapping[str, Finding]) -> bool:
    return not any(finding.state in {State.MISSING, State.BLOCKED} for finding in findings.values())


def refuse_blocked(findings: Mapping[str, Finding]) -> None:
    """Raise NotReadyError with everything that only the user can fix, before anything is done."""
    blocked = [finding for finding in findings.values() if finding.state is State.BLOCKED]
    if blocked:
        first, *more = (finding.detail for finding in blocked)
        listing = "".join(f"\n{detail}" for detail in (first, *more)) if more else f" {first}"
        raise NotReadyError(f"this box cannot be prepared:{listing}", hint=all_hints(blocked))
