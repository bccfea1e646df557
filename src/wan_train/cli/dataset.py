"""`wan-train dataset check` and `wan-train dataset write`."""

from __future__ import annotations

import difflib
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError, ExitCode, NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.home import expand
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.caching.survey import reading_of
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.html_files import dataset_target, write_dataset_page
from wan_train.cli.option import TaskChoice
from wan_train.cli.output import Result, Sink
from wan_train.cli.request import dataset_overrides, parse_resolution, recipe_changes
from wan_train.dataset import fix as fixes
from wan_train.dataset.deep_scan import Depth
from wan_train.dataset.fix import BACKUP, Fix, FixPlan, back_up, stamp_of
from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, CannotFixError, TrainerReading
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import Check
from wan_train.dataset.scan import check as look
from wan_train.dataset.writing import ConfigValues, compose, preset_terms
from wan_train.engine import tokenizer
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import KNOWN_COMMITS
from wan_train.recipe import load as recipes

_PATIENCE_SECONDS = 1.0
_MOST_BYTES = 4 * 1024 * 1024
_BY_VERSION = {"guide": GUIDE_READING, "d0a1930": GUIDE_READING, "v0.3.4": NEWEST_READING}


def check(call: Call) -> Result:
    """Show all problems and what will be trained; the exit code says whether a problem stops the training."""
    sink, yes, html = call.sink, call[options.YES], call.get(options.CHECK_PAGE)
    target = dataset_target(html, sink, yes=yes) if html is not None else None
    recipe = recipes.override(recipes.shipped(call[options.TASK].task), recipe_changes(call), flag_of=options.flag_of)
    training = recipe.experts[0].training
    reading = _reading(call.get(options.READING_VERSION), call.settings)
    found = _look(call, reading)
    fixed = None
    if call[options.FIX]:
        fixed = _fix(found, sink, yes=yes)
        if fixed.done:
            found = _look(call, reading)
    ahead = None
    if found.inventory is not None:
        ahead = layout_of(
            found.inventory,
            epochs=training.max_train_epochs,
            accumulation=training.gradient_accumulation_steps,
            image_to_video=call[options.TASK] is TaskChoice.I2V,
        )
    if target is not None:
        write_dataset_page(found, ahead, target, sink)

    def text(sink: Sink) -> None:
        from wan_train.views.dataset_tables import problem_lines, trained_lines

        sink.show(problem_lines(found))
        if ahead is not None:
            sink.show(trained_lines(ahead, stops=found.stops))
        if target is not None:
            sink.line(f"The pictures, their crops and captions: {target}")

    return Result(
        data=lambda: _check_json(found, ahead, fixed),
        text=text,
        exit_code=ExitCode.BAD_INPUT if found.stops else ExitCode.DONE,
    )


def _look(call: Call, reading: TrainerReading) -> Check:
    return look(
        resolve_dataset(call[options.DATASET_PATH]),
        reading=reading,
        overrides=dataset_overrides(call),
        tokenizer=tokenizer.cached_file(os.environ),
        depth=Depth.THOROUGH if call[options.THOROUGH] else Depth.QUICK,
        progress=call.sink.counter("decoding pictures", patience=_PATIENCE_SECONDS),
    )


def _check_json(found: Check, ahead: Layout | None, fixed: Fixed | None) -> dict[str, Any]:
    from wan_train.views.json_records import check_json

    data = check_json(found, ahead)
    if fixed is not None:
        data["mended"] = [
            {
                "path": str(each.fix.path),
                "now": str(each.fix.target),
                "what": each.fix.what,
                "kept": str(each.kept),
            }
            for each in fixed.done
        ]
        data["left"] = [{"path": str(path), "why": why} for path, why in fixed.skipped]
    return data


