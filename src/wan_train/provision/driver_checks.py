"""The NVIDIA driver and the GPUs: whether this box can train, and with which settings on which card."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.host import cpus
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.base.units import GIB
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.engine.trainer import has_package
from wan_train.gpu.choose import choose, how_to_show, why_none
from wan_train.gpu.model import Gpu, GpuProbe, GpuReading, GpuUnavailableError, LostGpu, short_name
from wan_train.gpu.probe import NvmlProbe
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import Card, Machine, is_blackwell
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import Task

Version = tuple[int, ...]
Capability = tuple[int, int]

BLACKWELL_DRIVER: Version = (570,)
"""The first driver branch for Blackwell GPUs. Source: NVIDIA's driver release notes, R570."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaBuild:
    """One CUDA version that torch is built for.

    `least_driver` runs it by NVIDIA's minor version compatibility; `own_driver` is the one it came with. Sources: "CUDA
    Compatibility", table of minor version compatibility; CUDA Toolkit release notes, table of driver versions.
    `oldest` and `newest` are compute capabilities; only the major number of `newest` counts. Source: PyTorch's
    RELEASE.md, "CUDA support matrix" of 2.7 and later.
    """

    name: str
    least_driver: Version
    own_driver: Version
    oldest: Capability
    newest: Capability

    def supports(self, capability: Capability) -> bool:
        return self.oldest <= capability and capability[0] <= self.newest[0]


_BUILDS = {
    "126": CudaBuild(name="CUDA 12.6", least_driver=(525,), own_driver=(560, 28), oldest=(5, 0), newest=(9, 0)),
    "128": CudaBuild(name="CUDA 12.8", least_driver=(525,), own_driver=(570, 26), oldest=(7, 5), newest=(12, 0)),
    "130": CudaBuild(name="CUDA 13.0", least_driver=(580,), own_driver=(580, 65), oldest=(7, 5), newest=(12, 0)),
}
_INDEX = re.compile(r"/cu(\d{3})/?$")


def build_of(engine: EngineFile) -> CudaBuild | None:
    """The CUDA build of an engine's torch, by its package index; None if it is unknown."""
    match = _INDEX.search(engine.first_index or "")
    return _BUILDS.get(match[1]) if match is not None else None


def driver_version(text: str | None) -> Version | None:
    """`570.124.06` as numbers; None for anything else."""
    return tuple(map(int, text.split("."))) if text and re.fullmatch(r"\d+(?:\.\d+)*", text) else None


def words(version: Version) -> str:
    return ".".join(map(str, version))


_SMALL_BYTES = 15 * GIB
"""Just below what a 16 GB card reports. The T5 encoder alone takes 11.4 GB of it while captions are cached."""
_ANOTHER_BOX = "Rent a box with a newer driver: on Vast.ai choose offers with CUDA 12.8 or newer."


@dataclass(slots=True)
class Gpus:
    """The GPUs of this box, read once for all steps."""

    make: Callable[[], GpuProbe]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: GpuReading | GpuUnavailableError | None = None

    def read(self) -> GpuReading:
        """The first reading; raises GpuUnavailableError."""
        with self._lock:
            if self._known is None:
                try:
                    self._known = self.read_again()
                except GpuUnavailableError as error:
                    self._known = error
            known = self._known
        if isinstance(known, GpuUnavailableError):
            raise known
        return known

    def read_again(self) -> GpuReading:
        """The GPUs at this moment; raises GpuUnavailableError."""
        probe = self.make()
        try:
            return probe.read()
        finally:
            probe.close()

    def present(self) -> tuple[Gpu, ...]:
        """All GPUs that answer; none if NVML cannot be used."""
        try:
            return self.read().gpus
        except GpuUnavailableError:
            return ()

    def driver(self) -> str | None:
        try:
            return self.read().driver
        except GpuUnavailableError:
            return None


