"""`wan-train launch`: jobs from arguments, questions or a jobs.toml; offers, a plan with every cost, a confirmation."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import uv

from wan_train.base.errors import NotReadyError, WanTrainError
from wan_train.base.files import existing_parent
from wan_train.base.text import one_line
from wan_train.base.units import dollars, file_size
from wan_train.box.vast import VastError
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.launch_options import read_options
from wan_train.cli.launch_request import ask_where, job_requests, wants_of
from wan_train.cli.launch_watch import watch_launch
from wan_train.cli.launches import look_around, say_others_going
from wan_train.cli.notify import keep_addresses
from wan_train.cli.output import Result, Sink
from wan_train.launch import background
from wan_train.launch.bounds import bounded, rounded_up
from wan_train.launch.history import read_history
from wan_train.launch.infra import HELP, VAST, variables_of
from wan_train.launch.jobs import Ready, disk_gb, prepare
from wan_train.launch.launch_directory import LaunchDirectory, new
from wan_train.launch.market import KEY_VARIABLE, Market, VastMarket
from wan_train.launch.model import Launch, Wants
from wan_train.launch.offers import Choice, Priced, Unfit, choose, priced_on
from wan_train.launch.sky_home import INSTALLED_BYTES, PROGRAMS, folder_of, is_made, make, missing_programs
from wan_train.launch.sky_market import SkyMarket
from wan_train.provision import engine_file
from wan_train.provision.driver_checks import build_of
from wan_train.run.speeds import read_speeds
from wan_train.views.launch import MOST_OFFERS, offer_lines
from wan_train.views.launch_plan import SHOWN_OFFERS, LaunchPlan, plan_json, plan_lines
from wan_train.views.lines import Screenful

_LARGE_DISK_GB = 500.0
"""Many boxes do not offer more than this."""


def launch(call: Call) -> Result:
    """Check the jobs, show the offers and the plan, and after a confirmation rent and train."""
    sink, dry_run = call.sink, call[options.DRY_LAUNCH]
    wants = wants_of(call)
    _require_programs()
    with market_of(call, wants.infra) as market:
        look_around(call)
        say_others_going(call)
        plan, shown = _planned(call, wants, market)
    if dry_run or not plan.choice.fit:
        return shown
    _require_credit(plan)
    sink.render(shown)
    if not call[options.YES]:
        sink.require_person("nothing was rented", "Add --yes to rent, or --dry-run to see the plan only.")
        if not questions.confirm("Rent and train?"):
            sink.note("Nothing was rented.")
            return Result()
    return _start(call, plan)


def _planned(call: Call, wants: Wants, market: Market) -> tuple[LaunchPlan, Result]:
    """Return the plan, and the result that shows it."""
    sink, dry_run = call.sink, call[options.DRY_LAUNCH]
    ask = sink.can_ask and not call[options.YES] and not dry_run
    requests = job_requests(call, ask=ask)
    ready = prepare(requests, read_options=read_options, say=_Said(sink).dataset)
    wants, search = _with_needs(wants, ready), _Search(market=market, ready=ready, runs=call.settings.runs)
    if ask:
        wants, choice = ask_where(call, wants, search, partial(_show_offers, sink=sink, wants=wants))
    else:
        choice = search(wants)
    plan = _plan(call, search, wants, choice)
    most = MOST_OFFERS if dry_run else SHOWN_OFFERS
    shown = Result(
        data=lambda: plan_json(plan),
        text=lambda sink: sink.show(Screenful(lambda width: plan_lines(plan, width, offers=most))),
        error=None if choice.fit else _no_offer(choice, wants),
    )
    return plan, shown


def _start(call: Call, plan: LaunchPlan) -> Result:
    """Write the launch to disk and start it. Nothing is rented before its record is on disk."""
    sink, settings = call.sink, call.settings
    _require_disk(plan, settings.runs)
    keep_addresses(settings)
    make(folder_of(plan.wants.infra), uv=uv.find_uv_bin(), say=sink.note, infra=plan.wants.infra)
    try:
        directory = new(settings.runs)
        launch = Launch(
            id=directory.path.name,
            created=time.time(),
            wants=plan.wants,
            jobs=tuple(ready.job for ready in plan.jobs),
        )
        directory.write(launch)
    except OSError as error:
        raise NotReadyError(
            f"nothing was rented: {error.filename or settings.runs} cannot be written: {error.strerror}",
            hint="Choose another place for the runs: `--runs-dir DIR`",
        ) from error
    background.start(directory, settings)
    if call[options.DETACH_LAUNCH]:
        return _detached(directory)
    return watch_launch(directory, settings, sink)


def _detached(directory: LaunchDirectory) -> Result:
    """Leave a launch running in the background. Only its ID goes to stdout."""
    launch_id = directory.path.name

    def text(sink: Sink) -> None:
        sink.outcome(launch_id)
        sink.note("Renting. Watch it with:")
        sink.note(f"  wan-train launch attach {launch_id}")

    about = {"event": "launch_detached", "launch_id": launch_id, "launch_dir": str(directory.path)}
    return Result(data=lambda: about, text=text)


def _require_disk(plan: LaunchPlan, runs: Path) -> None:
    """Raise NotReadyError if there is no room for the results."""
    need = sum(ready.work.result_bytes for ready in plan.jobs)
    if plan.fetches is not None:
        need += INSTALLED_BYTES
    free = shutil.disk_usage(existing_parent(runs)).free
    if free < need:
        raise NotReadyError(
            f"nothing was rented: the results need {file_size(need)} in {runs}, but only {file_size(free)} are free",
            hint="Free some disk space: `wan-train clean`\nOr choose another place: `--runs-dir DIR`",
        )


@contextmanager
def market_of(call: Call, infra: str) -> Iterator[Market]:
    """The market of an infrastructure. Outside Vast it needs SkyPilot, which is fetched first, if the user agrees.

    Raises NotReadyError without a key, or without SkyPilot.
    """
    if infra == VAST:
        yield VastMarket.of(os.environ, Path.home(), call.settings.vast_url)
        return
    folder = folder_of(infra)
    if not is_made(folder, infra) and not call[options.YES]:
        call.sink.require_person("nothing was rented", f"Add --yes to fetch SkyPilot ({file_size(INSTALLED_BYTES)}).")
        if not questions.confirm(f"Fetch SkyPilot ({file_size(INSTALLED_BYTES)}) to see what {infra} has?"):
            raise NotReadyError(
                "nothing was rented: only SkyPilot knows what can be rented there", hint="Use --on vast."
            )
    call.sink.note(f"Asking SkyPilot what {infra} has ...")
    log = folder / "plan.log"
    with background.sky_engine(
        infra, variables_of(infra, os.environ), keys=folder, log=log, say=call.sink.note
    ) as engine:
        yield SkyMarket(engine, infra)


def provider_error(error: VastError, infra: str = VAST) -> NotReadyError:
    """A provider's failure as an error for the user."""
    text = str(error)
    if infra != VAST:
        return NotReadyError(f"nothing was rented: {text}", hint=f"Set up its credentials: {HELP}\nThen try again.")
    hint = "Try again in a minute: https://status.vast.ai says whether Vast is down."
    if KEY_VARIABLE in text:
        hint = f"Create a key at https://cloud.vast.ai/manage-keys/\nThen: `export {KEY_VARIABLE}=KEY`"
    return NotReadyError(f"nothing was rented: {text}", hint=hint)


