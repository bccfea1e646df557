"""How large the trainer's files get, before there are any."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CachingPace:
    """How fast the caching programs are: seconds until the first item, then pixels and captions a second.

    Pixels are counted in every frame. A caption costs the same whatever its length: it is filled up to 512 tokens.
    """

    latents_load: float
    pixels_a_second: float
    text_load: float
    captions_a_second: float


def caching_pace(engine: EngineKind) -> CachingPace:
    """A guess, only for whether splitting pays; no figure is measured on a GPU.

    Assumed is a fast card, on which splitting pays least: a picture of 960x960 in 0.09 s, a caption in 0.03 s. Loading
    counts the program's imports and 0.5 GB of VAE, or 11.4 GB of T5, which each program reads and keeps for itself.
    """
    match engine:
        case EngineKind.MUSUBI:
            return CachingPace(latents_load=15, pixels_a_second=10e6, text_load=30, captions_a_second=30)
        case EngineKind.REHEARSAL:
            return CachingPace(latents_load=3, pixels_a_second=10e6, text_load=3, captions_a_second=300)
