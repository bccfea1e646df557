"""The curves of training: learning rate over steps, noise level over draws."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LR_END = 1e-7
"""Where the polynomial schedule ends, whatever `--lr_scheduler_min_lr_ratio` says (transformers' default)."""
TIMESTEPS = 1000.0
MAX_DRAWS = 1000


def lr_factor(args: argparse.Namespace, total: int) -> Callable[[int], float]:
    """Step number to share of `--learning_rate`; `total` is the step count of the whole training.

    The formulas are those of transformers' `get_*_schedule_with_warmup`.

    Raises:
        ValueError: a schedule that the rehearsal does not know.
    """
    warmup = args.lr_warmup_steps if isinstance(args.lr_warmup_steps, int) else int(args.lr_warmup_steps * total)
    rest = max(1, total - warmup)
    curve: Callable[[int], float]
    match args.lr_scheduler:
        case "constant" | "constant_with_warmup":
            curve = _flat
        case "linear":
            curve = lambda step: max(0.0, (total - step) / rest)  # noqa: E731 - all curves are written in one place
        case "cosine" | "cosine_with_restarts":
            cycles = args.lr_scheduler_num_cycles if args.lr_scheduler != "cosine" else args.lr_scheduler_num_cycles / 2
            restarts = args.lr_scheduler != "cosine"
            curve = lambda step: _cosine((step - warmup) / rest, cycles, restarts=restarts)  # noqa: E731 - see above
        case "polynomial":
            end, power = LR_END / args.learning_rate, args.lr_scheduler_power
            curve = (  # noqa: E731 - see above
                lambda step: end if step > total else (1 - end) * (1 - (step - warmup) / rest) ** power + end
            )
        case other:
            raise ValueError(f"the rehearsal has no lr_scheduler {other}")
    return lambda step: step / max(1, warmup) if step < warmup else curve(step)


def _flat(_step: int) -> float:
    return 1.0


def _cosine(progress: float, cycles: float, *, restarts: bool) -> float:
    if restarts:
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * ((cycles * progress) % 1.0)))
    return max(0.0, 0.5 * (1 + math.cos(math.pi * cycles * 2.0 * progress)))


def draw_noise_levels(args: argparse.Namespace, count: int, device: torch.device) -> Tensor:
    """`count` noise levels t in [min_timestep, max_timestep] / 1000, float32, from torch's global generator.

    With `--preserve_distribution_shape` draws outside the range are rejected, else the whole distribution
    is squeezed
    into it. When a range is so rare that 1000 rounds do not fill it, the squeezed draw is used and a
    warning logged.
    """
    low = (0 if args.min_timestep is None else args.min_timestep) / TIMESTEPS
    high = (TIMESTEPS if args.max_timestep is None else args.max_timestep) / TIMESTEPS
    if args.preserve_distribution_shape:
        kept = torch.empty(0, device=device)
        for _ in range(MAX_DRAWS):
            drawn = _draw(args, count, device)
            kept = torch.cat([kept, drawn[(drawn >= low) & (drawn <= high)]])
            if len(kept) >= count:
                return kept[:count]
        logger.warning("Could not sample %d valid timesteps in %d loops", count, MAX_DRAWS)
    return _draw(args, count, device) * (high - low) + low


def _draw(args: argparse.Namespace, count: int, device: torch.device) -> Tensor:
    if args.timestep_sampling in ("uniform", "sigma"):
        return torch.rand(count, device=device)
    t = torch.sigmoid(torch.randn(count, device=device) * args.sigmoid_scale)
    shift = args.discrete_flow_shift if args.timestep_sampling == "shift" else 1.0
    return t * shift / (1 + (shift - 1) * t)
