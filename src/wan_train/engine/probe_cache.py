"""What an unknown version of the trainer said of its options, kept: asking again takes half a minute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from wan_train.base.files import write_whole
from wan_train.engine.capabilities import Script


def recall(folder: Path, root: Path, commit: str | None) -> Mapping[Script, str] | None:
    """The `--help` of every script as it was kept; None when it was not, or the sources have changed since."""
    try:
        record = json.loads(_path(folder, commit).read_text(encoding="utf-8"))
        texts = {Script(name): str(text) for name, text in record["help"].items()}
        is_same = record["root"] == str(root) and record["changed"] == _changed(root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return texts if is_same and set(texts) == set(Script) else None


def keep(folder: Path, root: Path, commit: str | None, texts: Mapping[Script, str]) -> None:
    record = {"root": str(root), "changed": _changed(root), "help": {str(name): text for name, text in texts.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(_path(folder, commit), json.dumps(record), mode=0o644)


def _path(folder: Path, commit: str | None) -> Path:
    return folder / f"options-{(commit or 'unknown')[:40]}.json"


def _changed(root: Path) -> int:
    """When the newest source was changed, in nanoseconds: somebody may work on the checkout."""
    return max((path.stat().st_mtime_ns for path in (root / "src").rglob("*.py")), default=0)
