"""Plan and state of a run, for programs other than its supervisor that read them repeatedly."""

from __future__ import annotations

from functools import lru_cache

from wan_train.base.files import stamp
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event, JournalReader, read_events
from wan_train.run.plan import Plan
from wan_train.run.state import RunState, fold, fold_all, initial


class RunFollower:
    """Reads the plan once, and then only the new part of the journal."""

    def __init__(self, run: RunDirectory) -> None:
        self.events: list[Event] = []
        """All of the journal, as last read."""
        self.plan: Plan | None = None
        """None until it was read."""
        self._run = run
        self._journal = JournalReader(run.events)
        self._state: RunState | None = None

    def read(self) -> tuple[Plan, RunState]:
        """Return plan and current state. Raises what `RunDirectory.read_plan` raises, CorruptRecordError and OSError.

        After a failure, the journal is read from its start: damage is reported again, and no event is skipped.
        """
        if self.plan is None:
            self.plan = self._run.read_plan()
        state = self._state or initial(self.plan)
        try:
            for event in self._journal.new_events():
                self.events.append(event)
                state = fold(state, event)
        except BaseException:
            self._journal, self._state, self.events = JournalReader(self._run.events), None, []
            raise
        self._state = state
        return self.plan, state


def read_run(run: RunDirectory) -> tuple[Plan, RunState]:
    """Return plan and state, which are read again only if they changed. Raises what `RunFollower.read` raises."""
    return _read(run, stamp(run.plan), stamp(run.events))


@lru_cache(maxsize=8)
def _read(run: RunDirectory, _plan: object, _events: object) -> tuple[Plan, RunState]:
    plan = run.read_plan()
    return plan, fold_all(plan, read_events(run.events))
