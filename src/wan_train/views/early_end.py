"""The two ends that a person may choose at the last question, each in one line."""

from __future__ import annotations

from wan_train.run.ends import EarlyEnd
from wan_train.run.plan import Plan
from wan_train.views.formatting import count, expert_name

_ABOUT_HALF = (0.45, 0.55)


def whole_training(plan: Plan) -> str:
    """`all 100 epochs, as the guide`."""
    guide = all("max_train_epochs" not in spec.sources for spec in plan.recipe.experts)
    return f"all {count(plan.epochs, 'epoch')}{', as the guide' if guide else ''}"


def shorter_training(end: EarlyEnd) -> str:
    """`end after epoch 50: the same LoRA to about 0.4 %, half the time`."""
    if len(set(end.epochs.values())) == 1:
        when = f"epoch {next(iter(end.epochs.values()))}"
    else:
        when = " and ".join(f"epoch {epoch} ({expert_name(expert)})" for expert, epoch in end.epochs.items())
    low, high = _ABOUT_HALF
    time = "half the time" if low <= end.saved <= high else f"{1 - end.saved:.0%} of the time".replace("%", " %")
    return f"end after {when}: the same LoRA to about {100 * end.distance:.1g} %, {time}"
