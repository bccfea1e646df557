"""The recipe fitted to a machine, and what is said about it."""

from __future__ import annotations

import pytest

from wan_train.base.errors import ExitCode, NotReadyError
from wan_train.recipe.adaptation import SWAP_RULES, Card, Choice, Machine, adapt
from wan_train.recipe.load import override, shipped
from wan_train.recipe.model import Recipe, Training, settings_of
from wan_train.recipe.terms import Attention, Task

GIB = 1024**3
RECIPE = shipped(Task.T2V)

H100 = Card(name="NVIDIA H100 80GB HBM3", total_bytes=int(79.6 * GIB), compute_capability=(9, 0))
B200 = Card(name="NVIDIA B200", total_bytes=179 * GIB, compute_capability=(10, 0))
RTX5090 = Card(name="NVIDIA GeForce RTX 5090", total_bytes=int(31.8 * GIB), compute_capability=(12, 0))
RTX4090 = Card(name="NVIDIA GeForce RTX 4090", total_bytes=int(23.99 * GIB), compute_capability=(8, 9))
RTX3090 = Card(name="NVIDIA GeForce RTX 3090", total_bytes=24 * GIB, compute_capability=(8, 6))
RTX5080 = Card(name="NVIDIA GeForce RTX 5080", total_bytes=int(15.9 * GIB), compute_capability=(12, 0))
A6000 = Card(name="NVIDIA RTX A6000", total_bytes=48 * GIB, compute_capability=(8, 6))
RTX3060 = Card(name="NVIDIA GeForce RTX 3060", total_bytes=12 * GIB, compute_capability=(8, 6))
SLOT = Card(name="CPU slot", total_bytes=0, compute_capability=None)


def fit(
    *cards: Card,
    recipe: Recipe = RECIPE,
    cpus: float = 16,
    xformers: bool = True,
    dtype: str | None = "F16",
) -> tuple[Training, dict[str, Choice]]:
    machine = Machine(cards=cards, cpus=cpus, has_xformers=xformers, has_flash=False, dit_dtype=dtype)
    fitted, choices = adapt(recipe, machine)
    return fitted.experts[0].training, {choice.setting: choice for choice in choices}


@pytest.mark.parametrize(
    ("cards", "attention", "blocks"),
    [
        ((H100,), Attention.XFORMERS, 0),
        ((B200,), Attention.SDPA, 0),
        ((RTX5090,), Attention.SDPA, 10),
        ((RTX5090, RTX5090), Attention.SDPA, 10),
        ((RTX4090,), Attention.XFORMERS, 20),
        ((RTX3090,), Attention.XFORMERS, 20),
        ((RTX5080,), Attention.SDPA, 32),
        ((RTX3060,), Attention.XFORMERS, 36),
        ((A6000,), Attention.XFORMERS, 0),
        ((H100, RTX5090), Attention.SDPA, 10),
        ((RTX5090, RTX4090), Attention.SDPA, 20),
        ((SLOT, SLOT), Attention.XFORMERS, 0),
        ((), Attention.XFORMERS, 0),
    ],
)
def test_settings_that_fit_every_card(cards: tuple[Card, ...], attention: Attention, blocks: int) -> None:
    training, choices = fit(*cards)
    assert (training.attention, training.blocks_to_swap) == (attention, blocks)
    assert choices["blocks_to_swap"].value == str(blocks)
    assert choices["attention"].value == attention


def test_without_xformers_sdpa_and_why() -> None:
    training, choices = fit(H100, xformers=False)
    assert training.attention is Attention.SDPA
    assert "not installed" in choices["attention"].reason


@pytest.mark.parametrize(("dtype", "precision"), [("F16", "fp16"), ("BF16", "bf16"), ("F32", "no"), (None, "fp16")])
def test_precision_follows_the_weights(dtype: str | None, precision: str) -> None:
    training, choices = fit(H100, dtype=dtype)
    assert training.mixed_precision == precision
    assert choices["mixed_precision"].value == precision
    assert training.fp8_base == (dtype != "F32")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
def test_weights_that_cannot_be_trained(dtype: str) -> None:
    with pytest.raises(NotReadyError, match=dtype) as caught:
        fit(H100, dtype=dtype)
    assert caught.value.exit_code is ExitCode.NOT_READY
    assert caught.value.hint is not None


@pytest.mark.parametrize(("cpus", "workers", "threads"), [(16, 2, 1), (3, 2, 1), (2, 1, 1), (1, 1, 1), (0.5, 1, 1)])
def test_the_containers_cpus(cpus: float, workers: int, threads: int) -> None:
    training, _ = fit(H100, cpus=cpus)
    assert (training.max_data_loader_n_workers, training.num_cpu_threads_per_process) == (workers, threads)


def test_what_somebody_chose_is_kept_and_said() -> None:
    chosen = {
        "attention": Attention.XFORMERS,
        "blocks_to_swap": 0,
        "mixed_precision": "bf16",
        "fp8_base": False,
        "max_data_loader_n_workers": 8,
        "num_cpu_threads_per_process": 4,
    }
    recipe = override(RECIPE, chosen, flag_of=lambda _: "--a-flag")
    training, choices = fit(RTX5090, recipe=recipe, cpus=1)
    assert {name: getattr(training, name) for name in chosen} == chosen
    assert all(choices[name].reason == "chosen (--a-flag)" for name in chosen)


def test_every_choice_has_a_reason_and_nothing_else_changes() -> None:
    training, choices = fit(RTX5090)
    assert all(choice.reason for choice in choices.values())
    before, after = settings_of(RECIPE.experts[0].training), settings_of(training)
    different = {name for name in before if after[name] != before[name]}
    assert different == {"attention", "blocks_to_swap"}
    assert different <= choices.keys()


def test_smaller_cards_never_get_fewer_blocks() -> None:
    limits = [rule.below_bytes for rule in SWAP_RULES]
    blocks = [rule.blocks for rule in SWAP_RULES]
    assert limits == sorted(limits)
    assert blocks == sorted(blocks, reverse=True)
