"""Read a dataset.toml as the trainer does, with all problems at once and every value resolved."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wan_train.base.home import expanded
from wan_train.dataset.buckets import is_resolution_possible, rounded_frames
from wan_train.dataset.listing import is_windows_path, pattern_characters
from wan_train.dataset.model import (
    GUIDE_READING,
    DatasetConfig,
    DatasetError,
    FrameExtraction,
    MediaKind,
    Problem,
    ProblemKind,
    Severity,
    Subset,
    TrainerReading,
    VideoSettings,
    harms,
    note,
    stops,
)
from wan_train.dataset.schema import Section, check_table, check_top, media_kind

PATH_KEYS = ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file", "cache_directory")
_SOURCES = ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file")
# A larger file is not a dataset.toml.
_MOST_BYTES = 4 * 1024 * 1024


def load(path: Path, *, cwd: Path | None = None, reading: TrainerReading = GUIDE_READING) -> DatasetConfig:
    """The configuration in `path`, checked by the trainer's rules; raises DatasetError with every problem.

    The trainer resolves relative paths against its own working directory. Here a relative source is looked up in the
    folder of `path`, then in `cwd` (default: the current one), then in the trainer's. A relative cache is resolved
    against the folder where its source was found. `~` is the home. The result and `snapshot_text` have absolute paths.
    """
    text = _read(path)
    document = _parse(path, text)
    problems = list(check_top(document))
    general, entries = tables(document)
    problems += check_table(general, "general", Section.GENERAL)
    bases = bases_of(path, reading, cwd=cwd)
    subsets = []
    for index, entry in enumerate(entries):
        section = Section.VIDEO if media_kind(entry) is MediaKind.VIDEO else Section.IMAGE
        found = _source_problems(entry, f"datasets[{index}]", section)
        problems += found
        stopping = [problem for problem in problems if problem.severity is Severity.STOPS]
        # Combine values only if each is valid, so that one cause gives one line.
        if not set(found) & set(stopping) and not any(problem.key.startswith("general") for problem in stopping):
            subsets.append(_subset(index, general, _absolute_entry(entry, bases)))
    for subset in subsets:
        problems += _subset_problems(subset)
    problems += _shared_caches(subsets)
    stopping = [problem for problem in problems if problem.severity is Severity.STOPS]
    if stopping:
        raise DatasetError.listing(
            f"{path} cannot be used", stopping, hint="Fix the lines above; the file itself was not changed."
        )
    return DatasetConfig(path=path, text=text, datasets=tuple(subsets), remarks=tuple(problems))


def _read(path: Path) -> str:
    if path.suffix.lower() != ".toml":
        raise _unreadable(path, "its extension is not .toml", "Use a dataset.toml or a folder of pictures")
    try:
        if not path.is_file():
            what = "it is a folder" if path.is_dir() else "it does not exist"
            raise _unreadable(path, what, "Use a dataset.toml or a folder of pictures")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "Make the file readable") from None
    except ValueError:  # a NUL inside the path
        raise _unreadable(path, "its name contains a NUL character", "Use another file") from None
    if len(data) > _MOST_BYTES:
        raise _unreadable(path, "it is larger than 4 MiB", "Use a dataset.toml")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(path, "it is UTF-16", "Save it as UTF-8")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise _unreadable(path, f"line {line} contains a NUL byte", "Save it as plain UTF-8 text")
    try:
        # Drop a byte order mark: the trainer stops at one, but it reads only our copy.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x})"
        raise _unreadable(path, what, "Save the file as UTF-8") from None


def _unreadable(path: Path, what: str, fix: str) -> DatasetError:
    problem = stops(ProblemKind.CONFIG_UNREADABLE, what, fix)
    return DatasetError.listing(f"{path} cannot be read", [problem])


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error).replace("Cannot overwrite a value", "Duplicate key")
    except RecursionError:
        what = "Brackets are nested too deeply"
    problem = stops(
        ProblemKind.CONFIG_SYNTAX, what, "Put text in quotes, lists in brackets, and one key = value on each line"
    )
    raise DatasetError.listing(f"{path} is not valid TOML", [problem])


def tables(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The [general] table and the [[datasets]] entries of a parsed file; empty where missing or invalid."""
    general = document.get("general")
    datasets = document.get("datasets")
    entries = datasets if isinstance(datasets, list) else []
    return (general if isinstance(general, dict) else {}, [entry for entry in entries if isinstance(entry, dict)])


