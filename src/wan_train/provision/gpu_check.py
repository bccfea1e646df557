"""Every GPU tried once by the trainer's own Python, and remembered as long as driver and torch stay the same.

A GPU that is at work is never touched: what the try takes of its memory could end a training.
"""

from __future__ import annotations

import json
import os
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosing import diagnose
from wan_train.engine.trainer import package_version
from wan_train.gpu.free import QUIET_READINGS, why_busy
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.model import Gpu, GpuUnavailableError
from wan_train.provision.driver_checks import GpuFacts, adapted, card
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import EndedError, StalledError, Work
from wan_train.recipe.model import Recipe

RECORD = "kernel.json"
CHILD = Path(__file__).with_name("gpu_check_child.py")
_TRY_SECONDS = 300.0
"""Importing torch and xformers from a cold network disk takes a minute."""
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCheck:
    """The step. `python` is the trainer's, `folder` where the record is, `room` holds the leases of the GPUs."""

    python: Path
    folder: Path
    facts: GpuFacts
    room: LeaseRoom
    recipe: Recipe
    device: str = "cuda"
    _left: set[str] = field(default_factory=set)
    """GPUs that were in use when they were to be tried."""

    def step(self) -> Step:
        return Step(
            id="kernel",
            title="CUDA and attention",
            check=self.check,
            apply=self.apply,
            needs=("environment",),
        )

    def check(self) -> Finding:
        present = self.facts.usable()
        if not present:
            return Finding(state=State.UNTESTED, detail="no GPU to test")
        if not os.access(self.python, os.X_OK):
            return Finding(state=State.MISSING, detail="no GPU tested yet: the trainer has no environment")
        tried = self._tried()
        failed = [gpu for gpu in present if _word(tried, gpu, "problem")]
        if failed:
            problem = f"GPU {failed[0].number} failed its test: {_word(tried, failed[0], 'problem')}"
            return Finding(state=State.MISSING, detail=problem, hint=_word(tried, failed[0], "advice") or None)
        untried = [gpu for gpu in present if not set(self._attention(gpu)) <= _passed(tried, gpu)]
        busy = {gpu.number: why for gpu in untried if (why := self._why_busy(gpu)) is not None}
        free = [gpu for gpu in untried if gpu.number not in busy]
        if free:
            names = ", ".join(f"GPU {gpu.number}" for gpu in free)
            return Finding(state=State.UNVERIFIED, detail=f"not tested yet with this driver and torch: {names}")
        told = "; ".join(self._told(gpu, tried) for gpu in present if gpu not in untried)
        if busy:
            why = "; ".join(busy.values())
            return Finding(
                state=State.WARNING,
                detail=f"{told + '; ' if told else ''}not tested, because it is in use: {why}",
                hint="When the GPU is free: `wan-train provision`.",
            )
        return Finding(state=State.READY, detail=told)

    def apply(self, work: Work) -> None:
        """Try what is free and not tried; raises NotReadyError naming every GPU that failed."""
        problems = []
        advice: list[str] = []
        for gpu in self.facts.usable():
            if set(self._attention(gpu)) <= _passed(self._tried(), gpu):
                continue
            with ExitStack() as held:
                lease = self._take(gpu, work)
                if lease is None:
                    self._left.add(gpu.uuid)
                    work.say(f"GPU {gpu.number} is in use and was left alone")
                    continue
                held.enter_context(lease)
                work.say(f"testing GPU {gpu.number} {card(gpu)}")
                result = self._try(gpu, work)
                self._remember(gpu, result)
                if result.get("problem"):
                    problems.append(f"GPU {gpu.number} {card(gpu)}: {result['problem']}")
                    advice.append(result.get("advice") or "")
        if problems:
            hint = " ".join(dict.fromkeys(filter(None, advice))) or None
            raise NotReadyError("; ".join(problems), hint=hint or f"The log is {work.log}.")

    def _take(self, gpu: Gpu, work: Work) -> Lease | None:
        """The GPU's lease, once nobody else holds it and it was quiet as often as a training asks for."""
        holder = LeaseHolder(pid=os.getpid(), run_id="wan-train provision", step="kernel", since=time.time())
        lease = self.room.try_take(gpu.uuid, holder)
        if lease is None:
            return None
        with ExitStack() as on_the_way_out:
            on_the_way_out.enter_context(lease)
            for number in range(QUIET_READINGS):
                if number:
                    work.pause(_SETTLE_SECONDS)
                now = self._now(gpu)
                if now is None or why_busy(now) is not None:
                    return None
            on_the_way_out.pop_all()
        return lease

    def _now(self, gpu: Gpu) -> Gpu | None:
        try:
            reading = self.facts.gpus.read_again()
        except GpuUnavailableError:
            return None
        return next((each for each in reading.gpus if each.uuid == gpu.uuid), None)

    def _try(self, gpu: Gpu, work: Work) -> dict[str, Any]:
        """What the child said, or its `problem` and the `advice` for it."""
        attention = self._attention(gpu)
        deadline = time.monotonic() + _TRY_SECONDS
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wan-train-kernel-") as scratch:
            answer = Path(scratch) / "answer.json"
            try:
                code, tail = work.run(
                    [self.python, "-c", CHILD.read_text(encoding="utf-8"), str(answer), self.device, *attention],
                    what=f"testing GPU {gpu.number}",
                    cwd=self.folder,  # where nobody keeps a torch.py or json.py that Python would import instead
                    env={DEVICE_VARIABLE: gpu.uuid},
                    alive=lambda: time.monotonic() < deadline,
                    check=False,
                )
            except EndedError:
                raise
            except StalledError:
                return {"problem": f"no answer within {_TRY_SECONDS:.0f} s", "advice": "Look at `nvidia-smi`."}
            except NotReadyError as error:
                return {"problem": error.message, "advice": error.hint or ""}
            if code == 0:
                said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
                return said
        return _explain(tail, attention)

    def _attention(self, gpu: Gpu) -> Sequence[str]:
        """What a run on this GPU will use, and sdpa, which every run can fall back on."""
        chosen = adapted(self.recipe, gpu, self.python).experts[0].training.attention.value
        return list(dict.fromkeys(("sdpa", chosen)))

    def _why_busy(self, gpu: Gpu) -> str | None:
        holder = self.room.holder(gpu.uuid)
        if holder is not None:
            return f"GPU {gpu.number} is taken by {one_line(holder.run_id or 'a run')}"
        if gpu.uuid in self._left:
            return f"GPU {gpu.number} was in use a moment ago"
        return why_busy(gpu)

    def _told(self, gpu: Gpu, tried: dict[str, Any]) -> str:
        about = tried[gpu.uuid]
        return f"GPU {gpu.number}: torch {about.get('torch')}, {' and '.join(self._attention(gpu))} work"

    def _basis(self) -> dict[str, Any]:
        """What a try depends on; when any of it changes, all tries count for nothing."""
        packages = {name: package_version(self.python, name) for name in ("torch", "xformers", "flash_attn")}
        return {"driver": self.facts.gpus.driver(), "python": str(self.python.parent.resolve()), "packages": packages}

    def _tried(self) -> dict[str, Any]:
        """By UUID, what was said at the last try under today's conditions."""
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            gpus = record["gpus"]
            if record["basis"] != self._basis() or not all(isinstance(about, dict) for about in gpus.values()):
                return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        return dict(gpus)

    def _remember(self, gpu: Gpu, result: dict[str, Any]) -> None:
        gpus = {**self._tried(), gpu.uuid: {**result, "at": time.time()}}
        write_whole(self.folder / RECORD, json.dumps({"basis": self._basis(), "gpus": gpus}), mode=0o644)


def _word(tried: dict[str, Any], gpu: Gpu, key: str) -> str:
    return one_line(str(tried.get(gpu.uuid, {}).get(key, "")))


def _passed(tried: dict[str, Any], gpu: Gpu) -> set[str]:
    about = tried.get(gpu.uuid, {})
    return set() if "problem" in about else set(about.get("attention", ()))


def _explain(tail: str, attention: Sequence[str]) -> dict[str, Any]:
    """A child that failed, by the end of what it said."""
    found = diagnose(textwrap.dedent(tail))
    last = one_line(tail.strip().splitlines()[-1] if tail.strip() else "no output")
    if found.cause is not Cause.UNKNOWN:
        return {"problem": f"{found.meaning} ({last})", "advice": found.advice}
    other = attention[-1]
    advice = f"Train with `--attention sdpa`, if {other} is what fails." if other != "sdpa" else ""
    return {"problem": last, "advice": advice}
