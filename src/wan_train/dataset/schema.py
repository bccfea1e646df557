"""The keys of a dataset.toml, their values and sections, by the trainer's rules.

Source: ConfigSanitizer in musubi-tuner's dataset/config_utils.py at d0a1930 and v0.3.4. The limits on
numbers are ours: beyond them the trainer fails later, inside a batch or a bucket.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from wan_train.dataset.model import FrameExtraction, MediaKind, Problem, ProblemKind, note, stops

type_names: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a decimal number",
    str: "text in quotes",
    list: "a list",
    dict: "a table",
}


class Section(StrEnum):
    """The table that a key is in."""

    GENERAL = "general"
    IMAGE = "image"
    VIDEO = "video"


# Returns kind, problem and fix, or None.
Check = Callable[[object], tuple[ProblemKind, str, str] | None]


def _wrong_type(value: object, expected: str, example: str) -> tuple[ProblemKind, str, str]:
    got = type_names.get(type(value), f"a {type(value).__name__}")
    return ProblemKind.WRONG_TYPE, f"expected {expected}, found {got}", f"Write it like {example}"


def _is_integer(value: object) -> bool:
    # bool is an int in Python and in the trainer's validator, but `batch_size = true` is always a mistake.
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> tuple[ProblemKind, str, str] | None:
    if not isinstance(value, str):
        return _wrong_type(value, "text in quotes", '"…"')
    if not value.strip():
        return ProblemKind.WRONG_VALUE, "is empty", "Set a value or remove the line"
    if "\0" in value:
        return ProblemKind.WRONG_VALUE, "contains a NUL character", "Remove it"
    return None


def _extension(value: object) -> tuple[ProblemKind, str, str] | None:
    found = _text(value)
    if found is None and isinstance(value, str) and not value.startswith("."):
        return ProblemKind.WRONG_VALUE, f'"{value}" has no leading dot', f'Write ".{value}"'
    if found is None and isinstance(value, str) and "/" in value:
        return ProblemKind.WRONG_VALUE, f'"{value}" is not a file extension', 'Write ".txt"'
    return found


def _flag(value: object) -> tuple[ProblemKind, str, str] | None:
    return None if isinstance(value, bool) else _wrong_type(value, "true or false", "true")


def _count(value: object) -> tuple[ProblemKind, str, str] | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return _wrong_type(value, "a whole number", "1")
    if value < 1:
        return ProblemKind.WRONG_VALUE, f"is {value}", "Use 1 or more"
    return None


def _integers(value: object) -> tuple[ProblemKind, str, str] | None:
    if not isinstance(value, list) or not all(_is_integer(entry) for entry in value):
        return _wrong_type(value, "a list of whole numbers", "[1, 25, 45]")
    return None


def _frame_counts(value: object) -> tuple[ProblemKind, str, str] | None:
    found = _integers(value)
    if found is None and isinstance(value, list) and (not value or min(value) < 1):
        return ProblemKind.WRONG_VALUE, "needs frame counts of 1 or more", "Write it like [1, 25, 45]"
    return found


def _rate(value: object) -> tuple[ProblemKind, str, str] | None:
    if _is_integer(value):
        # The trainer's validator accepts only a float.
        return (
            ProblemKind.WRONG_TYPE,
            f"{value} is a whole number; the trainer needs a decimal number",
            f"Write {value}.0",
        )
    if not isinstance(value, float):
        return _wrong_type(value, "a decimal number", "30.0")
    if not 0 < value < float("inf"):
        return ProblemKind.WRONG_VALUE, f"is {value}", "Use the frame rate of the videos, like 30.0"
    return None


def _resolution(value: object) -> tuple[ProblemKind, str, str] | None:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(_is_integer(side) for side in sides):
        return _wrong_type(value, "[width, height] in pixels", "[960, 960]")
    if min(sides) < 1:
        return ProblemKind.WRONG_VALUE, f"is {sides}", "Write it like [960, 960]"
    return None


def _extraction(value: object) -> tuple[ProblemKind, str, str] | None:
    if not isinstance(value, str):
        return _wrong_type(value, "text in quotes", '"head"')
    words = [word.value for word in FrameExtraction]
    if value not in words:
        return (ProblemKind.WRONG_VALUE, f'"{value}" is not a valid frame_extraction', f"Use one of {', '.join(words)}")
    return None


ANYWHERE: Mapping[str, Check] = {
    "caption_extension": _extension,
    "batch_size": _count,
    "num_repeats": _count,
    "resolution": _resolution,
    "enable_bucket": _flag,
    "bucket_no_upscale": _flag,
}

_ANY_MEDIA: Mapping[str, Check] = {"cache_directory": _text}

IMAGES_ONLY: Mapping[str, Check] = {"image_directory": _text, "image_jsonl_file": _text}

VIDEOS_ONLY: Mapping[str, Check] = {
    "video_directory": _text,
    "video_jsonl_file": _text,
    "target_frames": _frame_counts,
    "frame_extraction": _extraction,
    "frame_stride": _count,
    "frame_sample": _count,
    "max_frames": _count,
    "source_fps": _rate,
}

UNUSED = frozenset(
    {
        "control_directory",
        "control_resolution",
        "flux_kontext_no_resize_control",
        "fp_1f_clean_indices",
        "fp_1f_no_post",
        "fp_1f_target_index",
        "fp_latent_window_size",
        "multiple_target",
        "no_resize_control",
        "qwen_image_edit_control_resolution",
        "qwen_image_edit_no_resize_control",
    }
)
"""Keys for other models that one version or both read. A run's own copy omits them. The A14B models have no control
input, but the caching programs exit if a control picture is missing (at d0a1930 also if one name begins with another).
With `multiple_target`, v0.3.4 exits at a picture without a caption."""

_SECTION_KEYS: Mapping[Section, Mapping[str, Check]] = {
    Section.GENERAL: ANYWHERE,
    Section.IMAGE: {**ANYWHERE, **_ANY_MEDIA, **IMAGES_ONLY},
    Section.VIDEO: {**ANYWHERE, **_ANY_MEDIA, **VIDEOS_ONLY},
}
_TABLES = {Section.GENERAL: "[general]", Section.IMAGE: "an image dataset", Section.VIDEO: "a video dataset"}
_OF_DATASETS = _SECTION_KEYS[Section.IMAGE].keys() | _SECTION_KEYS[Section.VIDEO].keys()


def media_kind(entry: Mapping[str, object]) -> MediaKind:
    """The kind of a `[[datasets]]` entry: images unless it has a video source."""
    return MediaKind.VIDEO if "video_directory" in entry or "video_jsonl_file" in entry else MediaKind.IMAGE


def check_table(table: Mapping[str, object], where: str, section: Section) -> Iterator[Problem]:
    """Every unknown, unused or invalid key of one table; `where` is its path, such as `datasets[0]`."""
    keys = _SECTION_KEYS[section]
    for key, value in table.items():
        path = f"{where}.{key}"
        if key in UNUSED:
            yield unused(key=path)
            continue
        check = keys.get(key)
        if check is None:
            yield stops(ProblemKind.UNKNOWN_KEY, *_unknown(key, section), key=path)
            continue
        wrong = check(value)
        if wrong is not None:
            kind, what, fix = wrong
            yield stops(kind, what, fix, key=path)


def unused(*, key: str = "", path: Path | None = None, what: str = "") -> Problem:
    """The note on a key, or on records of a jsonl file, that only other models use."""
    return note(
        ProblemKind.UNUSED_KEY,
        f"{what}{' ' if what else ''}is not used by Wan 2.2 A14B; the run ignores it",
        "No change needed",
        path,
        key=key,
    )


def check_top(document: Mapping[str, object]) -> Iterator[Problem]:
    """Problems outside the tables: unknown names, invalid `general` or `datasets`, no dataset."""
    for key in document:
        if key in {"general", "datasets"}:
            continue
        if key in UNUSED:
            fix = "Remove the line; Wan 2.2 A14B does not use it"
        elif key in ANYWHERE:
            fix = f"Put the line under [general] or under its [[datasets]]: general.{key}"
        elif key in _OF_DATASETS:
            fix = f"Put the line under a [[datasets]] heading: datasets[0].{key}"
        else:
            fix = (
                _did_you_mean(key, ["general", "datasets"])
                or "Remove it; only [general] and [[datasets]] are valid here"
            )
        yield stops(ProblemKind.UNKNOWN_KEY, "is unknown at the top of a dataset.toml", fix, key=key)
    general = document.get("general", {})
    if not isinstance(general, dict):
        yield _shape("general", "must be a table", "Start it with a line [general]")
    datasets = document.get("datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(entry, dict) for entry in datasets):
        yield _shape(
            "datasets", "must be a list of tables", "Start each dataset with a line [[datasets]], with two brackets"
        )
    elif not datasets:
        yield stops(
            ProblemKind.MISSING_KEY,
            "contains no dataset",
            "Add a [[datasets]] heading with image_directory or video_directory",
            key="datasets",
        )


def _shape(key: str, what: str, fix: str) -> Problem:
    return stops(ProblemKind.WRONG_TYPE, what, fix, key=key)


def _unknown(key: str, section: Section) -> tuple[str, str]:
    """What is wrong with a key that has no check, and the fix."""
    names = _SECTION_KEYS[section]
    if key not in _OF_DATASETS:
        what = f"is not a key of {_TABLES[section]}"
        fix = _did_you_mean(key, list(names)) or f"Remove the line or use one of: {', '.join(sorted(names))}"
        return what, fix
    if section is Section.GENERAL:
        return "is not allowed under [general]", "Move it to its [[datasets]]"
    return f"is for {'video' if section is Section.IMAGE else 'image'} datasets only", "Remove the line"


def _did_you_mean(key: str, names: list[str]) -> str | None:
    close = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else None
