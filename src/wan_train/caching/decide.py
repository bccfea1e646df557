"""Which caches to keep, remove and make: a pure function of items, index and files found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from wan_train.caching.index import CacheFile, CacheIndex, Entry
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind, Contents, Flaw


class Reason(StrEnum):
    """Why a cache is removed or made; the value is stable and appears in events and JSON."""

    NEW = "new"
    PICTURE = "picture_changed"
    CAPTION = "caption_changed"
    SIZE = "size_changed"
    CUTS = "clip_settings_changed"
    MODEL = "model_changed"
    TRAINER = "trainer_changed"
    PRECISION = "precision_differs"
    TASK = "first_frame_missing"
    BROKEN = "broken"
    UNFINISHED = "unfinished"
    UNPROVED = "unproved"
    NO_ITEM = "no_item"


WORDS: Mapping[Reason, str] = {
    Reason.NEW: "not cached yet",
    Reason.PICTURE: "picture changed",
    Reason.CAPTION: "caption changed",
    Reason.SIZE: "resolution or buckets changed",
    Reason.CUTS: "clip settings changed",
    Reason.MODEL: "made with another model file",
    Reason.TRAINER: "made by another trainer version",
    Reason.PRECISION: "different precision",
    Reason.TASK: "made for text-to-video",
    Reason.BROKEN: "incomplete or contains NaN or Inf",
    Reason.UNFINISHED: "caching was interrupted",
    Reason.UNPROVED: "older than its picture, or of unknown origin",
    Reason.NO_ITEM: "picture no longer in the dataset",
}

# The first difference in this order is reported: changes by the user come before those of model and trainer.
_PARTS: Mapping[str, Reason] = {
    "picture": Reason.PICTURE,
    "caption": Reason.CAPTION,
    "size": Reason.SIZE,
    "cuts": Reason.CUTS,
    "model": Reason.MODEL,
    "precision": Reason.PRECISION,
    "trainer": Reason.TRAINER,
}
_FLAWS: Mapping[Flaw, Reason] = {
    Flaw.BROKEN: Reason.BROKEN,
    Flaw.NOT_FINITE: Reason.BROKEN,
    Flaw.OTHER_SHAPE: Reason.SIZE,
    Flaw.OTHER_TASK: Reason.TASK,
    Flaw.OTHER_PRECISION: Reason.PRECISION,
    Flaw.OTHER_CONTENT: Reason.UNPROVED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The caches of one kind that one item needs.

    `made_from` has what they depend on, by part. `name` is None for a clip's latents, which the trainer names by its
    cuts. `cuts` has those names by our own arithmetic, None if the length is unknown. `newest_ns` is when its sources
    last changed. `captions` are the texts that its text cache may contain: of several with the same stem, the trainer
    keeps one.
    """

    key: str
    stem: str
    name: str | None
    made_from: Mapping[str, str]
    sources: tuple[Path, ...] = ()
    newest_ns: int = 0
    bucket: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()
    cuts: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """One cache directory and everything of one kind that belongs in it."""

    path: Path
    kind: CacheKind
    is_clip: bool
    image_to_video: bool
    element: str
    items: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`keep` and `make` are by item, `remove` by file name. `foreign` are files that the trainer would read as caches
    but did not name. They are left alone, and nothing can be trained beside them.
    """

    keep: Mapping[str, Entry] = field(default_factory=dict)
    make: Mapping[str, Reason] = field(default_factory=dict)
    remove: Mapping[str, Reason] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        return not (self.make or self.remove or self.foreign)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNeed:
    """Numbers of items, items to cache (`make`) and files to remove, as of the plan; `reasons` counts by reason.

    `remove` includes stale files that are made again. A reason with nothing to make counts the files to remove.
    """

    items: int
    make: int
    remove: int
    reasons: Mapping[str, int] = field(default_factory=dict)


def decide(
    folder: Folder, index: CacheIndex, found: Mapping[str, Contents], *, boot: str, finished: bool = False
) -> Decision:
    """Decide what to do in one folder; `found` are its files of this kind by name.

    `finished` means that the trainer just ended without an error, so a clip has no caches but those found. Nothing is
    removed from a folder without wanted items, since the dataset may only be missing for now.
    """
    if not folder.items:
        return Decision(foreign=_foreign_files(folder, found))
    by_stem = _by_stem(folder, found)
    keep: dict[str, Entry] = {}
    make: dict[str, Reason] = {}
    remove: dict[str, Reason] = {}
    wanted_names: set[str] = set()
    for item in folder.items:
        files = {name: found[name] for name in _names(item, by_stem, found)}
        wanted_names.update(files)
        reason = _judge(folder, item, index.entries.get(item.key), files, boot=boot, finished=finished)
        if reason is None:
            known = {name: CacheFile(size=file.size, mtime_ns=file.mtime_ns) for name, file in files.items()}
            keep[item.key] = Entry(made_from=item.made_from, files=known)
        else:
            make[item.key] = reason
            remove.update(dict.fromkeys(files, reason))
    foreign = _foreign_files(folder, found)
    orphans = found.keys() - wanted_names - set(foreign)
    remove.update(dict.fromkeys(sorted(orphans), Reason.NO_ITEM))
    return Decision(keep=keep, make=make, remove=remove, foreign=foreign)


def begun(decision: Decision, folder: Folder, index: CacheIndex, *, boot: str) -> CacheIndex:
    """The index while the trainer makes missing caches: the kept entries, and what each new file will be made from."""
    wanted = {item.key: item for item in folder.items}
    pending = {key: Entry(made_from=wanted[key].made_from, begun=boot) for key in decision.make}
    return CacheIndex(entries={**decision.keep, **pending}, sources=index.sources)


def count(reasons: Mapping[str, Reason]) -> dict[str, int]:
    """The number of each reason, the most frequent first."""
    return {reason.value: number for reason, number in Counter(reasons.values()).most_common()}


def _judge(
    folder: Folder, item: Wanted, entry: Entry | None, files: Mapping[str, Contents], *, boot: str, finished: bool
) -> Reason | None:
    """Why the item's caches must be made; None if those found are valid."""
    if item.name is not None and not files:
        return Reason.NEW
    for name, file in files.items():
        flaw = _flaw(folder, item, name, file)
        if flaw is not None:
            return _FLAWS[flaw]
    if entry is None:
        return _take_over(folder, item, files)
    if entry.begun is not None:
        return _after_caching(item, entry, files, boot=boot, finished=finished)
    if {name: CacheFile(size=file.size, mtime_ns=file.mtime_ns) for name, file in files.items()} != entry.files:
        # Another program wrote them since, so they count like caches that were never in the index.
        return _take_over(folder, item, files)
    return _difference(item, entry)


