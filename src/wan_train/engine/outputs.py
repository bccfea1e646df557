"""The files a training leaves behind: their names, and whether they are whole."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine.tensors import BrokenFileError, read_header

REHEARSAL_MARK = "REHEARSAL"


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
    """A complete state folder, by the trainer's own count of epochs or steps; both None for the one at the end."""

    path: Path
    epoch: int | None = None
    step: int | None = None


def state_dirs(directory: Path, name: str) -> tuple[Path, ...]:
    """Every state folder of one attempt, complete or not."""
    if not directory.is_dir():
        return ()
    return tuple(path for path in directory.iterdir() if _state_pattern(name).fullmatch(path.name))


def complete_states(directory: Path, name: str, *, scaler: bool = False) -> tuple[State, ...]:
    """The complete states of one attempt: by epoch, then by step, the final one last. `scaler`: fp16 on a GPU."""
    found = []
    for path in state_dirs(directory, name):
        match = _state_pattern(name).fullmatch(path.name)
        if match is not None and is_complete_state(path, scaler=scaler):
            epoch, step = (int(number) if number else None for number in match.groups())
            found.append(State(path=path, epoch=epoch, step=step))

    # The final state has neither number and comes last.
    def age(state: State) -> tuple[bool, bool, int]:
        return (state.epoch is None and state.step is None, state.epoch is None, state.epoch or state.step or 0)

    return tuple(sorted(found, key=age))


def _state_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}(?:-(\d{{6}})|-step(\d{{8}}))?-state")


def is_complete_state(path: Path, *, scaler: bool = False) -> bool:
    """Whether accelerate finished this folder: all files there and whole.

    accelerate 1.6 writes model.safetensors, optimizer.bin, scheduler.bin, scaler.pt (fp16 only) and last
    random_states_0.pkl; none of them atomically. The .bin, .pt and .pkl files are zip archives, whose directory
    stands at the end, so a cut one does not open.
    """
    archives = [path / "optimizer.bin", path / "scheduler.bin", path / "random_states_0.pkl"]
    if scaler:
        archives.append(path / "scaler.pt")
    try:
        read_header(path / "model.safetensors")
    except BrokenFileError:
        return False
    return all(_is_whole_archive(archive) for archive in archives)


def checkpoint_epochs(directory: Path, name: str) -> tuple[int, ...]:
    """The trainer's own epoch numbers of the LoRAs in a directory, whole or not."""
    pattern = re.compile(rf"{re.escape(name)}-(\d{{6}})\.safetensors")
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(m[1]) for p in directory.iterdir() if (m := pattern.fullmatch(p.name))))


def _is_whole_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
