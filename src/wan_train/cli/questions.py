"""The questions, asked only at a terminal: their texts, line input, choice by key, and the last answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from wan_train.base import codec
from wan_train.base.errors import BadInputError, ExitCode, WanTrainError
from wan_train.base.files import write_whole
from wan_train.base.settings import split_targets, user_data_dir
from wan_train.base.units import dollars, parse_dollars
from wan_train.cli.upload import targets_of
from wan_train.dataset.resolve import resolve_dataset
from wan_train.launch.gpu_names import parse_gpus
from wan_train.launch.model import GpuWant
from wan_train.recipe.until import ALL
from wan_train.run.titles import problem_with_author, problem_with_title
from wan_train.views.formatting import wrap

if TYPE_CHECKING:
    from prompt_toolkit import Application
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_Answer = TypeVar("_Answer")

_MOST_COMPLETIONS = 6
_STYLES = {
    "mark": "fg:ansigreen",
    "question": "bold",
    "default": "fg:ansibrightblack",
    "answer": "fg:ansicyan",
    "problem": "fg:ansired",
    "choice": "fg:ansibrightblack",
    "chosen": "reverse",
}


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
    EARLY_END = "e"
    NO = "n"
    DETAILS = "d"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastAnswers:
    """A person's answers before the last run; `until` comes from the last question."""

    title: str
    author: str
    dataset: str
    until: str = ALL
    uploads: tuple[str, ...] = ()


def ask_title(default: str) -> str:
    return _line(_Field(question="Title of the LoRA", default=default, problem=problem_with_title))


def ask_targets(last: Sequence[str]) -> tuple[str, ...]:
    """Return the upload targets; empty for `none`."""
    answer = _line(_Field(question="Upload to (or: none)", default=" ".join(last), problem=_targets_problem))
    return targets_of(split_targets(answer))


def ask_author(default: str) -> str:
    return _line(_Field(question="Author", default=default, problem=problem_with_author))


def ask_dataset(default: str) -> str:
    """Ask for a path, with completion, until it leads to a dataset."""
    question = "Dataset (folder of pictures, or dataset.toml)"
    return _line(_Field(question=question, default=default, problem=_dataset_problem, is_path=True))


def ask_gpus(kinds: Sequence[GpuWant]) -> tuple[GpuWant, ...]:
    """Ask for kinds of GPUs, by name or by number in `kinds`; empty for any."""
    question = "GPU (a number above, kinds such as RTX5090:2, or any)"
    answer = _line(_Field(question=question, default="any", problem=partial(_gpus_problem, kinds)))
    return _gpus_of(kinds, answer)


def ask_spot(price: float, spot: float) -> bool:
    """Whether to rent an interruptible box; both prices are the lowest dollars an hour."""
    keys = {"d": f"on demand, from {dollars(price)} an hour", "i": f"interruptible, from {dollars(spot)} an hour"}
    below = [f"  {key}  {text}" for key, text in keys.items()]
    below[1] += "; a higher bid takes it away"
    return _answer(lambda: _choose("On demand or interruptible? (D/i)", keys, "d", below=below)) == "i"


def ask_price(least: float, default: float) -> float:
    """Return the maximum dollars an hour for a box; `least` is the lowest offer."""
    question = "Most dollars an hour for a box, its disk included"
    answer = _line(_Field(question=question, default=f"{default:.2f}", problem=partial(_price_problem, least)))
    return parse_dollars(answer)


def ask_start(ends: tuple[str, str] | None = None, *, early: bool = False) -> Start:
    """Ask whether to start. `ends` describes the whole and a shorter training; `early` makes Enter the shorter."""
    keys: dict[str, str]
    if ends is None:
        keys = {Start.YES: "yes", Start.NO: "no", Start.DETAILS: "details"}
        return Start(_answer(lambda: _choose("Start? (Y/n, d for details)", keys, Start.YES)))
    whole, shorter = ends
    keys = {Start.YES: whole, Start.EARLY_END: shorter, Start.NO: "no", Start.DETAILS: "details"}
    lines = [f"  {key}  {keys[key]}" for key in (Start.YES, Start.EARLY_END)]
    question = f"Start? ({'y/E' if early else 'Y/e'}/n, d for details)"
    default = Start.EARLY_END if early else Start.YES
    return Start(_answer(lambda: _choose(question, keys, default, below=lines)))