def bases_of(path: Path, reading: TrainerReading, *, cwd: Path | None = None) -> tuple[Path, ...]:
    """The folders that relative paths in `path` may be relative to, the most likely first."""
    likely = (path.parent, cwd or Path.cwd(), *((reading.root,) if reading.root is not None else ()))
    return tuple(dict.fromkeys(Path(os.path.abspath(base)) for base in likely))


def _source_problems(entry: Mapping[str, Any], where: str, section: Section) -> list[Problem]:
    named = [key for key in _SOURCES if key in entry]
    if len(named) > 1:
        # Report it once: the schema would call the second source an unknown key.
        rest = {key: value for key, value in entry.items() if key not in named[1:]}
        conflict = stops(
            ProblemKind.CONFLICTING_KEYS,
            f"has both {' and '.join(named)}",
            "Use one [[datasets]] entry for each",
            key=where,
        )
        sections = {Section.IMAGE, Section.VIDEO} if {key[:5] for key in named} == {"image", "video"} else {section}
        readings = [list(check_table(rest, where, each)) for each in sorted(sections)]
        common = [problem for problem in readings[0] if all(problem.key in {p.key for p in r} for r in readings)]
        return [conflict, *common]
    problems = list(check_table(entry, where, section))
    if not named:
        problems.append(
            stops(
                ProblemKind.MISSING_KEY,
                "has no folder of pictures or videos",
                "Add image_directory or video_directory",
                key=where,
            )
        )
    elif named[0].endswith("_jsonl_file") and "cache_directory" not in entry:
        problems.append(
            stops(
                ProblemKind.MISSING_KEY,
                f"is required with {named[0]}",
                "Add a cache folder for this dataset",
                key=f"{where}.cache_directory",
            )
        )
    return problems


def _absolute_entry(entry: Mapping[str, Any], bases: tuple[Path, ...]) -> dict[str, Any]:
    result = dict(entry)
    home = bases[0]
    for key in PATH_KEYS:
        if key not in entry:
            continue
        path = expanded(entry[key])
        if not path.is_absolute():
            base = home if key == "cache_directory" else next((b for b in bases if os.path.exists(b / path)), bases[0])
            if key in _SOURCES:
                home = base
            path = base / path
        result[key] = path
    return result


def _subset(index: int, general: Mapping[str, Any], entry: Mapping[str, Any]) -> Subset:
    kind = media_kind(entry)

    def effective(key: str, default: Any) -> Any:  # noqa: ANN401 - values of any key, already checked by the schema
        return entry.get(key, general.get(key, default))

    # Defaults: BaseDatasetParams and VideoDatasetParams in the trainer's dataset/config_utils.py, both
    # versions.
    resolution = effective("resolution", [960, 544])
    directory = entry.get(f"{kind}_directory")
    video = None
    if kind is MediaKind.VIDEO:
        video = VideoSettings(
            target_frames=tuple(entry.get("target_frames", (1,))),
            frame_extraction=FrameExtraction(entry.get("frame_extraction", FrameExtraction.HEAD)),
            frame_stride=entry.get("frame_stride", 1),
            frame_sample=entry.get("frame_sample", 1),
            max_frames=entry.get("max_frames", 129),
            source_fps=entry.get("source_fps"),
        )
    return Subset(
        index=index,
        kind=kind,
        directory=directory,
        jsonl=None if directory is not None else entry[f"{kind}_jsonl_file"],
        cache_directory=entry.get("cache_directory", directory),
        resolution=tuple(resolution) if isinstance(resolution, list) else (resolution, resolution),
        batch_size=effective("batch_size", 1),
        num_repeats=effective("num_repeats", 1),
        enable_bucket=effective("enable_bucket", False),  # noqa: FBT003 - the default of a key, not a switch
        bucket_no_upscale=effective("bucket_no_upscale", False),  # noqa: FBT003 - the same
        caption_extension=effective("caption_extension", None),
        video=video,
    )