def _require_programs() -> None:
    missing = missing_programs()
    if missing:
        raise NotReadyError(
            f"missing on this computer: {', '.join(missing)}",
            hint=f"Debian and Ubuntu: `sudo apt install openssh-client rsync`\nmacOS has {' and '.join(PROGRAMS)}; "
            "with Homebrew: `brew install rsync`",
        )


def _with_needs(wants: Wants, ready: Sequence[Ready]) -> Wants:
    build = build_of(engine_file.load(engine_file.DEFAULT))
    return replace(
        wants,
        boxes=min(wants.boxes, len(ready)),
        disk_gb=disk_gb(ready, min(wants.boxes, len(ready))),
        tasks=tuple(dict.fromkeys(each.recipe.task.word for each in ready)),
        least_driver=build.least_driver if build is not None else (),
    )


@dataclass(slots=True)
class _Said:
    """Names each dataset once, however many jobs train it."""

    sink: Sink
    known: set[str] = field(default_factory=set)

    def dataset(self, name: str) -> None:
        if name not in self.known:
            self.known.add(name)
            self.sink.note(f"Checking {one_line(name)} ...")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """Searches offers for these jobs, repeatedly with different wants. Raises NotReadyError."""

    market: Market
    ready: Sequence[Ready]
    runs: Path

    def __call__(self, wants: Wants) -> Choice:
        try:
            offers = self.market.offers(wants)
        except VastError as error:
            raise provider_error(error, wants.infra) from None
        history = read_history(self.runs, time.time())
        return choose(
            offers,
            wants,
            work=self.ready[0].work,
            speeds=read_speeds(self.runs),
            set_up_seconds=history.set_up_seconds,
            avoided=history.avoided,
        )

    def of_each_job(self, wants: Wants, choice: Choice) -> tuple[Priced | None, ...]:
        """Every job as the first one on the best offer; None if no offer fits."""
        if not choice.fit:
            return (None,) * len(self.ready)
        speeds, history = read_speeds(self.runs), read_history(self.runs, time.time())
        offer = choice.fit[0].offer
        return tuple(priced_on(offer, wants, ready.work, speeds, history.set_up_seconds) for ready in self.ready)


