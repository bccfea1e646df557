"""Who makes which cache, and whether that pays: for any costs and any number of GPUs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base import codec
from wan_train.caching.split import NO_WORK, Share, Shares, Stem, Workload, choose, makespan, share_out

STEMS = st.tuples(st.sampled_from(["/a", "/b"]), st.text(min_size=1, max_size=8))
COSTS = st.dictionaries(STEMS, st.integers(1, 200_000_000), min_size=1, max_size=60)
WORKLOADS = st.builds(
    Workload, load=st.floats(0, 100), work=st.floats(0, 100_000), most=st.integers(min_value=1, max_value=16)
)


def totals(costs: dict[Stem, int], shares: Shares) -> list[int]:
    made: Counter[int] = Counter()
    for (folder, stem), cost in costs.items():
        made[shares.number(Path(folder), stem)] += cost
    return [made[number] for number in range(1, shares.of + 1)]


@given(COSTS, st.integers(2, 9))
def test_every_item_is_in_exactly_one_share_and_shares_are_even(costs: dict[Stem, int], of: int) -> None:
    shares = share_out(costs, of=of)
    for folder, stem in costs:
        holders = [n for n in range(1, of + 1) if Share(number=n, shares=shares).has(Path(folder), stem)]
        assert len(holders) == 1
    made = totals(costs, shares)
    assert sum(made) == sum(costs.values())
    # By one item at most: moving any item of the largest share to the smallest would not help.
    assert max(made) - min(made) <= max(costs.values())


@given(COSTS, st.integers(2, 9), st.randoms(use_true_random=False))
def test_the_same_costs_give_the_same_shares(costs: dict[Stem, int], of: int, chance: st.Random) -> None:
    others = list(costs.items())
    chance.shuffle(others)
    shares = share_out(costs, of=of)
    assert share_out(dict(others), of=of) == shares
    assert codec.from_json(codec.to_json(shares), Shares, where="") == shares


@given(COSTS, STEMS, st.integers(2, 9))
def test_an_item_that_came_later_is_in_one_share_too(costs: dict[Stem, int], late: Stem, of: int) -> None:
    shares = share_out(costs, of=of)
    assert 1 <= shares.number(Path(late[0]), late[1]) <= of
    assert Shares(of=of).number(Path("/a"), "x") == Shares(of=of).number(Path("/b"), "x")


def test_items_that_came_later_are_spread() -> None:
    for of in (2, 4):
        counts = Counter(Shares(of=of).number(Path("/a"), f"p{number}") for number in range(400))
        assert all(0.7 < counts[number] * of / 400 < 1.3 for number in range(1, of + 1))
        assert len({Shares(of=of).number(Path("/a"), f"p{number}") for number in range(10)}) > 1


@given(WORKLOADS, WORKLOADS, st.integers(1, 12))
def test_a_split_is_never_slower_and_never_wider_than_it_may_be(latents: Workload, text: Workload, gpus: int) -> None:
    counts = choose(latents, text, gpus=gpus)
    assert 1 <= counts[0] <= min(gpus, latents.most)
    assert 1 <= counts[1] <= min(gpus, text.most)
    whole, split = (makespan(latents, text, each, gpus=gpus) for each in ((1, 1), counts))
    assert counts == (1, 1) or whole - split >= max(30, whole / 10)


@given(WORKLOADS, WORKLOADS)
def test_one_gpu_is_never_split(latents: Workload, text: Workload) -> None:
    assert choose(latents, text, gpus=1) == (1, 1)


def real(pictures: int, *, most: int = 64) -> tuple[Workload, Workload]:
    """Pictures of 960x960 at the paces that are assumed for the real trainer."""
    return (
        Workload(load=15, work=pictures * 960 * 960 / 10e6, most=most),
        Workload(load=30, work=pictures / 30, most=most),
    )


@pytest.mark.parametrize(
    ("gpus", "pictures", "counts"),
    [
        (2, 1_000, (1, 1)),  # latents on one, text on the other: two are busy without any splitting
        (2, 3_000, (2, 2)),
        (4, 500, (1, 1)),
        (4, 1_000, (2, 1)),
        (4, 10_000, (3, 1)),
        (8, 10_000, (5, 2)),
    ],
)
def test_where_splitting_begins(gpus: int, pictures: int, counts: tuple[int, int]) -> None:
    assert choose(*real(pictures), gpus=gpus) == counts


def test_a_few_long_clips_are_worth_it() -> None:
    """81 frames of 832x480: as much as 35 pictures."""
    latents, text = Workload(load=15, work=50 * 81 * 832 * 480 / 10e6, most=50), Workload(load=30, work=2, most=8)
    assert choose(latents, text, gpus=2) == (2, 1)


def test_ram_that_holds_one_text_encoder_keeps_text_whole() -> None:
    latents, text = real(3_000)
    assert choose(latents, replace(text, most=1), gpus=2)[1] == 1


def test_a_large_set_takes_about_the_part_of_the_time_that_the_gpus_say() -> None:
    latents, text = real(20_000)
    alone = makespan(latents, text, (1, 1), gpus=1)
    for gpus in (2, 4, 8):
        counts = choose(latents, text, gpus=gpus)
        assert makespan(latents, text, counts, gpus=gpus) < 1.25 * alone / gpus


def test_what_is_made_already_is_not_split() -> None:
    latents, text = real(10_000)
    assert choose(latents, NO_WORK, gpus=4) == (4, 1)
    assert choose(NO_WORK, text, gpus=4) == (1, 4)
    assert choose(NO_WORK, NO_WORK, gpus=4) == (1, 1)
