"""Caption files: their text as the trainer reads it, its problems, and its conversion to plain UTF-8."""

from __future__ import annotations

import html
import importlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wan_train.base.text import visible
from wan_train.base.units import MIB
from wan_train.dataset.model import CannotFixError, Problem, ProblemKind, Severity, harms, note
from wan_train.dataset.pictures import open_regular

MOST_TOKENS = 512
"""Tokens that the text encoder reads, including its end mark. It drops the rest silently."""

_ASCII_PER_TOKEN = 4.0
_OTHERS_PER_TOKEN = 1.5
_SHOWN = 30
# Characters beyond ASCII in Western European text. Bytes of other encodings, read as Windows-1252, give others.
_LETTERS = "àâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜ"
_WESTERN = frozenset(_LETTERS + "«»“”„…€°£§·•©®\xa0\u2018\u2019\u2013\u2014")
_RUN = re.compile(f"[{_LETTERS}]{{3,}}")
_MOST_FOREIGN = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The stripped text of a caption (empty where it cannot be read) and its problems."""

    text: str
    problems: tuple[Problem, ...] = ()


@dataclass(kw_only=True)
class TokenCounter:
    """Counts tokens with the tokenizer in `file` if the `tokenizers` package is installed, else estimates.

    Source: T5EncoderModel and HuggingfaceTokenizer in musubi-tuner's wan/modules/t5.py and tokenizers.py.
    HTML entities are resolved twice and white space is folded. ftfy's character repair is left out: it changes a token
    or two. The 16 MB file is read only for a caption that may be too long.
    """

    file: Path | None = None

    def too_long(self, text: str) -> str | None:
        """Why a caption is too long, or None."""
        words = " ".join(html.unescape(html.unescape(text)).split())
        # Upper bound: a token has at least one byte, the space before each word may be one more, an end mark follows.
        # The tokenizer splits some characters first, as NFKC does.
        plain = words if words.isascii() else unicodedata.normalize("NFKC", words)
        if len(plain.encode("utf-8", "replace")) + plain.count(" ") + 2 <= MOST_TOKENS:
            return None
        if self._tokenizer is not None:
            count, shown = len(self._tokenizer.encode(words).ids), "{0} tokens"
        else:
            count, shown = _estimated_tokens(words), "about {0} tokens (an estimate)"
        if count <= MOST_TOKENS:
            return None
        return f"has {shown.format(count)}; the text encoder reads {MOST_TOKENS} and drops the rest"

    @cached_property
    def _tokenizer(self) -> Any | None:  # noqa: ANN401 - the package is optional and brings no types when absent
        if self.file is None:
            return None
        try:
            tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(self.file))
        except ImportError:
            return None
        except Exception:  # noqa: BLE001 - the package raises bare Exception for a file that it cannot read
            return None
        # The file may ask for truncation or padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _estimated_tokens(words: str) -> int:
    """Estimate: about four characters per token in English, one and a half in Chinese or Japanese."""
    ascii_characters = sum(character.isascii() for character in words)
    others = len(words) - ascii_characters
    return round(ascii_characters / _ASCII_PER_TOKEN + others / _OTHERS_PER_TOKEN) + 1


def read_caption(path: Path, tokens: TokenCounter) -> Caption:
    """Read a caption as the trainer does: UTF-8, with unified line ends, stripped. Never raises."""
    try:
        with open_regular(path) as file:
            data = file.read(MIB + 1)
    except OSError as error:
        what = "is a folder" if isinstance(error, IsADirectoryError) else f"cannot be read: {error.strerror}"
        return Caption(text="", problems=(_encoding(Severity.STOPS, path, what, "Replace it with a text file"),))
    if len(data) > MIB:
        return Caption(
            text="", problems=(_encoding(Severity.HARMS, path, "is larger than 1 MiB", "Replace it with a caption"),)
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        what = "is UTF-16, not UTF-8" if _is_utf16(data) else "is not UTF-8"
        found = _encoding(Severity.STOPS, path, what, "Save it as UTF-8, or use --fix", is_fixable=True)
        return Caption(text="", problems=(found,))
    return _checked(path, text, tokens)


def check_record_caption(path: Path, row: int, text: str, tokens: TokenCounter) -> Caption:
    """The caption in one line of a jsonl file, checked like a caption file."""
    if len(text) > MIB:
        found = _encoding(Severity.HARMS, path, "has a caption of more than a million characters", "Shorten it")
        return Caption(text="", problems=(replace(found, row=row),))
    caption = _checked(path, text, tokens)
    # Line ends inside JSON say nothing about how a file is saved.
    problems = [each for each in caption.problems if each.kind is not ProblemKind.CAPTION_LINE_ENDS]
    return replace(caption, problems=tuple(replace(each, row=row, is_fixable=False) for each in problems))


def as_trained(text: str) -> str:
    """The text as the trainer encodes it, without byte order marks and surrounding white space.

    The trainer reads the file as `utf-8`, which keeps a byte order mark, but cleans the text before encoding. Source:
    basic_clean in musubi-tuner's wan/modules/tokenizers.py, both versions; its ftfy 6.3.1 drops U+FEFF everywhere.
    """
    return plain_lines(text).replace("\ufeff", "").strip()


def plain_lines(text: str) -> str:
    """The text with every line end as a newline."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _checked(path: Path, text: str, tokens: TokenCounter) -> Caption:
    words = as_trained(text)
    return Caption(text=words, problems=tuple(_problems(path, text, words, tokens)))


