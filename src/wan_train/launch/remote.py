"""Work on a rented box: check it, prepare it, send a job, train, watch, bring results home.

Every step can be repeated, because a broken connection leaves open whether it was done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from wan_train.base.codec import CorruptRecordError
from wan_train.base.files import sync_directory
from wan_train.base.text import one_line
from wan_train.base.units import MIB
from wan_train.launch import box_check
from wan_train.launch.infra import OVER, VAST
from wan_train.launch.jobs import RECIPE_NAME
from wan_train.launch.model import Address, Job, Offer, Wants
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import PARTIAL, RemoteError, Ssh, UnreachableError
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Then, read_duties, write_duties
from wan_train.run.speeds import SPEEDS_FILE, Speed, speeds_in

WORKSPACE, RUNS = box_check.WORKSPACE, box_check.RUNS
PROGRAM = WORKSPACE / "wan-train-env/bin/wan-train"
SETUP = WORKSPACE / "wan-train-launch/setup"
GRACE_MINUTES = 60
"""From the end of the last run until the box ends itself: time for the laptop to bring results home."""
STATES_KEPT = 2
_LOOKS = 3
"""Tries to fetch states: a newer one replaces a state removed during its copy, unless the training is over."""
_ANSWER_SECONDS = 60.0
_COMMAND_SECONDS = 180.0
_COPY_SECONDS = 6 * 3600.0
COMING = ".coming"
"""Folder in a run directory here for incomplete states."""
_NEVER = (PARTIAL, "/lock", "*.lock", "/cache/", "/guard.json")
"""What never comes home: locks, caches, and a box's progress with its own end."""
_STATE_FOLDER = re.compile(r".+-state")
_LINES = 5
_MOST_SPEEDS = 1_000_000
# The set-up inherits the lock, so a second one never runs beside it. It outlives the connection. Its exit code is
# reported once; the next call tries again.
_RUN_ONCE = """cd {folder} || exit
if [ "$(cat done 2>/dev/null)" = {stamp} ]; then echo 0; exit 0; fi
exec 9>lock
if ! flock -n 9; then echo running; exit 0; fi
if [ "$(cat code-of 2>/dev/null)" = {stamp} ] && [ -s code ]; then
  cat code; tail -n {lines} log; rm -f code
  exit 0
fi
rm -f code
setsid nohup sh -c 'sh run.sh; code=$?
printf %s {stamp} >code-of; echo $code >code
[ $code != 0 ] || printf %s {stamp} >done' >log 2>&1 </dev/null &
echo running
"""


class WrongBoxError(RemoteError):
    """The box is not what was rented, or is faulty."""


