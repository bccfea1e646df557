"""What can be done about a GPU whose memory was not enough: the ladder of memory rungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wan_train.engine.capabilities import Capabilities, Script
from wan_train.recipe.model import Training

_SWAP_RUNGS = (10, 20, 30, 36)
"""Each ten blocks take about a quarter of the DiT off the GPU. 39 is the trainer's limit, and 36 leaves it four."""
_OFFLOAD = "gradient_checkpointing_cpu_offload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step down in memory: settings to change, and in words what that does."""

    changes: Mapping[str, bool | int | str]
    words: str


def next_rung(
    training: Training, changes: Mapping[str, bool | int | str], capabilities: Capabilities, *, trains_fp8: bool
) -> Rung | None:
    """The next rung below what an attempt used, None when nothing is left that this trainer version can do.

    Order: more blocks swapped (same result, 10-20 % slower), then fp8 weights, then checkpoints offloaded to RAM.
    `trains_fp8` is False for weights that cannot be cast to fp8.
    """
    swapped = int(changes.get("blocks_to_swap", training.blocks_to_swap))
    fp8 = bool(changes.get("fp8_base", training.fp8_base))
    for blocks in _SWAP_RUNGS:
        if blocks > swapped:
            return Rung(changes={"blocks_to_swap": blocks}, words=f"{blocks} of 40 blocks wait in RAM")
    if not fp8 and trains_fp8:
        return Rung(changes={"fp8_base": True}, words="the DiT is kept in fp8")
    if _OFFLOAD not in {*changes, *training.options} and capabilities.has(Script.TRAIN, f"--{_OFFLOAD}"):
        return Rung(changes={_OFFLOAD: True}, words="activations between checkpoints wait in RAM")
    return None
