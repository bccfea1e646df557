"""Which steps of a picture each expert makes: the high-noise expert the first ones, the low-noise expert the rest."""

from __future__ import annotations

from wan_train.recipe.terms import Task

BOUNDARIES = {Task.T2V: 0.875, Task.I2V: 0.9}
"""From this noise level up the high-noise expert draws: `boundary` in the trainer's wan_t2v_A14B and wan_i2v_A14B."""
_UNIPC_BEGINS = 0.999
"""`FlowUniPCMultistepScheduler.set_timesteps` begins at its largest trained level of 1000, counted from 0."""

_EQUAL = 1e-7


def high_noise_steps(task: Task, *, steps: int, shift: float, unipc: bool) -> int:
    """How many of the steps the high-noise expert makes.

    Of `setup_scheduler` and `run_sampling` in wan_generate_video.py (d0a1930 and v0.3.4): levels fall evenly from 1,
    are moved by the shift, and UniPC cuts them to whole thousandths. The trainer computes in 32 bits: a level of the
    other solver that is exactly the boundary may fall on either side there.
    """
    boundary, begins = BOUNDARIES[task], _UNIPC_BEGINS if unipc else 1.0

    def level(step: int) -> float:
        even = begins * (1 - step / steps)
        moved = shift * even / (1 + (shift - 1) * even)
        return int(1000 * moved) / 1000 if unipc else moved

    return sum(level(step) >= boundary - _EQUAL for step in range(steps))