def confirm(question: str, *, default: bool = True) -> bool:
    import questionary

    return bool(_answer(questionary.confirm(question, default=default).unsafe_ask))


def ask_on_interrupt() -> OnInterrupt:
    import questionary

    answer = questionary.select(
        "The training is still running. What now?", choices=[choice.value for choice in OnInterrupt]
    ).unsafe_ask()
    return OnInterrupt(answer)


def _line(question: _Field) -> str:
    check = question.problem
    question.problem = lambda answer: check(answer.strip())
    return _answer(question.ask).strip()


def _answer(ask: Callable[[], _Answer]) -> _Answer:
    """Return the answer; raises NoAnswerError for Ctrl-C and Ctrl-D."""
    try:
        return ask()
    except (KeyboardInterrupt, EOFError):
        raise NoAnswerError("interrupted; nothing was started") from None


def _targets_problem(answer: str) -> str | None:
    try:
        targets_of(split_targets(answer))
    except BadInputError as error:
        return error.message if error.hint is None else f"{error.message}\nhint: {error.hint}"
    return None


def _dataset_problem(answer: str) -> str | None:
    try:
        resolve_dataset(answer)
    except BadInputError as error:
        return error.message if error.hint is None else f"{error.message}\nhint: {error.hint}"
    return None


def _gpus_of(kinds: Sequence[GpuWant], answer: str) -> tuple[GpuWant, ...]:
    """Parse an answer to `ask_gpus`; raises ValueError with a readable message."""
    if answer.lower() == "any":
        return ()
    if answer.isascii() and answer.isdecimal():
        if not 1 <= int(answer) <= len(kinds):
            raise ValueError(f"must be a number from 1 to {len(kinds)}, kinds of GPUs, or any")
        return (kinds[int(answer) - 1],)
    return parse_gpus(answer)


def _gpus_problem(kinds: Sequence[GpuWant], answer: str) -> str | None:
    try:
        _gpus_of(kinds, answer)
    except ValueError as error:
        return str(error)
    return None


def _price_problem(least: float, answer: str) -> str | None:
    from wan_train.launch.bounds import rounded_up

    try:
        price = parse_dollars(answer)
    except ValueError as error:
        return str(error)
    return f"the lowest offer needs {dollars(rounded_up(least))}" if price < least else None


def recall() -> LastAnswers | None:
    """Return the answers of the last run. They are only a convenience: None if missing or unreadable."""
    return codec.read(user_data_dir() / "answers.json", LastAnswers)


def remember(answers: LastAnswers) -> None:
    path = user_data_dir() / "answers.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, codec.to_json(answers))
    except OSError:
        return  # an unwritable home directory must not stop a training


