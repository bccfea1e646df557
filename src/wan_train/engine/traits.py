"""Differences between the two trainers. Code above `engine/` uses these traits, not the trainer's kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from wan_train.recipe.terms import BLOCKS, EngineKind

_STATE_BYTES_PER_PARAMETER = 12
"""float32 weights and AdamW's two float32 moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerTraits:
    """A kind of trainer: its needs, its files, and first guesses of their sizes."""

    kind: EngineKind
    is_real: bool
    """Trains Wan 2.2 on a GPU, with model files of many GB. The rehearsal trainer brings its own tiny model."""
    file_prefix: str
    """Prefix of finished LoRAs' names."""
    cache_element: str
    """Element type of the caches that the commands of `engine.commands` write."""
    has_half_precision: bool
    """Saves LoRAs, and scales gradients, in the given precision."""
    parameters_per_rank: int
    seconds_per_step: float
    """A first guess until steps are measured. It only determines how often states are saved."""

    def lora_bytes(self, rank: int, precision: str) -> int:
        """Bytes of one LoRA file: 153 MB at rank 16 in fp16."""
        width = 2 if precision in {"fp16", "bf16"} and self.has_half_precision else 4
        return self.parameters_per_rank * rank * width

    def state_bytes(self, rank: int) -> int:
        """Bytes of one state folder with AdamW: 920 MB at rank 16. Some optimizers need less."""
        return self.parameters_per_rank * rank * _STATE_BYTES_PER_PARAMETER


REHEARSAL_PREFIX = "REHEARSAL"

MUSUBI = TrainerTraits(
    kind=EngineKind.MUSUBI,
    is_real=True,
    file_prefix="",
    cache_element="bfloat16",
    has_half_precision=True,
    # Wan 2.2 A14B: blocks of width 5120 with a 13824 wide feed-forward. musubi's LoRA adapts q, k, v, o of both
    # attentions (8 matrices, 5120 x 5120) and both feed-forward matrices; each has rank x (in + out) parameters.
    parameters_per_rank=BLOCKS * (8 * (5120 + 5120) + 2 * (5120 + 13824)),
    # From published logs for 960x960 pictures on commonly rented cards.
    seconds_per_step=3.0,
)
REHEARSAL = TrainerTraits(
    kind=EngineKind.REHEARSAL,
    is_real=False,
    file_prefix=f"{REHEARSAL_PREFIX}_",
    cache_element="float32",
    has_half_precision=False,
    # 4 blocks of width 64 with a 128 wide feed-forward.
    parameters_per_rank=4 * (8 * (64 + 64) + 2 * (64 + 128)),
    seconds_per_step=0.05,
)


def traits_of(kind: EngineKind) -> TrainerTraits:
    match kind:
        case EngineKind.MUSUBI:
            return MUSUBI
        case EngineKind.REHEARSAL:
            return REHEARSAL
        case _:
            assert_never(kind)
