"""The epochs the user picked from the kept LoRAs: verified, named, and placed beside the results."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wan_train.base import codec, locks
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import sha256_of, write_whole
from wan_train.base.text import one_line
from wan_train.engine import checkpoints
from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan, Step
from wan_train.run.results import loras_of, put
from wan_train.run.state import RunState

_MOST_NAMED = 12
"""The most epochs that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """The epoch of each expert's LoRA."""

    high: int
    low: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `60`, or `60:40` for the high-noise expert's epoch 60 and the low-noise expert's 40.

        Raises BadInputError.
        """
        words = text.split(":")
        if not 1 <= len(words) <= 2 or not all(word.isascii() and word.isdigit() for word in words):  # a pair
            raise BadInputError(
                f"{one_line(text)!r} is neither an epoch nor a pair of epochs",
                hint="One epoch for both experts: wan-train pick RUN 60\n"
                "One for each, HIGH:LOW: wan-train pick RUN 60:40",
            )
        numbers = [int(word) for word in words]
        return cls(high=numbers[0], low=numbers[-1])

    @property
    def is_pair(self) -> bool:
        """Whether the experts' epochs differ."""
        return self.high != self.low

    def of(self, expert: Expert) -> int:
        return self.high if expert is Expert.HIGH else self.low

    def __str__(self) -> str:
        return f"{self.high}:{self.low}" if self.is_pair else str(self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedLora:
    """A picked LoRA under its own name; `source` is the original file."""

    expert: Expert
    epoch: int
    path: str
    source: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One pick. `at` is seconds since 1970."""

    at: float
    epochs: Epochs
    files: tuple[PickedLora, ...]


def read_picks(run: RunDirectory) -> tuple[Pick, ...]:
    """Return every pick, newest last. Raises CorruptRecordError."""
    try:
        text = run.picked.read_bytes()
    except FileNotFoundError:
        return ()
    return codec.from_json(text, tuple[Pick, ...], where=str(run.picked))


def pick(run: RunDirectory, plan: Plan, state: RunState, epochs: Epochs, now: float) -> tuple[Pick, bool]:
    """Place the LoRAs of these epochs beside the results and record the pick; False if it was recorded before.

    No file is replaced: each pick has its own names. Raises BadInputError that lists every LoRA that is missing,
    incomplete or not finite, and BadInputError if another file has one of the names.
    """
    sources = _sources(run, plan, state, epochs)
    try:
        with locks.held(run.path / "picked.lock", wait=True):
            known = read_picks(run)
            files = tuple(_place(run, step, epochs, source) for step, source in sources.items())
            for earlier in known:
                # Compare hashes, because paths change when a run directory is moved.
                if earlier.epochs == epochs and [f.sha256 for f in earlier.files] == [f.sha256 for f in files]:
                    return earlier, False
            made = Pick(at=now, epochs=epochs, files=files)
            write_whole(run.picked, codec.to_json((*known, made), tuple[Pick, ...], indent=1) + "\n")
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NotReadyError(
            f"cannot write to {run.path}: {error.strerror}",
            hint="Make it writable for you, or run the command as its owner.",
        ) from error
    return made, True


def _sources(run: RunDirectory, plan: Plan, state: RunState, epochs: Epochs) -> Mapping[Step, Path]:
    trainings = [step for step in plan.steps if step.expert is not None]
    if len(trainings) == 1 and epochs.is_pair:
        only = trainings[0].expert
        assert only is not None, "filtered above"
        raise BadInputError(
            f"{run.run_id} trained only the {only.value}-noise expert, so there are no pairs",
            hint=f"Name one epoch: wan-train pick {run.run_id} {epochs.of(only)}",
        )
    problems, found, there = [], {}, loras_of(run, plan, state)
    for step in trainings:
        assert step.expert is not None, "filtered above"
        wanted = epochs.of(step.expert)
        source = there[step.expert].get(wanted)
        if source is None:
            problems.append(f"{step.expert.value}-noise expert: no LoRA of epoch {wanted}")
            continue
        found[step] = source
        fault = _fault(source)
        if fault is not None:
            problems.append(f"{step.expert.value}-noise expert: {fault}")
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise BadInputError(f"epoch {epochs} of {run.run_id} cannot be picked:{listing}", hint=offer(run, there))
    return found


def offer(run: RunDirectory, there: Mapping[Expert, Mapping[int, Path]]) -> str:
    """Return a hint that lists what can be picked in a run."""
    kept = {expert: sorted(epochs) for expert, epochs in there.items()}
    if not any(kept.values()):
        return "The run has no LoRA yet. Keep one every 10 epochs with: wan-train --save-every 10"
    if len({tuple(epochs) for epochs in kept.values()}) == 1:
        epochs = next(iter(kept.values()))
        return f"Kept epochs: {_listed(epochs)}\nPick one: wan-train pick {run.run_id} {epochs[-1]}"
    lines = [f"Kept epochs, {expert.value}-noise expert: {_listed(epochs)}" for expert, epochs in kept.items()]
    if all(kept.values()):
        example = ":".join(str(kept[expert][-1]) for expert in Expert if expert in kept)
        lines.append(f"Pick a pair, HIGH:LOW: wan-train pick {run.run_id} {example}")
    return "\n".join(lines)


def _listed(epochs: list[int]) -> str:
    if not epochs:
        return "none"
    if len(epochs) <= _MOST_NAMED:
        return ", ".join(map(str, epochs))
    return f"{', '.join(map(str, epochs[: _MOST_NAMED - 2]))}, … {epochs[-1]} ({len(epochs)} in all)"


def _fault(source: Path) -> str | None:
    try:
        tensor = first_non_finite(source, read_header(source))
    except BrokenFileError as error:
        return error.message
    except OSError as error:
        return f"{source} cannot be read: {error.strerror}"
    return f"{source} contains NaN or infinity, in {one_line(tensor)}" if tensor is not None else None


def _place(run: RunDirectory, step: Step, epochs: Epochs, source: Path) -> PickedLora:
    """Place the picked LoRA under its own name, atomically. An identical file that already exists counts."""
    assert step.expert is not None, "only trainings have LoRAs"
    suffix = str(epochs).replace(":", "-")
    target = checkpoints.lora_file(run.path, f"{step.produces}_picked-{suffix}")
    digest = sha256_of(source)
    if not target.exists():
        put(source, target, {})
    if sha256_of(target) != digest:
        raise BadInputError(f"a different file already exists: {target}", hint="Move it away, then pick again.")
    return PickedLora(
        expert=step.expert,
        epoch=epochs.of(step.expert),
        path=str(target),
        source=str(source),
        bytes=target.stat().st_size,
        sha256=digest,
    )
