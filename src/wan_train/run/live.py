"""What changes every second of a run, written by its supervisor for everyone who watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.gpu.model import Gpu
from wan_train.run.directory import RunDirectory
from wan_train.run.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The newest observations. `at` is when, in seconds since 1970; mappings are by step id."""

    at: float
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None
    taken: Mapping[str, str] = field(default_factory=dict)
    """Who else of wan-train holds a GPU, by its UUID: `run 20261122-141500-dog`."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    warnings: tuple[str, ...] = ()


def write_live(run: RunDirectory, live: Live) -> None:
    write_whole(run.live, codec.to_json(live), durable=False)


def read_live(run: RunDirectory) -> Live | None:
    """The newest observations, None before the first. They are a convenience: damaged ones count as none."""
    try:
        return codec.from_json(run.live.read_bytes(), Live, where=str(run.live))
    except (FileNotFoundError, codec.CorruptRecordError):
        return None