def _problems(path: Path, text: str, words: str, tokens: TokenCounter) -> Iterator[Problem]:
    if text.startswith("\ufeff"):
        what = "starts with a byte order mark, which the trainer ignores"
        yield _encoding(Severity.NOTE, path, what, "No change needed", is_fixable=True)
    if "\0" in text:
        yield _encoding(Severity.HARMS, path, "contains NUL characters", "Save it as plain UTF-8 text")
    if "\r" in text:
        yield note(
            ProblemKind.CAPTION_LINE_ENDS,
            "has Windows line ends; the trainer accepts them",
            "No change needed",
            path,
            is_fixable=True,
        )
    if (what_is_long := tokens.too_long(words)) is not None:
        kind = ProblemKind.LONG_CAPTION
        yield harms(kind, what_is_long, "Shorten the caption", path)
    if not words:
        yield harms(
            ProblemKind.EMPTY_CAPTION,
            "is empty: the picture would be trained without a caption",
            "Describe the picture in it",
            path,
        )


def _encoding(severity: Severity, path: Path, what: str, fix: str, *, is_fixable: bool = False) -> Problem:
    kind = ProblemKind.CAPTION_ENCODING
    return Problem(severity, kind, what, fix, path, is_fixable=is_fixable)


def _is_utf16(data: bytes) -> bool:
    return data.startswith((b"\xff\xfe", b"\xfe\xff"))


def repaired(data: bytes) -> tuple[str, str]:
    """The text of a caption file with plain line ends and no byte order mark, and the changes in words.

    Raises CannotFixError if nothing is wrong, or if it cannot be fixed safely (such as an ambiguous encoding).
    """
    if len(data) > MIB:
        raise CannotFixError("it is larger than 1 MiB, so it is probably not a caption")
    changes = []
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise CannotFixError("it is UTF-32; save it as UTF-8")
    if _is_utf16(data):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError:
            raise CannotFixError("it starts as UTF-16 but contains invalid UTF-16") from None
        changes.append(f"UTF-16 to UTF-8: {_excerpt(text)}")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = _from_western(data)
            changes.append(f"Windows-1252 to UTF-8: {_excerpt(text)}")
    if "\0" in text:
        raise CannotFixError("it contains NUL characters, so it is not plain text")
    if text.startswith("\ufeff"):
        text = text.removeprefix("\ufeff")
        changes.append("byte order mark removed")
    if "\r" in text:
        text = plain_lines(text)
        changes.append("Windows line ends replaced")
    if not changes:
        raise CannotFixError("it has nothing to fix")
    return text, ", ".join(changes)


def _from_western(data: bytes) -> str:
    """Decode Windows-1252 (a superset of Latin-1); raises CannotFixError if another encoding is as likely.

    Cyrillic, Greek or East Asian bytes give rare characters, or runs of three or more accented letters. In Mac and DOS
    encodings the common letters give rare characters.
    """
    unclear = CannotFixError("its encoding is unclear; open it, check the text, and save it as UTF-8")
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise unclear from None
    letters = [character for character in text if character.isalpha()]
    share = sum(not character.isascii() for character in letters) / max(1, len(letters))
    is_western = {character for character in text if not character.isascii()} <= _WESTERN
    if not is_western or _RUN.search(text) or share > _MOST_FOREIGN:
        raise unclear
    return text


def _excerpt(text: str) -> str:
    """The text around the first non-ASCII character, so that a person can check the decoding."""
    text = text.removeprefix("\ufeff").strip()
    at = next((index for index, character in enumerate(text) if not character.isascii()), 0)
    start, end = max(0, at - _SHOWN), at + _SHOWN
    return f"“{'…' if start else ''}{visible(text[start:end])}{'…' if end < len(text) else ''}”"
