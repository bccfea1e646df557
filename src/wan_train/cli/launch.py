"""`wan-train launch`: jobs from words, questions or a jobs.toml; offers, a plan with every cost, one confirmation."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uv

from wan_train.base.errors import BadInputError, NotReadyError, WanTrainError
from wan_train.base.files import existing_parent
from wan_train.base.settings import user_data_dir
from wan_train.base.text import one_line
from wan_train.base.units import file_size, parse_dollars
from wan_train.box.vast import VastError
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.launch_watch import watch_launch
from wan_train.cli.launch_words import read_words, words_of
from wan_train.cli.launches import look_around
from wan_train.cli.notify import keep_addresses
from wan_train.cli.option import Option
from wan_train.cli.output import Result, Sink
from wan_train.launch import background
from wan_train.launch.bounds import bounded, default_hours
from wan_train.launch.gpu_names import parse_gpus
from wan_train.launch.history import read_history
from wan_train.launch.jobs import Ready, Wish, disk_gb, prepare, read_jobs, wishes_of_words
from wan_train.launch.market import KEY_VARIABLE, VastMarket
from wan_train.launch.model import Launch, Wants
from wan_train.launch.offers import Choice, choose
from wan_train.launch.places import LaunchDirectory, new
from wan_train.launch.sky_home import INSTALLED_BYTES, PROGRAMS, is_made, make, missing_programs
from wan_train.provision import engine_file
from wan_train.provision.driver_checks import build_of
from wan_train.run.speeds import read_speeds
from wan_train.run.titles import check_author, check_title
from wan_train.views.launch_plan import LaunchPlan, plan_json, plan_lines
from wan_train.views.lines import Screenful

_MOST_HOURS = 24.0 * 90
_MOST_BOXES = 1000
_JOBS_FILE = re.compile(r"^\s*\[\[?\s*(jobs|defaults)\b", re.MULTILINE)
_OF_ONE: tuple[Option[str], ...] = (options.LAUNCH_TITLE, options.RECIPE)
_BOUNDS: tuple[Option[Any], ...] = (options.MAX_PRICE, options.LAUNCH_MAX_HOURS, options.LAUNCH_BUDGET)


def launch(call: Call) -> Result:
    """Check the jobs, show the offers and the plan, and after a confirmation rent and train."""
    sink, dry_run = call.sink, call[options.DRY_LAUNCH]
    wants = _wants(call)
    market = market_of(call)
    _require_programs()
    look_around(call)
    wishes = _wishes(call)
    ready = prepare(wishes, read_words=read_words, say=lambda name: sink.note(f"Checking {one_line(name)} ..."))
    wants = _with_needs(wants, ready)
    choice = _choice(market, wants, ready, call)
    plan = _plan(call, market, wants, ready, choice)
    shown = Result(
        data=lambda: plan_json(plan),
        text=lambda sink: sink.show(Screenful(lambda width: plan_lines(plan, width))),
        error=None if choice.fit else _no_offer(choice, wants),
    )
    if dry_run or not choice.fit:
        return shown
    sink.render(shown)
    if not call[options.YES]:
        sink.require_person("nothing was rented", "Add --yes to rent, or --dry-run to see the plan only.")
        if not questions.confirm("Rent and train?"):
            sink.note("Nothing was rented.")
            return Result()
    return _start(call, plan)


def _start(call: Call, plan: LaunchPlan) -> Result:
    """Everything that is to be done is on disk before anything is rented."""
    sink, settings = call.sink, call.settings
    _require_disk(plan, settings.runs)
    keep_addresses(settings)
    make(user_data_dir() / "sky", uv=uv.find_uv_bin(), say=sink.note)
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
    """Leave a launch to itself: stdout gets its ID and nothing else."""
    launch_id = directory.path.name

    def text(sink: Sink) -> None:
        sys.stdout.write(f"{launch_id}\n")
        sink.note("Renting. Watch it with:")
        sink.note(f"  wan-train launch attach {launch_id}")

    about = {"event": "launch_detached", "launch_id": launch_id, "launch_dir": str(directory.path)}
    return Result(data=lambda: about, text=text)


def _require_disk(plan: LaunchPlan, runs: Path) -> None:
    """Raises NotReadyError where the results have no room."""
    need = sum(ready.work.result_bytes for ready in plan.jobs)
    if not is_made(user_data_dir() / "sky"):
        need += INSTALLED_BYTES
    free = shutil.disk_usage(existing_parent(runs)).free
    if free < need:
        raise NotReadyError(
            f"nothing was rented: {file_size(need)} come home to {runs}, and {file_size(free)} are free there",
            hint="Free some disk space: `wan-train clean`\nOr choose another place: `--runs-dir DIR`",
        )


def market_of(call: Call) -> VastMarket:
    """Raises NotReadyError without a key."""
    return VastMarket.of(os.environ, Path.home(), call.settings.vast_url)


def landlord_error(error: VastError) -> NotReadyError:
    """What Vast did not do, for people."""
    text = str(error)
    hint = "Try again in a minute: https://status.vast.ai says whether Vast is down."
    if KEY_VARIABLE in text:
        hint = f"Create a key at https://cloud.vast.ai/manage-keys/\nThen: `export {KEY_VARIABLE}=KEY`"
    return NotReadyError(f"nothing was rented: {text}", hint=hint)


def _wants(call: Call) -> Wants:
    """What may be rented, as far as options say; raises BadInputError."""
    infra = call[options.ON].strip().lower()
    if infra != "vast":
        raise BadInputError(f"--on {one_line(infra)} is not an infrastructure", hint="Use vast.")
    spot, bid = call[options.SPOT], _dollars(call, options.BID)
    if bid is not None and not spot:
        raise BadInputError(
            "--bid is for interruptible boxes", hint="Add --spot, or use --max-price for a box on demand."
        )
    boxes = call[options.BOXES]
    if not 1 <= boxes <= _MOST_BOXES:
        raise BadInputError(f"--boxes {boxes} cannot be rented", hint=f"Use a number from 1 to {_MOST_BOXES:,}.")
    hours = call.get(options.LAUNCH_MAX_HOURS)
    if hours is not None and not 0.5 <= hours <= _MOST_HOURS:  # also refuses nan
        raise BadInputError(
            f"--max-hours {hours:g} is not a time that can be kept", hint=f"Use hours, 0.5 to {_MOST_HOURS:,.0f}."
        )
    gpus = call.get(options.GPU)
    try:
        kinds = parse_gpus(gpus) if gpus is not None else ()
    except ValueError as error:
        raise BadInputError(
            f"--gpu {one_line(gpus or '')!r}: {error}", hint="Use --gpu RTX4090, or RTX5090:2."
        ) from None
    return Wants(
        infra=infra,
        gpus=kinds,
        max_per_hour=_dollars(call, options.MAX_PRICE),
        spot=spot,
        bid=bid,
        boxes=boxes,
        max_hours=hours if hours is not None else 0.0,
        budget=_dollars(call, options.LAUNCH_BUDGET),
    )


def _dollars(call: Call, option: Option[str]) -> float | None:
    text = call.get(option)
    if text is None:
        return None
    try:
        return parse_dollars(text)
    except ValueError as error:
        raise BadInputError(
            f"{option.flag} {one_line(text)!r} {error}", hint=f"For example: `{option.flag} 0.60`"
        ) from None


def _require_programs() -> None:
    missing = missing_programs()
    if missing:
        raise NotReadyError(
            f"missing on this computer: {', '.join(missing)}",
            hint=f"Debian and Ubuntu: `sudo apt install openssh-client rsync`\nmacOS has {' and '.join(PROGRAMS)}; "
            "with Homebrew: `brew install rsync`",
        )


def _wishes(call: Call) -> tuple[Wish, ...]:
    """The jobs as they were asked for; raises BadInputError."""
    datasets = list(call.all(options.LAUNCH_DATASETS))
    file = _jobs_file(datasets)
    if file is not None:
        return _of_file(call, file)
    if not datasets:
        raise BadInputError("no dataset was given", hint="Name it: `wan-train launch DATASET`")
    title, author = call.get(options.LAUNCH_TITLE), call.get(options.AUTHOR)
    return wishes_of_words(
        datasets,
        title=check_title(title) if title is not None else None,
        author=check_author(author) if author is not None else None,
        recipe=call.get(options.RECIPE),
        options=words_of(call),
        folder=Path.cwd(),
    )


def _jobs_file(names: Sequence[str]) -> Path | None:
    """The jobs.toml among the words; a dataset.toml is a dataset."""
    found = [path for path in map(_path, names) if path.suffix == ".toml" and path.is_file() and _has_jobs(path)]
    if found and len(names) > 1:
        raise BadInputError(
            f"{one_line(str(found[0]))} is a list of jobs, and {len(names) - 1} more were given",
            hint="Give the jobs.toml alone, or datasets only.",
        )
    return found[0] if found else None


def _has_jobs(path: Path) -> bool:
    """Also of a damaged file, so that the message is about jobs."""
    if path.name == "jobs.toml":
        return True
    try:
        return _JOBS_FILE.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def _of_file(call: Call, file: Path) -> tuple[Wish, ...]:
    given = [each.flag for each in _OF_ONE if call.get(each) is not None]
    words = [word for word in words_of(call) if word.startswith("--")]
    if given or words:
        raise BadInputError(
            f"{', '.join([*given, *words])} cannot be given beside {file.name}",
            hint=f"Write it into {file.name}: a job, or [defaults] for all, may have options = ['--epochs', '50'].",
        )
    author = call.get(options.AUTHOR)
    wishes = read_jobs(file)
    return wishes if author is None else tuple(replace(each, author=each.author or author) for each in wishes)


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~name` of nobody
        return Path(name)


def _with_needs(wants: Wants, ready: Sequence[Ready]) -> Wants:
    build = build_of(engine_file.load(engine_file.DEFAULT))
    return replace(
        wants,
        disk_gb=disk_gb(ready),
        tasks=tuple(dict.fromkeys(each.recipe.task.word for each in ready)),
        least_driver=build.least_driver if build is not None else (),
    )


def _choice(market: VastMarket, wants: Wants, ready: Sequence[Ready], call: Call) -> Choice:
    try:
        offers = market.offers(wants)
    except VastError as error:
        raise landlord_error(error) from None
    history = read_history(call.settings.runs, time.time())
    return choose(
        offers,
        wants,
        work=ready[0].work,
        speeds=read_speeds(call.settings.runs),
        set_up_seconds=history.set_up_seconds,
        avoided=history.avoided,
    )


def _plan(call: Call, market: VastMarket, wants: Wants, ready: Sequence[Ready], choice: Choice) -> LaunchPlan:
    """With every bound, and the credit that pays for it."""
    if not wants.max_hours:
        wants = replace(wants, max_hours=default_hours(choice, len(ready), wants.boxes))
    return LaunchPlan(
        jobs=ready,
        wants=bounded(wants, choice),
        choice=choice,
        given=frozenset(each.flag for each in _BOUNDS if call.get(each) is not None),
        credit=_credit(market),
        runs=str(call.settings.runs),
    )


def _credit(market: VastMarket) -> float | None:
    try:
        return market.credit()
    except VastError:
        return None  # the list of offers was answered: nothing depends on this but a line of the plan


def _no_offer(choice: Choice, wants: Wants) -> WanTrainError:
    hints = []
    if choice.nearest is not None:
        hints.append(f"Pay more: `--max-price {choice.nearest.offer.per_hour:.2f}`")
    if wants.gpus:
        hints.append("Name other kinds: `--gpu RTX4090,RTX5090`, or leave --gpu out.")
    if not wants.spot:
        hints.append("Try interruptible boxes: `--spot`")
    return NotReadyError("nothing was rented: no offer is what you want", hint="\n".join(hints))
