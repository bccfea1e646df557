"""Sample prompts: read the user's file as the trainer does, check it, and write it as JSON for the trainer."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line, visible
from wan_train.base.units import count
from wan_train.recipe.model import format_number
from wan_train.recipe.terms import Task

_SUFFIXES = (".txt", ".toml", ".json")
_WRITE_ONE = "Write one prompt a line into a .txt file."
_MOST_BYTES = 1 << 20

_OPTIONS: Mapping[str, str] = {
    "w": "width",
    "h": "height",
    "f": "frame_count",
    "s": "sample_steps",
    "d": "seed",
    "l": "cfg_scale",
    "fs": "discrete_flow_shift",
    "n": "negative_prompt",
    "i": "image_path",
}
"""Options of a prompt line, mapped to their keys in .toml and .json files (musubi-tuner, both versions)."""

_USELESS: Mapping[str, str] = {
    "g": "guidance_scale",
    "ei": "end_image_path",
    "cn": "control_video_path",
    "ci": "control_image_path",
    "of": "one_frame",
}
"""Options that the trainer reads for other models. For Wan 2.2 it silently ignores them."""

_NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "width": (int, 16, 4096),
    "height": (int, 16, 4096),
    "frame_count": (int, 1, 1001),
    "sample_steps": (int, 1, 1000),
    "seed": (int, 0, 2**63 - 1),
    "cfg_scale": (float, 0, 100),
    "discrete_flow_shift": (float, 1e-3, 100),
}
"""Type, lowest and highest value."""

_SIZE_MULTIPLE = 16
"""The VAE reduces 8 pixels to one, and the DiT takes patches of 2x2. The trainer only rounds to 8, so other sizes fail
in the middle of a training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePrompt:
    """One sample to make. Fields have the trainer's option names; None means the model's default.

    Width and height are in pixels. Defaults are the trainer's (`sample_image_inference`, both versions), except the
    seed: the trainer draws a new one each time, so pictures of two epochs could not be compared.
    """

    prompt: str
    seed: int
    width: int = 256
    height: int = 256
    frame_count: int = 1
    sample_steps: int = 20
    cfg_scale: float | None = None
    discrete_flow_shift: float | None = None
    negative_prompt: str | None = None
    image_path: Path | None = None


def read_prompts(
    path: Path,
    task: Task,
    *,
    seed: int,
    defaults: Mapping[str, int] | None = None,
    overrides: Mapping[str, int] | None = None,
) -> tuple[SamplePrompt, ...]:
    """The prompts of a file; `seed` is for prompts without one. Raises BadInputError with all problems by line.

    Picture paths are relative to the file's directory. `defaults` and `overrides` are checked as part of each prompt.
    `overrides` replace the prompt's own values.
    """
    text = _text(path)
    problems: list[str] = []
    prompts = []
    for where, own in _entries(path.suffix.lower(), text, problems):
        entry = {**(defaults or {}), **own, **(overrides or {})}
        if found := list(_problems(entry, path.parent, task)):
            problems += [f"{where}: {problem}" for problem in found]
        else:
            prompts.append(_prompt(entry, path.parent, seed=seed))
    if not prompts and not problems:
        problems.append("no prompts found")
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise BadInputError(
            f"the sample prompts {one_line(str(path))} have {count(len(problems), 'problem')}:\n{listing}",
            hint="One prompt a line, such as `a red fox in the snow --w 832 --h 480 --s 20 --d 1`",
        )
    return tuple(prompts)


def to_trainer(prompts: tuple[SamplePrompt, ...]) -> str:
    """The prompts as JSON for the trainer, which uses the keys unchanged.

    In a .txt file it would read the start of `i stand in the rain` as the option `--i` (`line_to_prompt_dict`).
    """
    data = [{key: value for key, value in codec.to_data(prompt).items() if value is not None} for prompt in prompts]
    return codec.dumps(data, indent=1) + "\n"


