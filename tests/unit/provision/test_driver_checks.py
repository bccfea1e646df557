"""Drivers, GPUs and RAM judged: what is refused, what is only worth a warning, and the numbers that are told."""

from __future__ import annotations

import pytest

from support.doctor_places import (
    GIB,
    NO_DRIVER,
    card_5090,
    card_h100,
    card_v100,
    facts_of,
    gpu,
    gpus_of,
    guide_build,
)
from wan_train.gpu.model import Gpu, GpuReading, LostGpu
from wan_train.provision.capacity import Ram, judge_ram
from wan_train.provision.driver_checks import GpuFacts, build_of, judge_driver, judge_gpu
from wan_train.provision.engine_file import load, shipped
from wan_train.provision.steps import State

GB = 10**9


@pytest.mark.parametrize(
    ("driver", "card", "state", "words"),
    [
        ("575.57.08", gpu(), State.READY, ["575.57.08"]),
        ("570.26", card_5090(), State.READY, []),
        ("550.54.15", gpu(), State.WARNING, ["550.54.15", "570.26", "CUDA 12.8"]),
        ("550.54.15", card_5090(), State.BLOCKED, ["RTX 5090", "570"]),
        ("470.82", gpu(), State.BLOCKED, ["470.82", "525", "CUDA 12.8"]),
        ("not a number", gpu(), State.UNTESTED, ["not a number"]),
    ],
)
def test_a_driver_is_judged_by_the_torch_and_the_cards(driver: str, card: Gpu, state: State, words: list[str]) -> None:
    found = judge_driver(GpuReading(gpus=(card,), driver=driver), guide_build())
    assert found.state is state
    assert all(word in found.detail for word in words), found.detail
    assert found.hint or state in {State.READY, State.UNTESTED}


def test_every_shipped_engine_has_a_cuda_build_that_is_known() -> None:
    assert all(build_of(load(name)) is not None for name in shipped())


@pytest.mark.parametrize(
    ("card", "state", "word"),
    [
        (gpu(), State.READY, "RTX 4090 (24 GB)"),
        (card_5090(), State.READY, "RTX 5090"),
        (card_v100(), State.BLOCKED, "7.0"),
        (gpu(compute_capability=(13, 0)), State.BLOCKED, "13.0"),
        (gpu(compute_capability=None), State.READY, ""),
        (gpu(total_bytes=12 * GIB), State.WARNING, "11.4 GB"),
    ],
)
def test_a_gpu_is_judged_by_the_kernels_that_torch_has(card: Gpu, state: State, word: str) -> None:
    found = judge_gpu(card, guide_build())
    assert found.state is state
    assert word in found.detail


@pytest.mark.parametrize(("needed", "state"), [(True, State.BLOCKED), (False, State.WARNING)])
def test_a_box_without_gpu_can_be_prepared_but_not_trained_on(needed: bool, state: State) -> None:
    facts = GpuFacts(gpus=gpus_of(NO_DRIVER), build=guide_build(), needed=needed, environ={})
    assert [facts.driver().state, facts.cards().state] == [state, state]
    assert facts.driver().hint == NO_DRIVER.hint
    assert facts.usable() == ()


def test_one_usable_gpu_is_enough_and_the_others_are_named() -> None:
    reading = GpuReading(gpus=(gpu(0), card_v100(1)), lost=(LostGpu(index=2, uuid=None, reason="it is gone"),))
    facts = GpuFacts(gpus=gpus_of(reading), build=guide_build(), needed=True, environ={})
    found = facts.cards()
    assert found.state is State.WARNING
    assert "GPU 1: Tesla V100" in found.detail
    assert "GPU 2: cannot be used: it is gone" in found.detail
    assert [each.index for each in facts.usable()] == [0]


def test_gpus_that_are_all_too_old_are_refused() -> None:
    found = facts_of(card_v100(), needed=False).cards()
    assert found.state is State.BLOCKED
    assert "--engine" in (found.hint or "")


def test_gpus_that_a_variable_hides_are_no_gpus_of_a_run() -> None:
    facts = facts_of(gpu(0), environ={"CUDA_VISIBLE_DEVICES": "-1"})
    assert facts.cards().state is State.BLOCKED
    assert "unset CUDA_VISIBLE_DEVICES" in (facts.cards().hint or "")
    assert facts.usable() == ()


@pytest.mark.parametrize(
    ("ram", "usable", "swapping", "state", "word"),
    [
        (Ram(total=128 * GB, available=120 * GB), [gpu(0), gpu(1)], [gpu(0), gpu(1)], State.READY, "128 GB"),
        (Ram(total=64 * GB, available=50 * GB), [gpu(0), gpu(1)], [gpu(0), gpu(1)], State.READY, "one after the other"),
        (Ram(total=64 * GB, available=20 * GB), [gpu()], [gpu()], State.WARNING, "killed"),
        (Ram(total=24 * GB, available=20 * GB), [gpu()], [gpu()], State.BLOCKED, "29 GB"),
        (Ram(total=24 * GB, available=20 * GB), [gpu(0), card_h100(1)], [gpu(0)], State.WARNING, "RTX 4090"),
        (Ram(total=24 * GB, available=20 * GB), [card_h100()], [], State.READY, "24 GB"),
        (Ram(total=24 * GB, available=20 * GB), [], [], State.WARNING, "29 GB"),
    ],
)
def test_ram_is_judged_by_what_a_load_takes(
    ram: Ram, usable: list[Gpu], swapping: list[Gpu], state: State, word: str
) -> None:
    found = judge_ram(ram, usable, swapping)
    assert found.state is state
    assert word in found.detail
