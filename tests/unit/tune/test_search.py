"""Which candidate comes next, over made-up cards: a simulated card answers instead of a trainer."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.units import GIB
from wan_train.engine.capabilities import KNOWN_COMMITS, Script, stored
from wan_train.recipe.levers import LEVERS, Effect, Lever, Settings, levers_for, settings_moved, with_settings
from wan_train.recipe.load import shipped
from wan_train.recipe.measured import Basis, Length, Measurement, Outcome, Shape, Workload, best
from wan_train.recipe.model import changed
from wan_train.recipe.terms import Attention, Task
from wan_train.tune.search import Space, blocks_of, cannot_fit, is_slower, may_start, next_candidate, weight_bytes

TRAINING = shipped(Task.T2V).experts[0].training
BASIS = Basis(card="a card", total_bytes=32 * GIB, driver="575", trainer="v0.3.4", torch="2.13.0")
WORKLOAD = Workload(
    task=Task.T2V,
    precision="fp16",
    commonest=Shape(width=960, height=960),
    largest=Shape(width=960, height=960),
    batch_size=1,
    others=(),
)
ALL = levers_for(
    TRAINING,
    chosen=(),
    options=[name[2:] for name in stored("v0.3.4").options[Script.TRAIN]],
    packages={"flash_attn", "flash_attn_interface", "xformers"},
    version="v0.3.4",
    blackwell=False,
)


def row(
    lever: str,
    settings: Settings,
    outcome: Outcome = Outcome.MEASURED,
    seconds: float = 2.0,
    *,
    peak: int | None = None,
    wall: float = 60.0,
) -> Measurement:
    return Measurement(
        at=0.0,
        basis=BASIS,
        workload=WORKLOAD,
        lever=lever,
        settings=settings,
        outcome=outcome,
        step_seconds=(seconds,) * 15 if outcome is Outcome.MEASURED else (),
        peak_bytes=peak,
        wall_seconds=wall,
    )


def space(blocks: int, *, total: int = 32 * GIB, levers: tuple[Lever, ...] = ALL, may_swap: bool = True) -> Space:
    guide = settings_moved(changed(TRAINING, {"blocks_to_swap": blocks, "attention": Attention.SDPA}))
    return Space(guide=guide, levers=levers, may_swap=may_swap, total_bytes=total, precision="fp16", length=Length())


def searched(tried: Space, *, factors: Mapping[str, float], per_block: float, rest: int) -> list[Measurement]:
    """All rows of a search on a card that answers like this: memory is weights and a rest, speed a product."""
    rows: list[Measurement] = []
    while (candidate := next_candidate(tried, rows)) is not None:
        assert candidate.settings not in [known.settings for known in rows]
        peak = rest + weight_bytes(candidate.settings, "fp16")
        seconds = 1.0 + per_block * blocks_of(candidate.settings)
        for lever in LEVERS:
            if all(candidate.settings.get(name) == value for name, value in lever.changes.items()):
                seconds *= factors.get(lever.id, 1.0)
        is_over = peak > tried.total_bytes
        outcome = Outcome.OUT_OF_MEMORY if is_over else Outcome.MEASURED
        rows.append(row(candidate.lever, candidate.settings, outcome, seconds, peak=None if is_over else peak))
    return rows


@given(
    blocks=st.sampled_from([0, 10, 20, 36]),
    total=st.integers(12, 90),
    rest=st.integers(2, 12),
    factors=st.dictionaries(st.sampled_from([lever.id for lever in LEVERS]), st.sampled_from([0.5, 0.8, 1.0, 1.5])),
)
def test_a_search_ends_with_the_best_of_its_rows_and_with_few_blocks(
    blocks: int, total: int, rest: int, factors: dict[str, float]
) -> None:
    rows = searched(space(blocks, total=total * GIB), factors=factors, per_block=0.02, rest=rest * GIB)
    assert rows[0].is_guide
    assert len(rows) <= 24
    fastest = best(rows, Length())
    if fastest is None:
        assert all(each.outcome is Outcome.OUT_OF_MEMORY for each in rows)
        return
    measured = [each for each in rows if each.outcome is Outcome.MEASURED]
    assert fastest.seconds_per_step <= 1.01 * min(each.seconds_per_step for each in measured)
    if rows[0].outcome is Outcome.MEASURED and blocks_of(rows[0].settings):
        # As few as fit, but for the last two, which are not worth a measurement of their own.
        fits = next(n for n in range(41) if rest * GIB + weight_bytes({"fp8_base": True, "blocks_to_swap": n}, "fp16")
                    <= total * GIB)  # fmt: skip
        assert blocks_of(fastest.settings) <= max(fits + 2, 2)


@given(
    blocks=st.integers(0, 39),
    fewer=st.integers(0, 39),
    other_fp8=st.booleans(),
    peak=st.integers(4 * GIB, 32 * GIB),
)
def test_what_a_smaller_candidate_could_not_hold_is_not_tried(
    blocks: int, fewer: int, other_fp8: bool, peak: int
) -> None:
    tried = space(blocks)
    ran_out = row("", tried.guide, Outcome.OUT_OF_MEMORY, peak=peak)
    larger = {**tried.guide, "blocks_to_swap": min(blocks, fewer), "fp8_base": other_fp8}
    assert cannot_fit(tried, larger, [ran_out])
    smaller = {**tried.guide, "blocks_to_swap": blocks + 1, "fp8_base": True}
    assert not cannot_fit(tried, smaller, [ran_out])


def test_a_resumed_search_goes_on_where_the_rows_end() -> None:
    factors = {"compile": 0.8, "no-fp8": 0.9}
    tried = space(10, total=80 * GIB)
    rows = searched(tried, factors=factors, per_block=0.02, rest=6 * GIB)
    for number in range(len(rows)):
        after = next_candidate(tried, rows[:number])
        assert after is not None
        assert (after.lever, after.settings) == (rows[number].lever, rows[number].settings)


def test_what_somebody_chose_is_not_moved() -> None:
    levers = levers_for(
        TRAINING,
        chosen=("attention", "fp8_base", "compile"),
        options=[name[2:] for name in stored("v0.3.4").options[Script.TRAIN]],
        packages={"flash_attn", "xformers"},
        version="v0.3.4",
        blackwell=False,
    )
    assert {lever.id for lever in levers} == {"one-way-swap", "pinned-swap", "loaders"}
    chosen = space(10, levers=levers, may_swap=False)
    rows = searched(chosen, factors={}, per_block=0.02, rest=6 * GIB)
    assert {blocks_of(each.settings) for each in rows} == {10}


def test_every_version_is_given_only_options_that_it_has() -> None:
    for version in KNOWN_COMMITS.values():
        options = [name[2:] for name in stored(version).options[Script.TRAIN]]
        levers = levers_for(
            TRAINING, chosen=(), options=options, packages={"flash_attn_interface"}, version=version, blackwell=False
        )
        assert {option for lever in levers for option in lever.options()} <= {*options, "fp8_base"}
        assert ("compile" in {lever.id for lever in levers}) == (version == "v0.3.4")
        assert ("flash3" in {lever.id for lever in levers}) == (version == "v0.3.4")


def test_no_lever_makes_the_result_worse() -> None:
    without = changed(TRAINING, {"fp8_base": False})
    for lever in LEVERS:
        assert lever.effect in set(Effect)
        assert lever.source
        assert lever.changes.get("fp8_base") is not True
    levers = levers_for(without, chosen=(), options=(), packages=(), version="v0.3.4", blackwell=False)
    assert "no-fp8" not in {lever.id for lever in levers}


@given(settings=st.sampled_from(LEVERS), other=st.sampled_from(LEVERS))
def test_settings_of_a_row_are_those_of_the_training_under_it(settings: Lever, other: Lever) -> None:
    moved = {**settings_moved(TRAINING), **settings.changes, **other.changes}
    assert settings_moved(with_settings(TRAINING, moved)) == moved
    before = with_settings(TRAINING, {**moved, **settings.changes})
    assert settings_moved(with_settings(before, settings_moved(TRAINING))) == settings_moved(TRAINING)


@given(spent=st.floats(0, 1e4), budget=st.floats(1, 1e4), wall=st.floats(1, 1e3))
def test_a_candidate_is_started_only_if_it_fits_into_the_time(spent: float, budget: float, wall: float) -> None:
    tried = space(0)
    first = next_candidate(tried, [])
    assert first is not None
    assert may_start([], first, spent=spent, budget=budget)
    rows = [row("", tried.guide, wall=wall)]
    second = next_candidate(tried, rows)
    assert second is not None
    assert may_start(rows, second, spent=spent, budget=budget) == (spent + wall + second.warmup_seconds <= budget)


def test_a_candidate_is_given_up_after_five_slow_steps_and_never_for_one() -> None:
    leader = row("", space(0).guide, seconds=1.0)
    assert not is_slower([2.0] * 4, leader)
    assert is_slower([2.0] * 5, leader)
    assert not is_slower([2.0] * 4 + [1.0], leader)
    assert not is_slower([2.0] * 5, None)
