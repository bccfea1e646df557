"""Which epochs `--epochs auto` draws, by property and by the guide's own schedule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from wan_train.preview.rows import MOST, NEAR, choose_epochs, drawable_epochs, too_near
from wan_train.recipe.terms import Expert

POSITIONS = st.dictionaries(st.integers(1, 500), st.floats(0, 2, allow_nan=False), min_size=1, max_size=25)


def on_a_line(positions: dict[int, float]) -> Callable[[int, int], float]:
    return lambda one, other: abs(positions[one] - positions[other])


@given(POSITIONS, st.integers(1, 8))
def test_no_two_chosen_epochs_look_alike_and_whatever_is_left_out_has_its_reason(
    positions: dict[int, float], most: int
) -> None:
    differ = on_a_line(positions)
    chosen = choose_epochs(list(positions), differ, most=most)

    assert max(positions) in chosen.epochs
    assert len(chosen.epochs) <= most
    assert sorted([*chosen.epochs, *(each.epoch for each in chosen.left_out)]) == sorted(positions)
    assert all(differ(one, other) >= NEAR for one, other in combinations(chosen.epochs, 2))
    if len(chosen.epochs) < most:
        assert all(min(differ(each.epoch, epoch) for epoch in chosen.epochs) < NEAR for each in chosen.left_out)


@given(POSITIONS)
def test_the_choice_does_not_depend_on_the_order_of_the_epochs(positions: dict[int, float]) -> None:
    differ = on_a_line(positions)
    assert choose_epochs(sorted(positions), differ) == choose_epochs(sorted(positions, reverse=True), differ)


def test_of_the_guides_schedule_the_late_epochs_are_one_picture() -> None:
    left = {10: 0.535, 20: 0.173, 30: 0.049, 40: 0.014, 50: 0.0040, 60: 0.0017, 100: 0.0}
    chosen = choose_epochs(list(left), on_a_line(left))
    assert chosen.epochs == (10, 20, 30, 40, 100)
    assert [(each.epoch, each.reason) for each in chosen.left_out] == [
        (50, "differs from epoch 100 by 0.40 %"),
        (60, "differs from epoch 100 by 0.17 %"),
    ]
    assert too_near((60, 100), on_a_line(left)) == ("Epochs 60 and 100 differ by 0.17 %: expect the same picture.",)


def test_more_epochs_than_rows_are_spread() -> None:
    even = {epoch: epoch / 100 for epoch in range(5, 105, 5)}
    chosen = choose_epochs(list(even), on_a_line(even))
    assert len(chosen.epochs) == MOST
    assert chosen.left_out[0].reason == "the 6 most different epochs are drawn"
    assert max(b - a for a, b in zip(chosen.epochs, chosen.epochs[1:], strict=False)) <= 30


def test_nothing_kept_chooses_nothing() -> None:
    assert choose_epochs([], on_a_line({})).epochs == ()


def test_an_expert_that_ended_before_draws_with_its_last_lora() -> None:
    kept = {Expert.HIGH: [20, 40, 60], Expert.LOW: [20, 40, 60, 80, 100]}
    found = drawable_epochs(kept)
    assert list(found) == [20, 40, 60, 80, 100]
    assert found[100] == {Expert.HIGH: 60, Expert.LOW: 100}


def test_an_epoch_that_one_expert_did_not_keep_is_not_drawn() -> None:
    assert list(drawable_epochs({Expert.HIGH: [20, 60], Expert.LOW: [20, 40, 60]})) == [20, 60]


def test_one_expert_alone_is_drawn_alone() -> None:
    assert drawable_epochs({Expert.LOW: [10]}) == {10: {Expert.LOW: 10}}
    assert drawable_epochs({Expert.LOW: [10], Expert.HIGH: []}) == {10: {Expert.LOW: 10}}
    assert drawable_epochs({}) == {}
