"""The guardian: look at the box, decide, act; until nothing is owed to any run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, assert_never

from wan_train.base.clock import Clock
from wan_train.base.errors import NotReadyError
from wan_train.base.host import ProcessIdentity
from wan_train.base.moment import Moment, moment
from wan_train.gpu.leases import LeaseRoom
from wan_train.guardian import memory as memories
from wan_train.guardian.charge import Charge
from wan_train.guardian.decisions import (
    Action,
    Box,
    CarryOut,
    HasEnded,
    Keep,
    Other,
    Record,
    Release,
    Restart,
    StopRun,
    Upload,
    Ward,
    decide,
)
from wan_train.guardian.hands import Hands, say
from wan_train.run.directory import RunDirectory, all_runs
from wan_train.run.duties import Duties, Then, enter, entered, leave, read_duties
from wan_train.run.ending import Ending, Phase, forget_ending, read_ending, read_wish, write_ending
from wan_train.run.events import StopMode

ROUND_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """Where the uploads of a run stand."""

    pending: bool = False
    """Something is ready and not verified yet."""
    due: bool = False
    """The same, and it may be tried now."""
    unverified: tuple[str, ...] = ()
    """Why its results are not all safe elsewhere, in words."""


class Uploads(Protocol):
    """What is known of the uploads of a run; never raises. `fresh`: as of now, not of some seconds ago."""

    def look(self, run: RunDirectory, duties: Duties, now: float, *, fresh: bool) -> Uploaded: ...


class Notices(Protocol):
    """Who is told what."""

    def tell(self, run: RunDirectory, ending: Ending | None) -> bool:
        """Send what is new; whether something is still to be sent. Does not block."""


class Guardian:
    """Everything it decides is on disk, so another one goes on wherever this one is killed."""

    def __init__(
        self,
        *,
        lease_dir: Path,
        clock: Clock,
        hands: Hands,
        uploads: Uploads,
        notices: Notices | None,
        life: ProcessIdentity | None,
    ) -> None:
        """`life` is the box's first process."""
        self._lease_dir = lease_dir
        self._clock = clock
        self._hands = hands
        self._uploads = uploads
        self._notices = notices
        self._life = life
        self._room = LeaseRoom(lease_dir)
        self._charges: dict[Path, Charge] = {}
        self._ending = read_ending(lease_dir)
        self._saving: dict[str, tuple[Moment, StopMode]] = {}
        """Runs without duties that were asked to stop at the limit of hours."""

    def take_up(self, runs: Path) -> None:
        """List runs again whose duties are open: a box may lose its temporary files in a restart."""
        listed = {run.path for run in entered(self._lease_dir)}
        for run in all_runs(runs):
            if run.duties.is_file() and run.path.absolute() not in listed and not _is_done(run):
                with suppress(OSError, NotReadyError):
                    enter(self._lease_dir, run)

    def tick(self) -> float | None:
        """One round; seconds until the next, None when nothing is owed to any run."""
        now = moment(self._clock)
        self._hear_the_landlord(now)
        box = self._look(now)
        for action in decide(box):
            self._perform(action, now)
        for charge in self._charges.values():
            charge.save()
        if self._charges or self._hands.is_acting:
            return ROUND_SECONDS
        ending = self._ending
        # A box that was told to go down is watched until it does.
        return ROUND_SECONDS if ending is not None and ending.phase is Phase.ASKED else None

    def _look(self, now: Moment) -> Box:
        self._meet()
        wards = []
        for charge in list(self._charges.values()):
            ward = charge.look(now) if charge.is_there else None
            if ward is None:
                self._let_go(charge)
            else:
                wards.append(self._with_surroundings(charge, ward, now))
        others = self._others({ward.run_id for ward in wards}, now)
        works = bool(others) or any(not ward.is_settled for ward in wards)
        destroys = any(ward.duties.then is Then.DESTROY for ward in wards)
        return Box(
            now=now,
            wards=tuple(wards),
            others=others,
            ending=self._ending,
            kept_by=read_wish(self._lease_dir, self._ending) if self._ending is not None else None,
            life=self._life,
            is_acting=self._hands.is_acting,
            unsafe=self._unsafe(now) if destroys and not works else (),
        )

    def _meet(self) -> None:
        for run in entered(self._lease_dir):
            if run.path not in self._charges:
                say(f"{run.run_id} is in care")
                self._charges[run.path] = Charge(run, self._life)

    def _let_go(self, charge: Charge) -> None:
        del self._charges[charge.run.path]
        with suppress(OSError):
            leave(self._lease_dir, charge.run)

    def _with_surroundings(self, charge: Charge, ward: Ward, now: Moment) -> Ward:
        duties, run = ward.duties, charge.run
        if duties.uploads or duties.then is Then.DESTROY:
            found = self._uploads.look(run, duties, now.at, fresh=ward.is_over)
            damage = (f"the records of {run.run_id} cannot be read",) if charge.damage is not None else ()
            ward = replace(
                ward,
                unverified=(*damage, *found.unverified),
                upload_pending=found.pending,
                upload_due=found.due,
                is_uploading=self._hands.is_uploading(run),
            )
        if self._notices is not None:
            ward = replace(ward, has_messages=self._notices.tell(run, self._ending))
        return ward

    def _others(self, wards: set[str], now: Moment) -> tuple[Other, ...]:
        """Whoever holds a GPU or a place among those who pay, and is no ward."""
        try:
            names = {holder.run_id or name for name, holder in self._room.holders("")}
        except (NotReadyError, OSError):
            return ()
        self._saving = {name: since for name, since in self._saving.items() if name in names}
        found = []
        for name in sorted(names - wards):
            since, mode = self._saving.get(name, (None, StopMode.AFTER_STATE))
            found.append(Other(run_id=name, saving=memories.saving(since, mode, now)))
        return tuple(found)

    def _unsafe(self, now: Moment) -> tuple[str, ...]:
        """Results beside the wards' that a destroyed box would take along."""
        parents = sorted({charge.run.path.parent for charge in self._charges.values()})
        found: list[str] = []
        for run in (run for parent in parents for run in all_runs(parent) if run.path not in self._charges):
            if not any(run.path.glob("*.safetensors")):
                continue
            try:
                duties = read_duties(run)
            except Exception as error:  # noqa: BLE001  whatever is wrong with a record, its results count as not safe
                say(f"{run.run_id}: {error}")
                duties = None
            if duties is None or not duties.uploads:
                found.append(f"{run.run_id} has results that were not uploaded")
            else:
                found += self._uploads.look(run, duties, now.at, fresh=True).unverified
        return tuple(found)

    def _hear_the_landlord(self, now: Moment) -> None:
        said = self._hands.answer()
        ending = self._ending
        if said is None or ending is None:
            return
        if said:
            say(f"the box was not ended: {said}")
            failed = replace(ending, phase=Phase.ENDING, tries=ending.tries + 1, problem=said, tried=now)
            self._record(replace(failed, changed=now.at))
        else:
            say(f"{ending.then}: accepted")
            for charge in self._charges.values():
                if charge.run.run_id in ending.runs:
                    charge.note_ordered()
                    charge.save()
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
        """What one run needs."""
        charge = self._charge(action.run_id)
        match action:
            case Restart(run_id=run_id):
                charge.note_restart(now)
                trouble = self._hands.restart(charge.run)
                say(f"{run_id} has a new supervisor" if trouble is None else f"{run_id}: {trouble}")
            case Upload():
                self._hands.upload(charge.run)
            case Release(run_id=run_id):
                say(f"{run_id} needs no more care")
                charge.note_released()
                charge.save()
                self._let_go(charge)
            case _:
                assert_never(action)

    def _end(self, action: Record | Keep | CarryOut | HasEnded) -> None:
        """What concerns the end of the box."""
        match action:
            case Record(ending=ending):
                before = self._ending
                if ending is not None and (before is None or before.phase is Phase.CANCELLED):
                    say(f"countdown: {ending.then}, because {ending.because}")
                self._record(ending)
            case Keep(ending=ending, run_ids=run_ids):
                say(f"cancelled by {ending.cancelled_by}")
                for run_id in run_ids:
                    self._charge(run_id).note_kept()
                self._record(ending)
            case CarryOut(ending=ending):
                say(f"{ending.then} now, because {ending.because}")
                self._record(ending)
                self._hands.end(ending)
            case HasEnded(run_ids=run_ids):
                for charge in self._charges.values():
                    if charge.run.run_id in run_ids:
                        charge.note_ended()
            case _:
                assert_never(action)

    def _stop(self, run_id: str, mode: StopMode, now: Moment) -> None:
        charge = next((each for each in self._charges.values() if each.run.run_id == run_id), None)
        if charge is not None:
            charge.note_stop(mode, now)
            self._hands.stop(charge.run, mode)
            return
        since, _ = self._saving.get(run_id, (now, mode))
        self._saving[run_id] = since, mode
        for run in self._beside(run_id):
            self._hands.stop(run, mode)

    def _beside(self, run_id: str) -> Sequence[RunDirectory]:
        if "/" in run_id or run_id in {".", ".."}:  # a lease's text is anybody's
            return []
        parents = {charge.run.path.parent for charge in self._charges.values()}
        runs = [RunDirectory(parent / run_id) for parent in sorted(parents)]
        return [run for run in runs if run.plan.is_file()]

    def _charge(self, run_id: str) -> Charge:
        return next(each for each in self._charges.values() if each.run.run_id == run_id)

    def _record(self, ending: Ending | None) -> None:
        """A full disk keeps no box running: what cannot be written is still known here."""
        if ending is not None:
            ending = replace(ending, by_hand=self._hands.by_hand(ending.then))
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
    memory = memories.read_memory(run)
    return memory is not None and memory.is_released
