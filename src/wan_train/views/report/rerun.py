"""The command that trains the same once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wan_train.base.settings import Settings
from wan_train.recipe.until import ALL
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan
from wan_train.run.state import RunState


def again(plan: Plan, run: RunDirectory, state: RunState) -> tuple[str, ...]:
    """The words of `wan-train …` that plan the same training: the run's own recipe and its own dataset.toml.

    `state` says how far it was extended. Nothing is taken from the settings of whoever says it but the places of the
    trainer and of new runs, which are named where they are unusual.
    """
    return ("wan-train", *_words(plan, run, state))


def _words(plan: Plan, run: RunDirectory, state: RunState) -> Iterator[str]:
    epochs = state.epochs
    if not plan.trainer.is_real:
        yield from _pair("--engine", plan.trainer.kind.value)
    yield from _pair("--recipe", str(run.recipe))
    yield from _pair("--dataset", str(run.dataset_config))
    yield from _pair("--title", plan.answers.title)
    yield from _pair("--author", plan.answers.author)
    if epochs is not None:
        yield from _pair("--epochs", str(epochs))
    trained = {step: state.total_epochs(plan, step) for step in plan.steps if step.expert is not None}
    if any(plan.ends) and all(end == state.schedule_epochs(plan, step) for step, end in trained.items()):
        yield from _pair("--until", ALL)
    elif state.ends:
        for step, end in trained.items():
            yield from _pair(f"--{step.expert}", f"until={end}")
    longest = epochs or max(spec.training.max_train_epochs for spec in plan.recipe.experts)
    if plan.keep_every_epochs is None and plan.recipe.experts[0].training.save_every_n_epochs < longest:
        # In a recipe of one's own this means: keep LoRAs. In the shipped one, that was trained, it did not.
        yield from _pair("--save-every", str(longest))
    if plan.trainer.is_real:
        root, usual = plan.trainer.root, Settings().trainer_dir
        if root != usual:
            yield from _pair("--musubi-dir", str(root))
        if plan.trainer.python not in {root / name / "bin" / "python" for name in ("venv", ".venv")}:
            yield from _pair("--musubi-python", str(plan.trainer.python))
    if run.path.parent != Path(Settings().workspace) / "wan-train-runs":
        yield from _pair("--runs-dir", str(run.path.parent))


def _pair(flag: str, value: str) -> Iterator[str]:
    """Two words, or one where the value looks like a flag."""
    if value.startswith("-"):
        yield f"{flag}={value}"
    else:
        yield flag
        yield value
