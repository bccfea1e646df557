"""What to launch: from options, from a jobs.toml, and from questions at a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.home import expanded
from wan_train.base.text import one_line
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.launch_options import train_options
from wan_train.cli.option import Option
from wan_train.cli.price import given_dollars
from wan_train.cli.usage_errors import closest
from wan_train.launch.bounds import MOST_HOURS, default_price
from wan_train.launch.gpu_names import parse_gpus
from wan_train.launch.infra import KNOWN, VAST
from wan_train.launch.jobs import JobRequest, read_jobs, requests_of_datasets
from wan_train.launch.model import GpuWant, Wants
from wan_train.launch.offers import Choice, Priced
from wan_train.run.titles import DEFAULT_AUTHOR, DEFAULT_TITLE, check_author, check_title
from wan_train.views.launch import MOST_OFFERS

_MOST_BOXES = 1000
_COMMANDS = ("attach", "status", "stop", "logs", "reap")
_JOBS_FILE = re.compile(r"^\s*\[\[?\s*(jobs|defaults)\b", re.MULTILINE)
_OF_ONE: tuple[Option[str], ...] = (options.LAUNCH_TITLE, options.RECIPE)


def wants_of(call: Call) -> Wants:
    """What may be rented according to the options. Raises BadInputError."""
    infra = call[options.ON].strip().lower()
    if infra != VAST and infra not in KNOWN:
        raise BadInputError(f"--on {one_line(infra)} is unsupported", hint=f"Use {VAST}, or one of {', '.join(KNOWN)}.")
    spot, bid = call[options.SPOT], given_dollars(call, options.BID)
    if bid is not None and infra != VAST:
        raise BadInputError("--bid works on Vast only", hint="Leave it out: elsewhere the price of --spot is fixed.")
    if bid is not None and not spot:
        raise BadInputError(
            "--bid is for interruptible boxes", hint="Add --spot, or use --max-price for a box on demand."
        )
    boxes = call[options.BOXES]
    if not 1 <= boxes <= _MOST_BOXES:
        raise BadInputError(f"--boxes {boxes} cannot be rented", hint=f"Use a number from 1 to {_MOST_BOXES:,}.")
    hours = call.get(options.LAUNCH_MAX_HOURS)
    if hours is not None and not 0.5 <= hours <= MOST_HOURS:  # also refuses nan
        raise BadInputError(f"--max-hours {hours:g} is out of range", hint=f"Use hours from 0.5 to {MOST_HOURS:,.0f}.")
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
        max_per_hour=given_dollars(call, options.MAX_PRICE),
        spot=spot,
        bid=bid,
        boxes=boxes,
        max_hours=hours if hours is not None else 0.0,
        budget=given_dollars(call, options.LAUNCH_BUDGET),
    )


def job_requests(call: Call, *, ask: bool) -> tuple[JobRequest, ...]:
    """The requested jobs. Ask the user for missing answers, or refuse without `ask`. Raises BadInputError."""
    datasets = list(call.all(options.LAUNCH_DATASETS))
    _require_no_command(datasets)
    file = _jobs_file(datasets)
    if file is not None:
        return _of_file(call, file)
    if not datasets and not ask:
        raise BadInputError("no dataset was given", hint="Name it: `wan-train launch DATASET`")
    title, author = call.get(options.LAUNCH_TITLE), call.get(options.AUTHOR)
    if ask:
        title, author, datasets = _asked(title, author, datasets)
    return requests_of_datasets(
        datasets,
        title=check_title(title) if title is not None else None,
        author=check_author(author) if author is not None else None,
        recipe=call.get(options.RECIPE),
        options=train_options(call),
        folder=Path.cwd(),
    )


def ask_where(
    call: Call, wants: Wants, search: Callable[[Wants], Choice], show: Callable[[Choice], None]
) -> tuple[Wants, Choice]:
    """Ask for GPUs, kind of rental and price, unless an option gives them. Search again after each answer."""
    choice = search(wants)
    if choice.fit and call.get(options.GPU) is None:
        kinds = _best_of_each_kind(choice)
        show(replace(choice, fit=tuple(kinds.values())))
        if gpus := questions.ask_gpus(list(kinds)):
            wants = replace(wants, gpus=gpus)
            choice = search(wants)
    if choice.fit and not wants.spot:
        spot = search(replace(wants, spot=True))
        least, least_spot = _least(choice), _least(spot) if spot.fit else None
        if least_spot is not None and least_spot < least and questions.ask_spot(least, least_spot):
            wants, choice = replace(wants, spot=True), spot
    if choice.fit and wants.max_per_hour is None:
        wants = replace(wants, max_per_hour=questions.ask_price(_least(choice), default_price(choice)))
        choice = search(wants)
    return wants, choice


def _best_of_each_kind(choice: Choice) -> dict[GpuWant, Priced]:
    """The best offer of each kind of box, in the order of the offers; at most as many as are shown."""
    found: dict[GpuWant, Priced] = {}
    for each in choice.fit:
        found.setdefault(GpuWant(name=each.offer.gpu, count=each.offer.gpus), each)
    return dict(list(found.items())[:MOST_OFFERS])


def _least(choice: Choice) -> float:
    return min(each.offer.per_hour for each in choice.fit)


def _asked(title: str | None, author: str | None, datasets: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Ask for missing answers about one job. Several jobs are titled after their folders."""
    last = questions.recall()
    if title is None and len(datasets) < 2:
        usual = last.title if last is not None else DEFAULT_TITLE
        title = questions.ask_title(_folder_of(datasets[0]) if datasets else usual)
    if author is None:
        author = questions.ask_author(last.author if last is not None else DEFAULT_AUTHOR)
    if not datasets:
        datasets = [questions.ask_dataset(last.dataset if last is not None else "")]
    if title is not None:
        answers = questions.LastAnswers(title=title, author=author, dataset=str(expanded(datasets[0]).absolute()))
        questions.remember(answers if last is None else replace(answers, until=last.until, uploads=last.uploads))
    return title, author, datasets