def of_this_box(settings: Settings) -> Gpus:
    return Gpus(lambda: NvmlProbe(timeout=settings.probe_timeout_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What is known of driver and GPUs. If `needed`, a box without them is not ready; else it gets a warning."""

    gpus: Gpus
    build: CudaBuild | None
    needed: bool
    chosen: str | None = None
    """`--gpus` as a setting."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def steps(self) -> list[Step]:
        return [
            Step("driver", "NVIDIA driver", self.driver),
            Step("gpus", "GPUs", self.cards),
        ]

    def driver(self) -> Finding:
        try:
            reading = self.gpus.read()
        except GpuUnavailableError as error:
            return Finding(self._absent, error.message, hint=error.hint)
        return judge_driver(reading, self.build)

    def cards(self) -> Finding:
        """Judge all GPUs together: one usable GPU is enough."""
        try:
            reading = self.gpus.read()
        except GpuUnavailableError as error:
            only_provision = "no GPU: this box can be provisioned, but cannot train"
            detail = "no GPU can be used without the driver" if self.needed else only_provision
            return Finding(self._absent, detail, hint=error.hint)
        visible = self.environ.get(DEVICE_VARIABLE)
        try:
            chosen = choose(reading, self.chosen, visible)
        except BadInputError as error:
            return blocked(error.message, error.hint)
        if not chosen:
            return Finding(self._absent, why_none(reading, visible), hint=how_to_show(reading, visible))
        judged = {gpu.number: judge_gpu(gpu, self.build) for gpu in chosen}
        if all(finding.state is State.BLOCKED for finding in judged.values()):
            return judged[chosen[0].number]
        judged |= {gpu.number: judge_lost(gpu) for gpu in reading.lost}
        hints = [finding.hint for finding in judged.values() if finding.hint]
        return Finding(
            State.READY if all(each.state is State.READY for each in judged.values()) else State.WARNING,
            "; ".join(f"GPU {index}: {finding.detail}" for index, finding in judged.items()),
            hint=" ".join(dict.fromkeys(hints)) or None,
        )

    def usable(self) -> tuple[Gpu, ...]:
        """The GPUs that a run may use and the trainer's torch has kernels for; none if NVML cannot be used."""
        try:
            chosen = choose(self.gpus.read(), self.chosen, self.environ.get(DEVICE_VARIABLE))
        except (GpuUnavailableError, BadInputError):
            return ()
        return tuple(gpu for gpu in chosen if judge_gpu(gpu, self.build).state is not State.BLOCKED)

    @property
    def _absent(self) -> State:
        return State.BLOCKED if self.needed else State.WARNING


def judge_driver(reading: GpuReading, build: CudaBuild | None) -> Finding:
    """Judge the driver's version against the torch build and the GPUs present."""
    version = driver_version(reading.driver)
    has = one_line(reading.driver or "of unknown version")
    if version is None or build is None:
        return Finding(State.UNTESTED, has)
    if version < build.least_driver:
        return blocked(
            f"driver {has} is too old: torch for {build.name} needs {words(build.least_driver)} or newer", _ANOTHER_BOX
        )
    blackwell = [gpu for gpu in reading.gpus if is_blackwell(gpu.compute_capability)]
    if blackwell and version < BLACKWELL_DRIVER:
        return blocked(
            f"driver {has} is too old for {card(blackwell[0])}, which needs {words(BLACKWELL_DRIVER)} or newer",
            _ANOTHER_BOX,
        )
    if version < build.own_driver:
        return warning(
            f"driver {has} is older than the {words(build.own_driver)} that {build.name} came with; NVIDIA "
            f"supports {words(build.least_driver)} and newer",
            "`wan-train provision` tests it on every GPU. If that fails, rent a box with a newer driver.",
        )
    return ready(f"{has}; torch for {build.name} came with {words(build.own_driver)}")


def judge_gpu(gpu: Gpu, build: CudaBuild | None) -> Finding:
    """Whether the trainer's torch has kernels for this GPU, and whether its memory is enough."""
    capability = gpu.compute_capability
    if build is not None and capability is not None and not build.supports(capability):
        age = "newer" if capability[0] > build.newest[0] else "older"
        return blocked(
            f"{card(gpu)} has compute capability {words(capability)}, and torch for "
            f"{build.name} has kernels for {words(build.oldest)} to {words(build.newest)} only",
            f"Rent another GPU, or name an engine file of your own with a torch for {age} GPUs: "
            "`wan-train provision --engine FILE.toml`.",
        )
    if gpu.total_bytes < _SMALL_BYTES:
        return warning(
            f"{card(gpu)} has little memory: the T5 encoder takes 11.4 GB of it while captions are cached",
            "If caching runs out of memory, rent a GPU with 16 GB or more.",
        )
    return ready(card(gpu))


def judge_lost(gpu: LostGpu) -> Finding:
    hint = "wan-train skips it and trains on the others."
    return warning(f"cannot be used: {one_line(gpu.reason, 400)}", hint)


def card(gpu: Gpu) -> str:
    """`RTX 4090 (24 GB)`; memory in units of 2**30 bytes, as cards are sold."""
    return f"{short_name(one_line(gpu.name))} ({gpu.total_bytes / GIB:.0f} GB)"


def recipe_for(tasks: Sequence[Task]) -> Recipe:
    """The shipped recipe of the first task: the hardware rules are the same for both tasks."""
    return shipped(tasks[0])


def adapted(recipe: Recipe, gpu: Gpu, python: Path) -> Recipe:
    """The recipe as a run on this GPU alone would use it; `python` is the trainer's, and may not be there yet."""
    machine = Machine(
        cards=(Card(name=gpu.name, total_bytes=gpu.total_bytes, compute_capability=gpu.compute_capability),),
        cpus=cpus(),
        has_xformers=has_package(python, "xformers"),
        has_flash=has_package(python, "flash_attn"),
        dit_dtype=None,
    )
    return adaptation.adapt(recipe, machine)[0]
