"""Tests each GPU once with the trainer's own Python. The result counts while driver and torch stay the same.

A GPU in use is never touched: the memory of a test could end a training.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.engine.trainer import package_version
from wan_train.gpu.borrow import Borrower, take
from wan_train.gpu.free import why_busy
from wan_train.gpu.leases import Lease, LeaseRoom
from wan_train.gpu.model import Gpu, GpuUnavailableError
from wan_train.provision.driver_checks import GpuFacts, adapted, card
from wan_train.provision.steps import Finding, State, Step, ready, warning
from wan_train.provision.work import EndedError, StalledError, Work
from wan_train.recipe.model import Recipe

RECORD: Final = "kernel.json"
CHILD: Final = Path(__file__).with_name("gpu_check_child.py")
_TEST_SECONDS: Final = 300.0
"""Importing torch and xformers from a cold network disk takes a minute."""
_SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """One GPU's last test: `problem` with `advice`, or the torch and kinds of `attention` that work."""

    problem: str = ""
    advice: str = ""
    torch: str = ""
    attention: tuple[str, ...] = ()
    at: float = 0.0

    @property
    def passed(self) -> frozenset[str]:
        return frozenset() if self.problem else frozenset(self.attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a test depends on; any change invalidates all tests."""

    driver: str | None
    python: str
    packages: Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The content of the record file. `gpus` is keyed by UUID."""

    basis: Basis
    gpus: Mapping[str, Tested]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCheck:
    """The step. `python` is the trainer's, `folder` holds the record, and `room` holds the GPU leases."""

    python: Path
    folder: Path
    facts: GpuFacts
    room: LeaseRoom
    recipe: Recipe
    device: str = "cuda"
    _left: set[str] = field(default_factory=set)
    """GPUs that were in use when it was their turn to be tested."""

    def step(self) -> Step:
        return Step("kernel", "CUDA and attention", self.check, apply=self.apply, needs=("environment",))

    def check(self) -> Finding:
        present = self.facts.usable()
        if not present:
            return Finding(State.UNTESTED, "no GPU to test")
        if not os.access(self.python, os.X_OK):
            return Finding(State.MISSING, "no GPU tested yet: the trainer has no environment")
        tested = self._tested()
        for gpu in present:
            if (last := tested.get(gpu.uuid)) is not None and last.problem:
                detail = f"GPU {gpu.number} failed its test: {one_line(last.problem)}"
                return Finding(State.MISSING, detail, hint=one_line(last.advice) or None)
        untested = [gpu for gpu in present if self._is_untested(gpu, tested)]
        busy = {gpu.number: why for gpu in untested if (why := self._why_busy(gpu)) is not None}
        free = [gpu for gpu in untested if gpu.number not in busy]
        if free:
            names = ", ".join(f"GPU {gpu.number}" for gpu in free)
            return Finding(State.UNVERIFIED, f"not tested yet with this driver and torch: {names}")
        works = "; ".join(
            f"GPU {gpu.number}: torch {tested[gpu.uuid].torch}, {' and '.join(self._attention(gpu))} work"
            for gpu in present
            if gpu not in untested
        )
        if busy:
            why = f"not tested, because it is in use: {'; '.join(busy.values())}"
            return warning("; ".join(filter(None, (works, why))), "When the GPU is free: `wan-train provision`.")
        return ready(works)

    def apply(self, work: Work) -> None:
        """Test each free, untested GPU; raises NotReadyError that names every GPU that failed."""
        failed: dict[str, Tested] = {}
        for gpu in self.facts.usable():
            if not self._is_untested(gpu, self._tested()):
                continue
            lease = self._take(gpu, work)
            if lease is None:
                self._left.add(gpu.uuid)
                work.say(f"GPU {gpu.number} is in use and was not tested")
                continue
            with lease:
                work.say(f"testing GPU {gpu.number} {card(gpu)}")
                result = replace(self._test(gpu, work), at=time.time())
            record = Record(basis=self._basis(), gpus={**self._tested(), gpu.uuid: result})
            write_whole(self.folder / RECORD, codec.to_json(record), mode=0o644)
            if result.problem:
                failed[f"GPU {gpu.number} {card(gpu)}"] = result
        if failed:
            hint = " ".join(dict.fromkeys(result.advice for result in failed.values() if result.advice))
            problems = "; ".join(f"{name}: {result.problem}" for name, result in failed.items())
            raise NotReadyError(problems, hint=hint or f"The log is {work.log}.")

    def _is_untested(self, gpu: Gpu, tested: Mapping[str, Tested]) -> bool:
        return not tested.get(gpu.uuid, Tested()).passed.issuperset(self._attention(gpu))

    def _take(self, gpu: Gpu, work: Work) -> Lease | None:
        """The GPU's lease if it is free, idle on as many readings as a training requires; else None."""
        try:
            lease, _ = take(
                gpu,
                self.room,
                Borrower(name="wan-train provision", step="kernel"),
                read=self.facts.gpus.read_again,
                pause=lambda: work.pause(_SETTLE_SECONDS),
            )
        except GpuUnavailableError:
            return None
        return lease

    def _test(self, gpu: Gpu, work: Work) -> Tested:
        attention = self._attention(gpu)
        deadline = time.monotonic() + _TEST_SECONDS
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wan-train-kernel-") as scratch:
            answer = Path(scratch) / "answer.json"
            try:
                code, tail = work.run(
                    [self.python, "-c", CHILD.read_text(encoding="utf-8"), answer, self.device, *attention],
                    what=f"testing GPU {gpu.number}",
                    cwd=self.folder,  # a torch.py or json.py elsewhere would be imported instead
                    env={DEVICE_VARIABLE: gpu.uuid},
                    alive=lambda: time.monotonic() < deadline,
                    check=False,
                )
            except EndedError:
                raise
            except StalledError:
                return Tested(problem=f"no answer within {_TEST_SECONDS:.0f} s", advice="Look at `nvidia-smi`.")
            except NotReadyError as error:
                return Tested(problem=error.message, advice=error.hint or "")
            if code == 0:
                return codec.from_json(answer.read_bytes(), Tested, where=str(answer))
        return _explain(tail, attention)

    def _attention(self, gpu: Gpu) -> Sequence[str]:
        """The attention that a run on this GPU will use, and sdpa, which every run can fall back on."""
        chosen = adapted(self.recipe, gpu, self.python).experts[0].training.attention.value
        return list(dict.fromkeys(("sdpa", chosen)))

    def _why_busy(self, gpu: Gpu) -> str | None:
        holder = self.room.holder(gpu.uuid)
        if holder is not None:
            return f"GPU {gpu.number} is in use by {one_line(holder.run_id or 'a run')}"
        if gpu.uuid in self._left:
            return f"GPU {gpu.number} was in use a moment ago"
        return why_busy(gpu)

    def _basis(self) -> Basis:
        packages = {name: package_version(self.python, name) for name in ("torch", "xformers", "flash_attn")}
        return Basis(driver=self.facts.gpus.driver(), python=str(self.python.parent.resolve()), packages=packages)

    def _tested(self) -> Mapping[str, Tested]:
        """The last tests by UUID; empty if the basis has changed."""
        record: Record | None = codec.read(self.folder / RECORD, Record)
        return record.gpus if record is not None and record.basis == self._basis() else {}


def _explain(tail: str, attention: Sequence[str]) -> Tested:
    """Explain a failed child by the end of its output."""
    found = diagnose(textwrap.dedent(tail))
    last = one_line(tail.strip().splitlines()[-1] if tail.strip() else "no output")
    if found.cause is not Cause.UNKNOWN:
        return Tested(problem=f"{found.meaning} ({last})", advice=found.advice)
    other = attention[-1]
    advice = f"Train with `--attention sdpa`, if {other} is what fails." if other != "sdpa" else ""
    return Tested(problem=last, advice=advice)