def _reading(version: str | None, settings: Settings) -> TrainerReading:
    """Return how the named trainer version reads datasets, else the installed one, else the guide's."""
    if version is None:
        version = KNOWN_COMMITS.get(trainers.read_commit(settings.trainer_dir) or "")
    if version is not None:
        return replace(_BY_VERSION[version], root=settings.trainer_dir)
    try:
        return reading_of(trainers.find_musubi(settings))
    except NotReadyError:
        return GUIDE_READING


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One applied fix; `kept` is the backup of the original."""

    fix: Fix
    kept: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """The result of `--fix`; `skipped` lists unchanged files with the reason."""

    done: tuple[Done, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()


def _fix(found: Check, sink: Sink, *, yes: bool) -> Fixed:
    """Show the fixes, ask, and apply them. Raises BadInputError without `yes` or a terminal."""
    planned = fixes.plan(found)
    skipped = [(each.problem.path, each.why) for each in planned.skipped if each.problem.path is not None]
    _show_fixes(planned, sink)
    if not planned.fixes:
        sink.line("Nothing can be fixed safely.")
        sink.line("")
        return Fixed(skipped=tuple(skipped))
    if not yes:
        sink.require_person("nothing was changed", "Add --yes to fix, or leave out --fix to see the problems only.")
        if not questions.confirm("Fix these?"):
            sink.note("Nothing was changed.")
            return Fixed(skipped=tuple(skipped))
    done = []
    stamp = fixes.stamp_of(time.time())
    with fixes.locked({each.path.parent for each in planned.fixes}):
        for each in planned.fixes:
            try:
                kept = fixes.apply(each, stamp)
            except (OSError, CannotFixError) as error:
                why = getattr(error, "strerror", None) or str(error)
                skipped.append((each.path, why))
                sink.line(f"skipped  {each.path}: {why}")
                continue
            done.append(Done(fix=each, kept=kept))
            sink.line(f"fixed    {each.target}: {each.what}")
    for folder in sorted({each.kept.parent for each in done}):
        sink.line(f"The originals are in {folder}")
    sink.line("")
    return Fixed(done=tuple(done), skipped=tuple(skipped))


def _show_fixes(planned: FixPlan, sink: Sink) -> None:
    for each in planned.fixes:
        sink.line(f"to fix   {each.path}: {each.what}")
    for skipped in planned.skipped:
        sink.line(f"skipped  {skipped.problem.path}: {skipped.why}")


def write(call: Call) -> Result:
    """Write or change the dataset.toml of the given folders."""
    sink = call.sink
    folders = [_folder(path) for path in call.all(options.DATASET_FOLDERS)]
    target = _target(folders, call.get(options.OUTPUT))
    before = _read(target)
    values = _values(call)
    text = compose(folders, values, existing=before)
    if text == before:
        return _written(target, values, "is up to date")
    if before is None:
        write_whole(target, text, mode=0o644)
        sink.text(text)
        return _written(target, values, "was written")
    diff = "".join(
        line if line.endswith("\n") else f"{line}\n"
        for line in difflib.unified_diff(
            before.splitlines(keepends=True), text.splitlines(keepends=True), "now", "changed"
        )
    )
    sink.text(diff)
    if not call[options.YES]:
        sink.require_person(
            f"{target} exists and was not changed", "Add --yes to change it, or name another file with --output."
        )
        if not questions.confirm("Change it?"):
            sink.note("Nothing was changed.")
            return Result()
    if _read(target) != before:
        raise BadInputError(f"{target} was changed by another program just now", hint="Rerun the command.")
    kept = back_up(target, target.parent / BACKUP / stamp_of(time.time()))
    write_whole(target, text, mode=0o644)
    return _written(target, values, f"was changed; the old version is {kept}", kept)


def _values(call: Call) -> ConfigValues:
    sizes = [parse_resolution(text) for text in call.all(options.RESOLUTIONS)]
    preset = call.get(options.DATASET_PRESET)
    if preset is not None and sizes:
        raise BadInputError(
            f"--preset {preset} and --resolution both choose the resolutions",
            hint=f"Leave out one of them. `wan-train presets` shows the resolutions of {preset}.",
        )
    return ConfigValues(
        preset=preset,
        resolutions=tuple(dict.fromkeys(size for size in sizes if size is not None)),
        batch_size=call.get(options.NEW_BATCH_SIZE),
        num_repeats=call.get(options.NEW_REPEATS),
        caption_extension=call.get(options.CAPTION_EXTENSION),
        target_frames=_parse_frames(call.get(options.TARGET_FRAMES)),
        frame_extraction=call.get(options.FRAME_EXTRACTION),
        frame_stride=call.get(options.FRAME_STRIDE),
        frame_sample=call.get(options.FRAME_SAMPLE),
        max_frames=call.get(options.MAX_FRAMES),
        source_fps=call.get(options.SOURCE_FPS),
    )


def _written(target: Path, values: ConfigValues, what: str, kept: Path | None = None) -> Result:
    epochs = None if values.preset is None else preset_terms(values.preset).epochs

    def text(sink: Sink) -> None:
        sink.line(f"{target} {what}.")
        sink.line(f"Next: wan-train dataset check {shlex.quote(str(target))}")
        if epochs is not None:
            sink.line(f"Then: wan-train --dataset {shlex.quote(str(target))} --epochs {epochs}")
            sink.line(f"      ({values.preset} shows each picture several times per epoch, so it takes fewer epochs)")

    data = {"event": "dataset_written", "dataset": str(target), "kept": str(kept) if kept else None}
    return Result(data=lambda: data, text=text)


def _folder(path: str) -> Path:
    folder = Path(os.path.abspath(expand(path)))  # noqa: PTH100 - keep symbolic links as written
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise BadInputError(f"{folder} {what}", hint="Name folders with pictures or clips directly in them.")
    return folder


def _target(folders: Sequence[Path], output: str | None) -> Path:
    if output is not None:
        target = Path(os.path.abspath(expand(output)))  # noqa: PTH100 - as above
        if target.suffix.lower() != ".toml":
            raise BadInputError(f"--output {target} is not a .toml file", hint="Name a dataset.toml.")
        if not target.parent.is_dir():
            raise BadInputError(f"folder not found: {target.parent}", hint="Create it, or choose another --output.")
        return target
    if len(set(folders)) > 1:
        raise BadInputError(
            "several folders were named, and no file for them", hint="Add --output FILE, such as dataset.toml."
        )
    return folders[0] / "dataset.toml"


def _read(target: Path) -> str | None:
    try:
        with target.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise BadInputError(f"{target} is not UTF-8", hint="Name another file with --output.") from None
    except OSError as error:
        raise BadInputError(
            f"{target} cannot be read: {error.strerror}", hint="Name another file with --output."
        ) from None


def _parse_frames(text: str | None) -> tuple[int, ...]:
    """Parse a list such as `1,25,45`; raises BadInputError."""
    if text is None:
        return ()
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise BadInputError(
            f"--target-frames {one_line(text)!r} is not a list of whole numbers", hint="Use a list such as 1,25,45."
        ) from None
