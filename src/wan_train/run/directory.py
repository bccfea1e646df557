"""Every path of a run, derived from its directory; and the directories of all runs."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.base.errors import AmbiguousRunError, BadInputError, ExitCode, NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.home import expanded
from wan_train.base.text import one_line, slug
from wan_train.run.events import RunFinished
from wan_train.run.plan import Plan
from wan_train.run.upgrade import newest

HIDDEN = "."
"""Prefix of directories that are not runs, such as a run being removed, which still has its plan."""

_HEAD_BYTES = 200
_MADE = re.compile(rb'"made": (\d+(?:\.\d+)?)')


@dataclass(frozen=True, slots=True)
class AttemptDirectory:
    """One attempt at one step. No other attempt overwrites anything in it."""

    path: Path

    @property
    def command(self) -> Path:
        return self.path / "command.sh"

    @property
    def log(self) -> Path:
        return self.path / "output.log"

    @property
    def exit(self) -> Path:
        """Written by the warden once every process of the attempt is gone."""
        return self.path / "exit.json"

    @property
    def output(self) -> Path:
        return self.path / "output"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The records of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def dataset_config(self) -> Path:
        return self.path / "dataset.toml"

    def dataset_list(self, dataset: int) -> Path:
        """The run's own copy of a jsonl file, by its dataset's number in dataset.toml."""
        return self.path / f"items-{dataset}.jsonl"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def sample_prompts(self) -> Path:
        """The run's own copy of the sample prompts, in the form the trainer reads."""
        return self.path / "sample-prompts.json"

    def sample_picture(self, prompt_index: int, suffix: str) -> Path:
        """The run's own copy of the picture that an image-to-video prompt starts from."""
        return self.path / "sample-pictures" / f"{prompt_index:02d}{suffix}"

    @property
    def preview_prompts(self) -> Path:
        """The run's own copy of the prompts to draw with both LoRAs at its end; missing if none were requested."""
        return self.path / "preview-prompts.json"

    def draws_preview(self, exit_code: int) -> bool:
        """Whether a run with this exit code draws its preview: only if it has prompts and trained something."""
        return exit_code in {ExitCode.DONE, ExitCode.PARTLY_FAILED} and self.preview_prompts.is_file()

    def preview_picture(self, prompt_index: int, suffix: str) -> Path:
        """The run's own copy of the picture that a preview prompt starts from."""
        return self.path / "preview-pictures" / f"{prompt_index:02d}{suffix}"

    @property
    def accelerate_config(self) -> Path:
        return self.path / "accelerate.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def live(self) -> Path:
        """What changes every second: progress, GPUs, reasons for waiting. Replaced whole, never needed for a resume."""
        return self.path / "live.json"

    @property
    def gpu_history(self) -> Path:
        """Memory and load of the GPUs over time. Bounded, never needed for a resume."""
        return self.path / "gpus.jsonl"

    @property
    def report_page(self) -> Path:
        """The HTML report of the run; made at its end, and again by `wan-train report`."""
        return self.path / "report.html"

    @property
    def report_data(self) -> Path:
        return self.path / "report.json"

    @property
    def uploads(self) -> Path:
        """Uploads that were verified at their targets; missing if there are none."""
        return self.path / "uploads.jsonl"

    @property
    def uploads_lock(self) -> Path:
        """Held (flock) by the one uploader of this run, and by the rclone that it started."""
        return self.path / "uploads.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def picked(self) -> Path:
        """The epochs that the user picked; see `run.picks`."""
        return self.path / "picked.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one supervisor of this run."""
        return self.path / "lock"

    @property
    def stop_request(self) -> Path:
        return self.path / "stop.json"

    @property
    def duties(self) -> Path:
        """Duties during and after the training; missing if there are none."""
        return self.path / "duties.json"

    @property
    def notices(self) -> Path:
        """Sent messages and their recipients, so that none is sent twice."""
        return self.path / "notices.jsonl"

    @property
    def guard(self) -> Path:
        """What the guardian of the box has recorded about this run."""
        return self.path / "guard.json"

    def attempt(self, step: str, number: int) -> AttemptDirectory:
        return AttemptDirectory(self.path / step / str(number))

    def free_attempt(self, step: str, number: int) -> AttemptDirectory:
        """Return the first unused attempt directory from `number` on, as a launch may not have been recorded."""
        while (directory := self.attempt(step, number)).path.exists():
            number += 1
        return directory

    def caches(self, step: str) -> Path:
        """The caches that a caching step made or found: what the run trains from."""
        return self.path / step / "caches.json"

    def read_plan(self) -> Plan:
        try:
            text = self.plan.read_bytes()
        except FileNotFoundError:
            raise BadInputError(
                f"{self.path} is not a run: it has no plan.json", hint="List the runs: `wan-train runs`."
            ) from None
        return codec.from_json(text, Plan, where=str(self.plan), upgrade=newest)

    def write_plan(self, plan: Plan) -> None:
        write_whole(self.plan, codec.to_json(plan, indent=1) + "\n")


def planned(runs: Path, title: str) -> tuple[RunDirectory, float]:
    """The directory of a run that starts now, and the time."""
    now = time.time()
    return RunDirectory(runs / _name(title, now)), now


def _name(title: str, now: float) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{slug(title)}"


def create(runs: Path, title: str, *, now: float) -> RunDirectory:
    """A new, empty run directory; raises NotReadyError if it cannot be created."""
    name = _name(title, now)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = runs / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return RunDirectory(path)
    except OSError as error:
        raise NotReadyError(
            f"cannot create a run directory in {runs}: {error.strerror}",
            hint="Choose another place with --runs-dir DIR.",
        ) from error
    raise NotReadyError(f"{runs} already has 999 runs named {name}", hint="Choose another --title.")


def all_runs(runs: Path) -> list[RunDirectory]:
    """Every run, newest first."""
    if not runs.is_dir():
        return []
    found = [
        RunDirectory(path)
        for path in runs.iterdir()
        if not path.name.startswith(HIDDEN) and (path / "plan.json").is_file()
    ]
    return sorted(found, key=lambda run: run.run_id, reverse=True)


def find(runs: Path, name: str | None) -> RunDirectory:
    """Return a run by id, by a unique part of its id, or by path; without a name, the newest.

    Raises BadInputError; if several runs match, AmbiguousRunError with their ids.
    """
    if name is not None and "/" in name:
        run = RunDirectory(expanded(name).absolute())
        if run.plan.is_file():
            return run
    known = all_runs(runs)
    if not known:
        raise BadInputError(f"there are no runs in {runs}", hint="Start one with `wan-train`.")
    if name is None or name == "last":
        return known[0]
    exact = [run for run in known if run.run_id == name]
    matching = exact or [run for run in known if name in run.run_id]
    match matching:
        case [run]:
            return run
        case []:
            raise BadInputError(f"no run ID in {runs} contains {one_line(name)!r}", hint="List them: `wan-train runs`.")
        case _:
            raise AmbiguousRunError(one_line(name), [run.run_id for run in matching])


def report_of_end(run: RunDirectory, finished: RunFinished) -> Path | None:
    """Return the report page if made after the run ended, else None. Its data, written last, hold the time."""
    try:
        with run.report_data.open("rb") as file:
            made = _MADE.search(file.read(_HEAD_BYTES))
        is_there = run.report_page.is_file()
    except OSError:
        return None
    return run.report_page if is_there and made is not None and float(made[1]) >= finished.at else None
