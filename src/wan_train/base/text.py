"""Make untrusted text safe to show: control characters escaped, secrets hidden."""

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
    """Return the text on one line, with every character that could act on a terminal escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _unsafe(c) else c for c in text)


def redact(text: str) -> str:
    """Return the text with access tokens, passwords in URLs and named secrets replaced by `[hidden]`.

    Bare hexadecimal words stay: some services use them as keys, but elsewhere they are commits or checksums.
    """
    return _SECRETS.sub(lambda match: (match["label"] or "") + _HIDDEN, text)


def one_line(text: str, limit: int = 200) -> str:
    """Return a safe, redacted, shortened line for messages that quote external text."""
    line = visible(redact(text.strip()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def slug(title: str) -> str:
    """A title as part of a file name: letters, digits, dash and underscore, at most 40 of them."""
    return re.sub(r"[^\w-]+", "-", title)[:40].strip("-") or "run"


def _unsafe(character: str) -> bool:
    if character.isprintable() or character in _HARMLESS:
        return False
    # Other spaces are ordinary text (the Japanese U+3000). All other unprintable characters can move the cursor,
    # reorder or fake what a terminal shows, or may do so in a later Unicode version.
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
