"""Histories of a rented box whose processes are killed and whose services fail while its last run ends.

CHAOS_RUNS=100 python benchmarks/chaos_endings.py

Each history has a guardian, an upload to a local hub or by rclone, messages to a service, and a provider like Vast; all
on loopback. The driver only does what a box does: start the guardian again. Prints what came of them; exits with 1 when
a box was left running beyond the limit or destroyed too early, or a result was lost, or a message came twice.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import box  # noqa: F401  puts tests/support on the path
from support import nvml
from support.receiver import Manners, Receiver, receiver
from support.trainers import ScriptedBox
from support.upload_hub import Refusal, UploadHub, upload_hub
from support.vast_api import Mood, VastApi, vast_api
from wan_train.base.clock import SystemClock, moment
from wan_train.notify.delivery_log import Mark, read_deliveries
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, register, write_duties

LIMIT_SECONDS = 300.0
"""A box that runs longer than this after its start was left running."""
_FAULTS_SECONDS = 12.0
"""Services fail within this time; then they work."""
_GRACE_SECONDS = 2.0
_TRAINING_SECONDS = 4.0
_MOST_KILLS = 4
_REPO = "me/cats"
_LORAS = 2
_VICTIMS = {
    "guardian": "wan_train.guardian",
    "uploader": "wan_train upload",
    "sender": "wan_train.notify.send",
    "supervisor": "wan_train.run.supervise",
    "everything": "",
}
"""What is killed, and what its command line has in it."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one history."""

    seed: int
    what: str = ""
    seconds: float = 0.0
    is_down: bool = False
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    too_early: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    messages: int = 0
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        return self.is_down and not (self.too_early or self.lost or self.twice or self.trouble)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """`victim` is killed `delay` seconds after `seen` was true first: a time, or a moment of interest."""

    victim: str
    seen: Callable[[], bool]
    delay: float


