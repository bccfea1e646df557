"""The quote of a drawing, by property: what is measured is said, and what is not is not guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import make_plan
from wan_train.engine.generate import Memory, Phase, fitted, needs_fp8, next_memory, phase_of, tokens_of
from wan_train.preview.estimate import Basis, Work, estimate, from_training, loads_of
from wan_train.preview.model import Drawing, Precision
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Key, Speed, item_cost, trainer_text

WORK = Work(card="RTX 4090", precision=Precision.FP8_SCALED, width=832, height=480, frames=1, steps=20, passes=2)
GIB = 1024**3


def test_nothing_is_promised_on_a_card_that_never_drew() -> None:
    assert estimate([WORK], [], []) is None
    assert estimate([WORK], [(replace(WORK, card="H100"), 4.5)], [30.0]) is None
    assert estimate([WORK], [(replace(WORK, precision=Precision.AS_STORED), 4.5)], [30.0]) is None


def test_equal_pictures_take_what_they_took() -> None:
    found = estimate([WORK] * 3, [(WORK, 14.0), (WORK, 15.0), (WORK, 99.0)], [40.0, 60.0])
    assert found is not None
    assert found.seconds == 3 * 15.0 + 50.0
    assert found.basis is Basis.DRAWN


def test_other_sizes_are_scaled_by_steps_and_tokens_and_say_so() -> None:
    half = replace(WORK, steps=10)
    found = estimate([half], [(WORK, 14.0)], [])
    assert found is not None
    assert found.cells == pytest.approx(7.0)
    assert found.basis is Basis.SCALED
    assert found.loading is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.floats(0.1, 100, allow_nan=False), st.integers(1, 40))
def test_more_work_never_takes_less_time(steps: list[int], seconds: float, more: int) -> None:
    timed = [(WORK, seconds)]
    wanted = [replace(WORK, steps=each) for each in steps]
    first, then = estimate(wanted, timed, []), estimate([*wanted, replace(WORK, steps=more)], timed, [])
    assert first is not None
    assert then is not None
    assert 0 < first.seconds < then.seconds


def speed(kind: StepKind, *, at: float = 1.0, card: str = "RTX 4090", per_unit: float = 6.0) -> Speed:
    key = Key(kind=kind, trainer=trainer_text(make_plan().trainer), card=card)
    # As many tokens as a picture of 832x480.
    cost = item_cost(832, 480, 1)
    return Speed(at=at, key=key, sizes="832x480", cost=cost, units=100, per_unit=per_unit, beside=40.0)


def test_the_first_picture_is_expected_by_the_speed_of_training() -> None:
    trainer = make_plan().trainer
    speeds = [speed(StepKind.TRAIN), speed(StepKind.TRAIN, at=0.0, per_unit=99.0), speed(StepKind.TRAIN, card="H100")]
    found = from_training([WORK], speeds, trainer)
    assert found is not None
    assert found.basis is Basis.TRAINED
    assert found.cells == pytest.approx(20 * 2 * 6.0 / 3)
    assert found.loading is None, "the text encoder was never timed"
    found = from_training([WORK], [*speeds, speed(StepKind.CACHE_TEXT)], trainer)
    assert found is not None
    assert found.loading == 120.0
    assert from_training([WORK], [speed(StepKind.TRAIN, card="H100")], trainer) is None
    assert from_training([], speeds, trainer) is None


def test_loading_is_what_drawings_took_beside_their_cells() -> None:
    drawings = [
        Drawing(at=1, card="RTX 4090", seconds=100, cells=4, cell_seconds=60),
        Drawing(at=2, card="H100", seconds=90, cells=4, cell_seconds=60),
        Drawing(at=3, card="RTX 4090", seconds=9, cells=0, cell_seconds=0),
    ]
    assert loads_of(drawings, "RTX 4090") == [40]


@pytest.mark.parametrize(
    ("card", "frames", "blocks"), [(80, 1, 0), (24, 1, 0), (24, 81, 20), (16, 1, 10), (12, 1, 20), (0, 81, 0)]
)
def test_the_first_try_fits_the_card_by_counted_bytes(card: int, frames: int, blocks: int) -> None:
    fp8 = needs_fp8(card * GIB)
    assert fp8 is (0 < card < 40)
    assert fitted(card * GIB, fp8=fp8, tokens=tokens_of(832, 480, frames)).blocks_to_swap == blocks


@given(
    st.integers(0, 36),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(list(Phase)), max_size=20),
)
def test_the_memory_steps_come_to_an_end_and_never_take_more(
    blocks: int, text_on_cpu: bool, decodes_each: bool, on_cpu: bool, ends: list[Phase]
) -> None:
    memory: Memory | None = Memory(
        blocks_to_swap=blocks, text_on_cpu=text_on_cpu, decodes_each=decodes_each, vae_cache_on_cpu=on_cpu
    )
    for phase in ends:
        assert memory is not None
        then = next_memory(memory, phase)
        if then is None:
            return
        assert then != memory
        assert then.blocks_to_swap >= memory.blocks_to_swap
        assert then.text_on_cpu >= memory.text_on_cpu
        assert then.decodes_each <= memory.decodes_each
        memory = then
    for phase in Phase:
        steps, left = 0, memory
        while left is not None:
            left, steps = next_memory(left, phase), steps + 1
        assert steps <= 5


@pytest.mark.parametrize(
    ("function", "phase"),
    [("prepare_t2v_inputs", Phase.TEXT), ("run_sampling", Phase.STEPS), ("decode_latent", Phase.DECODING)],
)
def test_the_commands_traceback_says_what_it_did(function: str, phase: Phase) -> None:
    frame = f'  File "wan_generate_video.py", line 7, in {function}\n    x\ntorch.OutOfMemoryError: CUDA out of memory'
    assert phase_of(frame) is phase
