"""What the trainer will find for a dataset.toml, and everything that is wrong with it, before any GPU is
touched.

Names come from one directory scan, sizes from file headers, captions are read whole. Ten thousand pictures
take seconds.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base.files import can_be_written
from wan_train.dataset import clip_checks, picture_checks, records
from wan_train.dataset.buckets import bucket_for
from wan_train.dataset.bulk import without_collection
from wan_train.dataset.captions import of_record, read_caption
from wan_train.dataset.config import bases_of
from wan_train.dataset.duplicates import same_files
from wan_train.dataset.listing import Listing, list_media, media_subfolders
from wan_train.dataset.media import Picture, Unreadable, quiet_about_size, read_picture
from wan_train.dataset.model import (
    GUIDE_READING,
    DatasetConfig,
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
from wan_train.dataset.tokens import TokenCounter
from wan_train.dataset.video import Clip, read_clip

# The longest thing the trainer appends to a stem for a cache file; a file name holds 255 bytes.
_IMAGE_CACHE_ENDING = len("_0000x0000_wan.safetensors")
_VIDEO_CACHE_ENDING = len("_00000-000_0000x0000_wan.safetensors")
_LONGEST_NAME = 255


@without_collection()
def take(config: DatasetConfig, *, reading: TrainerReading = GUIDE_READING, tokenizer: Path | None = None) -> Inventory:
    """Look at every file the trainer would, and collect all problems; never raises for what it finds.

    `reading` says how the trainer version treats what versions differ in: a picture without caption stops
    d0a1930 and is left out by v0.3.4, so the same problem is STOPS or LOSES. `tokenizer` is the text encoder's
    tokenizer.json, without which the length of captions is estimated.
    """
    tokens = TokenCounter(file=tokenizer)
    problems = list(config.remarks)
    subsets = []
    with quiet_about_size():
        for subset in config.datasets:
            look = _Look(subset=subset, reading=reading, config=config, tokens=tokens)
            items = tuple(look.items())
            subsets.append(SubsetInventory(subset=subset, items=items))
            problems += look.problems
    # Two datasets of one folder see the same stray files.
    return Inventory(config=config, reading=reading, subsets=tuple(subsets), problems=tuple(dict.fromkeys(problems)))


@dataclass(slots=True, kw_only=True)
class _Look:
    """One pass over one subset; `problems` fills while `items` is drained."""

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
        self._judge_whole(found)

    def report(self, kind: ProblemKind, severity: Severity, what: str, mend: str, path: Path | None = None) -> None:
        key = f"datasets[{self.subset.index}]"
        self.problems.append(
            Problem(kind=kind, severity=severity, what=what, mend=mend, path=path, key="" if path else key)
        )

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
        self._note_other_sort(directory, listing)
        extension = self.subset.caption_extension or ""
        present = {name for name in (*listing.others, *listing.subfolders) if name.endswith(extension)}
        without: list[Path] = []
        # v0.3.4 strips one ending from a caption's name, so it pairs nothing with `.tags.txt`.
        if self._drops_uncaptioned and extension.count(".") > 1:
            what = f"{self.reading.name} finds no captions that end in {extension}"
            self.report(ProblemKind.NO_CAPTIONS, Severity.STOPS, what, "Use an ending with one dot", directory)
        for name in names:
            path = directory / name
            caption = os.path.splitext(name)[0] + extension  # noqa: PTH122 - the trainer's own rule for stems
            if caption not in present and not os.path.isfile(directory / caption):  # noqa: PTH113 - never raises
                without.append(path)
                if self._drops_uncaptioned:
                    continue
                yield from self._look_at(path, caption=None)
            else:
                yield from self._look_at(path, caption=directory / caption)
        meant = self._missing_captions(directory, without, listing, count=len(names))
        others = tuple(name for name in listing.others if name not in meant)
        self._orphans(directory, {*listing.images, *listing.videos, *listing.lookalikes}, others)

    def _nothing_found(self, directory: Path, listing: Listing) -> None:
        noun = "pictures" if self.subset.kind is MediaKind.IMAGE else "videos"
        inside = next(media_subfolders(directory, listing.subfolders), None)
        other = listing.videos if self.subset.kind is MediaKind.IMAGE else listing.images
        if inside is not None:
            mend = f"Subfolders are not read; name {inside} instead"
        elif other:
            other_key = "video_directory" if self.subset.kind is MediaKind.IMAGE else "image_directory"
            mend = f"It holds {len(other)} files of the other sort; use {other_key}"
        elif listing.lookalikes:
            mend = f"The trainer does not read files like {listing.lookalikes[0]}; convert them"
        else:
            mend = f"Put {noun} and their captions into it"
        self.report(ProblemKind.EMPTY_DATASET, Severity.STOPS, f"holds no {noun}", mend, directory)

    def _note_ignored(self, directory: Path, listing: Listing) -> None:
        for name in listing.lookalikes:
            what = "is of a kind, or has an ending written in a way, that the trainer does not read"
            mend = "Convert or rename it to .png, .jpg or .mp4, in lower case, to have it trained"
            self.report(ProblemKind.IGNORED_FILE, Severity.LOSES, what, mend, directory / name)
        used = {path for each in self.config.datasets for path in (each.directory, each.cache_directory)}
        for folder in media_subfolders(directory, listing.subfolders):
            if folder not in used:
                what = "is a subfolder with media, which is not read"
                mend = "Add a [[datasets]] for it to have it trained"
                self.report(ProblemKind.IGNORED_FILE, Severity.NOTE, what, mend, folder)

    def _note_other_sort(self, directory: Path, listing: Listing) -> None:
        mine = self.subset.kind
        rest, noun = listing.videos, "video"
        if mine is MediaKind.VIDEO:
            rest, noun = listing.images, "picture"
        taken = any(each.directory == directory and each.kind is not mine for each in self.config.datasets)
        if rest and not taken:
            count = f"{len(rest)} {noun}{'' if len(rest) == 1 else 's'}"
            what = f"holds {count} besides, which this dataset does not train"
            mend = "Add a [[datasets]] for them with a cache_directory of its own to have them trained"
            self.report(ProblemKind.IGNORED_FILE, Severity.NOTE, what, mend, directory)

    def _missing_captions(self, directory: Path, without: list[Path], listing: Listing, *, count: int) -> set[str]:
        """Report them; the names of files that would be captions in another case."""
        extension = self.subset.caption_extension or ""
        meant = _in_other_case(without, listing, extension)
        is_all = len(without) == count
        if without and is_all and not meant:
            what = f"has no {extension} caption for any of {count} files"
            self.report(
                ProblemKind.NO_CAPTIONS, Severity.STOPS, what, f"Write one {extension} file for each", directory
            )
            return set()
        for path in without:
            wanted = f"{os.path.splitext(path.name)[0]}{extension}"  # noqa: PTH122 - as above
            what = "has no caption"
            mend = f"Write {wanted} beside it"
            if (found := meant.get(path)) is not None:
                what += f": {found} is there, and the trainer looks for {wanted}"
                mend = "Rename it, or use --fix"
            elif self._drops_uncaptioned:
                what += f", so {self.reading.name} leaves it out"
            self.problems.append(
                Problem(
                    kind=ProblemKind.MISSING_CAPTION,
                    severity=Severity.LOSES if self._drops_uncaptioned and not is_all else Severity.STOPS,
                    what=what,
                    mend=mend,
                    path=path,
                    meant=directory / found if found is not None else None,
                )
            )
        return set(meant.values())

    def _orphans(self, directory: Path, media: set[str], others: tuple[str, ...]) -> None:
        extension = self.subset.caption_extension or ""
        stems = {os.path.splitext(name)[0] for name in media}  # noqa: PTH122 - as above
        for name in others:
            if extension and name.endswith(extension) and name.removesuffix(extension) not in stems:
                what, mend = "is a caption without a picture or video", "Remove it, or add its picture"
                self.report(ProblemKind.ORPHAN_CAPTION, Severity.NOTE, what, mend, directory / name)

    def _from_jsonl(self) -> Iterator[Item]:
        source = self.subset.source
        found = records.read(source, self.subset.kind, bases_of(source, self.reading))
        self.problems += found.problems
        for record in found.records:
            caption = of_record(source, record.row, record.caption, self.tokens)
            self.problems += caption.problems
            for item in self._measured(record.path, caption_path=source, caption=caption.words):
                yield replace(item, caption=record.caption)

    def _look_at(self, path: Path, *, caption: Path | None) -> Iterator[Item]:
        words = ""
        if caption is not None:
            read = read_caption(caption, self.tokens)
            self.problems += read.problems
            words = read.words
        yield from self._measured(path, caption_path=caption, caption=words)

    def _measured(self, path: Path, *, caption_path: Path | None, caption: str) -> Iterator[Item]:
        self._judge_name(path)
        if self.subset.kind is MediaKind.IMAGE:
            seen: Picture | Clip | Unreadable | None = read_picture(path)
        elif self.subset.jsonl is not None and os.path.isdir(path):  # noqa: PTH112 - never raises
            seen = self._frames_in_folder(path)
        else:
            seen = read_clip(path)
        characters = len(caption)
        match seen:
            case Unreadable(kind=kind, what=what):
                self.report(kind, Severity.STOPS, what, "Replace or remove the file", path)
            case None:
                self.unknown_lengths += 1
                yield Item(
                    path=path,
                    caption_path=caption_path,
                    caption_characters=characters,
                    width=None,
                    height=None,
                )
            case Picture():
                self.sizes[path] = seen.size
                self.problems += picture_checks.judge(path, seen, self.subset)
                yield Item(
                    path=path,
                    caption_path=caption_path,
                    caption_characters=characters,
                    width=seen.width,
                    height=seen.height,
                )
            case Clip():
                if seen.frames is None:
                    self.unknown_lengths += 1
                if self.subset.video is not None:
                    self.problems += clip_checks.judge(path, seen, self.subset.video)
                yield Item(
                    path=path,
                    caption_path=caption_path,
                    caption_characters=characters,
                    width=seen.width,
                    height=seen.height,
                    frames=seen.frames,
                )

    def _frames_in_folder(self, folder: Path) -> Clip | Unreadable:
        """A jsonl record may name a folder of pictures as one video."""
        try:
            names = list_media(folder, avif=self.reading.reads_avif).images
        except OSError as error:
            return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what=f"cannot be listed: {error.strerror}")
        if not names:
            return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="is a folder without pictures")
        first = read_picture(folder / names[0])
        if isinstance(first, Unreadable):
            return first
        return Clip(width=first.width, height=first.height, frames=len(names))

    def _judge_name(self, path: Path) -> None:
        ending = _IMAGE_CACHE_ENDING if self.subset.kind is MediaKind.IMAGE else _VIDEO_CACHE_ENDING
        stem = os.path.splitext(path.name)[0]  # noqa: PTH122 - the trainer's own rule for stems
        if len(os.fsencode(stem)) + ending > _LONGEST_NAME:
            what = f"has so long a name that its cache file cannot be made ({len(os.fsencode(stem))} bytes)"
            mend = f"Shorten the name to {_LONGEST_NAME - ending} bytes"
            self.report(ProblemKind.LONG_NAME, Severity.STOPS, what, mend, path)

    def _judge_whole(self, items: list[Item]) -> None:
        self._judge_stems(items)
        self._judge_cache()
        self.problems += same_files(self.sizes)
        if self.unknown_lengths:
            what = f"the length of {self.unknown_lengths} videos is unknown, so steps cannot be counted yet"
            mend = "Install PyAV (pip install av) to have videos looked at"
            self.report(ProblemKind.FRAMES_UNKNOWN, Severity.NOTE, what, mend)
        video = self.subset.video
        if video is not None and not self.subset.enable_bucket and self.subset.batch_size > 1:
            shapes = {_video_bucket(item, self.subset) for item in items if item.width is not None}
            if len(shapes) > 1:
                what = "videos of several shapes share a batch because enable_bucket is off"
                mend = "Set enable_bucket = true, or batch_size = 1"
                self.report(ProblemKind.MIXED_SHAPES, Severity.STOPS, what, mend)

    def _judge_stems(self, items: list[Item]) -> None:
        """Caches are named by stem (and, for pictures, stored size): of two that agree, one is trained."""
        stems: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            stems[os.path.splitext(item.path.name)[0]].append(item)  # noqa: PTH122 - the trainer's rule
        for group in stems.values():
            for position, item in enumerate(group[1:], start=1):
                size = (item.width, item.height)
                twin = next((e for e in group[:position] if (e.width, e.height) == size), None)
                if twin is not None or self.subset.kind is MediaKind.VIDEO:
                    what = f"shares its cache with {(twin or group[0]).path.name}, so one of them is not trained"
                    self.report(ProblemKind.SAME_STEM, Severity.LOSES, what, "Rename one of them", item.path)
                elif item.caption_path == group[0].caption_path:
                    what = f"shares its caption with {group[0].path.name}"
                    self.report(ProblemKind.SAME_STEM, Severity.NOTE, what, "Rename one if they differ", item.path)
                else:
                    what = f"shares its caption cache with {group[0].path.name}, so one caption is lost"
                    self.report(ProblemKind.SAME_STEM, Severity.HARMS, what, "Rename one of them", item.path)

    def _judge_cache(self) -> None:
        cache = self.subset.cache_directory
        if not can_be_written(cache):
            what = "cannot be written, so a run puts the caches below its runs directory"
            self.report(ProblemKind.CACHE_PATH, Severity.NOTE, what, "Choose another place with --cache-dir", cache)


def _video_bucket(item: Item, subset: Subset) -> tuple[int, int]:
    # Clips are scaled with buckets on, whatever the configuration says (retrieve_latent_cache_batches, both
    # versions).
    return bucket_for(item.width or 1, item.height or 1, resolution=subset.resolution)


def _in_other_case(without: list[Path], listing: Listing, extension: str) -> dict[Path, str]:
    """Files that are the caption of a picture but for upper and lower case: `UP.TXT` of `UP.PNG`.

    Only where one file can be meant, by one picture, and it is not the caption of another.
    """
    taken = {_stem(name) + extension for name in (*listing.images, *listing.videos)}
    spare: dict[str, list[str]] = defaultdict(list)
    for name in listing.others:
        if name not in taken:
            spare[name.casefold()].append(name)
    wanted = {path: f"{_stem(path.name)}{extension}".casefold() for path in without}
    asking = Counter(wanted.values())
    return {
        path: spare[folded][0]
        for path, folded in wanted.items()
        if asking[folded] == 1 and len(spare.get(folded, ())) == 1
    }


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - the trainer's own rule for stems
