"""Memory steps: settings that a run changes one by one when it runs out of GPU memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wan_train.engine.capabilities import Capabilities, Script
from wan_train.recipe.model import Training
from wan_train.recipe.terms import BLOCKS

_SWAP_STEPS = (10, 20, 30, 36)
"""Every ten blocks move about a quarter of the DiT off the GPU. 36 leaves four blocks there."""
_OFFLOAD = "gradient_checkpointing_cpu_offload"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStep:
    """One step down in memory: settings to change, and a description for the user."""

    changes: Mapping[str, bool | int | str]
    words: str


def next_memory_step(
    training: Training, changes: Mapping[str, bool | int | str], capabilities: Capabilities, *, trains_fp8: bool
) -> MemoryStep | None:
    """The next step below what an attempt used; None if this trainer version has no further step.

    Order: more blocks swapped (same result, 10-20 % slower), then fp8 weights, then checkpoints offloaded to RAM.
    `trains_fp8` is False for weights that cannot be cast to fp8.
    """
    swapped = int(changes.get("blocks_to_swap", training.blocks_to_swap))
    fp8 = bool(changes.get("fp8_base", training.fp8_base))
    for blocks in _SWAP_STEPS:
        if blocks > swapped:
            return MemoryStep(changes={"blocks_to_swap": blocks}, words=f"{blocks} of {BLOCKS} blocks are kept in RAM")
    if not fp8 and trains_fp8:
        return MemoryStep(changes={"fp8_base": True}, words="the DiT is kept in fp8")
    if _OFFLOAD not in {*changes, *training.options} and capabilities.has(Script.TRAIN, f"--{_OFFLOAD}"):
        return MemoryStep(changes={_OFFLOAD: True}, words="activation checkpoints are offloaded to RAM")
    return None
