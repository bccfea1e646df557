"""The guardian's notifier: each round it finds the messages about a run and the box, and dispatches them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.errors import WanTrainError
from wan_train.base.host import ProcessIdentity
from wan_train.base.settings import resolve, user_config_file
from wan_train.base.text import one_line
from wan_train.notify.dispatcher import Dispatcher
from wan_train.notify.notices import RunFacts, of_box, of_run
from wan_train.notify.send import Message
from wan_train.notify.targets import Target, read_targets
from wan_train.run.box_ending import Ending
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import read_duties
from wan_train.run.follow import RunFollower
from wan_train.run.live import read_live

PAUSE_SECONDS = 10.0
"""Wait before the first retry of a message."""


class RunNotifier:
    """Sends the messages of all runs of one guardian. Never raises; only `settle` blocks.

    `uploads` maps each target of a run to whether everything is verified there.
    """

    def __init__(
        self,
        *,
        first_process: ProcessIdentity | None,
        uploads: Callable[[RunDirectory], Mapping[str, bool]],
        say: Callable[[str], None],
        now: Callable[[], float] = time.time,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._first_process = first_process
        self._uploads = uploads
        self._say = say
        self._now = now
        self._dispatcher = Dispatcher(pause=pause, say=say)
        self._addresses = _Addresses(say)
        self._known: dict[Path, _FollowedRun] = {}

    def notify(self, run: RunDirectory, ending: Ending | None) -> bool:
        """Send new messages of a run, and the box's with the first run of its ending; return whether any are open."""
        try:
            targets = self._addresses.read()
            messages = self._messages(run, ending) if targets else ()
            self._dispatcher.dispatch(run.notices, messages, targets)
            return self._dispatcher.is_open(run.notices, messages, targets)
        except (WanTrainError, OSError) as error:
            self._report_problem(run, str(error))
            return False
        except Exception as error:  # noqa: BLE001  a message that cannot be composed must not keep a box running
            self._report_problem(run, f"a bug in wan-train: {type(error).__name__}")
            return False

    def settle(self, seconds: float) -> None:
        """Before the box goes down, wait at most `seconds` for messages being sent."""
        self._dispatcher.settle(seconds)

    def _messages(self, run: RunDirectory, ending: Ending | None) -> Sequence[Message]:
        """The messages that are due. The end of the box is reported even if a run's records cannot be read."""
        known, now = self._known.setdefault(run.path, _FollowedRun(run=run)), self._now()
        found: list[Message] = []
        try:
            duties = read_duties(run)
            if duties is not None and duties.notify:
                found += of_run(known.facts(now, self._uploads(run), ending))
        except (WanTrainError, OSError) as error:
            self._report_problem(run, str(error))
        if ending is not None and ending.runs and ending.runs[0] == run.run_id:
            others = len(ending.runs) - 1
            titles = [known.title, *([f"{others} more"] if others else [])]
            found += of_box(ending, titles, now, first_process=self._first_process)
        return found

    def _report_problem(self, run: RunDirectory, why: str) -> None:
        """Log each reason once."""
        known = self._known.setdefault(run.path, _FollowedRun(run=run))
        if why not in known.reported:
            known.reported.add(why)
            self._say(f"messages about {run.run_id}: {one_line(why)}")


@dataclass(slots=True)
class _FollowedRun:
    """A run and the problems already logged about it."""

    run: RunDirectory
    reported: set[str] = field(default_factory=set)
    follower: RunFollower = field(init=False)

    def __post_init__(self) -> None:
        self.follower = RunFollower(self.run)

    @property
    def title(self) -> str:
        """The run's title, or its ID if the plan cannot be read."""
        plan = self.follower.plan
        return plan.answers.title if plan is not None else self.run.run_id

    def facts(self, now: float, uploads: Mapping[str, bool], ending: Ending | None) -> RunFacts:
        """Raises what `RunFollower.read` raises."""
        plan, state = self.follower.read()
        return RunFacts(
            run_dir=self.run.path,
            plan=plan,
            events=self.follower.events,
            state=state,
            now=now,
            live=read_live(self.run),
            uploads=uploads,
            ending=ending,
        )


class _Addresses:
    """The services of the settings file, read again when it changes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: tuple[int, int] | None = None
        self._targets: tuple[Target, ...] = ()

    def read(self) -> tuple[Target, ...]:
        seen = None
        with suppress(OSError):
            status = user_config_file().stat()
            seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            self._seen, self._targets = seen, ()
            try:
                self._targets = read_targets(resolve(flags={}).notify)
            except WanTrainError as error:  # its text quotes no address
                self._say(f"no messages can be sent: {one_line(str(error))}")
        return self._targets
