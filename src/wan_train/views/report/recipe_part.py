"""With what a run was made: settings and who decided them, exact commands, versions; and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from wan_train.base.text import redact
from wan_train.run.events import SupervisorStarted
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.markup.html import Child, Html, tag
from wan_train.views.markup.parts import code_block, path_text, table
from wan_train.views.plan_details import learning_rates
from wan_train.views.report import metrics
from wan_train.views.report.report_data import Story
from wan_train.views.report.rerun import again
from wan_train.views.report.settings_list import SettingSource, settings_of

_SOURCES = {
    SettingSource.DEFAULT: "default",
    SettingSource.RECIPE: "recipe",
    SettingSource.FLAG: "flag",
    SettingSource.MACHINE: "fitted to the machine",
}


def settings(story: Story) -> Iterator[Html]:
    plan = story.view.plan
    yield tag("h2", "Settings", id="settings")
    rows: list[tuple[Child, ...]] = [
        (
            row.name,
            formatting.safe(row.value),
            tag("span", _SOURCES[row.source], class_=f"source {row.source.value}"),
            formatting.safe(row.reason),
        )
        for row in settings_of(plan)
    ]
    yield table(("Setting", "Value", "Decided by", "Why"), rows, text_columns=(1, 2, 3))
    for text in learning_rates(plan):
        yield tag("p", "Effective learning rate: ", text, class_="soft")
    changed = [
        f"{step.id}, attempt {attempt.number}: {name}={value}"
        for step, job in facts.steps_of(story.view)
        for attempt in job.attempts
        for name, value in attempt.changes.items()
    ]
    if changed:
        yield tag("p", "Changed on the way:")
        yield tag("ul", [tag("li", formatting.safe(text)) for text in changed])


def commands(story: Story) -> Iterator[Html]:
    yield tag("h2", "Commands", id="commands")
    if not story.commands:
        yield tag("p", "None was run.")
        return
    yield tag("p", "As they were run, one for each attempt. Secrets are left out.", class_="soft")
    for (step, attempt), text in story.commands.items():
        name = f"{step}, attempt {attempt}" if attempt > 1 else step
        lines = [line for line in text.strip().split("\n") if not line.startswith("#!")]
        yield tag("details", tag("summary", name), code_block("\n".join(lines)))


def versions(story: Story) -> Iterator[Html]:
    yield tag("h2", "Versions", id="versions")
    rows = [(name, value) for name, value in _versions(story)]
    yield table(("What", "Version"), rows, text_columns=(1,))
    plan = story.view.plan
    named = {f"DiT {spec.expert.value}-noise": plan.models.dit[spec.expert.value] for spec in plan.recipe.experts}
    named |= {"VAE": plan.models.vae, "T5": plan.models.t5}
    if not plan.trainer.is_real:
        return
    models: list[tuple[Child, ...]] = [
        (
            name,
            path_text(path.name),
            f"{story.model_bytes[path]:,}" if path in story.model_bytes else "not there any more",
        )
        for name, path in named.items()
    ]
    yield table(("Model", "File", "Bytes"), models, text_columns=(1,))


def version_facts(story: Story) -> dict[str, object]:
    """Versions as plain values: of wan-train while it ran (in order), the trainer, its packages, the driver, GPUs."""
    trainer = story.view.plan.trainer
    seen = metrics.gpus(story.gpus)
    return {
        "wan_train": list(
            dict.fromkeys(e.version for e in story.events if isinstance(e, SupervisorStarted) and e.version is not None)
        ),
        "trainer": trainer.version,
        "commit": trainer.commit,
        "python": str(trainer.python),
        "packages": dict(story.packages),
        "drivers": list(dict.fromkeys(gpu.driver for gpu in seen if gpu.driver is not None)),
        "gpus": list(dict.fromkeys(gpu.name for gpu in seen)),
    }


def _versions(story: Story) -> Iterator[tuple[str, str]]:
    found = version_facts(story)
    plan = story.view.plan
    yield "wan-train", _together(found["wan_train"])
    if story.version not in _together(found["wan_train"]):
        yield "wan-train that wrote this page", story.version
    if not plan.trainer.is_real:
        yield "trainer", plan.trainer.title
    else:
        yield "musubi-tuner", f"{plan.trainer.version}, commit {plan.trainer.commit or 'unknown'}"
    yield "trainer's Python", formatting.safe(plan.trainer.python)
    for name, version in story.packages.items():
        yield formatting.safe(name), formatting.safe(version)
    if found["drivers"]:
        yield "NVIDIA driver", _together(found["drivers"])
    if found["gpus"]:
        yield "GPU", _together(found["gpus"])


def _together(values: object) -> str:
    return ", ".join(formatting.safe(value) for value in values) or "unknown" if isinstance(values, list) else "unknown"


def once_more(story: Story) -> Iterator[Html]:
    view = story.view
    yield tag("h2", "Train it again", id="again")
    yield tag("p", "The same dataset, settings and experts:")
    yield code_block(again_line(story))
    yield tag(
        "p",
        "recipe.toml and dataset.toml lie in the run's directory: copy both if that directory goes. The seed is the "
        "same, so the course is the same up to what GPUs round differently.",
        class_="soft",
    )
    longer = "--until all" if facts.ended_early(view) else f"--epochs {2 * view.state.total_epochs(view.plan)}"
    if story.is_final and facts.status_of(view) is facts.RunStatus.FINISHED:
        yield tag("p", "To train this one longer instead:")
        yield code_block(f"wan-train resume {shlex.quote(formatting.safe(view.run.run_id))} {longer}")


def again_line(story: Story) -> str:
    """One line to paste into a shell; secrets hidden."""
    view = story.view
    return redact(shlex.join(again(view.plan, view.run, view.state)))