def _subset_problems(subset: Subset) -> Iterator[Problem]:
    where = f"datasets[{subset.index}]"

    def of(kind: ProblemKind, key: str, what: str, fix: str, path: Path | None = None) -> Problem:
        return stops(kind, what, fix, path, key=f"{where}.{key}")

    missing = ProblemKind.NO_SUCH_DIRECTORY
    if subset.directory is not None and not os.path.isdir(subset.directory):
        what = "is a file, not a folder" if os.path.exists(subset.directory) else _why_missing(subset.directory)
        fix = "Use the folder that contains the files"
        yield of(missing, f"{subset.kind}_directory", what, fix, subset.directory)
    if subset.jsonl is not None and not os.path.isfile(subset.jsonl):
        what = "is not a file" if os.path.exists(subset.jsonl) else _why_missing(subset.jsonl)
        yield of(missing, f"{subset.kind}_jsonl_file", what, "Use the path of the jsonl file", subset.jsonl)
    if subset.directory is not None and subset.caption_extension is None:
        what = "is missing, so no caption would be found"
        yield of(ProblemKind.MISSING_KEY, "caption_extension", what, 'Add caption_extension = ".txt" under [general]')
    yield from _cache_problems(subset, where)
    if not is_resolution_possible(subset.resolution, enable_bucket=subset.enable_bucket):
        rule = "at least 32x32 pixels" if subset.enable_bucket else "multiples of 16 where enable_bucket is off"
        what = f"is {subset.resolution[0]}x{subset.resolution[1]}"
        yield of(ProblemKind.WRONG_VALUE, "resolution", what, f"Use {rule}, like [960, 960]")
    if subset.video is not None:
        yield from _video_remarks(subset.video, where)


def _cache_problems(subset: Subset, where: str) -> Iterator[Problem]:
    cache = subset.cache_directory
    pattern = pattern_characters(cache)
    if pattern:
        yield stops(
            ProblemKind.CACHE_PATH,
            f"contains {pattern}; the trainer reads that as a pattern and finds no caches",
            "Set cache_directory to a path without [ ] * ?",
            cache,
            key=f"{where}.cache_directory",
        )
    if os.path.exists(cache) and not os.path.isdir(cache):
        yield stops(
            ProblemKind.CACHE_PATH,
            "is a file, not a folder",
            "Use a folder; it is created when needed",
            cache,
            key=f"{where}.cache_directory",
        )


def _video_remarks(video: VideoSettings, where: str) -> Iterator[Problem]:
    rounded = tuple(rounded_frames(frames) for frames in video.target_frames)
    if rounded != video.target_frames:
        yield note(
            ProblemKind.WRONG_VALUE,
            f"the trainer rounds {list(video.target_frames)} down to {list(rounded)}",
            "Use numbers of the form N*4+1",
            key=f"{where}.target_frames",
        )
    if video.frame_extraction is FrameExtraction.CHUNK and 1 in rounded:
        yield harms(
            ProblemKind.WRONG_VALUE,
            '1 with frame_extraction = "chunk" makes every frame an item',
            "Remove the 1",
            key=f"{where}.target_frames",
        )


def _shared_caches(subsets: list[Subset]) -> Iterator[Problem]:
    owners: dict[str, int] = {}
    for subset in subsets:
        real = os.path.realpath(subset.cache_directory)
        owner = owners.setdefault(real, subset.index)
        if owner != subset.index:
            yield stops(
                ProblemKind.SHARED_CACHE,
                f"is also the cache of datasets[{owner}]; each would delete the other's files",
                "Give every dataset its own cache_directory",
                subset.cache_directory,
                key=f"datasets[{subset.index}].cache_directory",
            )


def _why_missing(path: Path) -> str:
    return "is a Windows path, not a path on this machine" if is_windows_path(path) else "does not exist"
