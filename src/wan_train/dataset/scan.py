"""What the trainer will find for a dataset.toml, and every problem with it, before any GPU is used.

Names come from one directory scan, sizes from file headers, and captions are read whole. Ten thousand pictures take
seconds.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from wan_train.base.files import can_be_written
from wan_train.base.host import without_garbage_collection
from wan_train.dataset import checks, jsonl
from wan_train.dataset.buckets import bucket_for
from wan_train.dataset.captions import TokenCounter, check_record_caption, read_caption
from wan_train.dataset.checks import duplicates
from wan_train.dataset.config import bases_of, load
from wan_train.dataset.deep_scan import Depth, deep_scan
from wan_train.dataset.listing import Listing, list_media, media_subfolders
from wan_train.dataset.model import (
    GUIDE_READING,
    DatasetConfig,
    DatasetError,
    DatasetOverrides,
    Inventory,
    Item,
    MediaKind,
    Problem,
    ProblemKind,
    Severity,
    Subset,
    SubsetInventory,
    TrainerReading,
)
from wan_train.dataset.pictures import Picture, Unreadable, quiet_about_size, read_picture
from wan_train.dataset.resolve import ExistingConfig, NewConfig, Resolved
from wan_train.dataset.snapshot import with_overrides
from wan_train.dataset.video import Clip, read_clip
from wan_train.dataset.writing import text_for_directory

# The longest suffix that the trainer appends to a stem for a cache file. A file name has at most 255 bytes.
_IMAGE_CACHE_ENDING = len("_0000x0000_wan.safetensors")
_VIDEO_CACHE_ENDING = len("_00000-000_0000x0000_wan.safetensors")
_LONGEST_NAME = 255


@without_garbage_collection()
def scan(config: DatasetConfig, *, reading: TrainerReading = GUIDE_READING, tokenizer: Path | None = None) -> Inventory:
    """Inspect every file the trainer would, and collect all problems; never raises for what it finds.

    `reading` is the trainer version: d0a1930 stops at a picture without caption, v0.3.4 skips it. `tokenizer` is the
    text encoder's tokenizer.json; without it the length of captions is estimated.
    """
    tokens = TokenCounter(file=tokenizer)
    problems = list(config.remarks)
    subsets = []
    with quiet_about_size():
        for subset in config.datasets:
            one = _Scan(subset=subset, reading=reading, config=config, tokens=tokens)
            items = tuple(one.items())
            subsets.append(SubsetInventory(subset=subset, items=items))
            problems += one.problems
    # Two datasets in one folder report the same stray files, so remove duplicates.
    return Inventory(config=config, reading=reading, subsets=tuple(subsets), problems=tuple(dict.fromkeys(problems)))


@dataclass(slots=True, kw_only=True)
class _Scan:
    """One pass over one subset: iterating over `items` fills `problems`."""

    subset: Subset
    reading: TrainerReading
    config: DatasetConfig
    tokens: TokenCounter
    sizes: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unknown_lengths: int = 0

    @property
    def _drops_uncaptioned(self) -> bool:
        return self.subset.kind is MediaKind.IMAGE and self.reading.drops_uncaptioned_images

    def items(self) -> Iterator[Item]:
        found = list(self._from_directory() if self.subset.directory is not None else self._from_jsonl())
        yield from found
        self._check_together(found)

    def report(self, kind: ProblemKind, severity: Severity, what: str, fix: str, path: Path | None = None) -> None:
        key = f"datasets[{self.subset.index}]"
        self.problems.append(Problem(severity, kind, what, fix, path, key="" if path else key))

    def _from_directory(self) -> Iterator[Item]:
        directory = self.subset.source
        try:
            listing = list_media(directory, avif=self.reading.reads_avif)
        except OSError as error:
            what = f"cannot be listed: {error.strerror}"
            self.report(ProblemKind.UNREADABLE_MEDIA, Severity.STOPS, what, "Check the permissions", directory)
            return
        names = listing.images if self.subset.kind is MediaKind.IMAGE else listing.videos
        if not names:
            self._nothing_found(directory, listing)
            return
        self._note_ignored(directory, listing)
        self._note_other_kind(directory, listing)
        extension = self.subset.caption_extension or ""
        present = {name for name in (*listing.others, *listing.subfolders) if name.endswith(extension)}
        without: list[Path] = []
        # v0.3.4 strips only one extension from a caption's name, so it matches nothing with `.tags.txt`.
        if self._drops_uncaptioned and extension.count(".") > 1:
            what = f"{self.reading.name} finds no captions with the extension {extension}"
            self.report(ProblemKind.NO_CAPTIONS, Severity.STOPS, what, "Use an extension with one dot", directory)
        for name in names:
            path = directory / name
            caption = _stem(name) + extension
            if caption not in present and not os.path.isfile(directory / caption):
                without.append(path)
                if self._drops_uncaptioned:
                    continue
                yield from self._captioned(path, caption=None)
            else:
                yield from self._captioned(path, caption=directory / caption)
        misnamed = self._missing_captions(directory, without, listing, count=len(names))
        others = tuple(name for name in listing.others if name not in misnamed)
        self._orphans(directory, {*listing.images, *listing.videos, *listing.lookalikes}, others)

    def _nothing_found(self, directory: Path, listing: Listing) -> None:
        noun, other_noun = ("picture", "video") if self.subset.kind is MediaKind.IMAGE else ("video", "picture")
        inside = next(media_subfolders(directory, listing.subfolders), None)
        other = listing.videos if self.subset.kind is MediaKind.IMAGE else listing.images
        if inside is not None:
            fix = f"Subfolders are not read; use {inside} instead"
        elif other:
            other_key = "video_directory" if self.subset.kind is MediaKind.IMAGE else "image_directory"
            fix = f"It contains {len(other)} {other_noun}{'' if len(other) == 1 else 's'}; use {other_key}"
        elif listing.lookalikes:
            fix = f"{listing.lookalikes[0]} has an unsupported type; convert it"
        else:
            fix = f"Add {noun}s and their captions"
        self.report(ProblemKind.EMPTY_DATASET, Severity.STOPS, f"contains no {noun}s", fix, directory)

    def _note_ignored(self, directory: Path, listing: Listing) -> None:
        for name in listing.lookalikes:
            what = "unsupported file type or extension"
            fix = "Convert it to .png, .jpg or .mp4 with a lower-case extension"
            self.report(ProblemKind.IGNORED_FILE, Severity.LOSES, what, fix, directory / name)
        used = {path for each in self.config.datasets for path in (each.directory, each.cache_directory)}
        for folder in media_subfolders(directory, listing.subfolders):
            if folder not in used:
                what = "is a subfolder with media; subfolders are not read"
                fix = "Add a [[datasets]] entry to train it"
                self.report(ProblemKind.IGNORED_FILE, Severity.NOTE, what, fix, folder)

    def _note_other_kind(self, directory: Path, listing: Listing) -> None:
        mine = self.subset.kind
        rest, noun = listing.videos, "video"
        if mine is MediaKind.VIDEO:
            rest, noun = listing.images, "picture"
        taken = any(each.directory == directory and each.kind is not mine for each in self.config.datasets)
        if rest and not taken:
            count = f"{len(rest)} {noun}{'' if len(rest) == 1 else 's'}"
            what = f"also contains {count}, not trained by this dataset"
            fix = "Add a [[datasets]] entry with its own cache_directory to train them"
            self.report(ProblemKind.IGNORED_FILE, Severity.NOTE, what, fix, directory)

    def _missing_captions(self, directory: Path, without: list[Path], listing: Listing, *, count: int) -> set[str]:
        """Report missing captions; return the names of files that would match in another case."""
        extension = self.subset.caption_extension or ""
        misnamed = _in_other_case(without, listing, extension)
        is_all = len(without) == count
        if without and is_all and not misnamed:
            what = f"has no {extension} caption for {f'any of {count} files' if count > 1 else 'its one file'}"
            self.report(
                ProblemKind.NO_CAPTIONS, Severity.STOPS, what, f"Write one {extension} file for each", directory
            )
            return set()
        for path in without:
            wanted = f"{_stem(path.name)}{extension}"
            what = "has no caption"
            fix = f"Write {wanted} beside it"
            if (found := misnamed.get(path)) is not None:
                what += f": the trainer expects {wanted}, and {found} exists"
                fix = "Rename it, or use --fix"
            elif self._drops_uncaptioned:
                what += f", so {self.reading.name} skips it"
            self.problems.append(
                Problem(
                    Severity.LOSES if self._drops_uncaptioned and not is_all else Severity.STOPS,
                    ProblemKind.MISSING_CAPTION,
                    what,
                    fix,
                    path,
                    misnamed=directory / found if found is not None else None,
                    is_fixable=found is not None,
                )
            )
        return set(misnamed.values())

    def _orphans(self, directory: Path, media: set[str], others: tuple[str, ...]) -> None:
        extension = self.subset.caption_extension or ""
        stems = {_stem(name) for name in media}
        for name in others:
            if extension and name.endswith(extension) and name.removesuffix(extension) not in stems:
                what, fix = "has no picture or video", "Remove it, or add its picture"
                self.report(ProblemKind.ORPHAN_CAPTION, Severity.NOTE, what, fix, directory / name)

    def _from_jsonl(self) -> Iterator[Item]:
        source = self.subset.source
        found = jsonl.read(source, self.subset.kind, bases_of(source, self.reading))
        self.problems += found.problems
        for record in found.records:
            caption = check_record_caption(source, record.row, record.caption, self.tokens)
            self.problems += caption.problems
            for item in self._measured(record.path, caption_path=source, caption=caption.text):
                yield replace(item, caption=record.caption)

    def _captioned(self, path: Path, *, caption: Path | None) -> Iterator[Item]:
        words = ""
        if caption is not None:
            read = read_caption(caption, self.tokens)
            self.problems += read.problems
            words = read.text
        yield from self._measured(path, caption_path=caption, caption=words)

    def _measured(self, path: Path, *, caption_path: Path | None, caption: str) -> Iterator[Item]:
        self._check_name(path)
        if self.subset.kind is MediaKind.IMAGE:
            seen: Picture | Clip | Unreadable | None = read_picture(path)
        elif self.subset.jsonl is not None and os.path.isdir(path):
            seen = self._frames_in_folder(path)
        else:
            seen = read_clip(path)
        item = partial(Item, path=path, caption_path=caption_path, caption_characters=len(caption))
        match seen:
            case Unreadable(kind=kind, what=what):
                self.report(kind, Severity.STOPS, what, "Replace or remove the file", path)
            case None:
                self.unknown_lengths += 1
                yield item(width=None, height=None)
            case Picture():
                self.sizes[path] = seen.size
                self.problems += checks.check_picture(path, seen, self.subset)
                yield item(width=seen.width, height=seen.height)
            case Clip():
                if seen.frames is None:
                    what = "has no frames that can be counted, so the steps are unknown"
                    fix = "Encode it again from its original, or remove it"
                    self.report(ProblemKind.FRAMES_UNKNOWN, Severity.NOTE, what, fix, path)
                if self.subset.video is not None:
                    self.problems += checks.check_clip(path, seen, self.subset.video)
                yield item(width=seen.width, height=seen.height, frames=seen.frames)

    def _frames_in_folder(self, folder: Path) -> Clip | Unreadable:
        """A folder of pictures, which a jsonl record may name as one video."""
        try:
            names = list_media(folder, avif=self.reading.reads_avif).images
        except OSError as error:
            return Unreadable(ProblemKind.UNREADABLE_MEDIA, f"cannot be listed: {error.strerror}")
        if not names:
            return Unreadable(ProblemKind.UNREADABLE_MEDIA, "is a folder without pictures")
        first = read_picture(folder / names[0])
        if isinstance(first, Unreadable):
            return first
        return Clip(width=first.width, height=first.height, frames=len(names))

    def _check_name(self, path: Path) -> None:
        ending = _IMAGE_CACHE_ENDING if self.subset.kind is MediaKind.IMAGE else _VIDEO_CACHE_ENDING
        stem = _stem(path.name)
        if len(os.fsencode(stem)) + ending > _LONGEST_NAME:
            what = f"has too long a name for its cache file ({len(os.fsencode(stem))} bytes)"
            fix = f"Shorten the name to {_LONGEST_NAME - ending} bytes"
            self.report(ProblemKind.LONG_NAME, Severity.STOPS, what, fix, path)

    def _check_together(self, items: list[Item]) -> None:
        self._check_stems(items)
        self._check_cache()
        self.problems += duplicates(self.sizes)
        if self.unknown_lengths:
            count = f"{self.unknown_lengths} video{'' if self.unknown_lengths == 1 else 's'}"
            what = f"the length of {count} is unknown, so the steps are unknown"
            fix = "Install PyAV to read videos: pip install av"
            self.report(ProblemKind.FRAMES_UNKNOWN, Severity.NOTE, what, fix)
        video = self.subset.video
        if video is not None and not self.subset.enable_bucket and self.subset.batch_size > 1:
            shapes = {_video_bucket(item, self.subset) for item in items if item.width is not None}
            if len(shapes) > 1:
                what = "videos of several shapes share a batch, because enable_bucket is off"
                fix = "Set enable_bucket = true, or batch_size = 1"
                self.report(ProblemKind.MIXED_SHAPES, Severity.STOPS, what, fix)

    def _check_stems(self, items: list[Item]) -> None:
        """Report shared cache names.

        Only one file of each latent cache is trained (stem and stored size of a picture, trained size of a clip), and
        only one caption of each stem.
        """
        stems: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            stems[_stem(item.path.name)].append(item)
        for group in stems.values():
            for position, item in enumerate(group[1:], start=1):
                earlier = group[:position]
                same = next((each for each in earlier if _share_latents(each, item, self.subset)), None)
                words = (item.caption_path, item.caption)
                other = next((each for each in earlier if (each.caption_path, each.caption) != words), None)
                if same is not None:
                    what = f"shares its cache with {same.path.name}, so one of them is not trained"
                    self.report(ProblemKind.SAME_STEM, Severity.LOSES, what, "Rename one of them", item.path)
                elif other is not None:
                    what = f"shares its caption cache with {other.path.name}, so one caption is lost"
                    self.report(ProblemKind.SAME_STEM, Severity.HARMS, what, "Rename one of them", item.path)
                else:
                    what = f"shares its caption with {group[0].path.name}"
                    self.report(ProblemKind.SAME_STEM, Severity.NOTE, what, "Rename one if they differ", item.path)

    def _check_cache(self) -> None:
        cache = self.subset.cache_directory
        if not can_be_written(cache):
            what = "cannot be written, so caches go below the runs directory"
            self.report(ProblemKind.CACHE_PATH, Severity.NOTE, what, "Choose another folder with --cache-dir", cache)


def _share_latents(one: Item, other: Item, subset: Subset) -> bool:
    """Whether two items of one stem have the same latent cache; assumed for a clip of unknown size."""
    if subset.kind is MediaKind.IMAGE:
        return (one.width, one.height) == (other.width, other.height)
    return None in {one.width, other.width} or _video_bucket(one, subset) == _video_bucket(other, subset)


def _video_bucket(item: Item, subset: Subset) -> tuple[int, int]:
    # The trainer always scales clips with buckets on (retrieve_latent_cache_batches, both versions).
    return bucket_for(item.width or 1, item.height or 1, resolution=subset.resolution)


def _in_other_case(without: list[Path], listing: Listing, extension: str) -> dict[Path, str]:
    """Files that differ from a picture's missing caption only in case: `UP.TXT` for `UP.PNG`.

    Only unambiguous pairs of one file and one picture; never the caption of another picture.
    """
    taken = {_stem(name) + extension for name in (*listing.images, *listing.videos)}
    spare: dict[str, list[str]] = defaultdict(list)
    for name in listing.others:
        if name not in taken:
            spare[name.casefold()].append(name)
    wanted = {path: f"{_stem(path.name)}{extension}".casefold() for path in without}
    wanting = Counter(wanted.values())
    return {
        path: spare[folded][0]
        for path, folded in wanted.items()
        if wanting[folded] == 1 and len(spare.get(folded, ())) == 1
    }


def _stem(name: str) -> str:
    """The name without its extension, by the trainer's own rule."""
    return os.path.splitext(name)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All problems of one kind and severity, in the order found."""

    kind: ProblemKind
    severity: Severity
    problems: tuple[Problem, ...]

    @property
    def line(self) -> str:
        """The first problem as one printable line, and the number of others."""
        more = len(self.problems) - 1
        return self.problems[0].line + (f" (and {more} more of this kind)" if more else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Everything found in a dataset. `config` is the path of its dataset.toml, which may not exist yet (`is_written`).

    `inventory` is None if the dataset.toml cannot be used; then no file was inspected.
    """

    config: Path
    is_written: bool
    reading: TrainerReading
    inventory: Inventory | None
    problems: tuple[Problem, ...]
    left_out: tuple[str, ...] = ()
    """Sentences: what was not checked, and the option that checks it."""

    @property
    def stops(self) -> bool:
        """Whether training cannot start."""
        return any(problem.severity is Severity.STOPS for problem in self.problems)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The worst first; within a severity in the order of `ProblemKind`."""
        return group(self.problems)


def group(problems: Sequence[Problem]) -> tuple[Group, ...]:
    """Problems by severity, then by kind."""
    kinds = tuple(ProblemKind)

    def rank(problem: Problem) -> tuple[int, int]:
        return problem.severity.rank, kinds.index(problem.kind)

    return tuple(
        Group(kind=kinds[kind], severity=tuple(Severity)[severity], problems=tuple(found))
        for (severity, kind), found in groupby(sorted(problems, key=rank), key=rank)
    )


def read_config(located: Resolved, reading: TrainerReading) -> DatasetConfig:
    """The dataset.toml, or what would be written for a folder without one; raises DatasetError."""
    match located:
        case ExistingConfig(toml_path=path):
            return load(path, reading=reading)
        case NewConfig(directory=directory, toml_path=path):
            with tempfile.TemporaryDirectory(prefix="wan-train-") as scratch:
                draft = Path(scratch) / "dataset.toml"
                draft.write_text(text_for_directory(directory), encoding="utf-8")
                return replace(load(draft, reading=reading), path=path)


def check(
    located: Resolved,
    *,
    reading: TrainerReading,
    overrides: DatasetOverrides,
    tokenizer: Path | None = None,
    depth: Depth = Depth.QUICK,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Check:
    """Check everything; never raises for what is in the dataset or its dataset.toml.

    `progress` gets the number of pictures and clips decoded, and their total.
    """
    path, is_written = located.toml_path, isinstance(located, ExistingConfig)
    try:
        config = with_overrides(read_config(located, reading), overrides)
    except DatasetError as error:
        return Check(config=path, is_written=is_written, reading=reading, inventory=None, problems=error.problems)
    inventory = scan(config, reading=reading, tokenizer=tokenizer)
    decoded = deep_scan(inventory, depth, progress=progress)
    resolved = set(decoded.resolved)
    problems = (*(problem for problem in inventory.problems if problem not in resolved), *decoded.problems)
    return Check(
        config=path,
        is_written=is_written,
        reading=reading,
        inventory=replace(inventory, problems=problems),
        problems=problems,
        left_out=decoded.left_out,
    )
