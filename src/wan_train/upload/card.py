"""The model card of a run on the hub: base model, dataset, trigger words, settings and samples."""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from wan_train.base.text import visible
from wan_train.recipe.model import format_number, settings_of
from wan_train.recipe.terms import Task
from wan_train.run.plan import Plan
from wan_train.run.state import RunState
from wan_train.upload.content import Item, ItemKind

CARD = "README.md"
_BASE_MODELS: Mapping[Task, str] = {Task.T2V: "Wan-AI/Wan2.2-T2V-A14B", Task.I2V: "Wan-AI/Wan2.2-I2V-A14B"}
_PIPELINES: Mapping[Task, str] = {Task.T2V: "text-to-video", Task.I2V: "image-to-video"}
_SETTINGS = (
    ("network_dim", "Rank"),
    ("network_alpha", "Alpha"),
    ("learning_rate", "Learning rate"),
    ("lr_scheduler", "Scheduler"),
    ("optimizer_type", "Optimizer"),
    ("discrete_flow_shift", "Flow shift"),
    ("seed", "Seed"),
)
_MOST_TRIGGER_WORDS = 12
_MOST_SAMPLES = 6
_MOST_TEXT = 200
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~&$])")
_TEMPLATE = Path(__file__).with_name("card.md")


def model_card(plan: Plan, state: RunState, items: Sequence[Item], captions: Sequence[str]) -> bytes:
    """Return the card: the same for the same run and files, with all user text escaped."""
    from huggingface_hub import ModelCard, ModelCardData

    task, trigger = plan.recipe.task, trigger_words(captions)
    data = ModelCardData(
        base_model=_BASE_MODELS[task],
        pipeline_tag=_PIPELINES[task],
        tags=["lora", "wan2.2", _PIPELINES[task]],
    )
    if trigger:
        data["instance_prompt"] = trigger
    with warnings.catch_warnings(action="ignore"):  # about metadata that a card may lack
        card = ModelCard.from_template(
            data,
            template_path=str(_TEMPLATE),
            title=_text(plan.answers.title),
            author=_text(plan.answers.author),
            is_rehearsal=not plan.trainer.is_real,
            model=_BASE_MODELS[task],
            trainer=_text(f"musubi-tuner {plan.trainer.version}") if plan.trainer.is_real else "the embedded trainer",
            trigger=_text(trigger) if trigger else None,
            files=list(_files(plan, state)),
            items=plan.dataset.items,
            experts=[spec.expert.value for spec in plan.recipe.experts],
            settings=list(_settings(plan)),
            samples=list(_samples(items)),
        )
    return str(card).rstrip().encode() + b"\n"


def trigger_words(captions: Sequence[str]) -> str | None:
    """Return the words that begin every caption. None if there are none, or too few captions to judge."""
    texts = [caption.split() for caption in captions]
    if len(texts) < 2:  # a single caption would match itself
        return None
    shared = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*texts, strict=False))]
    joined = " ".join(shared[:_MOST_TRIGGER_WORDS]).rstrip(string.punctuation + string.whitespace)
    return visible(joined) or None


def _files(plan: Plan, state: RunState) -> Iterator[Mapping[str, str]]:
    for step in plan.steps:
        job = state.jobs.get(step.id)
        if step.expert is None or job is None or job.result is None:
            continue
        yield {
            "name": _text(Path(job.result.path).name),
            "expert": f"{step.expert.value}-noise",
            "epochs": str(job.result.epochs or plan.epochs_of(step.expert)),
            "loss": f"{job.loss:.4f}" if job.loss is not None else "",
        }


def _settings(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    trainings = [settings_of(spec.training) for spec in plan.recipe.experts]
    for key, label in _SETTINGS:
        yield label, [_text(_value(training[key])) for training in trainings]
    steps = [plan.steps_of(spec.expert) for spec in plan.recipe.experts]
    yield "Epochs", [str(plan.epochs_of(spec.expert)) for spec in plan.recipe.experts]
    yield "Steps", ["unknown" if each is None else str(each) for each in steps]


def _value(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)


def _samples(items: Sequence[Item]) -> Iterator[str]:
    """Yield the last samples as paths in the repository."""
    shown = [item.name for item in items if item.kind is ItemKind.SAMPLE and item.path.suffix == ".png"]
    for name in shown[-_MOST_SAMPLES:]:
        yield quote(name)


def _text(text: str) -> str:
    """Return user text escaped for Markdown."""
    plain = visible(text)
    return _MARKDOWN.sub(r"\\\1", plain if len(plain) <= _MOST_TEXT else plain[: _MOST_TEXT - 1] + "…")