def _text(path: Path) -> str:
    shown = one_line(str(path))
    if path.suffix.lower() not in _SUFFIXES:
        raise BadInputError(f"the sample prompts {shown} are not a .txt, .toml or .json file", hint=_WRITE_ONE)
    try:
        if path.exists() and not path.is_file():
            raise BadInputError(f"the sample prompts {shown} are not a file", hint=_WRITE_ONE)
        if path.stat().st_size > _MOST_BYTES:
            raise BadInputError(f"the sample prompts {shown} are larger than 1 MB", hint="Is this the right file?")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInputError(
            f"the sample prompts {shown} cannot be read: {error.strerror or error}", hint=_WRITE_ONE
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInputError(
            f"the sample prompts {shown} are not UTF-8 text: line {line}", hint="Save the file as UTF-8."
        ) from error


def _entries(suffix: str, text: str, problems: list[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Each prompt's location and its options by key."""
    if suffix == ".txt":
        # Split at real line ends only: the trainer too treats others, such as U+2028, as part of a line.
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
            words = line.strip()
            if words and not words.startswith("#"):
                yield f"line {number}", _options(words, f"line {number}", problems)
        return
    kind = suffix.removeprefix(".").upper()
    try:
        data = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"it is not {kind}: {one_line(str(error))}")
        return
    common: dict[str, object] = {}
    match kind, data:
        case "TOML", {"prompt": {"subset": list(prompts), **others}}:
            where = "subset"
            common = {str(key): value for key, value in others.items()}
        case "JSON", list(prompts):
            where = "prompt"
        case _:
            problems.append("it has no [[prompt.subset]]" if kind == "TOML" else "it is not a list of prompts")
            return
    for number, prompt in enumerate(prompts, start=1):
        match prompt:
            case dict():
                yield f"{where} {number}", {**common, **prompt}
            case str() if kind == "JSON":  # as a line of a .txt file
                yield f"{where} {number}", _options(prompt.strip(), f"{where} {number}", problems)
            case _:
                problems.append(f"{where} {number}: it must be a table of options")


def _options(line: str, where: str, problems: list[str]) -> Mapping[str, object]:
    """Split one line as the trainer does: at every ` --`."""
    prompt, *pieces = f" {line}".split(" --")
    entry: dict[str, object] = {"prompt": prompt.strip()}
    for piece in pieces:
        word, _, value = piece.strip().partition(" ")
        key = _OPTIONS.get(word.lower()) or _USELESS.get(word.lower())
        if key is None:
            known = " ".join(f"--{option}" for option in _OPTIONS)
            problems.append(
                f"{where}: unknown option --{one_line(word, 40)}; the trainer would drop it and what follows ({known})"
            )
        elif key in entry:
            problems.append(f"{where}: --{word.lower()} is given twice")
        else:
            entry[key] = _number(key, value.strip())
    return entry


def _number(key: str, text: str) -> object:
    """An option's value, as a number where the option takes one; the text itself if it is not a number."""
    kind = _NUMBERS[key][0] if key in _NUMBERS else str
    pattern = r"\d{1,20}" if kind is int else r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}"
    return kind(text) if kind is not str and re.fullmatch(pattern, text, re.ASCII) else text


def _prompt(entry: Mapping[str, object], directory: Path, *, seed: int) -> SamplePrompt:
    values = {key: value for key, value in entry.items() if key in _NUMBERS}
    texts = {key: " ".join(str(entry[key]).split()) for key in ("prompt", "negative_prompt") if key in entry}
    image = directory / str(entry["image_path"]) if "image_path" in entry else None
    return SamplePrompt(**{"seed": seed, **values, **texts}, image_path=image)  # type: ignore[arg-type]  # `_problems` checked the type of each


def _problems(entry: Mapping[str, object], directory: Path, task: Task) -> Iterator[str]:
    called = {key: f"--{option}" for option, key in [*_OPTIONS.items(), *_USELESS.items()]}
    for key, value in entry.items():
        name = f"{key} ({called[key]})" if key in called else one_line(str(key), 40)
        if key in _NUMBERS:
            yield from number_problems(key, value, name)
        elif key in {"prompt", "negative_prompt", "image_path"}:
            yield from _text_problems(value, name)
        elif key == "guidance_scale":
            yield f"{name} has no effect for Wan; the guidance is cfg_scale (--l)"
        elif key in called:
            yield f"{name} has no effect for {task.value}"
        elif key != "enum":  # the trainer sets it itself
            yield f"unknown key {name}"
    if not str(entry.get("prompt", "")).strip():
        yield "there is no prompt before the options"
    yield from _image_problems(entry.get("image_path"), directory, task)


def number_problems(key: str, value: object, name: str) -> Iterator[str]:
    kind, low, high = _NUMBERS[key]
    good = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # type: ignore[operator]  # a number
        noun = "a whole number" if kind is int else "a number"
        yield f"{name} must be {noun} from {format_number(low)} to {format_number(high)}, not {_shown(value)}"
        return
    assert isinstance(value, int | float), "just seen"
    if key in {"width", "height"} and value % _SIZE_MULTIPLE:
        near = max(_SIZE_MULTIPLE, round(value / _SIZE_MULTIPLE) * _SIZE_MULTIPLE)
        yield f"{name} must be a multiple of {_SIZE_MULTIPLE}, not {value}: for example {near}"
    elif key == "frame_count" and value % 4 != 1:
        yield f"{name} must be 1 or 4 x N + 1, not {value}: for example {max(1, round((value - 1) / 4) * 4 + 1)}"


def _text_problems(value: object, name: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{name} must be text, not {_shown(value)}"
    elif visible(flat := " ".join(value.split())) != flat:
        yield f"{name} holds control characters: {_shown(value)}"


def _image_problems(value: object, directory: Path, task: Task) -> Iterator[str]:
    match task:
        case Task.T2V:
            if value is not None:
                yield "image_path (--i) is for image-to-video training; text-to-video starts from noise"
        case Task.I2V:
            if value is None:
                yield "image-to-video needs a picture to start from: --i FILE"
            elif isinstance(value, str) and (problem := _unreadable(directory / value)):
                yield f"image_path (--i) {_shown(value)}: {problem}"


def _unreadable(path: Path) -> str | None:
    """Why a picture cannot be read completely; None if it can."""
    from PIL import Image

    try:
        if not path.is_file():
            return f"there is no file {one_line(str(path))}"
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's own for broken files
        return one_line(str(error)) or type(error).__name__
    return None


def _shown(value: object) -> str:
    return f"'{one_line(str(value), 60)}'"