class History:
    """One box from the end of its training, or from its start, until it is down."""

    def __init__(self, place: ScriptedBox, services: tuple[VastApi, UploadHub, Receiver], seed: int) -> None:
        self.place, self.outcome = place, Outcome(seed=seed)
        self.vast, self.hub, self.receiver = services
        self.chance = random.Random(seed)
        self.then = self.chance.choice([Then.STOP, Then.DESTROY, Then.DESTROY, Then.COMMAND])
        self.to_hub = self.chance.random() < 0.5
        self.mark, self.folder = place.root / "ended", place.root / "elsewhere"
        self.target = f"hf:{_REPO}" if self.to_hub else f"rclone:{self.folder}"
        self.guardian: subprocess.Popen[bytes] | None = None
        self.restart_at = 0.0
        self.digests: dict[str, str] = {}
        self.began = time.monotonic()
        self.vast.on_order = self._note_order

    def play(self, *, trains: bool) -> Outcome:
        if trains:
            self._train()
        else:
            self._care()
        self.outcome.what = f"{'training' if trains else 'finished run'}, {self.target.partition(':')[0]}, {self.then}"
        kills, faults = self._kills(trains=trains), self._faults()
        seen: dict[int, float] = {}
        while not self._is_down() and self._passed() < LIMIT_SECONDS:
            time.sleep(0.05)
            self._remember_results()
            for begin, act in list(faults):
                if self._passed() >= begin:
                    act()
                    faults.remove((begin, act))
            for kill in list(kills):
                if kill.seen():
                    seen.setdefault(id(kill), self._passed())
                if id(kill) in seen and self._passed() >= seen[id(kill)] + kill.delay and self._kill(kill.victim):
                    kills.remove(kill)
            self._keep_guarded()
        self.outcome.seconds, self.outcome.is_down = self._passed(), self._is_down()
        self._land()
        self._judge()
        return self.outcome

    def _passed(self) -> float:
        return time.monotonic() - self.began

    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return self.place.env(**self.vast.environ(), **self.hub.environ(), PATH=path)

    def _ending(self) -> str:
        return f"run:touch {self.mark}" if self.then is Then.COMMAND else self.then.value

    def _train(self) -> None:
        words = ["--upload", self.target, "--then", self._ending(), "--grace", str(_GRACE_SECONDS / 60)]
        words += ["--notify", self.receiver.url]
        self.place.popen_cli(*self.place.train_words(*words), SCRIPTED_STEP_SECONDS="0.1", **self.env())

    def _care(self) -> None:
        """The duties of a run that is over, as its start wrote them."""
        run = RunDirectory(self.place.run())
        command = ("touch", str(self.mark)) if self.then is Then.COMMAND else ()
        duties = Duties(
            began=moment(SystemClock()),
            uploads=(self.target,),
            notify=True,
            then=self.then,
            command=command,
            grace_seconds=_GRACE_SECONDS,
        )
        settings = self.place.home / ".config/wan-train/settings.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(f'notify = ["{self.receiver.url}"]\n')
        write_duties(run, duties)
        register(self.place.leases, run)

    def _keep_guarded(self) -> None:
        """A box starts the guardian again that died; one that ended well is not needed, or was not alone."""
        if self.guardian is not None and self.guardian.poll() in {None, 0}:
            return
        if self.guardian is not None and not self.restart_at:
            self.restart_at = self._passed() + self.chance.uniform(0.0, 2.0)
        if self._passed() < self.restart_at or not self.place.run_directories():
            return
        self.restart_at = 0.0
        with (self.place.root / "guardian.log").open("ab") as log:
            self.guardian = subprocess.Popen(
                [sys.executable, "-m", "wan_train.guardian.program"],
                env=self.env(),
                cwd=self.place.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kills(self, *, trains: bool) -> list[Kill]:
        found = []
        for _ in range(self.chance.randint(1, _MOST_KILLS)):
            victim = self.chance.choice([name for name in _VICTIMS if trains or name != "supervisor"])
            moments: list[Callable[[], bool]] = [
                lambda: True,
                lambda: self._lives("uploader"),
                lambda: self._lives("sender"),
                self._was_ordered,
            ]
            chosen = self.chance.randrange(len(moments))
            if victim == "supervisor":
                seen, most = lambda: self._lives("supervisor"), _TRAINING_SECONDS
            else:
                seen, most = moments[chosen], 10.0 if chosen == 0 else 1.0
            found.append(Kill(victim=victim, seen=seen, delay=self.chance.uniform(0.0, most)))
        return found

    def _faults(self) -> list[tuple[float, Callable[[], None]]]:
        """When what goes wrong; and when it is well again."""
        found: list[tuple[float, Callable[[], None]]] = []
        for _ in range(self.chance.randint(0, 3)):
            begin = self.chance.uniform(0.0, _FAULTS_SECONDS / 2)
            end = self.chance.uniform(begin, _FAULTS_SECONDS)
            match self.chance.choice(["provider", "messages", "hub"]):
                case "provider":
                    mood = self.chance.choice([Mood.BREAKS, Mood.HTML, Mood.BUSY, Mood.DEAF, Mood.REFUSES, Mood.HANGS])
                    found += [(begin, self._provider(mood)), (end, self._provider(Mood.WELL))]
                case "messages":
                    manners = self.chance.choice([Manners.REFUSES, Manners.HANGS])
                    found += [(begin, self._service(manners)), (end, self._service(Manners.TAKES))]
                case _ if self.to_hub:
                    found.append((begin, self._bad_hub))
                case _:
                    found += [(begin, self._bad_folder), (end, self._good_folder)]
        return found

    def _provider(self, mood: Mood) -> Callable[[], None]:
        def act() -> None:
            self.outcome.faults[f"provider {mood.name.lower()}"] += mood is not Mood.WELL
            self.vast.mood = mood

        return act

    def _service(self, manners: Manners) -> Callable[[], None]:
        def act() -> None:
            self.outcome.faults[f"messages: {manners.name.lower()}"] += manners is not Manners.TAKES
            self.receiver.manners = manners

        return act

    def _bad_hub(self) -> None:
        self.outcome.faults["hub"] += 1
        status, after = self.chance.choice([(500, None), (429, None), (503, None), (500, 10)])
        self.hub.refusals += [Refusal(where="/", status=status, after=after)] * self.chance.randint(1, 4)

    def _bad_folder(self) -> None:
        if not self.folder.exists():
            self.outcome.faults["folder that cannot be made"] += 1
            self.folder.write_text("a file where a folder is wanted")

    def _good_folder(self) -> None:
        if self.folder.is_file():
            self.folder.unlink()

    def _lives(self, victim: str) -> bool:
        return any(_VICTIMS[victim] in words for words in self.place.processes().values())

    def _was_ordered(self) -> bool:
        return any(line.startswith(("PUT", "DELETE")) for line in self.vast.asked) or self.mark.exists()

    def _kill(self, victim: str) -> bool:
        """Whether there was somebody to be killed. Before a run is recorded nothing is owed to it."""
        if not list(self.place.runs.glob("*/duties.json")):
            return False
        running = self.place.processes()
        if victim == "guardian":  # alone: the loop that starts it again is another program
            running = {pid: words for pid, words in running.items() if not words.startswith("/bin/sh")}
        pids = [pid for pid, words in running.items() if _VICTIMS[victim] in words]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "everything" and pids:
            self.guardian, self.restart_at = None, self._passed() + self.chance.uniform(0.0, 2.0)  # the box boots
        self.outcome.kills[victim] += bool(pids)
        return bool(pids)

    def _is_down(self) -> bool:
        return self.mark.exists() if self.then is Then.COMMAND else not self.vast.is_running

    def _land(self) -> None:
        """The provider ends what runs on a box that is down; after a command of ours there is time for the messages."""
        until = time.monotonic() + (10.0 if self.then is Then.COMMAND else self.chance.uniform(0.0, 2.0))
        while time.monotonic() < until and self.place.processes():
            time.sleep(0.1)
        self.place.close()
        if self.guardian is not None:
            self.guardian.wait()

    def _remember_results(self) -> None:
        for run in self.place.run_directories():
            for path in run.glob("*.safetensors"):
                if path.name not in self.digests:
                    self.digests[path.name] = _digest(path.read_bytes())

    def _note_order(self, method: str) -> None:
        """The provider is about to obey: what is not elsewhere now would be gone."""
        if method == "DELETE":
            self._remember_results()
            self.outcome.too_early += self._not_elsewhere()

    def _not_elsewhere(self) -> list[str]:
        repo = self.hub.repos.get(_REPO)
        there = {Path(name).name: _digest(content) for name, content in repo.files.items()} if repo else {}
        if not self.to_hub:
            there = {path.name: _digest(path.read_bytes()) for path in self.folder.rglob("*.safetensors")}
        missing = [name for name, digest in self.digests.items() if there.get(name) != digest]
        return missing + ["results that were not made yet"] * (len(self.digests) < _LORAS)

    def _judge(self) -> None:
        outcome, run = self.outcome, RunDirectory(self.place.run())
        kept = {path.name: _digest(path.read_bytes()) for path in run.path.glob("*.safetensors")}
        if self.vast.destroyed:
            outcome.lost += self._not_elsewhere()
        else:
            outcome.lost += [name for name, digest in self.digests.items() if kept.get(name) != digest]
            outcome.lost += ["a result is missing"] * (len(kept) < _LORAS)
        arrived = Counter((message["title"], message["message"]) for message in self.receiver.arrived)
        outcome.twice += [title for (title, _), count in arrived.items() if count > 1]
        entries = read_deliveries(run.notices)
        claims = Counter((each.notice, each.target) for each in entries if each.mark is Mark.CLAIMED)
        if arrived.total() > len(claims):
            outcome.twice.append(f"{arrived.total()} messages of {len(claims)}")
        outcome.messages = arrived.total()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Nursery:
    """Boxes for histories; those with a finished run are copies of one that trained."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = nvml.build(folder / "nvml")
        self._model = self._new("model")
        done = self._model.run_cli(*self._model.train_words())
        if done.returncode != 0:
            raise ValueError(f"the first training failed: {done.stderr}")
        self._model.close()

    @contextmanager
    def box(self, seed: int, *, trains: bool) -> Iterator[ScriptedBox]:
        name = f"h{seed:04d}"  # as long as `model`: records name files by their whole paths
        if not trains:
            shutil.copytree(self._folder / "model", self._folder / name, symlinks=True)
            for path in (self._folder / name).rglob("*"):
                if path.is_file() and not path.is_symlink() and path.suffix != ".safetensors":
                    content = path.read_bytes()
                    here, there = f"{self._folder}/model".encode(), f"{self._folder}/{name}".encode()
                    if here in content:
                        path.write_bytes(content.replace(here, there))
        made = self._new(name)
        try:
            yield made
        finally:
            made.close()
            if "CHAOS_KEEP" not in os.environ:
                shutil.rmtree(self._folder / name, ignore_errors=True)

    def _new(self, name: str) -> ScriptedBox:
        stub = nvml.NvmlStub(library=self._library, state=self._folder / name / "nvml-state")
        stub.state.parent.mkdir(parents=True, exist_ok=True)
        stub.write([nvml.StubGpu(), nvml.StubGpu()])
        return ScriptedBox(self._folder / name / "box", stub)


def play(nursery: Nursery, seed: int, *, trains: bool) -> Outcome:
    with ExitStack() as stack:
        services = (
            stack.enter_context(vast_api()),
            stack.enter_context(upload_hub()),
            stack.enter_context(receiver()),
        )
        history = History(stack.enter_context(nursery.box(seed, trains=trains)), services, seed)
        try:
            return history.play(trains=trains)
        except (TimeoutError, ValueError, OSError, AssertionError) as error:
            history.outcome.trouble = f"{type(error).__name__}: {error}"
            return history.outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=int(os.environ.get("CHAOS_RUNS", "100")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED", "0")))
    parser.add_argument("--training-of", type=int, default=4, help="one of so many histories begins with a training")
    parser.add_argument("--at-once", type=int, default=2 * len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    kept = os.environ.get("CHAOS_KEEP")
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="wan-train-chaos-", dir=kept))
    try:
        nursery = Nursery(folder)
        with ThreadPoolExecutor(given.at_once) as pool:
            seeds = range(given.seed, given.seed + given.runs)
            for outcome in pool.map(lambda seed: play(nursery, seed, trains=seed % given.training_of == 0), seeds):
                outcomes.append(outcome)
                sys.stderr.write(f"\r{len(outcomes)} of {given.runs}")
                if not outcome.is_good:
                    print(outcome, flush=True)
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)
    return report(outcomes)


def report(outcomes: list[Outcome]) -> int:
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    faults = +sum((outcome.faults for outcome in outcomes), Counter[str]())
    running = sum(not outcome.is_down for outcome in outcomes)
    early = sum(bool(outcome.too_early) for outcome in outcomes)
    lost = sum(bool(outcome.lost) for outcome in outcomes)
    twice = sum(len(outcome.twice) for outcome in outcomes)
    trouble = sum(bool(outcome.trouble) for outcome in outcomes)
    print(f"histories                    {len(outcomes)}")
    for what, count in sorted(Counter(outcome.what for outcome in outcomes).items()):
        print(f"  {what:<34}{count}")
    print(
        f"kills                        {kills.total()}: {', '.join(f'{n} {name}' for name, n in sorted(kills.items()))}"
    )
    print(f"faults of services           {faults.total()}")
    for what, count in sorted(faults.items()):
        print(f"  {what:<34}{count}")
    print(f"longest history              {max(outcome.seconds for outcome in outcomes):.0f} s")
    print(f"messages that arrived        {sum(outcome.messages for outcome in outcomes)}")
    print(f"left running beyond {LIMIT_SECONDS:.0f} s    {running}")
    print(f"destroyed before verified    {early}")
    print(f"histories with lost results  {lost}")
    print(f"messages twice               {twice}")
    print(f"trouble of the benchmark     {trouble}")
    return int(bool(running or early or lost or twice or trouble))


if __name__ == "__main__":
    sys.exit(main())