def _show_offers(choice: Choice, *, sink: Sink, wants: Wants) -> None:
    sink.show(Screenful(lambda _: offer_lines(choice, wants)))


def _plan(call: Call, search: _Search, wants: Wants, choice: Choice) -> LaunchPlan:
    """The plan with every limit set, and the account's credit."""
    sky = folder_of(wants.infra)
    return LaunchPlan(
        jobs=search.ready,
        wants=bounded(wants, choice, search.of_each_job(wants, choice)),
        choice=choice,
        credit=_credit(search.market),
        runs=str(call.settings.runs),
        fetches=None if is_made(sky, wants.infra) else str(sky),
    )


def _require_credit(plan: LaunchPlan) -> None:
    """Require credit for an hour of the best offer: Vast stops a box without credit, and its disk is lost later."""
    hour = plan.choice.fit[0].offer.per_hour
    if plan.credit is not None and plan.credit < hour:
        raise NotReadyError(
            f"nothing was rented: your credit at Vast.ai is {dollars(plan.credit)}, an hour costs {dollars(hour)}",
            hint="Add credit: https://cloud.vast.ai/billing/\nThen try again.",
        )


def _credit(market: Market) -> float | None:
    try:
        return market.credit()
    except VastError:
        return None  # the provider did list offers; only a line of the plan and the check of the credit depend on this


def _no_offer(choice: Choice, wants: Wants) -> WanTrainError:
    hints = []
    if choice.nearest is not None:
        hints.append(f"Pay more: `--max-price {rounded_up(choice.nearest.offer.per_hour):.2f}`")
    if any(reason == Unfit.BUDGET for reason, _ in choice.unfit):
        hints.append("Raise the budget: it must pay for the downloads of a box too.")
    if not choice.unfit and wants.bid is not None:
        hints.append("Bid more, or leave --bid out: it is then a tenth above the market's lowest.")
    if not choice.unfit and wants.disk_gb > _LARGE_DISK_GB:
        hints.append(f"Launch fewer LoRAs at once: a box for these needs {wants.disk_gb:,.0f} GB of disk.")
    if wants.gpus:
        hints.append("Name other kinds: `--gpu RTX4090,RTX5090`, or leave --gpu out.")
    if not wants.spot:
        hints.append("Try interruptible boxes: `--spot`")
    hints.append("Offers change by the minute: try again later.")
    return NotReadyError("nothing was rented", hint="\n".join(hints))
