"""The hourly price of this box, requested while a run is planned, and budgets checked against it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wan_train.base.errors import BadInputError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.base.units import dollars, parse_dollars
from wan_train.box.rental import Price, PriceSource
from wan_train.box.vast import Asking, Vast, VastError
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.option import Option
from wan_train.cli.output import Sink
from wan_train.run.plan import Quote
from wan_train.run.quote import dollars_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The price, if known. `problem` says why Vast did not report one, and is None outside Vast."""

    price: Price | None = None
    problem: str | None = None


class PriceQuestion:
    """Asks Vast in the background, so that planning need not wait for the answer."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings.price
        vast = Vast.of_this_box(os.environ, settings.vast_url)
        self._asking = Asking(vast) if vast is not None else None

    def answer(self) -> Known:
        answer = self._asking.wait() if self._asking is not None else None
        problem = str(answer) if isinstance(answer, VastError) else None
        rental = None if isinstance(answer, VastError) else answer
        if self._given is not None:
            return Known(price=Price(per_hour=self._given, source=PriceSource.GIVEN, rental=rental), problem=problem)
        if rental is None:
            return Known(problem=problem)
        return Known(price=Price(per_hour=rental.per_hour, source=PriceSource.VAST, rental=rental))


def budget_of(call: Call) -> float | None:
    """`--budget` in dollars; raises BadInputError."""
    return given_dollars(call, options.BUDGET)


def given_dollars(call: Call, option: Option[str]) -> float | None:
    """The value of an option that takes dollars; raises BadInputError."""
    text = call.get(option)
    if text is None:
        return None
    try:
        return parse_dollars(text)
    except ValueError as error:
        hint = f"Give dollars: `{option.flag} 3.00`"
        raise BadInputError(f"{option.flag} {one_line(text)!r}: {error}", hint=hint) from error


def seconds_for(budget: float | None, price: Price | None) -> float | None:
    """Return the seconds that a budget pays for; None without a price or a budget."""
    return None if budget is None or price is None else budget / price.per_hour * 3600


def require_price(budget: float | None, known: Known) -> None:
    """Raise BadInputError for a budget without a known price."""
    if budget is not None and known.price is None:
        why = f" ({known.problem})" if known.problem is not None else ""
        raise BadInputError(
            f"--budget needs the price of an hour of this box, which is unknown{why}",
            hint="Add the price of an hour in dollars: `--price 0.93`",
        )


def may_exceed(
    found: Quote | None, price: Price | None, budget: float | None, sink: Sink, *, runs: int, ask: bool
) -> bool:
    """Whether to start: the run fits its budget or the person confirms. Raises BadInputError if it cannot ask.

    `runs` share the box, this one included.
    """
    if found is None or price is None or budget is None:
        return True
    whole = dollars_of(found, price.per_hour, runs=runs)
    if whole <= budget:
        return True
    told = f"the run will cost about {dollars(whole)}, more than its budget of {dollars(budget)}"
    if not ask or not sink.can_ask:
        raise BadInputError(
            f"nothing was started: {told}", hint=f"Raise it: --budget {whole * 1.1:.2f}\nOr train fewer --epochs."
        )
    return questions.confirm(
        f"The quote ({dollars(whole)}) is over the budget: it will stop early. Start?", default=False
    )
