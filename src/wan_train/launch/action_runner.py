"""Carries out one step of a launch: an action in, its outcome out. It also decides whose fault a failure is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from wan_train.base.clock import Clock
from wan_train.base.errors import BadInputError
from wan_train.base.text import one_line
from wan_train.base.units import dollars
from wan_train.box.vast import VastError
from wan_train.launch.engine import Engine, EngineDownError, EngineError
from wan_train.launch.gpu_names import same_card
from wan_train.launch.history import read_history
from wan_train.launch.infra import VAST
from wan_train.launch.jobs import shipment_of_job
from wan_train.launch.launch_directory import box_name
from wan_train.launch.market import Market, Power
from wan_train.launch.model import Address, Box, Job, JobState, Launch, Wants
from wan_train.launch.offers import choose, models_bytes
from wan_train.launch.remote import JobError, Remote, Training, WrongBoxError, tree_bytes
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import RemoteError, UnreachableError
from wan_train.launch.transitions import Action, Do, Done, Failed, Fault, Found, Outcome
from wan_train.run.speeds import read_speeds, remember

PROVISION_SECONDS = 3 * 3600.0
_UNREACHABLE_SECONDS = 600.0
WAKE_SECONDS = 1200.0
"""A stopped box is given up after this long: it cannot start while its card is rented to another user."""
_LOOK_SECONDS = 10.0
_LEAST_HOURS = 0.1
"""Least hours for a box's own guardian, even when the box's hours are over: results must still come home."""
_PRICE_ABOVE = 1.02
"""A listed price may be this many times the offer's, because providers round."""
_OVER = {"finished": 0, "failed": 4, "stopped": 130}
"""States of a finished run in `wan-train status --json`, with the exit code for a run that recorded none."""
_LOST = "lost"
"""State of a run that nothing resumed after its box was started again."""

log = logging.getLogger(__name__)


class CancelledError(Exception):
    """The box of a long step was given up."""


