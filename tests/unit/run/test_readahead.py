"""Which weights are read ahead, when, and that they are read."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import events_of, make_plan
from wan_train.run.plan import Plan
from wan_train.run.progress import Progress
from wan_train.run.readahead import RESERVE_BYTES, ReadAhead, fitting, is_time
from wan_train.run.state import JobState, RunState, fold_all

GB = 10**9
HIGH, LOW = Path("/high"), Path("/low")


@pytest.mark.parametrize(
    ("available", "copies", "chosen"),
    [(70 * GB, 1, [HIGH, LOW]), (60 * GB, 1, [HIGH]), (30 * GB, 1, []), (70 * GB, 2, [HIGH]), (60 * GB, 2, [])],
)
def test_only_what_fits_with_a_reserve(available: int, copies: int, chosen: list[Path]) -> None:
    sizes = [(HIGH, 29 * GB), (LOW, 29 * GB)]
    assert fitting(sizes, available=available, copies=copies) == chosen


def caching(plan: Plan, *steps: str) -> RunState:
    return fold_all(plan, events_of(plan, dict.fromkeys(steps, JobState.RUNNING)))


def test_it_begins_once_every_caching_has_loaded_its_model() -> None:
    plan = make_plan()
    both = caching(plan, "cache-latents", "cache-text")
    assert not is_time(plan, both, {"cache-latents": Progress(cached=1)})
    assert is_time(plan, both, {"cache-latents": Progress(cached=1), "cache-text": Progress(cached=3)})
    assert not is_time(plan, caching(plan), {})


@pytest.mark.parametrize(("free", "said"), [(RESERVE_BYTES + GB, "read ahead: "), (1000, "not read ahead: ")])
def test_what_was_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], free: int, said: str) -> None:
    plan = make_plan()
    dit = {name: tmp_path / f"{name}.safetensors" for name in plan.models.dit}
    for path in dit.values():
        path.write_bytes(bytes(1_000_000))
    plan = replace(plan, models=replace(plan.models, dit=dit))
    reader = ReadAhead(plan, available=lambda: free)
    reader.look(caching(plan, "cache-text"), {"cache-text": Progress(cached=1)})
    assert reader.thread is not None
    while reader.thread.is_alive():
        time.sleep(0.01)
    told = capsys.readouterr().out
    assert told.startswith(said)
    assert "high.safetensors" in told
