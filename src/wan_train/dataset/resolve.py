"""Find the dataset.toml, or the folder that needs one, from what a user typed or pasted."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from wan_train.base.errors import BadInputError
from wan_train.base.files import existing_parent
from wan_train.base.home import expanded
from wan_train.base.text import visible
from wan_train.dataset.listing import is_windows_path, list_media, media_subfolders

CONFIG_NAME = "dataset.toml"
_PAIRS = (('"', '"'), ("'", "'"), ("`", "`"), ("\u201c", "\u201d"), ("\u2018", "\u2019"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingConfig:
    """An existing dataset.toml, which is read and kept."""

    toml_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NewConfig:
    """A folder of pictures or videos without a dataset.toml; `toml_path` is where it goes."""

    directory: Path
    toml_path: Path


Resolved = ExistingConfig | NewConfig


def resolve_dataset(text: str, *, cwd: Path | None = None) -> Resolved:
    """A dataset.toml, a folder with one, or a folder of media, as absolute paths; raises BadInputError for others.

    The text is tried as typed, then without the additions of terminals and file managers to a pasted path: quotes,
    backslashes before spaces, `file://`. `~` is the home.
    """
    base = cwd or Path.cwd()
    if not text.strip():
        raise BadInputError("no dataset given", hint="Use a dataset.toml or a folder of pictures with captions.")
    if "\0" in text:
        raise BadInputError("the dataset path contains a NUL character", hint="Type the path again.")
    readings = [_absolute(reading, base) for reading in _readings(text)]
    for path in readings:
        if os.path.exists(path):
            return _existing(path)
    for path in readings:
        # Users often give FOLDER/dataset.toml before that file is written.
        if path.suffix.lower() == ".toml" and path.parent.is_dir():
            return _folder(path.parent, path)
    if is_windows_path(text.strip().strip("\"'")):
        raise BadInputError(
            f"{visible(text.strip())} is a Windows path, not a path on this machine",
            hint="Use the path of the folder on this machine, such as /workspace/cats.",
        )
    raise _missing(readings[-1])


def _readings(text: str) -> Iterator[str]:
    bare = text.strip()
    yield from dict.fromkeys((text.rstrip("\n"), bare))
    for opening, closing in _PAIRS:
        if len(bare) > 1 and bare.startswith(opening) and bare.endswith(closing):
            bare = bare[1:-1]
            yield bare
            break
    if bare.startswith("file://"):
        yield unquote(bare.removeprefix("file://"))
    elif "\\" in bare:
        try:
            words = shlex.split(bare)
        except ValueError:
            return
        if len(words) == 1:
            yield words[0]


def _absolute(text: str, base: Path) -> Path:
    path = Path(text)
    if text.startswith("~") and not os.path.exists(base / path):
        path = expanded(path)
    return Path(os.path.abspath(base / path))


def _existing(path: Path) -> Resolved:
    if path.is_dir():
        config = path / CONFIG_NAME
        return ExistingConfig(toml_path=config) if os.path.exists(config) else _folder(path, config)
    if path.suffix.lower() == ".toml":
        return ExistingConfig(toml_path=path)
    shown = visible(str(path))
    if not path.is_file():
        raise BadInputError(f"{shown} is neither a file nor a folder", hint="Use a folder of pictures with captions.")
    raise BadInputError(
        f"{shown} is not a dataset.toml", hint=f"Use a dataset.toml or the folder: {visible(str(path.parent))}"
    )


def _folder(directory: Path, config: Path) -> NewConfig:
    shown = visible(str(directory))
    try:
        listing = list_media(directory)
    except OSError as error:
        raise BadInputError(
            f"{shown} cannot be read: {error.strerror}", hint="Check the folder's permissions."
        ) from None
    if listing.images or listing.videos:
        return NewConfig(directory=directory, toml_path=config)
    inside = next(media_subfolders(directory, listing.subfolders), None)
    if inside is not None:
        hint = f"Subfolders are not read. Use the folder itself: {visible(str(inside))}"
    elif listing.lookalikes:
        name = visible(listing.lookalikes[0])
        hint = f"{name} has an unsupported type; convert it to .png, .jpg or .mp4."
    else:
        hint = "Add pictures (.png .jpg .webp .bmp) or videos (.mp4 …) and a .txt caption for each."
    raise BadInputError(f"{shown} contains no pictures and no videos", hint=hint)


def _missing(path: Path) -> BadInputError:
    known = existing_parent(path.parent)
    wanted = path.relative_to(known).parts[0]
    try:
        close = difflib.get_close_matches(wanted, os.listdir(known)[:10_000], n=1, cutoff=0.7)
    except OSError:
        close = []
    hint = "Use a dataset.toml or a folder of pictures with captions."
    if close:
        hint = f"Did you mean {visible(str(known / close[0]))}?"
    elif known != path.parent:
        hint = f"{visible(str(known))} exists, but {visible(wanted)} is not in it."
    return BadInputError(f"{visible(str(path))} does not exist", hint=hint)
