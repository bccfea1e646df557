"""What the start summary says of measured speed: what was measured, or what measuring would save."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.base.units import duration
from wan_train.engine.capabilities import Script
from wan_train.recipe.levers import LEVERS, expected_gain, levers_for
from wan_train.recipe.measured import MEASURED, Tuned, day
from wan_train.recipe.model import Origin
from wan_train.run.plan import Plan
from wan_train.views.lines import Row

TUNE_SECONDS = 360.0
"""How long `wan-train tune` measures without --minutes."""


def speed_rows(plan: Plan) -> Iterator[Row]:
    """The row `Speed`, or `Tip` where measuring is expected to save more time than it takes."""
    if plan.tuned is not None:
        yield Row(label="Speed", value=measured_text(plan.tuned))
    elif (text := tip(plan)) is not None:
        yield Row(label="Tip", value=text)


def measured_text(tuned: Tuned) -> str:
    """`sdpa, 2 blocks swapped: 1.42 s/step, measured here on 28 Nov (the guide's settings: 2.10)`."""
    guide = f" (the guide's settings: {tuned.guide_seconds:.2f})" if tuned.guide_seconds is not None else ""
    return f"{tuned.words}: {tuned.seconds_per_step:.2f} s/step, {MEASURED} on {day(tuned.at)}{guide}"


def tip(plan: Plan) -> str | None:
    """The arithmetic in words; None without a time that was measured on this box."""
    if plan.quote is None or not plan.trainer.is_real:
        return None
    spec, trainer = plan.recipe.experts[0], plan.trainer
    levers = levers_for(
        spec.training,
        chosen=[name for name, source in spec.sources.items() if source.origin is not Origin.MACHINE],
        options=[name[2:] for name in trainer.capabilities.options[Script.TRAIN]],
        packages={lever.package for lever in LEVERS if lever.package and trainer.has_package(lever.package)},
        version=trainer.version,
        blackwell=False,
    )
    gain = expected_gain(levers, blocks=spec.training.blocks_to_swap)
    saved = gain * plan.quote.seconds
    if saved <= TUNE_SECONDS:
        return None
    return (
        f"wan-train tune takes {duration(TUNE_SECONDS)} and may save {duration(saved)}: "
        f"{gain:.0%} of {duration(plan.quote.seconds)}, as others report"
    )
