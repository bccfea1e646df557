"""What was measured, and for which training it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import make_recipe
from wan_train.base import codec
from wan_train.recipe.levers import settings_moved
from wan_train.recipe.measured import (
    Basis,
    Length,
    Measurement,
    Outcome,
    Shape,
    Tuning,
    Workload,
    best,
    choice_for,
    others_of,
    serving,
    tuned,
)
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Task

RECIPE, _ = make_recipe()
SPEC = RECIPE.experts[0]
BASIS = Basis(card="NVIDIA GeForce RTX 5090", total_bytes=32, driver="575", trainer="v0.3.4", torch="2.13.0")
SQUARE = Shape(width=960, height=960)
WORK = Workload(
    task=Task.T2V,
    precision="fp16",
    commonest=SQUARE,
    largest=SQUARE,
    batch_size=1,
    others=others_of(SPEC.training),
)
GUIDE = Measurement(
    at=0.0,
    basis=BASIS,
    workload=WORK,
    lever="",
    settings=settings_moved(SPEC.training),
    outcome=Outcome.MEASURED,
    step_seconds=(2.1,) * 15,
    load_seconds=40.0,
)


def faster(**changes: object) -> Measurement:
    settings = {**GUIDE.settings, "compile": True, "compile_cache_size_limit": 32}
    return replace(GUIDE, lever="compile", settings=settings, step_seconds=(1.42,) * 15, **changes)  # type: ignore[arg-type]  # fields by name


def test_a_measurement_survives_its_record() -> None:
    assert codec.from_json(codec.to_json(faster()), Measurement, where="a test") == faster()


def test_a_short_training_does_not_wait_for_the_compiler() -> None:
    compiled = faster(warmup_seconds=60.0)
    assert best([GUIDE, compiled], Length(steps=2_400, epochs=100)) == compiled
    assert best([GUIDE, compiled], Length(steps=20, epochs=1)) == GUIDE
    assert best([GUIDE, compiled], Length(steps=400, epochs=1, shapes=9)) == GUIDE  # compiled anew for each bucket


@given(seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=8))
def test_the_best_is_never_more_than_a_hundredth_slower_than_any_other(seconds: list[float]) -> None:
    rows = [replace(GUIDE, step_seconds=(each,) * 15, load_seconds=0.0) for each in seconds]
    fastest = best(rows, Length())
    assert fastest is not None
    assert fastest.seconds_per_step <= 1.0101 * min(seconds)


@pytest.mark.parametrize(("seconds", "is_faster"), [(2.05, False), (1.7, True)])
def test_a_lever_counts_only_beyond_the_scatter_of_the_steps(seconds: float, *, is_faster: bool) -> None:
    guide, other = (
        replace(row, step_seconds=tuple(middle + 0.02 * (at - 7) for at in range(15)), load_seconds=0.0)
        for row, middle in ((GUIDE, 2.1), (faster(), seconds))
    )
    assert guide.spread == pytest.approx(0.08)
    assert best([guide, other], Length()) == (other if is_faster else guide)


def test_rows_that_were_not_measured_whole_are_never_chosen() -> None:
    rows = [faster(outcome=outcome) for outcome in Outcome if outcome is not Outcome.MEASURED]
    assert best(rows, Length()) is None
    assert best([GUIDE, *rows], Length()) == GUIDE


def test_only_measurements_of_the_same_work_count() -> None:
    row = faster()
    assert serving([GUIDE, row], WORK) == (GUIDE, row)
    tall = replace(WORK, commonest=Shape(width=832, height=1104), largest=Shape(width=832, height=1104))
    assert serving([row], tall) == (row,)
    larger = Shape(width=1280, height=1280)
    assert serving([row], replace(WORK, commonest=larger, largest=larger)) == ()
    assert serving([row], replace(WORK, largest=larger)) == ()
    assert serving([row], replace(WORK, others=("network_dim=32",))) == ()
    assert serving([row], replace(WORK, precision="bf16")) == ()
    again = replace(row, at=9.0)
    assert serving([row, again], WORK) == (again,)


def test_settings_that_somebody_chose_are_only_met_by_rows_that_agree() -> None:
    tuning = Tuning(measurements=(GUIDE, faster()))
    assert choice_for(SPEC, tuning) == faster()
    chosen = Source(origin=Origin.FLAG, text="--attention")
    same = replace(SPEC, sources={**SPEC.sources, "attention": chosen})
    assert choice_for(same, tuning) == faster()
    other = replace(SPEC, training=replace(SPEC.training, fp8_base=False), sources={"fp8_base": chosen})
    assert choice_for(other, tuning) is None


def test_the_speed_of_a_run_is_that_of_its_own_settings() -> None:
    tuning = Tuning(measurements=(GUIDE, faster()))
    found = tuned(SPEC, tuning)
    assert found is not None
    assert (found.seconds_per_step, found.guide_seconds) == (2.1, None)
    compiled = replace(SPEC, training=replace(SPEC.training, options={"compile": True, "compile_cache_size_limit": 32}))
    found = tuned(compiled, tuning)
    assert found is not None
    assert (found.seconds_per_step, found.guide_seconds) == (1.42, 2.1)
    assert tuned(replace(SPEC, training=replace(SPEC.training, blocks_to_swap=5)), tuning) is None