class JobError(RemoteError):
    """The training was refused for a reason that would be the same on any box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateThere:
    """A complete state on a box."""

    step: str
    path: PurePosixPath
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Status of a run on a box, as wan-train there reports it. `ends_at` is in seconds since 1970."""

    run_id: str
    state: str
    exit_code: int | None
    states: tuple[StateThere, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    """File name and sha256 of each finished LoRA."""
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    ends_at: float | None = None


class Remote(Protocol):
    """Work on a box over ssh. Methods raise UnreachableError for the connection, RemoteError for everything else."""

    def check(self, address: Address, offer: Offer, wants: Wants) -> int:
        """Check a box and measure its line; return the bytes that this downloaded. Raises WrongBoxError."""
        ...

    def provision(self, address: Address, tasks: Sequence[str]) -> bool:
        """Begin to prepare the box, or check on that; return whether it is ready. Raises WrongBoxError."""
        ...

    def send(self, address: Address, shipment: Shipment) -> None: ...

    def start(self, address: Address, job: Job, shipment: Shipment, wants: Wants) -> str:
        """Start the training unless it was started already; return its run ID. Raises JobError."""
        ...

    def resume(self, address: Address, home: Path, wants: Wants) -> str:
        """Copy a run directory to a box and resume it; the dataset must be there already."""
        ...

    def look(self, address: Address, run_id: str) -> Training: ...

    def fetch(self, address: Address, run_id: str, home: Path) -> int:
        """Bring the newest complete states and the records home; return about how many bytes came."""
        ...

    def bring(self, address: Address, run_id: str, home: Path) -> int:
        """Like `fetch`, with the results. Raises RemoteError if their checksums differ."""
        ...

    def speeds(self, address: Address) -> tuple[Speed, ...]:
        """What the box measured while it trained."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SshRemote:
    """`Remote` over ssh. `scratch` is a folder of the launch; `source` returns the wheel and the set-up script."""

    scratch: Path
    source: Callable[[], tuple[Path, Path]]

    def check(self, address: Address, offer: Offer, wants: Wants) -> int:
        ssh = self._ssh(address)
        outcome = ssh.run(box_check.LOOK, seconds=_ANSWER_SECONDS)
        if outcome.code == box_check.NO_WORKSPACE:
            raise WrongBoxError(f"{WORKSPACE} cannot be made: its user is not root, and may not use sudo")
        if not outcome.succeeded:
            raise WrongBoxError(f"it has no working GPU: {one_line(outcome.tail(1))}")
        why = box_check.wrong_with(outcome.output, offer, wants)
        if why is None:
            why = box_check.wrong_with_line(ssh.run(box_check.measure(), seconds=_ANSWER_SECONDS).output, offer)
        if why is not None:
            raise WrongBoxError(why)
        if wants.infra == VAST:
            # The start script has the timer too. Here it is sure to start, whatever image the box has.
            ssh.output(box_check.timer(wants.max_hours), seconds=_ANSWER_SECONDS)
        return box_check.MEASURED_BYTES

    def provision(self, address: Address, tasks: Sequence[str]) -> bool:
        ssh = self._ssh(address)
        wheel, script = self.source()
        there = ssh.output(f"cat {SETUP}/of 2>/dev/null; true", seconds=_ANSWER_SECONDS).strip()
        words = shlex.join(["bash", f"./{script.name}", "--task", tasks[0] if len(tasks) == 1 else "both"])
        stamp = hashlib.sha256(wheel.read_bytes() + script.read_bytes() + words.encode()).hexdigest()
        if there != stamp:
            ssh.output(f"mkdir -p {SETUP}", seconds=_ANSWER_SECONDS)
            for file in (wheel, script):
                ssh.send(file.parent, SETUP, names=[file.name], seconds=_COPY_SECONDS)
            text = f'env WAN_TRAIN_SOURCE="$PWD"/{shlex.quote(wheel.name)} {words}\n'
            ssh.output(
                f"cat >{SETUP}/run.sh && printf %s {stamp} >{SETUP}/of.new && mv {SETUP}/of.new {SETUP}/of",
                seconds=_ANSWER_SECONDS,
                stdin=text,
            )
        return self._has_run(ssh, stamp)

    def send(self, address: Address, shipment: Shipment) -> None:
        ssh = self._ssh(address)
        folders = [shipment.root / name for name in shipment.folders]
        ssh.output(shlex.join(["mkdir", "-p", *map(str, (shipment.root, *folders))]), seconds=_ANSWER_SECONDS)
        for name, (folder, names) in shipment.folders.items():
            ssh.send(folder, shipment.root / name, names=names, seconds=_COPY_SECONDS)
        with tempfile.TemporaryDirectory(prefix="send-", dir=self.scratch) as made:
            for name, text in shipment.texts.items():
                (Path(made) / name).write_text(text, encoding="utf-8", errors="surrogateescape")
            ssh.send(Path(made), shipment.root, names=list(shipment.texts), seconds=_COPY_SECONDS)

    def start(self, address: Address, job: Job, shipment: Shipment, wants: Wants) -> str:
        marker = shipment.root / "run-id"
        recipe = ["--recipe", str(shipment.root / RECIPE_NAME)] if job.recipe is not None else []
        words = [
            *("--title", job.title, "--dataset", str(shipment.config), *recipe),
            *("--yes", "--detach", "--json", *_ends(wants)),
            *job.options,
        ]
        # The lock and the marker keep a request whose answer was lost from starting a second training.
        script = (
            f"{box_check.ENVIRONMENT}exec 9>{shlex.quote(str(shipment.root / 'lock'))}; flock -w 120 9 || exit 75\n"
            f"if [ -s {shlex.quote(str(marker))} ]; then cat {shlex.quote(str(marker))}; exit 0; fi\n"
            f"{shlex.join([str(PROGRAM), 'train', *words])} 9>&- >{shlex.quote(str(marker))}.new || exit\n"
            f"mv {shlex.quote(str(marker))}.new {shlex.quote(str(marker))} && cat {shlex.quote(str(marker))}"
        )
        return self._started(address, script)

    def resume(self, address: Address, home: Path, wants: Wants) -> str:
        ssh = self._ssh(address)
        run_id = home.name
        there = RUNS / run_id
        found = self._look(ssh, run_id)
        if found is None:
            ssh.output(shlex.join(["mkdir", "-p", str(there)]), seconds=_ANSWER_SECONDS)
            names = [path.name for path in home.iterdir() if path.name not in {PARTIAL, COMING, "lock"}]
            # The plan comes last: wan-train ignores a folder without one, so a broken copy is continued.
            ssh.send(home, there, names=[name for name in names if name != "plan.json"], seconds=_COPY_SECONDS)
            ssh.send(home, there, names=["plan.json"], seconds=_COPY_SECONDS)
        elif found.state in {"running", "waiting", "retrying"}:
            return run_id
        words = [str(PROGRAM), "resume", run_id, "--detach", "--json", *_ends(wants)]
        return self._started(address, f"{box_check.ENVIRONMENT}{shlex.join(words)}")

    def look(self, address: Address, run_id: str) -> Training:
        found = self._look(self._ssh(address), run_id)
        if found is None:
            raise RemoteError(f"the run {run_id} is not on the box")
        return found

    def fetch(self, address: Address, run_id: str, home: Path) -> int:
        ssh = self._ssh(address)
        home.mkdir(parents=True, exist_ok=True)
        before = tree_bytes(home)
        excluded = [*_NEVER, "/*/*/output/**"]
        if not (home / "plan.json").is_file():
            # Bring the plan first: without it, a state is useless if the box is lost in between.
            ssh.fetch(RUNS / run_id, home, seconds=_COPY_SECONDS, excluded=excluded)
        for _ in range(_LOOKS):
            there = [self._fetch_state(ssh, state, run_id, home) for state in self.look(address, run_id).states]
            if all(there):
                break
        # States come first: a record must not name a missing one. Files that the trainer still writes stay on the box.
        ssh.fetch(RUNS / run_id, home, seconds=_COPY_SECONDS, excluded=excluded)
        forget_ending(home)
        came = tree_bytes(home) - before
        forget_old_states(home)
        return max(0, came)

    def bring(self, address: Address, run_id: str, home: Path) -> int:
        came = self.fetch(address, run_id, home)
        training = self.look(address, run_id)
        ssh = self._ssh(address)
        before = tree_bytes(home)
        ssh.fetch(RUNS / run_id, home, seconds=_COPY_SECONDS, excluded=[*_NEVER, "*-state/"])
        forget_ending(home)
        for name, digest in training.results:
            if digest_of(home / name) != digest:
                (home / name).unlink(missing_ok=True)  # rsync would skip it, because size and time match
                raise RemoteError(f"{name} did not arrive whole")
        return came + max(0, tree_bytes(home) - before)

    def speeds(self, address: Address) -> tuple[Speed, ...]:
        text = self._ssh(address).output(f"head -c {_MOST_SPEEDS} {RUNS / SPEEDS_FILE}", seconds=_ANSWER_SECONDS)
        return speeds_in(text.encode())

    def _fetch_state(self, ssh: Ssh, state: StateThere, run_id: str, home: Path) -> bool:
        """Fetch a state. Return False if the box no longer has it: the trainer removes old ones, and all at its end.

        It counts only once the LoRAs up to it are here too: a training resumed from it saves only later ones.
        """
        within = state.path.relative_to(RUNS / run_id)
        target = home / within
        if target.is_dir():
            return True
        coming = home / COMING
        coming.mkdir(exist_ok=True)
        try:
            ssh.fetch(RUNS / run_id, coming, names=[f"{within}/"], seconds=_COPY_SECONDS)
        except UnreachableError:
            raise
        except RemoteError:
            gone = shlex.join(["test", "!", "-d", str(state.path)])
            if ssh.run(gone, seconds=_ANSWER_SECONDS).succeeded:
                return False
            raise
        if not self._is_still_there(ssh, state, coming / within):
            shutil.rmtree(coming, ignore_errors=True)
            return False
        ssh.fetch(RUNS / run_id, home, only=["/*.safetensors"], seconds=_COPY_SECONDS)
        target.parent.mkdir(parents=True, exist_ok=True)
        (coming / within).rename(target)
        sync_directory(target.parent)
        shutil.rmtree(coming, ignore_errors=True)
        return True

    def _is_still_there(self, ssh: Ssh, state: StateThere, copy: Path) -> bool:
        """Whether the box still has all files of a copied state: rsync misses files removed before it lists them."""
        listed = ssh.run(f"LC_ALL=C ls -A {shlex.quote(str(state.path))}", seconds=_ANSWER_SECONDS)
        return listed.succeeded and set(listed.output.splitlines()) == {path.name for path in copy.iterdir()}

    def _has_run(self, ssh: Ssh, stamp: str) -> bool:
        """Start the set-up unless it runs or is done for this stamp; return if it is done. Raises WrongBoxError."""
        script = box_check.ENVIRONMENT + _RUN_ONCE.format(folder=SETUP, stamp=stamp, lines=_LINES)
        said, _, log = ssh.output(script, seconds=_ANSWER_SECONDS).partition("\n")
        match said.strip():
            case "0":
                return True
            case "running":
                return False
            case _:
                lines = [line for line in log.splitlines() if line.strip()]
                raise WrongBoxError(f"it could not be prepared: {one_line(lines[-1]) if lines else 'no reason given'}")

    def _started(self, address: Address, script: str) -> str:
        outcome = self._ssh(address).run(script, seconds=_COMMAND_SECONDS)
        for line in reversed(outcome.output.splitlines()):
            run_id = _json(line).get("run_id")
            if outcome.succeeded and isinstance(run_id, str) and re.fullmatch(r"[\w.-]+", run_id):
                return run_id
        told = one_line(outcome.tail(2).replace("\n", "; "))
        # Exit codes 2 and 3 of wan-train: invalid input, box not ready.
        if outcome.code == 2:
            raise JobError(told)
        if outcome.code == 3:
            raise WrongBoxError(told)
        raise RemoteError(told or f"wan-train on the box ended with {outcome.code}")

    def _look(self, ssh: Ssh, run_id: str) -> Training | None:
        there = RUNS / run_id
        script = f"[ -f {shlex.quote(str(there / 'plan.json'))} ] || exit 44\n"
        script += f"exec {shlex.join([str(PROGRAM), 'status', run_id, '--json'])}"
        outcome = ssh.run(script, seconds=_COMMAND_SECONDS)
        if outcome.code == 44:
            return None
        lines = [line for line in outcome.output.splitlines() if line.strip()]
        data = _json(lines[-1]) if lines else {}
        if "state" not in data:
            raise RemoteError(one_line(outcome.tail(2).replace("\n", "; ")) or "wan-train on the box said nothing")
        return read_training(data, there)

    def _ssh(self, address: Address) -> Ssh:
        return Ssh(address=address, known_hosts=self.scratch / "known_hosts")


def read_training(data: dict[str, Any], there: PurePosixPath) -> Training:
    """Parse `wan-train status --json` of the run in directory `there` on the box. Its paths are not trusted."""
    steps = [step for step in data.get("steps") or () if isinstance(step, dict)]
    states, results = [], []
    for step in steps:
        state, result = step.get("newest_state"), step.get("result")
        if isinstance(state, dict) and isinstance(state.get("path"), str):
            path = PurePosixPath(os.path.normpath(state["path"]))
            if path.is_relative_to(there) and path != there and isinstance(state.get("epoch"), int):
                states.append(StateThere(step=str(step.get("id")), path=path, epoch=state["epoch"]))
        if isinstance(result, dict) and isinstance(result.get("path"), str) and isinstance(result.get("sha256"), str):
            results.append((PurePosixPath(result["path"]).name, result["sha256"]))
    active = next((step for step in reversed(steps) if isinstance(step.get("progress"), dict)), None)
    progress = active["progress"] if active is not None else {}
    code = data.get("exit_code")
    return Training(
        run_id=str(data.get("run_id")),
        state=str(data.get("state")),
        exit_code=code if isinstance(code, int) and not isinstance(code, bool) else None,
        states=tuple(states),
        results=tuple(results),
        epoch=_int(progress.get("epoch")),
        epochs=_int(progress.get("epochs")),
        loss=_float(progress.get("loss")),
        ends_at=_float(data.get("ends_at")),
    )


def forget_ending(home: Path) -> None:
    """Remove the box's end from the duties, because `wan-train resume` here would end this computer."""
    run = RunDirectory(home)
    try:
        duties = read_duties(run)
    except CorruptRecordError:
        run.duties.unlink()
        return
    if duties is not None:
        write_duties(run, replace(duties, then=Then.NOTHING, command=(), max_hours=None))


def forget_old_states(home: Path) -> None:
    """Keep the newest two states of each attempt here; each has about 0.5 GB."""
    for output in home.glob("*/*/output"):
        states = sorted(
            (path for path in output.iterdir() if path.is_dir() and _STATE_FOLDER.fullmatch(path.name)),
            key=lambda path: path.name,
        )
        for path in states[:-STATES_KEPT]:
            shutil.rmtree(path, ignore_errors=True)


def tree_bytes(folder: Path) -> int:
    """The sizes of all files in a folder."""
    return sum(path.stat(follow_symlinks=False).st_size for path in folder.rglob("*") if path.is_file())


def digest_of(path: Path) -> str | None:
    """The sha256 of a file; None where there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(16 * MIB):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def _ends(wants: Wants) -> list[str]:
    """Options that make a box end itself if the laptop never returns. On Vast its disk stays: it may have results."""
    then = "stop" if wants.infra == VAST else f"run:touch {OVER}"
    return ["--then", then, "--grace", str(GRACE_MINUTES), "--max-hours", f"{wants.max_hours:g}"]


def _json(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
