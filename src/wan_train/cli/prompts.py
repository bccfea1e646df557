"""The questions, asked only at a terminal."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from wan_train.base.errors import BadInputError, ExitCode, WanTrainError
from wan_train.cli.field import Field, choose
from wan_train.dataset.resolve import resolve_dataset
from wan_train.run.titles import problem_with_author, problem_with_title

_Answer = TypeVar("_Answer")


class NoAnswerError(WanTrainError):
    """Ctrl-C or Ctrl-D at a question."""

    exit_code = ExitCode.INTERRUPTED


class OnInterrupt(StrEnum):
    """What to do with a running training after Ctrl-C in the view."""

    DETACH = "Leave it running and close this view"
    STOP_AFTER_STATE = "Stop after the next checkpoint (nothing is lost)"
    STOP_NOW = "Stop now (work since the last checkpoint is lost)"
    CONTINUE = "Keep watching"


class Start(StrEnum):
    """Answers to the last question before a run, by their keys."""

    YES = "y"
    NO = "n"
    DETAILS = "d"


def ask_title(default: str) -> str:
    return _line(Field(question="Title of the LoRA", default=default, problem=problem_with_title))


def ask_author(default: str) -> str:
    return _line(Field(question="Author", default=default, problem=problem_with_author))


def ask_dataset(default: str) -> str:
    """A path with completion; asked again until it leads to a dataset."""
    question = "Dataset (folder of pictures, or dataset.toml)"
    return _line(Field(question=question, default=default, problem=_dataset_problem, is_path=True))


def ask_start() -> Start:
    return Start(_answer(lambda: choose("Start? (Y/n, d for details)", {"y": "yes", "n": "no", "d": "details"}, "y")))


def confirm(question: str, *, default: bool = True) -> bool:
    import questionary

    return bool(_answer(questionary.confirm(question, default=default).unsafe_ask))


def ask_on_interrupt() -> OnInterrupt:
    import questionary

    answer = questionary.select(
        "The training is still running. What now?", choices=[choice.value for choice in OnInterrupt]
    ).unsafe_ask()
    return OnInterrupt(answer)


def _line(question: Field) -> str:
    check = question.problem
    question.problem = lambda answer: check(answer.strip())
    return _answer(question.ask).strip()


def _answer(ask: Callable[[], _Answer]) -> _Answer:
    """The answer; raises NoAnswerError."""
    try:
        return ask()
    except (KeyboardInterrupt, EOFError):
        raise NoAnswerError("interrupted; nothing was started") from None


def _dataset_problem(answer: str) -> str | None:
    try:
        resolve_dataset(answer)
    except BadInputError as error:
        return error.message if error.hint is None else f"{error.message}\nhint: {error.hint}"
    return None
