"""Whether an attempt that ended really succeeded: judged by files and log, not by the exit code alone."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine import outputs
from wan_train.engine.failures import Cause, Diagnosis, diagnose
from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header
from wan_train.files import move_without_overwriting
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import Exit, Exited, Lost, Signaled
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.progress import read_tail


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLora:
    """A LoRA that was checked and moved to its final name."""

    path: Path
    bytes: int
    sha256: str


def judge(plan: Plan, step: Step, attempt: AttemptDirectory, ended: Exit) -> Diagnosis | None:
    """Why the attempt did not succeed, None when everything it had to leave behind is there, whole and finite."""
    match ended:
        case Exited(code=0):
            pass
        case Exited(code=code):
            found = diagnose(read_tail(attempt.log))
            evidence = found.evidence or f"exit code {code}"
            return Diagnosis(cause=found.cause, meaning=found.meaning, advice=found.advice, evidence=evidence)
        case Signaled() as signaled:
            return Diagnosis(
                cause=Cause.INTERRUPTED,
                meaning=f"the trainer was ended by {signaled.name}",
                advice="If nobody ended it, the box ran out of RAM: look at `dmesg | grep -i oom`.",
            )
        case Lost(reason=reason):
            return Diagnosis(cause=Cause.LOST, meaning=f"the trainer is gone: {reason}", advice="Start the run again.")
    match step.kind:
        case StepKind.TRAIN:
            return _judge_lora(outputs.lora_file(attempt.output, step.produces or ""))
        case StepKind.CACHE_LATENTS:
            return _judge_caches(plan, "_wan.safetensors", "latent")
        case StepKind.CACHE_TEXT:
            return _judge_caches(plan, "_wan_te.safetensors", "text-encoder")


def place_result(run: RunDirectory, step: Step, attempt: AttemptDirectory) -> FinishedLora:
    """Move the verified LoRA to its final name in the run directory; an existing file there is never replaced."""
    assert step.produces is not None, "only training steps have a result"  # noqa: S101  an invariant of the plan
    source = outputs.lora_file(attempt.output, step.produces)
    target = outputs.lora_file(run.path, step.produces)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not (target.exists() and target.samefile(source)):
        move_without_overwriting(source, target)
    return FinishedLora(path=target, bytes=target.stat().st_size, sha256=digest)


def keep_checkpoint(run: RunDirectory, step: Step, attempt: AttemptDirectory, epoch: int) -> Path | None:
    """Copy an intermediate LoRA beside the results before the trainer removes it; None when it is not whole yet."""
    assert step.produces is not None, "only training steps have checkpoints"  # noqa: S101  an invariant of the plan
    source = outputs.lora_file(attempt.output, step.produces, epoch)
    target = outputs.lora_file(run.path, step.produces, epoch)
    if target.exists():
        return target
    try:
        read_header(source)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        read_header(partial)
    except (BrokenFileError, OSError):
        return None
    partial.replace(target)
    return target


def _judge_lora(path: Path) -> Diagnosis | None:
    if not path.is_file():
        return Diagnosis(
            cause=Cause.UNKNOWN,
            meaning="the trainer ended without an error but left no LoRA",
            advice="Read the end of the log.",
            evidence=f"{path.name} is missing",
        )
    try:
        header = read_header(path)
        bad = first_non_finite(path, header)
    except BrokenFileError as error:
        return Diagnosis(
            cause=Cause.DISK_FULL if shutil.disk_usage(path.parent).free < path.stat().st_size else Cause.UNKNOWN,
            meaning="the finished LoRA is incomplete",
            advice="Check the free disk space, then start again.",
            evidence=error.message,
        )
    if bad is not None:
        return Diagnosis(
            cause=Cause.NAN_LOSS,
            meaning="the training diverged: the finished LoRA holds numbers that are not finite",
            advice="Try a lower --learning-rate; an earlier checkpoint may still be good.",
            evidence=f"tensor {bad}",
        )
    if not header.tensors:
        return Diagnosis(
            cause=Cause.UNKNOWN, meaning="the finished LoRA is empty", advice="Read the end of the log.", evidence=None
        )
    return None


def _judge_caches(plan: Plan, ending: str, what: str) -> Diagnosis | None:
    for directory, expected in plan.dataset.cached_items.items():
        folder = Path(directory)
        files = [path for path in folder.iterdir() if path.name.endswith(ending)] if folder.is_dir() else []
        for path in files:
            try:
                read_header(path)
            except BrokenFileError as error:
                return Diagnosis(
                    cause=Cause.MISSING_FILE,
                    meaning=f"a {what} cache is incomplete",
                    advice=f"Remove {path} and start again.",
                    evidence=error.message,
                )
        if len(files) < expected:
            return Diagnosis(
                cause=Cause.MISSING_FILE,
                meaning=f"{expected - len(files)} of {expected} {what} caches are missing in {directory}",
                advice="Read the caching log; the pictures without a cache would not be trained.",
            )
    return None