def _after_caching(
    item: Wanted, entry: Entry, files: Mapping[str, Contents], *, boot: str, finished: bool
) -> Reason | None:
    """Judge caches that the trainer was started to make. None existed before, so all are from that attempt."""
    if entry.begun != boot:
        return Reason.UNFINISHED if files else Reason.NEW
    difference = _difference(item, entry)
    if difference is not None:
        return difference
    if item.captions and not _says(item, files):
        return Reason.CAPTION
    if item.name is not None or finished:
        return None
    # Some cuts of a clip may be missing.
    if files and item.cuts is not None and set(files) == item.cuts:
        return None
    return Reason.UNFINISHED if files else Reason.NEW


def _take_over(folder: Folder, item: Wanted, files: Mapping[str, Contents]) -> Reason | None:
    """Why caches that are in no index must be made again, or None; judged by their contents and time of writing."""
    match folder.kind:
        case CacheKind.TEXT:
            return None if _says(item, files) else Reason.CAPTION
        case CacheKind.LATENTS:
            if item.name is None and set(files) != (item.cuts or set()):
                return Reason.UNPROVED if files else Reason.NEW
            if not files:
                return None if item.cuts is not None else Reason.NEW
            newer = all(file.mtime_ns > item.newest_ns for file in files.values())
            return None if newer and item.bucket is not None else Reason.UNPROVED


def _says(item: Wanted, files: Mapping[str, Contents]) -> bool:
    return all(file.caption in item.captions for file in files.values())


def _difference(item: Wanted, entry: Entry) -> Reason | None:
    for part, reason in _PARTS.items():
        if item.made_from.get(part) != entry.made_from.get(part):
            return reason
    return None if item.made_from == entry.made_from else Reason.UNPROVED


def _flaw(folder: Folder, item: Wanted, name: str, file: Contents) -> Flaw | None:
    match folder.kind:
        case CacheKind.TEXT:
            return caches.text_flaw(file, element=folder.element)
        case CacheKind.LATENTS:
            parsed = caches.parse(name, is_clip=folder.is_clip)
            if parsed is None:
                return Flaw.OTHER_CONTENT
            if folder.is_clip and item.bucket is not None and item.bucket != (parsed.width, parsed.height):
                return Flaw.OTHER_SHAPE
            return caches.latents_flaw(
                file,
                # The name of a clip's cache contains the size it was scaled to.
                bucket=(parsed.width, parsed.height) if folder.is_clip else item.bucket,
                frames=parsed.frames or 1,
                image_to_video=folder.image_to_video,
                element=folder.element,
            )


def _by_stem(folder: Folder, found: Mapping[str, Contents]) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = {}
    if folder.is_clip and folder.kind is CacheKind.LATENTS:
        for name in sorted(found):
            parsed = caches.parse(name, is_clip=True)
            if parsed is not None:
                by_stem.setdefault(parsed.stem, []).append(name)
    return by_stem


def _names(item: Wanted, by_stem: Mapping[str, list[str]], found: Mapping[str, Contents]) -> list[str]:
    """The files of an item; for a clip's latents, all files with its stem, whatever their cuts."""
    if item.name is None:
        return by_stem.get(item.stem, [])
    return [item.name] if item.name in found else []


def _foreign_files(folder: Folder, found: Mapping[str, Contents]) -> tuple[str, ...]:
    """Files with only the suffix of a cache name. The trainer would fail on them."""
    return tuple(sorted(_without_a_cache_name(folder, found)))


def _without_a_cache_name(folder: Folder, found: Mapping[str, Contents]) -> Iterator[str]:
    for name in found:
        # A folder that changed from pictures to clips still contains caches of the other sort, which are ours.
        if not any(caches.parse(name, is_clip=is_clip) for is_clip in (folder.is_clip, not folder.is_clip)):
            yield name
