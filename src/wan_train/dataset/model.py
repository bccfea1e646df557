"""A dataset: its configuration, items and problems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.text import visible

EXAMPLES_PER_KIND = 10


class MediaKind(StrEnum):
    """What a dataset contains; a dataset.toml entry is one or the other, never both."""

    IMAGE = "image"
    VIDEO = "video"


class FrameExtraction(StrEnum):
    """How the trainer cuts clips out of a video; the value is the word in dataset.toml."""

    HEAD = "head"
    CHUNK = "chunk"
    SLIDE = "slide"
    UNIFORM = "uniform"
    FULL = "full"


class DatasetPreset(StrEnum):
    """Sizes of pictures and clips for `dataset write`; configs/dataset-presets has a file for each, with its source."""

    QUALITY = "quality"
    BALANCED = "balanced"
    TURBO = "turbo"
    SEVERAL = "several"


class Severity(StrEnum):
    """What a problem costs: the run, some pictures, quality, or nothing."""

    STOPS = "stops"
    LOSES = "loses"
    HARMS = "harms"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """The sort key: 0 for the worst."""
        return tuple(Severity).index(self)


class ProblemKind(StrEnum):
    """The kind of a problem; the value is stable and appears in JSON."""

    CONFIG_UNREADABLE = "config-unreadable"
    CONFIG_SYNTAX = "config-syntax"
    UNKNOWN_KEY = "unknown-key"
    WRONG_TYPE = "wrong-type"
    WRONG_VALUE = "wrong-value"
    MISSING_KEY = "missing-key"
    UNUSED_KEY = "unused-key"
    CONFLICTING_KEYS = "conflicting-keys"
    NO_SUCH_DIRECTORY = "no-such-directory"
    SHARED_CACHE = "shared-cache"
    CACHE_PATH = "cache-path"
    EMPTY_DATASET = "empty-dataset"
    NO_CAPTIONS = "no-captions"
    MISSING_CAPTION = "missing-caption"
    EMPTY_CAPTION = "empty-caption"
    CAPTION_ENCODING = "caption-encoding"
    CAPTION_LINE_ENDS = "caption-line-ends"
    LONG_CAPTION = "long-caption"
    ORPHAN_CAPTION = "orphan-caption"
    UNREADABLE_MEDIA = "unreadable-media"
    TRUNCATED_MEDIA = "truncated-media"
    TOO_LARGE = "too-large"
    TOO_SMALL = "too-small"
    NOT_A_FILE = "not-a-file"
    IGNORED_FILE = "ignored-file"
    ROTATED = "rotated"
    TRANSPARENT = "transparent"
    COLOURS = "colours"
    ANIMATED = "animated"
    WRONG_ENDING = "wrong-ending"
    CROPPED = "cropped"
    SAME_STEM = "same-stem"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near-duplicate"
    LONG_NAME = "long-name"
    BAD_RECORD = "bad-record"
    TOO_FEW_FRAMES = "too-few-frames"
    UNUSED_FRAMES = "unused-frames"
    FRAME_RATE = "frame-rate"
    FRAMES_UNKNOWN = "frames-unknown"
    MIXED_SHAPES = "mixed-shapes"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: where (`key` in dataset.toml, `path` of a file, or both), what, and how to fix it.

    `row` is the line of a jsonl file, from 1. `is_fixable` means that `--fix` can probably fix it. `misnamed` is the
    caption file that only needs another name.
    """

    severity: Severity
    kind: ProblemKind
    what: str
    fix: str
    path: Path | None = None
    _: KW_ONLY
    key: str = ""
    row: int | None = None
    is_fixable: bool = False
    misnamed: Path | None = None

    def place(self, shown: str) -> str:
        """`shown`, the path as text, with the line of a jsonl file: `items.jsonl:3`."""
        return shown if self.row is None else f"{shown}:{self.row}"

    @property
    def sentences(self) -> str:
        """What is wrong, then the fix."""
        return f"{self.what}. {self.advice}"

    @property
    def advice(self) -> str:
        """The fix as a sentence."""
        return self.fix if self.fix.endswith("?") else f"{self.fix}."

    @property
    def line(self) -> str:
        """The problem as one printable line without control characters."""
        where = [part for part in (self.key, self.place(str(self.path)) if self.path is not None else "") if part]
        return visible(f"{' in '.join(where)}: {self.sentences}" if where else self.sentences)


stops, loses, harms, note = (partial(Problem, severity) for severity in Severity)


