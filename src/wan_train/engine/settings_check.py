"""Check settings before anything runs: files, arguments, and what the trainer would build from them."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wan_train.base import process
from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line
from wan_train.engine.capabilities import Script
from wan_train.engine.commands import DEVICE_VARIABLE, option_words
from wan_train.engine.extra_arguments import FILES
from wan_train.engine.network_weights import Judgement, judge_weights
from wan_train.engine.settings_check_failures import Findings, explain, quoted
from wan_train.engine.tensors import BrokenFileError, read_header
from wan_train.engine.trainer import Trainer
from wan_train.recipe.load import shipped
from wan_train.recipe.model import ExpertSpec, Recipe, Training, settings_of
from wan_train.recipe.terms import Expert

_CHILD = Path(__file__).with_name("settings_check_child.py")
_ANSWER_SECONDS = 180.0
"""Importing torch and transformers takes up to a minute on a cold disk."""

_TRIED = (
    "optimizer_type", "optimizer_args", "learning_rate", "max_grad_norm", "network_module", "network_args",
    "network_dim", "network_alpha", "network_dropout", "lr_scheduler", "lr_scheduler_args", "lr_scheduler_type",
    "lr_scheduler_power", "lr_scheduler_min_lr_ratio", "lr_scheduler_num_cycles", "lr_scheduler_timescale",
    "lr_warmup_steps", "lr_decay_steps",
)  # fmt: skip
"""What network, optimizer and schedule are built from."""

_FREE = frozenset({"learning_rate", "network_dim", "network_alpha", "max_grad_norm"})
"""Numbers with a checked range: every value can be built, so they alone need no test."""

_LITERALS = ("optimizer_args", "lr_scheduler_args")
_PAIRS = (*_LITERALS, "network_args")

_HINT = "`wan-train recipe show` lists every setting and who set it."


def judge(
    recipe: Recipe,
    trainer: Trainer,
    steps: Mapping[Expert, int],
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Notes on each expert's settings. Raises BadInputError with all problems.

    `steps` is each expert's total number of steps. `say` announces work that takes seconds.
    """
    found = {spec.expert: _plain(spec, trainer) for spec in recipe.experts}
    to_try = [spec for spec in recipe.experts if not found[spec.expert].problems and _is_unusual(spec.training, recipe)]
    answers: Mapping[Expert, Mapping[str, Any]] = {}
    if trainer.is_real and to_try:
        say("Checking optimizer, network and schedule with the trainer's Python...")
        answer = ask(trainer, [(spec.training, steps[spec.expert]) for spec in to_try], environ)
        if isinstance(answer, str):
            for spec in to_try:
                found[spec.expert].notes.append(f"optimizer, network and schedule could not be checked: {answer}")
        else:
            answers = {spec.expert: each for spec, each in zip(to_try, answer["trainings"], strict=True)}
            for spec in to_try:
                failure = answers[spec.expert]["failure"]
                if failure is not None:
                    explain(failure, spec.training, trainer, answer, found[spec.expert])
    for spec in recipe.experts:
        if spec.training.network_weights is not None:
            shapes = _shapes(answers.get(spec.expert))
            _add(found[spec.expert], judge_weights(spec, recipe.task, shapes, is_real=trainer.is_real), spec.training)
    return _tell(recipe, found)


def _tell(recipe: Recipe, found: Mapping[Expert, Findings]) -> list[str]:
    """Return the notes or raise the error. A line that applies to both experts appears once."""
    lines: dict[str, list[Expert]] = {}
    for spec in recipe.experts:
        for setting, problem in found[spec.expert].problems:
            lines.setdefault(f"{problem}{_set_by(spec, setting, problem)}", []).append(spec.expert)
    if lines:
        hints = dict.fromkeys(hint for each in found.values() for hint in each.hints) or {_HINT: None}
        raise BadInputError(
            "these settings cannot be used:\n" + "\n".join(f"  {line}" for line in _labelled(recipe, lines)),
            hint="\n".join(hints),
        )
    notes: dict[str, list[Expert]] = {}
    for expert, each in found.items():
        for note in each.notes:
            notes.setdefault(note, []).append(expert)
    return list(_labelled(recipe, notes))


def _set_by(spec: ExpertSpec, setting: str, problem: str) -> str:
    """Who set the settings that a problem names. If that is only `setting`, its name is omitted."""
    named = [each for each in _TRIED if each == setting or re.search(rf"\b{each}\b", problem)] or [setting]
    said = {each: one_line(str(spec.sources[each])) for each in named if each in spec.sources}
    if not said:
        return ""
    if list(said) == [setting]:
        return f" (set by {said[setting]})"
    return f" ({'; '.join(f'{each} set by {source}' for each, source in said.items())})"


