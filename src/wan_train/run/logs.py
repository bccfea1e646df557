"""Trainer logs made safe to keep: secrets out."""

from __future__ import annotations

import os
import re
from pathlib import Path

from wan_train.base.files import write_whole
from wan_train.base.text import redact

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
_LARGEST_LOG = 64 * 1024 * 1024


def hide_secrets(log: Path) -> None:
    """Rewrite the log of an attempt that is over if it holds a secret: known token shapes, and our environment's own.

    While the attempt runs the trainer writes the file directly, so that every watcher may die; until then it is only
    protected by the directory's mode. A log without secrets is left as it is.
    """
    try:
        if log.stat().st_size > _LARGEST_LOG:
            return
        text = log.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError:
        return
    clean = redact(text)
    for value in _secrets():
        clean = clean.replace(value, "[hidden]")
    if clean != text:
        try:
            write_whole(log, clean.encode("utf-8", errors="surrogateescape"))
        except OSError:
            _overwrite(log, clean)


def _overwrite(log: Path, text: str) -> None:
    """In place, for a full disk: a log with its secrets hidden is no longer than before."""
    with log.open("r+b") as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))
        file.truncate()


def _secrets() -> list[str]:
    return [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= _SHORTEST_SECRET]
