"""Noise levels and learning-rate curves, as pure functions."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from wan_train.rehearsal.command_line import parse_training


@pytest.fixture(scope="module")
def training(torch: Any) -> Any:
    del torch  # the module loads it
    return importlib.import_module("wan_train.rehearsal.training")


SHIFT = ("--timestep_sampling", "shift", "--discrete_flow_shift", "3.0")


@pytest.mark.parametrize("shape", [(), ("--preserve_distribution_shape",)])
@pytest.mark.parametrize(("low", "high"), [(875, 1000), (0, 875), (900, 1000)])
def test_noise_levels_stay_in_the_experts_range(
    low: int, high: int, shape: tuple[str, ...], torch: Any, training: Any
) -> None:
    torch.manual_seed(0)
    args = parse_training([*SHIFT, *shape, "--min_timestep", str(low), "--max_timestep", str(high)])
    t = torch.cat([training.draw_noise_levels(args, 3, torch.device("cpu")) for _ in range(200)])
    assert t.shape == (600,)
    assert t.min() >= low / 1000
    assert t.max() <= high / 1000
    assert t.max() - t.min() > 0.5 * (high - low) / 1000


def test_rejection_keeps_the_shape_and_squeezing_does_not(torch: Any, training: Any) -> None:
    torch.manual_seed(0)
    limits = ("--timestep_sampling", "shift", "--min_timestep", "875", "--max_timestep", "1000")
    kept = training.draw_noise_levels(
        parse_training([*limits, "--preserve_distribution_shape"]), 2000, torch.device("cpu")
    )
    squeezed = training.draw_noise_levels(parse_training([*limits]), 2000, torch.device("cpu"))
    # The density falls towards 1: the kept part leans to its lower end, the squeezed one is centred.
    assert kept.mean() < 0.93
    assert squeezed.mean() == pytest.approx(0.9375, abs=0.002)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--lr_scheduler constant", {0: 3e-4, 99: 3e-4}),
        ("--lr_scheduler polynomial --lr_scheduler_power 8", {0: 3e-4, 50: 1.2714e-6, 100: 1e-7, 101: 1e-7}),
        ("--lr_scheduler linear --lr_warmup_steps 10", {0: 0.0, 5: 1.5e-4, 10: 3e-4, 55: 1.5e-4, 100: 0.0}),
        ("--lr_scheduler cosine", {0: 3e-4, 50: 1.5e-4, 100: 0.0}),
        # The trainer gives the number of cycles to cosine_with_restarts alone.
        ("--lr_scheduler cosine --lr_scheduler_num_cycles 3", {0: 3e-4, 25: 2.5607e-4, 100: 0.0}),
        ("--lr_scheduler cosine --lr_scheduler_args num_cycles=1", {0: 3e-4, 50: 0.0, 100: 3e-4}),
        ("--lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 2", {0: 3e-4, 25: 1.5e-4, 50: 3e-4, 100: 0.0}),
        ("--lr_scheduler polynomial --lr_scheduler_args lr_end=1e-4", {0: 3e-4, 50: 2e-4, 100: 1e-4, 101: 1e-4}),
        ("--lr_scheduler polynomial --lr_warmup_steps 0.1", {5: 1.5e-4, 10: 3e-4, 100: 1e-7}),
    ],
)
def test_learning_rates_over_a_hundred_steps(options: str, expected: dict[int, float], training: Any) -> None:
    factor = training.lr_factor(parse_training([*options.split(), "--learning_rate", "3e-4"]), 100)
    assert {step: 3e-4 * factor(step) for step in expected} == pytest.approx(expected, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ("--lr_scheduler constant --lr_warmup_steps 10", ValueError, "constant does not require `num_warmup_steps`"),
        ("--lr_scheduler cosine --lr_scheduler_args T_max=9", TypeError, "unexpected keyword argument 'T_max'"),
        ("--lr_scheduler linear --lr_scheduler_args num_cycles=2", TypeError, "unexpected keyword argument"),
        ("--lr_scheduler polynomial --lr_scheduler_args lr_end=1e-3", ValueError, "smaller than initial lr"),
    ],
)
def test_what_the_trainers_schedule_refuses_is_refused(
    options: str, error: type[Exception], said: str, training: Any
) -> None:
    args = parse_training([*options.split(), "--learning_rate", "3e-4"])
    with pytest.raises(error, match=said):
        training.lr_factor(args, 100)
