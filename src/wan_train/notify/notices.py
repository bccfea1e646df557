"""The messages that are due about a run and its box: a pure function of their records.

The same news always has the same ID, so the log of sent IDs prevents duplicates.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.errors import ExitCode
from wan_train.base.host import ProcessIdentity
from wan_train.base.text import one_line
from wan_train.base.units import dollars, duration, file_size
from wan_train.engine.failures import Cause
from wan_train.notify.send import Message
from wan_train.run.box_ending import END_WORDS, Ending, Phase
from wan_train.run.events import (
    BudgetSet,
    Event,
    MovementMeasured,
    PriceSet,
    RetryScheduled,
    RunResumed,
    StepStarted,
    SupervisorStarted,
)
from wan_train.run.live import Live
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.scheduler import WAITING_FOR_GPU
from wan_train.run.state import Job, JobState, Result, RunState

WAIT_SECONDS = 600.0
"""A wait for a GPU this long is worth a message."""
UPLOAD_SECONDS = 600.0
"""The message about a run's end waits this long for the uploads it names."""
COUNTDOWN_SECONDS = 300.0
_AWAY_SECONDS = 120.0
"""A dead supervisor is restarted sooner than this. After a longer gap, the box was off."""
_LIVE_SECONDS = 60.0
"""Older observations come from a dead supervisor."""
_BUDGET_SHARE = 0.8
_UNREPORTED_RETRIES = 2
_TITLE_CHARACTERS = 80
_LINE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """All that is known of a run at one moment. `uploads` maps each target to whether it has everything verified."""

    run_dir: Path
    plan: Plan
    events: Sequence[Event]
    state: RunState
    now: float
    live: Live | None = None
    uploads: Mapping[str, bool] = field(default_factory=dict)
    ending: Ending | None = None

    @property
    def run_id(self) -> str:
        return self.run_dir.name


def of_run(facts: RunFacts) -> tuple[Message, ...]:
    """All messages due about a run, now or earlier; the oldest first where the order matters."""
    if facts.state.finished is not None:
        return tuple(_over(facts))
    return (*_back(facts), *_retries(facts), *_failed_expert(facts), *_waiting(facts), *_budget(facts))


def of_box(
    ending: Ending, titles: Sequence[str], now: float, *, first_process: ProcessIdentity | None
) -> tuple[Message, ...]:
    """The messages due about the end of the box. `titles` are its runs' titles."""
    if ending.life is not None and first_process is not None and ending.life != first_process:
        return ()  # the box restarted, so this ending is no longer news
    name = _name(", ".join(titles) or "wan-train")
    key = f"{ending.decided.at:.0f}-{ending.decided.uptime:.0f}"
    left, words = ending.due - now, END_WORDS[ending.then]
    match ending.phase:
        case Phase.COUNTDOWN if left <= COUNTDOWN_SECONDS:
            body = [
                _sentence(ending.because),
                f"At {_clock(ending.due)} it is {words.ended}{words.disk}.",
                "To keep it, run any command on the box: wan-train status",
            ]
            return (_message(f"countdown-{key}", f"{name}: the box is {words.ended} in {duration(left)}", body),)
        case Phase.ASKED:
            return (_message(f"ended-{key}", f"{name}: {words.ordered}", [_sentence(ending.because)]),)
        case Phase.ENDING if ending.problem is not None:
            body = [
                _sentence(f"It could not be ended: {ending.problem}"),
                "It still costs money, and it is tried again.",
                *([f"By hand: {ending.by_hand}"] if ending.by_hand is not None else []),
            ]
            return (_message(f"not-ended-{key}", f"{name}: the box is still on", body),)
        case _:
            return ()


def _over(facts: RunFacts) -> Iterator[Message]:
    """The message about a run's end, once the state of its uploads is known."""
    finished, plan, state = facts.state.finished, facts.plan, facts.state
    assert finished is not None, "the run is over"
    missing = [target for target, verified in facts.uploads.items() if not verified]
    if missing and facts.ending is None and 0 <= facts.now - finished.at < UPLOAD_SECONDS:
        return
    took = duration(state.meter.seconds)
    spent = state.meter.spent(finished.at)
    cost = f", {dollars(spent)}" if spent is not None else ""
    body: list[str] = []
    match finished.exit_code:
        case ExitCode.DONE:
            head = f"finished in {took}{cost}"
        case ExitCode.DIVERGED:
            head = f"diverged after {took}{cost}"
        case ExitCode.PARTLY_FAILED:
            head = f"one expert failed, one finished, after {took}{cost}"
        case ExitCode.OVER_BUDGET:
            head = f"stopped before its budget was reached, after {took}{cost}"
        case ExitCode.NOT_READY if state.disk_low is not None:
            head = f"stopped before the disk was full, after {took}{cost}"
        case ExitCode.INTERRUPTED | ExitCode.TERMINATED:
            head = f"stopped after {took}{cost}"
        case _:
            head = f"failed after {took}{cost}"
    failures = [(step, job) for step in plan.steps if (job := state.jobs[step.id]).state is JobState.FAILED]
    body += [_failure(step, job) for step, job in failures]
    body += [f"LoRA: {result.path} ({file_size(result.bytes)})" for result in _results(state)]
    body += [f"Uploaded to {target}" for target, verified in facts.uploads.items() if verified]
    body += [f"Not uploaded yet: {target}" for target in missing]
    if _results(state) and not plan.trainer.is_real:
        body.append("A rehearsal with a tiny model: the files are not usable LoRAs.")
    if finished.exit_code != ExitCode.DONE:
        body.append(f"Next: {_next(facts, has_failed=bool(failures))}")
    number = sum(isinstance(event, RunResumed) for event in facts.events)
    yield _message(f"over-{number}", f"{_run_name(facts)}: {head}", body)


