"""Hostile text made safe to show: control characters visible, secrets hidden."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = "[hidden]"
_LAST_BYTE = 0xFF

# Zero-width joiners and variation selectors are part of ordinary emoji.
_HARMLESS = frozenset({"\u200d", "\ufe0f"})

_SECRETS = re.compile(
    r"""
    (?:\bhf_[A-Za-z0-9]{20,})                                   # Hugging Face access token
    | (?:(?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,})            # Authorization header
    | (?:(?<=://)[^/\s:@]+:[^/\s@]+(?=@))                      # user:password@ inside an address
    | (?:(?P<label>(?i:\b[A-Z0-9_]*(?:TOKEN|API_KEY|SECRET|PASSWORD)\b["']?\s*[=:]\s*["']?))[^\s"',;]{6,})
    """,
    re.VERBOSE,
)


def visible(text: str) -> str:
    """The text on one line with every character that could act on a terminal written out as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _unsafe(c) else c for c in text)


def redact(text: str) -> str:
    """The text with access tokens, passwords in addresses and named secrets replaced by `[hidden]`.

    Bare hexadecimal words are keys on some services, and commits or checksums everywhere else: they stay.
    """
    return _SECRETS.sub(lambda match: (match["label"] or "") + _HIDDEN, text)


def one_line(text: str, limit: int = 200) -> str:
    """A safe, redacted, shortened line for messages that quote something from outside."""
    line = visible(redact(text.strip()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def slug(title: str) -> str:
    """A title as part of a file name: letters, digits, dash and underscore, at most 40 of them."""
    return re.sub(r"[^\w-]+", "-", title)[:40].strip("-") or "run"


def _unsafe(character: str) -> bool:
    if character.isprintable() or character in _HARMLESS:
        return False
    # Spaces other than the plain one belong to ordinary text (the Japanese U+3000); every other unprintable one can
    # move the cursor, reorder or fake what a terminal shows, or is of a later Unicode that may.
    return unicodedata.category(character) != "Zs"


def _escape(character: str) -> str:
    match character:
        case "\n":
            return "\\n"
        case "\t":
            return "\\t"
        case "\r":
            return "\\r"
        case _:
            code = ord(character)
            return f"\\x{code:02x}" if code <= _LAST_BYTE else f"\\u{code:04x}"
