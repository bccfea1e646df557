"""The rows of a preview: base model, automatic or named epochs, pairs and files, with every LoRA checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import sha256_of
from wan_train.base.text import one_line
from wan_train.base.units import count, fine_percent
from wan_train.engine.lora_distance import LoraFile, distance, load_numpy
from wan_train.engine.tensors import BrokenFileError
from wan_train.preview import loras
from wan_train.preview.model import (
    BASE,
    LeftOut,
    Lora,
    Row,
    file_row_name,
)
from wan_train.preview.request import PreviewRequest, Source
from wan_train.recipe.terms import Expert
from wan_train.run.results import loras_of

NEAR = 0.01
"""Two LoRAs that differ by less than 1 % draw the same picture: latents differ by a third of that (measured with
the trainer's own scripts on ten epochs of one training)."""
MOST = 6
"""The most epochs chosen automatically: about one screen of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEpochs:
    """Epochs to draw, in order, and left-out epochs with their reasons."""

    epochs: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()


def choose_epochs(epochs: Sequence[int], differ: Callable[[int, int], float], *, most: int = MOST) -> ChosenEpochs:
    """Choose the newest epoch, then repeatedly the one that differs most from all chosen epochs.

    `differ(earlier, later)` returns the distance between two epochs' LoRAs, 0.01 for 1 %. Its exceptions propagate.
    No two chosen epochs differ by less than `NEAR`.
    """
    rest = sorted(set(epochs))
    if not rest:
        return ChosenEpochs(epochs=())
    last = rest.pop()
    chosen = [last]
    nearest = {epoch: (differ(epoch, last), last) for epoch in rest}
    while nearest and len(chosen) < most:
        farthest = max(nearest, key=lambda epoch: (nearest[epoch][0], epoch))
        if nearest[farthest][0] < NEAR:
            break
        del nearest[farthest]
        chosen.append(farthest)
        nearest = {
            epoch: min(found, (differ(*sorted((epoch, farthest))), farthest)) for epoch, found in nearest.items()
        }
    left_out = (LeftOut(epoch=epoch, reason=_reason(*nearest[epoch], most)) for epoch in sorted(nearest))
    return ChosenEpochs(epochs=tuple(sorted(chosen)), left_out=tuple(left_out))


def _reason(distance: float, epoch: int, most: int) -> str:
    if distance < NEAR:
        return f"differs from epoch {epoch} by {fine_percent(distance)}"
    return f"the {most} most different epochs are drawn"


def too_near(epochs: Sequence[int], differ: Callable[[int, int], float]) -> tuple[str, ...]:
    """Return a sentence for each two neighbouring epochs that will look the same."""
    ordered = sorted(set(epochs))
    return tuple(
        f"Epochs {earlier} and {later} differ by {fine_percent(distance)}: expect the same picture."
        for earlier, later in pairwise(ordered)
        if (distance := differ(earlier, later)) < NEAR
    )


def drawable_epochs(kept: Mapping[Expert, Iterable[int]]) -> Mapping[int, Mapping[Expert, int]]:
    """Return, by epoch, the epoch of the LoRA that each expert draws with.

    This is the same epoch, or the expert's last one if its training ended earlier. An epoch that an expert trained but
    did not keep is left out.
    """
    own = {expert: sorted(set(epochs)) for expert, epochs in kept.items()}
    own = {expert: epochs for expert, epochs in own.items() if epochs}
    found = {}
    for epoch in sorted({epoch for epochs in own.values() for epoch in epochs}):
        pair = {
            expert: min(epoch, epochs[-1]) for expert, epochs in own.items() if epoch in epochs or epoch > epochs[-1]
        }
        if len(pair) == len(own):
            found[epoch] = pair
    return found


_FILES_HINT = "--high takes a whole LoRA of the high-noise expert, --low one of the low-noise expert."


class CheckedLoras:
    """LoRA files, each checked, opened and hashed once."""

    def __init__(self, model: loras.Model, opened: ExitStack) -> None:
        self._model = model
        self._opened = opened
        self._files: dict[Path, LoraFile] = {}
        self._hashes: dict[Path, str] = {}
        self._flaws: dict[tuple[Path, Expert], tuple[str, ...]] = {}
        load_numpy()

    def flaws(self, path: Path, expert: Expert) -> tuple[str, ...]:
        key = (path, expert)
        if key not in self._flaws:
            self._flaws[key] = loras.flaws(path, expert, self._model)
        return self._flaws[key]

    def distance(self, earlier: Path, later: Path) -> float:
        """Return the distance between two LoRAs. Raise BrokenFileError."""
        return distance(self._open(earlier), self._open(later))

    def sha256(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_of(path)
        return self._hashes[path]

    def _open(self, path: Path) -> LoraFile:
        if path not in self._files:
            self._files[path] = self._opened.enter_context(LoraFile(path))
        return self._files[path]


def make_rows(
    source: Source, request: PreviewRequest, checked: CheckedLoras, say: Callable[[str], None]
) -> tuple[tuple[Row, ...], tuple[LeftOut, ...], tuple[str, ...]]:
    kept = loras_of(source.run, source.plan, source.state)
    problems: list[str] = []
    notes: list[str] = []
    pairs: dict[str, Mapping[Expert, Path]] = {}
    if request.files:
        problems += _flaws(checked, request.files)
        pairs[_files_name(request.files)] = request.files
    wants_epochs = request.epochs is not None or not (request.pairs or request.files)
    drawable = drawable_epochs(kept) if wants_epochs else {}
    if request.epochs is not None:
        problems += _missing(request.epochs, drawable, source.run.run_id)
    if wants_epochs and not drawable:
        raise BadInputError(
            f"{source.run.run_id} has no LoRA to draw yet",
            hint="A training keeps a LoRA after each --save-every epochs, and one at its end. "
            "To draw other files, use --high FILE --low FILE.",
        )
    whole = {}
    for epoch in drawable if request.epochs is None else [epoch for epoch in request.epochs if epoch in drawable]:
        own = {expert: kept[expert][its] for expert, its in drawable[epoch].items()}
        found = list(_flaws(checked, own))
        if found and request.epochs is None:
            # One broken file must not prevent the others from being drawn.
            notes += [f"Epoch {epoch} is left out: {each}." for each in found]
            continue
        problems += found
        whole[epoch] = own
    for pair in request.pairs:
        chosen = {expert: kept.get(expert, {}).get(pair.of(expert)) for expert in Expert}
        missing = [expert for expert, path in chosen.items() if path is None]
        problems += [
            f"--pairs {pair}: there is no LoRA of epoch {pair.of(expert)} of the {expert.value}-noise expert"
            for expert in missing
        ]
        files = {expert: path for expert, path in chosen.items() if path is not None}
        problems += _flaws(checked, files)
        pairs[f"{pair.high}:{pair.low}"] = files
    _raise(problems, source.run.run_id, hint=_FILES_HINT if request.files else None)
    if request.epochs is None and wants_epochs and not whole:
        raise BadInputError(
            "none of the kept LoRAs can be drawn:\n" + "\n".join(f"  {note}" for note in notes),
            hint=f"See what was trained: wan-train status {source.run.run_id}",
        )
    say("Comparing the LoRAs …")
    differ = _difference(whole, checked)
    picked = choose_epochs(list(whole), differ) if request.epochs is None else ChosenEpochs(epochs=tuple(sorted(whole)))
    if request.epochs is not None:
        notes += too_near(picked.epochs, differ)
    pairs = {**{str(epoch): whole[epoch] for epoch in picked.epochs}, **pairs}
    notes += _lacking(kept, request)
    if len(drawable) == 1 and request.epochs is None:
        notes.append("Only one epoch was kept: train with --save-every N to compare several.")
    lasts = {expert: list(files.values())[-1] for expert, files in kept.items() if files}
    made = tuple(
        Row(name=name, loras={expert: _lora(path, kept, lasts, expert, checked) for expert, path in files.items()})
        for name, files in pairs.items()
    )
    return (Row(name=BASE), *made), picked.left_out, tuple(notes)


def _lora(
    path: Path,
    kept: Mapping[Expert, Mapping[int, Path]],
    lasts: Mapping[Expert, Path],
    expert: Expert,
    checked: CheckedLoras,
) -> Lora:
    epoch = next((epoch for epoch, own in kept.get(expert, {}).items() if own == path), None)
    last, away = lasts.get(expert), None
    if last is not None and last != path:
        try:
            away = checked.distance(path, last)
        except BrokenFileError:
            away = None  # the last one is broken, or the user's file has other modules
    return Lora(path=path, sha256=checked.sha256(path), epoch=epoch, distance=away)


def _difference(whole: Mapping[int, Mapping[Expert, Path]], checked: CheckedLoras) -> Callable[[int, int], float]:
    """Return a function for the larger of the two experts' LoRA distances between two epochs."""

    def differ(earlier: int, later: int) -> float:
        both = whole[earlier], whole[later]
        try:
            return max(checked.distance(both[0][expert], both[1][expert]) for expert in both[1] if expert in both[0])
        except BrokenFileError:
            return 1.0  # draw epochs that cannot be compared

    return differ


def _flaws(checked: CheckedLoras, files: Mapping[Expert, Path]) -> Iterator[str]:
    for expert, path in files.items():
        for flaw in checked.flaws(path, expert):
            yield f"{one_line(str(path))} {flaw}"


def _missing(epochs: Iterable[int], drawable: Mapping[int, object], run_id: str) -> Iterator[str]:
    there = ", ".join(map(str, drawable)) or "none"
    for epoch in epochs:
        if epoch not in drawable:
            yield f"--epochs {epoch}: {run_id} has no LoRA of that epoch (kept: {there})"


def _raise(problems: Sequence[str], run_id: str, *, hint: str | None) -> None:
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    listing = "\n".join(f"  {problem}" for problem in unique)
    raise BadInputError(
        f"cannot draw this preview ({count(len(unique), 'problem')}):\n{listing}",
        hint=hint or f"See what is kept: wan-train preview {run_id} --dry-run",
    )


def _lacking(kept: Mapping[Expert, Mapping[int, Path]], request: PreviewRequest) -> Iterator[str]:
    has = {expert for expert, files in kept.items() if files} | set(request.files)
    for expert in Expert:
        if expert not in has:
            yield f"The {expert.value}-noise expert has no LoRA here: it draws as the base model."


def left_out_notes(left_out: Sequence[LeftOut]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for each in left_out:
        by_reason.setdefault(each.reason, []).append(str(each.epoch))
    for reason, epochs in by_reason.items():
        noun = "Epoch" if len(epochs) == 1 else "Epochs"
        verb = "is" if len(epochs) == 1 else "are"
        yield f"{noun} {', '.join(epochs)} {verb} left out: {reason}."


def _files_name(files: Mapping[Expert, Path]) -> str:
    return file_row_name(" + ".join(dict.fromkeys(one_line(path.stem, 40) for path in files.values())))