class DatasetError(BadInputError):
    """A dataset or its configuration cannot be used; `problems` holds every reason found."""

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems

    @classmethod
    def listing(cls, subject: str, problems: Iterable[Problem], *, hint: str | None = None) -> DatasetError:
        """An error whose message is `subject`, then one line per problem.

        At most `EXAMPLES_PER_KIND` of one kind are printed, the rest are counted; `problems` keeps all.
        """
        found = tuple(problems)
        by_kind: dict[ProblemKind, list[Problem]] = {}
        for problem in found:
            by_kind.setdefault(problem.kind, []).append(problem)
        lines = []
        for kind, group in by_kind.items():
            lines += [f"  {problem.line}" for problem in group[:EXAMPLES_PER_KIND]]
            if len(group) > EXAMPLES_PER_KIND:
                lines.append(f"  … and {len(group) - EXAMPLES_PER_KIND} more of this kind ({kind})")
        count = f"{len(found)} problem{'' if len(found) == 1 else 's'}"
        return cls("\n".join([f"{visible(subject)}: {count}", *lines]), problems=found, hint=hint)


class CannotFixError(Exception):
    """Why a file is left as it is, as a phrase for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerReading:
    """How one trainer version reads a dataset, as far as versions differ.

    `name` is the version in words. `root` is its working directory, against which it resolves relative paths.
    """

    name: str
    drops_uncaptioned_images: bool
    reads_avif: bool
    root: Path | None = None


GUIDE_READING = TrainerReading(
    name="musubi-tuner d0a1930",
    drops_uncaptioned_images=False,
    # Its .avif needs the pillow_avif package, which it does not install.
    reads_avif=False,
)
"""musubi-tuner at d0a1930 (dataset/config_utils.py, dataset/image_video_dataset.py)."""

NEWEST_READING = TrainerReading(name="musubi-tuner v0.3.4", drops_uncaptioned_images=True, reads_avif=True)
"""musubi-tuner at v0.3.4 (dataset/config_utils.py, dataset/datasources.py, dataset/media_utils.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """How clips are cut from videos. `source_fps` is in frames per second; None takes the frames as they are."""

    target_frames: tuple[int, ...]
    frame_extraction: FrameExtraction
    frame_stride: int
    frame_sample: int
    max_frames: int
    source_fps: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One `[[datasets]]` entry with every value resolved (entry, then [general], then the trainer's default).

    All paths are absolute. Exactly one of `directory` and `jsonl` is set. `resolution` is (width, height) in pixels.
    """

    index: int
    kind: MediaKind
    directory: Path | None
    jsonl: Path | None
    cache_directory: Path
    resolution: tuple[int, int]
    batch_size: int
    num_repeats: int
    enable_bucket: bool
    bucket_no_upscale: bool
    caption_extension: str | None
    video: VideoSettings | None

    @property
    def source(self) -> Path:
        """The folder or the jsonl file that the items come from."""
        source = self.directory or self.jsonl
        if source is None:
            raise AssertionError("a subset has a directory or a jsonl file")
        return source


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOverrides:
    """Values from the command line that take precedence over dataset.toml; None leaves the file's value."""

    resolution: tuple[int, int] | None = None
    batch_size: int | None = None
    num_repeats: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A dataset.toml that the trainer accepts: its text as the user wrote it, and its resolved values.

    `text` keeps comments (without a byte order mark). `remarks` are problems that do not stop a run.
    `overrides` are already in the values of `datasets`, not in `text`.
    """

    path: Path
    text: str
    datasets: tuple[Subset, ...]
    remarks: tuple[Problem, ...] = ()
    overrides: DatasetOverrides = DatasetOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture or clip that the trainer picks up.

    `width` and `height` are in pixels, None if nothing on this machine can read the file's header.
    `frames` is None for pictures and for videos of unknown length. `caption_characters` counts the
    stripped text. `caption` is the whole caption of a jsonl record, None if the caption is a file.
    """

    path: Path
    caption_path: Path | None
    caption_characters: int
    width: int | None
    height: int | None
    frames: int | None = None
    caption: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetInventory:
    """The items of one `[[datasets]]` entry."""

    subset: Subset
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything found for a configuration; `subsets` in the order of the file."""

    config: DatasetConfig
    reading: TrainerReading
    subsets: tuple[SubsetInventory, ...]
    problems: tuple[Problem, ...]

    @property
    def stopping(self) -> tuple[Problem, ...]:
        """The problems that stop the trainer from starting or make it crash."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.STOPS)

    def require(self, fix: str | None = None) -> None:
        """Raise DatasetError with every stopping problem, if there are any.

        `fix` is a command that can fix some of them.
        """
        if self.stopping:
            raise DatasetError.listing(
                f"the dataset of {self.config.path} cannot be trained",
                self.stopping,
                hint=f"Run `{fix}`, fix the rest by hand, and start again; nothing was changed."
                if fix is not None
                else "Fix the lines above and start again; nothing was changed.",
            )
