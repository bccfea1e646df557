"""Files that unfinished downloads left on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.locks import is_locked
from wan_train.base.units import GB
from wan_train.engine.tokenizer import hub_cache
from wan_train.provision.steps import Finding, Step, ready, warning
from wan_train.provision.work import Work
from wan_train.recipe.model_files import ModelFile, known_models

STAGING = ".wan-train-fetch"
"""The folder of our own parts in each model folder: STAGING/MODEL/KEY/part, where KEY names the bytes."""
_HUB_PARTS = Path(".cache/huggingface/download")
"""Where `huggingface-cli download --local-dir` keeps incomplete files, below the local directory."""

_NAMED = 3


class Whose(StrEnum):
    """Who may decide to delete it."""

    OURS = "wan-train"
    """wan-train removes it by itself."""
    HUB = "huggingface"
    """Left by huggingface-cli or another program that uses its library."""
    USER = "user"
    """A user's file that was moved aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file or folder that no program uses. `bytes` is what its removal frees."""

    path: Path
    bytes: int
    whose: Whose


def find_leftovers(trainer_dir: Path) -> tuple[Leftover, ...]:
    """All leftovers in the trainer's model folders and in the cache of huggingface_hub."""
    models = known_models().values()
    found: list[Leftover] = []
    for place in sorted({model.place for model in models}):
        folder = trainer_dir / place
        found += _ours(folder, [model for model in models if model.place == place], trainer_dir)
        found += (_leftover(path, Whose.USER) for path in sorted(folder.rglob("*.bad")) if path.is_file())
        found += (_leftover(path, Whose.HUB) for path in _idle(sorted((folder / _HUB_PARTS).rglob("*.incomplete"))))
    return (*found, *_in_cache())


def _ours(folder: Path, models: Iterable[ModelFile], trainer_dir: Path) -> Iterator[Leftover]:
    """Parts of files that are complete now, of older versions, and of models that are no longer listed."""
    known = {model.name: model for model in models}
    for staging in sorted(_entries(folder / STAGING)):
        model = known.get(staging.name)
        if model is None or model.path(trainer_dir).with_name(f"{Path(model.file).name}.verified").exists():
            yield _leftover(staging, Whose.OURS)
            continue
        newest_first = sorted(_entries(staging), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        yield from (_leftover(path, Whose.OURS) for path in newest_first[1:])


def _in_cache() -> Iterator[Leftover]:
    cache = hub_cache(os.environ)
    for repo in sorted(cache.glob("models--*")):
        if not any(is_locked(lock) for lock in (cache / ".locks" / repo.name).glob("*.lock")):
            yield from (_leftover(path, Whose.HUB) for path in sorted((repo / "blobs").glob("*.incomplete")))


def _idle(parts: Iterable[Path]) -> list[Path]:
    """The parts in folders without a running download."""
    return [path for path in parts if not any(is_locked(lock) for lock in path.parent.glob("*.lock"))]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _leftover(path: Path, whose: Whose) -> Leftover:
    return Leftover(path=path, bytes=bytes_on_disk(path), whose=whose)


def bytes_on_disk(path: Path) -> int:
    """Bytes that removing a file or folder frees; links are not followed."""
    below = (os.path.join(at, name) for at, _, files in os.walk(path) for name in files)  # noqa: PTH118  faster, for thousands
    total = 0
    for each in below if path.is_dir() else [path]:
        with suppress(OSError):
            total += os.lstat(each).st_blocks * 512
    return total


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # follows no links on Linux
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """The step. `after` are the steps that may still resume some leftovers."""

    trainer_dir: Path
    after: tuple[str, ...]

    def step(self) -> Step:
        return Step("leftovers", "Unfinished downloads", self.check, apply=self.apply, after=self.after)

    def check(self) -> Finding:
        found = find_leftovers(self.trainer_dir)
        if not found:
            return ready("no unfinished downloads")
        hint = "`wan-train provision` removes its own, and offers to delete the others."
        ours = any(each.whose is Whose.OURS for each in found)
        return warning(listed(found), hint, fixable=ours)

    def apply(self, work: Work) -> None:
        for each in find_leftovers(self.trainer_dir):
            if each.whose is Whose.OURS:
                work.say(f"removing {each.path}")
                remove(each.path)

    def of_others(self) -> tuple[Leftover, ...]:
        """What only the user may delete."""
        return tuple(each for each in find_leftovers(self.trainer_dir) if each.whose is not Whose.OURS)


def listed(found: tuple[Leftover, ...]) -> str:
    """Their total size, and where they are."""
    names = ", ".join(str(each.path) for each in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{sum(each.bytes for each in found) / GB:.2f} GB of unfinished downloads: {names}{more}"
