"""How large the trainer's files get, before there are any."""

from __future__ import annotations

from wan_train.recipe.terms import EngineKind

# Wan 2.2 A14B: 40 blocks of width 5120 with a 13824 wide feed-forward. musubi's LoRA adapts q, k, v, o of both
# attentions (8 matrices, 5120 x 5120) and both feed-forward matrices; each has rank x (in + out) parameters.
_A14B_PARAMETERS_PER_RANK = 40 * (8 * (5120 + 5120) + 2 * (5120 + 13824))
# The rehearsal's stand-in: 4 blocks of width 64 with a 128 wide feed-forward.
_TINY_PARAMETERS_PER_RANK = 4 * (8 * (64 + 64) + 2 * (64 + 128))

_STATE_BYTES_PER_PARAMETER = 12
"""float32 weights and AdamW's two float32 moments."""


def lora_parameters(engine: EngineKind, rank: int) -> int:
    match engine:
        case EngineKind.MUSUBI:
            return _A14B_PARAMETERS_PER_RANK * rank
        case EngineKind.REHEARSAL:
            return _TINY_PARAMETERS_PER_RANK * rank


def lora_bytes(engine: EngineKind, rank: int, mixed_precision: str) -> int:
    """Bytes of one LoRA file: 153 MB at rank 16 in fp16."""
    width = 2 if mixed_precision in {"fp16", "bf16"} and engine is EngineKind.MUSUBI else 4
    return lora_parameters(engine, rank) * width


def state_bytes(engine: EngineKind, rank: int) -> int:
    """Bytes of one state folder under AdamW: 920 MB at rank 16. Optimizers that keep less take less."""
    return lora_parameters(engine, rank) * _STATE_BYTES_PER_PARAMETER


def seconds_per_step(engine: EngineKind) -> float:
    """A first guess of the speed, before any step was measured; it only sets how often states are saved.

    3 s is what published logs show for 960x960 pictures on the cards people rent.
    """
    match engine:
        case EngineKind.MUSUBI:
            return 3.0
        case EngineKind.REHEARSAL:
            return 0.05
