"""Titles and authors: free text that becomes part of file names and command lines."""

from __future__ import annotations

import unicodedata

from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line, visible

DEFAULT_TITLE = "mylora"
DEFAULT_AUTHOR = "authorName"

_MAX_TITLE_BYTES = 120
"""A file name has at most 255 bytes; the trainer adds the expert before and `-000100-state` after the title."""
_MAX_AUTHOR_CHARACTERS = 200
_FORBIDDEN = frozenset('/\\<>:"|?*')


def problem_with_title(title: str) -> str | None:
    """What is wrong with a title, None when it can be part of a file name on every common system."""
    if not title.strip():
        return "the title is empty"
    if title != title.strip():
        return "the title begins or ends with a space"
    if visible(title) != title:
        return f"the title contains control characters: {one_line(title, 60)}"
    if forbidden := sorted({c for c in title if c in _FORBIDDEN}):
        return f"the title contains {' '.join(forbidden)}, which cannot be in a file name"
    if title.startswith(("-", ".")):
        return f"the title begins with {title[0]!r}"
    if len(unicodedata.normalize("NFC", title).encode()) > _MAX_TITLE_BYTES:
        return f"the title is longer than {_MAX_TITLE_BYTES} bytes"
    return None


def problem_with_author(author: str) -> str | None:
    if not author.strip():
        return "the author is empty"
    if visible(author) != author:
        return f"the author contains control characters: {one_line(author, 60)}"
    if len(author) > _MAX_AUTHOR_CHARACTERS:
        return f"the author is longer than {_MAX_AUTHOR_CHARACTERS} characters"
    return None


def check_title(title: str) -> str:
    """The title, normalised; raises BadInputError."""
    problem = problem_with_title(title)
    if problem:
        raise BadInputError(problem, hint="A good title: letters, digits, dash and underscore, such as my_lora-v2.")
    return unicodedata.normalize("NFC", title)


def check_author(author: str) -> str:
    """The author; raises BadInputError."""
    problem = problem_with_author(author)
    if problem:
        raise BadInputError(problem, hint="Any name will do; it goes into the LoRA's metadata.")
    return author
