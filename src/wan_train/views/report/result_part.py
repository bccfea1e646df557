"""What became of a run: the verdict, why something failed and what to do, the files and where they go."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from wan_train.engine.failures import Diagnosis
from wan_train.run.state import Attempt, Job, JobState
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import plain
from wan_train.views.markup.html import Child, Html, tag
from wan_train.views.markup.parts import code_block, path_text, table
from wan_train.views.model import RunView
from wan_train.views.report.metrics import ExpertFigures
from wan_train.views.report.report_data import Story
from wan_train.views.result import headline
from wan_train.views.run_status import RunStatus

_MOST_KEPT = 20
_SAID = {
    RunStatus.FINISHED: "said fine",
    RunStatus.FAILED: "said stops",
    RunStatus.LOST: "said stops",
    RunStatus.STOPPED: "said warns",
}


def verdict(story: Story) -> Iterator[Html]:
    """The first words of the page."""
    view = story.view
    standing = facts.status_of(view)
    said = plain([headline(view)]).strip()
    if not story.is_final and standing is not RunStatus.LOST:
        said = f"The run is not over; so far {formatting.duration(facts.elapsed(view, story.made))}."
    yield tag("p", said, class_=_SAID.get(standing, "said"))
    if not story.is_final:
        yield tag(
            "p",
            tag("strong", "Not final. "),
            f"Told at {formatting.date_time(story.made)}, while the run was not over. For the newest state: ",
            tag("code", f"wan-train report {shlex.quote(formatting.safe(view.run.run_id))}"),
            class_="said warns",
        )
    if facts.is_rehearsal(view):
        yield tag(
            "p",
            "A rehearsal on the embedded tiny trainer: it shows that everything works. Its LoRAs are no real ones.",
            class_="said warns",
        )


def troubles(story: Story) -> Iterator[Html]:
    """Why something failed, and the next command; nothing where all went well."""
    view = story.view
    found = list(_troubles(view))
    advice = facts.status_of(view) in {RunStatus.FAILED, RunStatus.STOPPED, RunStatus.LOST}
    if not found and not advice:
        return
    yield tag("h2", "What went wrong" if found else "Next step", id="troubles")
    yield from found
    if advice:
        yield tag("p", "Once fixed, resume from the latest checkpoint:" if found else "From the latest checkpoint:")
        yield code_block(f"wan-train resume {shlex.quote(formatting.safe(view.run.run_id))}")


def _troubles(view: RunView) -> Iterator[Html]:
    low = facts.low_disk(view)
    if low is not None:
        yield _diagnosis("the disk", low)
    for step, job in facts.steps_of(view):
        if job.state is JobState.FAILED:
            yield _failure(view, step.id, job)
        elif job.state is JobState.SKIPPED:
            yield tag(
                "p", tag("strong", step.id), f" was not run: {formatting.safe(job.reason or 'a step it needs failed')}"
            )


def _failure(view: RunView, step: str, job: Job) -> Html:
    found = job.diagnosis
    if found is None:
        return tag("p", tag("strong", step), " failed; see its log.")
    tail = view.tails.get(step)
    log = facts.log_of(view, job)
    return _diagnosis(
        step,
        found,
        tag("details", tag("summary", "Last lines of its log"), code_block("\n".join(tail))) if tail else None,
        tag("p", "Log: ", path_text(log), class_="soft path") if log is not None else None,
    )


def _diagnosis(where: str, found: Diagnosis, *more: Child) -> Html:
    return tag(
        "div",
        tag("p", tag("strong", f"{where}: "), formatting.safe(found.meaning)),
        tag("p", tag("b", "What helps: "), formatting.safe(found.advice)) if found.advice else None,
        tag("p", tag("b", "It said: "), tag("code", formatting.joined_lines(found.evidence)))
        if found.evidence
        else None,
        *more,
        class_="said stops",
    )


def result_files(story: Story, experts: tuple[ExpertFigures, ...]) -> Iterator[Html]:
    """The LoRAs with their checksums, and which loader each one belongs to."""
    yield tag("h2", "The files", id="files")
    rows: list[tuple[Child, ...]] = []
    for each in experts:
        result = each.job.result
        if result is None:
            continue
        rows.append(
            (
                f"{each.expert.value}-noise",
                path_text(Path(result.path).name),
                formatting.file_size(result.bytes),
                f"{result.epochs or each.epochs_done:,}",
                tag("code", result.sha256, class_="hash"),
            )
        )
    if rows:
        yield table(("Expert", "File", "Size", "Epochs", "SHA-256"), rows, text_columns=(1, 4))
    else:
        yield tag("p", "No LoRA is finished." if story.is_final else "No LoRA is finished yet.")
    for each in experts:
        kept = each.job.kept
        if not kept:
            continue
        names = [tag("li", path_text(Path(path).name)) for path in kept[:_MOST_KEPT]]
        left = len(kept) - _MOST_KEPT
        yield tag(
            "details",
            tag("summary", f"{formatting.count(len(kept), 'checkpoint')} of the {each.expert.value}-noise expert kept"),
            tag("ul", names, tag("li", f"and {left:,} more") if left > 0 else None),
        )
    yield tag("p", "In ", path_text(story.view.run.path), class_="soft path")
    if rows and not facts.is_rehearsal(story.view):
        yield from _comfy(experts)


def _comfy(experts: tuple[ExpertFigures, ...]) -> Iterator[Html]:
    yield tag("h3", "In ComfyUI")
    done = [each for each in experts if each.job.result is not None]
    steps: list[Child] = [
        tag("li", "Put the file" if len(done) == 1 else "Put both files", " into ", tag("code", "models/loras"), ".")
    ]
    for each in done:
        name = Path(each.job.result.path).name if each.job.result is not None else ""
        noise = f"{each.expert.value}-noise"
        steps.append(
            tag("li", "Load ", path_text(name), " with a LoRA loader between the ", tag("strong", f"{noise} model"),
                f" and the sampler of the {noise} steps.")
        )  # fmt: skip
    yield tag("ol", steps)
    if len(done) > 1:
        yield tag(
            "p",
            "The two are not interchangeable: each was trained on the timesteps of its own model.",
            class_="soft",
        )


def said_of(job: Job, attempt: Attempt) -> tuple[str, bool]:
    """How an attempt ended, in words, and whether it failed."""
    is_last = job.attempt is attempt
    if is_last and job.state is JobState.SUCCEEDED:
        return "done", False
    if attempt.exit is None:
        return ("running" if is_last and job.state.has_process else "no end was seen"), False
    found = attempt.diagnosis or attempt.stop_diagnosis
    if found is not None:
        return formatting.safe(found.meaning), True
    return ("stopped" if is_last and job.state is JobState.STOPPED else "ended"), False