@dataclass(slots=True, kw_only=True)
class ActionRunner:
    """Acts on the provider, the engine and the boxes. `pause` sleeps for a number of seconds.

    Runs come home to `runs`. The boxes' measurements are kept there too, to estimate time and cost of later offers.
    """

    market: Market
    engine: Engine
    remote: Remote
    runs: Path
    clock: Clock
    pause: Callable[[float], None]
    shipment: Callable[[Job], Shipment] = shipment_of_job
    is_given_up: Callable[[str], bool] = lambda _: False
    """Whether a box is to be destroyed, which cancels its long steps."""
    seen: dict[str, Training] = field(default_factory=dict)
    """Last seen training by job: for display, never for decisions."""
    searching: str = ""
    """Why the last search found no offer, for display."""

    def do(self, launch: Launch, action: Action) -> Outcome:
        """Carry out one action; never raises for what a provider, an engine or a box does."""
        outcome = self._tried(launch, action)
        if isinstance(outcome, Found | Failed) and action.do is Do.SEARCH:
            self.searching = outcome.why
        return outcome

    def _tried(self, launch: Launch, action: Action) -> Outcome:
        try:
            return self._do(launch, action)
        except CancelledError:
            return Failed(action=action, why="the box is given up")
        except EngineDownError as error:
            return Failed(action=action, why=str(error), answered=True)
        except (VastError, EngineError) as error:
            # A request that the provider or SkyPilot refused is not the machine's fault. But after a refused rental,
            # another offer is better than the same one again.
            fault = Fault.BOX if action.do is Do.RENT else Fault.PASSING
            return Failed(action=action, why=str(error), fault=fault)
        except UnreachableError as error:
            return Failed(action=action, why=str(error))
        except WrongBoxError as error:
            return Failed(action=action, why=str(error), fault=Fault.BOX, answered=True)
        except JobError as error:
            return Failed(action=action, why=str(error), fault=Fault.JOB, answered=True)
        except RemoteError as error:
            return Failed(action=action, why=str(error), answered=True)
        except BadInputError as error:
            return Failed(action=action, why=error.message, fault=Fault.JOB, answered=True)
        except OSError as error:
            return Failed(action=action, why=_here(error), fault=Fault.HERE, answered=True)

    def _do(self, launch: Launch, action: Action) -> Outcome:
        if action.box is None:
            return self._search(launch)
        box = launch.box(action.box)
        match action.do:
            case Do.RENT:
                address = self.engine.rent(box.name, box.offer, launch.wants)
                return Done(action=action, address=address)
            case Do.CHECK:
                received = self.remote.check(_address(box), box.offer, launch.wants)
                self._check_price(box)
                return Done(action=action, received=received)
            case Do.PROVISION:
                self._provision(box, launch.wants.tasks)
                return Done(action=action, received=models_bytes(launch.wants.tasks))
            case Do.DESTROY:
                self._destroy(box)
            case Do.SEND | Do.WAKE | Do.WATCH | Do.FETCH | Do.BRING:
                return self._with_job(launch, action, box, launch.job(action.job or ""))
            case Do.SEARCH:
                return self._search(launch)
            case _:
                assert_never(action.do)
        return Done(action=action)

    def _with_job(self, launch: Launch, action: Action, box: Box, job: Job) -> Outcome:
        address = _address(box)
        if action.do is Do.SEND:
            return self._send(action, address, job, self._left(launch, box))
        if job.home is None:
            raise RemoteError("the training has no run yet")
        run_id = job.home.name
        match action.do:
            case Do.WAKE:
                return Done(action=action, address=self._wake(box, address, run_id))
            case Do.WATCH | Do.FETCH:
                training = self.remote.look(address, run_id)
                self.seen[job.name] = training
                if training.state in _OVER:
                    code = training.exit_code if training.exit_code is not None else _OVER[training.state]
                    return Done(action=action, exit_code=code)
                if training.state == _LOST:
                    self.remote.resume(address, job.home, self._left(launch, box))
                if action.do is Do.FETCH:
                    return Done(action=action, sent=self.remote.fetch(address, run_id, job.home))
            case _:
                came = self.remote.bring(address, run_id, job.home)
                self._remember_speeds(address, box)
                return Done(action=action, sent=came)
        return Done(action=action)

    def _remember_speeds(self, address: Address, box: Box) -> None:
        """Keep a box's measurements; an error fails no job. Accept only its own kind of card and no future times."""
        try:
            found = self.remote.speeds(address)
        except RemoteError as error:
            log.info("%s: its measurements did not come home: %s", box.name, error)
            return
        newest = {each.key: each.at for each in sorted(read_speeds(self.runs), key=lambda each: each.at)}
        for speed in sorted(found, key=lambda each: each.at):
            is_new = newest.get(speed.key, 0.0) < speed.at <= self.clock.now()
            if is_new and same_card(box.offer.gpu, speed.key.card):
                remember(self.runs, speed)

    def _search(self, launch: Launch) -> Found:
        offers = self.market.offers(launch.wants)
        # Outside Vast an offer is a kind of box, which can be rented many times.
        taken = {box.offer.machine for box in launch.living} if launch.wants.infra == VAST else set()
        history = read_history(self.runs, self.clock.now())
        choice = choose(
            offers,
            launch.wants,
            work=next((job.work for job in launch.jobs if job.state is JobState.WAITING), None),
            speeds=read_speeds(self.runs),
            set_up_seconds=history.set_up_seconds,
            avoided={*launch.avoided, *history.avoided, *taken},
        )
        name = box_name(launch.id, len(launch.boxes) + 1)
        if not choice.fit:
            reasons = ", ".join(f"{number} {reason}" for reason, number in choice.unfit)
            return Found(name=name, why=f"no offer matches{f' ({reasons})' if reasons else ''}")
        best = choice.fit[0].offer
        credit = self.market.credit()
        if credit is not None and credit < best.per_hour:
            why = f"the account has {dollars(credit)}, but an hour of the best offer costs {dollars(best.per_hour)}"
            return Found(name=name, why=why, credit=credit)
        return Found(name=name, offer=best, credit=credit)

    def _check_price(self, box: Box) -> None:
        """Raise WrongBoxError if the listed price is above the offer's. Without a list, assume the offer's price."""
        try:
            boxes = self.market.boxes()
        except VastError as error:
            log.info("the price of %s was not compared: %s", box.name, error)
            return
        for listed in boxes:
            most = box.offer.per_hour * _PRICE_ABOVE
            if listed.is_of(box.name) and listed.per_hour is not None and listed.per_hour > most:
                asked, offered = dollars(listed.per_hour), dollars(box.offer.per_hour)
                raise WrongBoxError(f"it costs {asked} an hour, but {offered} was offered")

    def _provision(self, box: Box, tasks: Sequence[str]) -> None:
        """Wait until the box is ready. The set-up on it continues even if the connection breaks."""
        began = answered = self.clock.monotonic()
        while True:
            if self.is_given_up(box.name):
                raise CancelledError
            now = self.clock.monotonic()
            try:
                if self.remote.provision(_address(box), tasks):
                    return
                answered = now
            except UnreachableError as error:
                if now - answered > _UNREACHABLE_SECONDS:
                    raise WrongBoxError(f"it has not answered for ten minutes: {error}") from error
            if now - began > PROVISION_SECONDS:
                raise WrongBoxError(f"it was not ready after {PROVISION_SECONDS / 3600:.0f} hours")
            self.pause(_LOOK_SECONDS)

    def _wake(self, box: Box, address: Address, run_id: str) -> Address:
        """Start a stopped box and return where it answers, because a provider may give it another port."""
        began = self.clock.monotonic()
        self.market.start(box.name)
        while True:
            if self.is_given_up(box.name):
                raise CancelledError
            listed = next((each for each in self.market.boxes() if each.is_of(box.name)), None)
            # One list without it proves nothing: it may be incomplete.
            if listed is not None and listed.power is Power.RUNNING:
                new = replace(address, host=listed.host or address.host, port=listed.port or address.port)
                for there in (address, new):
                    with suppress(UnreachableError):
                        self.remote.look(there, run_id)
                        return there
            if self.clock.monotonic() - began > WAKE_SECONDS:
                raise WrongBoxError(f"it did not run again within {WAKE_SECONDS / 60:.0f} minutes")
            self.pause(_LOOK_SECONDS)

    def _left(self, launch: Launch, box: Box) -> Wants:
        """`wants` with the box's remaining hours, because its own guardian counts from the run's start."""
        left = launch.wants.max_hours - (self.clock.now() - box.began) / 3600
        return replace(launch.wants, max_hours=max(_LEAST_HOURS, left))

    def _send(self, action: Action, address: Address, job: Job, wants: Wants) -> Done:
        """Start a job, or put its run on another box and resume it."""
        shipment = self.shipment(job)
        self.remote.send(address, shipment)
        if job.home is not None and (job.home / "plan.json").is_file():
            self.remote.resume(address, job.home, wants)
            return Done(action=action, home=job.home, received=shipment.bytes + tree_bytes(job.home))
        home = self.runs / self.remote.start(address, job, shipment, wants)
        if home != job.home and home.exists():
            raise JobError(f"{home} already exists and belongs to another run")
        return Done(action=action, home=home, received=shipment.bytes)

    def _destroy(self, box: Box) -> None:
        """Destroy a box in the engine and at the provider. Only the provider's own list proves that it is gone."""
        try:
            self.engine.down(box.name)
        except EngineError as error:
            log.warning("%s: SkyPilot could not end it: %s", box.name, error)
        self.market.destroy(box.name)


def _address(box: Box) -> Address:
    if box.address is None:
        raise RemoteError("the box has no address")
    return box.address


def _here(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return one_line(f"{where}{error.strerror or error}")
