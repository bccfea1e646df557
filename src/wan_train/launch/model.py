"""The record of a launch: its jobs, its boxes, and what each of them is doing. Written before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class JobState(StrEnum):
    """State of a job. The last three are final."""

    WAITING = "waiting"
    SENDING = "sending"
    """The dataset, and any run directory of an earlier box, are being copied to a box."""
    TRAINING = "training"
    FETCHING = "fetching"
    """The training is over; the results come home."""
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_end(self) -> bool:
        return self in {JobState.DONE, JobState.FAILED, JobState.STOPPED}


class BoxState(StrEnum):
    """State of a box, in the order of a box without problems."""

    RENTING = "renting"
    CHECKING = "checking"
    """It answers, and is being compared with what was rented."""
    PROVISIONING = "provisioning"
    READY = "ready"
    WAKING = "waking"
    """It stopped, for example while unwatched. It is started again because its disk has results of its job."""
    DESTROYING = "destroying"
    """The request is repeated until the provider's own list shows that it is gone."""
    GONE = "gone"


BY_HAND = "stopped by you"
"""Reason for an early end that the user requested."""


class Halt(StrEnum):
    """How a launch ends before its jobs are done."""

    SAVE = "save"
    """The newest state and the results so far come home first."""
    NOW = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWant:
    """A kind of GPU by the provider's name, and how many of them in one box."""

    name: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What may be rented, and the limits. Prices are in dollars; hours count for each box from its rental."""

    infra: str = "vast"
    """SkyPilot's name of the infrastructure."""
    gpus: tuple[GpuWant, ...] = ()
    max_per_hour: float | None = None
    spot: bool = False
    bid: float | None = None
    """Dollars an hour for a spot box; None bids a little above the market's lowest."""
    boxes: int = 1
    max_hours: float
    budget: float | None = None
    disk_gb: float = 120.0
    tasks: tuple[str, ...] = ("t2v",)
    """Tasks whose models each box gets."""
    least_driver: tuple[int, ...] = ()
    """Oldest NVIDIA driver version for the trainer's environment."""
    fetch_seconds: float = 600.0
    """Time between two fetches of the newest complete state. At most this much is repeated after a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A box that can be rented. Dollars an hour with the disk; megabits a second; GB of disk.

    `bid` is in dollars an hour without the disk, for a box that a higher bid takes away; None for an on-demand box.
    `reliability` is the provider's own figure between 0 and 1. `machine` names the computer beyond this offer.
    """

    id: str
    machine: str
    gpu: str
    gpus: int
    gpu_bytes: int
    per_hour: float
    bid: float | None = None
    reliability: float | None = None
    down_mbps: float | None = None
    up_mbps: float | None = None
    per_gb_down: float = 0.0
    """Dollars for each GB that the box downloads; most providers charge for it."""
    per_gb_up: float = 0.0
    disk_per_hour: float = 0.0
    """The disk's part of `per_hour`, which a stopped box still costs."""
    disk_gb: float | None = None
    ram_bytes: int | None = None
    driver: str | None = None
    where: str = ""

    @property
    def card(self) -> str:
        """`RTX 4090`, `2x RTX 5090`, with the provider's name."""
        return f"{self.gpus}x {self.gpu}" if self.gpus > 1 else self.gpu

    @property
    def is_spot(self) -> bool:
        """Whether a higher bid takes the box away."""
        return self.bid is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """SSH address of a box.

    The host key is remembered under `name`, because a provider gives the port of an old box to a new one.
    """

    name: str
    host: str
    port: int
    user: str
    key: Path
    proxy: str = ""
    """A command that ssh connects through; empty for a direct connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One rented box. Times are seconds since 1970."""

    name: str
    """Its label at the provider, which finds it even if everything else is lost."""
    offer: Offer
    state: BoxState = BoxState.RENTING
    began: float
    ended: float | None = None
    """When the provider's list showed that it was gone."""
    ready: float | None = None
    """When its set-up finished."""
    stopped: float | None = None
    """When the provider's list showed that it was stopped. From then on only its disk is billed."""
    idle: float = 0.0
    """Seconds for which it was stopped before it was started again."""
    traffic: float = 0.0
    """Dollars for what it downloaded and sent."""
    address: Address | None = None
    job: str | None = None
    """Its job. It stays set when the box is given up, so that no other box trains the job meanwhile."""
    answered: float | None = None
    """When it last answered."""
    fetched: float | None = None
    """When a complete state of its job last came home."""
    because: str = ""
    """Why it is being destroyed."""
    blamed: bool = False
    """Its machine failed, and is avoided."""
    tries: int = 0
    """How often the current step has failed in a row."""
    not_before: float = 0.0
    """When its next step may begin."""

    @property
    def number(self) -> str:
        """Its number within the launch: the end of its name."""
        return self.name.rpartition("-")[2]

    @property
    def rate(self) -> float:
        """Dollars an hour."""
        return self.offer.per_hour if self.stopped is None else self.offer.disk_per_hour

    def cost(self, now: float) -> float:
        """Dollars until now, or until its end."""
        end = now if self.ended is None else self.ended
        idle = self.idle + (0.0 if self.stopped is None else max(0.0, end - self.stopped))
        ran = max(0.0, end - self.began - idle)
        return (ran * self.offer.per_hour + idle * self.offer.disk_per_hour) / 3600 + self.traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The training of one expert: what its speed depends on, and how much of it there is."""

    settings: str
    """As `run.speeds.settings_text` writes them."""
    batches: int
    epochs: int
    """After how many epochs it ends."""
    state_bytes: int = 0
    """Bytes of one of its training states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a job's time depends on. `download_bytes` counts the models of its task; a box gets those of all tasks."""

    trainer: str
    parts: tuple[Part, ...]
    batch_cost: float | None
    items: int
    download_bytes: int
    dataset_bytes: int = 0
    result_bytes: int = 0
    """What comes home: states, LoRAs and records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training: a dataset and the options of `wan-train train` for it."""

    name: str
    title: str
    dataset: Path
    dataset_stamp: str
    """Stamp of the dataset's files when they were checked. A later change is noticed before they are sent."""
    options: tuple[str, ...]
    """Arguments of `wan-train train` on the box, without those that the launch adds."""
    recipe: Path | None = None
    """A local recipe file, which is sent too."""
    work: Work | None = None
    state: JobState = JobState.WAITING
    home: Path | None = None
    """Its run directory here, set once the training has started; it may not exist yet."""
    boxes: int = 0
    """How many boxes have had it."""
    problem: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch as it is written to `launch.json`."""

    id: str
    created: float
    wants: Wants
    jobs: tuple[Job, ...]
    boxes: tuple[Box, ...] = ()
    credit: float | None = None
    """The account's dollars when last read. Without credit a provider stops every box."""
    halt: Halt | None = None
    halted_because: str = ""
    gave_up: bool = False
    """It ends because boxes or this computer's disk failed, not because of a limit or the user."""
    next_search: float = 0.0
    """Offers are not searched again before this time."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do and nothing costs money."""
        return all(job.state.is_end for job in self.jobs) and not any(True for _ in self.living)

    @property
    def living(self) -> Iterator[Box]:
        """Boxes that may cost money."""
        return (box for box in self.boxes if box.state is not BoxState.GONE)

    @property
    def avoided(self) -> frozenset[str]:
        """Machines that were not what was rented, or failed."""
        return frozenset(box.offer.machine for box in self.boxes if box.blamed)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    def box(self, name: str) -> Box:
        return next(box for box in self.boxes if box.name == name)

    def spent(self, now: float) -> float:
        """Dollars for all boxes until now."""
        return sum(box.cost(now) for box in self.boxes)
