"""A run with kept LoRAs in a temporary folder, and a painter in place of the program that draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from support.runs import SUPERVISOR, make_plan
from wan_train.base.host import ProcessIdentity
from wan_train.engine import checkpoints
from wan_train.engine.commands import Command
from wan_train.engine.generate import Memory
from wan_train.preview.drawing_session import Session
from wan_train.preview.prepared import PreparedPreview, prepare
from wan_train.preview.recorder import Progress, Recorder
from wan_train.preview.request import PreviewRequest, Source
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import Exited, Lost, Signaled
from wan_train.run.launcher import Ended
from wan_train.run.plan import Plan
from wan_train.run.state import initial

KILLED = Signaled(signal=9)
OUT_OF_MEMORY = (
    "Traceback (most recent call last):\n"
    '  File "driver.py", line 1, in <module>\n'
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB\n"
)
DISK_FULL = (
    "Traceback (most recent call last):\n"
    '  File "driver.py", line 1, in <module>\n'
    "OSError: [Errno 28] No space left on device\n"
)


def lora(path: Path, value: float, *, expert: Expert, metadata: Mapping[str, str] | None = None) -> Path:
    """A LoRA of the rehearsal with one module, whose distance to another one follows from `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "lora_unet_blocks_0_ffn_0.lora_down.weight": np.ones((2, 4), np.float32),
            "lora_unet_blocks_0_ffn_0.lora_up.weight": np.full((8, 2), value, np.float32),
            "lora_unet_blocks_0_ffn_0.alpha": np.array(2.0, np.float32),
        },
        path,
        metadata={"ss_rehearsal": "yes", "ss_sd_model_name": f"wan_{expert.value}_noise", **(metadata or {})},
    )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A run of the rehearsal in `folder`."""

    folder: Path
    plan: Plan

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.plan.run_dir)

    @property
    def source(self) -> Source:
        return Source(run=self.run, plan=self.plan, state=initial(self.plan))

    def kept(self, expert: Expert, epoch: int) -> Path:
        step = next(step for step in self.plan.steps if step.expert is expert)
        return checkpoints.lora_file(self.run.path, step.produces or "", epoch)

    def keep(self, epochs: Mapping[int, float], *, experts: Sequence[Expert] = tuple(Expert)) -> None:
        """LoRAs of these epochs, with the value of their weights."""
        for expert in experts:
            for epoch, value in epochs.items():
                lora(self.kept(expert, epoch), value, expert=expert)

    def prompts(self, text: str, name: str = "prompts.txt") -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def ready(self, asked: PreviewRequest | None = None, **changes: Any) -> PreparedPreview:
        asked = asked or PreviewRequest(prompts=self.prompts("a fox --w 64 --h 32\na clip --w 32 --h 32 --f 5\n"))
        return prepare(self.source, replace(asked, **changes), self.plan.trainer, smallest_card=0, now=1.0)


def world(folder: Path, **overrides: Any) -> World:
    run_dir = folder / "runs" / "20251122-120000-fox"
    run_dir.mkdir(parents=True)
    return World(folder=folder, plan=make_plan(engine=EngineKind.REHEARSAL, title="fox", run_dir=run_dir, **overrides))


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass(slots=True)
class Hand:
    """What one attempt of a scripted painter can do: the job's cells in order, its events, its log."""

    job: dict[str, Any]
    attempt: AttemptDirectory

    @property
    def cells(self) -> list[dict[str, Any]]:
        return self.job["cells"]  # type: ignore[no-any-return]  # JSON

    def tell(self, event: str, **values: object) -> None:
        with Path(self.job["events"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "at": 0.0, **values}) + "\n")

    def load(self, what: str) -> None:
        self.tell("loading", what=what)

    def stage(self, cell: dict[str, Any], expert: str) -> None:
        self.tell("drawing", key=cell["key"], expert=expert, number=1, of=len(self.cells))
        latents = Path(cell["latents"][expert])
        latents.parent.mkdir(parents=True, exist_ok=True)
        latents.write_bytes(b"latents")
        self.tell("stage", key=cell["key"], expert=expert, seconds=1.0, steps=10, of=len(self.cells))

    def paint(self, cell: dict[str, Any], picture: Callable[[tuple[int, int]], Image.Image] | None = None) -> None:
        prompt = self.job["prompts"][cell["prompt"]]
        self.tell("decoding", key=cell["key"])
        for frame in cell["frames"]:
            Path(frame).parent.mkdir(parents=True, exist_ok=True)
            (picture or noise)((prompt["width"], prompt["height"])).save(frame)

    def draw(self, cell: dict[str, Any], **how: Any) -> None:
        self.stage(cell, "high")
        self.stage(cell, "low")
        self.paint(cell, **how)
        self.tell("cell", key=cell["key"], seconds=4.5)

    def say(self, text: str) -> None:
        with self.attempt.log.open("a", encoding="utf-8") as file:
            file.write(text)


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (0, 0, 0))


Script = Callable[[Hand], Exited | Signaled | Lost | None]
"""What one attempt does, and how it ends; None for one that only ends when it is told to."""


def everything(hand: Hand) -> Exited:
    for cell in hand.cells:
        hand.draw(cell)
    hand.tell("done")
    return Exited(code=0)


@dataclass(slots=True)
class Painter:
    """A launcher whose attempts do what their scripts say, one script for each; the last one for all that follow."""

    scripts: Sequence[Script] = (everything,)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[Path, Exited | Signaled | Lost] = field(default_factory=dict)
    started: list[Path] = field(default_factory=list)
    terminated: int = 0

    def start(self, command: Command, attempt: AttemptDirectory, inherit: Sequence[int]) -> ProcessIdentity:
        del inherit
        attempt.output.mkdir(parents=True)
        attempt.log.touch()
        job = json.loads(Path(command.argv[-1]).read_text(encoding="utf-8"))
        self.jobs.append(job)
        self.started.append(attempt.path)
        script = self.scripts[min(len(self.jobs), len(self.scripts)) - 1]
        end = script(Hand(job, attempt))
        if end is not None:
            self.ends[attempt.path] = end
        return SUPERVISOR

    def ended(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> Ended | None:
        del identity
        end = self.ends.get(attempt.path)
        return None if end is None else Ended(exit=end, at=0.0)

    def terminate(self, identity: ProcessIdentity) -> None:
        del identity
        self.terminated += 1
        for path in self.started:
            self.ends.setdefault(path, Signaled(signal=15))

    def abandon(self, attempt: AttemptDirectory) -> None:
        del attempt

    def drawn_keys(self) -> Iterator[str]:
        """The cells of every job, in order."""
        return (cell["key"] for job in self.jobs for cell in job["cells"])


@dataclass(slots=True)
class Watched:
    """What a person sees of a drawing."""

    progress: list[Progress] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def session(
    ready: PreparedPreview,
    painter: Painter,
    plan: Plan,
    *,
    memory: Memory | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Session, Watched]:
    clock, watched = Clock(), Watched()
    ready.directory.write(ready.preview)
    recorder = Recorder(
        ready=ready, clock=clock, show=watched.progress.append, say=watched.said.append, card="Test card"
    )
    return (
        Session(
            recorder=recorder,
            trainer=plan.trainer,
            memory=memory or Memory(),
            device="GPU-0",
            env={},
            inherit=(),
            launcher=painter,
            clock=clock,
            sleep=clock.sleep,
            stall_seconds=300.0,
            is_interrupted=is_interrupted,
        ),
        watched,
    )