def _folder_of(dataset: str) -> str:
    path = expanded(dataset).absolute()
    return path.parent.name if path.suffix == ".toml" else path.name


def _require_no_command(names: Sequence[str]) -> None:
    """Refuse a misspelt command, which would otherwise be a dataset that does not exist."""
    for name in names:
        meant = [] if expanded(name).exists() else closest(name, _COMMANDS)
        if meant:
            raise BadInputError(
                f"{one_line(name)} is neither a dataset nor a command of launch",
                hint=f"Did you mean `wan-train launch {meant[0]}`?",
            )


def _jobs_file(names: Sequence[str]) -> Path | None:
    """The jobs.toml among the arguments. A dataset.toml is a dataset."""
    found = [path for path in map(expanded, names) if path.suffix == ".toml" and path.is_file() and _has_jobs(path)]
    if found and len(names) > 1:
        raise BadInputError(
            f"{one_line(str(found[0]))} is a list of jobs, and {len(names) - 1} more were given",
            hint="Give the jobs.toml alone, or datasets only.",
        )
    return found[0] if found else None


def _has_jobs(path: Path) -> bool:
    """Whether a file lists jobs. A damaged one does too, so that the message is about jobs."""
    if path.name == "jobs.toml":
        return True
    try:
        return _JOBS_FILE.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def _of_file(call: Call, file: Path) -> tuple[JobRequest, ...]:
    given = [each.flag for each in _OF_ONE if call.get(each) is not None]
    words = [word for word in train_options(call) if word.startswith("--")]
    if given or words:
        raise BadInputError(
            f"{', '.join([*given, *words])} cannot be combined with {file.name}",
            hint=f"Write it into {file.name}: a job, or [defaults] for all, may have options = ['--epochs', '50'].",
        )
    author = call.get(options.AUTHOR)
    requests = read_jobs(file)
    return requests if author is None else tuple(replace(each, author=each.author or author) for each in requests)