def _labelled(recipe: Recipe, lines: Mapping[str, list[Expert]]) -> Iterator[str]:
    for line, experts in lines.items():
        everywhere = len(experts) == len(recipe.experts)
        yield line if everywhere else f"{experts[0].value}-noise expert: {line}"


def _is_unusual(training: Training, recipe: Recipe) -> bool:
    """Whether any setting to test differs from the shipped recipe, whose settings are known to work."""
    usual = settings_of(shipped(recipe.task).experts[0].training)
    given = settings_of(training)
    return any(given.get(name) != usual.get(name) for name in _TRIED if name not in _FREE)


def _plain(spec: ExpertSpec, trainer: Trainer) -> Findings:
    """Findings that do not need the trainer's Python."""
    found = Findings()
    given = settings_of(spec.training)
    options = trainer.capabilities.options[Script.TRAIN]
    for name, value in given.items():
        option = options.get(f"--{name}")
        if option is None or not option.choices or value is None:
            continue
        said = value.lower() if name == "optimizer_type" and isinstance(value, str) else str(value)
        if said not in option.choices:
            choices = ", ".join(choice for choice in option.choices if choice)
            of = trainer.title if trainer.is_real else "the rehearsal"
            found.problems.append((name, f"{name} {quoted(value)} is not supported by {of}. Valid: {choices}"))
    for name in _PAIRS:
        found.problems += [(name, problem) for text in given.get(name) or () if (problem := _pair(name, text))]
    for name in FILES:
        found.problems += [(name, problem) for each in _each(given.get(name)) if (problem := _file(name, each))]
    return found


def _pair(name: str, text: object) -> str | None:
    """The problem with a `KEY=VALUE` as the trainer splits it, or None."""
    if not isinstance(text, str) or text.count("=") != 1 or not text.partition("=")[0].isidentifier():
        example = {"optimizer_args": "weight_decay=0.1", "lr_scheduler_args": "T_max=100", "network_args": "conv_dim=4"}
        return f"{name} {quoted(text)} must be written KEY=VALUE with one `=` and no spaces, such as {example[name]}"
    if name not in _LITERALS:
        return None
    value = text.partition("=")[2]
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return (
            f"{name} {quoted(text)}: {quoted(value)} is not a number, True, False, None, list or quoted text "
            "(a Python literal)"
        )
    return None


def _file(name: str, value: str) -> str | None:
    path = Path(value)
    if not path.is_file():
        return f"{name} {one_line(value)}: file not found"
    if name == "base_weights":
        try:
            read_header(path)
        except BrokenFileError as error:
            return f"{name} {one_line(error.message)}"
    return None


def _each(value: object) -> Iterable[str]:
    match value:
        case str():
            return (value,)
        case tuple():
            return tuple(str(each) for each in value)
        case _:
            return ()


def ask(
    trainer: Trainer, trainings: Sequence[tuple[Training, int]], environ: Mapping[str, str]
) -> Mapping[str, Any] | str:
    """What the trainer's Python built for each (training, steps) pair, or why it gave no answer."""
    package = (trainer.root / trainer.scripts[Script.TRAIN]).parent
    wanted = []
    for training, steps in trainings:
        given = settings_of(training)
        words = option_words({name: given[name] for name in _TRIED if name in given})
        wanted.append({"words": words, "steps": max(1, steps)})
    asked = json.dumps({"package": str(package), "trainings": wanted})
    try:
        return _answer(trainer.python, trainer.root, asked, tuple(sorted({**environ, **trainer.env}.items())))
    except _NoAnswerError as error:
        return str(error)


class _NoAnswerError(Exception):
    """The trainer's Python gave no answer. Raised, since only a returned value is cached: it may answer later."""


@functools.lru_cache(maxsize=4)  # a plan is rebuilt several times while the user reviews it
def _answer(python: Path, root: Path, asked: str, environ: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    env = {**dict(environ), DEVICE_VARIABLE: "", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
    done = process.run([python, _CHILD], seconds=_ANSWER_SECONDS, cwd=root, env=env, stdin=asked)
    try:
        answer = json.loads(done.output)
        if isinstance(answer, dict) and len(answer["trainings"]) == len(json.loads(asked)["trainings"]):
            return answer
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    raise _NoAnswerError(f"the trainer's Python gave no answer{f' ({done.trouble})' if done.trouble else ''}")


def _shapes(answer: Mapping[str, Any] | None) -> Mapping[str, tuple[int, ...]] | None:
    if answer is None or not answer["weights"]:
        return None
    return {str(name): tuple(shape) for name, shape in answer["weights"].items()}


def _add(found: Findings, judged: Judgement, training: Training) -> None:
    file = one_line(str(training.network_weights))
    found.problems += [("network_weights", f"network_weights {file} {problem}") for problem in judged.problems]
    found.hints += judged.hints
    found.notes += judged.notes
