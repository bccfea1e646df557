"""Caption files: their words, and what in them the trainer stumbles over or learns wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.dataset.media import open_regular
from wan_train.dataset.model import Problem, ProblemKind, Severity
from wan_train.dataset.tokens import TokenCounter

_LONGEST = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The stripped words of a caption (empty where it cannot be read) and its problems."""

    words: str
    problems: tuple[Problem, ...] = ()


def read_caption(path: Path, tokens: TokenCounter) -> Caption:
    """Read a caption as the trainer does: whole, as UTF-8, every kind of line end as one, stripped.

    Never raises for what is in the file.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        what = "is a folder" if isinstance(error, IsADirectoryError) else f"cannot be read: {error.strerror}"
        return Caption(words="", problems=(_encoding(Severity.STOPS, path, what, "Replace it by a text file"),))
    if len(data) > _LONGEST:
        what = "is larger than 1 MiB"
        return Caption(words="", problems=(_encoding(Severity.HARMS, path, what, "Replace it by a caption"),))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "is saved as UTF-16, not UTF-8" if utf16 else "is not UTF-8"
        return Caption(words="", problems=(_encoding(Severity.STOPS, path, what, "Save it as UTF-8"),))
    return _judged(path, text, tokens)


def of_record(path: Path, row: int, text: str, tokens: TokenCounter) -> Caption:
    """The caption of one line of a jsonl file, judged like one in a file of its own."""
    if len(text) > _LONGEST:
        long = _encoding(Severity.HARMS, path, "has a caption of more than a million characters", "Shorten it")
        return Caption(words="", problems=(replace(long, row=row),))
    found = _judged(path, text, tokens)
    # Line ends inside of JSON are no matter of how a file is saved.
    problems = [each for each in found.problems if each.kind is not ProblemKind.CAPTION_LINE_ENDS]
    return replace(found, problems=tuple(replace(each, row=row) for each in problems))


def _judged(path: Path, text: str, tokens: TokenCounter) -> Caption:
    words = text.replace("\r\n", "\n").replace("\r", "\n").strip().strip("\ufeff").strip()
    return Caption(words=words, problems=tuple(_flaws(path, text, words, tokens)))


def _flaws(path: Path, text: str, words: str, tokens: TokenCounter) -> Iterator[Problem]:
    if text.startswith("\ufeff"):
        what = "starts with a byte order mark, which becomes part of the caption"
        yield _encoding(Severity.HARMS, path, what, "Save it as UTF-8 without BOM")
    if "\0" in text:
        yield _encoding(Severity.HARMS, path, "contains NUL characters", "Save it as plain UTF-8 text")
    if "\r" in text:
        yield Problem(
            kind=ProblemKind.CAPTION_LINE_ENDS,
            severity=Severity.NOTE,
            path=path,
            what="has Windows line ends; the trainer reads them like any others",
            mend="Nothing needs to be done",
        )
    if (long := tokens.too_long(words)) is not None:
        yield Problem(
            kind=ProblemKind.LONG_CAPTION, severity=Severity.HARMS, path=path, what=long, mend="Shorten the caption"
        )
    if not words:
        yield Problem(
            kind=ProblemKind.EMPTY_CAPTION,
            severity=Severity.HARMS,
            path=path,
            what="is an empty caption: the picture would be trained without a caption",
            mend="Describe the picture in it",
        )


def _encoding(severity: Severity, path: Path, what: str, mend: str) -> Problem:
    return Problem(kind=ProblemKind.CAPTION_ENCODING, severity=severity, path=path, what=what, mend=mend)
