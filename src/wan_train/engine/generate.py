"""The trainer's drawing program, `wan_generate_video.py`: defaults, options, what fits a GPU, each expert's steps.

Read at d0a1930 and v0.3.4. Both have every option used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from wan_train.base.units import GIB
from wan_train.engine.capabilities import KNOWN_COMMITS
from wan_train.engine.commands import ModelPaths, option_words
from wan_train.engine.trainer import Trainer
from wan_train.recipe.terms import BLOCKS, Expert, Task

SCRIPT = "src/musubi_tuner/wan_generate_video.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The trainer's own defaults (`wan/configs`)."""

    shift: float
    guidance: Mapping[Expert, float]


def defaults_of(task: Task) -> Defaults:
    match task:
        case Task.T2V:
            return Defaults(shift=12.0, guidance={Expert.HIGH: 4.0, Expert.LOW: 3.0})
        case Task.I2V:
            return Defaults(shift=5.0, guidance={Expert.HIGH: 3.5, Expert.LOW: 3.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How drawing saves GPU memory. None of these settings changes a picture."""

    blocks_to_swap: int = 0
    text_on_cpu: bool = False
    """Encode the prompts on the CPU, which takes about a minute. Only our own driver can do this."""
    decodes_each: bool = True
    """Decode each cell while the DiT is loaded. Otherwise decode after all steps, when the DiT is unloaded."""
    vae_cache_on_cpu: bool = False

    def words(self) -> str:
        said = [
            "the prompts are encoded on the CPU" if self.text_on_cpu else "",
            f"{self.blocks_to_swap} of {BLOCKS} blocks are kept in RAM" if self.blocks_to_swap else "",
            "" if self.decodes_each else "pictures are decoded at the end",
            "the VAE keeps its cache in RAM" if self.vae_cache_on_cpu else "",
        ]
        return ", ".join(word for word in said if word) or "everything on the GPU"


_SWAP_STEPS = (10, 20, 30, 36)
_FP8_BELOW_BYTES = 40 * GIB
_MARGIN_BYTES = 2 * GIB
_DIT_BYTES = {True: 14.0 * GIB, False: 27.1 * GIB}
"""One expert in fp8 or in fp16 (calculated)."""
_BYTES_PER_TOKEN = 0.00041 * GIB
"""Activations of a 16x16 patch of one latent frame, from calculated peaks of 480p with 1, 17 and 81 frames."""


def needs_fp8(smallest_card_bytes: int) -> bool:
    """Whether the weights must be in fp8 to fit this card.

    `--fp8 --fp8_scaled` casts while loading; plain `--fp8` first puts 26.6 GiB of fp16 on the card.
    """
    return 0 < smallest_card_bytes < _FP8_BELOW_BYTES


def fitted(card_bytes: int, *, fp8: bool, tokens: int) -> Memory:
    """The first memory settings for a card; `tokens` of the largest prompt. Calculated, not measured."""
    if card_bytes <= 0:  # a CPU slot
        return Memory()
    room = card_bytes - _MARGIN_BYTES - _BYTES_PER_TOKEN * tokens
    for blocks in (0, *_SWAP_STEPS):
        if _DIT_BYTES[fp8] * (BLOCKS - blocks) / BLOCKS <= room:
            return Memory(blocks_to_swap=blocks)
    return Memory(blocks_to_swap=_SWAP_STEPS[-1], decodes_each=False)


def tokens_of(width: int, height: int, frames: int) -> int:
    """Tokens of one picture or clip."""
    return (width // 16) * (height // 16) * ((frames - 1) // 4 + 1)


class Phase(StrEnum):
    """What a drawing was doing when GPU memory ran out."""

    TEXT = "text"
    STEPS = "steps"
    """Loading an expert, or computing with it."""
    DECODING = "decoding"


_PHASES = {
    "prepare_t2v_inputs": Phase.TEXT,
    "prepare_i2v_inputs": Phase.TEXT,
    "decode_latent": Phase.DECODING,
}
"""Functions of `wan_generate_video` (both versions) and their phases."""


def phase_of(traceback: str) -> Phase:
    """The phase of the trainer's own command, from the functions in its traceback."""
    found = next((phase for name, phase in _PHASES.items() if f"in {name}" in traceback), None)
    return found or Phase.STEPS


def next_memory(memory: Memory, phase: Phase) -> Memory | None:
    """The next step down after GPU memory ran out; None if nothing is left."""
    match phase:
        case Phase.TEXT:
            return None if memory.text_on_cpu else replace(memory, text_on_cpu=True)
        case Phase.DECODING if memory.decodes_each:
            return replace(memory, decodes_each=False)
        case Phase.DECODING:
            return None if memory.vae_cache_on_cpu else replace(memory, vae_cache_on_cpu=True)
        case Phase.STEPS:
            return next(
                (replace(memory, blocks_to_swap=blocks) for blocks in _SWAP_STEPS if blocks > memory.blocks_to_swap),
                None,
            )


def is_known(trainer: Trainer) -> bool:
    """Whether our driver was tested with this exact version. The trainer's own command works with any."""
    return not trainer.is_real or (trainer.commit or "") in KNOWN_COMMITS


def arguments(  # the words of one command
    task: Task, models: ModelPaths, memory: Memory, *, fp8: bool, solver: str, uses_guidance: bool
) -> list[str]:
    """Arguments common to all cells. Noise is made on the CPU, as in ComfyUI, so it is the same on every card."""
    return option_words(
        {
            "task": task.value,
            "dit": models.dit[Expert.LOW.value],
            "dit_high_noise": models.dit[Expert.HIGH.value],
            "vae": models.vae,
            "t5": models.t5,
            # The same kernel on every card: sageattn and others change pictures.
            "attn_mode": "torch",
            "cpu_noise": True,
            "output_type": "images",
            "sample_solver": solver,
            "fp8": fp8,
            "fp8_scaled": fp8,
            "blocks_to_swap": memory.blocks_to_swap or None,
            "vae_cache_cpu": memory.vae_cache_on_cpu,
            # Guidance 1 alone would still compute both prompts.
            **({} if uses_guidance else {"cfg_skip_mode": "late", "cfg_apply_ratio": 0.0}),
        }
    )


BOUNDARIES = {Task.T2V: 0.875, Task.I2V: 0.9}
"""The high-noise expert draws from this noise level up: `boundary` in the trainer's wan_t2v_A14B and wan_i2v_A14B."""
_UNIPC_BEGINS = 0.999
"""`FlowUniPCMultistepScheduler.set_timesteps` starts at the highest of its 1000 trained levels, counted from 0."""

_EQUAL = 1e-7


def high_noise_steps(task: Task, *, steps: int, shift: float, unipc: bool) -> int:
    """The number of steps that the high-noise expert makes.

    From `setup_scheduler` and `run_sampling` in wan_generate_video.py (d0a1930 and v0.3.4): levels fall evenly from 1,
    the shift moves them, and UniPC truncates them to thousandths. The trainer computes in 32 bits, so with the other
    solver a level exactly at the boundary may fall on either side.
    """
    boundary, begins = BOUNDARIES[task], _UNIPC_BEGINS if unipc else 1.0

    def level(step: int) -> float:
        even = begins * (1 - step / steps)
        moved = shift * even / (1 + (shift - 1) * even)
        return int(1000 * moved) / 1000 if unipc else moved

    return sum(level(step) >= boundary - _EQUAL for step in range(steps))
