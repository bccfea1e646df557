"""Measures candidates one by one until the time is up, keeps each result and reports it as a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from wan_train.base.clock import Clock
from wan_train.recipe.measured import Basis, Measurement, Outcome, Workload, best
from wan_train.tune.bench import Bench, Observed
from wan_train.tune.search import Candidate, Space, may_start, next_candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all candidates of one call share. `budget` is in seconds. `keep` records a row before it is shown."""

    space: Space
    basis: Basis
    workload: Workload
    budget: float
    bench: Bench
    clock: Clock
    keep: Callable[[Measurement], None]

    def run(self, rows: Sequence[Measurement], say: Callable[[Candidate, str], None]) -> Iterator[Measurement]:
        """Measure what the `rows` of earlier calls left, and yield each new row.

        Raise what the bench and `keep` raise. A candidate that lost the card is kept first, so that it is not tried
        again.
        """
        known = list(rows)
        started = self.clock.monotonic()
        while (candidate := next_candidate(self.space, known)) is not None:
            spent = self.clock.monotonic() - started
            if not may_start(known, candidate, spent=spent, budget=self.budget):
                return
            leader = best(known, self.space.length)
            observed = self.bench.measure(candidate, leader, partial(say, candidate))
            row = self._row(candidate, observed)
            self.keep(row)
            known.append(row)
            yield row
            self.bench.settle()

    def left(self, rows: Sequence[Measurement]) -> bool:
        """Whether candidates are left to measure."""
        return next_candidate(self.space, rows) is not None

    def _row(self, candidate: Candidate, observed: Observed) -> Measurement:
        stamps = observed.stamps
        return Measurement(
            at=self.clock.now(),
            basis=self.basis,
            workload=self.workload,
            lever=candidate.lever,
            settings=candidate.settings,
            outcome=observed.outcome,
            step_seconds=() if observed.outcome is Outcome.FAILED else stamps.step_seconds(),
            peak_bytes=observed.peak_bytes,
            load_seconds=stamps.load_seconds,
            warmup_seconds=stamps.warmup_seconds(),
            epoch_seconds=stamps.epoch_seconds(),
            wall_seconds=observed.wall_seconds,
            note=observed.note,
        )
