"""The questions, asked only at a terminal."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from wan_train.dataset.locate import locate
from wan_train.errors import BadInputError, ExitCode, WanTrainError
from wan_train.run.titles import problem_with_author, problem_with_title

if TYPE_CHECKING:
    from questionary import Question


class NoAnswerError(WanTrainError):
    """Ctrl-C or Ctrl-D at a question."""

    exit_code = ExitCode.INTERRUPTED


class OnInterrupt(StrEnum):
    """What to do with a running training after Ctrl-C in the view."""

    DETACH = "Leave it running and close this view"
    STOP_AFTER_STATE = "Stop after the next saved state (nothing is lost)"
    STOP_NOW = "Stop now (work since the last saved state is lost)"
    CONTINUE = "Keep watching"


def ask_title(default: str) -> str:
    return _text("Title of the LoRA", default, problem_with_title)


def ask_author(default: str) -> str:
    return _text("Author", default, problem_with_author)


def ask_dataset(default: str) -> str:
    """A path with completion; asked again until it leads to a dataset."""
    import questionary  # noqa: PLC0415  90 ms that only a dialogue needs

    question = questionary.path(
        "Dataset (folder of pictures, or dataset.toml)", default=default, validate=_dataset_check
    )
    return str(_answer(question)).strip()


def confirm(question: str, *, default: bool = True) -> bool:
    import questionary  # noqa: PLC0415  see above

    return bool(_answer(questionary.confirm(question, default=default)))


def ask_on_interrupt() -> OnInterrupt:
    import questionary  # noqa: PLC0415  see above

    answer = questionary.select(
        "The training is still running. What now?", choices=[choice.value for choice in OnInterrupt]
    ).unsafe_ask()
    return OnInterrupt(answer)


def _text(question: str, default: str, problem: Callable[[str], str | None]) -> str:
    import questionary  # noqa: PLC0415  see above

    def check(answer: str) -> bool | str:
        return problem(answer.strip()) or True

    return str(_answer(questionary.text(question, default=default, validate=check))).strip()


def _answer(question: Question) -> Any:  # noqa: ANN401  each kind of question has its own kind of answer
    """The answer; raises NoAnswerError."""
    try:
        return question.unsafe_ask()
    except (KeyboardInterrupt, EOFError):
        raise NoAnswerError("interrupted; nothing was started") from None


def _dataset_check(answer: str) -> bool | str:
    try:
        locate(answer)
    except BadInputError as error:
        return error.message if error.hint is None else f"{error.message}. {error.hint}"
    return True
