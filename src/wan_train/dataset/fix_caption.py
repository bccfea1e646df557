"""A caption's bytes read as the text that was meant, only where no other reading is likely."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wan_train.base.text import visible

_LONGEST = 1024 * 1024
_SHOWN = 30
# What Western European texts hold beyond ASCII. Other encodings' bytes, read as Windows-1252, give other characters.
_LETTERS = "àâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜ"
_WESTERN = frozenset(_LETTERS + "«»“”„…€°£§·•©®\xa0\u2018\u2019\u2013\u2014")
_RUN = re.compile(f"[{_LETTERS}]{{3,}}")
_MOST_FOREIGN = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The text, with plain line ends and without byte order mark, and what was done to get it."""

    text: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclear:
    """Why no reading is safe."""

    why: str


def read(data: bytes) -> Reading | Unclear:
    """The text of a caption file."""
    if len(data) > _LONGEST:
        return Unclear(why="it is larger than 1 MiB, so it is hardly a caption")
    done = []
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return Unclear(why="it is UTF-32; save it as UTF-8 yourself")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError:
            return Unclear(why="it begins as UTF-16 and does not go on so")
        done.append(f"UTF-16 to UTF-8: {_shown(text)}")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            western = _as_western(data)
            if western is None:
                return Unclear(why="its encoding cannot be told for sure; open it, look, and save it as UTF-8")
            text = western
            done.append(f"Windows-1252 to UTF-8: {_shown(text)}")
    if "\0" in text:
        return Unclear(why="it holds NUL characters, so it is no plain text")
    if text.startswith("\ufeff"):
        text = text.removeprefix("\ufeff")
        done.append("byte order mark removed")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        done.append("Windows line ends made plain")
    if not done:
        return Unclear(why="there is nothing in it to mend")
    return Reading(text=text, what=", ".join(done))


def _as_western(data: bytes) -> str | None:
    """The text by Windows-1252 (of which Latin-1 is a part), None where another encoding is as likely.

    Cyrillic, Greek or East Asian bytes give runs of three and more such letters, or rare characters; Mac and DOS
    encodings put the common letters on rare ones.
    """
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    foreign = [character for character in text if not character.isascii()]
    letters = [character for character in text if character.isalpha()]
    share = sum(not character.isascii() for character in letters) / max(1, len(letters))
    if not set(foreign) <= _WESTERN or _RUN.search(text) or share > _MOST_FOREIGN:
        return None
    return text


def _shown(text: str) -> str:
    """The part of a text around its first special character, so that a person can judge the reading."""
    text = text.removeprefix("\ufeff").strip()
    at = next((index for index, character in enumerate(text) if not character.isascii()), 0)
    start, end = max(0, at - _SHOWN), at + _SHOWN
    return f"“{'…' if start else ''}{visible(text[start:end])}{'…' if end < len(text) else ''}”"
