"""All problems of a dataset as one table: by kind, the worst first, each with its count, examples and mend."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.dataset.check import Check, Group
from wan_train.dataset.fix import MENDABLE
from wan_train.dataset.model import Problem, ProblemKind, Severity
from wan_train.views import formatting
from wan_train.views.lines import Line, Screenful, Span, line

if TYPE_CHECKING:
    from rich.console import RenderableType

_EXAMPLES = 3
_WIDEST = 120
_LONGEST_NAME = 60
_MEANING: Mapping[Severity, tuple[str, str]] = {
    Severity.STOPS: ("stops", "bold red"),
    Severity.LOSES: ("loses", "yellow"),
    Severity.HARMS: ("harms", "yellow"),
    Severity.NOTE: ("note", "dim"),
}
TITLES: Mapping[ProblemKind, str] = {
    ProblemKind.CONFIG_UNREADABLE: "the dataset.toml cannot be read",
    ProblemKind.CONFIG_SYNTAX: "the dataset.toml is not valid TOML",
    ProblemKind.UNKNOWN_KEY: "keys that the trainer does not know",
    ProblemKind.WRONG_TYPE: "values of the wrong type",
    ProblemKind.WRONG_VALUE: "values that do not work",
    ProblemKind.MISSING_KEY: "keys that are missing",
    ProblemKind.UNUSED_KEY: "keys that this model does not use",
    ProblemKind.CONFLICTING_KEYS: "keys that exclude each other",
    ProblemKind.NO_SUCH_DIRECTORY: "folders or files that are not there",
    ProblemKind.SHARED_CACHE: "one cache for two datasets",
    ProblemKind.CACHE_PATH: "a cache folder that cannot be used",
    ProblemKind.EMPTY_DATASET: "nothing to train",
    ProblemKind.NO_CAPTIONS: "no captions at all",
    ProblemKind.MISSING_CAPTION: "no caption",
    ProblemKind.EMPTY_CAPTION: "empty captions",
    ProblemKind.CAPTION_ENCODING: "captions that are not plain UTF-8 text",
    ProblemKind.CAPTION_LINE_ENDS: "captions with Windows line ends",
    ProblemKind.LONG_CAPTION: "captions longer than the text encoder reads",
    ProblemKind.ORPHAN_CAPTION: "captions without a picture",
    ProblemKind.UNREADABLE_MEDIA: "files that cannot be read",
    ProblemKind.TRUNCATED_MEDIA: "files that are cut off",
    ProblemKind.TOO_LARGE: "very large pictures",
    ProblemKind.TOO_SMALL: "small pictures",
    ProblemKind.NOT_A_FILE: "names without a file behind them",
    ProblemKind.IGNORED_FILE: "files that are not read",
    ProblemKind.ROTATED: "photos and clips that would be trained lying on their side",
    ProblemKind.TRANSPARENT: "transparent pictures",
    ProblemKind.COLOURS: "colours that the trainer gets wrong",
    ProblemKind.ANIMATED: "animations of which only the first frame is trained",
    ProblemKind.WRONG_ENDING: "files of another kind than their name says",
    ProblemKind.CROPPED: "pictures that lose much to the crop",
    ProblemKind.DUPLICATE: "the same file twice",
    ProblemKind.NEAR_DUPLICATE: "pictures that look the same",
    ProblemKind.SAME_STEM: "files that share a name",
    ProblemKind.LONG_NAME: "names that are too long",
    ProblemKind.BAD_RECORD: "mistakes in lines of a jsonl file",
    ProblemKind.TOO_FEW_FRAMES: "clips that are too short",
    ProblemKind.UNUSED_FRAMES: "clips that are trained in part",
    ProblemKind.FRAME_RATE: "clips of another speed than Wan's 16 frames a second",
    ProblemKind.FRAMES_UNKNOWN: "clips of unknown length",
    ProblemKind.MIXED_SHAPES: "clips of several shapes in one batch",
}


def problem_lines(check: Check) -> RenderableType:
    """The table, or one line saying that there is nothing to mend."""
    return Screenful(lambda width: _lines(check, min(width, _WIDEST)))


def _lines(check: Check, width: int) -> Iterator[Line]:
    yield line(Span(formatting.safe(check.config), "bold"), whole=True)
    yield line(Span(f"as {check.reading.name} reads it", "dim"))
    yield line()
    if not check.problems:
        yield line(Span("Nothing to mend.", "green"))
        yield from _left_out(check, width)
        yield line()
        return
    counts = [(len(group.problems), group) for group in check.groups]
    digits = max(len(f"{count:,}") for count, _ in counts)
    for count, group in counts:
        yield from _group(group, f"{count:>{digits},}", _base(check), width)
        yield line()
    if check.inventory is None:
        yield line("No picture was looked at: the dataset.toml comes first.")
    for piece in formatting.wrap(verdict(check), width):
        yield line(Span(piece, "bold red" if check.stops else "bold"))
    mendable = [TITLES[group.kind] for group in check.groups if group.kind in MENDABLE]
    if mendable:
        said = f"--fix mends what is safe of: {', '.join(dict.fromkeys(mendable))}."
        for piece in formatting.wrap(said, width):
            yield line(Span(piece, "green"))
    yield from _left_out(check, width)
    yield line()


def _left_out(check: Check, width: int) -> Iterator[Line]:
    for said in check.left_out:
        for piece in formatting.wrap(said, width):
            yield line(Span(piece, "dim"))


def _group(group: Group, count: str, base: Path, width: int) -> Iterator[Line]:
    word, style = _MEANING[group.severity]
    head = (Span(formatting.pad(word, 7), style), f"{count}  ")
    start = 7 + len(count) + 2
    room = width - start
    margin = " " * start
    for number, piece in enumerate(formatting.wrap(TITLES[group.kind], room)):
        yield line(*(head if number == 0 else (margin,)), Span(piece, "bold"))
    mends = list(dict.fromkeys(problem.mend for problem in group.problems))
    for text in _examples(group.problems, base, with_mend=len(mends) > 1):
        for number, piece in enumerate(formatting.wrap(text, room - 2)):
            yield line(margin, "  " if number else "", piece)
    if len(mends) == 1:
        for number, piece in enumerate(formatting.wrap(formatting.safe(_sentence(mends[0])), room - 2)):
            yield line(margin, Span("  " if number else "→ ", "green"), Span(piece, "green"))


def _examples(problems: Sequence[Problem], base: Path, *, with_mend: bool) -> Iterator[str]:
    shown = problems[:_EXAMPLES]
    left = len(problems) - len(shown)
    more = f"and {left:,} more" if left else ""
    if len({problem.what for problem in problems}) == 1 and not with_mend and len(problems) > 1:
        names = [_where(problem, base) for problem in shown]
        yield f"{', '.join(names)}{f' {more}' if more else ''}: {formatting.safe(problems[0].what)}"
        return
    for problem in shown:
        mend = f". {_sentence(problem.mend)}" if with_mend else ""
        where = _where(problem, base)
        yield f"{where}{': ' if where else ''}{formatting.safe(problem.what + mend)}"
    if more:
        yield more


def _where(problem: Problem, base: Path) -> str:
    parts = [problem.key] if problem.key else []
    if problem.path is not None:
        path = problem.path
        shown = path.relative_to(base) if path != base and path.is_relative_to(base) else path
        parts.append(problem.place(os.fspath(shown)))
    return formatting.cut_middle(formatting.safe(" in ".join(parts)), _LONGEST_NAME)


def _sentence(mend: str) -> str:
    return mend if mend.endswith("?") else f"{mend}."


def _base(check: Check) -> Path:
    """The folder against which paths are shown: that of the dataset, or of its dataset.toml where there are several."""
    if check.inventory is not None and len(check.inventory.subsets) == 1:
        directory = check.inventory.subsets[0].subset.directory
        if directory is not None:
            return directory
    return check.config.parent


def verdict(check: Check) -> str:
    """How many problems there are of each severity, as a sentence."""
    said = {
        Severity.STOPS: ("stops the training", "stop the training"),
        Severity.LOSES: ("loses material", "lose material"),
        Severity.HARMS: ("harms what is learned", "harm what is learned"),
        Severity.NOTE: ("is only worth knowing", "are only worth knowing"),
    }
    counts = Counter(problem.severity for problem in check.problems)
    parts = [f"{counts[each]:,} {said[each][counts[each] > 1]}" for each in Severity if counts[each]]
    return f"{', '.join(parts)}."
