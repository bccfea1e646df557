"""Steps that make a box ready: each can be checked without changing anything, and then applied."""

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
    """The state of a step."""

    READY = "ready"
    WARNING = "warning"
    """Ready, but likely to cause problems later."""
    UNVERIFIED = "unverified"
    """Present with the right size, but never verified. The box counts as ready, but the step has work."""
    UNTESTED = "not tested"
    """No problem is known, but it could not be checked here and now."""
    MISSING = "missing"
    BLOCKED = "blocked"
    """Only the user can fix it."""


TO_DO = frozenset({State.UNVERIFIED, State.MISSING})
READY_STATES = frozenset({State.READY, State.WARNING, State.UNTESTED})


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `size` is the bytes that will be downloaded, 0 if none or unknown.

    `fixable` marks a WARNING that the step's `apply` may try to fix. If that does not help, the step has not failed.
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
    """One part of a ready box. `check` changes nothing; `apply` may be killed and repeated.

    `needs` are IDs of steps that must be ready first, `after` of steps that must have ended. IDs that are not
    part of a provision are ignored. With `downloads`, the finding's size is bytes to download, and `apply` reports
    their progress. A step that only reports has no `apply`.
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
    """Check all steps in parallel, since some use the network; the findings are in order.

    `ended` is set if this is interrupted (Ctrl-C), so that no check waits for the network any more.
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
    """Check one step; a WanTrainError or an OSError makes it BLOCKED."""
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
    """All hints, each once."""
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
