"""How often states are saved."""

from __future__ import annotations

import math

STATE_EVERY_SECONDS = 300.0
"""A state costs about 3 s to write; every five minutes is near the optimum for machines that vanish every few hours
(Young's formula: sqrt(2 x cost x time between failures))."""


def state_every_epochs(*, missing: int, done: int, keep: int | None, epoch_seconds: float) -> int:
    """Epochs between states of an attempt that has `missing` epochs to train after `done`.

    About five minutes of training and never more than the attempt is long. The LoRAs to keep (every `keep` epochs,
    counted over all attempts) must fall on saved epochs, which the attempt counts from its own start.
    """
    wanted = max(1, min(missing, round(STATE_EVERY_SECONDS / max(epoch_seconds, 1e-3))))
    if keep is None:
        return wanted
    base = math.gcd(keep, done) if done else keep
    return max(divisor for divisor in range(1, min(wanted, base) + 1) if base % divisor == 0)