@dataclass(slots=True, kw_only=True)
class _Field:
    """A question with one line of input.

    An empty line shows the default as a placeholder. Enter accepts the line. Tab completes it, or inserts the default
    for editing. The `problem` of an answer is shown below until the line changes.
    """

    question: str
    default: str
    problem: Callable[[str], str | None]
    is_path: bool = False
    _said: str = ""
    _line: Buffer = field(init=False)

    def ask(self) -> str:
        """Return the answer; raises KeyboardInterrupt for Ctrl-C and EOFError for Ctrl-D."""
        from prompt_toolkit.buffer import Buffer

        self._line = Buffer(multiline=False, completer=_paths() if self.is_path else None)
        self._line.on_text_changed += self._forget
        answer: str = self._app().run()
        return answer

    def _forget(self, _line: Buffer) -> None:
        self._said = ""

    def _app(self) -> Application[str]:
        from prompt_toolkit import Application
        from prompt_toolkit.filters import is_done
        from prompt_toolkit.layout import (
            BufferControl,
            ConditionalContainer,
            FormattedTextControl,
            HSplit,
            Layout,
            Window,
        )
        from prompt_toolkit.layout.processors import AfterInput, BeforeInput
        from prompt_toolkit.styles import Style

        typed = BufferControl(
            self._line, input_processors=[BeforeInput(self._head), AfterInput(self._placeholder, "class:default")]
        )
        below = Window(FormattedTextControl(self._below), dont_extend_height=True)
        return Application(
            layout=Layout(
                HSplit(
                    [
                        Window(typed, wrap_lines=True, dont_extend_height=True, style="class:answer"),
                        ConditionalContainer(below, filter=~is_done),
                    ]
                )
            ),
            key_bindings=self._keys(),
            style=Style.from_dict(_STYLES),
        )

    def _head(self) -> StyleAndTextTuples:
        return [("class:mark", "? "), ("class:question", f"{self.question} ")]

    def _placeholder(self) -> str:
        return "" if self._line.text else self.default

    def _below(self) -> StyleAndTextTuples:
        from prompt_toolkit.application import get_app

        width = get_app().output.get_size().columns - 1
        if self._said:
            pieces = [f"  {piece}" for text in self._said.split("\n") for piece in wrap(text, width - 2)]
            return [("class:problem", "\n".join(pieces))]
        state = self._line.complete_state
        if state is None or len(state.completions) < 2:  # a single one needs no list
            return []
        first = max(0, (state.complete_index or 0) - _MOST_COMPLETIONS + 1)
        shown_ones = state.completions[first : first + _MOST_COMPLETIONS]
        lines: StyleAndTextTuples = []
        for number, completion in enumerate(shown_ones, start=first):
            style = "class:chosen" if number == state.complete_index else "class:choice"
            lines += [("", "  "), (style, completion.display_text), ("", "\n")]
        more = len(state.completions) - first - len(shown_ones)
        return [*lines, ("class:choice", f"  and {more} more")] if more else lines[:-1]

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        line = self._line
        is_empty = Condition(lambda: not line.text)

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            answer = line.text or self.default
            problem = self.problem(answer)
            if problem is None:
                line.text = answer  # the accepted answer stays on the screen
                event.app.exit(result=answer)
            else:
                line.complete_state = None
                self._said = problem

        @keys.add("tab")
        def _(_event: KeyPressEvent) -> None:
            if not line.text:
                line.insert_text(self.default)
            elif line.complete_state is not None:
                line.complete_next()
            else:
                line.start_completion(insert_common_part=True)

        @keys.add("s-tab")
        def _(_event: KeyPressEvent) -> None:
            line.complete_previous()

        @keys.add("right", filter=is_empty)
        @keys.add("end", filter=is_empty)
        def _(_event: KeyPressEvent) -> None:
            line.insert_text(self.default)

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            event.app.exit(exception=KeyboardInterrupt())

        @keys.add("c-d", filter=is_empty)
        def _(event: KeyPressEvent) -> None:
            event.app.exit(exception=EOFError())

        return keys


def _choose(question: str, keys: Mapping[str, str], default: str, *, below: Sequence[str] = ()) -> str:
    """Return the pressed one of `keys` and show its meaning; Enter is the default. Raises as `_Field.ask` does.

    The lines `below` are shown until then.
    """
    from prompt_toolkit import Application
    from prompt_toolkit.formatted_text import to_formatted_text
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.layout import FormattedTextControl, Layout, Window
    from prompt_toolkit.styles import Style

    pressed = ""

    def text() -> StyleAndTextTuples:
        head: StyleAndTextTuples = [("class:mark", "? "), ("class:question", f"{question} ")]
        if pressed:
            return to_formatted_text([*head, ("class:answer", keys[pressed])])
        return to_formatted_text([*head, *(("", f"\n{each}") for each in below)])

    def press(key: str) -> Callable[[KeyPressEvent], None]:
        def pressed_it(event: KeyPressEvent) -> None:
            nonlocal pressed
            pressed = key
            event.app.exit(result=key)

        return pressed_it

    def leave(error: type[BaseException]) -> Callable[[KeyPressEvent], None]:
        return lambda event: event.app.exit(exception=error())

    bindings = KeyBindings()
    bindings.add("enter")(press(default))
    for key in keys:
        bindings.add(key)(press(key))
        bindings.add(key.upper())(press(key))
    bindings.add("c-c")(leave(KeyboardInterrupt))
    bindings.add("c-d")(leave(EOFError))
    answered: str = Application(
        layout=Layout(Window(FormattedTextControl(text), wrap_lines=True, dont_extend_height=True)),
        key_bindings=bindings,
        style=Style.from_dict(_STYLES),
    ).run()
    return answered


def _paths() -> Completer:
    from questionary.prompts.path import GreatUXPathCompleter

    return GreatUXPathCompleter(expanduser=True)
