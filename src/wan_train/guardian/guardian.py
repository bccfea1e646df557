"""The guardian: looks at the box, decides, acts, until every run's duties are done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, assert_never

from wan_train.base.clock import Clock, Moment, moment
from wan_train.base.errors import NotReadyError
from wan_train.base.host import ProcessIdentity
from wan_train.gpu.leases import LeaseRoom
from wan_train.guardian.decisions import (
    Action,
    Box,
    CarryOut,
    GuardedRun,
    HasEnded,
    Keep,
    Other,
    Record,
    Release,
    Restart,
    StopRun,
    Upload,
    decide,
)
from wan_train.guardian.effects import Effects, say
from wan_train.guardian.run_tracker import RunTracker, read_record, saving
from wan_train.run.box_ending import Ending, Phase, forget_ending, read_ending, read_keep_request, write_ending
from wan_train.run.directory import RunDirectory, all_runs
from wan_train.run.duties import Duties, Then, read_duties, register, registered, unregister
from wan_train.run.events import StopMode
from wan_train.upload.status import Uploaded

ROUND_SECONDS = 2.0


class Uploads(Protocol):
    """The upload status of a run; never raises. `fresh`: read now, not taken from some seconds ago."""

    def look(self, run: RunDirectory, duties: Duties, now: float, *, fresh: bool) -> Uploaded: ...


class Notifier(Protocol):
    """Sends messages to a person."""

    def notify(self, run: RunDirectory, ending: Ending | None) -> bool:
        """Send new messages without blocking; return whether any are still to be sent."""


class Guardian:
    """Every decision is on disk, so if this guardian is killed, another one continues."""

    def __init__(
        self,
        *,
        lease_dir: Path,
        clock: Clock,
        effects: Effects,
        uploads: Uploads,
        notifier: Notifier | None,
        first_process: ProcessIdentity | None,
    ) -> None:
        self._lease_dir = lease_dir
        self._clock = clock
        self._effects = effects
        self._uploads = uploads
        self._notifier = notifier
        self._first_process = first_process
        self._room = LeaseRoom(lease_dir)
        self._trackers: dict[Path, RunTracker] = {}
        self._ending = read_ending(lease_dir)
        self._saving: dict[str, tuple[Moment, StopMode]] = {}
        """Runs without duties that were asked to stop at the time limit."""

    def take_up(self, runs: Path) -> None:
        """Register runs with open duties again: a box may lose its temporary files in a restart."""
        listed = {run.path for run in registered(self._lease_dir)}
        for run in all_runs(runs):
            if run.duties.is_file() and run.path.absolute() not in listed and not _is_done(run):
                with suppress(OSError, NotReadyError):
                    register(self._lease_dir, run)

    def tick(self) -> float | None:
        """Run one round; return the seconds until the next, or None when all duties are done."""
        now = moment(self._clock)
        self._take_answer(now)
        box = self._look(now)
        for action in decide(box):
            self._perform(action, now)
        for tracker in self._trackers.values():
            tracker.save()
        if self._trackers or self._effects.is_acting:
            return ROUND_SECONDS
        ending = self._ending
        # After an accepted order, the box is watched until it goes down.
        return ROUND_SECONDS if ending is not None and ending.phase is Phase.ASKED else None

    def _look(self, now: Moment) -> Box:
        self._find_new()
        runs = []
        for tracker in list(self._trackers.values()):
            is_there = tracker.is_there
            guarded = tracker.look(now) if is_there else None
            if guarded is not None:
                runs.append(self._with_surroundings(tracker, guarded, now))
            elif not (is_there and tracker.is_unread):
                self._drop(tracker)
        others = self._others({guarded.run_id for guarded in runs}, now)
        works = bool(others) or any(not guarded.is_settled for guarded in runs)
        destroys = any(guarded.duties.then is Then.DESTROY for guarded in runs)
        return Box(
            now=now,
            runs=tuple(runs),
            others=others,
            ending=self._ending,
            kept_by=read_keep_request(self._lease_dir, self._ending) if self._ending is not None else None,
            first_process=self._first_process,
            is_acting=self._effects.is_acting,
            unsafe=self._unsafe(now) if destroys and not works else (),
        )

    def _find_new(self) -> None:
        for run in registered(self._lease_dir):
            if run.path not in self._trackers:
                say(f"watching {run.run_id}")
                self._trackers[run.path] = RunTracker(run, self._first_process)

    def _drop(self, tracker: RunTracker) -> None:
        del self._trackers[tracker.run.path]
        with suppress(OSError):
            unregister(self._lease_dir, tracker.run)

    def _with_surroundings(self, tracker: RunTracker, guarded: GuardedRun, now: Moment) -> GuardedRun:
        duties, run = guarded.duties, tracker.run
        if duties.uploads or duties.then is Then.DESTROY:
            found = self._uploads.look(run, duties, now.at, fresh=guarded.is_over)
            damage = (f"the records of {run.run_id} cannot be read",) if tracker.damage is not None else ()
            guarded = replace(
                guarded,
                unverified=(*damage, *found.unverified),
                upload_pending=found.pending,
                upload_due=found.due,
                is_uploading=self._effects.is_uploading(run),
            )
        if self._notifier is not None:
            guarded = replace(guarded, has_messages=self._notifier.notify(run, self._ending))
        return guarded

    def _others(self, runs: set[str], now: Moment) -> tuple[Other, ...]:
        """Unguarded runs and measurements that hold a lease on a GPU or on a share of the price."""
        try:
            names = {holder.run_id or name for name, holder in self._room.holders("")}
        except (NotReadyError, OSError):
            return ()
        self._saving = {name: since for name, since in self._saving.items() if name in names}
        found = []
        for name in sorted(names - runs):
            since, mode = self._saving.get(name, (None, StopMode.AFTER_STATE))
            found.append(Other(run_id=name, saving=saving(since, mode, now)))
        return tuple(found)

    def _unsafe(self, now: Moment) -> tuple[str, ...]:
        """Results of unguarded runs that would be lost if the box were destroyed."""
        parents = sorted({tracker.run.path.parent for tracker in self._trackers.values()})
        found: list[str] = []
        # A run that could not be read yet is not among those that `decide` judges.
        judged = {path for path, tracker in self._trackers.items() if not tracker.is_unread}
        for run in (run for parent in parents for run in all_runs(parent) if run.path not in judged):
            if not any(run.path.glob("*.safetensors")):
                continue
            try:
                duties = read_duties(run)
            except Exception as error:  # noqa: BLE001  the results of an unreadable record count as not safe
                say(f"{run.run_id}: {error}")
                duties = None
            if duties is None or not duties.uploads:
                found.append(f"{run.run_id} has results that were not uploaded")
            else:
                found += self._uploads.look(run, duties, now.at, fresh=True).unverified
        return tuple(found)

    def _take_answer(self, now: Moment) -> None:
        said = self._effects.answer()
        ending = self._ending
        if said is None or ending is None:
            return
        if said:
            say(f"the box was not ended: {said}")
            failed = replace(ending, phase=Phase.ENDING, tries=ending.tries + 1, problem=said, tried=now)
            self._record(replace(failed, changed=now.at))
        else:
            say(f"{ending.then}: accepted")
            for tracker in self._trackers.values():
                if tracker.run.run_id in ending.runs:
                    tracker.note_ordered()
                    tracker.save()
            self._record(replace(ending, phase=Phase.ASKED, problem=None, tried=now, changed=now.at))

    def _perform(self, action: Action, now: Moment) -> None:
        match action:
            case Restart() | Upload() | Release():
                self._care(action, now)
            case StopRun(run_id=run_id, mode=mode):
                self._stop(run_id, mode, now)
            case Record() | Keep() | CarryOut() | HasEnded():
                self._end(action)
            case _:
                assert_never(action)

    def _care(self, action: Restart | Upload | Release, now: Moment) -> None:
        """Perform an action on one run."""
        tracker = self._tracker(action.run_id)
        match action:
            case Restart(run_id=run_id):
                tracker.note_restart(now)
                trouble = self._effects.restart(tracker.run)
                say(f"{run_id} has a new supervisor" if trouble is None else f"{run_id}: {trouble}")
            case Upload():
                self._effects.upload(tracker.run)
            case Release(run_id=run_id):
                say(f"{run_id}: all duties are done")
                tracker.note_released()
                tracker.save()
                self._drop(tracker)
            case _:
                assert_never(action)

    def _end(self, action: Record | Keep | CarryOut | HasEnded) -> None:
        """Perform an action on the end of the box."""
        match action:
            case Record(ending=ending):
                before = self._ending
                if ending is not None and (before is None or before.phase is Phase.CANCELLED):
                    say(f"countdown: {ending.then}, because {ending.because}")
                self._record(ending)
            case Keep(ending=ending, run_ids=run_ids):
                say(f"cancelled by {ending.cancelled_by}")
                for run_id in run_ids:
                    self._tracker(run_id).note_kept()
                self._record(ending)
            case CarryOut(ending=ending):
                say(f"{ending.then} now, because {ending.because}")
                self._record(ending)
                self._effects.end(ending)
            case HasEnded(run_ids=run_ids):
                for tracker in self._trackers.values():
                    if tracker.run.run_id in run_ids:
                        tracker.note_ended()
            case _:
                assert_never(action)

    def _stop(self, run_id: str, mode: StopMode, now: Moment) -> None:
        tracker = next((each for each in self._trackers.values() if each.run.run_id == run_id), None)
        if tracker is not None:
            tracker.note_stop(mode, now)
            self._effects.stop(tracker.run, mode)
            return
        since, _ = self._saving.get(run_id, (now, mode))
        self._saving[run_id] = since, mode
        for run in self._runs_named(run_id):
            self._effects.stop(run, mode)

    def _runs_named(self, run_id: str) -> Sequence[RunDirectory]:
        if "/" in run_id or run_id in {".", ".."}:  # any user may write a lease's text
            return []
        parents = {tracker.run.path.parent for tracker in self._trackers.values()}
        runs = [RunDirectory(parent / run_id) for parent in sorted(parents)]
        return [run for run in runs if run.plan.is_file()]

    def _tracker(self, run_id: str) -> RunTracker:
        return next(each for each in self._trackers.values() if each.run.run_id == run_id)

    def _record(self, ending: Ending | None) -> None:
        """Keep the ending in memory too: a full disk must not keep the box running."""
        if ending is not None:
            ending = replace(ending, by_hand=self._effects.by_hand(ending.then))
        self._ending = ending
        if ending is None:
            forget_ending(self._lease_dir)
            return
        try:
            write_ending(self._lease_dir, ending)
        except OSError as error:
            say(f"the ending cannot be written down: {error}")


def _is_done(run: RunDirectory) -> bool:
    """Whether the last look at a run found nothing more to do."""
    try:
        record = read_record(run)
    except OSError:
        return False
    return record is not None and record.is_released