def _failed_expert(facts: RunFacts) -> Iterator[Message]:
    """Messages about a failed expert while the other continues. The message about the end repeats them."""
    trainings = [step for step in facts.plan.steps if step.kind is StepKind.TRAIN]
    if all(facts.state.jobs[step.id].state.is_over for step in trainings):
        return
    for step in trainings:
        job = facts.state.jobs[step.id]
        if job.state is JobState.FAILED:
            number = job.attempt.number if job.attempt is not None else 0
            found = job.diagnosis
            verb = "diverged" if found is not None and found.cause is Cause.NAN_LOSS else "failed"
            body = [
                _failure(step, job),
                "The run continues with the other expert.",
                f"Why: wan-train explain {shlex.quote(facts.run_id)}",
            ]
            yield _message(f"failed-{step.id}-{number}", f"{_run_name(facts)}: {step.id} {verb}", body)


def _retries(facts: RunFacts) -> Iterator[Message]:
    seen: dict[str, list[RetryScheduled]] = {}
    resumes = 0
    for event in facts.events:
        if isinstance(event, RunResumed):
            resumes, seen = resumes + 1, {}
        elif isinstance(event, RetryScheduled):
            seen.setdefault(event.step, []).append(event)
    for step, retries in seen.items():
        if len(retries) > _UNREPORTED_RETRIES:
            body = [_sentence(retries[-1].why), f"Why: wan-train explain {shlex.quote(facts.run_id)}"]
            title = f"{_run_name(facts)}: {step} failed {len(retries)} times and is retried"
            yield _message(f"retries-{resumes}-{step}", title, body)


def _back(facts: RunFacts) -> Iterator[Message]:
    """Messages about a run that a new supervisor took over after a gap: the box was outbid or rebooted."""
    earlier: SupervisorStarted | None = None
    number = 0
    for event in facts.events:
        if isinstance(event, RunResumed):
            earlier = None  # a person resumed it and knows
        if not isinstance(event, SupervisorStarted):
            continue
        number += 1
        if earlier is not None and event.idle_since is not None:
            away = event.at - event.idle_since
            if away >= _AWAY_SECONDS or event.identity.boot_id != earlier.identity.boot_id:
                body = ["The box was off, or the run's processes had died.", "It resumed from its latest checkpoint."]
                yield _message(f"back-{number}", f"{_run_name(facts)}: back after {duration(away)}", body)
        earlier = event


def _waiting(facts: RunFacts) -> Iterator[Message]:
    live, state = facts.live, facts.state
    if live is None or facts.now - live.at > _LIVE_SECONDS or any(job.state.has_process for job in state.jobs.values()):
        return
    reasons = [why for why in live.waiting.values() if why.startswith(WAITING_FOR_GPU)]
    # A waiting run has no events except a price, a budget or a late measurement.
    last = max((e.at for e in facts.events if not isinstance(e, PriceSet | BudgetSet | MovementMeasured)), default=None)
    if not reasons or last is None or facts.now - last < WAIT_SECONDS:
        return
    launches = sum(isinstance(event, StepStarted) for event in facts.events)
    title = f"{_run_name(facts)}: waiting for a GPU for {duration(facts.now - last)}"
    yield _message(f"waiting-{launches}", title, [_sentence(reasons[0])])


def _budget(facts: RunFacts) -> Iterator[Message]:
    budget, spent = facts.state.budget, facts.state.meter.spent(facts.now)
    if budget is None or spent is None or spent < _BUDGET_SHARE * budget:
        return
    body = [
        f"{dollars(spent)} of {dollars(budget)} spent.",
        "The run stops, with everything saved, before its budget is reached.",
        f"Then continue: wan-train resume {shlex.quote(facts.run_id)} --budget {2 * budget:g}",
    ]
    yield _message(f"budget-{budget:g}", f"{_run_name(facts)}: {100 * spent / budget:.0f} % of the budget spent", body)


def _results(state: RunState) -> list[Result]:
    return [job.result for job in state.jobs.values() if job.result is not None]


def _failure(step: Step, job: Job) -> str:
    found = job.diagnosis
    what = found.meaning if found is not None else "unknown error"
    return f"{step.id}: {_sentence(what)}"


def _next(facts: RunFacts, *, has_failed: bool) -> str:
    """The one command that can help."""
    run = shlex.quote(facts.run_id)
    if has_failed:
        return f"wan-train explain {run}"  # retries did not help, so a person has to change something
    over_budget = facts.state.finished is not None and facts.state.finished.exit_code == ExitCode.OVER_BUDGET
    budget = f" --budget {2 * facts.state.budget:g}" if over_budget and facts.state.budget is not None else ""
    return f"wan-train resume {run}{budget}"


def _run_name(facts: RunFacts) -> str:
    return _name(facts.plan.answers.title)


def _name(text: str) -> str:
    return one_line(text, _TITLE_CHARACTERS)


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def _clock(at: float) -> str:
    return time.strftime("%H:%M %Z", time.localtime(at))


def _message(key: str, title: str, body: Sequence[str]) -> Message:
    return Message(
        id=key,
        title=_harmless(title),
        body="\n".join(_harmless(line) for line in body),
    )


def _harmless(text: str) -> str:
    """Disarm mentions: on chat services, `@everyone` or `<!channel>` in a title would notify a whole server."""
    return one_line(text, _LINE_CHARACTERS).replace("@", "@\u200b").replace("<", "\u2039")
