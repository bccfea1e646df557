"""The files that a training writes: their names, and whether they are complete."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine.capabilities import is_schedule_free
from wan_train.engine.tensors import BrokenFileError, read_header

ALWAYS_IN_A_STATE = frozenset({"model.safetensors", "optimizer.bin", "random_states_0.pkl"})
"""What accelerate writes into every state of a training on one GPU."""
_STATE_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pkl"})


def lora_file(directory: Path, name: str, epoch: int | None = None) -> Path:
    """`NAME.safetensors` at the end of the training, `NAME-000012.safetensors` after epoch 12."""
    return directory / (f"{name}.safetensors" if epoch is None else f"{name}-{epoch:06d}.safetensors")


def step_lora_file(directory: Path, name: str, step: int) -> Path:
    """`NAME-step00000600.safetensors`, written by `--save_every_n_steps`."""
    return directory / f"{name}-step{step:08d}.safetensors"


def state_dir(directory: Path, name: str, epoch: int | None = None) -> Path:
    return directory / (f"{name}-state" if epoch is None else f"{name}-{epoch:06d}-state")


def step_state_dir(directory: Path, name: str, step: int) -> Path:
    return directory / f"{name}-step{step:08d}-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A complete state folder, with the trainer's own count of epochs or steps; both None for the final state."""

    path: Path
    epoch: int | None = None
    step: int | None = None


def state_dirs(directory: Path, name: str) -> tuple[Path, ...]:
    """Every state folder of one attempt, complete or not."""
    if not directory.is_dir():
        return ()
    return tuple(path for path in directory.iterdir() if _state_pattern(name).fullmatch(path.name))


def complete_states(directory: Path, name: str, files: frozenset[str]) -> tuple[State, ...]:
    """The complete states of one attempt: by epoch, then by step, the final one last. `files`: see `state_fault`."""
    found = []
    for path in state_dirs(directory, name):
        match = _state_pattern(name).fullmatch(path.name)
        if match is not None and state_fault(path, files) is None:
            epoch, step = (int(number) if number else None for number in match.groups())
            found.append(State(path=path, epoch=epoch, step=step))

    # The final state has neither number and comes last.
    def age(state: State) -> tuple[bool, bool, int]:
        return (state.epoch is None and state.step is None, state.epoch is None, state.epoch or state.step or 0)

    return tuple(sorted(found, key=age))


def _state_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}(?:-(\d{{6}})|-step(\d{{8}}))?-state")


def state_files(*, optimizer_type: str, lr_scheduler_type: str | None, scaler: bool) -> frozenset[str]:
    """The files that every state of a training with these settings has. `scaler`: fp16 on a GPU.

    accelerate saves only what it prepared. That excludes the dummy scheduler that the trainer gives schedule-free
    optimizers. It is unknown whether accelerate accepts a scheduler class from another package.
    """
    files = set(ALWAYS_IN_A_STATE)
    if not is_schedule_free(optimizer_type) and not lr_scheduler_type:
        files.add("scheduler.bin")
    if scaler:
        files.add("scaler.pt")
    return frozenset(files)


def written_state_files(path: Path) -> frozenset[str]:
    """The files of a state folder that accelerate writes, complete or not."""
    try:
        return frozenset(file.name for file in path.iterdir() if file.suffix in _STATE_SUFFIXES)
    except OSError:
        return frozenset()


def state_fault(path: Path, files: frozenset[str]) -> str | None:
    """Why a state folder is incomplete; None if all of `files` exist and every file is complete.

    accelerate 1.6 writes one file after the other, random_states_0.pkl last, none of them atomically. All but
    model.safetensors are zip archives with their directory at the end, so a truncated one does not open.
    """
    written = written_state_files(path)
    for name in sorted(files | written):
        if name not in written:
            return f"{name} is missing"
        if not _is_whole(path / name):
            return f"{name} is incomplete"
    return None


def checkpoint_epochs(directory: Path, name: str) -> tuple[int, ...]:
    """The trainer's own epoch numbers of the LoRAs in a directory, complete or not."""
    pattern = re.compile(rf"{re.escape(name)}-(\d{{6}})\.safetensors")
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(m[1]) for p in directory.iterdir() if (m := pattern.fullmatch(p.name))))


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            read_header(path)
            return True
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (BrokenFileError, OSError, zipfile.BadZipFile, ValueError):
        return False
