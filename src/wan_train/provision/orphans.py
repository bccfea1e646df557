"""What downloads that never ended have left on the disk."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.engine.tokenizer import hub_cache
from wan_train.recipe.model_files import ModelFile, known_models

STAGING = ".wan-train-fetch"
"""The folder of our own parts, in each place of models: STAGING/model/key of its bytes/part."""
_HUB_PARTS = Path(".cache/huggingface/download")
"""Where `huggingface-cli download --local-dir` keeps what is not whole yet, below the local directory."""


class Whose(StrEnum):
    """Who may say that it can go."""

    OURS = "wan-train"
    """wan-train removes it by itself."""
    HUB = "huggingface"
    """Begun by huggingface-cli or another program of that library."""
    USER = "user"
    """A file of the user's that was moved aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A file or folder nobody works at. `bytes` is what its removal frees."""

    path: Path
    bytes: int
    whose: Whose

    def remove(self) -> None:
        """Raises OSError."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def orphans(trainer_dir: Path) -> tuple[Orphan, ...]:
    """All of them: below the trainer's model folders, and in the cache of huggingface_hub."""
    models = known_models().values()
    found: list[Orphan] = []
    for place in sorted({model.place for model in models}):
        folder = trainer_dir / place
        found += _ours(folder, [model for model in models if model.place == place], trainer_dir)
        found += (_orphan(path, Whose.USER) for path in sorted(folder.rglob("*.bad")) if path.is_file())
        found += (_orphan(path, Whose.HUB) for path in _idle(sorted((folder / _HUB_PARTS).rglob("*.incomplete"))))
    return (*found, *_in_cache())


def remains(model: ModelFile, trainer_dir: Path, sha256: str) -> Path | None:
    """The largest part of these very bytes that huggingface-cli has left beside the model's place, if any."""
    folder = (trainer_dir / model.place / _HUB_PARTS / model.file).parent
    name = re.compile(rf".+\.{sha256}(\.[0-9a-f]{{8}})?\.incomplete")
    parts = [path for path in folder.glob("*.incomplete") if name.fullmatch(path.name) and path.is_file()]
    return max(_idle(parts), key=lambda path: path.stat().st_size, default=None)


def _ours(folder: Path, models: Iterable[ModelFile], trainer_dir: Path) -> Iterator[Orphan]:
    """Parts of files that are whole by now, of older bytes, and of models that no list has any more."""
    known = {model.name: model for model in models}
    for staging in sorted(_entries(folder / STAGING)):
        model = known.get(staging.name)
        if model is None or model.path(trainer_dir).with_name(f"{Path(model.file).name}.verified").exists():
            yield _orphan(staging, Whose.OURS)
            continue
        newest_first = sorted(_entries(staging), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        yield from (_orphan(path, Whose.OURS) for path in newest_first[1:])


def _in_cache() -> Iterator[Orphan]:
    cache = hub_cache(os.environ).expanduser()
    for repo in sorted(cache.glob("models--*")):
        if not any(_is_held(lock) for lock in (cache / ".locks" / repo.name).glob("*.lock")):
            yield from (_orphan(path, Whose.HUB) for path in sorted((repo / "blobs").glob("*.incomplete")))


def _idle(parts: Iterable[Path]) -> list[Path]:
    """Those in whose folder no download is at work."""
    return [path for path in parts if not any(_is_held(lock) for lock in path.parent.glob("*.lock"))]


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _orphan(path: Path, whose: Whose) -> Orphan:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return Orphan(path=path, bytes=sum(file.lstat().st_blocks * 512 for file in files), whose=whose)
