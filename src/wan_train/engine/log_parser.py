"""The grammar of the trainer's output: log bytes in, records out."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step on the training bar. `loss` is the trainer's moving average, NaN and inf included."""

    step: int
    steps: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted:
    """The trainer counts epochs from 1 in every process, also after a resume."""

    epoch: int
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalSteps:
    """The number of optimizer steps the trainer will make."""

    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointBegun:
    """Printed before the file is written, so the file is not whole yet."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBegun:
    """A state is being written into the folder `path`."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """Items that the trainer found in the caches, after repeats."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProgress:
    """Batches encoded by a caching script, which does not know its total."""

    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A start-up milestone or a training pause, in words for the user."""

    words: str


Record = StepRecord | EpochStarted | TotalSteps | CheckpointBegun | StateBegun | Items | CacheProgress | Stage

# tqdm writes `steps:  29%|██▉ | 7/24 [00:01<00:04,  3.93it/s, avr_loss=1.13]` twice a step. The postfix has
# `%.3g` numbers: 0.0926, 1e-5, nan, inf. Times over a day are h:mm:ss too.
_STEP = re.compile(r"steps: +\d+%\|[^|]*\| (\d+)/(\d+) \[[\d:]+<[^,]*,[^,\]]*(?:, avr_loss=([-+.\deinfa]+))?")
_CACHE = re.compile(r"(?:^|\s)(\d+)it \[[\d:]+, [^\]]*\]$|^\s*\d+%\|[^|]*\| (\d+)/\d+ \[")
_EPOCH = re.compile(r"^epoch (\d+)/(\d+)$")
_TOTAL = re.compile(r"^\s*total optimization steps / [^:]*: (\d+)$")
_ITEMS = re.compile(r"^\s*num train items / [^:]*: (\d+)$")
_SAVING = re.compile(r"^saving checkpoint: (.+)$")
_STATE = re.compile(r"^INFO:accelerate\.accelerator:(?:\[RANK \d+\] )?Saving current state to (.+)$")
MAKING_SAMPLES = "making samples"
_STAGES: tuple[tuple[str, str], ...] = (
    ("Loading VAE model from", "loading the VAE"),
    ("Loading T5:", "loading T5"),
    ("loading T5:", "loading T5"),
    ("cache Text Encoder outputs for sample prompt:", "encoding the sample prompts"),
    ("generating sample images at step", MAKING_SAMPLES),
    ("Encoding with T5", "encoding captions"),
    ("Encoding dataset", "encoding"),
    ("Loading DiT model from", "loading the DiT"),
    ("create LoRA for U-Net/DiT", "creating the LoRA"),
    ("resume training from local state", "loading the state"),
    ("running training", "first step"),
)
_KEPT_BYTES = 65_536
"""Limit for an unfinished line, so that output without line ends cannot fill the memory. No record is longer."""


@dataclass(slots=True)
class OutputParser:
    """Turns chunks of a log into records; keeps the unfinished last line between calls. 530,000 bars/s on one core."""

    _rest: str = field(default="", repr=False)
    # Keeps the first bytes of a character that a chunk's end splits.
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), repr=False
    )

    def feed(self, chunk: bytes) -> Iterator[Record]:
        text = self._rest + self._decoder.decode(chunk)
        lines = text.replace("\r", "\n").split("\n")
        self._rest = lines.pop()[-_KEPT_BYTES:]
        for line in lines:
            record = parse_line(line)
            if record is not None:
                yield record

    def finish(self) -> Iterator[Record]:
        """The record on a last line without a line end."""
        record = parse_line(self._rest)
        self._rest = ""
        if record is not None:
            yield record


def parse_line(line: str) -> Record | None:
    """Parse one line or one redraw of a bar; None if it says nothing about progress."""
    if not line:
        return None
    if line.startswith("steps:"):
        if match := _STEP.match(line):
            step, steps, loss = match.groups()
            return StepRecord(step=int(step), steps=int(steps), loss=_number(loss))
        return None
    if "it/s" in line or "s/it" in line:
        match = _CACHE.search(line)
        return CacheProgress(done=int(match[1] or match[2])) if match else None
    return _parse_words(line)


def _parse_words(line: str) -> Record | None:
    if match := _EPOCH.match(line):
        return EpochStarted(epoch=int(match[1]), epochs=int(match[2]))
    if match := _SAVING.match(line):
        return CheckpointBegun(path=match[1])
    if match := _STATE.match(line):
        return StateBegun(path=match[1])
    if match := _TOTAL.match(line):
        return TotalSteps(steps=int(match[1]))
    if match := _ITEMS.match(line):
        return Items(count=int(match[1]))
    for words, stage in _STAGES:
        if words in line:
            return Stage(words=stage)
    return None


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def last_words(tail: str, count: int = 12) -> list[str]:
    """The last `count` lines of a log's tail to show a user: only final redraws, no empty lines."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in tail.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line][-count:]
