"""The files of a run that may be uploaded now: LoRAs as soon as they are complete, other files with the first LoRA."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.codec import CorruptRecordError
from wan_train.caching.survey import reading_of
from wan_train.dataset import jsonl
from wan_train.dataset.config import load
from wan_train.dataset.listing import list_media
from wan_train.dataset.model import DatasetError, MediaKind, Subset, TrainerReading
from wan_train.run.directory import RunDirectory, report_of_end
from wan_train.run.picks import read_picks
from wan_train.run.plan import Plan
from wan_train.run.samples import samples_of
from wan_train.run.state import RunState

LORA_SUFFIX = ".safetensors"
_EPOCH = re.compile(r"(?:-\d+)?")
_MOST_CAPTIONS = 1000
_MOST_CAPTION_BYTES = 10_000


class Extra(StrEnum):
    """What is uploaded on request only."""

    SAMPLES = "samples"
    DATASET = "dataset"


class ItemKind(StrEnum):
    """The kind of an item. LoRAs are the run's results."""

    LORA = "lora"
    RECORD = "record"
    SAMPLE = "sample"
    DATASET = "dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file to upload. `name` is its path at the target and ends with the file name of `path`."""

    kind: ItemKind
    path: Path
    name: str
    size: int
    mtime_ns: int


def ready(run: RunDirectory, plan: Plan, state: RunState, extras: Sequence[str]) -> tuple[Item, ...]:
    """Return the files that may be uploaded now: complete and no longer written to. LoRAs come first."""
    loras = list(_loras(run, plan))
    if not loras and not state.is_over:
        return ()
    records = _named(ItemKind.RECORD, "", _records(run, state))
    samples = _samples(run, plan, state) if Extra.SAMPLES in extras else ()
    dataset = _dataset(run, plan) if Extra.DATASET in extras else ()
    return (*loras, *records, *samples, *dataset)


def captions_of(run: RunDirectory, plan: Plan) -> list[str]:
    """Return the dataset's current captions, at most a thousand. None are found if it can no longer be read."""
    reading = reading_of(plan.trainer)
    found: list[str] = []
    with suppress(DatasetError):
        for subset in load(run.dataset_config, reading=reading).datasets:
            if subset.jsonl is not None:
                found += [record.caption for record in _records_of(subset, subset.jsonl).records]
            for path in _files_of(run, subset, reading):
                if path.name.endswith(subset.caption_extension or LORA_SUFFIX) and len(found) < _MOST_CAPTIONS:
                    with suppress(OSError), path.open("rb") as file:
                        found.append(file.read(_MOST_CAPTION_BYTES).decode("utf-8", errors="replace"))
    return found[:_MOST_CAPTIONS]


def _loras(run: RunDirectory, plan: Plan) -> Iterator[Item]:
    """Yield finished LoRAs and those of kept epochs. Their names appear in the run directory only when complete."""
    paths = sorted(run.path.glob(f"[!.]*{LORA_SUFFIX}"))
    made = [
        path
        for step in plan.steps
        for path in paths
        if step.produces is not None
        and path.stem.startswith(step.produces)
        and _EPOCH.fullmatch(path.stem.removeprefix(step.produces))
    ]
    yield from _named(ItemKind.LORA, "", [*made, *_picked(run)])


def _picked(run: RunDirectory) -> Sequence[Path]:
    """Find picked LoRAs by name, since the run directory may have been moved.

    A damaged record yields none, which loses nothing: picks are copies.
    """
    try:
        return [run.path / Path(file.path).name for pick in read_picks(run) for file in pick.files]
    except CorruptRecordError:
        return ()


def _records(run: RunDirectory, state: RunState) -> Iterator[Path]:
    yield run.recipe
    yield run.dataset_config
    if state.finished is not None and report_of_end(run, state.finished) is not None:
        yield run.report_page
        yield run.report_data


def _samples(run: RunDirectory, plan: Plan, state: RunState) -> Iterator[Item]:
    """Yield samples of finished trainings. During a training, each sample would be a separate commit."""
    for sample in samples_of(run, plan, state):
        if state.is_over or state.jobs[sample.step].state.is_over:
            yield from _named(ItemKind.SAMPLE, f"samples/{sample.step}-{sample.attempt}", [sample.path])


def _dataset(run: RunDirectory, plan: Plan) -> Iterator[Item]:
    """Yield the current pictures or clips and captions. Nothing if the dataset can no longer be read."""
    reading = reading_of(plan.trainer)
    try:
        subsets = load(run.dataset_config, reading=reading).datasets
    except DatasetError:
        return
    for subset in subsets:
        files = list(_files_of(run, subset, reading))
        folders = list(dict.fromkeys(path.parent for path in files))
        for number, folder in enumerate(folders):
            below = f"dataset/{subset.index}" + (f"/{number}" if len(folders) > 1 else "")
            yield from _named(ItemKind.DATASET, below, [path for path in files if path.parent == folder])


def _files_of(run: RunDirectory, subset: Subset, reading: TrainerReading) -> Iterator[Path]:
    if subset.jsonl is not None:
        yield run.dataset_list(subset.index)
        yield from (record.path for record in _records_of(subset, subset.jsonl).records)
    elif subset.directory is not None:
        try:
            listing = list_media(subset.directory, avif=reading.reads_avif)
        except OSError:
            return
        for name in listing.images if subset.kind is MediaKind.IMAGE else listing.videos:
            yield subset.directory / name
            # The trainer's own rule for caption names.
            yield subset.directory / (os.path.splitext(name)[0] + (subset.caption_extension or ""))  # noqa: PTH122  as above


def _records_of(subset: Subset, source: Path) -> jsonl.Records:
    return jsonl.read(source, subset.kind, [source.parent])


def _named(kind: ItemKind, below: str, paths: Sequence[Path] | Iterator[Path]) -> Iterator[Item]:
    """Yield items for a folder of the target, without missing files and duplicate paths."""
    for path in dict.fromkeys(paths):
        try:
            found = path.stat()
        except OSError:
            continue
        name = f"{below}/{path.name}" if below else path.name
        yield Item(kind=kind, path=path, name=name, size=found.st_size, mtime_ns=found.st_mtime_ns)
