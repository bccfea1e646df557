"""The step time and the memory of a training as functions of its options, for tests of `tune`.

SCRIPTED_CARD_GIB is the memory of the card: a training that needs more runs out of it. The memory is counted from the
real model's weights, plus six GiB for everything else. SCRIPTED_FACTORS sets the effect of options on the step time:
`compile=0.5,no_fp8=2,block=0.1` (each swapped block adds a tenth). With the option named by SCRIPTED_BREAKS, the
training crashes. With the one named by SCRIPTED_LOSES, the GPU is also lost.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nvml_memory

_WEIGHTS_GIB = 13.3
_REST_GIB = 6.0
_BLOCKS = 40
_GIB = 1024**3


def factor(options: argparse.Namespace) -> float:
    """Return the factor for the seconds of a step."""
    pairs = (pair.partition("=") for pair in os.environ.get("SCRIPTED_FACTORS", "").split(",") if pair)
    factors = {name: float(value) for name, _, value in pairs}
    product = 1.0 + factors.pop("block", 0.0) * (options.blocks_to_swap or 0)
    for name, value in factors.items():
        is_on = not options.fp8_base if name == "no_fp8" else getattr(options, name, False)
        product *= value if is_on else 1.0
    return product


def held_bytes(options: argparse.Namespace, usual: int) -> int:
    """Return the GPU memory of a training, or `usual` without SCRIPTED_CARD_GIB."""
    if "SCRIPTED_CARD_GIB" not in os.environ:
        return usual
    weights = _WEIGHTS_GIB * (1 if options.fp8_base else 2)
    return int((_REST_GIB + weights * (_BLOCKS - (options.blocks_to_swap or 0)) / _BLOCKS) * _GIB)


def is_too_much(count: int) -> bool:
    return count > float(os.environ.get("SCRIPTED_CARD_GIB", "inf")) * _GIB


def break_down(options: argparse.Namespace) -> None:
    """Crash if the test wants this candidate to crash."""
    if getattr(options, os.environ.get("SCRIPTED_LOSES", ""), False):
        nvml_memory.lose(Path(os.environ["NVML_STUB_STATE"]), os.environ["CUDA_VISIBLE_DEVICES"])
        raise RuntimeError("CUDA error: unspecified launch failure")
    if getattr(options, os.environ.get("SCRIPTED_BREAKS", ""), False):
        raise RuntimeError("a scripted failure")
