"""What one call of the program knows beyond its flags."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from wan_train.cli.output import Sink


@dataclass(slots=True)
class Invocation:
    """`sink` is replaced once `--json` is known, `passthrough` is what followed `--`."""

    passthrough: tuple[str, ...] = ()
    sink: Sink | None = None

    def use(self, sink: Sink) -> Sink:
        self.sink = sink
        return sink


def invocation_of(context: typer.Context) -> Invocation:
    """That of the call which `context` belongs to."""
    invocation = context.find_object(Invocation)
    return invocation if invocation is not None else Invocation()
